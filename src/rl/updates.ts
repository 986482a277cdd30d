import { LoopLMError, toLoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { AdamW } from '../model/optimizer.js'
import type { LossBatch, RealArray, TokenSequence } from '../model/types.js'
import type { Advice } from './advice.js'
import type { Metrics, SampledCompletion, UpdateMetrics } from './events.js'
import { meanMetrics } from './loss-metrics.js'
import { findNonFinite, nonFiniteGradient } from './non-finite.js'
import type { TrainerConfig } from './options.js'
import { learningRateAt } from './schedule.js'

/** How far a trainer has come. */
export interface Position {
  /** Steps made so far. */
  step: number
  /** Tokens sampled or read, prompts included. */
  tokens: number
  /** Optimizer steps that had nothing to learn from. */
  skippedUpdates: number
}

/** The work of one step of a run. */
export interface StepWork<Loss = LossBatch> {
  /** One logical batch per optimizer step. */
  losses: Loss[]
  metrics: Metrics
  /** Tokens sampled or read, prompts included. */
  tokens: number
  /** All completions of the step, none where nothing was sampled. */
  completions: readonly SampledCompletion[]
  /** How many of them are written to completions.jsonl. */
  logged: number
}

/** What {@link Updates} needs of a trainer. */
export interface Learner<Loss> {
  readonly model: LoopLM
  readonly optimizer: AdamW
  readonly config: TrainerConfig
  readonly advice: Advice
  /** Adds the gradient of a logical batch to the model's and returns `loss` and the other metrics. */
  accumulate(loss: Loss): Promise<Metrics & { loss: number }>
  /** The parameters that an optimizer step changes; undefined: all. */
  trained(): readonly string[] | undefined
  /** Called after every optimizer step. */
  afterUpdate(): Promise<void>
}

/** Makes optimizer steps, and counts them. */
export class Updates<Loss extends { sequences: readonly TokenSequence[] }> {
  readonly #learner: Learner<Loss>
  readonly #position: Position

  constructor(learner: Learner<Loss>, position: Position) {
    this.#learner = learner
    this.#position = position
  }

  /**
   * Makes the optimizer steps of a step and completes its metrics.
   *
   * @param start of the step, by `performance.now()`
   */
  async make(work: StepWork<Loss>, start: number): Promise<UpdateMetrics> {
    const position = this.#position
    const learningRate = learningRateAt(this.#learner.config, position.step)
    const made: UpdateMetrics[] = []
    for (const loss of work.losses) made.push(await this.#optimize(loss, work.metrics, learningRate))
    position.step++
    position.tokens += work.tokens
    const seconds = (performance.now() - start) / 1000
    const means = meanMetrics(made)
    return {
      ...work.metrics,
      ...means,
      loss: means.loss ?? 0,
      grad_norm: means.grad_norm ?? 0,
      learning_rate: learningRate,
      skipped_updates: position.skippedUpdates,
      num_tokens: position.tokens,
      step_time: seconds,
      tokens_per_second: work.tokens / seconds,
    }
  }

  /** The loss of a batch and its gradients; the model's own are zero before and afterwards. */
  async gradients(batch: Loss, operation: string): Promise<{ loss: number; gradients: Map<string, RealArray> }> {
    const { model } = this.#learner
    await model.zeroGradients()
    try {
      const loss = batch.sequences.length === 0 ? 0 : (await this.#learner.accumulate(batch)).loss
      if (!Number.isFinite(loss)) throw await this.#nonFinite(`the loss is ${loss}`, batch, operation)
      const gradients = await model.gradients()
      const bad = nonFiniteGradient(gradients)
      if (bad !== undefined) throw await this.#nonFinite(bad, batch, operation)
      return { loss, gradients }
    } finally {
      await model.zeroGradients()
    }
  }

  /** One optimizer step; none when no sequence of the batch has a gradient. */
  async #optimize(batch: Loss, work: Metrics, learningRate: number): Promise<UpdateMetrics> {
    const { model, optimizer, advice } = this.#learner
    const step = this.#position.step + 1
    await model.zeroGradients()
    if (batch.sequences.length === 0) {
      this.#position.skippedUpdates++
      advice.skippedUpdate(step, work)
      return { loss: 0, grad_norm: 0 }
    }
    try {
      const metrics = await this.#learner.accumulate(batch)
      const { loss } = metrics
      if (!Number.isFinite(loss)) throw await this.#nonFinite(`the loss is ${loss}`, batch)
      const { gradNorm } = await optimizer.step({ learningRate, only: this.#learner.trained() })
      await this.#learner.afterUpdate()
      if (work.reward !== undefined && Math.abs(loss) < 1e-6 && gradNorm > 0) advice.zeroLoss(step, gradNorm)
      return { ...metrics, grad_norm: gradNorm }
    } catch (cause) {
      await model.zeroGradients().catch(() => {}) // the first error is the one to report
      const { code, message } = toLoopLMError(cause)
      throw new LoopLMError(code, message, { operation: `step ${step}`, cause })
    }
  }

  async #nonFinite(what: string, batch: Loss, operation?: string): Promise<LoopLMError> {
    const culprit = await findNonFinite(this.#learner.model, batch.sequences)
    const message = `${what}: ${culprit}; nothing was changed. Go back to an earlier checkpoint, lower the learning rate or maxGradNorm`
    return new LoopLMError('NON_FINITE', message, { operation })
  }
}
