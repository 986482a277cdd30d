import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import {
  call,
  type NativeGenerated,
  type NativeGenerateOptions,
  type NativeModel,
  type NativeSequences,
  native,
} from '../native.js'
import { checkLoops, checkNumber, checkWord, describe, packSequences } from './checks.js'
import type { LoopLM } from './model.js'
import { TextStream } from './text-stream.js'
import type { GenerateChunk, GenerateOptions, GenerateResult, Prompt, RealArray, TokenSequence } from './types.js'

interface Request {
  prompts: NativeSequences
  options: NativeGenerateOptions
  /** Texts that end a sequence; they are looked for after every token. */
  stopTexts: string[]
}

/** The body of LoopLM.generate: one native call, or one per token when there are stop texts. */
export async function generate(
  model: LoopLM,
  handle: NativeModel,
  prompts: readonly Prompt[],
  options: GenerateOptions,
): Promise<GenerateResult[]> {
  const operation = 'LoopLM.generate'
  const request = readRequest(model, prompts, options, operation)
  const { tokenizer } = model
  const watched = request.stopTexts.length > 0
  const steps = watched ? 1 : request.options.maxNewTokens
  const sequences = prompts.map(() => new Sequence(watched ? new TextStream(tokenizer!, request.stopTexts) : undefined))
  const generation = native().generationCreate(handle, request.prompts, request.options)
  try {
    for (let done = false; !done; ) {
      const result = await call(operation, (cancel) => native().generationStep(generation, steps, cancel), options.signal)
      done = result.done
      const stopped = sequences.flatMap((sequence, i) => (sequence.add(result.added[i]!) ? [i] : []))
      if (stopped.length > 0) await call(operation, () => native().generationFinish(generation, stopped))
    }
  } finally {
    generation.dispose()
  }
  return sequences.map((sequence) => sequence.result(tokenizer))
}

/** The body of LoopLM.stream. */
export async function* stream(
  model: LoopLM,
  handle: () => NativeModel,
  prompt: Prompt,
  options: GenerateOptions,
): AsyncGenerator<GenerateChunk, void, undefined> {
  const operation = 'LoopLM.stream'
  const request = readRequest(model, [prompt], options, operation)
  const text = model.tokenizer && new TextStream(model.tokenizer, request.stopTexts)
  const generation = native().generationCreate(handle(), request.prompts, request.options)
  try {
    for (let finishReason: 'length' | 'stop' | undefined; finishReason === undefined; ) {
      const { added } = await call(operation, (cancel) => native().generationStep(generation, 1, cancel), options.signal)
      const { tokens, logprobs, loops, finish } = added[0]!
      const piece = text?.push(tokens[0]!)
      finishReason = text?.stopped ? 'stop' : reason(finish)
      const chunk = { token: tokens[0]!, logprob: logprobs[0]!, loop: loops[0]! }
      const end = finishReason === undefined ? {} : { finishReason }
      yield text === undefined ? { ...chunk, ...end } : { ...chunk, text: piece + (finishReason ? text.flush() : ''), ...end }
    }
  } finally {
    generation.dispose()
  }
}

/** What one prompt has become so far. */
class Sequence {
  readonly #parts: NativeGenerated[] = []
  readonly #text: TextStream | undefined
  #pieces = ''
  #finish: 'length' | 'stop' | undefined

  constructor(text: TextStream | undefined) {
    this.#text = text
  }

  /** Takes new tokens in; true when a stop text in them ends a sequence that the engine would continue. */
  add(part: NativeGenerated): boolean {
    if (part.tokens.length === 0) return false
    this.#parts.push(part)
    for (const token of part.tokens) this.#pieces += this.#text?.push(token) ?? ''
    const ended = reason(part.finish)
    this.#finish = this.#text?.stopped ? 'stop' : ended
    return this.#finish === 'stop' && ended === undefined
  }

  result(tokenizer: Tokenizer | undefined): GenerateResult {
    const tokens = this.#parts.flatMap((part) => part.tokens)
    const result: GenerateResult = {
      tokens,
      logprobs: join(this.#parts.map((part) => part.logprobs)),
      loops: this.#parts.flatMap((part) => part.loops),
      finishReason: this.#finish ?? 'length',
    }
    if (this.#text !== undefined) result.text = this.#pieces + this.#text.flush()
    else if (tokenizer !== undefined) result.text = tokenizer.decode(tokens, { skipSpecialTokens: true })
    return result
  }
}

function reason(finish: NativeGenerated['finish']): 'length' | 'stop' | undefined {
  return finish === 'length' || finish === 'stop' ? finish : undefined
}

function join(parts: RealArray[]): RealArray {
  if (parts.length === 1) return parts[0]!
  const length = parts.reduce((sum, part) => sum + part.length, 0)
  const whole = parts[0] instanceof Float64Array ? new Float64Array(length) : new Float32Array(length)
  let end = 0
  for (const part of parts) {
    whole.set(part, end)
    end += part.length
  }
  return whole
}

function readRequest(model: LoopLM, prompts: readonly Prompt[], options: GenerateOptions, operation: string): Request {
  const { config } = model
  if (!Array.isArray(prompts)) {
    throw new LoopLMError('INVALID_ARGUMENT', `prompts must be an array of prompts, got ${describe(prompts)}`, { operation })
  }
  const tokens = prompts.map((prompt: Prompt, i) =>
    typeof prompt === 'string' ? encode(model, prompt, `prompts[${i}]`, operation) : prompt,
  )
  const packed = packSequences(tokens, { vocabulary: config.vocab_size, minLength: 1, name: 'prompts' }, operation)
  const number = (
    name: 'maxNewTokens' | 'temperature' | 'topK' | 'topP' | 'minP' | 'seed',
    fallback: number,
    range: Parameters<typeof checkNumber>[2],
  ) => checkNumber(options[name] ?? fallback, name, range, operation)
  const maxNewTokens = number('maxNewTokens', 16, { min: 1, max: 2 ** 24, integer: true })
  const slots = packed.tokens.length + packed.lengths.length * maxNewTokens
  if (slots >= 2 ** 31) {
    const message = `prompts of ${packed.tokens.length} tokens and ${packed.lengths.length} × ${maxNewTokens} new ones do not fit in one call; make several`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  const { stopTokens, stopTexts } = readStop(model, options.stop, operation)
  return {
    prompts: packed,
    stopTexts,
    options: {
      maxNewTokens,
      temperature: number('temperature', 1, { min: 0 }),
      topK: number('topK', 0, { min: 0, max: 2 ** 31 - 1, integer: true }),
      topP: number('topP', 1, { above: 0, max: 1 }),
      minP: number('minP', 0, { min: 0, below: 1 }),
      seed: number('seed', 0, { min: 0, integer: true }),
      loops: checkLoops(options.loops, operation),
      exitThreshold: readExit(options.exit, config.early_exit_threshold, operation),
      sharedCache: checkWord(options.kv ?? 'per-loop', 'kv', ['per-loop', 'shared'], operation) === 'shared',
      stopTokens: Int32Array.from(stopTokens),
    },
  }
}

function encode(model: LoopLM, prompt: string, name: string, operation: string): TokenSequence {
  if (model.tokenizer !== undefined) return model.tokenizer.encode(prompt)
  const message = `${name} is a text, and the model has no tokenizer; give token ids or set model.tokenizer`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

function readExit(exit: GenerateOptions['exit'], configured: number, operation: string): number {
  if (exit === undefined) return configured
  const rule = checkWord(exit?.rule, 'exit.rule', ['gate', 'fixed'], operation)
  if (rule === 'fixed') return 1
  return checkNumber((exit as { threshold?: number }).threshold ?? configured, 'exit.threshold', { above: 0 }, operation)
}

function readStop(
  model: LoopLM,
  stop: GenerateOptions['stop'],
  operation: string,
): { stopTokens: number[]; stopTexts: string[] } {
  if (stop === undefined) return { stopTokens: [...model.endTokens], stopTexts: [] }
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
  if (!Array.isArray(stop)) throw refuse(`stop must be an array of token ids and texts, got ${describe(stop)}`)
  const { tokenizer } = model
  const stopTokens: number[] = []
  const stopTexts: string[] = []
  for (const [i, entry] of stop.entries()) {
    if (typeof entry !== 'string') {
      stopTokens.push(checkNumber(entry, `stop[${i}]`, { min: 0, max: model.config.vocab_size - 1, integer: true }, operation))
      continue
    }
    if (tokenizer === undefined)
      throw refuse(`stop[${i}] is a text, and the model has no tokenizer; give token ids or set model.tokenizer`)
    if (entry === '') throw refuse(`stop[${i}] is an empty text`)
    stopTexts.push(entry)
    const id = tokenizer.tokenId(entry) // special tokens are not part of the text
    if (id !== undefined && tokenizer.decode([id]) === entry) stopTokens.push(id)
  }
  return { stopTokens, stopTexts }
}
