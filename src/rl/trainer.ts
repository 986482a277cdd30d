import { LoopLMError, toLoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import { AdamW } from '../model/optimizer.js'
import type { LossBatch, RealArray, TokenSequence } from '../model/types.js'
import { RunFolder, type RunRecord } from '../monitor/run-folder.js'
import type { WeightedReward } from '../tasks/rewards.js'
import { type CheckpointPart, newestCheckpoint, readTrainerState, saveCheckpoint } from './checkpoint.js'
import { plainConfig, type TrainerConfig } from './config.js'
import { answerProblems, type Evaluation, evaluationMetrics } from './evaluate.js'
import type { Metrics, TrainerEvent } from './events.js'
import { loadParameters } from './load-parameters.js'
import { meanMetrics } from './metrics.js'
import { openProblems, type ProblemSource } from './problems.js'
import { learningRateAt } from './schedule.js'

/** One logical batch as the engine takes it, with what is already known about it. */
export interface Prepared<Loss = LossBatch> {
  loss: Loss
  metrics: Metrics
}

/** The work of one step of `run`. */
export interface StepWork<Loss = LossBatch> {
  /** One logical batch per optimizer step. */
  losses: Loss[]
  metrics: Metrics
  /** Tokens sampled or read, prompts included. */
  tokens: number
  /** Lines for completions.jsonl, without the step. */
  completions: Record<string, unknown>[]
}

/**
 * What all trainers share: optimizer steps, the run with its evaluations and checkpoints, and resuming. A subclass says which loss
 * is minimised and where its batches come from.
 */
export abstract class Trainer<
  Config extends TrainerConfig,
  Batch,
  Loss extends { sequences: readonly TokenSequence[] } = LossBatch,
> {
  readonly model: LoopLM
  /** The options with all defaults filled in. */
  readonly config: Readonly<Config>
  readonly optimizer: AdamW
  /** The trainer as configuration files and checkpoints call it. */
  readonly name: string
  #step = 0
  #tokens = 0
  #skippedUpdates = 0
  #warnedAboutFlatGroups = false
  #busy = false
  #source: ProblemSource | undefined

  constructor(name: string, model: LoopLM, config: Config) {
    this.name = name
    this.model = model
    this.config = config
    this.optimizer = new AdamW(model, {
      betas: [config.adamBetas[0], config.adamBetas[1]],
      eps: config.adamEps,
      weightDecay: config.weightDecay,
      maxGradNorm: config.maxGradNorm,
    })
  }

  /** Steps made so far. */
  get step(): number {
    return this.#step
  }

  /**
   * Makes one optimizer step on a given batch, at the learning rate that the schedule has for the current step.
   *
   * @returns `loss`, `grad_norm` (before clipping), `learning_rate` and the other metrics
   * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the field of the batch; NON_FINITE naming step and parameter, with
   *   the parameters unchanged
   */
  async update(batch: Batch): Promise<Metrics> {
    return this.#exclusively('update', async () => {
      const start = performance.now()
      const { loss, metrics } = await this.prepare(batch, `${this.constructor.name}.update`)
      const tokens = loss.sequences.reduce((sum, sequence) => sum + sequence.length, 0)
      return this.#finishStep({ losses: [loss], metrics, tokens, completions: [] }, start)
    })
  }

  /**
   * The loss of a batch and its gradients before clipping. Neither parameters nor optimizer change; gradients that the caller
   * had accumulated on the model are forgotten.
   *
   * @returns `gradients` has every parameter by its Hugging Face name, in the shape of the parameter, row-major
   * @throws LoopLMError as {@link Trainer.update}
   */
  async gradients(batch: Batch): Promise<{ loss: number; gradients: Map<string, RealArray> }> {
    return this.#exclusively('gradients', async () => {
      const { loss: lossBatch } = await this.prepare(batch, `${this.constructor.name}.gradients`)
      await this.model.zeroGradients()
      try {
        const loss = lossBatch.sequences.length === 0 ? 0 : (await this.accumulate(lossBatch)).loss!
        return { loss, gradients: await this.model.gradients() }
      } finally {
        await this.model.zeroGradients()
      }
    })
  }

  /**
   * Trains for `steps` steps on the task or dataset of the options and yields what happens. With a `runDir`, metrics, completions and
   * checkpoints are written, the last one when the run ends or is aborted; the abort takes effect between steps, or while sampling.
   *
   * @param options.signal ends the run after the current step
   * @throws LoopLMError INVALID_CONFIG when there is nothing to train on, NON_FINITE naming the step
   */
  async *run(options: { signal?: AbortSignal | undefined } = {}): AsyncGenerator<TrainerEvent, void, undefined> {
    const { signal } = options
    const { steps, evalEvery, saveEvery, onStep, onEval } = this.config
    const source = this.#problems()
    const folder = await this.#open()
    let metrics: Metrics = {}
    let saved = -1
    while (this.#step < steps && signal?.aborted !== true) {
      const made = await this.#runStep(source, folder, signal)
      if (made === undefined) break
      metrics = made
      const event: TrainerEvent = { type: 'step', step: this.#step, metrics }
      await onStep?.(event)
      yield event
      if (evalEvery > 0 && this.#step % evalEvery === 0) {
        const event: TrainerEvent = { type: 'eval', step: this.#step, metrics: evaluationMetrics(await this.evaluate()) }
        await folder?.metrics({ type: 'eval', step: this.#step, ...event.metrics })
        await onEval?.(event)
        yield event
      }
      if (folder !== undefined && saveEvery > 0 && this.#step % saveEvery === 0) {
        saved = this.#step
        yield { type: 'checkpoint', step: saved, metrics: {}, path: await this.#save(folder, source) }
      }
    }
    if (folder !== undefined && saved !== this.#step) {
      yield { type: 'checkpoint', step: this.#step, metrics: {}, path: await this.#save(folder, source) }
    }
    yield { type: 'done', step: this.#step, metrics, aborted: this.#step < steps }
  }

  /**
   * Answers held-out problems of the task, or rows of `evalDataset`, greedily with several loop counts.
   *
   * @param options.problems default `evalProblems`
   * @param options.loops loop counts; default `evalLoops`, else 1 to the model's
   * @returns per loop count the mean reward, which is the accuracy when rewards are 0 and 1
   *
   * @example
   * ```ts
   * const [early, , , full] = await trainer.evaluate({ problems: 1000, loops: [1, 2, 3, 4] })
   * ```
   */
  async evaluate(
    options: { problems?: number; loops?: readonly number[]; signal?: AbortSignal | undefined } = {},
  ): Promise<Evaluation[]> {
    const { evalProblems, evalLoops } = this.config
    const source = this.#problems()
    return answerProblems(this.model, source, this.rewardFunctions(source), {
      problems: options.problems ?? evalProblems,
      loops: options.loops ?? evalLoops,
      maxNewTokens: this.maxNewTokens,
      signal: options.signal,
    })
  }

  /** Gives the optimizer's memory back; the model stays. */
  dispose(): void {
    this.optimizer.dispose()
  }

  /** `using trainer = …` disposes at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** Adds the gradient of a logical batch to the model's and returns `loss` and the other metrics. */
  protected abstract accumulate(loss: Loss): Promise<Metrics>
  /** The parameters that an optimizer step changes; undefined: all. */
  protected get trained(): readonly string[] | undefined {
    return undefined
  }
  /** Longest completion, where the options say so. */
  protected abstract readonly maxNewTokens: number | undefined
  /** Turns a caller's batch into the engine's. */
  protected abstract prepare(batch: Batch, operation: string): Promise<Prepared<Loss>>
  /** Finds the batches of the current step. */
  protected abstract work(source: ProblemSource, signal: AbortSignal | undefined): Promise<StepWork<Loss>>
  /** Scores completions. */
  protected abstract rewardFunctions(source: ProblemSource): readonly WeightedReward[]
  /** Called once before a run's first step, with the checkpoint it resumes from. */
  protected async start(_checkpoint: string | undefined): Promise<void> {}
  /** Called after every optimizer step. */
  protected async afterUpdate(): Promise<void> {}
  /** What a checkpoint holds beside the model, the optimizer and the state. */
  protected checkpointParts(): CheckpointPart[] {
    return []
  }

  /** Tells the user something that is no error. */
  protected warn(message: string): void {
    const { onWarning } = this.config
    if (onWarning === undefined) process.emitWarning(message, { type: 'LoopLMWarning' })
    else onWarning(message)
  }

  /** One step of a run with its records; undefined when sampling was aborted. */
  async #runStep(
    source: ProblemSource,
    folder: RunFolder | undefined,
    signal: AbortSignal | undefined,
  ): Promise<Metrics | undefined> {
    return this.#exclusively('run', async () => {
      const start = performance.now()
      let work: StepWork<Loss>
      try {
        work = await this.work(source, signal)
      } catch (error) {
        if (signal?.aborted === true && toLoopLMError(error).code === 'ABORTED') return undefined
        throw error
      }
      const metrics = await this.#finishStep(work, start)
      const records = work.completions.map((completion): RunRecord => ({ step: this.#step, ...completion }))
      if (records.length > 0) await folder?.completions(records)
      await folder?.metrics({ type: 'step', step: this.#step, ...metrics })
      return metrics
    })
  }

  /** Makes the optimizer steps of a step and completes its metrics. */
  async #finishStep(work: StepWork<Loss>, start: number): Promise<Metrics> {
    const learningRate = learningRateAt(this.config, this.#step)
    const made: Metrics[] = []
    for (const loss of work.losses) made.push(await this.#optimize(loss, learningRate))
    this.#step++
    this.#tokens += work.tokens
    const seconds = (performance.now() - start) / 1000
    return {
      ...work.metrics,
      ...meanMetrics(made),
      learning_rate: learningRate,
      skipped_updates: this.#skippedUpdates,
      num_tokens: this.#tokens,
      step_time: seconds,
      tokens_per_second: work.tokens / seconds,
    }
  }

  /** One optimizer step; none when no sequence of the batch has a gradient. */
  async #optimize(batch: Loss, learningRate: number): Promise<Metrics> {
    if (batch.sequences.length === 0) {
      this.#skippedUpdates++
      this.#warnAboutFlatGroups()
      return { loss: 0, grad_norm: 0 }
    }
    try {
      const metrics = await this.accumulate(batch)
      const { gradNorm } = await this.optimizer.step({ learningRate, only: this.trained })
      await this.afterUpdate()
      return { ...metrics, grad_norm: gradNorm }
    } catch (cause) {
      await this.model.zeroGradients().catch(() => {}) // the first error is the one to report
      const { code, message } = toLoopLMError(cause)
      throw new LoopLMError(code, message, { operation: `step ${this.#step + 1}`, cause })
    }
  }

  #warnAboutFlatGroups(): void {
    if (this.#warnedAboutFlatGroups) return
    this.#warnedAboutFlatGroups = true
    this.warn(
      `step ${this.#step + 1}: in every group all completions earned the same reward, so there is nothing to compare: no update was made and ` +
        'the loss is 0. Use problems that are solved sometimes but not always, raise groupSize or temperature, give partial ' +
        'rewards, or start from a better model. Later ones are only counted (skipped_updates, frac_reward_zero_std).',
    )
  }

  #problems(): ProblemSource {
    this.#source ??= openProblems(this.constructor.name, this.model, this.config)
    return this.#source
  }

  /** Resumes and opens the run's folder. */
  async #open(): Promise<RunFolder | undefined> {
    const { runDir, resume } = this.config
    const checkpoint = await this.#findCheckpoint()
    if (checkpoint !== undefined) await this.#load(checkpoint)
    else if (runDir !== undefined && resume === false && this.#step === 0) await RunFolder.requireNew(runDir)
    await this.start(checkpoint)
    if (runDir === undefined) return undefined
    return RunFolder.open(runDir, { config: { trainer: this.name, ...plainConfig(this.config) }, step: this.#step })
  }

  async #findCheckpoint(): Promise<string | undefined> {
    const { runDir, resume } = this.config
    if (resume === false) return undefined
    if (typeof resume === 'string') return resume
    if (runDir !== undefined) return newestCheckpoint(runDir)
    throw new LoopLMError('INVALID_CONFIG', 'resume: true needs runDir; or give the path of a checkpoint', {
      operation: this.constructor.name,
    })
  }

  async #load(checkpoint: string): Promise<void> {
    const state = await readTrainerState(checkpoint, this.name)
    await loadParameters(this.model, checkpoint)
    await this.optimizer.load(`${checkpoint}/optimizer.safetensors`)
    this.#step = state.step
    this.#tokens = state.tokens
    this.#skippedUpdates = state.skippedUpdates
    const config = plainConfig(this.config)
    const changed = [...new Set([...Object.keys(state.config), ...Object.keys(config)])].filter(
      (field) => JSON.stringify(state.config[field]) !== JSON.stringify(config[field]),
    )
    if (changed.length > 0)
      this.warn(`resumed from ${checkpoint} with other values of ${changed.join(', ')} than it was written with`)
  }

  async #save(folder: RunFolder, source: ProblemSource): Promise<string> {
    const parts: CheckpointPart[] = [
      (to) => this.model.save(to),
      (to) => this.optimizer.save(`${to}/optimizer.safetensors`),
      async (to) => {
        if (this.model.tokenizer === undefined) await source.tokenizer.save(to)
      },
      ...this.checkpointParts(),
    ]
    const config = plainConfig(this.config)
    const state = {
      format: 1,
      trainer: this.name,
      step: this.#step,
      tokens: this.#tokens,
      skippedUpdates: this.#skippedUpdates,
      config,
    } as const
    return saveCheckpoint(folder.path, state, parts, this.config.keepCheckpoints)
  }

  /** Two updates at a time would mix their gradients. */
  async #exclusively<Result>(method: string, action: () => Promise<Result>): Promise<Result> {
    if (this.#busy) {
      const message = 'another update, gradients or run of this trainer has not finished; await it first'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: `${this.constructor.name}.${method}` })
    }
    this.#busy = true
    try {
      return await action()
    } finally {
      this.#busy = false
    }
  }
}
