import { Random } from '../data/random.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import { largest } from '../extremes.js'
import type { LoopLM } from '../model/model.js'
import type { GenerateOptions, GenerateResult } from '../model/types.js'
import type { WeightedReward } from '../tasks/rewards.js'
import type { Metrics } from './events.js'
import { type EncodedPrompt, encodePrompts } from './lessons.js'
import type { PolicyConfig } from './options.js'
import type { ProblemSource } from './problems.js'
import type { Ranks } from './ranks.js'
import { type Completion, rewardMetrics, scoreCompletions } from './rewards.js'
import type { Problem, Rollout } from './rollout-record.js'
import { samplingOptions } from './sampling.js'

/** Rollouts, `groupSize` consecutive ones per prompt, and the cost of sampling them. */
export interface SampledRollouts {
  rollouts: Rollout[]
  /** Cost of everything that was sampled, including discarded rollouts. */
  cost: SamplingCost
  /** Further metrics of the source. */
  metrics?: Metrics
}

/** The cost of sampling. */
export interface SamplingCost {
  completions: number
  /** Including prompts. */
  tokens: number
  seconds: number
}

/**
 * Produces the rollouts of a step, so that trainers are independent of how text is generated. Several processes sample a round
 * together: each samples different groups. A group only depends on (seed, step, round, number of the group).
 *
 * @param step 0-based
 * @param round counted from 0; later rounds of a step use other problems
 * @param mine whether this process samples a group; groups count over the round
 * @param signal aborts between two kernels with ABORTED
 * @returns the rollouts of those groups, in their order
 */
export type RolloutSource = (
  step: number,
  round: number,
  mine: (group: number) => boolean,
  signal: AbortSignal | undefined,
) => Promise<SampledRollouts>

/** Substream of draws; different from those of problems. */
export const seedStream = 2 // substreams 0 and 1 of Random(seed, ·) draw the problems of tasks
// offset between the positions of problems of successive rounds, so that a step never draws a problem twice
export const roundStride = 2 ** 30
export const roundStreams = 2 ** 11

/** Samples one completion at a time for each prompt of a source, and scores them. */
export function singleTurn(
  model: LoopLM,
  source: ProblemSource,
  rewards: readonly WeightedReward[],
  config: PolicyConfig,
): RolloutSource {
  const { promptsPerStep, gradientAccumulation, groupSize } = config
  return async (step, round, mine, signal) => {
    const problems: Problem[] = []
    const prompts: EncodedPrompt[] = []
    const results: GenerateResult[] = []
    const start = performance.now()
    for (let call = 0; call < gradientAccumulation; call++) {
      const position = round * roundStride + (step * gradientAccumulation + call) * promptsPerStep
      const all = await source.take(position, promptsPerStep)
      const groups = [...all.keys()].filter((group) => mine(call * promptsPerStep + group))
      if (groups.length === 0) continue
      const drawn = groups.map((group) => all[group]!)
      const encoded = (await encodePrompts(source, drawn)).flatMap((prompt) => Array<EncodedPrompt>(groupSize).fill(prompt))
      const sequenceNumbers = groups.flatMap((group) => Array.from({ length: groupSize }, (_, k) => group * groupSize + k))
      const seed = new Random(config.seed, step, seedStream + call + round * roundStreams).word()
      const options = {
        ...generation(source, config.maxNewTokens),
        ...samplingOptions(config),
        promptCache: true,
        seed,
        sequenceNumbers,
        signal,
      }
      for (const problem of drawn) for (let k = 0; k < groupSize; k++) problems.push(problem)
      for (const prompt of encoded) prompts.push(prompt)
      const tokens = encoded.map((prompt) => prompt.tokens)
      for (const result of await model.generate(tokens, options)) results.push(result)
    }
    const seconds = (performance.now() - start) / 1000
    const completions = results.map((result, i) => completionOf(source, problems[i]!, prompts[i]!, result))
    const scored = await scoreCompletions(rewards, completions, { ...config, signal })
    const rollouts = results.map((result, i): Rollout => {
      const { tokens, logprobs: samplingLogprobs, loops, finishReason } = result
      return {
        tokens: Int32Array.from([...prompts[i]!.tokens, ...tokens]),
        promptLength: prompts[i]!.tokens.length,
        ...{ samplingLogprobs, loops },
        reward: scored.rewards[i]!,
        scores: Object.fromEntries(Object.entries(scored.byName).map(([name, values]) => [name, values[i]!])),
        truncated: finishReason === 'length',
        prompt: prompts[i]!.text,
        text: completions[i]!.completion,
        columns: problems[i]!,
      }
    })
    const tokens = rollouts.reduce((sum, { tokens }) => sum + tokens.length, 0)
    return { rollouts, cost: { completions: rollouts.length, tokens, seconds } }
  }
}

/**
 * The rollouts of a step. With dynamic sampling, groups without a gradient are replaced by groups of later rounds.
 *
 * @param resample the most additional rounds
 * @param moving returns the numbers of the groups that have a gradient; only called with `resample`
 */
export async function sampleStep(
  ranks: Ranks,
  source: RolloutSource,
  step: number,
  { groupSize, groups: wanted, resample }: { groupSize: number; groups: number; resample: number },
  moving: (rollouts: readonly Rollout[]) => readonly number[],
  signal: AbortSignal | undefined,
): Promise<SampledRollouts & { rounds: number }> {
  const sample = (round: number) => sampleTogether(ranks, source, step, round, groupSize, signal)
  const first = await sample(0)
  if (resample === 0) return { ...first, rounds: 1 }
  const kept: Rollout[] = []
  const keep = (rollouts: readonly Rollout[]) => {
    for (const group of moving(rollouts))
      for (const rollout of rollouts.slice(group * groupSize, (group + 1) * groupSize)) kept.push(rollout)
  }
  keep(first.rollouts)
  const made: Omit<SampledRollouts, 'rollouts'>[] = [first]
  while (kept.length < wanted * groupSize && made.length <= resample) {
    const { rollouts: more, ...round } = await sample(made.length)
    keep(more)
    made.push(round)
  }
  const seconds = made.reduce((sum, { cost }) => sum + cost.seconds, 0)
  const rollouts = kept.length === 0 ? first.rollouts : kept.slice(0, wanted * groupSize)
  return { rollouts, ...together(made, seconds), rounds: made.length }
}

/**
 * Rewrites an out-of-memory error of generation: if a single rollout does not fit, it names the trainer's options that help.
 */
function explainMemory(error: unknown): never {
  const { code, message, operation } = toLoopLMError(error)
  if (code !== 'OUT_OF_MEMORY') throw error
  const found = message.replace(/^[\w.]+: /, '').replace(/: lower maxNewTokens.*$/, '')
  const remedy = 'lower maxNewTokens, maxEpisodeTokens or loops, shorten the prompts, or load the model in bfloat16'
  const explained = `one rollout alone does not fit: ${found}: ${remedy}. Rollouts wait for each other, so fewer of them do not help`
  throw new LoopLMError('OUT_OF_MEMORY', explained, { operation, cause: error })
}

/** The rollouts of a round. Each group is sampled and rewarded by one process, and every process gets all of them. */
async function sampleTogether(
  ranks: Ranks,
  source: RolloutSource,
  step: number,
  round: number,
  groupSize: number,
  signal: AbortSignal | undefined,
): Promise<SampledRollouts> {
  const mine = (group: number) => group % ranks.size === ranks.rank
  const parts = await ranks.all('rollouts', () => source(step, round, mine, signal).catch(explainMemory))
  if (parts.length === 1) return parts[0]!
  const count = parts.reduce((sum, { rollouts }) => sum + rollouts.length, 0)
  const rollouts = Array.from({ length: count }, (_, i) => {
    const group = Math.floor(i / groupSize)
    return parts[group % ranks.size]!.rollouts[Math.floor(group / ranks.size) * groupSize + (i % groupSize)]!
  })
  return { rollouts, ...together(parts, largest(parts.map(({ cost }) => cost.seconds))) }
}

/** Cost and metrics of everything that was sampled in parts. Counts are summed, other metrics averaged over all completions. */
function together(
  parts: readonly Omit<SampledRollouts, 'rollouts'>[],
  seconds: number,
): { cost: SamplingCost; metrics: Metrics } {
  const total = (of: (cost: SamplingCost) => number) => parts.reduce((sum, { cost }) => sum + of(cost), 0)
  const completions = total((cost) => cost.completions)
  const metrics: Metrics = {}
  for (const { metrics: own = {}, cost } of parts)
    for (const [name, value] of Object.entries(own)) {
      const weight = name.startsWith('sampling/') ? 1 : cost.completions / completions
      metrics[name] = (metrics[name] ?? 0) + weight * value
    }
  return { cost: { completions, tokens: total((cost) => cost.tokens), seconds }, metrics }
}

/**
 * The metrics of rollouts: rewards and clipping of the completions that are trained on, time and tokens of everything that was
 * sampled.
 */
export function rolloutMetrics({ rollouts, cost, metrics = {} }: SampledRollouts): Metrics {
  const names = new Set(rollouts.flatMap(({ scores = {} }) => Object.keys(scores)))
  const byName = Object.fromEntries([...names].map((name) => [name, rollouts.map(({ scores }) => scores?.[name] ?? null)]))
  return {
    ...rewardMetrics(byName),
    'completions/clipped_ratio': rollouts.filter(({ truncated }) => truncated).length / rollouts.length,
    sampling_time: cost.seconds,
    ...metrics,
  }
}

/** Options of `model.generate` for completions or the turns of episodes, with their limit. */
export type Sampling = GenerateOptions & { maxNewTokens: number }

/** Generation options that rollouts and evaluations share: full depth, and the end of a completion. */
export function generation(source: ProblemSource, maxNewTokens: number | undefined): Sampling {
  return {
    maxNewTokens: maxNewTokens ?? source.maxNewTokens,
    exit: { rule: 'fixed' },
    stop: [...source.stop, ...(source.stopTexts ?? [])],
  }
}

/** What the reward functions get: the text without the token that ended it. */
export function completionOf(source: ProblemSource, problem: Problem, prompt: EncodedPrompt, result: GenerateResult): Completion {
  const ended = result.finishReason === 'stop' && source.stop.includes(result.tokens.at(-1)!)
  const tokens = ended ? result.tokens.slice(0, -1) : result.tokens
  const text = source.tokenizer.decode(tokens, { skipUnknownTokens: true })
  const ends = (source.stopTexts ?? []).map((stop) => text.indexOf(stop)).filter((index) => index >= 0)
  const completion = text.slice(0, Math.min(text.length, ...ends))
  return { prompt: prompt.text, completion, columns: problem }
}

/**
 * The difference between the sampler's log-probabilities and those of the training kernels.
 *
 * @param scored per rollout len-1, last loop
 */
export function logprobDifference(rollouts: readonly Rollout[], scored: readonly ArrayLike<number>[]): Metrics {
  let sum = 0
  let max = 0
  let count = 0
  for (const [i, { samplingLogprobs: logprobs = [], mask }] of rollouts.entries()) {
    const start = scored[i]!.length - logprobs.length
    for (let j = 0; j < logprobs.length; j++) {
      if (mask?.[j] === 0) continue
      const difference = Math.abs(logprobs[j]! - scored[i]![start + j]!)
      sum += difference
      max = Math.max(max, difference)
      count++
    }
  }
  return { 'sampling/logprob_difference/mean': count === 0 ? 0 : sum / count, 'sampling/logprob_difference/max': max }
}
