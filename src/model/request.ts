import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import { grammarText } from '../grammar/grammar.js'
import type { Architecture } from '../native/architecture.js'
import type { NativeGenerateRequest, NativeSequences, NativeVectors } from '../native.js'
import { checkFlag, checkNumber, checkOptions, checkWord, describe } from '../validation/arguments.js'
import { cacheTypes } from './cache-type.js'
import {
  checkLoops,
  highestTemperature,
  lowestTemperature,
  packOneEach,
  packSequences,
  packValues,
  readStates,
  sequenceLimits,
  sequenceName,
  withVectors,
} from './checks.js'
import type { LoopLMConfig } from './config.js'
import { readExit } from './exit-rules.js'
import { readLogitOptions } from './logit-options.js'
import { cachePolicyFields, generateOptions, promptCacheFields, speculateFields } from './options.js'
import type {
  CachePolicy,
  CacheType,
  GenerateOptions,
  LogitsProcessor,
  ModelDType,
  Prompt,
  PromptCache,
  TokenSequence,
} from './types.js'

/** A prompt and its options in the form that the engine takes. */
export interface Request {
  native: NativeGenerateRequest
  /** Strings that end a sequence. The text is searched after every token. */
  stopTexts: string[]
  /** The rules of the grammar, if native.host is `mask`. */
  grammar?: string
  /** Set if native.host is `logits`. */
  processor?: LogitsProcessor
}

/** What generation needs from a model. */
export interface GeneratingModel {
  readonly architecture: Architecture
  readonly config: Readonly<LoopLMConfig>
  readonly dtype: ModelDType
  readonly tokenizer: Tokenizer | undefined
  readonly endTokens: readonly number[]
}

/** A batch of requests that differ only in their prompts and initial states. */
export function readRequests(
  model: GeneratingModel,
  prompts: readonly Prompt[],
  name: 'prompt' | 'prompts',
  options: GenerateOptions,
  operation: string,
): Request[] {
  const packed = encode(model, prompts, name, operation)
  const tokens = splitPrompts(packed)
  const request = readRequest(model, options, operation)
  const vectors = splitInputVectors(model, packed, options, operation)
  const states = splitStates(model, options, tokens, request.native.maxNewTokens, operation)
  const numbers = sequenceNumbers(options, tokens.length, operation)
  return tokens.map((prompt, index) => {
    // Generation ends at the model's last position, as if `maxNewTokens` were reached.
    const maxNewTokens = Math.min(request.native.maxNewTokens, model.config.max_position_embeddings - prompt.length)
    const positions = (prompt.length + maxNewTokens) * model.architecture.hidden
    const initial = states?.[index]?.subarray(0, positions) ?? new Float64Array()
    const sequence = numbers?.[index] ?? index
    const own = vectors?.[index] && { vectors: vectors[index] }
    return { ...request, native: { ...request.native, prompt, sequence, maxNewTokens, states: initial, ...own } }
  })
}

function sequenceNumbers(options: GenerateOptions, count: number, operation: string): Int32Array | undefined {
  if (options.sequenceNumbers === undefined) return undefined
  const packed = packOneEach(options.sequenceNumbers, 'sequenceNumbers', count, operation)
  const limits = { min: 0, max: 2 ** 31 - 1, integer: true }
  return Int32Array.from(packed, (number, i) => checkNumber(number, `sequenceNumbers[${i}]`, limits, operation))
}

/** Splits given initial states into one array per prompt. */
function splitStates(
  { architecture }: GeneratingModel,
  options: GenerateOptions,
  prompts: readonly Int32Array[],
  maxNewTokens: number,
  operation: string,
): Float64Array[] | undefined {
  if (options.initialStates === undefined) return undefined
  const { hidden } = architecture
  const lengths = prompts.map(({ length }) => (length + maxNewTokens) * hidden)
  const shape = (i: number) => [{ shape: `(prompt + maxNewTokens) × ${hidden}`, length: lengths[i]! }]
  const packed = packValues(options.initialStates, 'initialStates', shape, prompts.length, operation)
  let end = 0
  return lengths.map((length) => {
    end += length
    return packed.subarray(end - length, end)
  })
}

/** Every prompt as token ids, checked to leave a position for a new token. */
function encode(
  model: GeneratingModel,
  prompts: readonly Prompt[],
  name: 'prompt' | 'prompts',
  operation: string,
): NativeSequences {
  const tokens = prompts.map((prompt: Prompt, i): TokenSequence => {
    if (typeof prompt !== 'string') return prompt
    if (model.tokenizer !== undefined) return model.tokenizer.encode(prompt)
    const message = `${sequenceName(name, i)} is a string, and the model has no tokenizer; pass token ids or set model.tokenizer`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  })
  return packSequences(tokens, { ...sequenceLimits(model.config), room: 1, minLength: 1, name }, operation)
}

function splitPrompts({ tokens, lengths }: NativeSequences): Int32Array[] {
  let end = 0
  return Array.from(lengths, (length) => {
    end += length
    return tokens.subarray(end - length, end)
  })
}

/** Splits input vectors by prompt. Positions count from the start of the prompt. */
function splitInputVectors(
  { architecture: { hidden } }: GeneratingModel,
  packed: NativeSequences,
  { inputVectors }: GenerateOptions,
  operation: string,
): NativeVectors[] | undefined {
  const { vectors } = withVectors(packed, inputVectors, hidden, operation)
  if (vectors === undefined) return undefined
  let [first, from] = [0, 0]
  return Array.from(packed.lengths, (length) => {
    let to = from
    while (to < vectors.tokens.length && vectors.tokens[to]! < first + length) to++
    const own = { tokens: vectors.tokens.slice(from, to), values: vectors.values.slice(from * hidden, to * hidden) }
    for (const k of own.tokens.keys()) own.tokens[k]! -= first
    first += length
    from = to
    return own
  })
}

/** Checks the options of a request. The caller fills in the prompt. */
function readRequest(model: GeneratingModel, options: GenerateOptions, operation: string): Request {
  checkOptions(options, generateOptions, operation)
  const number = (
    name: 'maxNewTokens' | 'topK' | 'topP' | 'minP' | 'seed' | 'logprobs',
    fallback: number,
    range: Parameters<typeof checkNumber>[2],
  ) => checkNumber(options[name] ?? fallback, name, range, operation)
  const { stopTokens, stopTexts } = readStop(model, options.stop, operation)
  readCachePolicy(options.kv, operation)
  const { stateSeed, zeroStates } = readStates(options, model.architecture, operation)
  return {
    stopTexts,
    ...(options.grammar === undefined ? {} : { grammar: readGrammar(model, options, operation) }),
    ...(options.logitsProcessor === undefined ? {} : { processor: options.logitsProcessor }),
    native: {
      ...readLogitOptions(options, model.config.vocab_size, operation),
      prompt: new Int32Array(),
      sequence: 0,
      maxNewTokens: number('maxNewTokens', 16, { min: 1, max: 2 ** 24, integer: true }),
      temperature: readTemperature(options.temperature, operation),
      topK: number('topK', 0, { min: 0, max: 2 ** 31 - 1, integer: true }),
      topP: number('topP', 1, { above: 0, max: 1 }),
      minP: number('minP', 0, { min: 0, below: 1 }),
      seed: number('seed', 0, { min: 0, integer: true }),
      loops: checkLoops(options.loops, operation),
      ...readExit(options.exit, model.config.early_exit_threshold, operation),
      stopTokens: Int32Array.from(stopTokens),
      ...{ keep: false, parent: 0, prefix: 0, releaseParent: false },
      alternatives: number('logprobs', 0, { min: 0, max: model.config.vocab_size, integer: true }),
      ...readDraft(options.speculate, operation),
      states: new Float64Array(),
      stateSeed,
      zeroStates,
    },
  }
}

/**
 * Checks a grammar's options. Its rules are parsed when generation begins.
 * @throws LoopLMError INVALID_ARGUMENT naming the field of a grammar that is wrong
 */
export function checkGrammar(grammar: NonNullable<GenerateOptions['grammar']>, operation: string): void {
  grammarText(grammar, operation)
}

function readGrammar(model: GeneratingModel, options: GenerateOptions, operation: string): string {
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
  if (model.tokenizer === undefined) throw refuse('grammar: the model has no tokenizer; set model.tokenizer')
  if (options.logitsProcessor !== undefined) throw refuse('grammar cannot be combined with logitsProcessor; omit one of them')
  return grammarText(options.grammar!, operation)
}

export function readCachePolicy(
  kv: CachePolicy | undefined,
  operation: string,
): { planes: 'per-loop' | 'shared'; force: boolean } {
  const words = ['per-loop', 'shared'] as const
  if (typeof kv !== 'object') return { planes: checkWord(kv ?? 'per-loop', 'kv', words, operation), force: false }
  checkOptions(kv, cachePolicyFields, operation, 'kv')
  return {
    planes: checkWord(kv.planes, 'kv.planes', words, operation),
    force: checkFlag(kv.force ?? false, 'kv.force', operation),
  }
}

export function readCacheType(cacheType: CacheType | undefined, operation: string): CacheType {
  return checkWord(cacheType ?? 'model', 'cacheType', cacheTypes, operation)
}

/** How many tokens of ended prompts to keep. 0: none, -1: as many as memory allows. */
export function readPromptCache(promptCache: PromptCache | undefined, operation: string): number {
  if (promptCache === undefined || typeof promptCache === 'boolean') return promptCache === true ? -1 : 0
  if (typeof promptCache !== 'object' || promptCache === null) {
    const message = `promptCache must be true, false or { maxTokens }, got ${describe(promptCache)}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  checkOptions(promptCache, promptCacheFields, operation, 'promptCache')
  if (promptCache.maxTokens === undefined) return -1
  return checkNumber(promptCache.maxTokens, 'promptCache.maxTokens', { min: 1, max: 2 ** 31 - 1, integer: true }, operation)
}

function readTemperature(temperature: number | undefined, operation: string): number {
  const checked = checkNumber(temperature ?? 1, 'temperature', { min: 0 }, operation)
  if (checked === 0 || (checked >= lowestTemperature && checked <= highestTemperature)) return checked
  const message = `temperature must be 0 (greedy) or at least ${lowestTemperature} and at most ${highestTemperature}, got ${checked}`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

function readDraft(speculate: GenerateOptions['speculate'], operation: string) {
  if (speculate === undefined || typeof speculate === 'string') {
    const wavefront = checkWord(speculate ?? 'off', 'speculate', ['wavefront', 'off'], operation) === 'wavefront'
    return { draftLoops: 0, draftTokens: 0, wavefront }
  }
  checkOptions(speculate, speculateFields, operation, 'speculate')
  return {
    draftLoops: checkNumber(speculate.loops, 'speculate.loops', { min: 1, max: 64, integer: true }, operation),
    draftTokens: checkNumber(speculate.tokens ?? 4, 'speculate.tokens', { min: 2, max: 64, integer: true }, operation),
    wavefront: false,
  }
}

function readStop(
  model: GeneratingModel,
  stop: GenerateOptions['stop'],
  operation: string,
): { stopTokens: number[]; stopTexts: string[] } {
  if (stop === undefined) return { stopTokens: [...model.endTokens], stopTexts: [] }
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
  if (!Array.isArray(stop)) throw refuse(`stop must be an array of token ids and strings, got ${describe(stop)}`)
  const { tokenizer } = model
  const stopTokens: number[] = []
  const stopTexts: string[] = []
  for (const [i, entry] of stop.entries()) {
    if (typeof entry !== 'string') {
      stopTokens.push(checkNumber(entry, `stop[${i}]`, { min: 0, max: model.config.vocab_size - 1, integer: true }, operation))
      continue
    }
    if (tokenizer === undefined)
      throw refuse(`stop[${i}] is a string, and the model has no tokenizer; pass token ids or set model.tokenizer`)
    if (entry === '') throw refuse(`stop[${i}] is an empty string`)
    stopTexts.push(entry)
    const id = tokenizer.tokenId(entry)
    if (id !== undefined && tokenizer.isSkipped(id)) stopTokens.push(id) // the text lacks special tokens
  }
  return { stopTokens, stopTexts }
}
