import type { Tool } from '../chat/tools.js'
import type { ChatSettings } from '../data/chat-format.js'
import { Random } from '../data/random.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import { checkLoopCounts } from '../model/checks.js'
import type { LoopLM } from '../model/model.js'
import type { GenerateOptions, GenerateResult } from '../model/types.js'
import { exactMatch, type WeightedReward } from '../tasks/rewards.js'
import type { Task } from '../tasks/task.js'
import { checkFunction, checkNumber, checkOptions, describe, type Keys } from '../validation/arguments.js'
import { type Answerer, episodeAnswerer } from './answerer.js'
import { type Reader, sourceReaders, unreadOptions } from './config-common.js'
import type { DatasetSource } from './dataset-rows.js'
import { areTools, type Environment } from './environment.js'
import type { Metrics } from './events.js'
import { type EncodedPrompt, encodePrompt, encodePrompts } from './lessons.js'
import type { Rewards } from './options.js'
import { openProblems, type ProblemSource, taskProblems } from './problems.js'
import { Ranks } from './ranks.js'
import { namedRewards, type RewardLimits, scoreCompletions } from './rewards.js'
import { completionOf, generation } from './rollout.js'
import type { Problem } from './rollout-record.js'
import { checkGrammarTokenizer, constrained, type StateChoice, startingFrom } from './sampling.js'
import { bootstrapInterval, type Interval, passAtK, wilsonInterval } from './statistics.js'

/** A response and its reward. */
export interface Answer {
  /** What the model wrote. */
  completion: string
  /** Its reward. null if no reward function returned one. */
  reward: number | null
}

/** Responses to held-out problems with one loop count. */
export interface Evaluation {
  /** The number of loops of every token. */
  loops: number
  /**
   * Mean reward, which is the accuracy if rewards are 0 and 1. With several samples, the mean over problems of their means
   * (avg@k).
   */
  reward: number
  /**
   * 95 % confidence interval of the mean: {@link wilsonInterval} with one sample per problem and rewards of 0 and 1, else
   * {@link bootstrapInterval}.
   */
  interval: Interval
  /**
   * {@link passAtK} for k = 1, 2, 4, … and the number of samples. Only set with several samples whose rewards are 0 and 1.
   */
  passAt?: Record<number, number>
  /** Mean tokens per completion. */
  completionLength: number
  /** Fraction of the responses that were cut off at the length limit. undefined if every response has that length. */
  clippedRatio?: number
  /** Number of problems. */
  problems: number
  /** Responses per problem. */
  samples: number
  /** Reward per problem: the mean of its samples. null if there is no reward. */
  rewards: (number | null)[]
  /** The responses per problem. */
  answers: Answer[][]
  /** The problems: rows of the dataset, or what the task drew. */
  columns: Problem[]
}

/** Options of {@link evaluate}. */
export interface EvaluateOptions extends StateChoice {
  /** Task whose held-out problems are used. */
  task?: Task | undefined
  /** Rows to use instead of a task, or where to read them. */
  dataset?: DatasetSource | undefined
  /** How conversations are turned into text. Defaults to the tokenizer's chat template. */
  chatTemplate?: ChatSettings | undefined
  /** Tokenizer for a dataset. Defaults to the model's. */
  tokenizer?: Tokenizer | undefined
  /** Reward functions. Defaults to the task's, or `exactMatch` for a dataset. */
  reward?: Rewards | undefined
  /** Number of problems. Defaults to 256. */
  problems?: number | undefined
  /** Loop counts. Defaults to 1 up to the model's. */
  loops?: readonly number[] | undefined
  /** The longest response in tokens. Defaults to the task's value, or 256 for a dataset. */
  maxNewTokens?: number | undefined
  /** Responses per problem. Defaults to 1. */
  samples?: number | undefined
  /** 0 is greedy. Defaults to 0 for one sample, 1 for several. */
  temperature?: number | undefined
  /** Seed of the draws. Defaults to 0. */
  seed?: number | undefined
  /**
   * Answer problems by episodes of this environment. `maxNewTokens` then applies to a turn. Without `reward`, the rewards of
   * the turns count.
   */
  environment?: Environment | undefined
  /** Tools that every episode offers. */
  tools?: readonly Tool[] | undefined
  /** The most turns of an episode. Defaults to 8. */
  maxTurns?: number | undefined
  /** Grammar that responses, or the turns of episodes, must match. Requires that the model's tokenizer is that of the data. */
  grammar?: GenerateOptions['grammar'] | undefined
  /** Called after every answered batch of problems. */
  onProgress?:
    | ((progress: {
        /** The loop count that is being evaluated. */
        loops: number
        /** Number of problems answered with it so far. */
        answered: number
        /** Total number of problems. */
        of: number
      }) => void)
    | undefined
  /** Aborts the evaluation with code ABORTED. */
  signal?: AbortSignal | undefined
}

const evaluateOptions = {
  task: true,
  dataset: true,
  chatTemplate: true,
  tokenizer: true,
  reward: true,
  problems: true,
  loops: true,
  maxNewTokens: true,
  samples: true,
  temperature: true,
  seed: true,
  environment: true,
  tools: true,
  maxTurns: true,
  grammar: true,
  initialState: true,
  stateSeed: true,
  onProgress: true,
  signal: true,
} satisfies Keys<EvaluateOptions>

const promptsPerCall = 1024 // bounds the KV cache

/**
 * Answers held-out problems once per loop count, greedily or by sampling. The problems are the same each time. Under a
 * launcher, all processes call it with the same arguments, share the problems, and get the same results.
 *
 * @throws LoopLMError INVALID_CONFIG without a task, dataset or tokenizer, ABORTED
 *
 * @example
 * ```ts
 * const results = await evaluate(model, { task: addition({ digits: 3 }), problems: 1000, loops: [2, 4] })
 * for (const { loops, reward, interval } of results) console.log(loops, reward, interval.low, interval.high)
 * const [sampled] = await evaluate(model, { task: addition({ digits: 3 }), problems: 100, loops: [4], samples: 8 })
 * console.log(sampled.passAt)
 * ```
 */
export async function evaluate(model: LoopLM, options: EvaluateOptions): Promise<Evaluation[]> {
  checkOptions(options, evaluateOptions, 'evaluate')
  checkSampling(options, 'evaluate')
  if (options.onProgress !== undefined) checkFunction(options.onProgress, 'onProgress', 'evaluate')
  if (options.environment !== undefined) checkFunction(options.environment, 'environment', 'evaluate')
  const { task, dataset, tokenizer, chatTemplate, problems = 256 } = options
  const ofEpisodes: Reader = [options.environment !== undefined, ['tools', 'maxTurns'], 'an environment']
  const [unread] = unreadOptions({}, options, [...sourceReaders(options), ofEpisodes])
  if (unread !== undefined)
    throw new LoopLMError('INVALID_ARGUMENT', `${unread.name}: ${unread.message}`, { operation: 'evaluate' })
  const source = openProblems('evaluate', model, { task, dataset, evalDataset: dataset, tokenizer, chatTemplate, seed: 0 })
  if (options.grammar !== undefined) checkGrammarTokenizer(model, source.tokenizer, 'evaluate')
  const ranks = Ranks.found('evaluate')
  if (options.environment !== undefined) {
    const maxTurns = checkNumber(options.maxTurns ?? 8, 'maxTurns', { min: 1, max: 2 ** 16, integer: true }, 'evaluate')
    const { environment, tools } = options
    if (tools !== undefined && !areTools(tools)) {
      const message = `tools must be a list of tools, as defineTool makes them, got ${describe(tools)}`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'evaluate' })
    }
    const rewards = options.reward === undefined ? [] : namedRewards(options.reward)
    return answerProblems(model, source, rewards, {
      ...options,
      problems,
      ranks,
      answer: episodeAnswerer(model, source, { environment, tools, maxTurns }, rewards),
    })
  }
  const reward = options.reward ?? (task === undefined ? exactMatch : [{ name: task.name, reward: task.reward }])
  return answerProblems(model, source, namedRewards(reward), { ...options, problems, ranks })
}

/** @throws LoopLMError INVALID_ARGUMENT */
export function checkSampling(
  options: Pick<EvaluateOptions, 'problems' | 'loops' | 'samples' | 'temperature' | 'seed'>,
  operation: string,
): void {
  const { problems, loops, samples = 1, temperature, seed } = options
  if (problems !== undefined) checkNumber(problems, 'problems', { min: 1, max: 2 ** 20, integer: true }, operation)
  if (loops !== undefined) checkLoopCounts(loops, operation)
  checkNumber(samples, 'samples', { min: 1, max: 2 ** 16, integer: true }, operation)
  if (temperature !== undefined) checkNumber(temperature, 'temperature', { min: 0 }, operation)
  if (seed !== undefined) checkNumber(seed, 'seed', { min: 0, below: 2 ** 53, integer: true }, operation)
  if (samples === 1 || temperature !== 0) return
  const message = `samples: ${samples} greedy answers are all the same; give a temperature above 0, or ask for one sample`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

/** Implements {@link evaluate} for a source that is already open. */
export async function answerProblems(
  model: LoopLM,
  source: ProblemSource,
  rewards: readonly WeightedReward[],
  options: Omit<EvaluateOptions, 'task' | 'dataset' | 'tokenizer' | 'reward' | 'environment' | 'tools' | 'maxTurns'> &
    RewardLimits & {
      problems: number
      ranks: Ranks
      answer?: Answerer | undefined
    },
): Promise<Evaluation[]> {
  const { samples = 1, temperature = samples === 1 ? 0 : 1, seed = 0, signal, onProgress, ranks, answer } = options
  const problems = await source.heldOut(options.problems)
  const encoded = answer === undefined ? await encodePrompts(source, problems) : []
  const count = problems.length * samples
  const prompts = encoded.flatMap((prompt) => Array<EncodedPrompt>(samples).fill(prompt))
  const settings = {
    ...generation(source, options.maxNewTokens),
    ...{ ...constrained(options), ...startingFrom(options), temperature, signal },
  }
  const fixedLength = source.task !== undefined && source.stop.length === 0
  const evaluations: Evaluation[] = []
  for (const loops of options.loops ?? Array.from({ length: model.config.total_ut_steps }, (_, i) => i + 1)) {
    const results = await ranks.rows('answers', ranks.strided(count), async (own) => {
      if (answer !== undefined) {
        const asked = own.map((row) => ({ problem: problems[Math.floor(row / samples)]!, number: row }))
        const answered = await answer(asked, { ...settings, loops, seed: new Random(seed, 0, loops).word() })
        onProgress?.({ loops, answered: count, of: count })
        return answered
      }
      const generated: GenerateResult[] = []
      for (let start = 0; start < prompts.length; start += promptsPerCall) {
        const rows = own.filter((row) => row >= start && row < start + promptsPerCall)
        // a draw depends on the seed of the call and on the number within it
        const drawn = new Random(seed, start, loops).word()
        const sequenceNumbers = rows.map((row) => row - start)
        const options = { ...settings, loops, seed: drawn, sequenceNumbers }
        const part = rows.map((row) => prompts[row]!.tokens)
        if (part.length > 0) for (const result of await model.generate(part, options)) generated.push(result)
        onProgress?.({ loops, answered: Math.min(prompts.length, start + promptsPerCall), of: prompts.length })
      }
      const completions = generated.map((result, k) => {
        const row = own[k]!
        return completionOf(source, problems[Math.floor(row / samples)]!, prompts[row]!, result)
      })
      const { rewards: scored } = await scoreCompletions(rewards, completions, options)
      return generated.map(({ tokens, finishReason }, k) => ({
        completion: completions[k]!.completion,
        reward: scored[k]!,
        tokens: tokens.length,
        cut: finishReason === 'length',
      }))
    })
    const cut = results.filter((result) => result.cut).length
    const answers = problems.map((_, problem) =>
      Array.from({ length: samples }, (_, sample) => {
        const { completion, reward } = results[problem * samples + sample]!
        return { completion, reward }
      }),
    )
    evaluations.push({
      loops,
      ...(await summarize(answers)),
      ...(fixedLength ? {} : { clippedRatio: cut / Math.max(results.length, 1) }),
      completionLength: results.reduce((sum, { tokens }) => sum + tokens, 0) / Math.max(results.length, 1),
      problems: problems.length,
      samples,
      answers,
      columns: problems,
    })
  }
  return evaluations
}

/** Means and intervals over the problems that have a reward. */
async function summarize(answers: readonly Answer[][]): Promise<Pick<Evaluation, 'reward' | 'interval' | 'passAt' | 'rewards'>> {
  const known = answers.map((own) => own.map(({ reward }) => reward).filter((reward) => reward !== null))
  const rewards = known.map((own) => (own.length === 0 ? null : own.reduce((sum, reward) => sum + reward, 0) / own.length))
  const means = rewards.filter((reward) => reward !== null)
  if (means.length === 0) return { reward: 0, interval: { low: 0, high: 0 }, rewards }
  const sum = means.reduce((total, reward) => total + reward, 0)
  const single = answers.every(({ length }) => length === 1)
  const binary = known.every((own) => own.every((reward) => reward === 0 || reward === 1))
  const interval = single && binary ? wilsonInterval(sum, means.length) : await bootstrapInterval(means)
  const samples = Math.min(...known.filter(({ length }) => length > 0).map(({ length }) => length))
  if (single || !binary) return { reward: sum / means.length, interval, rewards }
  const counts = [...new Set([...Array.from({ length: 31 }, (_, i) => 2 ** i).filter((k) => k < samples), samples])]
  const passAt = Object.fromEntries(
    counts.map((k) => {
      const shares = known
        .filter(({ length }) => length > 0)
        .map((own) => passAtK(own.filter((one) => one === 1).length, own.length, k))
      return [k, shares.reduce((total, share) => total + share, 0) / shares.length]
    }),
  )
  return { reward: sum / means.length, interval, passAt, rewards }
}

/**
 * Opens tasks that are evaluated in addition to the data of a run, with the run's tokenizer.
 *
 * @throws LoopLMError INVALID_CONFIG naming a task whose prompts the tokenizer rejects
 */
export async function openEvalTasks(
  tasks: Readonly<Record<string, Task>>,
  tokenizer: Tokenizer,
  maxLength: number,
): Promise<[name: string, source: ProblemSource, reward: WeightedReward][]> {
  const opened = Object.entries(tasks).map(async ([name, task]): Promise<[string, ProblemSource, WeightedReward]> => {
    const source = taskProblems(task, tokenizer, 0, maxLength)
    try {
      await encodePrompt(source, (await source.heldOut(1))[0]!)
    } catch (cause) {
      throw new LoopLMError('INVALID_CONFIG', toLoopLMError(cause).message, { operation: `evalTasks.${name}`, cause })
    }
    return [name, source, { name, reward: task.reward }]
  })
  return Promise.all(opened)
}

/**
 * The metrics of an evaluation: for each loop count t `eval/loop_<t>/reward` with its interval, `pass_at_<k>` of several
 * samples, `mean_length` and `clipped_ratio`.
 *
 * @param task its name follows `eval/` if there are several tasks
 */
export function evaluationMetrics(evaluations: readonly Evaluation[], task?: string): Metrics {
  const prefix = task === undefined ? 'eval' : `eval/${task}`
  const metrics: Metrics = {}
  for (const { loops, reward, interval, passAt = {}, completionLength, clippedRatio } of evaluations) {
    const at = `${prefix}/loop_${loops}`
    metrics[`${at}/reward`] = reward
    metrics[`${at}/reward_low`] = interval.low
    metrics[`${at}/reward_high`] = interval.high
    for (const [k, share] of Object.entries(passAt)) metrics[`${at}/pass_at_${k}`] = share
    metrics[`${at}/mean_length`] = completionLength
    if (clippedRatio !== undefined) metrics[`${at}/clipped_ratio`] = clippedRatio
  }
  return metrics
}
