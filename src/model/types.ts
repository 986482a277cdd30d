import type { Tokenizer } from '../data/tokenizer.js'
import type { Grammar } from '../grammar/grammar.js'
import type { LossTerm, ModelDType, RealArray } from '../native/types.js'
import type { DeviceName } from '../tensor/types.js'
import type { ExitRule } from './exit-rules.js'

export type { BeliefRewards, LossMetrics, LossTerm, ModelDType, RealArray } from '../native/types.js'

/** Token ids of one sequence. */
export type TokenSequence = readonly number[] | Int32Array

/** What a trainer stores of the forward pass: everything, the state after each loop, or the state before each layer. */
export type Recompute = 'none' | 'loop' | 'layer'

/**
 * How many of the last loops carry gradient. The backward pass treats the results of earlier loops as constants and stores
 * nothing for them. The steps before the loops, such as a prelude, and every readout always carry gradient. `published` uses
 * the family's published training setup: the last `mean_backprop_depth` loops of Huginn and of retrofitted models, the last
 * `L_bp_cycles` L steps of each cycle of HRM-Text, and all loops of other families.
 */
export type BackwardLoops = number | 'published'

/** How the loops are weighted in the loss of a token (RLTT, arXiv 2602.10520). The weights sum to 1 over the loops. */
export type LoopWeights = 'exit-pdf' | 'uniform' | 'progressive' | 'last'

/** The policy-gradient surrogate of one token. */
export type Surrogate = 'reinforce' | 'ppo' | 'cispo'

/** Where and how a model is loaded. */
export interface LoadOptions {
  /**
   * `cpu` (default), `cuda`, `cuda:1` …, `auto` or `reference` (slow float64 formulas). `devices()` lists the devices of this
   * machine.
   */
  device?: DeviceName
  /**
   * Defaults to `float64` on device `reference`. On other devices a checkpoint defaults to its own dtype: `bfloat16` if its
   * files contain nothing else, otherwise `float32`. A new model defaults to `float32`.
   */
  dtype?: ModelDType
  /**
   * Threads of the device's own pool. Defaults to one per available core. Models with different thread counts use different
   * pools.
   */
  threads?: number
  /**
   * Quantize the matrices of the blocks and the head to 8 or 4 bits, with a float32 scale per `groupSize` neighbours of a row.
   * A tied head gets a quantized copy beside the embedding. The model takes less memory and decodes faster, in proportion to
   * the bytes that are read. It can score and generate, but not train. Files are quantized row by row while they are read. A
   * folder that was saved quantized needs no option. Devices `cpu`, `cuda` and `reference`.
   *
   * `int4-asymmetric` takes as much memory as `int4` and has a smaller error: each group has a scale and a midpoint, both
   * bfloat16, which are fitted to its weights. Loading takes longer. Devices `cpu` and `reference`.
   */
  quantize?: 'int8' | 'int4' | 'int4-asymmetric' | undefined
  /** A multiple of 32 that divides the widths of the matrices. Defaults to 64. */
  groupSize?: number | undefined
  /**
   * For a quantized model, the form of the activations in its matrix products. `int8` rounds each row to 8 bits with a scale
   * per `groupSize` neighbours, which is up to four times as fast on a CPU. It changed the perplexity of a small model by
   * at most 0.02 %. `float` does not round them. Defaults to `int8` on device `cpu` and to `float` on `reference`, which both
   * support both. `cuda` only supports `float`. The option does not change the files.
   */
  activations?: 'float' | 'int8' | undefined
  /**
   * Add an exit gate to a model whose family has none: D → 1 on the input of the head after each loop. It starts at zero, and
   * is trained and saved with the model (`looplm_exit_gate` of config.json). `exit-pdf` weights, LoopRPT and the exit rule
   * `gate` use it. Defaults to false; a model that has a gate keeps it.
   */
  exitGate?: boolean | undefined
}

/** Options of {@link LoopLM.fromPretrained}. */
export interface PretrainedOptions extends LoadOptions {
  /**
   * Download the checkpoint from the Hugging Face Hub if there is no such folder, see {@link download}. Defaults to false;
   * nothing is downloaded unless this is true.
   */
  download?: boolean
  /** Branch, tag or commit to download. Defaults to `main`. */
  revision?: string
  /** The folder for downloads. Defaults to the cache of Hugging Face's own tools. */
  cacheDir?: string
  /**
   * Load the quantized matrices of a GGUF file as plain values, for example to train. Defaults to false: Q8_0 and Q4_0 files
   * keep their codes. Fails for folders that looplm saved quantized.
   */
  dequantize?: boolean
  /** Ignored, because loading draws nothing. It is accepted so that one set of options also serves {@link LoopLM.create}. */
  seed?: number
}

/** Options of {@link LoopLM.create}. */
export interface CreateOptions extends LoadOptions {
  /** Seed of the initial parameters, which depend only on the seed and the configuration. Defaults to 0. */
  seed?: number
}

/** Options of {@link LoopLM.save}. */
export interface SaveOptions {
  /**
   * The dtype in the file. Defaults to the model's. A float32 model may be saved as bfloat16 (rounded to nearest) and vice
   * versa.
   */
  dtype?: ModelDType
  /** Write a quantized model's matrices as plain values, which other tools can load. Defaults to false: codes and scales. */
  dequantize?: boolean
  /** The tokenizer to save with the model. Defaults to {@link LoopLM.tokenizer}. */
  tokenizer?: Tokenizer | undefined
}

/** The initial state of the loops, for families that start from one (Huginn and retrofitted models). */
export interface StateOptions {
  /**
   * Per sequence len × D, row-major. Defaults to states that are drawn for each position from `stateSeed` and the tokens up to
   * it, independent of the batch.
   */
  initialStates?: readonly ArrayLike<number>[]
  /** `zeros` starts from zero states. Defaults to `drawn`. */
  initialState?: 'drawn' | 'zeros'
  /** Defaults to 0. */
  stateSeed?: number
}

/** Vectors that replace embedded tokens of one sequence: a soft prompt, or the output of another model. */
export interface InputVectors {
  /**
   * The positions of the replaced tokens in the sequence, ascending. The ids at these positions are only used as targets of
   * predictions.
   */
  positions: ArrayLike<number>
  /** positions × D, row-major. They take the place of the token's embedding after `embedding_scale`, if the model has that. */
  values: ArrayLike<number>
}

/** Inputs besides token ids. */
export interface InputOptions {
  /** Per sequence or prompt its vectors, or undefined. By default every token is embedded. */
  inputVectors?: readonly (InputVectors | undefined)[]
}

/** What {@link LoopLM.backward} returns. */
export interface BackwardResult {
  /** ∂L/∂{@link InputVectors.values}, per sequence. Empty if a sequence has none. */
  inputVectors: RealArray[]
}

/** Options of {@link LoopLM.score}. */
export interface ScoreOptions extends StateOptions, InputOptions {
  /** Log-probabilities are of softmax(logits / temperature). Must be more than 0. Defaults to 1. */
  temperature?: number
  /**
   * Number of loops to run, 1 to 64. Defaults to the model's `total_ut_steps`. Nanbeige and HRM-Text reject more loops than
   * they have.
   */
  loops?: number
  /**
   * Read only these loops: ascending numbers, counted from 1. Arrays by loop then have a row for each of them, and the exit
   * distribution is over them. Loops after the last one do not run. Defaults to every loop.
   */
  readLoops?: readonly number[] | undefined
  /** Score only the last loop: `logprobs` and `entropy` are then 1 × (len-1) per sequence. Defaults to false. */
  lastLoop?: boolean
  /** Per sequence, the number of prompt tokens. Rows before the response are 0 and cost nothing in the head. */
  promptLengths?: ArrayLike<number>
  /**
   * Per sequence len-1: the loop that each prediction was read from, counted from 0, for responses that were generated with
   * early exits. In deeper loops, a response token then keeps the keys and values of its exit loop, as in generation. The
   * log-probabilities at the exits are therefore those of the sampler. Needs `promptLengths`, because prompts run at full
   * depth. By default every token runs all loops.
   */
  exits?: readonly ArrayLike<number>[] | undefined
  /** Also return the most probable token of each prediction. Defaults to false. */
  predictions?: boolean
  /** Return this many of the most probable tokens of each prediction of the last loop, at most `vocab_size`. Defaults to 0. */
  topLogprobs?: number
  /** Aborts between two kernels. The promise rejects with code ABORTED. */
  signal?: AbortSignal | undefined
}

/** The results of {@link LoopLM.score}: one array per sequence, row-major by loop. */
export interface Scores {
  /** T, the number of loops that ran. */
  loops: number
  /** The loops that were read, if `readLoops` was set. T in the shapes below is then their number. */
  readLoops?: readonly number[]
  /** T × (len-1): log P of token j+1 given tokens 0..j, after each loop. 1 × (len-1) with `lastLoop`. */
  logprobs: RealArray[]
  /** With `predictions`, T × (len-1): the token with the largest logit. The lowest id wins a tie. */
  predicted?: Int32Array[]
  /**
   * With `topLogprobs`, per sequence len-1 lists: the most probable tokens after the last loop, best first. Lower ids come
   * first among equal ones. Lists before a response (see `promptLengths`) are empty.
   */
  topLogprobs?: TokenLogprob[][][]
  /** T × (len-1): entropy in nats of the same distributions. 1 × (len-1) with `lastLoop`. */
  entropy: RealArray[]
  /** T × len: logits of the exit gate. The exit distribution does not use the last loop's. */
  gateLogits: RealArray[]
  /** T × len: probability of exiting after each loop. Sums to 1 over the loops. */
  exitPdf: RealArray[]
}

/** Options of {@link ScoredSequences.backward}. */
export interface ScoredBackwardOptions {
  /** Per sequence T × len, row-major by loop: ∂L/∂(gate logits). If omitted, no gradient flows through the gate. */
  gateCoefficients?: readonly ArrayLike<number>[]
  /** Truncates the backward pass to the last loops. By default all loops carry gradient. */
  backwardLoops?: BackwardLoops | undefined
  /** Trades time for memory without changing results. Defaults to `none`. */
  recompute?: Recompute
  /** Aborts with code ABORTED. Some gradients are then already accumulated: call `zeroGradients()`. */
  signal?: AbortSignal | undefined
}

/** Options of {@link LoopLM.backward}. */
export interface BackwardOptions extends StateOptions, InputOptions, ScoredBackwardOptions {
  /** Must equal the temperature of the scores that the coefficients come from. Defaults to 1. */
  temperature?: number
  /** Must equal the loops of the scores that the coefficients come from. Defaults to the model's. */
  loops?: number
  /** Must equal the `readLoops` of the scores that the coefficients come from. T is then their number. */
  readLoops?: readonly number[] | undefined
}

/**
 * Sequences with everything that an objective needs, in the form that the engine's loss core takes. "Per prediction" means
 * len-1 values per sequence. "By loop" means T × (len-1), row-major by loop. With `readLoops`, T is the number of loops that
 * are read.
 * @internal
 */
export interface LossBatch {
  sequences: readonly TokenSequence[]
  /** The number of each sequence in the draws of exits. Defaults to its index. */
  numbers?: readonly number[] | undefined
  /** Per sequence len × D: the initial state of its tokens, for families that start from one. */
  initialStates?: readonly ArrayLike<number>[] | undefined
  /** Per sequence the vectors that replace embedded tokens. */
  inputVectors?: InputOptions['inputVectors'] | undefined
  /** Per sequence, the number of tokens before the response. Defaults to 1 each (every prediction counts). */
  promptLengths?: ArrayLike<number> | undefined
  /** One entry per term of the objective. */
  terms: readonly {
    /** One per sequence, or T per sequence (one per loop). */
    advantages: ArrayLike<number>
    /** Per prediction: added to the sequence's advantage. */
    tokenAdvantages?: readonly ArrayLike<number>[] | undefined
    /** One per sequence: the length normalizer n of each of its response tokens (math.md §2), times the weight of the term. */
    lengthNormalizers: ArrayLike<number>
  }[]
  /** One per sequence: the length normalizer of the regularizers. */
  lengthNormalizers: ArrayLike<number>
  /** Per prediction (if one loop is weighted), or by loop. */
  oldLogprobs?: readonly ArrayLike<number>[] | undefined
  /** Per prediction (of the last loop), or by loop. */
  referenceLogprobs?: readonly ArrayLike<number>[] | undefined
  /** What LLDS compares with, instead of `oldLogprobs`. */
  lazyLogprobs?: readonly ArrayLike<number>[] | undefined
  /** One per sequence: λ divided by the token count of LLDS. 0 for sequences that may become less likely. */
  lazyNormalizers?: ArrayLike<number> | undefined
  /** Per prediction: entropy of the reference after the last loop. */
  referenceEntropy?: readonly ArrayLike<number>[] | undefined
  /** By loop: the exit distribution of the reference. */
  referenceExitPdf?: readonly ArrayLike<number>[] | undefined
  /** Per prediction: the exit loop, counted from 0. */
  exits?: readonly ArrayLike<number>[] | undefined
  /** Per prediction: the index of the response's action that the token belongs to. */
  segments?: readonly ArrayLike<number>[] | undefined
  /** Per prediction: 0 if it does not count. */
  mask?: readonly ArrayLike<number>[] | undefined
}

/**
 * The loops that a regularizer acts on: the last one, all with equal weight, or all with the weights of the first token term.
 */
export type LoopSet = 'last' | 'uniform' | 'weights'

/**
 * Fields of the engine's Objective. Defaults are in brackets.
 * @internal
 */
export interface LossObjective extends Omit<StateOptions, 'initialStates'> {
  terms: readonly LossTerm[]
  /** Weight of the k3 estimate of KL to the reference [0] */
  beta?: number
  /** [last] */
  betaLoops?: LoopSet
  /** Weight of the entropy bonus of the tokens' distributions [0] */
  tokenEntropy?: number
  /** Weight of the exit entropy bonus [0] */
  exitEntropy?: number
  /** LLDS [none] */
  lazy?: { gate: 'token' | 'segment' | 'response' | 'loop'; loops: LoopSet } | undefined
  /** [1] */
  temperature?: number
  /** [the model's] */
  loops?: number | undefined
  /** [every loop] */
  readLoops?: readonly number[] | undefined
  /** [all loops] */
  backwardLoops?: BackwardLoops | undefined
  /** [none] */
  recompute?: Recompute
  /** 0: chosen from the model's size. Never changes the loss [0] */
  tokensPerMicroBatch?: number
  /** Run equal prompts of neighbouring sequences once [true] */
  sharePrompts?: boolean
  /** Tokens that exited early (see the batch's exits) keep the keys and values of their exit loop [false] */
  replayExits?: boolean
}

/** A prompt: token ids, or a string if the model has a tokenizer. */
export type Prompt = TokenSequence | string

/**
 * How the cache stores keys and values of the loops. One plane per loop is exact. One plane that all loops share takes 1/T of
 * the memory. Ouro was published with both. Other families give wrong tokens with shared planes, so they require
 * `{ planes: 'shared', force: true }`.
 */
export type CachePolicy =
  | 'per-loop'
  | 'shared'
  | {
      /** One plane of keys and values per loop, or one that all loops share. */
      planes: 'per-loop' | 'shared'
      /** Also share planes in families that do not support it. Defaults to false. */
      force?: boolean
    }

/**
 * How generation stores keys and values. Sizes are relative to bfloat16.
 *
 * * `model`: in the dtype of the model.
 * * `int8`, `int4`: codes of 8 or 4 bits. Up to 64 channels share a scale and a minimum. 0.53 and 0.28 of the size.
 * * `residual`: the last loop in 4 bits, and each earlier loop's difference from it in 2 bits. 0.19 of the size with four loops.
 *   Prompts run one block at a time.
 * * `spark`: of each token's keys, half of the channels in 3 bits and one value for the others; values in 4 bits. 0.24 of the size.
 *
 * With all but `model`, a token reads the earlier tokens of its block of 64 positions exactly and older tokens as codes, in prompts
 * too. So log-probabilities differ from those of {@link LoopLM.score}. Prompts share whole blocks.
 */
export type CacheType = 'model' | 'int8' | 'int4' | 'residual' | 'spark'

/**
 * Options of {@link LoopLM.generate}, {@link LoopLM.stream} and {@link Scheduler.add}. `initialStates` has one entry per prompt,
 * (prompt + `maxNewTokens`) × D.
 */
export interface GenerateOptions extends StateOptions, InputOptions {
  /**
   * The largest number of new tokens. Generation also ends, with finish reason `length`, at the model's
   * `max_position_embeddings`. Defaults to 16.
   */
  maxNewTokens?: number
  /** 0 is greedy decoding (the lowest id wins a tie), else from 1e-6 to 1e30. Defaults to 1. */
  temperature?: number
  /** Keep the k most probable tokens. Defaults to 0 (off). */
  topK?: number
  /** Keep the smallest set of tokens with at least this total probability, more than 0 and at most 1. Off by default. */
  topP?: number
  /** Keep tokens whose probability is at least this fraction of the largest one, less than 1. Defaults to 0 (off). */
  minP?: number
  /**
   * Added to the logits of these token ids, before temperature and filters: an object or a Map from id to a number
   * from -1e30 to 1e30. Positive values make a token more likely, -100 practically excludes it.
   */
  logitBias?: Readonly<Record<number, number>> | ReadonlyMap<number, number>
  /** Token ids that are never drawn. If an end token is among them, it does not end the sequence. */
  bannedTokens?: readonly number[]
  /**
   * As in Hugging Face transformers: for each token that is in the prompt or was generated, a positive logit is divided by this
   * and a negative one multiplied by it. From 1e-6 to 1e6. Defaults to 1 (off).
   */
  repetitionPenalty?: number
  /** As in OpenAI's API: subtracted from a token's logit once for each time that it was generated. Defaults to 0 (off). */
  frequencyPenalty?: number
  /** As in OpenAI's API: subtracted once from the logit of each token that was generated. Defaults to 0 (off). */
  presencePenalty?: number
  /**
   * Your own function that changes the logits before every draw, after biases and penalties. Change them in place, or return
   * others. This is slow: logits are copied to JavaScript and back for every token, and the sequence waits meanwhile. Cannot be
   * combined with `speculate` drafts.
   */
  logitsProcessor?: LogitsProcessor
  /**
   * The generated text must be JSON of a schema, match a regular expression, or follow a grammar. Other tokens are not drawn,
   * and the sequence ends when the text is complete. If `maxNewTokens` cuts the text, it is incomplete. Needs a tokenizer.
   * Cannot be combined with `speculate` drafts or `logitsProcessor`.
   */
  grammar?: Grammar
  /** Seed of the draws. A draw depends only on (seed, number of the sequence, position). Defaults to 0. */
  seed?: number
  /**
   * The number of each prompt's sequence in the draws, for a batch of prompts that is split over several calls. Defaults to its
   * index. {@link Scheduler.add} takes `sequence` instead.
   */
  sequenceNumbers?: readonly number[]
  /**
   * The largest number of loops per token, 1 to 64. Defaults to the model's, or to the scheduler's. Nanbeige and HRM-Text
   * reject more loops than they have.
   */
  loops?: number
  /**
   * When tokens exit. Defaults to `gate` with the configuration's `early_exit_threshold`; a threshold of 1 means full depth.
   */
  exit?: ExitRule
  /** See {@link CachePolicy}. Defaults to per-loop. A scheduler's requests must use the scheduler's. */
  kv?: CachePolicy
  /** See {@link CacheType}. Defaults to `model`. Requests of a scheduler use its cache type. */
  cacheType?: CacheType
  /**
   * See {@link PromptCache}. Defaults to false: only prompts of the same call share their common beginnings. A scheduler's
   * requests use the scheduler's.
   */
  promptCache?: PromptCache
  /** Return this many of the most probable tokens with every token, as `topLogprobs`. Defaults to 0. */
  logprobs?: number
  /**
   * Decode several positions of a sequence at once. The tokens are the same as with plain decoding. Defaults to `off`.
   *
   * - `wavefront`: while a token runs one loop, the token that its readout after that loop predicts runs the loop before. Works
   *   with every option; what cannot be sped up is decoded plainly.
   * - `{ loops, tokens }`: draft `tokens` positions (default 4) with `loops` loops each, then run the remaining loops for all
   *   of them at once. Needs exit rule `fixed` and kv `per-loop`.
   */
  speculate?:
    | 'wavefront'
    | 'off'
    | {
        /** Loops of a draft; fewer than those of the request. */
        loops: number
        /** Positions to draft at a time. Defaults to 4. */
        tokens?: number
      }
  /**
   * Token ids, or strings if the model has a tokenizer. They replace the model's end tokens; `[]` disables them. The token that
   * stops is part of `tokens`. `text` ends before the string that stops.
   */
  stop?: readonly number[] | readonly string[] | readonly (number | string)[]
  /** Aborts between two kernels. The promise rejects with code ABORTED. */
  signal?: AbortSignal | undefined
}

/** What a {@link LogitsProcessor} knows about the sequence. */
export interface LogitsContext {
  /** The prompt's tokens. */
  readonly prompt: Int32Array
  /** The tokens drawn so far. */
  readonly tokens: readonly number[]
  /** Number of the sequence in the draws: the prompt's index in the call, or 0 in a scheduler, unless you set another. */
  readonly index: number
}

/**
 * Changes logits before a token is drawn.
 *
 * @param logits one per token of the vocabulary, yours to change
 * @returns other logits of the same length, or nothing when they were changed in place. `-Infinity` excludes a token. At least
 *   one must be finite, and none may be NaN or `Infinity`.
 */
export type LogitsProcessor =
  | ((logits: RealArray, context: LogitsContext) => void)
  | ((logits: RealArray, context: LogitsContext) => ArrayLike<number>)

/** One of the most probable tokens at a position. */
export interface TokenLogprob {
  /** The id of the token. */
  token: number
  /** As in {@link GenerateResult.logprobs}. */
  logprob: number
}

/** Why a sequence ended. */
export type FinishReason =
  /** `maxNewTokens` or the model's `max_position_embeddings` was reached. */
  | 'length'
  /** An end token or a stop string was found. */
  | 'stop'
  /** {@link GenerateRequest.cancel} was called. */
  | 'cancelled'

/** What {@link LoopLM.generate} returns per prompt. */
export interface GenerateResult {
  /** The new tokens, without the prompt. */
  tokens: number[]
  /** The text that the new tokens add to the prompt, without special tokens, if the model has a tokenizer. */
  text?: string
  /**
   * One per token: log softmax(logits / temperature) over the full vocabulary (temperature 1 if greedy), as `score` computes
   * it. Top-k, top-p, min-p, biases, penalties, grammars and processors do not change it.
   */
  logprobs: RealArray
  /** One per token: the loop it was read from, 1-based. */
  loops: number[]
  /** One list per token, the most probable first, if `logprobs` was set. */
  topLogprobs?: TokenLogprob[][]
  /** Why generation ended. */
  finishReason: FinishReason
}

/** One token of {@link LoopLM.stream}. */
export interface GenerateChunk {
  /** The id of the new token. */
  token: number
  /**
   * The text that this token adds, if the model has a tokenizer. Empty while a character, a run of byte tokens or a possible
   * stop string is incomplete.
   */
  text?: string
  /** As in {@link GenerateResult.logprobs}. */
  logprob: number
  /** The loop it was read from, 1-based. */
  loop: number
  /** The most probable tokens, if `logprobs` was set. */
  topLogprobs?: TokenLogprob[]
  /** Only set on the last chunk. A cancelled request has none. */
  finishReason?: Exclude<FinishReason, 'cancelled'>
}

/**
 * Keep keys and values of prompts in the cache after their requests have ended. A later prompt that shares at least its first
 * 16 tokens only runs the rest, with bitwise the same results. `true` keeps as many tokens as fit in a quarter of the device's
 * free memory; `maxTokens` sets the number. The least recently used are evicted first. Active prompts share their beginnings
 * too. Prompts with input vectors or given initial states share nothing. Needs kv `per-loop`.
 */
export type PromptCache =
  | boolean
  | {
      /** The largest number of tokens of ended prompts to keep. */
      maxTokens?: number | undefined
    }

/** Options of {@link LoopLM.scheduler}. */
export interface SchedulerOptions {
  /** How many sequences generate at the same time. Others wait in the order of their arrival. Defaults to 16. */
  maxRows?: number
  /**
   * Capacity of the cache in tokens: the prompts, and `maxNewTokens` for each response. Defaults to as many as fit in the free
   * memory of the device.
   */
  maxTokens?: number
  /** The most loops that a request may use, 1 to 64. Defaults to the model's. */
  loops?: number
  /** As in {@link GenerateOptions.kv}, for all requests. */
  kv?: CachePolicy
  /** See {@link CacheType}. Defaults to `model`. */
  cacheType?: CacheType
  /** See {@link PromptCache}. Defaults to false. */
  promptCache?: PromptCache
  /**
   * How many prompt tokens run between two decoding steps. Fewer interrupt active requests less, more process prompts faster.
   * Defaults to 512.
   */
  prefillTokens?: number
}

/** Options of {@link Scheduler.add}. */
export interface SchedulerRequestOptions extends GenerateOptions {
  /**
   * Keep the keys and values of the request after it has ended, for {@link Scheduler.continue}. Needs kv `per-loop`. Defaults
   * to false.
   */
  keep?: boolean
  /**
   * The sequence number in the draws, like the prompt's index in `generate`: a draw depends only on (seed, sequence, position).
   * Defaults to 0.
   */
  sequence?: number
}

/** Options of {@link Scheduler.continue}. */
export interface ContinueOptions extends SchedulerRequestOptions {
  /**
   * How many of the continued request's new tokens to keep. Defaults to all. -2 also drops the last two tokens of its prompt.
   */
  at?: number
  /** Keep the continued request, so that it can be continued again. Defaults to false: it is released. */
  fork?: boolean
}

export type { SchedulerStats } from '../native.js'

/** Name and shape of one parameter, with Hugging Face's tensor name. */
export interface ParameterInfo {
  /** The published name, for example `model.norm.weight`. */
  readonly name: string
  /** Elements per axis. */
  readonly shape: readonly number[]
}
