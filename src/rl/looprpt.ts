import type { FolderPart } from '../files/replace-folder.js'
import { configDifference } from '../model/config.js'
import { accumulateLoopRpt, type LoopRptBatch, MovingAverage } from '../model/looprpt.js'
import type { LoopLM } from '../model/model.js'
import type { TokenSequence } from '../model/types.js'
import { parseOptions, refuseOptions } from '../validation/schema.js'
import { checkCount, maskedLengths } from './batch.js'
import { looprptOptions } from './config-tokens.js'
import type { Metrics } from './events.js'
import type { Measured } from './loss-metrics.js'
import type { LoopRPTConfig, LoopRPTOptions } from './options.js'
import { SequenceTrainer } from './sequence-trainer.js'
import { sharesOf } from './shares.js'
import type { Prepared } from './trainer.js'
import type { Portion } from './updates.js'

/**
 * Sequences to learn from, which `update` and `gradients` of {@link LoopRPTTrainer} accept. Fields of rollouts are ignored.
 * null means absent. Unknown names are rejected.
 */
export interface LoopRPTBatch {
  /** Token ids, at least two each. */
  sequences: readonly TokenSequence[]
  /** Per sequence, how many tokens are the prompt and carry no loss. Defaults to 1 each. */
  promptLengths?: ArrayLike<number>
  /** Per sequence len-1: 0 for predictions that are never learned, for example tokens that a tool wrote. */
  mask?: readonly ArrayLike<number>[]
  /** Per sequence rollouts × loops × len × hidden_size. Used instead of the trainer's own draws (for tests). */
  noise?: readonly ArrayLike<number>[]
  /** Per sequence rollouts × (len-1), loops counted from 0. Used instead of the trainer's own draws (for tests). */
  exits?: readonly ArrayLike<number>[]
}

/**
 * LoopRPT (arXiv 2603.19714; math.md §5): reinforcement pre-training of the latent steps. On the hard tokens of each sequence,
 * it samples noisy rollouts of the loops. Their reward is the gain of their exit over the teacher's reference loop, minus a
 * cost per loop. The reward trains the gate and the trunk, and every loop learns the token with its weight. The teacher is a
 * moving average of the model in float32.
 *
 * @example
 * ```ts
 * const trainer = new LoopRPTTrainer(model, { task: addition({ digits: 3 }), steps: 50, learningRate: 1e-4, rollouts: 4 })
 * for await (const event of trainer.run()) console.log(event.step, event.metrics.reward, event.metrics['exit_loop/mean'])
 * ```
 */
export class LoopRPTTrainer extends SequenceTrainer<LoopRPTConfig, LoopRPTBatch, LoopRptBatch> {
  protected readonly fields = ['sequences', 'promptLengths', 'mask', 'noise', 'exits'] as const
  #teacher: LoopLM | undefined
  #average: MovingAverage | undefined
  #ownsTeacher = false

  /**
   * @param model the model to train, in place
   * @param options see {@link LoopRPTOptions}; `looplm options looprpt` lists them
   * @throws LoopLMError INVALID_CONFIG naming every rejected option
   */
  constructor(model: LoopLM, options: LoopRPTOptions = {}) {
    super('looprpt', model, parseOptions('LoopRPTTrainer', looprptOptions, options))
    this.#teacher = this.config.teacher
  }

  /** The teacher. undefined until the first step copies the model. */
  get teacher(): LoopLM | undefined {
    return this.#teacher
  }

  override dispose(): void {
    this.#average?.dispose()
    if (this.#ownsTeacher) this.#teacher?.dispose()
    super.dispose()
  }

  protected async accumulate(batch: LoopRptBatch): Promise<Measured> {
    const { seed, recompute, tokensPerMicroBatch } = this.config
    const m = await accumulateLoopRpt(this.model, await this.#followed(), batch, {
      ...this.#coefficients(),
      seed,
      recompute,
      tokensPerMicroBatch,
    })
    const metrics: Metrics & { loss: number } = {
      loss: m.loss,
      policy_loss: m.policyLoss,
      representation_loss: m.representationLoss,
      exit_entropy: -m.entropyLoss,
      kl: m.kl,
      reward: m.reward,
      reward_std: m.rewardStd,
      hard_tokens: m.tokens,
      'reference_loop/mean': m.referenceLoop,
      'sampled_exit_loop/mean': m.exitLoop,
      'exit_loop/mean': m.meanLoop,
    }
    for (const [name, values] of [
      ['logprob', m.loopLogprob],
      ['weight', m.loopWeight],
      ['exit_prob', m.loopExit],
    ] as const) {
      for (const [loop, value] of values.entries()) metrics[`loop_${loop + 1}/${name}`] = value
    }
    // each is a sum over hard tokens, divided by the number of hard tokens in the whole batch
    const sums = Object.keys(metrics).filter((name) => name !== 'hard_tokens')
    return { metrics, weight: 1, sums }
  }

  protected override async afterUpdate(): Promise<void> {
    if (this.config.teacherDecay < 1) await (await this.#following()).update(this.config.teacherDecay)
  }

  protected async prepare(batch: LoopRPTBatch, operation: string): Promise<Prepared<LoopRptBatch>> {
    return { portion: this.#portion(batch, this.step * this.config.batchSize, operation), metrics: {} }
  }

  /** Loads the teacher from the checkpoint that the run resumes from. */
  protected override async start(checkpoint: string | undefined): Promise<void> {
    const average = await this.#following()
    if (checkpoint !== undefined) await average.load(`${checkpoint}/teacher.safetensors`)
  }

  protected override checkpointParts(): FolderPart[] {
    return [async (to) => (await this.#following()).save(`${to}/teacher.safetensors`)]
  }

  async #followed(): Promise<LoopLM> {
    if (this.#teacher === this.model)
      throw refuseOptions(
        'LoopRPTTrainer',
        'teacher: it is the model itself, which it would follow; omit it, or give model.clone()',
      )
    const difference = this.#teacher && configDifference(this.model.config, this.#teacher.config)
    if (difference !== undefined)
      throw refuseOptions('LoopRPTTrainer', `teacher: ${difference}; the teacher must compute as the model does`)
    if (this.#teacher === undefined) {
      this.#teacher = await this.model.clone()
      this.#ownsTeacher = true
    }
    return this.#teacher
  }

  async #following(): Promise<MovingAverage> {
    const teacher = await this.#followed()
    this.#average ??= new MovingAverage(teacher, this.model)
    return this.#average
  }

  #coefficients() {
    const { rho, tau, lambdaBase, lambdaScale, rollouts, sigma, noiseSite, antithetic, rewardFrom, klReduction } = this.config
    const { policyCoefficient, representationCoefficient, entropyCoefficient, klCoefficient } = this.config
    return {
      ...{ rho, tau, lambdaBase, lambdaScale, rollouts, sigma, noiseSite, antithetic, rewardFrom, klReduction },
      ...{ policyCoefficient, representationCoefficient, entropyCoefficient, klCoefficient },
    }
  }

  /** Drops sequences without a response. Draws are numbered from `first`, so that a resumed run repeats them. */
  #portion(batch: LoopRPTBatch, first: number, operation: string): Portion<LoopRptBatch> {
    const { sequences, mask, noise, exits } = batch
    const promptLengths = batch.promptLengths!
    for (const [field, values] of Object.entries({ noise, exits })) checkCount(operation, field, values, sequences.length)
    const lengths = maskedLengths(operation, { sequences, promptLengths, ...(mask === undefined ? {} : { mask }) })
    const kept = [...lengths.keys()].filter((i) => lengths[i]! > 0)
    const { rows, whole } = sharesOf(this.ranks.size, { sequences, promptLengths, groupSize: 1 }, kept)
    const own = rows[this.ranks.rank]!
    const loss = {
      sequences: own.map((i) => sequences[i]!),
      promptLengths: own.map((i) => promptLengths[i]!),
      ids: own.map((i) => (first + i) % 2 ** 24),
      responses: kept.map((i) => lengths[i]!),
      mask: mask && own.map((i) => mask[i]!),
      noise: noise && own.map((i) => noise[i]!),
      exits: exits && own.map((i) => exits[i]!),
    }
    return { loss: own.length === 0 ? undefined : loss, ...whole }
  }
}
