// The yardstick of the numerical tests: it passes what rounding explains, on every processor, and nothing else.
import { describe, expect, it } from 'vitest'
import { LoopLM } from '../../src/index.js'
import { expectScores, yardstick } from '../rounding.js'
import { smallConfig as config, parametersOf } from '../tiny.js'

const sequences = [Array.from({ length: 10 }, (_, i) => (7 * i) % 50)]

/** Faults in one place of one matrix, of the kinds that a kernel may have. */
const faults: [string, string, (values: Float64Array) => void][] = [
  [
    'a group of 32 with twice its scale',
    'layers.1.self_attn.o_proj',
    (w) =>
      w.set(
        w.subarray(64, 96).map((v) => 2 * v),
        64,
      ),
  ],
  ['a group of 32 without its scale', 'layers.0.mlp.up_proj', (w) => w.fill(0, 640, 672)],
  ['the keys of one head', 'layers.0.self_attn.k_proj', (w) => w.set(w.slice(0, 16 * 64), 16 * 64)],
  ['the values of one head', 'layers.1.self_attn.v_proj', (w) => w.fill(0, 0, 16 * 64)],
  [
    'one row of the last product',
    'layers.1.mlp.down_proj',
    (w) =>
      w.set(
        w.subarray(0, 96).map((v) => -v),
        0,
      ),
  ],
]

describe.each(['bfloat16', 'float32'] as const)('in %s', (dtype) => {
  it('four correct models pass the yardstick', async () => {
    for (let seed = 0; seed < 4; seed++) {
      using model = await LoopLM.create(config, { dtype, seed })
      expectScores(await model.score(sequences), await yardstick(model, config, sequences))
    }
  })

  it.each(faults)('a model with a fault fails the yardstick: %s', async (_, name, spoil) => {
    using model = await LoopLM.create(config, { dtype, seed: 3 })
    const parameters = new Map<string, ArrayLike<number>>(await parametersOf(model))
    const values = Float64Array.from(parameters.get(`model.${name}.weight`)!)
    spoil(values)
    parameters.set(`model.${name}.weight`, values)
    const scores = await model.score(sequences) // of the last of the four
    const spoilt = await yardstick(model, config, sequences, { parameters })
    expect(() => expectScores(scores, spoilt)).toThrow(/less than or equal/)
  })
})
