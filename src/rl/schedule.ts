import { LoopLMError } from '../errors.js'

/** The fields of a trainer's configuration that {@link learningRateAt} needs. */
export interface Schedule {
  schedule: 'constant' | 'linear' | 'cosine'
  /** Peak learning rate, reached after the warm-up. */
  learningRate: number
  /** Learning rate at the end of `linear` and `cosine`. */
  minLearningRate: number
  /** Number of steps of the whole run. */
  steps: number
  /** Number of steps of linear warm-up. Takes precedence over `warmupRatio`. */
  warmupSteps?: number | undefined
  /** Warm-up as a fraction of `steps`, rounded up. */
  warmupRatio?: number | undefined
}

/**
 * The learning rate of a step: linear warm-up from `learningRate / warmup` to `learningRate`, then constant, linear decay or
 * cosine decay. Decay reaches `minLearningRate` at the step after the last one and stays there.
 *
 * @param schedule the schedule's fields of a configuration
 * @param step 0-based: 0 is the run's first step
 *
 * @example
 * ```ts
 * learningRateAt({ schedule: 'linear', learningRate: 1, minLearningRate: 0, steps: 4 }, 3) // 0.25
 * ```
 */
export function learningRateAt(schedule: Schedule, step: number): number {
  const { learningRate, minLearningRate, steps } = schedule
  const warmup = schedule.warmupSteps ?? Math.ceil((schedule.warmupRatio ?? 0) * steps)
  if (step < warmup) return (learningRate * (step + 1)) / warmup
  if (schedule.schedule === 'constant') return learningRate
  const first = Math.max(warmup - 1, 0) // the step at which the peak is reached
  const progress = Math.min((step - first) / (steps - first), 1)
  const height = schedule.schedule === 'linear' ? 1 - progress : (1 + Math.cos(Math.PI * progress)) / 2
  return minLearningRate + (learningRate - minLearningRate) * height
}

/**
 * Sets `steps` from `epochs`, if `epochs` is set.
 *
 * @param rows per pass; undefined if the data never ends
 * @param rowsPerStep how many rows a step reads
 * @throws LoopLMError INVALID_CONFIG if `epochs` is set and the data never ends
 */
export function countSteps(
  config: { steps: number; epochs?: number | undefined },
  rows: number | undefined,
  rowsPerStep: number,
  operation: string,
): void {
  if (config.epochs === undefined) return
  if (rows === undefined) {
    throw new LoopLMError('INVALID_CONFIG', 'epochs: a task makes problems without end, so it has no epochs; set steps instead', {
      operation,
    })
  }
  config.steps = Math.max(1, Math.ceil((config.epochs * rows) / rowsPerStep))
}
