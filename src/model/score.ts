import { LoopLMError } from '../errors.js'
import type { Architecture } from '../native/architecture.js'
import { call, type NativeModel, type NativeScores, type NativeSequences, native } from '../native.js'
import { checkFlag, checkNumber, checkOptions, checkWord } from '../validation/arguments.js'
import type { LoopLMConfig } from './architectures/family.js'
import {
  checkLoops,
  checkTemperature,
  packIntegers,
  packSequences,
  packValues,
  sequenceLimits,
  splitVectors,
  withStates,
  withVectors,
} from './checks.js'
import { checkLoopChoice, type LoopChoice } from './loops.js'
import { backwardOptions, embedOptions, responseMeansOptions, scoreOptions } from './options.js'
import type {
  BackwardOptions,
  BackwardResult,
  InputOptions,
  RealArray,
  ScoredBackwardOptions,
  ScoreOptions,
  Scores,
  StateOptions,
  TokenLogprob,
  TokenSequence,
} from './types.js'

const recomputes = ['none', 'loop', 'layer'] as const

/** What scoring needs from a model. */
export interface ScoringModel {
  readonly config: Readonly<LoopLMConfig>
  readonly architecture: Architecture
  handle(operation: string): NativeModel
}

/** Sequences and how they are scored. A backward pass through the same scores must repeat this. */
export interface ScoredForm {
  packed: NativeSequences
  temperature: number
  choice: Pick<LoopChoice, 'loops' | 'readLoops'>
}

/** Checks the arguments of `score`. It is synchronous, so that the next call already finds the form. */
export function scoredForm(
  model: ScoringModel,
  sequences: readonly TokenSequence[],
  options: ScoreOptions,
  operation: string,
): ScoredForm {
  checkOptions(options, scoreOptions, operation)
  model.handle(operation)
  const limits = { ...sequenceLimits(model.config), minLength: 2, promptLengths: options.promptLengths }
  const { loops } = checkLoopChoice(options, model.architecture, operation).native
  const packed = withInputs(model, packSequences(sequences, limits, operation), options, operation)
  return {
    packed: withExits(packed, options, loops === 0 ? model.architecture.loops : loops, operation),
    temperature: checkTemperature(options.temperature, operation),
    choice: { loops: options.loops, readLoops: options.readLoops && [...options.readLoops] },
  }
}

/** Adds initial states and input vectors to the sequences. */
function withInputs(
  { architecture }: ScoringModel,
  sequences: NativeSequences,
  options: StateOptions & InputOptions,
  operation: string,
): NativeSequences {
  const states = withStates(sequences, options, architecture, operation)
  return withVectors(states, options.inputVectors, architecture.hidden, operation)
}

/** Adds the exit loops of the tokens to the sequences. */
function withExits(
  sequences: NativeSequences,
  { exits, promptLengths, readLoops }: ScoreOptions,
  loops: number,
  operation: string,
): NativeSequences {
  if (exits === undefined) return sequences
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
  if (promptLengths === undefined)
    throw refuse('exits: needs promptLengths, because prompts run at full depth. Pass promptLengths as well.')
  if (readLoops !== undefined)
    throw refuse('exits: cannot be combined with readLoops, because tokens may exit at any loop. Omit readLoops.')
  const once = (i: number) => [{ shape: 'length - 1', length: sequences.lengths[i]! - 1 }]
  const range = { min: 0, max: loops - 1 }
  return { ...sequences, exits: packIntegers(exits, 'exits', once, range, sequences.lengths.length, operation) }
}

/** Implements LoopLM.score. */
export async function score(
  model: ScoringModel,
  form: ScoredForm,
  options: ScoreOptions,
  operation: string,
): Promise<ScoredSequences> {
  const { packed, temperature, choice } = form
  const most = { min: 0, max: model.config.vocab_size, integer: true }
  const settings = {
    temperature,
    ...checkLoopChoice(choice, model.architecture, operation).native,
    lastLoop: checkFlag(options.lastLoop ?? false, 'lastLoop', operation),
    responsesOnly: options.promptLengths !== undefined,
    predictions: checkFlag(options.predictions ?? false, 'predictions', operation),
    top: checkNumber(options.topLogprobs ?? 0, 'topLogprobs', most, operation),
  }
  const handle = model.handle(operation)
  const scores = await call(operation, (cancel) => native().modelScore(handle, packed, settings, cancel), options.signal)
  return new ScoredSequences(model, form, scores, settings.top)
}

/**
 * The result of {@link LoopLM.score}: {@link Scores}, and a backward pass from a loss of them.
 *
 * @example
 * ```ts
 * const scored = await model.score(sequences)
 * await scored.backward(scored.logprobs.map((l) => l.map(() => -1 / l.length))) // the loss is the mean negative log-probability
 * ```
 */
export class ScoredSequences implements Scores {
  readonly loops: number
  declare readonly readLoops?: readonly number[]
  readonly logprobs: RealArray[]
  declare readonly predicted?: Int32Array[]
  declare readonly topLogprobs?: TokenLogprob[][][]
  readonly entropy: RealArray[]
  readonly gateLogits: RealArray[]
  readonly exitPdf: RealArray[]
  readonly #model: ScoringModel
  readonly #form: ScoredForm

  /** @internal */
  constructor(model: ScoringModel, form: ScoredForm, scores: NativeScores, top: number) {
    this.#model = model
    this.#form = form
    this.loops = scores.loops
    if (form.choice.readLoops !== undefined) this.readLoops = form.choice.readLoops
    this.logprobs = scores.logprobs
    if (scores.predicted !== undefined) this.predicted = scores.predicted.map((tokens) => Int32Array.from(tokens))
    const { topTokens, topLogprobs } = scores
    if (topTokens !== undefined) this.topLogprobs = topLists(form.packed.lengths, top, topTokens, topLogprobs!)
    this.entropy = scores.entropy
    this.gateLogits = scores.gateLogits
    this.exitPdf = scores.exitPdf
  }

  /**
   * Accumulates the gradient of any loss L of these scores, given ∂L/∂ℓ. It uses the sequences, temperature, loops and
   * initial states that were scored, and the current parameters of the model. Gradients accumulate until
   * {@link LoopLM.zeroGradients} or an optimizer's step. A call that fails or is aborted may have accumulated a part of its
   * gradients. Call `zeroGradients` before you make it again.
   *
   * @param coefficients per sequence T × (len-1), row-major by loop: ∂L/∂(log-probability)
   * @param options.gateCoefficients per sequence T × len: ∂L/∂(gate logit)
   * @returns the gradients of the sequences' `inputVectors`
   * @throws LoopLMError INVALID_SHAPE, NON_FINITE, DISPOSED, ABORTED; INVALID_ARGUMENT naming the option
   */
  async backward(coefficients: readonly ArrayLike<number>[], options: ScoredBackwardOptions = {}): Promise<BackwardResult> {
    return backward(this.#model, this.#form, coefficients, options, 'Scores.backward')
  }
}

/** Splits the engine's concatenated arrays into one list per prediction. */
function topLists(lengths: Int32Array, count: number, tokens: Int32Array, logprobs: Float64Array): TokenLogprob[][][] {
  let at = 0
  const list = () => {
    const from = at
    at += count
    if (tokens[from] === -1) return []
    return Array.from({ length: count }, (_, k) => ({ token: tokens[from + k]!, logprob: logprobs[from + k]! }))
  }
  return Array.from(lengths, (length) => Array.from({ length: length - 1 }, list))
}

/**
 * Accumulates the gradient of a loss of scores.
 *
 * @param form of the scores; `temperature`, `loops` and `readLoops` of the options override its values
 */
export async function backward(
  model: ScoringModel,
  form: ScoredForm,
  coefficients: readonly ArrayLike<number>[],
  options: BackwardOptions,
  operation: string,
): Promise<BackwardResult> {
  checkOptions(options, backwardOptions, operation)
  const handle = model.handle(operation)
  const { packed } = form
  const { loops = form.choice.loops, readLoops = form.choice.readLoops, backwardLoops } = options
  const checked = checkLoopChoice({ loops, readLoops, backwardLoops }, model.architecture, operation)
  const t = checked.reads
  const rows = (values: readonly ArrayLike<number>[] | undefined, name: string, shape: string, drop: number) => {
    const lengths = (i: number) => [{ shape, length: t * (packed.lengths[i]! - drop) }]
    return packValues(values, name, lengths, packed.lengths.length, operation)
  }
  const given = rows(coefficients, 'coefficients', 'loops × (length - 1)', 1)
  const gate = rows(options.gateCoefficients, 'gateCoefficients', 'loops × length', 0)
  const settings = {
    temperature: checkTemperature(options.temperature ?? form.temperature, operation),
    ...checked.native,
    recompute: checkWord(options.recompute ?? 'none', 'recompute', recomputes, operation),
  }
  const run = (cancel: Cancel) => native().modelBackward(handle, packed, given, gate, settings, cancel)
  return { inputVectors: splitVectors(await call(operation, run, options.signal), packed, model.config.hidden_size) }
}

type Cancel = Parameters<Parameters<typeof call>[1]>[0]

/** The sequences of a backward pass for which `score` was not called first. */
export function packForBackward(
  model: ScoringModel,
  sequences: readonly TokenSequence[],
  options: BackwardOptions,
  operation: string,
): ScoredForm {
  checkOptions(options, backwardOptions, operation)
  const limits = { ...sequenceLimits(model.config), minLength: 2 }
  const packed = withInputs(model, packSequences(sequences, limits, operation), options, operation)
  return { packed, temperature: 1, choice: {} }
}

/** Implements LoopLM.responseMeans. */
export async function responseMeans(
  model: ScoringModel,
  sequences: readonly TokenSequence[],
  options: Pick<ScoreOptions, 'promptLengths' | 'temperature' | 'loops' | 'inputVectors' | keyof StateOptions | 'signal'>,
): Promise<{ logprobs: number[][]; exitLoop: number[] }> {
  const operation = 'LoopLM.responseMeans'
  checkOptions(options, responseMeansOptions, operation)
  const limits = { ...sequenceLimits(model.config), minLength: 2, promptLengths: options.promptLengths }
  const packed = withInputs(model, packSequences(sequences, limits, operation), options, operation)
  const settings = {
    temperature: checkTemperature(options.temperature, operation),
    loops: checkLoops(options.loops, operation),
  }
  const handle = model.handle(operation)
  const run = (cancel: Cancel) => native().modelResponseMeans(handle, packed, settings, cancel)
  const means = await call(operation, run, options.signal)
  const row = (i: number) => means.logprobs.slice(i * means.loops, (i + 1) * means.loops)
  return { logprobs: sequences.map((_, i) => row(i)), exitLoop: means.exitLoop }
}

/** Implements LoopLM.embed. */
export async function embed(
  model: ScoringModel,
  sequences: readonly TokenSequence[],
  options: Pick<ScoreOptions, 'promptLengths' | 'loops' | 'inputVectors' | keyof StateOptions | 'signal'>,
): Promise<RealArray[]> {
  const operation = 'LoopLM.embed'
  checkOptions(options, embedOptions, operation)
  const limits = { ...sequenceLimits(model.config), minLength: 1, promptLengths: options.promptLengths }
  const packed = withInputs(model, packSequences(sequences, limits, operation), options, operation)
  const loops = checkLoops(options.loops, operation)
  const handle = model.handle(operation)
  return call(operation, (cancel) => native().modelEmbed(handle, packed, loops, cancel), options.signal)
}
