import { LoopLMError } from '../errors.js'
import { exitGateNames } from '../model/config.js'
import { accumulateStage2 } from '../model/looprpt.js'
import type { LoopLM } from '../model/model.js'
import type { InputVectors, LossBatch, LossObjective, TokenSequence } from '../model/types.js'
import { parseOptions } from '../validation/schema.js'
import { maskedLengths } from './batch.js'
import { pretrainOptions } from './config-tokens.js'
import type { LessonOptions } from './lessons.js'
import type { Measured } from './loss-metrics.js'
import { lossMetrics } from './loss-metrics.js'
import { lengthNormalizers } from './objective/normalizer.js'
import type { PretrainConfig, PretrainOptions } from './options.js'
import { SequenceTrainer } from './sequence-trainer.js'
import { sharesOf } from './shares.js'
import { trainedLoops } from './trained-loops.js'
import type { Prepared } from './trainer.js'
import type { LogicalBatch } from './updates.js'

/**
 * Sequences to learn, which `update` and `gradients` of {@link PretrainTrainer} accept. Fields of rollouts are ignored. null
 * means absent. Unknown names are rejected.
 */
export interface PretrainBatch {
  /** Token ids, at least two each. */
  sequences: readonly TokenSequence[]
  /**
   * Per sequence, how many tokens are the prompt and carry no loss. Defaults to 1 each, since the first token has no
   * prediction.
   */
  promptLengths?: ArrayLike<number>
  /** Per sequence len-1: 0 for predictions that carry no loss, for example tokens that a tool wrote. */
  mask?: readonly ArrayLike<number>[]
  /**
   * Per sequence len × D, row-major: the initial state of its tokens, for families that start from one. By default drawn from
   * `stateSeed`.
   */
  initialStates?: readonly ArrayLike<number>[]
  /**
   * Per sequence the vectors that replace embedded tokens (soft prompts), or undefined, as in `score`. `gradients` returns
   * their gradients, `update` passes them to `onInputVectors`. Only Stage I supports them.
   */
  inputVectors?: readonly (InputVectors | undefined)[]
}

/** A share of a batch. */
interface PretrainLoss extends LossBatch, LogicalBatch {
  /** Token ids, at least two each. */
  sequences: readonly TokenSequence[]
  /** Number of response tokens of the whole batch. */
  tokens: number
}

/**
 * Pre-training and supervised fine-tuning of a looped model, Stage I of Ouro (arXiv 2510.25741; math.md §6). The loss is the
 * expected cross-entropy of the loops under the exit distribution, minus `entropyCoefficient` times the entropy of that
 * distribution. It is averaged over all response tokens of the batch, and trains the trunk, the head and the gate. With
 * `stage: 2` only the gate is trained: it learns to continue as long as another loop lowers the cross-entropy of the token.
 *
 * @example
 * ```ts
 * const trainer = new PretrainTrainer(model, { task: addition({ digits: 3 }), steps: 300, learningRate: 2e-3, batchSize: 192 })
 * for await (const event of trainer.run()) console.log(event.step, event.metrics.loss)
 * ```
 */
export class PretrainTrainer extends SequenceTrainer<PretrainConfig, PretrainBatch, PretrainLoss> {
  protected readonly objective: LossObjective
  protected readonly fields = ['sequences', 'promptLengths', 'mask', 'initialStates', 'inputVectors'] as const

  /**
   * @param model the model to train, in place
   * @param options see {@link PretrainOptions}; `looplm options pretrain` lists them
   * @throws LoopLMError INVALID_CONFIG naming every rejected option
   */
  constructor(model: LoopLM, options: PretrainOptions = {}) {
    const config = parseOptions('PretrainTrainer', pretrainOptions, options)
    super('pretrain', model, config)
    const { weights = model.architecture.exitGate ? 'exit-pdf' : 'last', alpha, entropyCoefficient } = config
    const loops = trainedLoops('PretrainTrainer', model, config)
    const byName = {
      'exit-pdf': { kind: 'exit-pdf', detach: false },
      progressive: { kind: 'progressive', alpha },
      uniform: { kind: 'uniform' },
      last: { kind: 'one-hot' },
    } as const
    this.objective = {
      terms: [{ weights: typeof weights === 'string' ? byName[weights] : { kind: 'given', weights } }],
      exitEntropy: weights === 'exit-pdf' ? entropyCoefficient : 0,
      ...loops.scoring,
      backwardLoops: loops.backwardLoops,
      recompute: config.recompute,
      tokensPerMicroBatch: config.tokensPerMicroBatch,
    }
  }

  protected override get lessons(): LessonOptions {
    return { assistantOnly: this.config.assistantOnly }
  }

  protected override get trained(): readonly string[] | undefined {
    return this.config.stage === 2 ? exitGateNames : undefined
  }

  protected async accumulate(batch: PretrainLoss, last: () => Promise<void>): Promise<Measured> {
    const sums = ['loss']
    if (this.config.stage === 1) {
      await last()
      const measured = await this.model.accumulateLoss(batch, this.objective)
      batch.vectorGradients = measured.inputVectors
      return { metrics: lossMetrics(measured, { ratio: false, kl: false }), weight: measured.responseTokens, sums }
    }
    const { sequences, promptLengths, mask, tokens } = batch
    const asked = { sequences, promptLengths: promptLengths!, mask, tokens }
    return { metrics: { loss: await accumulateStage2(this.model, asked, this.config.tokensPerMicroBatch) }, weight: 1, sums }
  }

  protected async prepare(batch: PretrainBatch, operation: string): Promise<Prepared<PretrainLoss>> {
    const { sequences, mask, initialStates, inputVectors } = batch
    const promptLengths = batch.promptLengths!
    if (this.config.stage === 2) {
      const unread = Object.entries({ inputVectors, initialStates }).find(([, given]) => given !== undefined)?.[0]
      const message = `${unread}: Stage II trains the exit gate alone; omit ${unread}`
      if (unread !== undefined) throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    const lengths = maskedLengths(operation, { sequences, promptLengths, ...(mask === undefined ? {} : { mask }) })
    const kept = [...lengths.keys()].filter((i) => lengths[i]! > 0)
    if (kept.length === 0) {
      const message = `no sequence has a token after its prompt${mask === undefined ? '' : ' that the mask keeps'}`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    const all = lengthNormalizers(lengths, 'token-mean')
    const { rows, whole } = sharesOf(this.ranks.size, { sequences, promptLengths, groupSize: 1 }, kept)
    const own = rows[this.ranks.rank]!
    const normalizers = own.map((i) => all[i]!)
    const loss = {
      sequences: own.map((i) => sequences[i]!),
      promptLengths: own.map((i) => promptLengths[i]!),
      terms: [{ advantages: own.map(() => 1), lengthNormalizers: normalizers }],
      lengthNormalizers: normalizers,
      tokens: lengths.reduce((sum, length) => sum + length, 0),
      mask: mask && own.map((i) => mask[i]!),
      initialStates: initialStates && own.map((i) => initialStates[i]!),
      inputVectors: inputVectors && own.map((i) => inputVectors[i]),
      rows: own,
    }
    return { portion: { loss: own.length === 0 ? undefined : loss, ...whole }, metrics: {} }
  }
}
