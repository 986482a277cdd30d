// What `looplm plan` says of time: operations by hand, and a measurement that has a result.
import { describe, expect, it } from 'vitest'
import { forwardOperations, measureRates, stepSeconds } from '../../src/cli/measure.js'
import { parseConfig } from '../../src/model/config.js'
import { tinyConfig } from '../tiny.js'

const config = parseConfig(tinyConfig, 'test', false)
// one block: q, k, v, o of 16 × 16, gate, up and down of 16 × 24, four norms of 16; one norm behind the loops
const matrices = 4 * 16 * 16 + 3 * 16 * 24
const norms = 5 * 16

describe('the time of a step', () => {
  it('counts two operations per weight and loop, and the head where it is read', () => {
    expect(forwardOperations(config, 1)).toBe(2 * (3 * (matrices + norms) + 12 * 16))
    expect(forwardOperations(config, 3)).toBe(2 * (3 * (matrices + norms) + 3 * 12 * 16))
  })

  it('is prompts and sampled tokens forward, and all tokens forward and backward', () => {
    const [one, three] = [forwardOperations(config, 1), forwardOperations(config, 3)]
    const { sampling, update } = stepSeconds(
      config,
      { train: 1000, decode: 100, rows: 4 },
      { rollouts: 4, tokens: 10, sampled: 6 },
    )
    expect(sampling).toBeCloseTo((4 * 4 * one) / 1000 + (4 * 6 * one) / 100, 9)
    expect(update).toBeCloseTo((3 * 4 * 10 * three) / 1000, 9)
  })

  it('is measured on a slice of the model', async () => {
    const rates = await measureRates(config, { device: 'cpu' }, { rollouts: 4, tokens: 16, sampled: 8 })
    expect(rates!.rows).toBe(4)
    expect(rates!.train).toBeGreaterThan(0)
    expect(rates!.decode).toBeGreaterThan(0)
  })
})
