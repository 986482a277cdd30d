import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { Random } from '../data/random.js'
import { LoopLMError } from '../errors.js'
import { type FolderPart, replaceFolder } from '../files/replace-folder.js'
import { MovingAverage } from '../model/looprpt.js'
import type { LoopLM } from '../model/model.js'
import type { LossMetrics, TokenSequence } from '../model/types.js'
import type { WeightedReward } from '../tasks/rewards.js'
import {
  type BeliefCurves,
  beliefsOf,
  checkSequences,
  copyBatch,
  filterRewards,
  type RatedBatch,
  type RolloutBatch,
  rateBatch,
  rolloutFields,
  usedFields,
} from './batch.js'
import { answerKey, forcedExitBeliefs, goldAnswerBeliefs } from './beliefs-of-model.js'
import type { PolicyConfig } from './config.js'
import type { Metrics, SampledCompletion } from './events.js'
import { loadTrained, saveTrained } from './load-parameters.js'
import { lossMetrics } from './metrics.js'
import { groupAdvantages } from './objective/advantages.js'
import {
  type EnginePass,
  enginePasses,
  loopsNeeded,
  needsReference,
  onlyLastLoop,
  type RatedRollouts,
  ratioLoop,
  uncorrected,
  usesRatio,
  usesTeacher,
} from './objective/compile.js'
import { sequenceNorms } from './objective/normalizer.js'
import { checkGradient, type ObjectiveContext, type OwnObjective } from './objective/own.js'
import type { Objective } from './objective/schema.js'
import { isLabelFree } from './objective/shape-rewards.js'
import type { ProblemSource } from './problems.js'
import { namedRewards } from './rewards.js'
import { joinRollouts, logprobDifference, pickGroups, type Rollouts, rollOut, rolloutMetrics } from './rollout.js'
import { type Prepared, Trainer } from './trainer.js'
import type { StepWork } from './updates.js'

const shuffleStream = 2 ** 16 // above the substreams of rollouts
const drawStream = 2 ** 17

/** One logical batch: calls of the engine's loss core, or a caller's own objective. */
export interface PolicyLoss {
  sequences: readonly TokenSequence[]
  passes: EnginePass[]
  own?: { objective: OwnObjective; context: Omit<ObjectiveContext, 'scores'> }
}

/** What is trained when; steps count from 0. */
export interface ObjectiveSchedule {
  /** The objective of a step; a function stands for a caller's own. */
  at(step: number): Objective | OwnObjective
  /** What this step or a later one compares with: the model as it was at the start, or its moving average. */
  reference(step: number): 'frozen' | 'ema' | undefined
}

/** Completed rollouts of a step with what the objective must know of them. */
interface Gathered {
  batch: RolloutBatch
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
 * Trainers that sample completions, score them and follow the gradient of an objective of the algebra (docs/objectives.md). RLTT and
 * GRPO are two of its objectives.
 */
export abstract class PolicyGradientTrainer<Config extends PolicyConfig = PolicyConfig> extends Trainer<
  Config,
  RolloutBatch,
  PolicyLoss
> {
  readonly #schedule: ObjectiveSchedule
  #reference: LoopLM | undefined
  #average: MovingAverage | undefined
  #rewards: readonly WeightedReward[] | undefined
  #saidUncorrected = false

  constructor(name: string, model: LoopLM, config: Config, schedule: ObjectiveSchedule) {
    super(name, model, config)
    this.#schedule = schedule
    if (config.reward !== undefined) this.#rewards = namedRewards(config.reward)
  }

  protected get maxNewTokens(): number | undefined {
    return this.config.maxNewTokens ?? this.config.maxCompletionLength
  }

  override dispose(): void {
    this.#average?.dispose()
    this.#reference?.dispose()
    super.dispose()
  }

  protected async accumulate({ passes, own }: PolicyLoss): Promise<Metrics & { loss: number }> {
    if (own !== undefined) return this.#accumulateOwn(own)
    const objective = this.#objective()
    const measured: LossMetrics[] = []
    for (const { batch, objective: spec } of passes) measured.push(await this.model.accumulateLoss(batch, spec))
    const shown = {
      ratio: usesRatio(objective, 'conditional') || usesRatio(objective, 'marginal'),
      kl: objective.kl !== undefined,
    }
    const metrics = lossMetrics(measured[0]!, shown)
    for (const more of measured.slice(1)) metrics.loss += more.loss
    if (objective.lazy !== undefined) metrics.lazy_loss = measured[0]!.lazyLoss
    return metrics
  }

  protected override async afterUpdate(): Promise<void> {
    if (this.#schedule.reference(this.step) === 'ema') await (await this.#following()).update(this.#objective().emaDecay)
  }

  protected take(batch: RolloutBatch, operation: string): RolloutBatch {
    const taken: RolloutBatch = copyBatch<RolloutBatch>(operation, batch, rolloutFields)
    checkSequences(operation, taken.sequences, taken.promptLengths, this.model.config.vocab_size)
    return taken
  }

  protected async prepare(taken: RolloutBatch, operation: string): Promise<Prepared<PolicyLoss>> {
    const objective = this.#objective()
    const own = typeof this.#schedule.at(this.step) === 'function'
    const batch = usedFields(taken, objective, own)
    if (!own) this.#checkOldLogprobs(batch, objective, operation)
    // a later phase, or an average, begins at the model as it is before this step
    if (!needsReference(objective) || this.#schedule.reference(this.step) === 'ema') await this.#keepReference()
    const rated = rateBatch(operation, await this.#complete(batch, objective), objective, this.#rating(this.maxNewTokens))
    const rollouts = await this.#withLogprobs(rated, objective, false)
    return { loss: this.#loss(rated, rollouts, [...batch.sequences.keys()]), metrics: rated.metrics }
  }

  protected async work(signal: AbortSignal | undefined): Promise<StepWork<PolicyLoss>> {
    const { config, problems: source } = this
    const objective = this.#objective()
    const maxNewTokens = this.maxNewTokens ?? source.maxNewTokens
    const several = config.updatesPerRollout * config.minibatches > 1
    if (several) this.#explainUncorrected(objective)
    const { rollouts, rounds } = await this.#sample(source, objective, maxNewTokens, signal)
    const metrics = rolloutMetrics(rollouts)
    if (objective.filter.resample > 0) {
      metrics['sampling/rounds'] = rounds
      metrics['sampling/frac_discarded'] = 1 - rollouts.sequences.length / rollouts.cost.completions
    }
    const { batch, beliefs, metrics: measured } = await this.#gather(source, rollouts, objective, signal)
    const rated = rateBatch(this.constructor.name, batch, objective, { ...this.#rating(maxNewTokens), beliefs })
    const complete = await this.#withLogprobs(rated, objective, several, signal)
    return {
      losses: this.#parts(rated).map((part) => this.#loss(rated, complete, part, maxNewTokens)),
      metrics: { ...rated.metrics, ...metrics, ...measured },
      tokens: rollouts.cost.tokens,
      completions: sampledCompletions(rollouts),
      logged: config.logCompletions,
    }
  }

  protected rewardFunctions(source: ProblemSource): readonly WeightedReward[] {
    const { task } = source
    if (this.#rewards === undefined && task !== undefined) this.#rewards = [{ name: task.name, reward: task.reward }]
    if (this.#rewards !== undefined) return this.#rewards
    const message = 'reward: a dataset needs a reward function, for example exactMatch'
    throw new LoopLMError('INVALID_CONFIG', message, { operation: this.constructor.name })
  }

  /** The frozen reference is the model as it is now, or as it was when the run that is resumed began; an average goes on. */
  protected override async start(checkpoint: string | undefined): Promise<void> {
    const reference = await this.#keepReference()
    if (reference === undefined) return
    if (this.#average !== undefined) {
      if (checkpoint !== undefined) await this.#average.load(`${checkpoint}/reference.safetensors`)
      return
    }
    const { runDir } = this.config
    const saved = checkpoint === undefined ? undefined : resolve(checkpoint, '..', '..', 'reference')
    const folder = runDir === undefined ? undefined : resolve(runDir, 'reference')
    if (saved !== undefined) await loadTrained(reference, saved)
    if (folder !== undefined && folder !== saved) await replaceFolder(folder, [(to) => saveTrained(reference, to)])
  }

  protected override checkpointParts(): FolderPart[] {
    const average = this.#average
    if (average !== undefined) return [(to) => average.save(`${to}/reference.safetensors`)]
    // a run folder that vanished and was made again lacks the reference, without which its checkpoints could not be resumed
    const reference = this.#reference
    const folder = resolve(this.config.runDir ?? '', 'reference')
    if (reference === undefined || existsSync(folder)) return []
    return [() => replaceFolder(folder, [(to) => saveTrained(reference, to)])]
  }

  /** The objective of the current step; for a caller's own, what the rating of rollouts needs. */
  #objective(): Objective {
    const objective = this.#schedule.at(this.step)
    return typeof objective === 'function' ? ownTerms : objective
  }

  /** Makes the reference that this step or a later one compares with. */
  async #keepReference(): Promise<LoopLM | undefined> {
    const kind = this.#schedule.reference(this.step)
    if (kind === 'ema') await this.#following()
    else if (kind === 'frozen') this.#reference ??= await this.model.clone()
    return kind && this.#reference
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

  /** One loop's log-probabilities say nothing of the ratios at the others. */
  #checkOldLogprobs({ sequences, oldLogprobs }: RolloutBatch, objective: Objective, operation: string): void {
    const loops = loopsNeeded(objective, this.model.config.total_ut_steps)
    if (!Array.isArray(oldLogprobs) || loops === 1 || ratioLoop(objective, loops) !== undefined) return
    const i = sequences.findIndex((sequence, i) => sequence.length > 1 && oldLogprobs[i]?.length === sequence.length - 1)
    if (i === -1) return
    const width = sequences[i]!.length - 1
    const message =
      `oldLogprobs[${i}] has length - 1 = ${width} entries, those of one loop, but the objective has ratios at several: give loops × ` +
      `(length - 1) = ${loops * width}, as score returned them before the update, or weights that credit one loop ('last'), or leave ` +
      'oldLogprobs out where the rollouts are fresh, so that every ratio is 1'
    throw new LoopLMError('INVALID_SHAPE', message, { operation })
  }

  #rating(maxLength: number | undefined) {
    return { groupSize: this.config.groupSize, step: this.step, maxLength, loops: this.model.config.total_ut_steps }
  }

  /** Rollouts of the step; with dynamic sampling, groups without spread are replaced by those of later rounds. */
  async #sample(
    source: ProblemSource,
    objective: Objective,
    maxNewTokens: number,
    signal: AbortSignal | undefined,
  ): Promise<{ rollouts: Rollouts; rounds: number }> {
    const config = { ...this.config, maxNewTokens }
    const rewards = this.rewardFunctions(source)
    const { resample } = objective.filter
    const first = await rollOut(this.model, source, rewards, config, this.step, 0, signal)
    if (resample === 0) return { rollouts: first, rounds: 1 }
    const { groupSize } = config
    const wanted = config.promptsPerStep * config.gradientAccumulation
    const moving = (made: Rollouts) => {
      const filtered = filterRewards(this.constructor.name, objective, made.rewards, made.truncated, groupSize)
      const { groupStds } = groupAdvantages(filtered, groupSize)
      const groups = [...groupStds.keys()].filter((group) => groupStds[group]! > 0)
      return pickGroups(made, groups, groupSize)
    }
    let rounds = 1
    let kept = moving(first)
    while (kept.sequences.length < wanted * groupSize && rounds <= resample) {
      kept = joinRollouts(kept, moving(await rollOut(this.model, source, rewards, config, this.step, rounds, signal)))
      rounds++
    }
    const count = Math.min(wanted, kept.sequences.length / groupSize)
    const groups = Array.from({ length: count }, (_, group) => group)
    const rollouts = count === 0 ? { ...first, cost: kept.cost } : pickGroups(kept, groups, groupSize)
    return { rollouts, rounds }
  }

  /** The batch of a step, with what the objective must know of its rollouts. */
  async #gather(
    source: ProblemSource,
    rollouts: Rollouts,
    objective: Objective,
    signal: AbortSignal | undefined,
  ): Promise<Gathered> {
    const { sequences, promptLengths, rewards, truncated, completions } = rollouts
    const { config } = this
    const batch: RolloutBatch = { sequences, promptLengths, rewards, truncated }
    const metrics: Metrics = {}
    if (config.exitThreshold !== undefined) {
      batch.exitLoops = rollouts.loops.map((loops) => loops.reduce((sum, loop) => sum + loop, 0) / Math.max(1, loops.length))
      batch.exits = sequences.map((sequence, i) => {
        const exits = new Array<number>(sequence.length - 1).fill(0)
        for (const [j, loop] of rollouts.loops[i]!.entries()) exits[promptLengths[i]! - 1 + j] = loop - 1
        return exits
      })
    } else if (config.logprobCheckEvery > 0 && this.step % config.logprobCheckEvery === 0) {
      const { logprobs } = await this.model.score(sequences, this.#scoring(promptLengths, true, signal))
      Object.assign(metrics, logprobDifference(rollouts.samplingLogprobs, logprobs))
      const loops = this.model.config.total_ut_steps
      if (objective.terms.length > 0 && onlyLastLoop(objective, 'conditional', loops) && loopsNeeded(objective, loops) === loops)
        batch.oldLogprobs = logprobs
    }
    if (isLabelFree(objective.rewards)) {
      const answerOf = 'answerOf' in config ? (config.answerOf as typeof answerKey | undefined) : undefined
      batch.answers = completions.map(({ completion, columns }) => (answerOf ?? answerKey)(completion, columns))
    }
    const problems = completions.map(({ columns }) => columns)
    batch.columns = problems
    const { groupSize, temperature } = config
    const beliefs: BeliefCurves = {}
    for (const belief of beliefsOf(objective)) {
      const scoring = { groupSize, temperature, maxNewTokens: this.maxNewTokens, signal }
      beliefs[belief] =
        belief === 'gold-answer'
          ? await goldAnswerBeliefs(this.model, source, problems, scoring)
          : await forcedExitBeliefs(this.model, source, problems, this.rewardFunctions(source), scoring)
    }
    return { batch: await this.#complete(batch, objective, signal), beliefs, metrics }
  }

  /**
   * Adds what the model itself can say of a batch: embeddings for novelty, mean exit loops for costs and strata. An empty response
   * resembles nothing and took one loop.
   */
  async #complete(batch: RolloutBatch, objective: Objective, signal?: AbortSignal): Promise<RolloutBatch> {
    const complete = { ...batch }
    const rows = [...batch.sequences.keys()].filter((i) => batch.sequences[i]!.length > batch.promptLengths[i]!)
    if (rows.length === 0 || batch.advantages !== undefined) return batch // nothing to learn from, or nothing to rate
    const sequences = rows.map((i) => batch.sequences[i]!)
    const options = { promptLengths: rows.map((i) => batch.promptLengths[i]!), signal }
    const scatter = <Value>(values: readonly Value[], empty: Value) => {
      const whole = batch.sequences.map(() => empty)
      for (const [k, i] of rows.entries()) whole[i] = values[k]!
      return whole
    }
    if (complete.embeddings === undefined && objective.rewards.some(({ kind }) => kind === 'novelty'))
      complete.embeddings = scatter<ArrayLike<number>>(await this.model.embed(sequences, options), [])
    const byLoop = objective.terms.some(
      ({ advantage }) => advantage.strata?.by === 'exit-loop' || advantage.cost?.by === 'exit-loop',
    )
    if (complete.exitLoops === undefined && (byLoop || objective.rewards.some(({ kind }) => kind === 'frugal'))) {
      const means = await this.model.responseMeans(sequences, options)
      complete.exitLoops = scatter(means.exitLoop, 1)
    }
    return complete
  }

  /**
   * Adds the log-probabilities that the objective needs and the batch does not bring.
   *
   * @param several whether more than one optimizer step is made on these rollouts; with one, every ratio is 1 and nothing is scored
   */
  async #withLogprobs(rated: RatedBatch, objective: Objective, several: boolean, signal?: AbortSignal): Promise<RatedRollouts> {
    const { batch, lengths, counted, advantages, moving } = rated
    const own = typeof this.#schedule.at(this.step) === 'function'
    const regularised =
      objective.kl !== undefined || objective.lazy !== undefined || objective.entropy.token !== 0 || objective.entropy.exit !== 0
    const all = own || regularised || !this.config.skipFlatGroups
    const active = counted.map((is, i) => is && lengths[i]! > 0 && (all || moving[i]!))
    const complete: RatedRollouts = {
      sequences: batch.sequences,
      promptLengths: batch.promptLengths,
      ...{ lengths, counted, active, advantages },
      oldLogprobs: batch.oldLogprobs,
      referenceLogprobs: batch.referenceLogprobs,
      ...{ exits: batch.exits, segments: batch.segments, mask: batch.mask },
    }
    const rows = [...active.keys()].filter((i) => active[i])
    if (objective.terms.some(({ space }) => space === 'marginal')) complete.marginal = this.#marginal(batch)
    if (rows.length === 0) return complete
    const sequences = rows.map((i) => batch.sequences[i]!)
    const promptLengths = rows.map((i) => batch.promptLengths[i]!)
    const scatter = (values: readonly ArrayLike<number>[]) => {
      const whole: ArrayLike<number>[] = Array(batch.sequences.length).fill([])
      for (const [k, i] of rows.entries()) whole[i] = values[k]!
      return whole
    }
    const loops = this.model.config.total_ut_steps
    const run = loopsNeeded(objective, loops)
    const scored = (space: 'conditional' | 'marginal') => ({
      lastLoop: !own && onlyLastLoop(objective, space, run),
      ...(run === loops ? {} : { loops: run }),
    })
    if (several && (own || usesRatio(objective, 'conditional')) && complete.oldLogprobs === undefined) {
      const options = { ...this.#scoring(promptLengths, false, signal), ...scored('conditional') }
      complete.oldLogprobs = scatter((await this.model.score(sequences, options)).logprobs)
    }
    if (several && usesRatio(objective, 'marginal')) {
      const marginal = complete.marginal!
      const own = rows.map((i) => marginal.sequences[i]!)
      const options = {
        ...this.#scoring(
          rows.map(() => 1),
          false,
          signal,
        ),
        ...scored('marginal'),
      }
      complete.marginal = { ...marginal, oldLogprobs: scatter((await this.model.score(own, options)).logprobs) }
    }
    if (needsReference(objective)) await this.#addReference(complete, objective, { sequences, promptLengths, scatter, signal })
    return complete
  }

  async #addReference(
    complete: RatedRollouts,
    objective: Objective,
    rows: {
      sequences: TokenSequence[]
      promptLengths: number[]
      scatter: (values: readonly ArrayLike<number>[]) => ArrayLike<number>[]
      signal: AbortSignal | undefined
    },
  ): Promise<void> {
    const { sequences, promptLengths, scatter, signal } = rows
    const lazy = objective.lazy?.old === 'ema'
    const teacher = usesTeacher(objective)
    if (complete.referenceLogprobs !== undefined && !lazy && !teacher) return
    const loops = this.model.config.total_ut_steps
    const byLoop =
      teacher ||
      (objective.kl !== undefined && objective.kl.loops !== 'last') ||
      (lazy && !onlyLastLoop(objective, 'conditional', loops))
    const scores = await (await this.#referenceModel()).score(sequences, this.#scoring(promptLengths, !byLoop, signal))
    const logprobs = scatter(scores.logprobs)
    if (complete.referenceLogprobs === undefined) complete.referenceLogprobs = logprobs
    if (lazy) complete.lazyLogprobs = logprobs
    if (!teacher) return
    const widths = sequences.map((sequence) => sequence.length - 1)
    complete.referenceEntropy = scatter(scores.entropy.map((entropy, i) => entropy.slice((loops - 1) * widths[i]!)))
    complete.referenceExitPdf = scatter(
      scores.exitPdf.map((pdf, i) => {
        const rows = Array.from({ length: loops }, (_, t) => [
          ...pdf.subarray(t * (widths[i]! + 1), t * (widths[i]! + 1) + widths[i]!),
        ])
        return rows.flat()
      }),
    )
  }

  /** The responses behind one start token. */
  #marginal({ sequences, promptLengths }: RolloutBatch): NonNullable<RatedRollouts['marginal']> {
    const start = this.config.marginalToken ?? this.model.config.bos_token_id ?? 0
    return { sequences: sequences.map((sequence, i) => [start, ...Array.from(sequence).slice(promptLengths[i]!)]) }
  }

  #loss(rated: RatedBatch, rollouts: RatedRollouts, part: readonly number[], maxNewTokens?: number): PolicyLoss {
    const { config, step } = this
    const maxLength = config.maxCompletionLength ?? maxNewTokens ?? this.maxNewTokens
    const rows = part.filter((i) => rollouts.active[i])
    const sequences = rows.map((i) => rollouts.sequences[i]!)
    const objective = this.#schedule.at(step)
    if (typeof objective === 'function') {
      const given = rated.batch.advantages !== undefined
      const advantages = given ? rated.rewards : groupAdvantages(rated.rewards, rated.groupSize).advantages
      const context = {
        step,
        sequences,
        promptLengths: rows.map((i) => rollouts.promptLengths[i]!),
        rewards: rows.map((i) => rated.rewards[i]!),
        advantages: rows.map((i) => advantages[i]!),
        norms: sequenceNorms(
          rows.map((i) => rollouts.lengths[i]!),
          'response-mean',
        ),
        oldLogprobs: rollouts.oldLogprobs && rows.map((i) => rollouts.oldLogprobs![i]!),
        mask: rollouts.mask && rows.map((i) => rollouts.mask![i]!),
        columns: rated.batch.columns && rows.map((i) => rated.batch.columns![i]!),
      }
      return { sequences, passes: [], own: { objective, context } }
    }
    const passes = enginePasses(objective, rollouts, part, step, {
      temperature: config.temperature,
      recompute: config.recompute,
      tokensPerMicroBatch: config.tokensPerMicroBatch,
      maxLength,
      loops: this.model.config.total_ut_steps,
      seed: new Random(config.seed, step, drawStream).word(),
    })
    return { sequences: passes.length === 0 ? [] : sequences, passes }
  }

  /** Scores, the caller's coefficients, and the backward from them. */
  async #accumulateOwn({ objective, context }: NonNullable<PolicyLoss['own']>): Promise<Metrics & { loss: number }> {
    const { sequences, promptLengths } = context
    const { temperature, recompute } = this.config
    const scores = await this.model.score(sequences, this.#scoring(promptLengths, false, undefined))
    const { loss, coefficients, gateCoefficients } = checkGradient(await objective({ ...context, scores }))
    await this.model.backward(sequences, coefficients, {
      temperature,
      recompute,
      ...(gateCoefficients === undefined ? {} : { gateCoefficients }),
    })
    return { loss }
  }

  async #referenceModel(): Promise<LoopLM> {
    if (this.#reference === undefined && this.optimizer.steps > 0) {
      const message = 'referenceLogprobs: earlier batches brought their own, so no reference was kept; bring them here too'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: this.constructor.name })
    }
    this.#reference ??= await this.model.clone()
    return this.#reference
  }

  async #following(): Promise<MovingAverage> {
    this.#reference ??= await this.model.clone()
    this.#average ??= new MovingAverage(this.#reference, this.model)
    return this.#average
  }

  #scoring(promptLengths: readonly number[], lastLoop: boolean, signal: AbortSignal | undefined) {
    return { promptLengths, lastLoop, temperature: this.config.temperature, signal }
  }

  /** The logical batches of a step: every pass over the rollouts, cut into minibatches of whole groups. */
  #parts(rated: RatedBatch): number[][] {
    const { updatesPerRollout, minibatches, seed } = this.config
    const { groupSize } = rated
    const groups = rated.rewards.length / groupSize
    const parts: number[][] = []
    for (let pass = 0; pass < updatesPerRollout; pass++) {
      const order = Array.from({ length: groups }, (_, group) => group)
      if (minibatches > 1) new Random(seed, this.step, shuffleStream + pass).shuffle(order)
      for (let k = 0; k < minibatches; k++) {
        const part = order.slice(Math.floor((k * groups) / minibatches), Math.floor(((k + 1) * groups) / minibatches))
        if (part.length > 0)
          parts.push(part.flatMap((group) => Array.from({ length: groupSize }, (_, i) => group * groupSize + i)))
      }
    }
    return parts
  }
}

function sampledCompletions({ completions, rewards, scores }: Rollouts): SampledCompletion[] {
  return completions.map(({ prompt, completion, columns }, i) => ({
    prompt,
    completion,
    answer: columns.answer,
    reward: rewards[i]!,
    rewards: Object.fromEntries(Object.entries(scores).map(([name, values]) => [name, values[i]!])),
  }))
}
