import type { Tokenizer } from '../data/tokenizer.js'
import type { LoopLM } from '../model/model.js'
import type { WeightedReward } from '../tasks/rewards.js'
import { inTurns } from '../turns.js'
import { checkOptions } from '../validation/arguments.js'
import type { Answerer } from './answerer.js'
import type { BestCheckpoints } from './best-checkpoint.js'
import {
  answerProblems,
  checkSampling,
  type EvaluateOptions,
  type Evaluation,
  evaluationMetrics,
  openEvalTasks,
} from './evaluate.js'
import type { Metrics } from './events.js'
import type { TrainerConfig } from './options.js'
import type { ProblemSource } from './problems.js'
import type { Ranks } from './ranks.js'
import type { RewardLimits } from './rewards.js'
import type { Problem } from './rollout-record.js'
import type { Constrained, StateChoice } from './sampling.js'

/** The options of a trainer's `evaluate`. */
export type Asked = Pick<EvaluateOptions, 'problems' | 'loops' | 'samples' | 'temperature' | 'signal'>

/** The options of a run that its evaluations read. Not every trainer has the limits of rewards and the initial states. */
type EvaluatedConfig = TrainerConfig & RewardLimits & StateChoice

/** The evaluations of a run, on its own data and on `evalTasks`. */
export class Evaluations {
  readonly #model: LoopLM
  readonly #config: EvaluatedConfig
  readonly #selection: BestCheckpoints

  readonly #ranks: Ranks

  constructor(model: LoopLM, config: EvaluatedConfig, selection: BestCheckpoints, ranks: Ranks) {
    this.#ranks = ranks
    this.#model = model
    this.#config = config
    this.#selection = selection
  }

  /** Whether a step must be evaluated and has not been yet. */
  isDue(step: number): boolean {
    const { evalEvery, evalOnStart } = this.#config
    if (evalEvery === 0 || this.#selection.state.evaluated === step) return false
    return step === 0 ? evalOnStart : step % evalEvery === 0
  }

  /** @throws LoopLMError INVALID_CONFIG naming a task of `evalTasks` whose prompts the tokenizer cannot encode */
  async check(tokenizer: Tokenizer): Promise<void> {
    await this.#tasks(tokenizer)
  }

  /**
   * Evaluates, and ranks the step.
   *
   * @param ofData computes the metrics of the run's own held-out data
   */
  async evaluate(
    step: number,
    ofData: () => Promise<Metrics>,
    tokenizer: Tokenizer,
    signal: AbortSignal | undefined,
  ): Promise<Metrics> {
    const metrics = await ofData()
    for (const [name, source, reward] of await this.#tasks(tokenizer)) {
      const asked = this.asked({ signal }, 'evalTasks')
      Object.assign(metrics, evaluationMetrics(await this.answer(source, () => [reward], asked), name))
    }
    this.#selection.add(step, metrics)
    return metrics
  }

  /**
   * The options of an evaluation: what is asked for, otherwise the options of the run.
   *
   * @throws LoopLMError INVALID_ARGUMENT
   */
  asked(asked: Asked, operation: string): Asked & { problems: number } {
    checkOptions(asked, { problems: true, loops: true, samples: true, temperature: true, signal: true }, operation)
    const { evalProblems, evalLoops, evalSamples, evalTemperature } = this.#config
    const { problems = evalProblems, loops = evalLoops, samples = evalSamples, temperature = evalTemperature } = asked
    const merged = { problems, loops, samples, temperature, signal: asked.signal }
    checkSampling(merged, operation)
    return merged
  }

  /**
   * Answers held-out problems.
   *
   * @param asked the result of {@link asked}
   * @param rewards called if nothing else judges the responses
   * @param how.maxNewTokens the trainer's; the option `evalMaxNewTokens` takes precedence
   * @param how.answer answers instead of single completions
   */
  answer(
    source: ProblemSource,
    rewards: () => readonly WeightedReward[],
    asked: Asked & { problems: number },
    { maxNewTokens, answer, grammar }: { maxNewTokens?: number | undefined; answer?: Answerer | undefined } & Constrained = {},
  ): Promise<Evaluation[]> {
    const { evalMaxNewTokens, seed, rewardConcurrency, rewardTimeout, initialState, stateSeed } = this.#config
    return answerProblems(this.#model, source, answer === undefined ? rewards() : [], {
      ...{ ...asked, answer, grammar, seed, rewardConcurrency, rewardTimeout, initialState, stateSeed },
      maxNewTokens: evalMaxNewTokens ?? maxNewTokens,
      ranks: this.#ranks,
    })
  }

  /** Reads what an evaluation will use: the dataset's rows that it takes, or one problem of a task. */
  async read(source: ProblemSource, read: (row: Problem) => Promise<void>): Promise<void> {
    const rows = await source.heldOut(source.task === undefined ? this.#config.evalProblems : 1)
    await inTurns(rows, read)
  }

  /** `evalTasks`, opened with the run's tokenizer. */
  #tasks(tokenizer: Tokenizer) {
    return openEvalTasks(this.#config.evalTasks ?? {}, tokenizer, this.#model.config.max_position_embeddings)
  }
}
