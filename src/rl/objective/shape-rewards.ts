import { LoopLMError } from '../../errors.js'
import { largest, smallest } from '../../extremes.js'
import { type RewardShaper, valueAt } from './schema.js'

/** What shapers know of each completion of a batch. Groups are `groupSize` consecutive completions. */
export interface RewardInput {
  rewards: readonly (number | null)[]
  groupSize: number
  /** Number of response tokens. */
  lengths: readonly number[]
  /** Answers as strings that are equal if the answers are equal. null if there is none. */
  answers?: readonly (string | null)[] | undefined
  /** A vector per completion, of any norm; only its direction matters. */
  embeddings?: readonly ArrayLike<number>[] | undefined
  /** Mean exit loop of the tokens, 1-based. */
  exitLoops?: readonly number[] | undefined
}

/**
 * Applies a list of shapers to the rewards of groups, in order (docs/objectives.md).
 *
 * @param step counted from 0, for weights that change
 * @throws LoopLMError INVALID_ARGUMENT naming the field that a shaper needs and the batch lacks
 */
export function shapeRewards(shapers: readonly RewardShaper[], input: RewardInput, step: number): (number | null)[] {
  let rewards: (number | null)[] = [...input.rewards]
  for (const shaper of shapers) {
    const next: (number | null)[] = []
    for (let start = 0; start < rewards.length; start += input.groupSize) {
      const members = Array.from({ length: Math.min(input.groupSize, rewards.length - start) }, (_, i) => start + i)
      for (const reward of shapeGroup(shaper, rewards, input, members, step)) next.push(reward)
    }
    rewards = next
  }
  return rewards
}

/** Whether shapers ignore the rewards of the reward functions. Majority and novelty replace them. */
export function isLabelFree(shapers: readonly RewardShaper[]): boolean {
  return shapers.some(({ kind }) => kind === 'majority' || kind === 'novelty')
}

function shapeGroup(
  shaper: RewardShaper,
  rewards: readonly (number | null)[],
  input: RewardInput,
  members: readonly number[],
  step: number,
): (number | null)[] {
  switch (shaper.kind) {
    case 'majority': {
      const answers = members.map((i) => needed(input.answers, 'answers')[i]!)
      const majority = mostFrequent(answers)
      return answers.map((answer) => (answer !== null && answer === majority ? 1 : 0))
    }
    case 'novelty': {
      const answers = needed(input.answers, 'answers')
      const embeddings = needed(input.embeddings, 'embeddings')
      return noveltyRewards(
        members.map((i) => answers[i]!),
        members.map((i) => embeddings[i]!),
      )
    }
    case 'length': {
      const lengths = members.map((i) => input.lengths[i]!)
      const [shortest, longest] = [smallest(lengths), largest(lengths)]
      return members.map((i, k) => {
        const reward = rewards[i]!
        if (reward === null) return null
        const bonus = longest === shortest ? 0 : 0.5 - (lengths[k]! - shortest) / (longest - shortest)
        return reward + valueAt(shaper.weight, step) * (reward > 0 ? bonus : Math.min(0, bonus))
      })
    }
    case 'overlong':
      return members.map((i) => {
        const reward = rewards[i]!
        const over = (input.lengths[i]! - (shaper.maxLength - shaper.cache)) / shaper.cache
        return reward === null ? null : reward - valueAt(shaper.weight, step) * Math.min(Math.max(over, 0), 1)
      })
    case 'frugal':
      return members.map((i) => {
        const reward = rewards[i]!
        if (reward === null) return null
        const extra = Math.max(0, Math.round(needed(input.exitLoops, 'exitLoops')[i]!) - 1)
        const bonus = reward > 0 ? [0.6, 0.4, 0.2, 0][Math.min(extra, 3)]! : extra > 0 ? 0.05 : 0
        return reward + valueAt(shaper.weight, step) * bonus
      })
  }
}

/** The most frequent answer of a group; the earliest wins a tie. null if no completion has an answer. */
function mostFrequent(answers: readonly (string | null)[]): string | null {
  const counts = new Map<string, number>()
  for (const answer of answers) if (answer !== null) counts.set(answer, (counts.get(answer) ?? 0) + 1)
  let best: string | null = null
  for (const [answer, count] of counts) if (best === null || count > counts.get(best)!) best = answer
  return best
}

/**
 * EVOL-RL (arXiv 2509.15194). Novelty u = 1 - half the mean similarity within the same class - half the largest similarity to
 * any other response, min-max scaled to ũ within the class. The majority gets .5 + .5 ũ, the minority -1 + .5 ũ. If all
 * novelties of a class are equal: ±.75. A single member gets 1 or -.5. No answer gets -1.
 */
function noveltyRewards(answers: readonly (string | null)[], embeddings: readonly ArrayLike<number>[]): number[] {
  const majority = mostFrequent(answers)
  const inMajority = answers.map((answer) => answer !== null && answer === majority)
  const known = [...answers.keys()].filter((i) => answers[i] !== null)
  const novelty = answers.map((_, i) => {
    const similarity = embeddings.map((other) => Math.min(Math.max(cosine(embeddings[i]!, other), 0), 1))
    const others = known.filter((j) => j !== i)
    const own = others.filter((j) => inMajority[j] === inMajority[i])
    const mean = own.reduce((sum, j) => sum + similarity[j]!, 0) / Math.max(own.length, 1)
    const nearest = largest(
      others.map((j) => similarity[j]!),
      0,
    )
    return 1 - 0.5 * mean - 0.5 * nearest
  })
  return answers.map((answer, i) => {
    if (answer === null) return -1
    const members = known.filter((j) => inMajority[j] === inMajority[i])
    if (members.length === 1) return inMajority[i] ? 1 : -0.5
    const values = members.map((j) => novelty[j]!)
    const [low, high] = [smallest(values), largest(values)]
    const scaled = high - low < 1e-12 ? 0.5 : (novelty[i]! - low) / (high - low)
    return (inMajority[i] ? 0.5 : -1) + 0.5 * scaled
  })
}

function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [dot, aa, bb] = [0, 0, 0]
  for (let k = 0; k < Math.min(a.length, b.length); k++) {
    dot += a[k]! * b[k]!
    aa += a[k]! * a[k]!
    bb += b[k]! * b[k]!
  }
  return aa === 0 || bb === 0 ? 0 : dot / Math.sqrt(aa * bb)
}

function needed<T>(values: readonly T[] | undefined, field: string): readonly T[] {
  if (values !== undefined) return values
  const message = `${field}: a reward of the objective needs one per sequence, and the batch has none`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'shapeRewards' })
}
