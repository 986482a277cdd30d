import { Random } from '../data/random.js'
import type { LoopLM } from '../model/model.js'
import type { GenerateOptions, GenerateResult, RealArray } from '../model/types.js'
import type { WeightedReward } from '../tasks/rewards.js'
import type { PolicyConfig } from './config.js'
import type { Metrics } from './events.js'
import { type Problem, type ProblemSource, promptTokens } from './problems.js'
import { type Completion, rewardMetrics, scoreCompletions } from './rewards.js'

/** Sampled completions with their rewards, `groupSize` consecutive ones per prompt. */
export interface Rollouts {
  sequences: Int32Array[]
  promptLengths: number[]
  rewards: (number | null)[]
  /** Per sequence, one log-probability per response token as the sampler computed it. */
  samplingLogprobs: RealArray[]
  /** Per sequence, the loop each response token was read from, 1-based. */
  loops: number[][]
  /** Whether each response was cut at the length limit. */
  truncated: boolean[]
  completions: Completion[]
  /** Scores per reward name and completion, before weighting. */
  scores: Record<string, (number | null)[]>
  /** What it took, completions that were discarded included. */
  cost: SamplingCost
}

/** What sampling took. */
export interface SamplingCost {
  completions: number
  /** Prompts included. */
  tokens: number
  seconds: number
}

const seedStream = 2 // substreams 0 and 1 of Random(seed, ·) draw the problems of tasks
const roundStride = 2 ** 30 // positions of the problems of later rounds: the same step never draws one twice
const roundStreams = 2 ** 11

/**
 * Samples and scores the completions of one step. Prompts and draws depend on (seed, step) alone.
 *
 * @param step 0-based
 * @param round counted from 0; later rounds of a step bring other problems
 * @param signal stops between two kernels with ABORTED
 */
export async function rollOut(
  model: LoopLM,
  source: ProblemSource,
  rewards: readonly WeightedReward[],
  config: PolicyConfig,
  step: number,
  round: number,
  signal?: AbortSignal,
): Promise<Rollouts> {
  const { promptsPerStep, gradientAccumulation, groupSize, temperature, topK, topP, exitThreshold } = config
  const problems: Problem[] = []
  const prompts: number[][] = []
  const results: GenerateResult[] = []
  const start = performance.now()
  for (let call = 0; call < gradientAccumulation; call++) {
    const position = round * roundStride + (step * gradientAccumulation + call) * promptsPerStep
    const drawn = source.take(position, promptsPerStep)
    const encoded = drawn.flatMap((problem) => Array<number[]>(groupSize).fill(promptTokens(source, problem)))
    const seed = new Random(config.seed, step, seedStream + call + round * roundStreams).word()
    const options = { ...generation(source, config.maxNewTokens), temperature, topK, topP, seed, signal }
    if (exitThreshold !== undefined) options.exit = { rule: 'gate', threshold: exitThreshold }
    for (const problem of drawn) for (let k = 0; k < groupSize; k++) problems.push(problem)
    for (const prompt of encoded) prompts.push(prompt)
    for (const result of await model.generate(encoded, options)) results.push(result)
  }
  const seconds = (performance.now() - start) / 1000
  const completions = results.map((result, i) => completionOf(source, problems[i]!, result))
  const { rewardConcurrency: concurrency, rewardTimeout: timeout } = config
  const scored = await scoreCompletions(rewards, completions, { concurrency, timeout, signal })
  const sequences = results.map(({ tokens }, i) => Int32Array.from([...prompts[i]!, ...tokens]))
  return {
    sequences,
    promptLengths: prompts.map((prompt) => prompt.length),
    rewards: scored.rewards,
    samplingLogprobs: results.map(({ logprobs }) => logprobs),
    loops: results.map(({ loops }) => loops),
    truncated: results.map(({ finishReason }) => finishReason === 'length'),
    completions,
    scores: scored.byName,
    cost: { completions: results.length, tokens: sequences.reduce((sum, { length }) => sum + length, 0), seconds },
  }
}

/** The metrics of rollouts: rewards and clipped completions of those that are trained on, time and tokens of all that were sampled. */
export function rolloutMetrics({ scores, truncated, cost }: Rollouts): Metrics {
  return {
    ...rewardMetrics(scores),
    'completions/clipped_ratio': truncated.filter(Boolean).length / truncated.length,
    sampling_time: cost.seconds,
  }
}

/** Some groups of rollouts, in the order of `groups`. */
export function pickGroups(rollouts: Rollouts, groups: readonly number[], groupSize: number): Rollouts {
  const rows = groups.flatMap((group) => Array.from({ length: groupSize }, (_, i) => group * groupSize + i))
  return mapRollouts(rollouts, (values) => rows.map((i) => values[i]!))
}

/** The rollouts of two rounds. */
export function joinRollouts(a: Rollouts, b: Rollouts): Rollouts {
  const scores = Object.fromEntries(Object.entries(a.scores).map(([name, values]) => [name, [...values, ...b.scores[name]!]]))
  return {
    sequences: [...a.sequences, ...b.sequences],
    promptLengths: [...a.promptLengths, ...b.promptLengths],
    rewards: [...a.rewards, ...b.rewards],
    samplingLogprobs: [...a.samplingLogprobs, ...b.samplingLogprobs],
    loops: [...a.loops, ...b.loops],
    truncated: [...a.truncated, ...b.truncated],
    completions: [...a.completions, ...b.completions],
    scores,
    cost: addCosts(a.cost, b.cost),
  }
}

function addCosts(a: SamplingCost, b: SamplingCost): SamplingCost {
  return { completions: a.completions + b.completions, tokens: a.tokens + b.tokens, seconds: a.seconds + b.seconds }
}

function mapRollouts(rollouts: Rollouts, pick: <T>(values: readonly T[]) => T[]): Rollouts {
  return {
    sequences: pick(rollouts.sequences),
    promptLengths: pick(rollouts.promptLengths),
    rewards: pick(rollouts.rewards),
    samplingLogprobs: pick(rollouts.samplingLogprobs),
    loops: pick(rollouts.loops),
    truncated: pick(rollouts.truncated),
    completions: pick(rollouts.completions),
    scores: Object.fromEntries(Object.entries(rollouts.scores).map(([name, values]) => [name, pick(values)])),
    cost: rollouts.cost,
  }
}

/** Generation options that rollouts and evaluations share: full depth, and where a completion ends. */
export function generation(source: ProblemSource, maxNewTokens: number | undefined): GenerateOptions {
  return {
    maxNewTokens: maxNewTokens ?? source.maxNewTokens,
    exit: { rule: 'fixed' },
    stop: source.stop,
  }
}

/** What the reward functions see: the text without the token that ended it. */
export function completionOf(source: ProblemSource, problem: Problem, result: GenerateResult): Completion {
  const tokens = result.finishReason === 'stop' ? result.tokens.slice(0, -1) : result.tokens
  const completion = source.tokenizer.decode(tokens, { skipUnknownTokens: true })
  return { prompt: problem.prompt, completion, columns: problem }
}

/**
 * How far the sampler's log-probabilities are from those of the training kernels.
 *
 * @param sampling per sequence, one per response token
 * @param scored per sequence len-1, last loop
 */
export function logprobDifference(sampling: readonly RealArray[], scored: readonly ArrayLike<number>[]): Metrics {
  let sum = 0
  let max = 0
  let count = 0
  for (const [i, logprobs] of sampling.entries()) {
    const start = scored[i]!.length - logprobs.length
    for (let j = 0; j < logprobs.length; j++) {
      const difference = Math.abs(logprobs[j]! - scored[i]![start + j]!)
      sum += difference
      max = Math.max(max, difference)
      count++
    }
  }
  return { 'sampling/logprob_difference/mean': count === 0 ? 0 : sum / count, 'sampling/logprob_difference/max': max }
}
