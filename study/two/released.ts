import { Random } from '../../src/data/random.js'
import type { LoopLM, OwnObjective } from '../../src/index.js'
import { deviation, mean } from '../statistics.js'

/*
 * GRPO as implemented in RLTT's public code. It subtracts the KL divergence to the starting model from the reward before the
 * group's z-score, and adds noise. So even a group with equal rewards has advantages of unit variance.
 */
const klWeight = 1e-3
const noise = 1e-4

/**
 * @param reference the starting model
 * @param groupSize consecutive sequences that share a prompt
 * @param seed of the noise
 */
export function releasedGrpo(reference: LoopLM, groupSize: number, seed: number): OwnObjective {
  return async ({ step, sequences, promptLengths, rewards, lengthNormalizers, scores }) => {
    const { logprobs: before } = await reference.score(sequences)
    const random = new Random(seed, step, 0x9e1)
    const last = (values: ArrayLike<number>, i: number) => Array.from(values).slice(-(sequences[i]!.length - 1))
    const shaped = rewards.map((reward, i) => {
      const [own, others] = [last(scores.logprobs[i]!, i), last(before[i]!, i)]
      const k1 = own.reduce((sum, value, k) => sum + (k < promptLengths[i]! - 1 ? 0 : value - others[k]!), 0)
      return reward - klWeight * k1 + noise * (2 * random.uniform() - 1)
    })
    const advantages = shaped.map((value, i) => {
      const first = i - (i % groupSize)
      const group = shaped.slice(first, first + groupSize)
      return (value - mean(group)) / (deviation(group) + 1e-6)
    })
    let loss = 0
    const coefficients = scores.logprobs.map((logprobs, i) => {
      const width = sequences[i]!.length - 1
      return Array.from(logprobs, (logprob, k) => {
        if (k < logprobs.length - width || k % width < promptLengths[i]! - 1) return 0
        const coefficient = -lengthNormalizers[i]! * advantages[i]!
        loss += coefficient * logprob
        return coefficient
      })
    })
    return { loss, coefficients }
  }
}
