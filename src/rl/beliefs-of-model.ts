import { lastBoxed } from '../data/boxed.js'
import type { LoopLM } from '../model/model.js'
import { normalizeAnswer } from '../tasks/answers.js'
import type { WeightedReward } from '../tasks/rewards.js'
import { withoutThinking } from '../tasks/thinking.js'
import { inTurns } from '../turns.js'
import { answerProblems } from './evaluate.js'
import { answeredSequence } from './lessons.js'
import type { ProblemSource } from './problems.js'
import type { Ranks } from './ranks.js'
import type { RewardLimits } from './rewards.js'
import type { Problem } from './rollout-record.js'
import { type StateChoice, startingFrom } from './sampling.js'

/**
 * A completion's answer in the form that label-free rewards compare: the last box, otherwise the whole completion, without
 * thinking. null if it is empty.
 */
export function answerKey(completion: string, _columns: Record<string, unknown>): string | null {
  const said = withoutThinking(completion)
  const answer = (lastBoxed(said) ?? said).trim()
  return answer === '' ? null : normalizeAnswer(answer)
}

/**
 * Belief in the gold answer after each loop: the geometric mean of its tokens' probabilities, teacher-forced after the prompt.
 * Before the first loop, all tokens count as equally likely. Rows without an answer have a flat curve.
 *
 * @param problems one per rollout, `groupSize` consecutive ones are equal
 * @param options.loops the loops, counted from 1
 * @returns per rollout b_0 and one per loop
 */
export async function goldAnswerBeliefs(
  model: LoopLM,
  source: ProblemSource,
  problems: readonly Record<string, unknown>[],
  options: {
    groupSize: number
    temperature: number
    loops: readonly number[]
    signal: AbortSignal | undefined
    ranks: Ranks
  } & StateChoice,
): Promise<number[][]> {
  const { groupSize, temperature, loops, signal, ranks } = options
  const { vocab_size: vocabulary } = model.config
  const unique = problems.filter((_, i) => i % groupSize === 0).map((problem) => problem as Problem)
  const known = [...unique.keys()].filter((k) => unique[k]!.answer !== undefined)
  const curves = unique.map(() => new Array<number>(loops.length + 1).fill(1 / vocabulary))
  if (known.length > 0) {
    const logprobs = await ranks.rows('beliefs', ranks.strided(known.length), async (own) => {
      const drawn = await inTurns(own, (j) => answeredSequence(source, unique[known[j]!]!))
      const promptLengths = drawn.map(({ promptLength }) => promptLength)
      const sequences = drawn.map(({ tokens }) => tokens)
      const scoring = { ...startingFrom(options), promptLengths, temperature, loops: loops.at(-1)!, signal }
      return (await model.responseMeans(sequences, scoring)).logprobs
    })
    for (const [j, k] of known.entries()) curves[k] = [1 / vocabulary, ...loops.map((t) => Math.exp(logprobs[j]![t - 1]!))]
  }
  return problems.map((_, i) => curves[Math.floor(i / groupSize)]!)
}

/**
 * Belief by trial: the reward, between 0 and 1, of a greedy response with each number of loops. 0 before the first loop.
 *
 * @param problems one per rollout, `groupSize` consecutive ones are equal
 * @returns per rollout b_0..b_T
 */
export async function forcedExitBeliefs(
  model: LoopLM,
  source: ProblemSource,
  problems: readonly Record<string, unknown>[],
  rewards: readonly WeightedReward[],
  options: RewardLimits &
    StateChoice & {
      groupSize: number
      maxNewTokens: number | undefined
      loops: readonly number[]
      signal: AbortSignal | undefined
      ranks: Ranks
    },
): Promise<number[][]> {
  const { groupSize, ...settings } = options
  const unique = problems.filter((_, i) => i % groupSize === 0).map((problem) => problem as Problem)
  const trial = { ...source, heldOut: async () => unique }
  const curves = unique.map(() => [0])
  for (const loops of options.loops) {
    const asked = { ...settings, problems: unique.length, loops: [loops], temperature: 0 }
    const results = await answerProblems(model, trial, rewards, asked)
    for (const [k, reward] of results[0]!.rewards.entries()) curves[k]!.push(Math.min(1, Math.max(0, reward ?? 0)))
  }
  return problems.map((_, i) => curves[Math.floor(i / groupSize)]!)
}
