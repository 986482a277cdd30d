import type { Dataset } from '../data/dataset.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { GenerateResult } from '../model/types.js'
import { exactMatch, type WeightedReward } from '../tasks/rewards.js'
import type { Task } from '../tasks/task.js'
import { checkNumber, checkOptions, type Keys } from '../validation/arguments.js'
import type { Metrics } from './events.js'
import type { Rewards } from './options.js'
import { openProblems, type ProblemSource, promptTokens, taskProblems } from './problems.js'
import { namedRewards, scoreCompletions } from './rewards.js'
import { completionOf, generation } from './rollout.js'

/** Greedy answers to held-out problems with one loop count. */
export interface Evaluation {
  /** Loops that every token ran. */
  loops: number
  /** Mean reward; the accuracy when rewards are 0 and 1. */
  reward: number
  /** Mean tokens per completion. */
  completionLength: number
  /** Share of the answers that were cut off at the length limit; undefined where every answer has that length. */
  clippedRatio?: number
  /** Problems answered. */
  problems: number
  /** Reward of each problem; null where there was no opinion. */
  rewards: (number | null)[]
}

/** What {@link evaluate} answers, and how. */
export interface EvaluateOptions {
  /** Its held-out problems are answered. */
  task?: Task | undefined
  /** Rows to answer, instead of a task. */
  dataset?: Dataset | undefined
  /** Tokenizer of a dataset; default the model's. */
  tokenizer?: Tokenizer | undefined
  /** Default: the task's, `exactMatch` for a dataset. */
  reward?: Rewards | undefined
  /** How many problems; default 256. */
  problems?: number | undefined
  /** Loop counts; default 1 to the model's. */
  loops?: readonly number[] | undefined
  /** Longest answer in tokens; default what the task says, 256 for a dataset. */
  maxNewTokens?: number | undefined
  signal?: AbortSignal | undefined
}

const evaluateOptions = {
  task: true,
  dataset: true,
  tokenizer: true,
  reward: true,
  problems: true,
  loops: true,
  maxNewTokens: true,
  signal: true,
} satisfies Keys<EvaluateOptions>

const promptsPerCall = 1024 // bounds the cache of keys and values

/**
 * Answers held-out problems greedily, once per loop count; the same problems each time.
 *
 * @throws LoopLMError INVALID_CONFIG without a task, dataset or tokenizer, ABORTED
 *
 * @example
 * ```ts
 * const results = await evaluate(model, { task: addition({ digits: 3 }), problems: 1000, loops: [2, 4] })
 * for (const { loops, reward } of results) console.log(loops, reward)
 * ```
 */
export async function evaluate(model: LoopLM, options: EvaluateOptions): Promise<Evaluation[]> {
  const { task, dataset, tokenizer } = options
  const problems = checkNumber(options.problems ?? 256, 'problems', { min: 1, max: 2 ** 20, integer: true }, 'evaluate')
  const source = openProblems('evaluate', model, { task, dataset, evalDataset: dataset, tokenizer, seed: 0 })
  checkOptions(options, evaluateOptions, 'evaluate')
  const reward = options.reward ?? (task === undefined ? exactMatch : [{ name: task.name, reward: task.reward }])
  return answerProblems(model, source, namedRewards(reward), { ...options, problems })
}

/** The body of {@link evaluate}, for a source that is open already. */
export async function answerProblems(
  model: LoopLM,
  source: ProblemSource,
  rewards: readonly WeightedReward[],
  options: Pick<EvaluateOptions, 'loops' | 'maxNewTokens' | 'signal'> & { problems: number },
): Promise<Evaluation[]> {
  const problems = source.heldOut(options.problems)
  const prompts = problems.map((problem) => promptTokens(source, problem))
  const settings = { ...generation(source, options.maxNewTokens), temperature: 0, signal: options.signal }
  const fixedLength = source.task !== undefined && source.stop.length === 0
  const evaluations: Evaluation[] = []
  for (const loops of options.loops ?? Array.from({ length: model.config.total_ut_steps }, (_, i) => i + 1)) {
    const results: GenerateResult[] = []
    for (let start = 0; start < prompts.length; start += promptsPerCall) {
      const part = prompts.slice(start, start + promptsPerCall)
      for (const result of await model.generate(part, { ...settings, loops })) results.push(result)
    }
    const completions = results.map((result, i) => completionOf(source, problems[i]!, result))
    const scored = (await scoreCompletions(rewards, completions, { signal: options.signal })).rewards
    const cut = results.filter(({ finishReason }) => finishReason === 'length').length
    const known = scored.filter((reward) => reward !== null)
    evaluations.push({
      loops,
      reward: known.reduce((sum, reward) => sum + reward, 0) / Math.max(known.length, 1),
      ...(fixedLength ? {} : { clippedRatio: cut / Math.max(results.length, 1) }),
      completionLength: results.reduce((sum, { tokens }) => sum + tokens.length, 0) / Math.max(results.length, 1),
      problems: problems.length,
      rewards: scored,
    })
  }
  return evaluations
}

/**
 * Tasks that are evaluated beside the data of a run, in its tokens.
 *
 * @throws LoopLMError INVALID_CONFIG naming a task whose prompts the tokenizer refuses
 */
export function openEvalTasks(
  tasks: Readonly<Record<string, Task>>,
  tokenizer: Tokenizer,
  maxLength: number,
): [name: string, source: ProblemSource, reward: WeightedReward][] {
  return Object.entries(tasks).map(([name, task]) => {
    const source = taskProblems(task, tokenizer, 0, maxLength)
    try {
      promptTokens(source, source.heldOut(1)[0]!)
    } catch (cause) {
      throw new LoopLMError('INVALID_CONFIG', toLoopLMError(cause).message, { operation: `evalTasks.${name}`, cause })
    }
    return [name, source, { name, reward: task.reward }]
  })
}

/**
 * `eval/loop_<t>/reward`, `eval/loop_<t>/mean_length` and `eval/loop_<t>/clipped_ratio` for each loop count t.
 *
 * @param task its name comes after `eval/` where there are several
 */
export function evaluationMetrics(evaluations: readonly Evaluation[], task?: string): Metrics {
  const prefix = task === undefined ? 'eval' : `eval/${task}`
  const metrics: Metrics = {}
  for (const { loops, reward, completionLength, clippedRatio } of evaluations) {
    metrics[`${prefix}/loop_${loops}/reward`] = reward
    metrics[`${prefix}/loop_${loops}/mean_length`] = completionLength
    if (clippedRatio !== undefined) metrics[`${prefix}/loop_${loops}/clipped_ratio`] = clippedRatio
  }
  return metrics
}
