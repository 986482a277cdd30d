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
import type { Problem } from './rollout-record.js'
import type { Constrained } from './sampling.js'

/** What a caller of `evaluate` of a trainer may say. */
export type Asked = Pick<EvaluateOptions, 'problems' | 'loops' | 'samples' | 'temperature' | 'signal'>

/** @throws LoopLMError INVALID_ARGUMENT */
export function checkAsked(asked: Asked, operation: string): void {
  checkOptions(asked, { problems: true, loops: true, samples: true, temperature: true, signal: true }, operation)
  checkSampling(asked, operation)
}

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
    const metrics = await ofData()
    for (const [name, source, reward] of await this.#tasks(tokenizer)) {
      Object.assign(metrics, evaluationMetrics(await this.answer(source, () => [reward], { signal }), name))
    }
    this.#selection.add(step, metrics)
    return metrics
  }

  /**
   * Answers held-out problems as the options of the run say, where the caller says nothing else.
   *
   * @param rewards asked for where nothing else judges the answers
   * @param how.maxNewTokens of the trainer; the option `evalMaxNewTokens` comes first
   * @param how.answer answers in place of single completions
   */
  answer(
    source: ProblemSource,
    rewards: () => readonly WeightedReward[],
    asked: Asked,
    { maxNewTokens, answer, grammar }: { maxNewTokens?: number | undefined; answer?: Answerer | undefined } & Constrained = {},
  ): Promise<Evaluation[]> {
    const { evalProblems, evalLoops, evalSamples, evalTemperature, evalMaxNewTokens, seed } = this.#config
    return answerProblems(this.#model, source, answer === undefined ? rewards() : [], {
      ...{ answer, grammar },
      problems: asked.problems ?? evalProblems,
      loops: asked.loops ?? evalLoops,
      samples: asked.samples ?? evalSamples,
      temperature: asked.temperature ?? (asked.samples === undefined ? evalTemperature : undefined),
      seed,
      maxNewTokens: evalMaxNewTokens ?? maxNewTokens,
      signal: asked.signal,
      ranks: this.#ranks,
    })
  }

  /** Reads what an evaluation will ask: all rows of a dataset that it takes, one problem of a task. */
  async read(source: ProblemSource, read: (row: Problem) => Promise<void>): Promise<void> {
    const rows = await source.heldOut(source.task === undefined ? this.#config.evalProblems : 1)
    await inTurns(rows, read)
  }

  /** `evalTasks` in the tokens that the run trains on. */
  #tasks(tokenizer: Tokenizer) {
    return openEvalTasks(this.#config.evalTasks ?? {}, tokenizer, this.#model.config.max_position_embeddings)
  }
}
