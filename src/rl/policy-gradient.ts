import { types } from 'node:util'
import { LoopLMError } from '../errors.js'
import type { FolderPart } from '../files/replace-folder.js'
import type { LoopLM } from '../model/model.js'
import type { WeightedReward } from '../tasks/rewards.js'
import { describe } from '../validation/arguments.js'
import { type Answerer, episodeAnswerer, functionAnswerer } from './answerer.js'
import {
  type BeliefCurves,
  beliefsOf,
  checkSequences,
  copyBatch,
  filterRewards,
  isAnswer,
  type RatedBatch,
  type RolloutBatch,
  rateBatch,
  rolloutFields,
  usedFields,
} from './batch.js'
import { answerKey, forcedExitBeliefs, goldAnswerBeliefs } from './beliefs-of-model.js'
import { failureOf } from './callbacks.js'
import { activeRows, addModelsView, checkOldLogprobs, type ModelsView, scattered, withLogprobs } from './complete-rollouts.js'
import type { DataDescription } from './data.js'
import type { Metrics, SampledCompletion } from './events.js'
import type { Measured } from './loss-metrics.js'
import { groupAdvantages } from './objective/advantages.js'
import { loopsToRun, needsReference, onlyLastLoop, uncorrected } from './objective/compile.js'
import type { OwnObjective } from './objective/custom-objective.js'
import type { TrainedLoops } from './objective/loops.js'
import type { Objective } from './objective/schema.js'
import { isLabelFree } from './objective/shape-rewards.js'
import type { PolicyConfig } from './options.js'
import { accumulatePolicyLoss, logicalBatches, type PolicyLoss, policyLoss } from './policy-loss.js'
import type { ProblemSource } from './problems.js'
import { ReferenceModel } from './reference-model.js'
import { namedRewards } from './rewards.js'
import { logprobDifference, rolloutMetrics, type SampledRollouts, sampleStep } from './rollout.js'
import type { Rollout } from './rollout-record.js'
import { rolloutSource } from './rollout-sources.js'
import { checkGrammarTokenizer, rolloutExit } from './sampling.js'
import { sharesOf } from './shares.js'
import { trainedLoops } from './trained-loops.js'
import { type Prepared, Trainer } from './trainer.js'
import { turnGains } from './turn-gains.js'
import type { Portion, StepWork } from './updates.js'

/** The objective of each step; steps count from 0. */
export interface ObjectiveSchedule {
  /** The objective of a step, or the caller's function. */
  at(step: number): Objective | OwnObjective
  /** The reference that this step or a later one needs: the starting model, or its moving average. */
  reference(step: number): 'frozen' | 'ema' | undefined
}

/** The completed rollouts of a step, with everything that the objective needs. */
interface Gathered {
  batch: RolloutBatch
  gains: number[][] | undefined
  beliefs: BeliefCurves
  metrics: Metrics
}

const ownTerms: Objective = {
  rewards: [],
  filter: { minGroupStd: 0, dropTruncated: false, resample: 0 },
  terms: [],
  entropy: { token: 0, exit: 0 },
  emaDecay: 0,
}

/**
 * A trainer that gets rollouts from a source and follows the gradient of an objective of the algebra (docs/objectives.md). RLTT
 * and GRPO are two such objectives.
 */
export abstract class PolicyGradientTrainer<Config extends PolicyConfig = PolicyConfig> extends Trainer<
  Config,
  RolloutBatch,
  PolicyLoss
> {
  readonly #schedule: ObjectiveSchedule
  readonly #reference: ReferenceModel
  readonly #loops: TrainedLoops
  #rewards: readonly WeightedReward[] | undefined
  #saidUncorrected = false

  constructor(name: string, model: LoopLM, config: Config, schedule: ObjectiveSchedule) {
    super(name, model, config)
    this.#schedule = schedule
    this.#reference = new ReferenceModel(model, config.runDir, this.ranks.leads, new.target.name)
    this.#loops = trainedLoops(new.target.name, model, config)
    if (config.reward !== undefined) this.#rewards = namedRewards(config.reward)
  }

  protected get maxNewTokens(): number | undefined {
    return this.config.maxNewTokens
  }

  protected get rowsPerStep(): number {
    return this.config.promptsPerStep * this.config.gradientAccumulation
  }

  override dispose(): void {
    this.#reference.dispose()
    super.dispose()
  }

  protected accumulate(loss: PolicyLoss, last: () => Promise<void>): Promise<Measured> {
    return accumulatePolicyLoss(this.model, loss, this.#objective(), this.config, this.#loops, last)
  }

  protected override async afterUpdate(): Promise<void> {
    if (this.#schedule.reference(this.step) === 'ema') await this.#reference.follow(this.#objective().emaDecay)
  }

  protected take(batch: RolloutBatch, operation: string): RolloutBatch {
    const taken: RolloutBatch = copyBatch<RolloutBatch>(operation, batch, rolloutFields)
    checkSequences(operation, taken.sequences, taken.promptLengths, this.model.config.vocab_size)
    return taken
  }

  protected async prepare(taken: RolloutBatch, operation: string): Promise<Prepared<PolicyLoss>> {
    const objective = this.#objective()
    const batch = usedFields(taken, objective, this.#custom)
    if (batch.inputVectors !== undefined && objective.terms.some(({ space }) => space === 'marginal')) {
      const message = 'inputVectors: terms in the marginal space do not see the prompt; omit inputVectors'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    if (objective.exits === 'sampled') checkReplay(batch, operation)
    if (!this.#custom) checkOldLogprobs(batch, objective, this.#loops, operation)
    const reference = this.#schedule.reference(this.step)
    // the reference of a later phase, or an average, starts from the model as it is before this step
    if (!needsReference(objective) || reference === 'ema') await this.#reference.keep(reference)
    const complete = await addModelsView(this.#view(undefined), batch, objective, this.#loops)
    const rated = rateBatch(operation, complete, objective, this.#rating(this.maxNewTokens))
    const [portion] = await this.#portions(rated, [[...batch.sequences.keys()]], {
      several: false,
      maxNewTokens: this.maxNewTokens,
    })
    return { portion: portion!, metrics: rated.metrics }
  }

  protected override async openData(signal: AbortSignal | undefined): Promise<DataDescription> {
    const data = await super.openData(signal)
    if (this.config.grammar !== undefined) checkGrammarTokenizer(this.model, data.tokenizer, this.constructor.name)
    return data
  }

  protected async work(signal: AbortSignal | undefined): Promise<StepWork<PolicyLoss>> {
    const { config, problems: source, step } = this
    const objective = this.#objective()
    const maxNewTokens = this.maxNewTokens ?? source.maxNewTokens
    const several = config.updatesPerRollout * config.minibatches > 1
    if (several) this.#explainUncorrected(objective)
    const { rounds, ...sampled } = await this.#sample(source, objective, maxNewTokens, signal)
    const { rollouts, cost } = sampled
    await this.rolloutsMade(rollouts)
    const metrics = rolloutMetrics(sampled)
    if (objective.filter.resample > 0) {
      metrics['sampling/rounds'] = rounds
      metrics['sampling/frac_discarded'] = 1 - rollouts.length / cost.completions
    }
    const { batch, beliefs, gains, metrics: measured } = await this.#gather(source, rollouts, objective, signal)
    const rated = rateBatch(this.constructor.name, batch, objective, { ...this.#rating(maxNewTokens), beliefs, gains })
    return {
      portions: await this.#portions(rated, logicalBatches(config, step, rated), { several, maxNewTokens, signal }),
      metrics: { ...rated.metrics, ...metrics, ...measured },
      tokens: cost.tokens,
      completions: rollouts.map(sampledCompletion),
      logged: config.logCompletions,
    }
  }

  protected override answerer(source: ProblemSource): Answerer | undefined {
    const { config, model, step } = this
    const { rollout, environment } = config
    if (rollout !== undefined) return functionAnswerer(model, source.tokenizer, { ...config, rollout }, step)
    return environment === undefined ? undefined : episodeAnswerer(model, source, config, this.#rewards ?? [])
  }

  protected rewardFunctions(source: ProblemSource): readonly WeightedReward[] {
    const { task } = source
    if (this.#rewards === undefined && task !== undefined) this.#rewards = [{ name: task.name, reward: task.reward }]
    if (this.#rewards !== undefined) return this.#rewards
    const message = 'reward: a dataset needs a reward function, for example exactMatch'
    throw new LoopLMError('INVALID_CONFIG', message, { operation: this.constructor.name })
  }

  protected override checkResume(checkpoint: string, step: number): void {
    this.#reference.check(this.#schedule.reference(step), checkpoint)
  }

  protected override start(checkpoint: string | undefined): Promise<void> {
    return this.#reference.start(this.#schedule.reference(this.step), checkpoint)
  }

  protected override checkpointParts(): FolderPart[] {
    return this.#reference.checkpointParts()
  }

  /** The objective of the current step. If it is the caller's function, an objective that rates rollouts for it. */
  #objective(): Objective {
    const objective = this.#schedule.at(this.step)
    return typeof objective === 'function' ? ownTerms : objective
  }

  /** Whether the objective of the current step is the caller's function. */
  get #custom(): boolean {
    return typeof this.#schedule.at(this.step) === 'function'
  }

  #explainUncorrected(objective: Objective): void {
    const what = uncorrected(objective)
    if (what === undefined || this.#saidUncorrected) return
    this.#saidUncorrected = true
    const { updatesPerRollout, minibatches } = this.config
    this.warn(
      `step ${this.step + 1}: ${updatesPerRollout * minibatches} updates are made on the same rollouts (updatesPerRollout ${updatesPerRollout}, minibatches ` +
        `${minibatches}), but ${what} has no importance ratio: from the second update on its gradient is biased. Use the surrogate ` +
        "'ppo' or 'cispo' in the token channel, or set both options to 1.",
    )
  }

  #rating(maxLength: number | undefined) {
    const { read, run } = this.#loops
    return { groupSize: this.config.groupSize, step: this.step, maxLength, loops: read.length, deepest: run }
  }

  /** The rollouts of the step. With dynamic sampling, groups whose rewards are equal are replaced by groups of later rounds. */
  #sample(
    problems: ProblemSource,
    objective: Objective,
    maxNewTokens: number,
    signal: AbortSignal | undefined,
  ): Promise<SampledRollouts & { rounds: number }> {
    const { groupSize, promptsPerStep, gradientAccumulation } = this.config
    const { run } = this.#loops
    const loops = run === this.model.architecture.loops ? undefined : run
    const unrated = this.#rewards === undefined && problems.task === undefined && isLabelFree(objective.rewards)
    const source = rolloutSource(this.model, problems, () => (unrated ? [] : this.rewardFunctions(problems)), {
      ...this.config,
      maxNewTokens,
      loops,
    })
    const moving = (made: readonly Rollout[]) => {
      const rewards = made.map(({ reward }) => reward)
      const truncated = made.map(({ truncated }) => truncated)
      const filtered = filterRewards(this.constructor.name, objective, rewards, truncated, groupSize)
      const { groupStds } = groupAdvantages(filtered, groupSize)
      return [...groupStds.keys()].filter((group) => groupStds[group]! > 0)
    }
    const wanted = { groupSize, groups: promptsPerStep * gradientAccumulation, resample: objective.filter.resample }
    return sampleStep(this.ranks, source, this.step, wanted, moving, signal)
  }

  /** The batch of a step, with everything that the objective needs to know of its rollouts. */
  async #gather(
    source: ProblemSource,
    rollouts: readonly Rollout[],
    objective: Objective,
    signal: AbortSignal | undefined,
  ): Promise<Gathered> {
    const { config, model } = this
    const batch = batchOf(rollouts, config.exitThreshold !== undefined || objective.exits === 'sampled')
    const metrics: Metrics = {}
    if (rolloutExit(config).rule === 'fixed' && config.logprobCheckEvery > 0 && this.step % config.logprobCheckEvery === 0) {
      const { sequences, promptLengths } = batch
      const options = { lastLoop: true, temperature: config.temperature, signal, ...this.#loops.scoring }
      const logprobs = await this.ranks.rows('logprobs', this.ranks.strided(sequences.length), async (rows) => {
        const answered = rows.filter((i) => sequences[i]!.length > promptLengths[i]!) // a rollout may be its prompt alone
        if (answered.length === 0) return rows.map((): number[] => [])
        const scored = await model.score(
          answered.map((i) => sequences[i]!),
          { ...options, promptLengths: answered.map((i) => promptLengths[i]!) },
        )
        const found = scattered<ArrayLike<number>>(sequences.length, answered, scored.logprobs, [])
        return rows.map((i) => found[i]!)
      })
      Object.assign(metrics, logprobDifference(rollouts, logprobs))
      const { run } = this.#loops
      if (objective.terms.length > 0 && onlyLastLoop(objective, 'conditional', run) && loopsToRun(objective, this.#loops) === run)
        batch.oldLogprobs = logprobs
    }
    if (isLabelFree(objective.rewards)) {
      batch.answers = rollouts.map((rollout) => answerIn(rollout, config.answerOf))
    }
    const beliefs = await this.#beliefs(source, rollouts, objective, signal)
    const spec = objective.terms.find(({ advantage }) => advantage.gain !== undefined)?.advantage.gain
    const { initialState, stateSeed, temperature } = config
    const scoring = { initialState, stateSeed, temperature, loops: this.#loops.run, signal, ranks: this.ranks }
    const gains = spec === undefined ? undefined : await turnGains(model, source, rollouts, spec, scoring)
    if (gains !== undefined) metrics['turns/gain'] = meanOf(gains.flat())
    return { batch: await addModelsView(this.#view(signal), batch, objective, this.#loops), beliefs, gains, metrics }
  }

  async #beliefs(
    source: ProblemSource,
    rollouts: readonly Rollout[],
    objective: Objective,
    signal: AbortSignal | undefined,
  ): Promise<BeliefCurves> {
    const problems = rollouts.map(({ columns }) => columns)
    const { groupSize, temperature, maxNewTokens, rewardConcurrency, rewardTimeout, initialState, stateSeed } = this.config
    const { ranks } = this
    const shared = { groupSize, initialState, stateSeed, loops: this.#loops.read, signal, ranks }
    const answers = { ...shared, maxNewTokens, rewardConcurrency, rewardTimeout }
    const beliefs: BeliefCurves = {}
    for (const belief of beliefsOf(objective)) {
      beliefs[belief] =
        belief === 'gold-answer'
          ? await goldAnswerBeliefs(this.model, source, problems, { ...shared, temperature })
          : await forcedExitBeliefs(this.model, source, problems, this.rewardFunctions(source), answers)
    }
    return beliefs
  }

  /** What is needed to query the model about rollouts, outside of training. */
  #view(signal: AbortSignal | undefined): ModelsView {
    return { model: this.model, ranks: this.ranks, signal }
  }

  /**
   * This process's shares of logical batches, with what their losses need.
   *
   * @param parts the sequences of each logical batch
   */
  async #portions(
    rated: RatedBatch,
    parts: readonly (readonly number[])[],
    { several, maxNewTokens, signal }: { several: boolean; maxNewTokens: number | undefined; signal?: AbortSignal | undefined },
  ): Promise<Portion<PolicyLoss>[]> {
    const { model, config, ranks, step } = this
    const objective = this.#objective()
    const custom = this.#custom
    const active = activeRows(rated, { config, objective, custom, several })
    const shares = parts.map((part) =>
      sharesOf(
        ranks.size,
        { ...rated.batch, groupSize: rated.groupSize },
        part.filter((i) => active[i]),
      ),
    )
    const own = shares.map(({ rows }) => rows[ranks.rank]!)
    const rows = [...new Set(own.flat())].sort((a, b) => a - b)
    const reference = () => this.#reference.get(this.optimizer.steps)
    const scoring = { model, reference, config, loops: this.#loops, objective, custom, several, signal, rows }
    const rollouts = await ranks.each('scores', () => withLogprobs(rated, active, scoring))
    const constantLength = config.constantNormalizerLength ?? maxNewTokens ?? this.maxNewTokens
    const settings = { config, step, loops: this.#loops, constantLength }
    return parts.map((part, k) => {
      const share = { part, own: own[k]! }
      const loss = share.own.length === 0 ? undefined : policyLoss(this.#schedule.at(step), rated, rollouts, share, settings)
      return { loss, ...shares[k]!.whole }
    })
  }
}

/** @throws LoopLMError INVALID_ARGUMENT if the exits of a batch cannot be replayed */
function checkReplay({ exits, mask }: RolloutBatch, operation: string): void {
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
  if (exits === undefined)
    throw refuse('exits: missing, and the objective replays them. Pass the exits of the rollouts, length - 1 per sequence.')
  if (mask !== undefined)
    throw refuse(
      'mask: cannot be combined with exits, which are replayed only where the model wrote the whole response. Omit mask.',
    )
}

/** @param exited whether tokens exited early, by the gate */
function batchOf(rollouts: readonly Rollout[], exited: boolean): RolloutBatch {
  const batch: RolloutBatch = {
    sequences: rollouts.map(({ tokens }) => tokens),
    promptLengths: rollouts.map(({ promptLength }) => promptLength),
    rewards: rollouts.map(({ reward }) => reward),
    truncated: rollouts.map(({ truncated }) => truncated),
    columns: rollouts.map(({ columns }) => columns),
  }
  if (rollouts.some(({ mask }) => mask !== undefined)) batch.mask = rollouts.map(predictionMask)
  if (rollouts.some(({ turns }) => turns !== undefined)) {
    batch.turns = rollouts.map(
      ({ turns, tokens, promptLength }) => turns ?? [{ begin: promptLength, end: tokens.length, reward: null }],
    )
  }
  if (!exited || rollouts.some(({ loops }) => loops === undefined)) return batch
  batch.exitLoops = rollouts.map(({ loops = [], mask }) => {
    const own = loops.filter((_, j) => mask?.[j] !== 0)
    return own.reduce((sum, loop) => sum + loop, 0) / Math.max(1, own.length)
  })
  batch.exits = rollouts.map(({ tokens, promptLength, loops = [] }) => {
    const exits = new Array<number>(tokens.length - 1).fill(0)
    for (const [j, loop] of loops.entries()) exits[promptLength - 1 + j] = Math.max(0, loop - 1)
    return exits
  })
  return batch
}

/**
 * The answer in a completion for label-free rewards.
 * @throws LoopLMError that names `answerOf`
 */
function answerIn({ text, columns }: Rollout, answerOf: PolicyConfig['answerOf'] = answerKey): string | null {
  let answer: unknown
  try {
    answer = answerOf(text, columns) ?? null
  } catch (cause) {
    throw failureOf('answerOf', cause)
  }
  if (isAnswer(answer)) return answer
  const remedy = types.isPromise(answer) ? '; it must not be asynchronous' : ''
  const message = `must return a string, or null if there is no answer, got ${describe(answer)}${remedy}`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'answerOf' })
}

function meanOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length)
}

/** The mask of the predictions, len-1. Those in the prompt never count. */
function predictionMask({ tokens, promptLength, mask }: Rollout): Uint8Array {
  const all = new Uint8Array(tokens.length - 1).fill(1)
  if (mask !== undefined) all.set(mask, promptLength - 1)
  return all
}

function sampledCompletion({ prompt, text, columns, reward, scores = {} }: Rollout): SampledCompletion {
  return { prompt: prompt ?? String(columns.prompt), completion: text, answer: columns.answer, reward, rewards: scores }
}
