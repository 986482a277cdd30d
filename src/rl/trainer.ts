import '../dispose.js'
import { join } from 'node:path'
import { promptProblem } from '../data/rows.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import type { FolderPart } from '../files/replace-folder.js'
import { adaptableModules, checkAdapter, sameAdapter } from '../model/adapter.js'
import { positionProblem } from '../model/checks.js'
import { LoopLM } from '../model/model.js'
import { AdamW } from '../model/optimizer.js'
import type { LossBatch, RealArray, TokenSequence } from '../model/types.js'
import { writeReport } from '../monitor/report.js'
import { RunFolder, type RunRecord } from '../monitor/run-folder.js'
import { lockRun } from '../monitor/run-lock.js'
import type { WeightedReward } from '../tasks/rewards.js'
import { memory } from '../tensor/devices.js'
import { checkInstance, checkOptions } from '../validation/arguments.js'
import { Advice } from './advice.js'
import {
  changesSince,
  checkpointPath,
  checkUpdates,
  findCheckpoint,
  newestCheckpoint,
  readTrainerState,
  saveCheckpoint,
  setAside,
  settle,
  type TrainerState,
} from './checkpoint.js'
import { plainConfig, type TrainerConfig } from './config.js'
import { type DataDescription, describeProblems } from './data.js'
import { answerProblems, type Evaluation, evaluationMetrics, openEvalTasks } from './evaluate.js'
import type { Metrics, SampledCompletion, TrainerEvent, UpdateMetrics } from './events.js'
import { loadTrained, saveTrained } from './load-parameters.js'
import { meanMetrics } from './metrics.js'
import { findNonFinite, nonFiniteGradient } from './non-finite.js'
import { OngoingRun } from './ongoing-run.js'
import { openProblems, type Problem, type ProblemSource, promptTokens } from './problems.js'
import { learningRateAt } from './schedule.js'
import { Selection } from './selection.js'
import { inTurn } from './turns.js'

/** What a run is told beside the trainer's options. */
interface RunOptions {
  signal?: AbortSignal | undefined
  config?: Record<string, unknown> | undefined
}

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
  /** All completions of the step, none where nothing was sampled. */
  completions: readonly SampledCompletion[]
  /** How many of them are written to completions.jsonl. */
  logged: number
}

/**
 * What all trainers share: optimizer steps, the run with its evaluations and checkpoints, and resuming. A subclass says which loss
 * is minimised and where its batches come from.
 */
export abstract class Trainer<
  Config extends TrainerConfig,
  Batch extends { sequences: readonly TokenSequence[] },
  Loss extends { sequences: readonly TokenSequence[] } = LossBatch,
> {
  readonly model: LoopLM
  /** The options with all defaults filled in. */
  readonly config: Readonly<Config>
  readonly optimizer: AdamW
  /** The trainer as configuration files and checkpoints call it. */
  readonly name: string
  /** What a run tells its user that is no error. */
  protected readonly advice = new Advice((message) => this.warn(message))
  #step = 0
  #tokens = 0
  #skippedUpdates = 0
  #data: DataDescription | undefined
  readonly #selection: Selection
  readonly #ongoing = new OngoingRun()
  #problems: ProblemSource | undefined
  #refused: LoopLMError | undefined // of a resume that was refused when parts of the checkpoint had been taken over

  constructor(name: string, model: LoopLM, config: Config) {
    checkInstance(model, 'model', LoopLM, 'LoopLM.create and LoopLM.fromPretrained resolve to', new.target.name)
    this.name = name
    this.model = model
    this.config = config
    this.#selection = new Selection(config)
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

  /** The evaluation with the best `metricForBestModel` so far, and its checkpoint where there is a `runDir`. */
  get best(): { step: number; value: number; path?: string } | undefined {
    const { best } = this.#selection
    const { runDir } = this.config
    return best === undefined || runDir === undefined ? best : { ...best, path: checkpointPath(runDir, best.step) }
  }

  /**
   * Makes one optimizer step on a given batch, at the learning rate that the schedule has for the current step. The batch is read before
   * the call returns its promise. Calls of `update` and `gradients` on one model, also by several trainers, are carried out one after the
   * other in the order in which they were made. Gradients that were accumulated on the model before play no part and are forgotten.
   *
   * @returns `loss`, `grad_norm` (before clipping), `learning_rate` and the other metrics
   * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the field of the batch; NON_FINITE naming step and parameter, with
   *   the parameters unchanged
   */
  async update(batch: Batch): Promise<UpdateMetrics> {
    const operation = `${this.constructor.name}.update`
    const taken = this.#take(batch, operation)
    return inTurn(this.model, operation, async () => {
      const start = performance.now()
      await this.#adapt()
      const { loss, metrics } = await this.prepare(taken, operation)
      const tokens = loss.sequences.reduce((sum, sequence) => sum + sequence.length, 0)
      return this.#finishStep({ losses: [loss], metrics, tokens, completions: [], logged: 0 }, start)
    })
  }

  /**
   * The loss of a batch and its gradients before clipping. Parameters, optimizer and the trainer's step stay as they are. The model's
   * own gradients are the place of the computation: what `model.backward` had accumulated there is zero afterwards, so read
   * `model.gradients()` before. Calls wait for each other as those of `update` do.
   *
   * @returns `gradients` has every trained parameter by its Hugging Face name, in the shape of the parameter, row-major
   * @throws LoopLMError as `update` does
   */
  async gradients(batch: Batch): Promise<{ loss: number; gradients: Map<string, RealArray> }> {
    const operation = `${this.constructor.name}.gradients`
    const taken = this.#take(batch, operation)
    return inTurn(this.model, operation, async () => {
      await this.#adapt()
      const { loss: lossBatch } = await this.prepare(taken, operation)
      await this.model.zeroGradients()
      try {
        const loss = lossBatch.sequences.length === 0 ? 0 : (await this.accumulate(lossBatch)).loss
        if (!Number.isFinite(loss)) throw await this.#nonFinite(`the loss is ${loss}`, lossBatch, operation)
        const gradients = await this.model.gradients()
        const bad = nonFiniteGradient(gradients)
        if (bad !== undefined) throw await this.#nonFinite(bad, lossBatch, operation)
        return { loss, gradients }
      } finally {
        await this.model.zeroGradients()
      }
    })
  }

  /**
   * Trains for `steps` steps on the data of the options and yields what happens. A model without a tokenizer gets that of the data. With a
   * `runDir`, metrics, completions and checkpoints are written, the last one when the run ends, is aborted, or when the loop over its events
   * is left with `break` or an error; the abort takes effect between steps, or while sampling, scoring or evaluating. The folder is locked
   * meanwhile. An iterator that is dropped without `return()` gives it back when it is collected, when `run` is called again, or with
   * `dispose`.
   *
   * @param options.signal ends the run after the current step
   * @param options.config replaces config.yaml of `runDir` once the run, or the checkpoint that it resumes from, is accepted; without it the
   *   options are written there, unless the file exists
   * @throws LoopLMError INVALID_CONFIG when there is nothing to train on, NON_FINITE naming step and tensor, INVALID_FILE when the run's
   *   folder cannot be written, INVALID_ARGUMENT when another run trains in it
   */
  run(options: RunOptions = {}): AsyncGenerator<TrainerEvent, void, undefined> {
    const { runDir } = this.config
    const warn = (message: string) => this.warn(message)
    const lock = () => (runDir === undefined ? undefined : lockRun(runDir, warn))
    return this.#ongoing.begin(lock, () => this.#run(options), warn)
  }

  async *#run({ signal, config }: RunOptions): AsyncGenerator<TrainerEvent, void, undefined> {
    const { steps, saveEvery, onStep, onEval } = this.config
    const { folder, resumed } = await this.#open(signal, config)
    let metrics: Metrics = {}
    let saved = resumed ? this.#step : -1
    let left = true // the caller has left the loop over the events
    try {
      for (;;) {
        const evaluation = this.#evaluationIsDue() ? await this.#evaluateStep(folder, signal) : undefined
        if (evaluation !== undefined) {
          const event: TrainerEvent = { type: 'eval', step: this.#step, metrics: evaluation }
          await onEval?.(event)
          yield event
        }
        const ends = this.#step >= steps || signal?.aborted === true || this.#selection.exhausted
        const due = this.#step > 0 && saveEvery > 0 && this.#step % saveEvery === 0
        if (folder !== undefined && saved !== this.#step && (ends || due || this.#selection.holds(this.#step))) {
          saved = this.#step
          yield { type: 'checkpoint', step: saved, metrics: {}, path: await this.#inTurn(() => this.#save(folder)) }
        }
        if (ends) break
        const made = await this.#runStep(folder, signal)
        if (made === undefined) continue
        metrics = made.metrics
        const event: TrainerEvent = { type: 'step', step: this.#step, ...made }
        await onStep?.(event)
        yield event
      }
      left = false
    } catch (error) {
      left = false
      throw error
    } finally {
      if (left && folder !== undefined && saved !== this.#step) await this.#inTurn(() => this.#save(folder))
      if (folder !== undefined) await this.#report(folder)
    }
    const stoppedEarly = this.#step < steps && this.#selection.exhausted
    const aborted = this.#step < steps && !stoppedEarly
    if (!aborted) {
      const loaded = await this.#inTurn(() => this.#loadBest())
      this.advice.fallen(this.#selection.falls(), loaded)
    }
    yield { type: 'done', step: this.#step, metrics, aborted, stoppedEarly }
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
    checkOptions(options, { problems: true, loops: true, signal: true }, `${this.constructor.name}.evaluate`)
    const { evalProblems, evalLoops } = this.config
    const source = this.problems
    return answerProblems(this.model, source, this.rewardFunctions(source), {
      problems: options.problems ?? evalProblems,
      loops: options.loops ?? evalLoops,
      maxNewTokens: this.maxNewTokens,
      signal: options.signal,
    })
  }

  /** Gives the optimizer's memory back, and the folder of a run that was not ended; the model stays. */
  dispose(): void {
    this.#ongoing.release()
    this.optimizer.dispose()
  }

  /** `using trainer = …` disposes at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** Adds the gradient of a logical batch to the model's and returns `loss` and the other metrics. */
  protected abstract accumulate(loss: Loss): Promise<Metrics & { loss: number }>
  /** The parameters that an optimizer step changes; undefined: all. */
  protected get trained(): readonly string[] | undefined {
    return undefined
  }
  /** Longest completion, where the options say so. */
  protected abstract readonly maxNewTokens: number | undefined
  /** A copy of what the trainer knows of a caller's batch, its sequences checked; made before anything is awaited. */
  protected abstract take(batch: Batch, operation: string): Batch
  /** Turns what `take` made of a batch into the engine's. */
  protected abstract prepare(batch: Batch, operation: string): Promise<Prepared<Loss>>
  /** Finds the batches of the current step. */
  protected abstract work(signal: AbortSignal | undefined): Promise<StepWork<Loss>>
  /** Scores completions. */
  protected abstract rewardFunctions(source: ProblemSource): readonly WeightedReward[]
  /** Opens what the run trains on. */
  protected async openData(signal: AbortSignal | undefined): Promise<DataDescription> {
    const rows = { problemOf: (row: Problem) => this.problemOf(row), read: (row: Problem) => this.readRow(row) }
    return describeProblems(this.problems, this.config, rows, signal)
  }
  /** What is wrong with a row of the dataset, or undefined. */
  protected problemOf(row: Problem): string | undefined {
    return promptProblem(row)
  }
  /** Turns a row into tokens, as a step will. @throws LoopLMError INVALID_ARGUMENT naming row and field */
  protected readRow(row: Problem): void {
    promptTokens(this.problems, row)
  }
  /** One evaluation's metrics, those of `evalTasks` apart. */
  protected async evaluateData(signal: AbortSignal | undefined): Promise<Metrics> {
    return this.#answersProblems ? evaluationMetrics(await this.evaluate({ signal })) : {}
  }
  /** Refuses what `evaluateData` would refuse, before anything is trained. */
  protected checkEvaluations(): void {
    if (!this.#answersProblems) return
    const { task } = this.problems
    for (const row of this.problems.heldOut(task === undefined ? this.config.evalProblems : 1)) this.readRow(row)
  }
  /** Called once before a run's first step, with the checkpoint it resumes from. */
  protected async start(_checkpoint: string | undefined): Promise<void> {}
  /** Called after every optimizer step. */
  protected async afterUpdate(): Promise<void> {}
  /** What a checkpoint holds beside the model, the optimizer and the state. */
  protected checkpointParts(): FolderPart[] {
    return []
  }

  /** The task or dataset of the options. */
  protected get problems(): ProblemSource {
    this.#problems ??= openProblems(this.constructor.name, this.model, this.config)
    return this.#problems
  }

  /** Tasks and datasets are asked questions; a dataset without held-out rows only where there is nothing else to ask. */
  get #answersProblems(): boolean {
    const { task, evalDataset, evalTasks } = this.config
    return task !== undefined || evalDataset !== undefined || evalTasks === undefined
  }

  /** `evalTasks` in the tokens that the run trains on. */
  #evalTasks() {
    return openEvalTasks(this.config.evalTasks ?? {}, this.#data!.tokenizer, this.model.config.max_position_embeddings)
  }

  async #evaluateAll(signal: AbortSignal | undefined): Promise<Metrics> {
    const { evalProblems: problems, evalLoops: loops } = this.config
    const metrics = await this.evaluateData(signal)
    for (const [name, source, reward] of this.#evalTasks()) {
      const evaluations = await answerProblems(this.model, source, [reward], { problems, loops, signal })
      Object.assign(metrics, evaluationMetrics(evaluations, name))
    }
    return metrics
  }

  /** Tells the user something that is no error. */
  protected warn(message: string): void {
    const { onWarning } = this.config
    if (onWarning === undefined) process.emitWarning(message, { type: 'LoopLMWarning' })
    else onWarning(message)
  }

  /** A copy of a caller's batch whose sequences the model can read. */
  #take(batch: Batch, operation: string): Batch {
    const taken = this.take(batch, operation)
    const most = this.model.config.max_position_embeddings
    for (const [i, { length }] of taken.sequences.entries()) {
      const problem = positionProblem(`sequences[${i}]`, length, most)
      if (problem !== undefined) throw new LoopLMError('INVALID_ARGUMENT', problem, { operation })
    }
    return taken
  }

  #evaluationIsDue(): boolean {
    const { evalEvery, evalOnStart } = this.config
    if (evalEvery === 0 || this.#selection.state.evaluated === this.#step) return false
    return this.#step === 0 ? evalOnStart : this.#step % evalEvery === 0
  }

  /** Evaluates and records; undefined when it was aborted, in which case a resumed run does it again. */
  async #evaluateStep(folder: RunFolder | undefined, signal: AbortSignal | undefined): Promise<Metrics | undefined> {
    const metrics = await unlessAborted(signal, () => this.#evaluateAll(signal))
    if (metrics === undefined) return undefined
    this.#selection.add(this.#step, metrics)
    await folder?.metrics({ type: 'eval', step: this.#step, ...metrics })
    this.advice.cutOffEvaluation(this.#step, metrics, this.#problems?.stop ?? this.model.endTokens)
    return metrics
  }

  /** One step of a run with its records; undefined when sampling was aborted. */
  async #runStep(
    folder: RunFolder | undefined,
    signal: AbortSignal | undefined,
  ): Promise<{ metrics: Metrics; completions: readonly SampledCompletion[] } | undefined> {
    return this.#inTurn(async () => {
      if (signal?.aborted) return undefined // while it waited
      const start = performance.now()
      const work = await unlessAborted(signal, () => this.work(signal)).catch((cause: unknown) => {
        const { code, message } = toLoopLMError(cause)
        if (code !== 'NON_FINITE') throw cause
        throw new LoopLMError(code, message, { operation: `step ${this.#step + 1}`, cause })
      })
      if (work === undefined) return undefined
      const metrics = { ...(await this.#finishStep(work, start)), ...memoryMetrics() }
      const { completions, logged } = work
      if (completions.length > 0) {
        const { problems: source, maxNewTokens = source.maxNewTokens } = this
        this.advice.cutOff(this.#step, metrics['completions/clipped_ratio'], maxNewTokens, source)
      }
      const records = completions.slice(0, logged).map((completion): RunRecord => ({ step: this.#step, ...completion }))
      if (records.length > 0) await folder?.completions(records)
      await folder?.metrics({ type: 'step', step: this.#step, ...metrics })
      return { metrics, completions }
    })
  }

  /** Makes the optimizer steps of a step and completes its metrics. */
  async #finishStep(work: StepWork<Loss>, start: number): Promise<UpdateMetrics> {
    const learningRate = learningRateAt(this.config, this.#step)
    const made: UpdateMetrics[] = []
    for (const loss of work.losses) made.push(await this.#optimize(loss, work.metrics, learningRate))
    this.#step++
    this.#tokens += work.tokens
    const seconds = (performance.now() - start) / 1000
    const means = meanMetrics(made)
    return {
      ...work.metrics,
      ...means,
      loss: means.loss ?? 0,
      grad_norm: means.grad_norm ?? 0,
      learning_rate: learningRate,
      skipped_updates: this.#skippedUpdates,
      num_tokens: this.#tokens,
      step_time: seconds,
      tokens_per_second: work.tokens / seconds,
    }
  }

  /** One optimizer step; none when no sequence of the batch has a gradient. */
  async #optimize(batch: Loss, work: Metrics, learningRate: number): Promise<UpdateMetrics> {
    await this.model.zeroGradients()
    if (batch.sequences.length === 0) {
      this.#skippedUpdates++
      this.advice.skippedUpdate(this.#step + 1, work)
      return { loss: 0, grad_norm: 0 }
    }
    try {
      const metrics = await this.accumulate(batch)
      const { loss } = metrics
      if (!Number.isFinite(loss)) throw await this.#nonFinite(`the loss is ${loss}`, batch)
      const { gradNorm } = await this.optimizer.step({ learningRate, only: this.trained })
      await this.afterUpdate()
      if (work.reward !== undefined && Math.abs(loss) < 1e-6 && gradNorm > 0) this.advice.zeroLoss(this.#step + 1, gradNorm)
      return { ...metrics, grad_norm: gradNorm }
    } catch (cause) {
      await this.model.zeroGradients().catch(() => {}) // the first error is the one to report
      const { code, message } = toLoopLMError(cause)
      throw new LoopLMError(code, message, { operation: `step ${this.#step + 1}`, cause })
    }
  }

  async #nonFinite(what: string, batch: Loss, operation?: string): Promise<LoopLMError> {
    const culprit = await findNonFinite(this.model, batch.sequences)
    const message = `${what}: ${culprit}; nothing was changed. Go back to an earlier checkpoint, lower the learning rate or maxGradNorm`
    return new LoopLMError('NON_FINITE', message, { operation })
  }

  /** Gives the model the adapter of the options, unless it has it. */
  async #adapt(): Promise<void> {
    if (this.#refused !== undefined) throw this.#refused
    const { lora, seed } = this.config
    if (lora === undefined) return
    const own = this.model.adapter
    if (own === undefined) return this.model.addAdapter({ ...lora, seed })
    const { modules: targetModules } = checkAdapter(lora, this.constructor.name, adaptableModules(this.model.architecture))
    if (sameAdapter(own, { ...lora, targetModules })) return
    const message =
      'lora: the model has an adapter of another rank, alpha or other modules; remove it, or leave lora out to train it'
    throw new LoopLMError('INVALID_CONFIG', message, { operation: this.constructor.name })
  }

  /** Resumes and opens the run's folder. */
  async #open(
    signal: AbortSignal | undefined,
    config: RunOptions['config'],
  ): Promise<{ folder: RunFolder | undefined; resumed: boolean }> {
    const { runDir, resume, loadBestModelAtEnd } = this.config
    if (loadBestModelAtEnd && runDir === undefined) {
      const message = 'loadBestModelAtEnd: needs runDir, where the best checkpoint is kept'
      throw new LoopLMError('INVALID_CONFIG', message, { operation: this.constructor.name })
    }
    if (runDir !== undefined) await settle(runDir).catch(() => {}) // a folder that cannot be written is refused below
    const checkpoint = await findCheckpoint(resume, runDir, this.constructor.name)
    const state = checkpoint === undefined ? undefined : await readTrainerState(checkpoint, this.name)
    await this.#inTurn(() => this.#adapt())
    const begins = this.#step === 0 && this.#selection.state.evaluated < 0
    if (checkpoint === undefined && runDir !== undefined && resume === false && begins) await RunFolder.requireNew(runDir)
    this.#data = await this.openData(signal)
    this.#takeTokenizer(this.#data.tokenizer)
    if (this.config.evalEvery > 0) {
      this.checkEvaluations()
      this.#evalTasks()
    }
    await this.#inTurn(() => (checkpoint === undefined ? this.start(undefined) : this.#resume(checkpoint, state!)))
    const folder = runDir === undefined ? undefined : await this.#openFolder(runDir, config)
    return { folder, resumed: checkpoint !== undefined && checkpoint === (runDir && checkpointPath(runDir, this.#step)) }
  }

  /** A model without a tokenizer gets that of the data, so that it is saved and generates with what it was trained on. */
  #takeTokenizer(tokenizer: Tokenizer): void {
    const { model } = this
    if (model.tokenizer === undefined) model.tokenizer = tokenizer
    else if (!model.namesEndTokens) model.takeSpecialTokens(tokenizer)
    this.advice.tokens(model, tokenizer)
  }

  /**
   * Takes over all of a checkpoint, or, where a part of it is damaged, leaves model and position as they were. Optimizer and teacher
   * cannot go back: a trainer whose optimizer was replaced by then refuses any further use.
   */
  async #resume(checkpoint: string, state: TrainerState): Promise<void> {
    using before = await this.model.clone()
    const [step, tokens, skippedUpdates, selection] = [this.#step, this.#tokens, this.#skippedUpdates, this.#selection.state]
    let replaced = false
    try {
      await loadTrained(this.model, checkpoint)
      await this.optimizer.load(`${checkpoint}/optimizer.safetensors`)
      replaced = true
      checkUpdates(checkpoint, state, this.optimizer.steps)
      this.#goOnFrom(checkpoint, state)
      await this.start(checkpoint)
    } catch (cause) {
      await this.model.copyParametersFrom(before)
      ;[this.#step, this.#tokens, this.#skippedUpdates, this.#selection.state] = [step, tokens, skippedUpdates, selection]
      if (!replaced) throw cause
      const { code, message } = toLoopLMError(cause)
      const remedy = 'the trainer has taken over parts of the checkpoint: make a new one'
      this.#refused = new LoopLMError(code, `${message}; ${remedy}`, { cause })
      throw this.#refused
    }
  }

  async #openFolder(runDir: string, given: RunOptions['config']): Promise<RunFolder> {
    const config = given ?? { trainer: this.name, ...plainConfig(this.config) }
    const replace = given !== undefined
    const begins = this.#step === 0 && this.#selection.state.evaluated < 0
    const step = begins ? -1 : this.#step
    const folder = await RunFolder.open(runDir, { config, replace, step, warn: (message) => this.warn(message) })
    const aside = await setAside(runDir, this.#step)
    if (aside.length > 0) {
      const names = aside.map((step) => `step-${step}`).join(', ')
      this.warn(`the run goes on from step ${this.#step}; the later ${names} of ${runDir} were renamed to given-up-step-…`)
    }
    return folder
  }

  #goOnFrom(checkpoint: string, state: TrainerState): void {
    this.#step = state.step
    this.#tokens = state.tokens
    this.#skippedUpdates = state.skippedUpdates
    this.#selection.state = state
    for (const message of changesSince(checkpoint, state, plainConfig(this.config), this.#data)) this.warn(message)
  }

  async #save(folder: RunFolder): Promise<string> {
    const parts: FolderPart[] = [
      (to) => saveTrained(this.model, to),
      (to) => this.optimizer.save(`${to}/optimizer.safetensors`),
      async (to) => {
        if (this.model.adapter !== undefined) await this.model.tokenizer?.save(to)
      },
      ...this.checkpointParts(),
    ]
    const config = plainConfig(this.config)
    const { fingerprint, description } = this.#data!
    const state = {
      trainer: this.name,
      step: this.#step,
      tokens: this.#tokens,
      skippedUpdates: this.#skippedUpdates,
      data: { fingerprint, description },
      ...this.#selection.state,
      config,
    } as const
    try {
      await folder.sync()
      return await saveCheckpoint(folder.path, state, parts, this.config.keepCheckpoints)
    } catch (cause) {
      const newest = await newestCheckpoint(folder.path).catch(() => undefined)
      const left = newest === undefined ? 'the run has no checkpoint yet' : `the newest checkpoint is ${newest}`
      const { code, message } = toLoopLMError(cause)
      throw new LoopLMError(code, `${message}; ${left}`, { cause })
    }
  }

  /** Returns the step whose parameters the model got, or has already; undefined where the best ones are not asked for. */
  async #loadBest(): Promise<number | undefined> {
    const { best } = this
    if (!this.config.loadBestModelAtEnd || best?.path === undefined) return undefined
    if (best.step !== this.#step) await loadTrained(this.model, best.path)
    return best.step
  }

  /** What the run came to, also when it fails: report.html in its folder. */
  async #report(folder: RunFolder): Promise<void> {
    const write = writeReport([folder.path], join(folder.path, 'report.html'))
    await write.catch((error) => this.warn(`no report was written: ${toLoopLMError(error).message}`))
  }

  /** What a run does to the model or reads of it as a whole, not in the middle of another trainer's step. */
  #inTurn<Result>(action: () => Promise<Result>): Promise<Result> {
    return inTurn(this.model, `${this.constructor.name}.run`, action)
  }
}

/** What an action returns; undefined when the signal ended it. */
async function unlessAborted<Result>(
  signal: AbortSignal | undefined,
  action: () => Promise<Result>,
): Promise<Result | undefined> {
  try {
    return await action()
  } catch (error) {
    if (signal?.aborted === true && toLoopLMError(error).code === 'ABORTED') return undefined
    throw error
  }
}

/** Resident memory of the process and memory on devices, in MiB. */
function memoryMetrics(): Metrics {
  return { 'memory/resident': process.memoryUsage.rss() / 2 ** 20, 'memory/device': memory().bytes / 2 ** 20 }
}
