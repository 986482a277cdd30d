import { type Architecture, parameterCount, type Step } from '../native/architecture.js'
import { context, native } from '../native.js'
import type { DeviceName } from '../tensor/types.js'
import { checkNumber, checkOptions, checkWord, type Keys } from '../validation/arguments.js'
import { cachePerToken, cacheTypes } from './cache-type.js'
import { architectureOf, type LoopLMConfig } from './config.js'
import type { CacheType } from './types.js'

/** What {@link estimateMemory} is asked. */
export interface EstimateOptions {
  /** Of weights, activations and the cache; default `float32`. */
  dtype?: 'float32' | 'bfloat16' | undefined
  /** Loops that are run; default the model's. */
  loops?: number | undefined
  /** What the backward pass computes again instead of keeping it; default `none`. */
  recompute?: 'none' | 'loop' | 'layer' | undefined
  /** Numbers that are trained, where that is not all: of an adapter. */
  trained?: number | undefined
  /** What the cache keeps of keys and values; default `model`. */
  cacheType?: CacheType | undefined
}

/** Bytes. */
export interface MemoryEstimate {
  /** Numbers in the weights, not bytes. */
  parameters: number
  /** The weights in the dtype of the model, or quantized. */
  weights: number
  /** The gradients of a trainer, float32. */
  gradients: number
  /** Moments of AdamW, float32, and float32 masters of bfloat16 weights. */
  optimizer: number
  /**
   * Keys and values of one token in all loops. With a `cacheType` of fewer bits, the newest tokens of each sequence, up to 64, take room in
   * the model's dtype too.
   */
  cachePerToken: number
  /**
   * Of one token of a micro-batch in training, all that is kept and worked on between the embedding and the head, when every loop is read
   * and carries gradient: that is the most.
   */
  activationsPerToken: number
  /** Of one token of a micro-batch in training, logits and what the head works on. They are made in chunks: this is the most. */
  headPerToken: number
}

const estimateOptions = {
  dtype: true,
  loops: true,
  recompute: true,
  trained: true,
  cacheType: true,
} satisfies Keys<EstimateOptions>
const operation = 'estimateMemory'
const real = 4 // bytes of a float32

/**
 * How much memory a model takes, from its configuration alone: nothing is loaded. A test compares it with what the engine allocates.
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
  checkWord(dtype, 'dtype', ['float32', 'bfloat16'], operation)
  checkWord(recompute, 'recompute', ['none', 'loop', 'layer'], operation)
  const cacheType = checkWord(options.cacheType ?? 'model', 'cacheType', cacheTypes, operation)
  const architecture = architectureOf(config)
  const loops = checkNumber(options.loops ?? architecture.loops, 'loops', { min: 1, integer: true }, operation)
  const act = dtype === 'float32' ? 4 : 2
  const parameters = parameterCount(architecture)
  const trained = checkNumber(options.trained ?? parameters, 'trained', { min: 1, integer: true }, operation)
  const { vocabulary, hidden } = architecture
  return {
    parameters,
    weights: parameters * act,
    gradients: trained * real,
    optimizer: trained * real * (dtype === 'float32' ? 2 : 3),
    cachePerToken: cachePerToken(architecture, loops, dtype, cacheType),
    activationsPerToken: activations(architecture, loops, recompute, act),
    headPerToken: loops * (vocabulary * real + hidden * (act + real)),
  }
}

/** Tokens of a micro-batch in training, where `tokensPerMicroBatch` leaves them to the engine. */
export function microBatchTokens(
  config: LoopLMConfig,
  { dtype = 'float32', recompute = 'none', loops }: EstimateOptions,
  device: DeviceName = 'cpu',
): number {
  const architecture = architectureOf(config)
  const on = context(device, 0, 'microBatchTokens')
  return native().microBatchTokens(on, architecture, dtype, loops ?? architecture.loops, recompute)
}

/** As native/engine/stack.cpp lays a stack out for a backward pass. */
function activations(a: Architecture, loops: number, recompute: NonNullable<EstimateOptions['recompute']>, act: number): number {
  const { hidden: D, intermediate: F, heads, kvHeads, headDim, registers, begin, loop, read } = a
  const attention = heads * headDim
  const qkv = (heads + 2 * kvHeads) * headDim
  const state = D * act
  const runs = recompute === 'loop' ? 1 : loops // loops whose values are kept
  const blocks = (steps: readonly Step[]) => steps.filter(({ kind }) => kind === 'block').length
  const kept = recompute === 'layer' ? 1 : blocks(begin) + runs * (blocks(loop) + blocks(read))
  const values = between(begin) + runs * (between(loop) + between(read))
  const boundaries = registers > 1 || read.length > 0 ? loops * registers : 0
  const scratch = (2 * F + 3 * D + attention + qkv) * act // of the block that runs
  const normed = a.queryKeyNorm !== undefined && a.queryKeyNorm !== 'none'
  const gated = a.attentionGate === true
  const ofHeads =
    (normed ? attention * real : 0) + (normed || gated ? attention * act : 0) + (gated ? (qkv + attention) * act : 0)
  const gradients = (loops + (read.length > 0 ? 2 : 1) * registers) * D * real
  return (registers + loops + values + boundaries) * state + kept * blockBytes(a, act) + scratch + ofHeads + gradients
}

/** What a block leaves for its backward pass. */
function blockBytes(a: Architecture, act: number): number {
  const { hidden: D, intermediate: F, heads, kvHeads, headDim } = a
  const attention = heads * headDim
  const qkv = (heads + 2 * kvHeads) * headDim
  let numbers = qkv + attention + 3 * D + 2 * F
  if (a.residual === 'normed') numbers += 2 * D
  if (a.queryKeyNorm !== undefined && a.queryKeyNorm !== 'none') numbers += attention + kvHeads * headDim
  if (a.attentionGate === true) numbers += 2 * attention
  return numbers * act + heads * real
}

/** Steps whose result a later step of the same program writes over. */
function between(steps: readonly Step[]): number {
  return steps.filter(({ to }, i) => steps.slice(i + 1).some((later) => later.to === to)).length
}
