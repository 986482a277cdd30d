import { Random } from '../../src/data/random.js'
import type { LoopLM, OwnObjective } from '../../src/index.js'
import { deviation, mean } from '../statistics.js'

/*
 * GRPO and RLTT as implemented in RLTT's public code. It subtracts the KL divergence to the starting model from the reward before the
 * group's z-score, and adds noise. So even a group with equal rewards has advantages of unit variance.
 */
const klWeight = 1e-3
const noise = 1e-4

/**
 * @param reference the starting model
 * @param groupSize consecutive sequences that share a prompt
 * @param seed of the noise
 * @param weights GRPO credits the last loop, RLTT every loop by its exit probability
 */
export function released(reference: LoopLM, groupSize: number, seed: number, weights: 'last' | 'exit-pdf'): OwnObjective {
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
        const [loop, place] = [Math.floor(k / width), k % width]
        if (place < promptLengths[i]! - 1) return 0
        const ofLast = Number(k >= logprobs.length - width)
        const weight = weights === 'last' ? ofLast : scores.exitPdf[i]![loop * (width + 1) + place]!
        const coefficient = -lengthNormalizers[i]! * advantages[i]! * weight
        loss += coefficient * logprob
        return coefficient
      })
    })
    return { loss, coefficients }
  }
}
