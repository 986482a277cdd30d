import '../dispose.js'
import { promptProblem } from '../data/rows.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import type { FolderPart } from '../files/replace-folder.js'
import { positionProblem } from '../model/checks.js'
import { LoopLM } from '../model/model.js'
import { AdamW } from '../model/optimizer.js'
import type { InputVectors, LossBatch, RealArray, TokenSequence } from '../model/types.js'
import type { RunFolder } from '../monitor/run-folder.js'
import { lockRun } from '../monitor/run-lock.js'
import type { WeightedReward } from '../tasks/rewards.js'
import { checkFunction, checkInstance, checkOptions } from '../validation/arguments.js'
import { Advice } from './advice.js'
import type { Answerer } from './answerer.js'
import { BestCheckpoints } from './best-checkpoint.js'
import { type BestEvaluation, failureOf } from './callbacks.js'
import { checkpointPath } from './checkpoint.js'
import { type DataDescription, describeProblems } from './data.js'
import { type Evaluation, evaluationMetrics } from './evaluate.js'
import { type Asked, Evaluations } from './evaluations.js'
import type { Metrics, SampledCompletion, TrainerEvent, UpdateMetrics } from './events.js'
import { checksumOfSequences } from './facts-of-run.js'
import { encodePrompt } from './lessons.js'
import { addTrainedAdapter } from './load-parameters.js'
import type { Measured } from './loss-metrics.js'
import { exclusively } from './mutex.js'
import { OngoingRun } from './ongoing-run.js'
import type { TrainerConfig } from './options.js'
import { plainConfig } from './plain-config.js'
import { openProblems, type ProblemSource } from './problems.js'
import { Ranks } from './ranks.js'
import type { Problem, Rollout } from './rollout-record.js'
import { RunCheckpoints } from './run-checkpoints.js'
import { memoryMetrics, RunLog, runFacts } from './run-log.js'
import type { Constrained } from './sampling.js'
import { countSteps } from './schedule.js'
import { StepClock } from './step-clock.js'
import { type LogicalBatch, type Portion, type Position, type StepWork, Updates } from './updates.js'

/** Options of `update`. */
export interface UpdateOptions {
  /** Called with ∂L/∂ the batch's `inputVectors`: one array per sequence in the layout of its values. */
  onInputVectors?: (gradients: RealArray[]) => unknown
}

/** The fields that the batches of all trainers have. */
interface GivenBatch {
  /** Token ids, at least two each. */
  sequences: readonly TokenSequence[]
  /** Per sequence the vectors that replace embedded tokens. */
  inputVectors?: readonly (InputVectors | undefined)[]
}

/** The result of a trainer's `gradients`. */
export interface BatchGradients {
  /** The loss of the batch. */
  loss: number
  /** The gradient of every trained parameter by its published name, in the shape of the parameter, row-major. */
  gradients: Map<string, RealArray>
  /** The gradients of the batch's `inputVectors`: one array per sequence in the layout of its values. */
  inputVectors: RealArray[]
}

/** Options of `run`, besides the trainer's options. */
interface RunOptions {
  /** Ends the run after the current step. */
  signal?: AbortSignal | undefined
  /** Written to config.yaml instead of the options. */
  config?: Record<string, unknown> | undefined
}

/** This process's share of a logical batch in the form that the engine takes, and metrics measured so far. */
export interface Prepared<Loss = LossBatch> {
  /** The loss of the batch, or of the share that this process computes. */
  portion: Portion<Loss>
  /** Metrics that were measured meanwhile. */
  metrics: Metrics
}

/** A running run. */
interface OpenRun {
  data: DataDescription
  folder: RunFolder | undefined
  log: RunLog
  begin(): Promise<void>
}

/**
 * What all trainers share: the loop over steps, evaluations and checkpoints. A subclass defines the loss and the source of
 * batches.
 */
export abstract class Trainer<Config extends TrainerConfig, Batch extends GivenBatch, Loss extends LogicalBatch = LossBatch> {
  /** The model that is trained. */
  readonly model: LoopLM
  /** The options with all defaults filled in. */
  readonly config: Readonly<Config>
  /** The optimizer of the model. */
  readonly optimizer: AdamW
  /** The trainer's name in configuration files and checkpoints. */
  readonly name: string
  /** The processes that train together. */
  protected readonly ranks: Ranks
  /** Warnings for the user. */
  protected readonly advice = new Advice((message) => this.warn(message))
  readonly #position: Position = { step: 0, tokens: 0, skippedUpdates: 0 }
  readonly #selection: BestCheckpoints
  readonly #updates: Updates<Loss>
  readonly #evaluations: Evaluations
  readonly #checkpoints: RunCheckpoints
  readonly #ongoing = new OngoingRun()
  #problems: ProblemSource | undefined
  #log: RunLog | undefined // log of the current run
  #saved = -1 // step of the checkpoint that this trainer wrote last, or resumed from in its folder

  constructor(name: string, model: LoopLM, config: Config) {
    checkInstance(model, 'model', LoopLM, 'LoopLM.create and LoopLM.fromPretrained resolve to', new.target.name)
    this.name = name
    this.model = model
    this.config = config
    const [beta1, beta2] = config.adamBetas
    const { adamEps: eps, weightDecay, maxGradNorm } = config
    this.ranks = Ranks.found(new.target.name)
    const { ranks } = this
    this.optimizer = new AdamW(model, { betas: [beta1, beta2], eps, weightDecay, maxGradNorm, world: ranks.world })
    this.#selection = new BestCheckpoints(config)
    const { optimizer, advice } = this
    const shared = { model, optimizer, config, advice, ranks }
    this.#updates = new Updates<Loss>(
      {
        ...shared,
        accumulate: (loss, last) => this.accumulate(loss, last),
        trained: () => this.trained,
        afterUpdate: () => this.afterUpdate(),
      },
      this.#position,
    )
    this.#evaluations = new Evaluations(model, config, this.#selection, ranks)
    this.#checkpoints = new RunCheckpoints({
      ...shared,
      name,
      operation: new.target.name,
      position: this.#position,
      selection: this.#selection,
      checkResume: (checkpoint, step) => this.checkResume(checkpoint, step),
      start: (checkpoint) => this.start(checkpoint),
      extra: () => this.checkpointParts(),
      warn: (message) => this.warn(message),
    })
  }

  /** Number of steps so far. */
  get step(): number {
    return this.#position.step
  }

  /** The evaluation with the best `metricForBestModel` so far, and its checkpoint if `runDir` is set. */
  get best(): BestEvaluation | undefined {
    return this.#checkpoints.best
  }

  /**
   * Makes one optimizer step on a given batch, with the schedule's learning rate for the current step. The batch is read before
   * the call returns its promise. Calls of `update` and `gradients` on one model run one after the other in the order of the
   * calls, even from several trainers. Gradients that were accumulated on the model before are discarded. With several
   * processes, all pass the same batch and share the work.
   *
   * @param options.onInputVectors called with the gradients of the batch's `inputVectors`, one array per sequence in the layout
   *   of its values
   * @returns `loss`, `grad_norm` (before clipping), `learning_rate` and the other metrics
   * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the field of the batch; NON_FINITE naming step and parameter,
   *   with the parameters unchanged
   */
  async update(batch: Batch, options: UpdateOptions = {}): Promise<UpdateMetrics> {
    const operation = `${this.constructor.name}.update`
    checkOptions(options, { onInputVectors: true }, operation)
    const { onInputVectors } = options
    if (onInputVectors !== undefined) checkFunction(onInputVectors, 'onInputVectors', operation)
    const taken = readable(this.take(batch, operation), this.model, operation)
    return exclusively(this.model, operation, async () => {
      const clock = new StepClock(this.ranks)
      await this.#adapt()
      await this.ranks.agree(() => ({ sequences: checksumOfSequences(taken.sequences) }), operation)
      const { portion, metrics } = await this.prepare(taken, operation)
      const work = { portions: [portion], metrics, tokens: portion.tokens, completions: [], logged: 0 }
      const made = await this.#updates.make(work, clock)
      const gradients = await vectorGradients(this.model, this.ranks, taken, portion.loss, operation)
      try {
        await onInputVectors?.(gradients)
      } catch (cause) {
        throw failureOf('onInputVectors', cause)
      }
      return made
    })
  }

  /**
   * The loss of a batch and its gradients before clipping. Parameters, optimizer and the trainer's step do not change. The
   * computation uses the model's own gradients: they are zero afterwards, so read what `model.backward` accumulated first.
   * Calls run one after the other, like those of `update`.
   *
   * @throws LoopLMError as `update` does
   */
  async gradients(batch: Batch): Promise<BatchGradients> {
    const operation = `${this.constructor.name}.gradients`
    const taken = readable(this.take(batch, operation), this.model, operation)
    return exclusively(this.model, operation, async () => {
      await this.#adapt()
      const { portion } = await this.prepare(taken, operation)
      const found = await this.#updates.gradients(portion, operation)
      return { ...found, inputVectors: await vectorGradients(this.model, this.ranks, taken, portion.loss, operation) }
    })
  }

  /**
   * Trains for `steps` steps on the data of the options and yields events. A model without a tokenizer gets the tokenizer of
   * the data. If `runDir` is set, metrics, completions and checkpoints are written. The last checkpoint is written when the run
   * ends or is aborted, or when the loop over its events exits by `break` or an error. An abort takes effect between steps, or
   * during sampling, scoring or evaluating. The folder is locked during the run. If an iterator is dropped without `return()`,
   * the folder is unlocked when the iterator is garbage-collected, when `run` is called again, or by `dispose`.
   *
   * @param options.signal ends the run after the current step
   * @param options.config replaces config.yaml of `runDir` once the run, or the checkpoint that it resumes from, is accepted;
   *   without it the options are written there, unless the file exists
   * @throws LoopLMError INVALID_CONFIG if there is nothing to train on, NON_FINITE naming step and tensor, INVALID_FILE when
   *   the run's folder cannot be written, INVALID_ARGUMENT when another run trains in it
   */
  run(options: RunOptions = {}): AsyncGenerator<TrainerEvent, void, undefined> {
    checkOptions(options, { signal: true, config: true }, `${this.constructor.name}.run`)
    const { runDir } = this.config
    const warn = (message: string) => this.warn(message)
    const locks = runDir !== undefined && this.ranks.leads
    const lock = () => this.ranks.each('lock', () => (locks ? lockRun(runDir, warn) : undefined))
    return this.#ongoing.begin(lock, () => this.#run(options), warn)
  }

  async *#run({ signal, config }: RunOptions): AsyncGenerator<TrainerEvent, void, undefined> {
    const run = await this.#open(signal, config)
    const { steps } = this.config
    let metrics: Metrics = {}
    let error: { cause: unknown } | undefined
    let left = true // whether the caller has left the loop over the events
    try {
      await run.begin()
      for (;;) {
        const evaluation = this.#evaluations.isDue(this.step) ? await this.#evaluateStep(run, signal) : undefined
        if (evaluation !== undefined) yield { type: 'eval', step: this.step, metrics: evaluation }
        const aborted = await this.ranks.any('step', signal?.aborted === true)
        const ends = this.step >= steps || aborted || this.#selection.exhausted
        const path = await this.#save(run, ends)
        if (path !== undefined) yield { type: 'checkpoint', step: this.step, metrics: {}, path }
        if (ends) break
        const made = await this.#runStep(run, signal)
        if (made === undefined) continue
        metrics = made.metrics
        yield { type: 'step', step: this.step, ...made }
      }
      left = false
      await this.#loadBest()
    } catch (cause) {
      left = false
      error = { cause }
      throw cause
    } finally {
      const fail = async (cause: unknown) => {
        await this.#end(run, metrics, { cause })
        throw cause
      }
      if (left) await this.#save(run, true).catch(fail)
      await this.#end(run, metrics, error)
    }
    yield { type: 'done', step: this.step, metrics, ...this.#how }
  }

  /**
   * Answers held-out problems of the task, or rows of `evalDataset`, with several loop counts.
   *
   * @param options.problems number of problems; defaults to `evalProblems`
   * @param options.loops loop counts; defaults to `evalLoops`, else to 1 up to the model's
   * @param options.samples responses per problem; defaults to `evalSamples`
   * @param options.temperature defaults to `evalTemperature`, else to 0 for one sample and 1 for several
   * @returns per loop count the mean reward, which is the accuracy if rewards are 0 and 1, with its interval
   *
   * @example
   * ```ts
   * const [early, , , full] = await trainer.evaluate({ problems: 1000, loops: [1, 2, 3, 4] })
   * ```
   */
  async evaluate(options: Asked = {}): Promise<Evaluation[]> {
    const asked = this.#evaluations.asked(options, `${this.constructor.name}.evaluate`)
    const { questions: source, maxNewTokens } = this
    const how = { maxNewTokens, answer: this.answerer?.(source), grammar: (this.config as Constrained).grammar }
    return this.#evaluations.answer(source, () => this.rewardFunctions(source), asked, how)
  }

  /** Frees the optimizer's memory and unlocks the folder of an unfinished run. The model stays usable. */
  dispose(): void {
    this.#ongoing.release()
    this.optimizer.dispose()
  }

  /** `using trainer = …` disposes the trainer at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  /**
   * Accumulates the gradient of a share of a logical batch.
   * @param last must be called before its last backward pass
   */
  protected abstract accumulate(loss: Loss, last: () => Promise<void>): Promise<Measured>
  /** The names of the parameters that an optimizer step changes. undefined: all. */
  protected get trained(): readonly string[] | undefined {
    return undefined
  }
  /** How many rows of the data a step reads. */
  protected abstract get rowsPerStep(): number
  /** The longest completion, if the options set it. */
  protected abstract readonly maxNewTokens: number | undefined
  /**
   * Copies the fields of a caller's batch that the trainer knows, and checks its sequences. Called before anything is awaited.
   */
  protected abstract take(batch: Batch, operation: string): Batch
  /** Converts the result of `take` to the engine's form. */
  protected abstract prepare(batch: Batch, operation: string): Promise<Prepared<Loss>>
  /** Prepares the batches of the current step. */
  protected abstract work(signal: AbortSignal | undefined): Promise<StepWork<Loss>>
  /** Scores completions. */
  protected abstract rewardFunctions(source: ProblemSource): readonly WeightedReward[]
  /** Answers held-out problems instead of generating single completions. undefined: single completions. */
  protected answerer?(source: ProblemSource): Answerer | undefined
  /** Opens the data that the run trains on. */
  protected async openData(signal: AbortSignal | undefined): Promise<DataDescription> {
    const rows = { problemOf: (row: Problem) => this.problemOf(row), read: (row: Problem) => this.readRow(row) }
    return describeProblems(this.problems, rows, signal)
  }
  /** What is wrong with a row of the dataset. undefined if nothing. */
  protected problemOf(row: Problem): string | undefined {
    return promptProblem(row)
  }
  /**
   * Tokenizes a row, as a step will.
   * @throws LoopLMError INVALID_ARGUMENT naming row and field
   */
  protected async readRow(row: Problem): Promise<void> {
    await encodePrompt(this.problems, row)
  }
  /** The metrics of one evaluation, without those of `evalTasks`. */
  protected async evaluateData(signal: AbortSignal | undefined): Promise<Metrics> {
    return answersProblems(this.config) ? evaluationMetrics(await this.evaluate({ signal })) : {}
  }
  /** Rejects, before training, what `evaluateData` would reject. */
  protected async checkEvaluations(): Promise<void> {
    if (answersProblems(this.config)) await this.#evaluations.read(this.problems, (row) => this.readRow(row))
  }
  /** Rejects a checkpoint of `step` that lacks what the run needs, before any part of it is loaded. */
  protected checkResume(_checkpoint: string, _step: number): void {}
  /** Called once before a run's first step, with the checkpoint that it resumes from. */
  protected async start(_checkpoint: string | undefined): Promise<void> {}
  /** Called after every optimizer step. */
  protected async afterUpdate(): Promise<void> {}
  /** The files of a checkpoint besides the model, the optimizer and the state. */
  protected checkpointParts(): FolderPart[] {
    return []
  }

  /** The task or dataset of the options. */
  protected get problems(): ProblemSource {
    this.#problems ??= openProblems(this.constructor.name, this.model, this.config)
    return this.#problems
  }

  /** The source whose held-out problems are answered. */
  protected get questions(): ProblemSource {
    return this.problems
  }

  /** Passes the rollouts to `onRollouts` before the step trains on them. */
  protected async rolloutsMade(rollouts: readonly Rollout[]): Promise<void> {
    await this.#log?.rollouts(rollouts)
  }

  /** Warns the user. */
  protected warn(message: string): void {
    if (!this.ranks.leads) return
    const { onWarning } = this.config
    this.#log?.warned(message)
    if (onWarning === undefined) process.emitWarning(message, { type: 'LoopLMWarning' })
    else {
      try {
        onWarning(message)
      } catch (cause) {
        throw failureOf('onWarning', cause)
      }
    }
  }

  /** Evaluates and records. Returns undefined if it was aborted; a resumed run then evaluates again. */
  async #evaluateStep({ data, log }: OpenRun, signal: AbortSignal | undefined): Promise<Metrics | undefined> {
    const { step } = this
    const evaluate = () => this.#evaluations.evaluate(step, () => this.evaluateData(signal), data.tokenizer, signal)
    const metrics = await unlessAborted(this.ranks, signal, evaluate)
    if (metrics === undefined) return undefined
    await log.evaluation(metrics)
    this.advice.cutOffEvaluation(step, metrics, this.#problems?.stop ?? this.model.endTokens)
    return metrics
  }

  /** Makes and records one step of a run. Returns undefined if sampling was aborted. */
  async #runStep(
    { log }: OpenRun,
    signal: AbortSignal | undefined,
  ): Promise<{ metrics: Metrics; completions: readonly SampledCompletion[] } | undefined> {
    const made = await this.#exclusively(() => this.#makeStep(signal))
    if (made === undefined) return undefined
    const { metrics, completions, logged } = made
    await log.step(metrics, completions, logged)
    return { metrics, completions }
  }

  async #makeStep(signal: AbortSignal | undefined) {
    if (await this.ranks.any('begin', signal?.aborted === true)) return undefined // aborted while it waited
    const clock = new StepClock(this.ranks)
    const work = await unlessAborted(this.ranks, signal, () => this.work(signal)).catch((cause: unknown) => {
      const { code, message } = toLoopLMError(cause)
      if (code !== 'NON_FINITE') throw cause
      throw new LoopLMError(code, message, { operation: `step ${this.step + 1}`, cause })
    })
    if (work === undefined) return undefined
    const metrics: Metrics = await this.#updates.make(work, clock)
    Object.assign(metrics, await this.ranks.most('memory', memoryMetrics()))
    const { completions, logged } = work
    if (completions.length > 0) {
      const { problems: source, maxNewTokens = source.maxNewTokens } = this
      this.advice.cutOff(this.step, metrics['completions/clipped_ratio'], maxNewTokens, source)
    }
    return { metrics, completions, logged }
  }

  /**
   * Writes a checkpoint if one is due, and returns its path.
   * @param ends whether the run ends here
   */
  async #save({ folder, data, log }: OpenRun, ends: boolean): Promise<string | undefined> {
    const { step } = this
    const { saveEvery } = this.config
    const due = step > 0 && saveEvery > 0 && step % saveEvery === 0
    if (this.config.runDir === undefined || this.#saved === step || !(ends || due || this.#selection.holds(step)))
      return undefined
    const path = await this.#exclusively(() => this.#checkpoints.save(folder, data, () => log.flush()))
    this.#saved = step
    await log.saved(path)
    return path
  }

  /** How the run ended. */
  get #how(): { aborted: boolean; stoppedEarly: boolean } {
    const short = this.step < this.config.steps
    const stoppedEarly = short && this.#selection.exhausted
    return { aborted: short && !stoppedEarly, stoppedEarly }
  }

  /** Loads the best parameters into the model if the run completed and its options ask for it. */
  async #loadBest(): Promise<void> {
    if (this.#how.aborted) return
    const loaded = await this.#exclusively(() => this.#checkpoints.loadBest())
    this.advice.fallen(this.#selection.falls(), loaded)
  }

  /**
   * Ends the loggers of the run.
   * @param failed the error of the run
   */
  async #end({ log }: OpenRun, metrics: Metrics, failed: { cause: unknown } | undefined): Promise<void> {
    await log.end({ ...this.#how, metrics }, failed, (message) => this.warn(message))
    this.#log = undefined
  }

  /** Adds the adapter of the options to the model, unless it already has it. */
  async #adapt(): Promise<void> {
    this.#checkpoints.checkUsable()
    await addTrainedAdapter(this.model, this.config, this.constructor.name)
  }

  /** Resumes, and opens the run's folder. */
  async #open(signal: AbortSignal | undefined, config: RunOptions['config']): Promise<OpenRun> {
    const { runDir, evalEvery } = this.config
    const log = new RunLog(this, this.config, this.ranks)
    this.#log = log // later warnings belong to the run
    const found = await this.#checkpoints.find()
    await this.#exclusively(() => this.ranks.each('adapter', () => this.#adapt()))
    await this.#checkpoints.checkFolder(found)
    const data = await this.ranks.each('data', () => this.openData(signal))
    await this.#checkpoints.agree(data)
    takeTokenizer(this.model, data.tokenizer, this.config)
    this.advice.tokens(this.model, data.tokenizer)
    countSteps(this.config, data.rows, this.rowsPerStep, this.constructor.name)
    if (evalEvery > 0) {
      await this.checkEvaluations()
      await this.#evaluations.check(data.tokenizer)
    }
    await this.#exclusively(() => this.#checkpoints.begin(found, data))
    const folder = await this.#checkpoints.openFolder(config)
    if (found !== undefined) this.#saved = found.path === (runDir && checkpointPath(runDir, this.step)) ? this.step : -1
    const written = { trainer: this.name, ...config, options: plainConfig(this.config) }
    const step = this.#checkpoints.begins ? -1 : this.step
    const facts = runFacts(this.model, this.trained, data)
    const begin = () => log.begin(folder, written, { step, facts, warn: (message) => this.warn(message) })
    return { data, folder, log, begin }
  }

  /** Runs an action on the whole model, but never in the middle of another trainer's step. */
  #exclusively<Result>(action: () => Promise<Result>): Promise<Result> {
    return exclusively(this.model, `${this.constructor.name}.run`, action)
  }
}

/**
 * Whether evaluations answer problems of the task or dataset. A dataset without held-out rows is only used if there are no
 * `evalTasks`.
 */
function answersProblems({ task, evalDataset, evalTasks }: TrainerConfig): boolean {
  return task !== undefined || evalDataset !== undefined || evalTasks === undefined
}

/** The gradients of a batch's vectors in all processes, by sequence. Sequences without a gradient get zeros. */
async function vectorGradients(
  model: LoopLM,
  ranks: Ranks,
  { sequences, inputVectors }: { sequences: readonly TokenSequence[]; inputVectors?: readonly (InputVectors | undefined)[] },
  loss: LogicalBatch | undefined,
  operation: string,
): Promise<RealArray[]> {
  const Reals = model.device === 'reference' ? Float64Array : Float32Array
  const all: RealArray[] = sequences.map((_, i) => new Reals(inputVectors?.[i]?.values.length ?? 0))
  for (const [k, gradient] of (loss?.vectorGradients ?? []).entries()) all[loss!.rows?.[k] ?? k] = gradient
  if (inputVectors === undefined) return all
  const named = new Map(all.map((gradient, i) => [`inputVectors[${i}]`, gradient]))
  return [...(await ranks.sumOfArrays(operation, named)).values()]
}

/**
 * Checks that the model has enough positions for the sequences of a batch.
 * @throws LoopLMError INVALID_ARGUMENT naming the sequence that is too long
 */
function readable<Batch extends { sequences: readonly TokenSequence[] }>(batch: Batch, model: LoopLM, operation: string): Batch {
  for (const [i, { length }] of batch.sequences.entries()) {
    const problem = positionProblem(`sequences[${i}]`, length, model.config.max_position_embeddings)
    if (problem !== undefined) throw new LoopLMError('INVALID_ARGUMENT', problem, { operation })
  }
  return batch
}

/**
 * Gives a model without a tokenizer that of the data, so that it generates with, and is saved with, the tokenizer that it was
 * trained on.
 */
function takeTokenizer(model: LoopLM, tokenizer: DataDescription['tokenizer'], { chatTemplate }: TrainerConfig): void {
  if (model.tokenizer === undefined || chatTemplate?.template !== undefined) model.tokenizer = tokenizer
  else if (!model.namesEndTokens) model.takeSpecialTokens(tokenizer)
}

/** The result of an action. undefined if the signal aborted it, here or in another process. */
async function unlessAborted<Result>(
  ranks: Ranks,
  signal: AbortSignal | undefined,
  action: () => Promise<Result>,
): Promise<Result | undefined> {
  try {
    return await action()
  } catch (error) {
    const ended = toLoopLMError(error).code === 'ABORTED' && (await ranks.any('abort', signal?.aborted === true))
    if (ended) return undefined
    throw error
  }
}
