import { LoopLMError } from '../errors.js'
import type { Architecture } from '../native/architecture.js'
import type { NativeLoops } from '../native.js'
import { checkNumber, describe } from '../validation/arguments.js'
import { maxLoops } from './architectures/fields.js'
import { checkLoops } from './checks.js'
import type { BackwardLoops } from './types.js'

/** Which loops run, which are read, and which carry gradient. */
export interface LoopChoice {
  loops?: number | undefined
  readLoops?: readonly number[] | undefined
  backwardLoops?: BackwardLoops | undefined
}

/** The checked loops: what the engine gets, and how many loops have rows in the results. */
export interface CheckedLoops {
  native: NativeLoops
  reads: number
}

/**
 * Checks which loops an operation runs, reads and differentiates.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the option
 */
export function checkLoopChoice(choice: LoopChoice, architecture: Architecture, operation: string): CheckedLoops {
  const given = checkLoops(choice.loops, operation)
  const read = checkReadLoops(choice.readLoops, given || architecture.loops, operation)
  const run = read?.at(-1) ?? (given || architecture.loops)
  const native: NativeLoops = { loops: given, ...backwardOf(choice.backwardLoops, run, architecture, operation) }
  if (read !== undefined) native.readLoops = Int32Array.from(read)
  return { native, reads: read?.length ?? run }
}

function checkReadLoops(read: readonly number[] | undefined, loops: number, operation: string): readonly number[] | undefined {
  if (read === undefined) return undefined
  const range = { min: 1, max: loops, integer: true }
  const refuse = (problem: string) =>
    new LoopLMError(
      'INVALID_ARGUMENT',
      `readLoops must be a list of loop numbers from 1 to ${loops} in ascending order, ${problem}`,
      {
        operation,
      },
    )
  if (!Array.isArray(read) || read.length === 0) throw refuse(`got ${describe(read)}`)
  for (const [k, loop] of read.entries()) {
    checkNumber(loop, `readLoops[${k}]`, range, operation)
    if (k > 0 && loop <= read[k - 1]!) throw refuse(`but readLoops[${k}] is ${loop}, after ${read[k - 1]}`)
  }
  return read
}

function backwardOf(
  backward: BackwardLoops | undefined,
  run: number,
  { publishedBackward }: Architecture,
  operation: string,
): Pick<NativeLoops, 'backwardLoops' | 'constantSteps'> {
  if (backward === undefined) return {}
  if (backward !== 'published') {
    const range = { min: 1, max: maxLoops, integer: true }
    return { backwardLoops: checkNumber(backward, 'backwardLoops', range, operation) }
  }
  const { loops = 0, constantSteps } = publishedBackward ?? {}
  if (constantSteps === undefined) return { backwardLoops: loops }
  const last = constantSteps.at(-1)!
  return { constantSteps: Int32Array.from({ length: run }, (_, t) => constantSteps[t] ?? last) }
}
