// The statistics of evaluations, against known values, the definition and drawn samples.
import { describe, expect, it } from 'vitest'
import { averageAtK, bootstrapInterval, passAtK, Random, wilsonInterval } from '../../src/index.js'
import { refusal } from '../refusal.js'

describe('the Wilson interval', () => {
  // the bounds are the roots of (p̂ - p)² = z² p (1 - p) / n
  it.each([
    [40, 50, 0.95, 1.959963984540054],
    [1, 10, 0.95, 1.959963984540054],
    [0, 10, 0.95, 1.959963984540054],
    [10, 10, 0.99, 2.5758293035489004],
    [500, 1319, 0.9, 1.6448536269514722],
    [3, 7, 0.5, 0.6744897501960817],
  ])('has the bounds of the normal test: %i of %i at confidence %f', (successes, trials, confidence, z) => {
    const { low, high } = wilsonInterval(successes, trials, confidence)
    const share = successes / trials
    for (const bound of [low, high]) {
      if (bound === 0 || bound === 1) expect(bound).toBe(share)
      else expect(Math.abs((share - bound) / Math.sqrt((bound * (1 - bound)) / trials))).toBeCloseTo(z, 9)
    }
    expect(low).toBeLessThanOrEqual(share)
    expect(high).toBeGreaterThanOrEqual(share)
  })

  it('contains the true share about as often as it says', () => {
    const random = new Random(1)
    let inside = 0
    for (let trial = 0; trial < 4000; trial++) {
      let successes = 0
      for (let i = 0; i < 60; i++) successes += random.uniform() < 0.3 ? 1 : 0
      const { low, high } = wilsonInterval(successes, 60, 0.9)
      if (low <= 0.3 && 0.3 <= high) inside++
    }
    expect(Math.abs(inside / 4000 - 0.9)).toBeLessThan(0.03) // the exact coverage of n = 60, p = 0.3 is 0.907
  })
})

describe('the bootstrap', () => {
  it('is exact for a constant and reproducible per seed', async () => {
    expect(await bootstrapInterval([2, 2, 2])).toEqual({ low: 2, high: 2 })
    const values = Array.from({ length: 50 }, (_, i) => i % 7)
    expect(await bootstrapInterval(values, { seed: 4 })).toEqual(await bootstrapInterval(values, { seed: 4 }))
    expect(await bootstrapInterval(values, { seed: 4 })).not.toEqual(await bootstrapInterval(values, { seed: 5 }))
  })

  it('has the width of the standard error', async () => {
    const random = new Random(2)
    const values = Array.from({ length: 400 }, () => random.uniform())
    const mean = values.reduce((sum, value) => sum + value, 0) / 400
    const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / 400)
    const { low, high } = await bootstrapInterval(values, { resamples: 4000 })
    const expected = (1.96 * deviation) / Math.sqrt(400)
    expect(Math.abs((high - low) / 2 / expected - 1)).toBeLessThan(0.1)
    expect(Math.abs((high + low) / 2 - mean)).toBeLessThan(0.1 * expected)
  })

  it('yields to the event loop', async () => {
    let turns = 0
    let waiting = true
    const turn = () => {
      turns++
      if (waiting) setImmediate(turn)
    }
    setImmediate(turn)
    await bootstrapInterval(new Float64Array(20_000), { resamples: 1000 })
    waiting = false
    expect(turns).toBeGreaterThan(10)
  })
})

describe('pass@k', () => {
  it.each([
    [0, 5, 3],
    [1, 4, 2],
    [2, 6, 3],
    [4, 6, 3],
    [5, 5, 1],
    [3, 8, 8],
  ])('is the share of subsets with a right one: %i right of %i, k = %i', (correct, samples, k) => {
    let [all, right] = [0, 0]
    for (let subset = 0; subset < 2 ** samples; subset++) {
      const members = Array.from({ length: samples }, (_, i) => i).filter((i) => subset & (1 << i))
      if (members.length !== k) continue
      all++
      if (members.some((i) => i < correct)) right++
    }
    expect(passAtK(correct, samples, k)).toBeCloseTo(right / all, 12)
  })

  it('does not overflow', () => {
    expect(passAtK(10, 100_000, 1)).toBeCloseTo(1e-4, 12)
    expect(passAtK(10, 100_000, 50_000)).toBeCloseTo(1 - 2 ** -10, 3)
  })
})

describe('avg@k', () => {
  it('is the mean over problems of the mean of the first k samples', () => {
    const scores = [
      [1, 0, 1],
      [0, 0, 0.5],
    ]
    expect(averageAtK(scores)).toBeCloseTo((2 / 3 + 0.5 / 3) / 2, 12)
    expect(averageAtK(scores, 2)).toBe(0.25)
  })
})

it.each<[() => unknown, RegExp]>([
  [() => wilsonInterval(3, 2), /successes/],
  [() => wilsonInterval(0, 0), /trials/],
  [() => wilsonInterval(1, 2, 1), /confidence/],
  [() => bootstrapInterval([]), /at least one/],
  [() => bootstrapInterval([1], { seeds: 3 } as object), /seeds: unknown option; did you mean seed\?/],
  [() => bootstrapInterval([1, Number.NaN]), /values\[1\]/],
  [() => passAtK(1, 4, 5), /k must/],
  [() => passAtK(5, 4, 1), /correct/],
  [() => averageAtK([[1]], 2), /k for problem 0/],
  [() => averageAtK([]), /at least one problem/],
])('%o is rejected', async (call, message) => {
  const error = await refusal(call)
  expect([error.code, error.message]).toEqual(['INVALID_ARGUMENT', expect.stringMatching(message)])
})
