import { LoopLMError } from '../errors.js'
import type { NativeModel } from '../native.js'
import { describe } from '../validation/arguments.js'
import { type GeneratingModel, type Request, readRequests } from './request.js'
import { Scheduler } from './scheduler.js'
import type { GenerateChunk, GenerateOptions, GenerateResult, Prompt } from './types.js'

/**
 * How many prompt tokens a batch runs at once: enough to run the matrix products at full speed, few enough to bound the
 * activations.
 */
const prefillTokens = 4096

/** Implements LoopLM.generate: a scheduler with a row for every prompt. */
export async function generate(
  model: GeneratingModel,
  handle: NativeModel,
  prompts: readonly Prompt[],
  options: GenerateOptions,
): Promise<GenerateResult[]> {
  const operation = 'LoopLM.generate'
  if (!Array.isArray(prompts)) {
    throw new LoopLMError('INVALID_ARGUMENT', `prompts must be an array of prompts, got ${describe(prompts)}`, { operation })
  }
  const requests = readRequests(model, prompts, 'prompts', options, operation)
  using scheduler = new Scheduler(model, handle, operation, own(prompts.length, options), options.signal)
  const watched = ({ native, stopTexts }: Request) => (stopTexts.length > 0 || native.host !== 'none' ? 'token' : 'idle')
  const entered = requests.map((request) => scheduler.enter(request, watched(request)))
  scheduler.drive()
  return await Promise.all(entered.map((request) => request.result()))
}

/** Implements LoopLM.stream. */
export async function* stream(
  model: GeneratingModel,
  handle: () => NativeModel,
  prompt: Prompt,
  options: GenerateOptions,
): AsyncGenerator<GenerateChunk, void, undefined> {
  const operation = 'LoopLM.stream'
  const [request] = readRequests(model, [prompt], 'prompt', options, operation)
  using scheduler = new Scheduler(model, handle(), operation, own(1, options), options.signal)
  const entered = scheduler.enter(request!, 'token')
  scheduler.drive()
  yield* entered
}

function own(rows: number, options: GenerateOptions) {
  const { loops, kv, cacheType, promptCache } = options
  return { maxRows: rows, loops, kv, cacheType, promptCache, prefillTokens }
}
