// Models in 8 and 4 bits: their parameters are near the original's, and everything else is what a model with those parameters does.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { LoopLM, memory } from '../src/index.js'
import { refusal } from './refusal.js'

const config = {
  vocab_size: 50,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  total_ut_steps: 3,
  initializer_range: 0.2,
}
const prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'looplm-quantize-'))
  using model = await LoopLM.create(config, { seed: 3 })
  await model.save(join(folder, 'model'))
})
afterAll(() => rm(folder, { recursive: true }))

describe.each([
  { quantize: 'int8', dtype: 'float32', steps: 127 },
  { quantize: 'int4', dtype: 'float32', steps: 8 },
  { quantize: 'int8', dtype: 'bfloat16', steps: 127 },
  { quantize: 'int4', dtype: 'bfloat16', steps: 8 },
] as const)('$quantize in $dtype', ({ quantize, dtype, steps }) => {
  const load = (tied = false) =>
    tied
      ? LoopLM.create({ ...config, tie_word_embeddings: true }, { dtype, quantize, groupSize: 32, seed: 3 })
      : LoopLM.fromPretrained(join(folder, 'model'), { dtype, quantize, groupSize: 32 })

  it('keeps every weight to half a step of its group, and norms, gate and embedding as they are', async () => {
    using model = await load()
    using original = await LoopLM.fromPretrained(join(folder, 'model'), { dtype })
    for (const { name, shape } of original.parameters()) {
      const [values, want] = [await model.getParameter(name), await original.getParameter(name)]
      if (shape.length < 2 || !/_proj|lm_head/.test(name)) {
        expect(values).toEqual(want)
        continue
      }
      let different = 0
      for (let first = 0; first < want.length; first += 32) {
        const largest = Math.max(...want.slice(first, first + 32).map(Math.abs))
        for (let i = first; i < first + 32; i++) {
          // the far end of 4 bits is one step short on one side
          expect(Math.abs(values[i]! - want[i]!)).toBeLessThanOrEqual((largest / steps) * (steps === 8 ? 1 : 0.5) * 1.01)
          if (values[i] !== want[i]) different++
        }
      }
      expect(different).toBeGreaterThan(0)
    }
  })

  it.each([false, true])('computes what a model with those weights computes (tied: %s)', async (tied) => {
    using model = await load(tied)
    using plain = await LoopLM.create(tied ? { ...config, tie_word_embeddings: true } : config, { dtype: 'float32' })
    for (const { name } of plain.parameters()) await plain.setParameter(name, await model.getParameter(name))
    const [scores, want] = [await model.score([[1, 2, 3, 4, 5, 6]]), await plain.score([[1, 2, 3, 4, 5, 6]])]
    const bound = dtype === 'float32' ? 1e-4 : 0.15
    for (const [i, l] of scores.logprobs[0]!.entries()) expect(Math.abs(l - want.logprobs[0]![i]!)).toBeLessThan(bound)
    const options = { maxNewTokens: 8, temperature: 0, stop: [] }
    const results = await model.generate(prompts, options)
    for (const [i, prompt] of prompts.entries()) expect((await model.generate([prompt], options))[0]).toEqual(results[i])
    if (dtype === 'float32')
      expect(results.map(({ tokens }) => tokens)).toEqual((await plain.generate(prompts, options)).map(({ tokens }) => tokens))
  })

  it('takes less memory and refuses to train', async () => {
    const before = memory().bytes
    using model = await load()
    const taken = memory().bytes - before
    using original = await LoopLM.fromPretrained(join(folder, 'model'), { dtype })
    expect(taken).toBeLessThan(0.75 * (memory().bytes - before - taken))
    const code = async (run: () => Promise<unknown>) => (await refusal(run)).code
    await model.score([[1, 2]])
    expect(await code(() => model.backward([Float32Array.from([1, 1, 1])]))).toBe('UNSUPPORTED')
    expect(await code(() => model.clone())).toBe('UNSUPPORTED')
    expect(await code(async () => model.setParameter('lm_head.weight', await original.getParameter('lm_head.weight')))).toBe(
      'UNSUPPORTED',
    )
  })
})

it('a width that groups do not divide, a wrong word and a device without such products are refused by name', async () => {
  const message = async (options: object, sizes: object = {}) =>
    (await refusal(() => LoopLM.create({ ...config, ...sizes }, options))).message
  expect(await message({ quantize: 'int4', groupSize: 64 })).toMatch(/groups of 64 do not fit.*64, 64 and 96/)
  expect(await message({ quantize: 'int3' })).toMatch(/quantize must be one of 'int8', 'int4'/)
  expect(await message({ quantize: 'int8', groupSize: 16 })).toMatch(/groupSize.*at least 32/)
  expect(await message({ quantize: 'int8', groupSize: 48 })).toMatch(/groups of 48 do not fit/)
})
