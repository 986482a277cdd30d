import { expect } from 'vitest'
import { LoopLMError } from '../src/index.js'

/** The LoopLMError that a call throws or rejects with; anything else fails the test. */
export async function refusal(run: () => unknown): Promise<LoopLMError> {
  try {
    await run()
  } catch (error) {
    expect(error).toBeInstanceOf(LoopLMError)
    return error as LoopLMError
  }
  throw new Error('expected an error')
}
