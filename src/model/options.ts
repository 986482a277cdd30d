// The names of all options. Options that no list contains are rejected.
import type { Keys } from '../validation/arguments.js'
import type {
  BackwardOptions,
  ContinueOptions,
  CreateOptions,
  GenerateOptions,
  InputOptions,
  LoadOptions,
  PretrainedOptions,
  PromptCache,
  SaveOptions,
  SchedulerOptions,
  SchedulerRequestOptions,
  ScoreOptions,
  StateOptions,
} from './types.js'

const place = {
  device: true,
  dtype: true,
  threads: true,
  quantize: true,
  groupSize: true,
  activations: true,
  exitGate: true,
} satisfies Keys<LoadOptions>

export const createOptions = { ...place, seed: true } satisfies Keys<CreateOptions>

export const pretrainedOptions = {
  ...createOptions,
  download: true,
  revision: true,
  cacheDir: true,
  dequantize: true,
} satisfies Keys<PretrainedOptions>

export const saveOptions = { dtype: true, dequantize: true, tokenizer: true } satisfies Keys<SaveOptions>

const inputOptions = { inputVectors: true } satisfies Keys<InputOptions>

const stateOptions = { initialStates: true, initialState: true, stateSeed: true } satisfies Keys<StateOptions>

export const scoreOptions = {
  temperature: true,
  loops: true,
  readLoops: true,
  lastLoop: true,
  promptLengths: true,
  exits: true,
  predictions: true,
  topLogprobs: true,
  signal: true,
  ...stateOptions,
  ...inputOptions,
} satisfies Keys<ScoreOptions>

export const embedOptions = { promptLengths: true, loops: true, ...stateOptions, ...inputOptions, signal: true } as const

export const responseMeansOptions = { ...embedOptions, temperature: true } as const

export const backwardOptions = {
  gateCoefficients: true,
  temperature: true,
  loops: true,
  readLoops: true,
  backwardLoops: true,
  recompute: true,
  signal: true,
  ...stateOptions,
  ...inputOptions,
} satisfies Keys<BackwardOptions>

export const generateOptions = {
  maxNewTokens: true,
  temperature: true,
  topK: true,
  topP: true,
  minP: true,
  logitBias: true,
  bannedTokens: true,
  repetitionPenalty: true,
  frequencyPenalty: true,
  presencePenalty: true,
  logitsProcessor: true,
  grammar: true,
  seed: true,
  sequenceNumbers: true,
  loops: true,
  exit: true,
  kv: true,
  cacheType: true,
  promptCache: true,
  logprobs: true,
  speculate: true,
  stop: true,
  signal: true,
  ...stateOptions,
  ...inputOptions,
} satisfies Keys<GenerateOptions>

export const requestOptions = { ...generateOptions, keep: true, sequence: true } satisfies Keys<SchedulerRequestOptions>

export const continueOptions = { ...requestOptions, at: true, fork: true } satisfies Keys<ContinueOptions>

export const cachePolicyFields = { planes: true, force: true } as const

export const promptCacheFields = { maxTokens: true } satisfies Keys<Exclude<PromptCache, boolean>>

export const speculateFields = { loops: true, tokens: true } satisfies Keys<Extract<GenerateOptions['speculate'], object>>

export const schedulerOptions = {
  maxRows: true,
  maxTokens: true,
  loops: true,
  kv: true,
  cacheType: true,
  promptCache: true,
  prefillTokens: true,
} satisfies Keys<SchedulerOptions>
