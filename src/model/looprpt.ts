import {
  call,
  type NativeAverage,
  type NativeLoopRptMetrics,
  type NativeLoopRptOptions,
  type NativeSequences,
  native,
} from '../native.js'
import { packIntegers, packSequences, packValues, sequenceLimits } from './checks.js'
import type { LoopLM } from './model.js'
import type { TokenSequence } from './types.js'

/**
 * The batch of one LoopRPT step.
 * @internal
 */
export interface LoopRptBatch {
  sequences: readonly TokenSequence[]
  promptLengths: ArrayLike<number>
  /** Per sequence: its number in the random draws. */
  ids: readonly number[]
  /**
   * Number of response tokens per sequence of the logical batch. This batch may be a share of it; means are over the hard
   * tokens of the whole logical batch.
   */
  responses: readonly number[]
  /** Per sequence len-1. 0: the prediction is never a hard token. */
  mask?: readonly ArrayLike<number>[] | undefined
  /** Per sequence rollouts × loops × len × hidden_size. Used instead of drawing noise. */
  noise?: readonly ArrayLike<number>[] | undefined
  /** Per sequence rollouts × (len-1), loops counted from 0. Used instead of drawing exits. */
  exits?: readonly ArrayLike<number>[] | undefined
}

/** Adds the gradient of the LoopRPT loss (arXiv 2603.19714; math.md §5) to the student's gradients. */
export async function accumulateLoopRpt(
  student: LoopLM,
  teacher: LoopLM,
  batch: LoopRptBatch,
  options: NativeLoopRptOptions,
  signal?: AbortSignal,
): Promise<NativeLoopRptMetrics> {
  const operation = 'LoopRPT'
  const { hidden_size, total_ut_steps } = student.config
  const limits = { ...sequenceLimits(student.config), minLength: 2, promptLengths: batch.promptLengths }
  const sequences = packSequences(batch.sequences, limits, operation)
  const count = sequences.lengths.length
  const noise = (i: number) => [
    {
      shape: 'rollouts × loops × length × hidden_size',
      length: options.rollouts * total_ut_steps * sequences.lengths[i]! * hidden_size,
    },
  ]
  const exits = (i: number) => [{ shape: 'rollouts × (length - 1)', length: options.rollouts * (sequences.lengths[i]! - 1) }]
  const draws = {
    ids: Int32Array.from(batch.ids),
    responses: Int32Array.from(batch.responses),
    mask: packMask(batch.mask, sequences, operation),
    noise: packValues(batch.noise, 'noise', noise, count, operation),
    exits: packIntegers(batch.exits, 'exits', exits, { min: 0, max: total_ut_steps - 1 }, count, operation),
  }
  const [own, other] = [student.handle(operation), teacher.handle(operation)]
  return call(operation, (cancel) => native().modelAccumulateLoopRpt(own, other, sequences, draws, options, cancel), signal)
}

/**
 * Adds the gradient of the Stage II loss, which only reaches the gate. Returns the loss.
 * @param batch.tokens number of response tokens of the logical batch
 */
export async function accumulateStage2(
  model: LoopLM,
  batch: {
    sequences: readonly TokenSequence[]
    promptLengths: ArrayLike<number>
    mask?: readonly ArrayLike<number>[] | undefined
    tokens: number
  },
  tokensPerMicroBatch: number,
): Promise<number> {
  const operation = 'Stage II'
  const limits = { ...sequenceLimits(model.config), minLength: 2, promptLengths: batch.promptLengths }
  const sequences = packSequences(batch.sequences, limits, operation)
  const handle = model.handle(operation)
  const mask = packMask(batch.mask, sequences, operation)
  return call(operation, (cancel) =>
    native().modelAccumulateStage2(handle, sequences, mask, batch.tokens, tokensPerMicroBatch, cancel),
  )
}

/** One entry per prediction; 0 if it does not count. */
function packMask(mask: readonly ArrayLike<number>[] | undefined, sequences: NativeSequences, operation: string): Int32Array {
  const shape = (i: number) => [{ shape: 'length - 1', length: sequences.lengths[i]! - 1 }]
  return packIntegers(mask, 'mask', shape, { min: 0, max: 1 }, sequences.lengths.length, operation)
}

/**
 * A teacher whose parameters are a moving average of the student's: teacher ← decay · teacher + (1 - decay) · student. It
 * is kept in float32, even for bfloat16 models.
 */
export class MovingAverage {
  readonly #handle: NativeAverage

  constructor(teacher: LoopLM, student: LoopLM) {
    this.#handle = native().averageCreate(teacher.handle('LoopRPT'), student.handle('LoopRPT'))
  }
  async update(decay: number): Promise<void> {
    await call('LoopRPT', () => native().averageUpdate(this.#handle, decay))
  }
  async save(path: string): Promise<void> {
    await call('LoopRPT', () => native().averageSave(this.#handle, path))
  }
  async load(path: string): Promise<void> {
    await call('LoopRPT', () => native().averageLoad(this.#handle, path))
  }
  dispose(): void {
    this.#handle.dispose()
  }
}
