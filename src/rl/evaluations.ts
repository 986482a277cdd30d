import type { Tokenizer } from '../data/tokenizer.js'
import type { LoopLM } from '../model/model.js'
import type { BestCheckpoints } from './best-checkpoint.js'
import { answerProblems, evaluationMetrics, openEvalTasks } from './evaluate.js'
import type { Metrics } from './events.js'
import type { TrainerConfig } from './options.js'
import type { Ranks } from './ranks.js'

/** The evaluations of a run: of its own data, and of `evalTasks`. */
export class Evaluations {
  readonly #model: LoopLM
  readonly #config: TrainerConfig
  readonly #selection: BestCheckpoints

  readonly #ranks: Ranks

  constructor(model: LoopLM, config: TrainerConfig, selection: BestCheckpoints, ranks: Ranks) {
    this.#ranks = ranks
    this.#model = model
    this.#config = config
    this.#selection = selection
  }

  /** Whether a step is to be evaluated and was not yet. */
  isDue(step: number): boolean {
    const { evalEvery, evalOnStart } = this.#config
    if (evalEvery === 0 || this.#selection.state.evaluated === step) return false
    return step === 0 ? evalOnStart : step % evalEvery === 0
  }

  /** @throws LoopLMError INVALID_CONFIG naming a task of `evalTasks` that cannot be asked in these tokens */
  async check(tokenizer: Tokenizer): Promise<void> {
    await this.#tasks(tokenizer)
  }

  /**
   * Evaluates, and ranks the step.
   *
   * @param ofData the metrics of the run's own held-out data
   */
  async evaluate(
    step: number,
    ofData: () => Promise<Metrics>,
    tokenizer: Tokenizer,
    signal: AbortSignal | undefined,
  ): Promise<Metrics> {
    const {
      evalProblems: problems,
      evalLoops: loops,
      evalSamples: samples,
      evalTemperature: temperature,
      evalMaxNewTokens: maxNewTokens,
      seed,
    } = this.#config
    const answering = { problems, loops, samples, temperature, seed, maxNewTokens, signal, ranks: this.#ranks }
    const metrics = await ofData()
    for (const [name, source, reward] of await this.#tasks(tokenizer)) {
      const evaluations = await answerProblems(this.#model, source, [reward], answering)
      Object.assign(metrics, evaluationMetrics(evaluations, name))
    }
    this.#selection.add(step, metrics)
    return metrics
  }

  /** `evalTasks` in the tokens that the run trains on. */
  #tasks(tokenizer: Tokenizer) {
    return openEvalTasks(this.#config.evalTasks ?? {}, tokenizer, this.#model.config.max_position_embeddings)
  }
}
