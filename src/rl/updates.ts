import { LoopLMError, toLoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { AdamW } from '../model/optimizer.js'
import type { LossBatch, RealArray, TokenSequence } from '../model/types.js'
import type { Advice } from './advice.js'
import type { Metrics, SampledCompletion, UpdateMetrics } from './events.js'
import { type Measured, meanMetrics, sharedMetrics } from './loss-metrics.js'
import { findNonFinite, nonFiniteGradient } from './non-finite.js'
import type { TrainerConfig } from './options.js'
import type { Ranks } from './ranks.js'
import { learningRateAt } from './schedule.js'
import type { StepClock } from './step-clock.js'

/** The progress of a trainer. */
export interface Position {
  /** Number of steps so far. */
  step: number
  /** Tokens sampled or read, prompts included. */
  tokens: number
  /** Number of optimizer steps that were skipped because nothing had a gradient. */
  skippedUpdates: number
}

/** This process's share of a logical batch, the batch of one optimizer step. */
export interface Portion<Loss = LossBatch> {
  /** The loss, normalized for the whole batch. undefined: this process has none of its sequences. */
  loss: Loss | undefined
  /** Number of sequences with a gradient in the whole batch. If it is 0 the update is skipped. */
  sequences: number
  /** Their tokens, prompts included. */
  tokens: number
  /** Tokens of the busiest process divided by the mean. */
  imbalance: number
}

/** The work of one step of a run. */
export interface StepWork<Loss = LossBatch> {
  /** One logical batch per optimizer step. */
  portions: Portion<Loss>[]
  /** Metrics that were measured while the step was prepared. */
  metrics: Metrics
  /** Tokens sampled or read, prompts included. */
  tokens: number
  /** All completions of the step. Empty if nothing was sampled. */
  completions: readonly SampledCompletion[]
  /** How many completions are written to completions.jsonl. */
  logged: number
}

/** The fields that every trainer's logical batch has. */
export interface LogicalBatch {
  /** Token ids, prompt and response. */
  sequences: readonly TokenSequence[]
  /** The indices of these sequences in the caller's batch. Absent: all. */
  rows?: readonly number[]
  /** Per sequence ∂L/∂ its input vectors, set once its gradient was accumulated. */
  vectorGradients?: RealArray[]
}

/** What {@link Updates} needs from a trainer. */
export interface Learner<Loss> {
  readonly model: LoopLM
  readonly optimizer: AdamW
  readonly config: TrainerConfig
  readonly advice: Advice
  readonly ranks: Ranks
  /**
   * Accumulates the gradient of a share of a logical batch.
   * @param last called before its last backward pass, if there is one
   */
  accumulate(loss: Loss, last: () => Promise<void>): Promise<Measured>
  /** The names of the parameters that an optimizer step changes. undefined: all. */
  trained(): readonly string[] | undefined
  /** Called after every optimizer step. */
  afterUpdate(): Promise<void>
}

/** Makes optimizer steps, and counts them. */
export class Updates<Loss extends LogicalBatch> {
  readonly #learner: Learner<Loss>
  readonly #position: Position

  constructor(learner: Learner<Loss>, position: Position) {
    this.#learner = learner
    this.#position = position
  }

  /**
   * Makes the optimizer steps of a step and completes its metrics.
   *
   * @param clock started with the step
   */
  async make(work: StepWork<Loss>, clock: StepClock): Promise<UpdateMetrics> {
    const position = this.#position
    const learningRate = learningRateAt(this.#learner.config, position.step)
    const made: UpdateMetrics[] = []
    const { steps } = this.#learner.optimizer
    for (const portion of work.portions) made.push(await this.#optimize(portion, work.metrics, learningRate, steps))
    position.step++
    position.tokens += work.tokens
    const means = meanMetrics(made)
    return {
      ...work.metrics,
      ...means,
      loss: means.loss ?? 0,
      grad_norm: means.grad_norm ?? 0,
      learning_rate: learningRate,
      skipped_updates: position.skippedUpdates,
      num_tokens: position.tokens,
      ...(await clock.read(work)),
    }
  }

  /** The loss of a batch and its gradients. The model's own gradients are zero before and afterwards. */
  async gradients(portion: Portion<Loss>, operation: string): Promise<{ loss: number; gradients: Map<string, RealArray> }> {
    const { model, ranks } = this.#learner
    await model.zeroGradients()
    try {
      const measured = await ranks.all('loss', () => this.#accumulate(portion.loss, undefined, operation))
      const { loss } = sharedMetrics(measured.filter((one) => one !== undefined))
      const gradients = await ranks.sumOfArrays(operation, await model.gradients())
      const bad = nonFiniteGradient(gradients)
      if (bad !== undefined) throw await this.#nonFinite(bad, portion.loss, operation)
      return { loss, gradients }
    } finally {
      await model.zeroGradients()
    }
  }

  /**
   * Makes one optimizer step, or none if no sequence of the batch has a gradient.
   * @param begun the optimizer's steps before the first update of this step
   */
  async #optimize(portion: Portion<Loss>, work: Metrics, learningRate: number, begun: number): Promise<UpdateMetrics> {
    const { model, optimizer, advice } = this.#learner
    const step = this.#position.step + 1
    await model.zeroGradients()
    if (portion.sequences === 0) {
      this.#position.skippedUpdates++
      advice.skippedUpdate(step, work)
      return { loss: 0, grad_norm: 0 }
    }
    try {
      const { gradNorm, metrics } = await this.#step(portion, learningRate)
      await this.#learner.afterUpdate()
      advice.carriedBy(optimizer.exchanged.over)
      if (work.reward !== undefined && Math.abs(metrics.loss) < 1e-6 && gradNorm > 0) advice.zeroLoss(step, gradNorm)
      return { ...metrics, grad_norm: gradNorm }
    } catch (cause) {
      await model.zeroGradients().catch(() => {}) // the first error is the one to report
      const { code, message } = toLoopLMError(cause)
      const earlier = optimizer.steps - begun
      const changed = `this update changed nothing, but ${earlier} earlier ${earlier === 1 ? 'one' : 'ones'} of the step did`
      const said = earlier === 0 ? message : message.replace('nothing was changed', changed)
      throw new LoopLMError(code, said, { operation: `step ${step}`, cause })
    }
  }

  /**
   * Computes gradients and makes the step. With several processes, gradients are exchanged during the backward pass. A process
   * that fails still takes part in the exchange, so that all throw its error.
   */
  async #step({ loss }: Portion<Loss>, learningRate: number): Promise<{ gradNorm: number; metrics: Metrics & { loss: number } }> {
    const { optimizer, ranks } = this.#learner
    const options = { learningRate, only: this.#learner.trained() }
    const together = ranks.size > 1
    const measured = await outcomeOf(() => this.#accumulate(loss, () => (together ? optimizer.exchangeDuringNext() : undefined)))
    if (!together) return { metrics: sharedMetrics([measured()!]), ...(await optimizer.step(options)) }
    const before = optimizer.exchanged.waiting
    const stepped = await outcomeOf(() => (measured.failed ? optimizer.fail() : optimizer.step(options)))
    const all = await ranks.all('loss', measured)
    ranks.waitedFor(optimizer.exchanged.waiting - before)
    return { metrics: sharedMetrics(all.filter((one) => one !== undefined)), ...stepped() }
  }

  /** Accumulates the gradient of this process's share. */
  async #accumulate(
    loss: Loss | undefined,
    last: () => Promise<void> | undefined = () => undefined,
    operation?: string,
  ): Promise<Measured | undefined> {
    if (loss === undefined) return undefined
    const own = await this.#learner.accumulate(loss, async () => last())
    if (Number.isFinite(own.metrics.loss)) return own
    throw await this.#nonFinite(`the loss is ${own.metrics.loss}`, loss, operation)
  }

  async #nonFinite(what: string, batch: Loss | undefined, operation?: string): Promise<LoopLMError> {
    const culprit = await findNonFinite(this.#learner.model, batch?.sequences ?? [])
    const message = `${what}: ${culprit}; nothing was changed. Go back to an earlier checkpoint, lower the learning rate or maxGradNorm`
    return new LoopLMError('NON_FINITE', message, { operation })
  }
}

/** Runs an action. Returns a function that returns its result or throws its error. */
async function outcomeOf<Value>(action: () => Promise<Value>): Promise<(() => Value) & { failed: boolean }> {
  try {
    const value = await action()
    return Object.assign(() => value, { failed: false })
  } catch (error) {
    const thrown = () => {
      throw error
    }
    return Object.assign(thrown, { failed: true })
  }
}
