// What the runs of both studies share: measuring time, creating bases, rounding stored numbers.
import { evaluate, type LoopLM, PretrainTrainer, type Task } from '../src/index.js'

/** CPU seconds of this process: the engine's one thread and Node's threads. */
export function cpuSeconds(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1e6
}

/** Rounds to five significant digits, for storing. */
export function short(value: number): number {
  return Number(value.toPrecision(5))
}

/** Stage I until the greedy accuracy of `check.task` with this many loops is high enough. */
export interface BaseTraining {
  /** The task that the model learns. */
  lessons: Task
  /** Options of the trainer. `steps` is the limit. */
  training: { batchSize: number; learningRate: number; entropyCoefficient: number; weightDecay: number; steps: number }
  check: { task: Task; problems: number; loops: number; accuracy: number; first: number; every: number }
}

/**
 * Trains a new model to a base, in place.
 *
 * @returns its steps, and CPU seconds of training without the checks
 * @throws Error if the accuracy was not reached
 */
export async function trainBase(
  model: LoopLM,
  seed: number,
  { lessons, training, check }: BaseTraining,
): Promise<{ steps: number; seconds: number }> {
  using trainer = new PretrainTrainer(model, { task: lessons, seed, ...training })
  let seconds = 0
  let start = cpuSeconds()
  for await (const { type, step } of trainer.run()) {
    if (type !== 'step' || step < check.first || step % check.every !== 0) continue
    seconds += cpuSeconds() - start
    const [reached] = await evaluate(model, { task: check.task, problems: check.problems, loops: [check.loops] })
    start = cpuSeconds()
    if (reached!.reward >= check.accuracy) return { steps: step, seconds: short(seconds) }
  }
  throw new Error(`base ${seed} did not reach accuracy ${check.accuracy} in ${training.steps} steps`)
}
