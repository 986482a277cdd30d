import { type Architecture, parameterCount, type Step } from '../native/architecture.js'
import { context, native } from '../native.js'
import type { DeviceName } from '../tensor/types.js'
import { checkFlag, checkNumber, checkOptions, checkWord, type Keys } from '../validation/arguments.js'
import { cachePerToken, cacheTypes } from './cache-type.js'
import { architectureOf, type LoopLMConfig } from './config.js'
import type { CacheType, ModelDType } from './types.js'

/** Options of {@link estimateMemory}. */
export interface EstimateOptions {
  /** The dtype of weights, activations and the cache. Defaults to `float32`. */
  dtype?: ModelDType | undefined
  /** Number of loops to run. Defaults to the model's. */
  loops?: number | undefined
  /** What the backward pass recomputes instead of storing. Defaults to `none`. */
  recompute?: 'none' | 'loop' | 'layer' | undefined
  /** Number of trained parameters, if not all are trained, for example those of an adapter. Defaults to all. */
  trained?: number | undefined
  /** What the cache stores of keys and values. Defaults to `model`. */
  cacheType?: CacheType | undefined
  /** Whether training replays sampled exits, as the recipe `exit-sampled` does. Defaults to false. */
  replayExits?: boolean | undefined
}

/** The memory that a model takes, in bytes. */
export interface MemoryEstimate {
  /** Number of parameters (not bytes). */
  parameters: number
  /** The weights in `dtype`. Quantized weights take less. */
  weights: number
  /** The gradients of a trainer, in float32, or in float64 for that dtype. */
  gradients: number
  /** The optimizer state: AdamW's moments in the type of the gradients, and float32 master weights of bfloat16 weights. */
  optimizer: number
  /**
   * Keys and values of one token in all loops. With a quantized `cacheType`, the newest tokens of each sequence (up to 64) also
   * take space in the model's dtype.
   */
  cachePerToken: number
  /**
   * Per token of a training micro-batch: the stored activations and scratch memory between the embedding and the head. This is
   * the maximum, when every loop is read and carries gradient.
   */
  activationsPerToken: number
  /**
   * Per token of a training micro-batch: the logits and scratch memory of the head. This is a maximum, because logits are
   * computed in chunks.
   */
  headPerToken: number
}

const estimateOptions = {
  dtype: true,
  loops: true,
  recompute: true,
  trained: true,
  cacheType: true,
  replayExits: true,
} satisfies Keys<EstimateOptions>
const operation = 'estimateMemory'
const bytesOf = { bfloat16: 2, float32: 4, float64: 8 }
const realBytes = (act: number) => Math.max(4, act) // of what is at least a float32: norms, gradients, logits

/**
 * Estimates the memory of a model from its configuration alone. Nothing is loaded. A test compares the result with what the
 * engine allocates.
 *
 * @param config as `model.config`
 * @throws LoopLMError INVALID_ARGUMENT
 *
 * @example
 * ```ts
 * const { weights, gradients, optimizer, activationsPerToken } = estimateMemory(model.config, { dtype: 'bfloat16' })
 * const training = weights + gradients + optimizer + 2048 * activationsPerToken
 * ```
 */
export function estimateMemory(config: LoopLMConfig, options: EstimateOptions = {}): MemoryEstimate {
  checkOptions(options, estimateOptions, operation)
  const { dtype = 'float32', recompute = 'none' } = options
  checkWord(dtype, 'dtype', ['float32', 'bfloat16', 'float64'], operation)
  checkWord(recompute, 'recompute', ['none', 'loop', 'layer'], operation)
  const replayExits = checkFlag(options.replayExits ?? false, 'replayExits', operation)
  const cacheType = checkWord(options.cacheType ?? 'model', 'cacheType', cacheTypes, operation)
  const architecture = architectureOf(config)
  const loops = checkNumber(options.loops ?? architecture.loops, 'loops', { min: 1, integer: true }, operation)
  const act = bytesOf[dtype]
  const real = realBytes(act)
  const parameters = parameterCount(architecture)
  const trained = checkNumber(options.trained ?? parameters, 'trained', { min: 1, integer: true }, operation)
  const { vocabulary, hidden } = architecture
  return {
    parameters,
    weights: parameters * act,
    gradients: trained * real,
    optimizer: trained * real * (dtype === 'bfloat16' ? 3 : 2),
    cachePerToken: cachePerToken(architecture, loops, dtype, cacheType),
    activationsPerToken:
      activations(architecture, loops, recompute, act) + (replayExits ? replayBytes(architecture, loops, act) : 0),
    headPerToken: loops * (vocabulary * real + hidden * (act + real)),
  }
}

/** The number of tokens in a training micro-batch if `tokensPerMicroBatch` is not set. */
export function microBatchTokens(
  config: LoopLMConfig,
  { dtype = 'float32', recompute = 'none', loops }: EstimateOptions,
  device: DeviceName = 'cpu',
): number {
  const architecture = architectureOf(config)
  const on = context(device, 0, 'microBatchTokens')
  return native().microBatchTokens(on, architecture, dtype, loops ?? architecture.loops, recompute)
}

/** Bytes per token of the stack's backward pass, as native/engine/stack.cpp allocates it. */
function activations(a: Architecture, loops: number, recompute: NonNullable<EstimateOptions['recompute']>, act: number): number {
  const { hidden: D, intermediate: F, heads, kvHeads, headDim, registers, begin, loop, read } = a
  const real = realBytes(act)
  const attention = heads * headDim
  const qkv = (heads + 2 * kvHeads) * headDim
  const state = D * act
  const runs = recompute === 'loop' ? 1 : loops // number of loops whose activations are stored
  const blocks = (steps: readonly Step[]) => steps.filter(({ kind }) => kind === 'block').length
  const kept = recompute === 'layer' ? 1 : blocks(begin) + runs * (blocks(loop) + blocks(read))
  const values = between(begin) + runs * (between(loop) + between(read))
  const boundaries = registers > 1 || read.length > 0 ? loops * registers : 0
  const scratch = (2 * F + 3 * D + attention + qkv) * act // scratch memory of the block that is running
  const normed = a.queryKeyNorm !== undefined && a.queryKeyNorm !== 'none'
  const gated = a.attentionGate === true
  const ofHeads =
    (normed ? attention * real : 0) + (normed || gated ? attention * act : 0) + (gated ? (qkv + attention) * act : 0)
  const gradients = (loops + (read.length > 0 ? 2 : 1) * registers) * D * real
  return (registers + loops + values + boundaries) * state + kept * blockBytes(a, act) + scratch + ofHeads + gradients
}

/** Bytes per token that replayed exits take, as native/engine/exit_replay.cpp allocates them. */
function replayBytes({ loop, kvHeads, headDim }: Architecture, loops: number, act: number): number {
  const blocks = loop.filter(({ kind }) => kind === 'block').length
  return (3 * blocks + 3) * 2 * kvHeads * headDim * act + 3 * loops * 4 // keys, values and gradients; places in three tables
}

/** Bytes per token that a block stores for its backward pass. */
function blockBytes(a: Architecture, act: number): number {
  const { hidden: D, intermediate: F, heads, kvHeads, headDim } = a
  const attention = heads * headDim
  const qkv = (heads + 2 * kvHeads) * headDim
  let numbers = qkv + attention + 3 * D + 2 * F
  if (a.residual === 'normed') numbers += 2 * D
  if (a.queryKeyNorm !== undefined && a.queryKeyNorm !== 'none') numbers += attention + kvHeads * headDim
  if (a.attentionGate === true) numbers += 2 * attention
  return numbers * act + heads * realBytes(act)
}

/** Number of steps whose result a later step of the same program overwrites. */
function between(steps: readonly Step[]): number {
  return steps.filter(({ to }, i) => steps.slice(i + 1).some((later) => later.to === to)).length
}
