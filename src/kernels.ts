import { types } from 'node:util'
import { LoopLMError } from './errors.js'
import { ouro } from './model/architectures/ouro.js'
import { checkTemperature } from './model/checks.js'
import { maxLoops } from './model/config.js'
import type { Surrogate } from './model/types.js'
import { call, native } from './native.js'
import { checkOperand, checkTensor, Tensor } from './tensor/tensor.js'
import type { FloatDType } from './tensor/types.js'
import { checkNumber, checkOptions, checkWord, describe, type Keys } from './validation/arguments.js'

/** Weights of one block: matrices [out, in], norms [D]. H heads, K key-value heads of size S, F feed-forward width. */
export interface LoopedLayerWeights<D extends FloatDType> {
  /** [H·S, D] */
  qProj: Tensor<D>
  /** [K·S, D] */
  kProj: Tensor<D>
  /** [K·S, D] */
  vProj: Tensor<D>
  /** [D, H·S] */
  oProj: Tensor<D>
  /** [F, D] */
  gateProj: Tensor<D>
  /** [F, D] */
  upProj: Tensor<D>
  /** [D, F] */
  downProj: Tensor<D>
  /** [D], before attention */
  inputLayernorm: Tensor<D>
  /** [D], after attention */
  inputLayernorm2: Tensor<D>
  /** [D], before the feed-forward layer */
  postAttentionLayernorm: Tensor<D>
  /** [D], after the feed-forward layer */
  postAttentionLayernorm2: Tensor<D>
}

/** Weights of a looped stack. */
export interface LoopedBlockWeights<D extends FloatDType> {
  /** At least one block. */
  layers: readonly LoopedLayerWeights<D>[]
  /** H. The head size S is rows of qProj / H, the number of key-value heads is rows of kProj / S. */
  numAttentionHeads: number
  /** [D], after every loop */
  norm: Tensor<D>
  /** [1, D] or [D] */
  gateWeight: Tensor<D>
  /** [1] */
  gateBias: Tensor<D>
}

/** Options of `kernels.loopedBlockForward`. */
export interface LoopedBlockOptions {
  /** T, 1 to 64. */
  loops: number
  /** The start of each packed sequence, followed by N: [0, …, N], ascending. Defaults to one sequence, [0, N]. */
  offsets?: readonly number[] | Int32Array
  /** Base of the rotary embedding. Defaults to 1e6. */
  ropeTheta?: number
  /** Added to the mean square in every norm. Defaults to 1e-6. */
  normEps?: number
}

/** Options of the surrogate. See `kernels.policyGradientReduction` for their meaning. */
export interface PolicyGradientObjective {
  /** Defaults to `reinforce`. */
  surrogate?: Surrogate
  /** Defaults to 0.2. */
  epsilonLow?: number
  /** Defaults to 0.2. */
  epsilonHigh?: number
  /** Defaults to 0: none. */
  dualClip?: number
  /** CISPO's cap on the ratio. Defaults to 5. */
  cap?: number
}

/** Inputs of `kernels.policyGradientReduction` besides the log-probabilities. */
export interface PolicyGradientInputs<R extends 'float32' | 'float64'> {
  /** `[T, N]`: the weights w of the loops. */
  weights: Tensor<R>
  /** `[N]`: the advantage A of each token's sequence. */
  advantages: Tensor<R>
  /** `[T, N]`: log-probabilities at sampling time; required by `ppo` and `cispo`. */
  oldLogprobs?: Tensor<R>
  /** `[N]`: the length normalizer n of each token. 0 for tokens that do not count. */
  mask: Tensor<R>
  /** The surrogate and its bounds. Defaults to `reinforce`. */
  objective?: PolicyGradientObjective
}

/** Statistics of `kernels.policyGradientReduction` over the rows with n·w ≠ 0. */
export interface PolicyGradientStatistics {
  /** Number of such rows. */
  rows: number
  /** Mean of exp(ℓ - ℓ_old). 1 without old log-probabilities. */
  ratio: number
  /** Fraction of rows whose gradient was clipped because the ratio was too low. */
  clipLow: number
  /** Fraction of rows whose gradient was clipped because the ratio was too high. */
  clipHigh: number
}

/**
 * Runs a looped stack on given states: T times the same blocks, with an RMS norm and an exit gate after every loop (Ouro, arXiv
 * 2510.25741).
 *
 * @param hidden [N, D], the concatenated sequences
 * @param blockWeights the blocks, the norm and the gate
 * @throws LoopLMError INVALID_SHAPE naming the weight, UNSUPPORTED, OUT_OF_MEMORY
 */
async function loopedBlockForward<D extends FloatDType>(
  hidden: Tensor<D>,
  blockWeights: LoopedBlockWeights<NoInfer<D>>,
  options: LoopedBlockOptions,
): Promise<{
  /** `[T, N, D]`: the state after every loop and its norm. */
  hidden: Tensor<D>
  /** `[T, N]`: float32, or float64 on device `reference`. */
  gateLogits: Tensor<RealOf<D>>
}> {
  const operation = 'kernels.loopedBlockForward'
  checkTensor(hidden, 'hidden', operation)
  checkOptions(blockWeights, blockFields, operation, 'blockWeights')
  checkOptions(options, blockOptions, operation)
  const { layers, norm, gateWeight, gateBias } = blockWeights
  if (!Array.isArray(layers) || layers.length === 0) {
    const message = `blockWeights.layers must be an array of at least one layer's weights, got ${describe(layers)}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  const weights: [name: string, weight: Tensor<D>][] = layers.flatMap((layer: LoopedLayerWeights<D>, i) => {
    const name = `blockWeights.layers[${i}]`
    checkOptions(layer, layerFields, operation, name)
    return layerNames.map((field): [string, Tensor<D>] => [`${name}.${field}`, layer[field]])
  })
  weights.push(['blockWeights.norm', norm], ['blockWeights.gateWeight', gateWeight], ['blockWeights.gateBias', gateBias])
  const handles = weights.map(([name, weight]) => {
    checkOperand(operation, hidden.device, hidden.dtype, weight, name)
    return weight.handle(operation)
  })
  const integer = { min: 1, max: 1024, integer: true }
  const heads = checkNumber(blockWeights.numAttentionHeads, 'blockWeights.numAttentionHeads', integer, operation)
  const loops = checkNumber(options.loops, 'loops', { min: 1, max: maxLoops, integer: true }, operation)
  const offsets = checkOffsets(options.offsets ?? [0, hidden.shape[0] ?? 0], hidden.shape[0] ?? 0, operation)
  const architecture = ouro({
    ...stackSizes(hidden, layers[0]!, heads, operation),
    num_hidden_layers: layers.length,
    total_ut_steps: loops,
    rope_theta: checkNumber(options.ropeTheta ?? 1e6, 'ropeTheta', { min: 1 }, operation),
    rms_norm_eps: checkNumber(options.normEps ?? 1e-6, 'normEps', { above: 0 }, operation),
  })
  const names = weights.map(([name]) => name.slice(name.lastIndexOf('.') + 1))
  const states = hidden.handle(operation)
  const out = await call(operation, () => native().kernelLoopedBlockForward(states, architecture, handles, names, offsets))
  return {
    hidden: new Tensor(out.hidden, hidden.dtype, hidden.device),
    gateLogits: new Tensor(out.gateLogits, realOf(hidden.dtype), hidden.device),
  }
}

/** The sizes that the weights have. The engine checks every weight against them. */
function stackSizes<D extends FloatDType>(
  hidden: Tensor<D>,
  { qProj, kProj, gateProj }: LoopedLayerWeights<D>,
  heads: number,
  operation: string,
) {
  const refuse = (message: string) => new LoopLMError('INVALID_SHAPE', message, { operation })
  const text = (shape: readonly number[]) => `[${shape.join(', ')}]`
  if (hidden.shape.length !== 2) throw refuse(`hidden must be [N, D], got ${text(hidden.shape)}`)
  if ([qProj, kProj, gateProj].some(({ shape }) => shape.length !== 2)) {
    throw refuse('qProj, kProj and gateProj must have two axes')
  }
  const [q, k] = [qProj.shape[0]!, kProj.shape[0]!]
  const headDim = q / heads
  if (headDim % 2 !== 0) throw refuse(`the rows of qProj ${text(qProj.shape)} are not ${heads} heads of an even size`)
  const kvHeads = k / headDim
  if (!Number.isInteger(kvHeads) || heads % kvHeads !== 0) {
    throw refuse(`the rows of kProj ${text(kProj.shape)} are not heads of size ${headDim} whose number divides ${heads}`)
  }
  return {
    vocab_size: 1,
    tie_word_embeddings: true,
    hidden_size: hidden.shape[1]!,
    intermediate_size: gateProj.shape[0]!,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    initializer_range: 0,
  }
}

/**
 * Computes the log-probability of each target and the entropy after every loop. It never holds [T, N, V], because the head
 * processes rows in chunks.
 *
 * @param hidden [T, N, D]
 * @param headWeight [V, D]
 * @param targets int32 [N], the same for every loop
 * @returns logprobs and entropy (nats), each [T, N], float32 or on device `reference` float64
 * @throws LoopLMError INVALID_SHAPE, INVALID_ARGUMENT naming a target outside the vocabulary
 */
async function perLoopLogSoftmax<D extends FloatDType>(
  hidden: Tensor<D>,
  headWeight: Tensor<NoInfer<D>>,
  targets: Tensor<'int32'>,
  options: {
    /** Temperature: probabilities are softmax(logits / temperature). Defaults to 1. */
    temperature?: number
  } = {},
): Promise<{
  /** `[T, N]`: log-probability of each target. */
  logprobs: Tensor<RealOf<D>>
  /** `[T, N]`: entropy in nats. */
  entropy: Tensor<RealOf<D>>
}> {
  const operation = 'kernels.perLoopLogSoftmax'
  checkTensor(hidden, 'hidden', operation)
  checkOperand(operation, hidden.device, hidden.dtype, headWeight, 'headWeight')
  checkOperand(operation, hidden.device, 'int32', targets, 'targets')
  checkOptions(options, { temperature: true }, operation)
  const temperature = checkTemperature(options.temperature, operation)
  const [states, head, wanted] = [hidden.handle(operation), headWeight.handle(operation), targets.handle(operation)]
  const out = await call(operation, () => native().kernelPerLoopLogSoftmax(states, head, wanted, temperature))
  const real = realOf(hidden.dtype)
  return { logprobs: new Tensor(out.logprobs, real, hidden.device), entropy: new Tensor(out.entropy, real, hidden.device) }
}

/**
 * Computes the policy-gradient loss of T·N log-probabilities and its derivative in one pass. With n the mask, w the weights, A
 * the advantages and r = exp(ℓ - ℓ_old), the loss is Σ over loops and tokens of
 *
 * - `reinforce`: -n·w·A·ℓ (RLTT, arXiv 2602.10520, with w over the loops)
 * - `ppo`: -n·w·A·min(r, 1 + epsilonHigh) where A >= 0, else -n·w·A·min(max(r, 1 - epsilonLow), dualClip)
 * - `cispo`: -n·w·A·sg(min(r, cap))·ℓ (arXiv 2506.13585)
 *
 * @param logprobs [T, N], ℓ
 * @returns loss, coefficients [T, N] = ∂loss/∂ℓ, and statistics
 * @throws LoopLMError INVALID_SHAPE naming the input, INVALID_ARGUMENT if `oldLogprobs` is missing
 */
async function policyGradientReduction<R extends 'float32' | 'float64'>(
  logprobs: Tensor<R>,
  inputs: PolicyGradientInputs<NoInfer<R>>,
): Promise<{
  /** The loss, summed over loops and tokens. */
  loss: number
  /** `[T, N]`: ∂loss/∂ℓ. */
  coefficients: Tensor<R>
  /** Statistics of the surrogate. */
  statistics: PolicyGradientStatistics
}> {
  const operation = 'kernels.policyGradientReduction'
  checkTensor(logprobs, 'logprobs', operation)
  checkOptions(inputs, inputFields, operation, 'inputs')
  const { weights, advantages, oldLogprobs, mask, objective = {} } = inputs
  checkOptions(objective, objectiveFields, operation, 'objective')
  const handleOf = (input: Tensor<R>, name: string) => {
    checkOperand(operation, logprobs.device, logprobs.dtype, input, name)
    return input.handle(operation)
  }
  const surrogate = checkWord(objective.surrogate ?? 'reinforce', 'objective.surrogate', ['reinforce', 'ppo', 'cispo'], operation)
  if (surrogate !== 'reinforce' && oldLogprobs === undefined) {
    throw new LoopLMError('INVALID_ARGUMENT', `surrogate ${surrogate} needs oldLogprobs`, { operation })
  }
  const number = (name: keyof PolicyGradientObjective, fallback: number) =>
    checkNumber(objective[name] ?? fallback, `objective.${name}`, { min: 0 }, operation)
  const settings = {
    surrogate,
    epsilonLow: number('epsilonLow', 0.2),
    epsilonHigh: number('epsilonHigh', 0.2),
    dualClip: number('dualClip', 0),
    cap: number('cap', 5),
  }
  const handles = {
    weights: handleOf(weights, 'weights'),
    advantages: handleOf(advantages, 'advantages'),
    oldLogprobs: oldLogprobs && handleOf(oldLogprobs, 'oldLogprobs'),
    mask: handleOf(mask, 'mask'),
  }
  const states = logprobs.handle(operation)
  const out = await call(operation, () => native().kernelPolicyGradientReduction(states, handles, settings))
  const share = (count: number) => (out.rows === 0 ? 0 : count / out.rows)
  return {
    loss: out.loss,
    coefficients: new Tensor(out.coefficients, logprobs.dtype, logprobs.device),
    statistics: { rows: out.rows, ratio: share(out.ratio), clipLow: share(out.clippedLow), clipHigh: share(out.clippedHigh) },
  }
}

/** The functions of {@link kernels}. */
export interface Kernels {
  /** T passes through a stack of transformer blocks, with a norm after each pass. */
  readonly loopedBlockForward: typeof loopedBlockForward
  /** Log-probability of each target, and entropy, after every loop, in chunks of rows. */
  readonly perLoopLogSoftmax: typeof perLoopLogSoftmax
  /** The policy-gradient loss of T·N log-probabilities and its derivative, in one pass. */
  readonly policyGradientReduction: typeof policyGradientReduction
}

/**
 * The kernels that looped language models are trained with, as functions of tensors, on every device.
 *
 * @example
 * ```ts
 * const { logprobs } = await kernels.perLoopLogSoftmax(hidden, headWeight, targets)
 * const { loss, coefficients } = await kernels.policyGradientReduction(logprobs, { weights, advantages, mask })
 * ```
 */
export const kernels: Kernels = { loopedBlockForward, perLoopLogSoftmax, policyGradientReduction }

/** The dtype of log-probabilities and gate logits. */
type RealOf<D extends FloatDType> = D extends 'float64' ? 'float64' : 'float32'

function realOf<D extends FloatDType>(dtype: D): RealOf<D> {
  return (dtype === 'float64' ? 'float64' : 'float32') as RealOf<D>
}

/** In the order in which the addon reads them. */
const layerFields = {
  qProj: true,
  kProj: true,
  vProj: true,
  oProj: true,
  gateProj: true,
  upProj: true,
  downProj: true,
  inputLayernorm: true,
  inputLayernorm2: true,
  postAttentionLayernorm: true,
  postAttentionLayernorm2: true,
} satisfies Keys<LoopedLayerWeights<FloatDType>>
const layerNames = Object.keys(layerFields) as (keyof typeof layerFields)[]

const blockFields = {
  layers: true,
  numAttentionHeads: true,
  norm: true,
  gateWeight: true,
  gateBias: true,
} satisfies Keys<LoopedBlockWeights<FloatDType>>

const blockOptions = { loops: true, offsets: true, ropeTheta: true, normEps: true } satisfies Keys<LoopedBlockOptions>

const inputFields = {
  weights: true,
  advantages: true,
  oldLogprobs: true,
  mask: true,
  objective: true,
} satisfies Keys<PolicyGradientInputs<'float32'>>

const objectiveFields = {
  surrogate: true,
  epsilonLow: true,
  epsilonHigh: true,
  dualClip: true,
  cap: true,
} satisfies Keys<PolicyGradientObjective>

function checkOffsets(offsets: readonly number[] | Int32Array, tokens: number, operation: string): Int32Array {
  if (!Array.isArray(offsets) && !types.isInt32Array(offsets)) {
    throw new LoopLMError('INVALID_ARGUMENT', `offsets must be number[] or Int32Array, got ${describe(offsets)}`, { operation })
  }
  const list = Array.from(offsets)
  const increasing = list.every((offset, i) => Number.isInteger(offset) && (i === 0 ? offset === 0 : offset > list[i - 1]!))
  if (list.length >= 2 && increasing && list.at(-1) === tokens) return Int32Array.from(list)
  const message = `offsets must increase from 0 to the ${tokens} rows of hidden, got [${list.slice(0, 8).map(describe).join(', ')}${list.length > 8 ? ', …' : ''}]`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}
