// Advantages and normalisers against the worked numbers of math.md §2.
import { describe, expect, it } from 'vitest'
import { groupAdvantages } from '../../../src/rl/objective/advantages.js'
import { lengthNormalizers } from '../../../src/rl/objective/normalizer.js'

/** A group of eight with k right answers, the right ones first. */
const rewards = (right: number) => Array.from({ length: 8 }, (_, i) => (i < right ? 1 : 0))

describe('group advantages', () => {
  it.each([
    [1, 2.474867, -0.353552],
    [2, 1.620182, -0.540061],
    [3, 1.207612, -0.724567],
    [4, 0.935413, -0.935413],
  ])('with %i of 8 right are %f and %f', (right, positive, negative) => {
    const { advantages, flat } = groupAdvantages(rewards(right), 8)
    expect(flat).toEqual([false])
    for (const [i, advantage] of advantages.entries()) expect(advantage).toBeCloseTo(i < right ? positive : negative, 6)
  })

  it('are exact zeros in a group without spread', () => {
    const { advantages, groupStds, flat } = groupAdvantages([0.1, 0.1, 0.1, 0.1, 1, 0, 0, 0], 4)
    expect(advantages.slice(0, 4)).toEqual([0, 0, 0, 0])
    expect(groupStds).toEqual([0, 0.5])
    expect(flat).toEqual([true, false])
  })

  it('without scaling are differences from the mean', () => {
    const { advantages } = groupAdvantages([1, 0, 0, 1, 0, 1, 0, 0], 8, 'none')
    expect(advantages).toEqual([0.625, -0.375, -0.375, 0.625, -0.375, 0.625, -0.375, -0.375])
  })

  it('leave a sequence without a reward out of its group', () => {
    expect(groupAdvantages([1, 0, null, null], 4).advantages.slice(2)).toEqual([null, null])
    expect(groupAdvantages([1, 0, null, null], 4).advantages[0]).toBe(groupAdvantages([1, 0], 2).advantages[0])
    expect(groupAdvantages([1, null], 2).flat).toEqual([true])
  })

  it('reject rewards that are not whole groups or not finite', () => {
    expect(() => groupAdvantages([1, 0, 1], 2)).toThrow(/3 rewards do not form groups of groupSize = 2/)
    expect(() => groupAdvantages([1, 0, 1, Number.NaN], 2)).toThrow(/reward 3 is NaN/)
    expect(() => groupAdvantages([1, '0'] as number[], 2)).toThrow(/reward 1 is '0'; rewards are finite numbers, or null/)
  })
})

describe('length normalizers', () => {
  it('average over each response, over all tokens, or divide by a constant', () => {
    expect(lengthNormalizers([2, 4], 'response-mean')).toEqual([1 / 4, 1 / 8])
    expect(lengthNormalizers([2, 4], 'token-mean')).toEqual([1 / 6, 1 / 6])
    expect(lengthNormalizers([2, 4], 'constant', 10)).toEqual([1 / 20, 1 / 20])
  })

  it('count an empty response in the batch and give it no weight', () => {
    expect(lengthNormalizers([0, 4], 'response-mean')).toEqual([0, 1 / 8])
    expect(lengthNormalizers([0, 4], 'token-mean')).toEqual([0, 1 / 4])
  })

  it('without a constant divide by the longest response', () => {
    expect(lengthNormalizers([2, 0, 4], 'constant')).toEqual([1 / 12, 0, 1 / 12])
    expect(lengthNormalizers([0, 0], 'constant')).toEqual([0, 0])
  })
})
