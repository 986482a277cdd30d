import type { Tokenizer } from '../data/tokenizer.js'
import type { LoopLM } from '../model/model.js'
import { formatNumber } from '../monitor/progress.js'
import type { Fall } from './best-checkpoint.js'
import type { Metrics } from './events.js'
import type { ProblemSource } from './problems.js'

const firstSteps = 2

/** Warnings of a run: each kind is given once, with what to do about it. */
export class Advice {
  readonly #warn: (message: string) => void
  readonly #given = new Set<string>()
  #cutOffSteps = 0

  constructor(warn: (message: string) => void) {
    this.#warn = warn
  }

  /** Warns if the tokenizer of the data and the model disagree. */
  tokens(model: LoopLM, tokenizer: Tokenizer): void {
    const name = (id: number) => `${id} (${JSON.stringify(tokenizer.decode([id], { skipUnknownTokens: true }))})`
    const { eosTokenId: eos, bosTokenId: bos } = tokenizer
    const { endTokens } = model
    if (eos !== undefined && model.namesEndTokens && !endTokens.includes(eos)) {
      const ends = endTokens.length === 0 ? 'at no token' : `at ${endTokens.map(name).join(', ')}`
      this.#once(
        'eos_token_id',
        `eos_token_id: the tokenizer ends texts with ${name(eos)}, but the configuration of the model ends generation ${ends}. The ` +
          "model's is used, also in training. If it is wrong, change eos_token_id in config.json and generation_config.json.",
      )
    }
    const modelBos = model.config.bos_token_id
    if (bos !== undefined && modelBos !== null && modelBos !== bos) {
      const message = `bos_token_id: the tokenizer begins texts with ${name(bos)}, but the configuration of the model names ${modelBos}`
      this.#once('bos_token_id', `${message}. Prompts begin as the tokenizer writes them.`)
    }
    const own = model.tokenizer
    if (own !== undefined && own !== tokenizer && own.fingerprint !== tokenizer.fingerprint) {
      this.#once(
        'tokenizer',
        "the data uses another tokenizer than the model, and the model's is saved with it. To save the tokenizer of the data, set " +
          'model.tokenizer to it.',
      )
    }
  }

  /** Warns about rows from which a model cannot learn where a response ends. */
  ends(model: LoopLM, { stop, tokenizer, task }: ProblemSource, chat: boolean): void {
    const turnEnd = chat ? tokenizer.chatEndToken() : undefined
    if (turnEnd !== undefined && model.namesEndTokens && !model.endTokens.includes(turnEnd)) {
      this.#once(
        'turn end',
        `the chat template ends an answer with token ${turnEnd}, but generation does not stop there. Add it to eos_token_id in ` +
          'generation_config.json. The server and looplm chat stop there in any case.',
      )
    }
    if (task !== undefined || stop.length > 0 || turnEnd !== undefined) return
    this.#once(
      'no end',
      'neither the model nor the tokenizer names an end token, so the model will not learn where an answer ends: set eos_token_id of the ' +
        "model, or use a tokenizer that has one, for example Tokenizer.bytes({ special: { eos: '<eos>' } }).",
    )
  }

  /**
   * Warns if every completion of the first steps was cut off at the limit. That happens if the model's end token is not the one
   * that it learned.
   */
  cutOff(step: number, ratio: number | undefined, maxNewTokens: number, { stop, task }: ProblemSource): void {
    if (ratio === undefined || (task !== undefined && stop.length === 0)) return
    this.#cutOffSteps = ratio === 1 ? this.#cutOffSteps + 1 : Number.NEGATIVE_INFINITY
    if (this.#cutOffSteps < firstSteps) return
    this.#once(
      'cut off',
      `step ${step}: every completion of the first ${firstSteps} steps was cut off at maxNewTokens = ${maxNewTokens}. ${endRemedy(stop)}`,
    )
  }

  /** Warns if every response of an evaluation was cut off at the limit. */
  cutOffEvaluation(step: number, metrics: Metrics, stop: readonly number[]): void {
    const ratios = Object.entries(metrics).filter(([name]) => name.endsWith('/clipped_ratio'))
    if (ratios.length === 0 || ratios.some(([, ratio]) => ratio < 1)) return
    this.#once('cut off', `step ${step}: every answer of the evaluation was cut off at maxNewTokens. ${endRemedy(stop)}`)
  }

  skippedUpdate(step: number, metrics: Metrics): void {
    if (metrics.frac_reward_zero_std === 1 && metrics.frac_reward_null !== 1) {
      this.#once(
        'flat groups',
        `step ${step}: in every group all completions earned the same reward, so there is nothing to compare: no update was made and ` +
          'the loss is 0. Use problems that are solved sometimes but not always, raise groupSize or temperature, give partial ' +
          'rewards, or start from a better model. Later ones are only counted (skipped_updates, frac_reward_zero_std).',
      )
      return
    }
    this.#once(
      'empty batch',
      `step ${step}: no completion has both tokens and a reward to learn from (all rewards were null, or all responses are empty): no ` +
        'update was made and the loss is 0. Later ones are only counted (skipped_updates).',
    )
  }

  zeroLoss(step: number, gradNorm: number): void {
    this.#once(
      'zero loss',
      `step ${step}: the loss is 0, as it must be on fresh rollouts: every ratio is 1 and the advantages of a group sum to 0. The ` +
        `gradient is not 0 (grad_norm ${gradNorm.toPrecision(3)}), so the model learns; follow reward and grad_norm instead.`,
    )
  }

  /** Warns about a slow exchange of gradients between processes with GPUs. `over` is `AdamW.exchanged.over`. */
  carriedBy(over: string): void {
    if (!over.includes("through the host's memory")) return
    this.#once(
      'through the host',
      `gradients go over ${over}, which is slower than NCCL. Install NCCL 2.7 or later on every machine, or name its file in LOOPLM_NCCL.`,
    )
  }

  /** Warns about held-out results that became worse during a run. */
  fallen(falls: readonly Fall[], loaded: number | undefined): void {
    if (falls.length === 0) return
    const { from, to } = falls[0]!
    const start = from === 0 ? 'at the start' : `at step ${from}`
    if (loaded !== undefined) {
      const message = `no evaluation was better than the one ${start}, so the model has the parameters of step ${from} again`
      if (loaded === from) this.#once('fallen', message)
      return
    }
    const figures = falls.map(({ metric, before, after }) => `${metric} ${formatNumber(before)} → ${formatNumber(after)}`)
    this.#once(
      'fallen',
      `held-out results are worse at step ${to} than ${start}: ${figures.join(', ')}. Lower learningRate or train longer; ` +
        'metricForBestModel with loadBestModelAtEnd keeps the best checkpoint.',
    )
  }

  #once(kind: string, message: string): void {
    if (this.#given.has(kind)) return
    this.#given.add(kind)
    this.#warn(message)
  }
}

function endRemedy(stop: readonly number[]): string {
  const raise = 'Raise maxNewTokens if the answers are longer.'
  if (stop.length === 0) return `The model has no end token: set its eos_token_id. ${raise}`
  const ends = stop.length === 1 ? `token ${stop[0]}` : `the tokens ${stop.join(', ')}`
  return `A completion ends at ${ends}: see that the model was trained to write it (eos_token_id). ${raise}`
}
