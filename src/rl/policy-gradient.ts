import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { Random } from '../data/random.js'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { LossBatch, LossObjective } from '../model/types.js'
import type { WeightedReward } from '../tasks/rewards.js'
import { lossBatch, type RatedBatch, type RolloutBatch, rateBatch } from './batch.js'
import { type CheckpointPart, writeFolder } from './checkpoint.js'
import type { PolicyConfig } from './config.js'
import type { Metrics } from './events.js'
import { loadParameters } from './load-parameters.js'
import { lossMetrics } from './metrics.js'
import type { ProblemSource } from './problems.js'
import { namedRewards } from './rewards.js'
import { logprobDifference, type Rollouts, rollOut } from './rollout.js'
import { type Prepared, type StepWork, Trainer } from './trainer.js'

const shuffleStream = 2 ** 16 // above the substreams of rollouts
const defaultCap = 5 // of CISPO, as in the public Ouro code

/**
 * Trainers that sample completions, score them and follow the policy gradient of math.md §2. RLTT and GRPO differ in nothing but
 * their options.
 */
export abstract class PolicyGradientTrainer extends Trainer<PolicyConfig, RolloutBatch> {
  protected readonly objective: LossObjective
  #reference: LoopLM | undefined
  #rewards: readonly WeightedReward[] | undefined

  constructor(name: string, model: LoopLM, config: PolicyConfig) {
    super(name, model, config)
    const { surrogate, epsilon, epsilonHigh } = config
    this.objective = {
      terms: [
        {
          credit: {
            kind: config.weights === 'last' ? 'one-hot' : config.weights,
            alpha: config.alpha,
            detach: config.weights !== 'exit-pdf' || config.detachWeights,
          },
          surrogate,
          epsilonLow: epsilon,
          epsilonHigh: epsilonHigh ?? epsilon,
          dualClip: config.dualClip ?? 0,
          cap: surrogate === 'cispo' ? (epsilonHigh ?? defaultCap) : defaultCap,
        },
      ],
      beta: config.beta,
      temperature: config.temperature,
      recompute: config.recompute,
      tokensPerMicroBatch: config.tokensPerMicroBatch,
    }
    if (config.reward !== undefined) this.#rewards = namedRewards(config.reward)
  }

  protected get maxNewTokens(): number | undefined {
    return this.config.maxNewTokens
  }

  override dispose(): void {
    this.#reference?.dispose()
    super.dispose()
  }

  protected async accumulate(loss: LossBatch): Promise<Metrics> {
    const terms = { ratio: this.config.surrogate !== 'reinforce', kl: this.config.beta > 0 }
    return lossMetrics(await this.model.accumulateLoss(loss, this.objective), terms)
  }

  protected async prepare(batch: RolloutBatch, operation: string): Promise<Prepared> {
    const rated = await this.#addLogprobs(rateBatch(operation, batch, this.config), false)
    return { loss: lossBatch(rated, [...batch.sequences.keys()], this.config), metrics: rated.metrics }
  }

  protected async work(signal: AbortSignal | undefined): Promise<StepWork> {
    const source = this.problems
    const config = { ...this.config, maxNewTokens: this.config.maxNewTokens ?? source.maxNewTokens }
    const rollouts = await rollOut(this.model, source, this.rewardFunctions(source), config, this.step, signal)
    const { sequences, promptLengths, rewards, metrics } = rollouts
    const batch: RolloutBatch = { sequences, promptLengths, rewards }
    if (config.logprobCheckEvery > 0 && this.step % config.logprobCheckEvery === 0) {
      const { logprobs } = await this.model.score(sequences, this.#scoring(promptLengths, true, signal))
      Object.assign(metrics, logprobDifference(rollouts.samplingLogprobs, logprobs))
      if (config.weights === 'last') batch.oldLogprobs = logprobs
    }
    const several = config.updatesPerRollout * config.minibatches > 1
    const rated = await this.#addLogprobs(rateBatch(this.constructor.name, batch, config), several, signal)
    return {
      losses: this.#parts(rated).map((part) => lossBatch(rated, part, config)),
      metrics: { ...rated.metrics, ...metrics },
      tokens: sequences.reduce((sum, sequence) => sum + sequence.length, 0),
      completions: this.#completionRecords(rollouts),
    }
  }

  protected rewardFunctions(source: ProblemSource): readonly WeightedReward[] {
    const { task } = source
    if (this.#rewards === undefined && task !== undefined) this.#rewards = [{ name: task.name, reward: task.reward }]
    if (this.#rewards !== undefined) return this.#rewards
    const message = 'reward: a dataset needs a reward function, for example exactMatch'
    throw new LoopLMError('INVALID_CONFIG', message, { operation: this.constructor.name })
  }

  /** The frozen reference is the model as it is now, or as it was when the run that is resumed began. */
  protected override async start(checkpoint: string | undefined): Promise<void> {
    const { beta, runDir } = this.config
    if (beta === 0) return
    this.#reference ??= await this.model.clone()
    const reference = this.#reference
    const saved = checkpoint === undefined ? undefined : resolve(checkpoint, '..', '..', 'reference')
    const folder = runDir === undefined ? undefined : resolve(runDir, 'reference')
    if (saved !== undefined) await loadParameters(reference, saved)
    if (folder !== undefined && folder !== saved) await writeFolder(folder, [(to) => reference.save(to)])
  }

  /** A run folder that vanished and was made again lacks the reference, without which its checkpoints could not be resumed. */
  protected override checkpointParts(): CheckpointPart[] {
    const reference = this.#reference
    const folder = resolve(this.config.runDir ?? '', 'reference')
    if (reference === undefined || existsSync(folder)) return []
    return [() => writeFolder(folder, [(to) => reference.save(to)])]
  }

  /**
   * Adds the log-probabilities that the objective needs and the batch does not bring.
   *
   * @param several whether more than one optimizer step is made on these rollouts; with one, every ratio is 1 and nothing is scored
   */
  async #addLogprobs(rated: RatedBatch, several: boolean, signal?: AbortSignal): Promise<RatedBatch> {
    const { batch, active } = rated
    const { surrogate, weights, beta } = this.config
    if (active.length === 0) return rated
    const sequences = active.map((i) => batch.sequences[i]!)
    const promptLengths = active.map((i) => batch.promptLengths[i]!)
    const scatter = (values: readonly ArrayLike<number>[]) => {
      const all: ArrayLike<number>[] = Array(batch.sequences.length).fill([])
      for (const [k, i] of active.entries()) all[i] = values[k]!
      return all
    }
    const complete = { ...batch }
    if (surrogate !== 'reinforce' && several && batch.oldLogprobs === undefined) {
      const { logprobs } = await this.model.score(sequences, this.#scoring(promptLengths, weights === 'last', signal))
      complete.oldLogprobs = scatter(logprobs)
    }
    if (beta > 0 && batch.referenceLogprobs === undefined) {
      const { logprobs } = await (await this.#referenceModel()).score(sequences, this.#scoring(promptLengths, true, signal))
      complete.referenceLogprobs = scatter(logprobs)
    }
    return { ...rated, batch: complete }
  }

  async #referenceModel(): Promise<LoopLM> {
    if (this.#reference === undefined && this.step > 0) {
      const message = 'referenceLogprobs: earlier batches brought their own, so no reference was kept; bring them here too'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: this.constructor.name })
    }
    this.#reference ??= await this.model.clone()
    return this.#reference
  }

  #scoring(promptLengths: readonly number[], lastLoop: boolean, signal: AbortSignal | undefined) {
    return { promptLengths, lastLoop, temperature: this.config.temperature, signal }
  }

  /** The logical batches of a step: every pass over the rollouts, cut into minibatches of whole groups. */
  #parts(rated: RatedBatch): number[][] {
    const { updatesPerRollout, minibatches, seed } = this.config
    const { groupSize } = rated
    const groups = rated.advantages.length / groupSize
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

  #completionRecords({ completions, rewards, scores }: Rollouts): Record<string, unknown>[] {
    return completions.slice(0, this.config.logCompletions).map(({ prompt, completion, columns }, i) => ({
      prompt,
      completion,
      answer: columns.answer,
      reward: rewards[i],
      rewards: Object.fromEntries(Object.entries(scores).map(([name, values]) => [name, values[i]])),
    }))
  }
}
