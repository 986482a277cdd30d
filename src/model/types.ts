import type { Tokenizer } from '../data/tokenizer.js'
import type { Grammar } from '../grammar/grammar.js'
import type { LossTerm, ModelDType, RealArray } from '../native/types.js'
import type { DeviceName } from '../tensor/types.js'
import type { ExitRule } from './exit-rules.js'

export type { BeliefRewards, LossMetrics, LossTerm, ModelDType, RealArray } from '../native/types.js'

/** Token ids of one sequence. */
export type TokenSequence = readonly number[] | Int32Array

/** What a trainer keeps of the forward pass: everything, the state after each loop, or the state before each layer. */
export type Recompute = 'none' | 'loop' | 'layer'

/**
 * How many of the last loops carry gradient: what the loops before computes is constant to the backward pass, and they keep nothing for it.
 * The steps before the loops, such as a prelude, and every readout carry gradient in any case. `published`: as the family was trained. That
 * is the last `mean_backprop_depth` loops of Huginn and of retrofitted models, the last `L_bp_cycles` L steps of each cycle of HRM-Text, and
 * all of others.
 */
export type BackwardLoops = number | 'published'

/** How the loops weigh in the loss of a token (RLTT, arXiv 2602.10520): Σ over loops is 1. */
export type LoopWeights = 'exit-pdf' | 'uniform' | 'progressive' | 'last'

/** The policy-gradient surrogate of one token. */
export type Surrogate = 'reinforce' | 'ppo' | 'cispo'

/** Where and how a model lives. */
export interface LoadOptions {
  /** `cpu` (default), `cuda`, `cuda:1` …, `auto` or `reference` (slow float64 formulas); `devices()` lists what works here. */
  device?: DeviceName
  /**
   * Default: `float64` on device `reference`. Elsewhere a checkpoint keeps its own, `bfloat16` where its files hold nothing else and `float32`
   * otherwise; a new model is `float32`.
   */
  dtype?: ModelDType
  /** Threads of the device's own pool; default one per available core. Models with different counts use different pools. */
  threads?: number
  /**
   * Keep the matrices of the blocks and the head (of a tied one a copy beside the embedding) in 8 or 4 bits with a float32 scale for every
   * `groupSize` neighbours of a row. Such a model takes less memory and decodes faster, by as much as less is read; it scores and generates, and refuses to train.
   * Files are quantized as they are read, row by row. A folder that was saved quantized says so itself. Devices `cpu`, `cuda` and `reference`.
   *
   * `int4-asymmetric` takes as much memory as `int4` and has less error: a group has a scale and a middle, both bfloat16, which are fitted to
   * its weights. Loading takes longer. Devices `cpu` and `reference`.
   */
  quantize?: 'int8' | 'int4' | 'int4-asymmetric' | undefined
  /** A multiple of 32 that divides the widths of the matrices; default 64. */
  groupSize?: number | undefined
  /**
   * Of a quantized model: what its products take of activations. `int8`: each row is rounded to 8 bits with a scale for every `groupSize`
   * neighbours, which is up to four times as fast on a processor; docs/performance.md has what it costs in perplexity. `float`: as they
   * are. Default: `int8` on device `cpu`, `float` on `reference`, which has both; `cuda` has `float` alone. Files are the same.
   */
  activations?: 'float' | 'int8' | undefined
  /**
   * Give a model whose family has no exit gate one: D → 1 on what the head reads after each loop. It starts with zeros, is trained and saved
   * with the model (`looplm_exit_gate` of config.json), and serves `exit-pdf` weights, LoopRPT and the exit rule `gate`. Default false; a
   * model that has a gate keeps it.
   */
  exitGate?: boolean | undefined
}

/** Options of {@link LoopLM.fromPretrained}. */
export interface PretrainedOptions extends LoadOptions {
  /**
   * Fetch the checkpoint from the Hugging Face Hub when there is no such folder, see {@link download}; default false. Nothing is ever
   * fetched unless this is true.
   */
  download?: boolean
  /** Branch, tag or commit to download; default `main`. */
  revision?: string
  /** Where downloads are kept; default the cache of Hugging Face's own tools. */
  cacheDir?: string
  /**
   * Load the quantized matrices of a GGUF file as the plain values that their codes stand for, for example to train. Default false: Q8_0
   * and Q4_0 files keep their codes. Folders that looplm saved quantized are refused.
   */
  dequantize?: boolean
  /** Not read, for nothing is drawn: one set of options serves {@link LoopLM.create} as well. */
  seed?: number
}

/** Options of {@link LoopLM.create}. */
export interface CreateOptions extends LoadOptions {
  /** Initial parameters are a pure function of the seed and the configuration. Default 0. */
  seed?: number
}

/** Options of {@link LoopLM.save}. */
export interface SaveOptions {
  /** The dtype in the file; default the model's own. A float32 model may be saved as bfloat16 (rounded to nearest) and vice versa. */
  dtype?: ModelDType
  /**
   * Write a quantized model's matrices as the plain values that their codes stand for, which other tools load. Default false: as codes
   * and scales.
   */
  dequantize?: boolean
  /** Saved with the model; default the model's own, {@link LoopLM.tokenizer}. */
  tokenizer?: Tokenizer | undefined
}

/** The first state of the loops, for families that begin with one (Huginn and retrofitted models). */
export interface StateOptions {
  /** Per sequence len × D, row-major. Default: drawn for each position from `stateSeed` and the tokens up to it, whatever the batch. */
  initialStates?: readonly ArrayLike<number>[]
  /** `zeros` draws nothing. Default `drawn`. */
  initialState?: 'drawn' | 'zeros'
  /** Default 0. */
  stateSeed?: number
}

/** Vectors that one sequence has in place of embedded tokens: a soft prompt, or what another model computed. */
export interface InputVectors {
  /** Which tokens of the sequence, ascending. What ids stand there does not matter, but for the predictions of those ids. */
  positions: ArrayLike<number>
  /** positions × D, row-major; what an embedded token would be after `embedding_scale`, where the model has one. */
  values: ArrayLike<number>
}

/** Inputs beside token ids. */
export interface InputOptions {
  /** Per sequence or prompt its vectors, or undefined. Default: every token is embedded. */
  inputVectors?: readonly (InputVectors | undefined)[]
}

/** What {@link LoopLM.backward} returns. */
export interface BackwardResult {
  /** ∂L/∂{@link InputVectors.values}, per sequence; empty where a sequence has none. */
  inputVectors: RealArray[]
}

/** Options of {@link LoopLM.score}. */
export interface ScoreOptions extends StateOptions, InputOptions {
  /** Log-probabilities are of softmax(logits / temperature); default 1, more than 0. */
  temperature?: number
  /**
   * Loops to run, 1 to 64; default the model's `total_ut_steps`. Nanbeige and HRM-Text refuse more than they have.
   */
  loops?: number
  /**
   * Read only these loops, growing numbers from 1: arrays by loop then have a row for each of them, and the exit distribution is one over
   * them. Nothing runs behind the last one. Default every loop.
   */
  readLoops?: readonly number[] | undefined
  /** Score the last loop alone: `logprobs` and `entropy` are then 1 × (len-1) per sequence. Default false. */
  lastLoop?: boolean
  /** Per sequence, how many tokens are prompt: rows before the response read as 0 and cost nothing in the head. */
  promptLengths?: ArrayLike<number>
  /**
   * Per sequence len-1: the loop that each prediction was read from, counted from 0, as generation with early exits had them. Tokens of
   * the response then keep the keys and values of that loop at deeper ones, as in generation: the log-probabilities at the exits are
   * those of the sampler. Needs `promptLengths`, because prompts run at full depth. Default: every token runs all loops.
   */
  exits?: readonly ArrayLike<number>[] | undefined
  /** Return the most probable token of each prediction as well. Default false. */
  predictions?: boolean
  /** This many of the most probable tokens of each prediction of the last loop; default 0. At most `vocab_size`. */
  topLogprobs?: number
  /** Rejects with code ABORTED, between two kernels. */
  signal?: AbortSignal | undefined
}

/** The numbers of {@link LoopLM.score}: one array per sequence, row-major by loop. */
export interface Scores {
  /** T, the number of loops that ran. */
  loops: number
  /** With `readLoops`, those: T in the shapes below is then their number. */
  readLoops?: readonly number[]
  /** T × (len-1): log P of token j+1 given tokens 0..j, after each loop. 1 × (len-1) with `lastLoop`. */
  logprobs: RealArray[]
  /** With `predictions`, T × (len-1): the token with the largest logit, the lowest id of equal ones. */
  predicted?: Int32Array[]
  /**
   * With `topLogprobs`, per sequence len-1 lists: the most probable tokens after the last loop, best first, the lower id of equal ones
   * first. Empty lists before a response that `promptLengths` names.
   */
  topLogprobs?: TokenLogprob[][][]
  /** T × (len-1): entropy in nats of the same distributions. 1 × (len-1) with `lastLoop`. */
  entropy: RealArray[]
  /** T × len: logits of the exit gate. The last loop's is never used by the exit distribution. */
  gateLogits: RealArray[]
  /** T × len: probability of leaving after each loop; sums to 1 over the loops. */
  exitPdf: RealArray[]
}

/** Options of {@link ScoredSequences.backward}. */
export interface ScoredBackwardOptions {
  /** Per sequence T × len, row-major by loop: ∂L/∂(gate logits). Absent: no gradient through the gate. */
  gateCoefficients?: readonly ArrayLike<number>[]
  /** Truncates the backward pass; default all loops carry gradient. */
  backwardLoops?: BackwardLoops | undefined
  /** Trades time for memory and changes no number. Default `none`. */
  recompute?: Recompute
  /** Rejects with code ABORTED; gradients are then partly accumulated: call `zeroGradients()`. */
  signal?: AbortSignal | undefined
}

/** Options of {@link LoopLM.backward}. */
export interface BackwardOptions extends StateOptions, InputOptions, ScoredBackwardOptions {
  /** Must be the temperature of the scores that the coefficients come from; default 1. */
  temperature?: number
  /** Must be the loops of the scores that the coefficients come from; default the model's. */
  loops?: number
  /** Must be those of the scores that the coefficients come from; T is then their number. */
  readLoops?: readonly number[] | undefined
}

/**
 * Sequences with everything that an objective needs to know of them, as the engine's loss core reads it. Per prediction means len-1
 * values per sequence, by loop T × (len-1), row-major by loop; with `readLoops` T is the number of loops that are read.
 * @internal
 */
export interface LossBatch {
  sequences: readonly TokenSequence[]
  /** The number of each sequence in the draws of exits; default its index. */
  numbers?: readonly number[] | undefined
  /** Per sequence len × D: the first state of its tokens, for families that begin with one. */
  initialStates?: readonly ArrayLike<number>[] | undefined
  /** Per sequence its vectors in place of embedded tokens. */
  inputVectors?: InputOptions['inputVectors'] | undefined
  /** Per sequence, tokens before the response; default 1 each (every prediction counts). */
  promptLengths?: ArrayLike<number> | undefined
  /** Per term of the objective. */
  terms: readonly {
    /** One per sequence, or T per sequence, loop by loop. */
    advantages: ArrayLike<number>
    /** Per prediction: added to those of the sequence. */
    tokenAdvantages?: readonly ArrayLike<number>[] | undefined
    /** One per sequence: the length normalizer n of each of its response tokens (math.md §2), times the weight of the term. */
    lengthNormalizers: ArrayLike<number>
  }[]
  /** One per sequence: the normaliser of the regularisers. */
  lengthNormalizers: ArrayLike<number>
  /** Per prediction (the one weighted loop), or by loop. */
  oldLogprobs?: readonly ArrayLike<number>[] | undefined
  /** Per prediction (last loop), or by loop. */
  referenceLogprobs?: readonly ArrayLike<number>[] | undefined
  /** What LLDS compares with instead of `oldLogprobs`. */
  lazyLogprobs?: readonly ArrayLike<number>[] | undefined
  /** One per sequence, λ over the token count of LLDS; 0 for sequences that may become less likely. */
  lazyNormalizers?: ArrayLike<number> | undefined
  /** Per prediction: entropy of the reference at the last loop. */
  referenceEntropy?: readonly ArrayLike<number>[] | undefined
  /** By loop: the exit distribution of the reference. */
  referenceExitPdf?: readonly ArrayLike<number>[] | undefined
  /** Per prediction: the loop that was left, counted from 0. */
  exits?: readonly ArrayLike<number>[] | undefined
  /** Per prediction: which action of the response a token belongs to. */
  segments?: readonly ArrayLike<number>[] | undefined
  /** Per prediction: 0 where it does not count. */
  mask?: readonly ArrayLike<number>[] | undefined
}

/** Which loops a regulariser acts on: the last, all alike, or those of the first token term by their weights. */
export type LoopSet = 'last' | 'uniform' | 'weights'

/**
 * Fields of the engine's Objective; an absent field has the default in brackets.
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
  /** 0: chosen from the model's size; never changes the loss [0] */
  tokensPerMicroBatch?: number
  /** Equal prompts of neighbouring sequences run once [true] */
  sharePrompts?: boolean
  /** Tokens that left early, by the batch's exits, keep the keys and values of their exit loop [false] */
  replayExits?: boolean
}

/** A prompt: token ids, or text when the model has a tokenizer. */
export type Prompt = TokenSequence | string

/**
 * Planes of keys and values: one per loop, which is exact, or one that all loops share, which takes a T-th of the memory. Ouro was published
 * with both. Other families give wrong tokens with shared planes, so `{ planes: 'shared', force: true }` must say that this is wanted.
 */
export type CachePolicy =
  | 'per-loop'
  | 'shared'
  | {
      /** A plane of keys and values for every loop, or one that all loops share. */
      planes: 'per-loop' | 'shared'
      /** Share planes also in families that were not made for it. Default false. */
      force?: boolean
    }

/**
 * What the cache keeps of keys and values. `model`: numbers in the dtype of the model. `int8`, `int4`: codes of so many bits in groups
 * of up to 64 channels with a scale and a minimum each, 0.53 or 0.28 of the bytes of bfloat16. `residual`: the last loop in 4 bits,
 * and what the earlier loops differ from it in 2 bits, 0.19 of the bytes with four loops; prompts then run a block at a time. `spark`:
 * `int4` where half of the channels of keys are pruned, each token's own, and read as one value, 0.24 of the bytes. In all of them a
 * token sees the earlier tokens of its block of 64 positions exactly, and codes of those before, in prompts too: log-probabilities
 * differ from those of {@link LoopLM.score}. A prompt shares whole blocks with others. `spark` has no CUDA kernels.
 */
export type CacheType = 'model' | 'int8' | 'int4' | 'residual' | 'spark'

/**
 * Options of {@link LoopLM.generate}, {@link LoopLM.stream} and {@link Scheduler.add}. `initialStates` has one entry per prompt,
 * (prompt + `maxNewTokens`) × D.
 */
export interface GenerateOptions extends StateOptions, InputOptions {
  /** Default 16. Generation also ends, with finish reason `length`, where the model's `max_position_embeddings` end. */
  maxNewTokens?: number
  /** 0 is greedy (the lowest id wins a tie). Default 1. */
  temperature?: number
  /** Keep the k most probable tokens; 0 (default) is off. */
  topK?: number
  /** Keep the smallest set of tokens with this much probability, more than 0 and at most 1 (default: off). */
  topP?: number
  /** Keep tokens with at least this share of the largest probability, less than 1; 0 (default) is off. */
  minP?: number
  /**
   * Added to the logits of these token ids, before temperature and filters: an object or a Map from id to a finite number. Positive makes
   * a token more likely, -100 all but rules it out.
   */
  logitBias?: Readonly<Record<number, number>> | ReadonlyMap<number, number>
  /** Token ids that are never drawn. An end token among them does not end the sequence. */
  bannedTokens?: readonly number[]
  /**
   * As in Hugging Face transformers: for each token that is in the prompt or was drawn, a positive logit is divided by this and a
   * negative one multiplied by it. More than 0; 1 (default) is off.
   */
  repetitionPenalty?: number
  /** As in OpenAI's interface: subtracted from the logit of a token once for each time that it was drawn. 0 (default) is off. */
  frequencyPenalty?: number
  /** As in OpenAI's interface: subtracted once from the logit of each token that was drawn. 0 (default) is off. */
  presencePenalty?: number
  /**
   * Your own function that sees the logits before every draw, after biases and penalties: change them in place, or return others.
   * Slow: logits are copied to JavaScript and back for every token, and the sequence waits meanwhile. Not together with drafts.
   */
  logitsProcessor?: LogitsProcessor
  /**
   * The text that is generated must be JSON of a schema, match a regular expression, or follow rules: other tokens are not drawn, and
   * the sequence ends where the text is complete. One that `maxNewTokens` cuts is not. Needs a tokenizer. Not together with drafts or
   * `logitsProcessor`.
   */
  grammar?: Grammar
  /** A draw depends on (seed, number of the sequence, position) alone. Default 0. */
  seed?: number
  /** The number of each prompt's sequence in the draws, for prompts of one batch that several calls share; default its index. */
  sequenceNumbers?: readonly number[]
  /**
   * Loops that a token takes at most, 1 to 64; default the model's, in a scheduler the scheduler's. Nanbeige and HRM-Text refuse more than
   * they have.
   */
  loops?: number
  /** Default: `gate` with the configuration's `early_exit_threshold`, which is full depth when it is 1. */
  exit?: ExitRule
  /** See {@link CachePolicy}; default per-loop. In a scheduler it is the scheduler's. */
  kv?: CachePolicy
  /** See {@link CacheType}; default `model`. In a scheduler it is the scheduler's. */
  cacheType?: CacheType
  /** See {@link PromptCache}; default false: prompts of one call share what they begin with. Requests of a scheduler have the scheduler's. */
  promptCache?: PromptCache
  /** Report so many of the most probable tokens with every token, as `topLogprobs`. Default 0. */
  logprobs?: number
  /**
   * Several positions of a sequence at once, with the tokens of plain decoding. Default `off`.
   *
   * - `wavefront`: while a token is in one loop, the token that a readout of it draws is in the loop before. Goes with every option; what it
   *   cannot hasten is decoded plainly.
   * - `{ loops, tokens }`: draft `tokens` positions (default 4) with `loops` loops each, then run the remaining loops over all of them at
   *   once. Needs exit rule `fixed` and kv `per-loop`.
   */
  speculate?:
    | 'wavefront'
    | 'off'
    | {
        /** Loops of a draft, fewer than those of the request. */
        loops: number
        /** Positions that are drafted at a time; default 4. */
        tokens?: number
      }
  /**
   * Token ids, or texts when the model has a tokenizer; they replace the model's end tokens, `[]` switches them off. The token that
   * stops is part of `tokens`; `text` ends before the text that stops.
   */
  stop?: readonly number[] | readonly string[] | readonly (number | string)[]
  /** Rejects with code ABORTED, between two kernels. */
  signal?: AbortSignal | undefined
}

/** What a {@link LogitsProcessor} knows of the sequence. */
export interface LogitsContext {
  /** The prompt's tokens. */
  readonly prompt: Int32Array
  /** The tokens drawn so far. */
  readonly tokens: readonly number[]
  /** Number of the sequence in the draws: the prompt's index in the call, 0 in a scheduler, unless you gave another. */
  readonly index: number
}

/**
 * Changes logits before a token is drawn.
 *
 * @param logits one per token of the vocabulary, yours to change
 * @returns other logits of the same length, or nothing when they were changed in place. `-Infinity` rules a token out; at least one must
 *   be finite, and none may be NaN or `Infinity`.
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
  /** maxNewTokens were made, or as many as the model's `max_position_embeddings` leave behind the prompt. */
  | 'length'
  /** An end token or a stop text was found. */
  | 'stop'
  /** {@link GenerateRequest.cancel} was called. */
  | 'cancelled'

/** What {@link LoopLM.generate} returns per prompt. */
export interface GenerateResult {
  /** The new tokens, without the prompt. */
  tokens: number[]
  /** What the new tokens add to the prompt's text, without special tokens, when the model has a tokenizer. */
  text?: string
  /**
   * One per token: log softmax(logits / temperature) over the full vocabulary (temperature 1 when greedy), as `score` computes it: the
   * model's own, whatever top-k, top-p, min-p, biases, penalties, grammars and processors make of the draw.
   */
  logprobs: RealArray
  /** One per token: the loop it was read from, 1-based. */
  loops: number[]
  /** One list per token, the most probable first, when `logprobs` was given. */
  topLogprobs?: TokenLogprob[][]
  /** Why generation ended. */
  finishReason: FinishReason
}

/** One token of {@link LoopLM.stream}. */
export interface GenerateChunk {
  /** The id of the new token. */
  token: number
  /**
   * What this token adds to the text, when the model has a tokenizer; '' while a character, a row of byte tokens or a possible stop text is
   * incomplete.
   */
  text?: string
  /** As in {@link GenerateResult.logprobs}. */
  logprob: number
  /** The loop it was read from, 1-based. */
  loop: number
  /** The most probable tokens, when `logprobs` was given. */
  topLogprobs?: TokenLogprob[]
  /** On the last chunk only; a request that was cancelled has none. */
  finishReason?: Exclude<FinishReason, 'cancelled'>
}

/**
 * Keys and values of prompts stay in the cache when their requests have ended. A later prompt that begins alike, by at least 16 tokens, runs
 * the rest alone, with the same bits. `true` keeps as many tokens as a quarter of the device's free memory has room for, `maxTokens` that
 * many; the least recently used go first. Prompts under way share their beginnings too. Input vectors and given initial states share
 * nothing. Needs kv `per-loop`.
 */
export type PromptCache =
  | boolean
  | {
      /** Tokens of ended prompts that stay at most. */
      maxTokens?: number | undefined
    }

/** Options of {@link LoopLM.scheduler}. */
export interface SchedulerOptions {
  /** Sequences that generate at the same time; the others wait in the order in which they came. Default 16. */
  maxRows?: number
  /**
   * Tokens in the cache at the same time, prompts and room for the answers (`maxNewTokens` of each); default as many as fit in the free
   * memory of the device.
   */
  maxTokens?: number
  /** The most loops a request may take, 1 to 64; default the model's. */
  loops?: number
  /** As in {@link GenerateOptions.kv}, for all requests. */
  kv?: CachePolicy
  /** See {@link CacheType}; default `model`. */
  cacheType?: CacheType
  /** See {@link PromptCache}; default false. */
  promptCache?: PromptCache
  /** Prompt tokens that are run between two tokens of the others: fewer keep them flowing, more are faster. Default 512. */
  prefillTokens?: number
}

/** Options of {@link Scheduler.add}. */
export interface SchedulerRequestOptions extends GenerateOptions {
  /** Keep the keys and values of the request when it has ended, for {@link Scheduler.continue}. Needs kv `per-loop`. Default false. */
  keep?: boolean
  /** Stands for the index of the prompt in `generate`: a draw depends on (seed, sequence, position) alone. Default 0. */
  sequence?: number
}

/** Options of {@link Scheduler.continue}. */
export interface ContinueOptions extends SchedulerRequestOptions {
  /** How many of the new tokens of the continued request stay; default all. -2 takes the last two tokens of its prompt away too. */
  at?: number
  /** Keep the continued request too, so that it can be continued again. Default false: it is released. */
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
