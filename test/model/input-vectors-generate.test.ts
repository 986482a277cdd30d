// Prompts that hold vectors in place of embedded tokens: the tokens that embedded ids give, the scores of the whole, any batch and any pieces.
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { type DeviceName, type GenerateOptions, type InputVectors, LoopLM } from '../../src/index.js'
import { buildEmulated, triedOn, triesAll } from '../emulated.js'
import { generator } from '../gguf-file.js'
import { embedded } from '../input-vectors.js'
import { refusal } from '../refusal.js'
import { tinyModel } from '../tiny.js'

const families = join(import.meta.dirname, '../fixtures', 'families')
const models = [join(import.meta.dirname, '../fixtures', 'gqa'), ...readdirSync(families).map((name) => join(families, name))]
const targets = [
  { device: 'reference', dtype: 'float64', bound: 1e-9 },
  { device: 'cpu', dtype: 'float32', bound: 2e-5 },
  { device: 'cuda-emulated' as DeviceName, dtype: 'float32', bound: 2e-5 }, // the CUDA kernels without a GPU
] as const
beforeAll(buildEmulated, 900_000)

/** The first two have the same ids; the third has no vectors. */
const prompts = [
  [3, 1, 4, 1, 5],
  [3, 1, 4, 1, 5],
  [6, 5, 3],
  [8, 9],
]
const places = [[0, 1, 3], [0, 1, 3], undefined, [1]]
const states = { initialState: 'zeros' } as const // Huginn draws its state from the ids
const options: GenerateOptions = { ...states, maxNewTokens: 4, stop: [], seed: 5, temperature: 0.8 }

function randomVectors(hidden: number): (InputVectors | undefined)[] {
  const next = generator(11)
  return places.map(
    (positions) =>
      positions && { positions, values: positions.flatMap(() => Array.from({ length: hidden }, () => next() - 0.5)) },
  )
}

describe.each(targets)('on $device', ({ device, dtype, bound }) => {
  it.each(triedOn(device, models))('generation with input vectors agrees with embedded ids and score: %s', async (folder) => {
    using model = await LoopLM.fromPretrained(folder, { device, dtype })
    const wanted = { ...options, maxNewTokens: triesAll(device) ? 4 : 2 }
    const known = await Promise.all(
      places.map(async (positions, i) => {
        const ids = positions?.map((at) => prompts[i]![at]!)
        return positions && { positions, values: await embedded(model, ids!) }
      }),
    )
    expect(await model.generate(prompts, { ...wanted, inputVectors: known })).toEqual(await model.generate(prompts, wanted))

    const inputVectors = randomVectors(model.config.hidden_size)
    const results = await model.generate(prompts, { ...wanted, inputVectors })
    expect(results[0]!.logprobs, 'equal ids, other vectors').not.toEqual(results[1]!.logprobs)
    for (const [i, prompt] of prompts.entries()) {
      using scheduler = model.scheduler({ prefillTokens: 2 })
      const own = { ...wanted, inputVectors: [inputVectors[i]] }
      if (i !== 0) await scheduler.add(prompts[0]!, { ...wanted, inputVectors: [inputVectors[0]] }).result()
      const pieces = await scheduler.add(prompt, own).result()
      if (i === 0) expect(pieces).toEqual(results[0])
      const [alone] = await model.generate([prompt], own)
      expect(pieces, 'in pieces').toEqual(alone)
    }

    const whole = prompts.map((prompt, i) => [...prompt, ...results[i]!.tokens])
    const promptLengths = prompts.map(({ length }) => length)
    const scored = await model.score(whole, { ...states, promptLengths, inputVectors, lastLoop: true, temperature: 0.8 })
    for (const [i, row] of scored.logprobs.entries()) {
      const want = Array.from(row).slice(promptLengths[i]! - 1)
      for (const [j, value] of results[i]!.logprobs.entries()) expect(Math.abs(value - want[j]!)).toBeLessThan(bound)
    }
  })
})

it('a batch with input vectors equals its prompts alone, also with drafts, streams and exits', async () => {
  using model = await LoopLM.fromPretrained(models[0]!, { device: 'cpu', dtype: 'float32' })
  const inputVectors = randomVectors(model.config.hidden_size)
  const ways: GenerateOptions[] = [
    { ...options, temperature: 0 },
    { ...options, temperature: 0, speculate: { loops: 1, tokens: 2 }, exit: { rule: 'fixed' } },
    { ...options, temperature: 0, kv: 'shared' },
    { ...options, temperature: 0, exit: { rule: 'gate', threshold: 0.5 } },
  ]
  const plain: unknown[] = []
  for (const way of ways) {
    const together = await model.generate(prompts, { ...way, inputVectors })
    for (const [i, prompt] of prompts.entries()) {
      const [alone] = await model.generate([prompt], { ...way, inputVectors: [inputVectors[i]] })
      expect(together[i]).toEqual(alone)
    }
    plain.push(together)
  }
  const tokens = (results: unknown) => (results as { tokens: number[] }[]).map((result) => result.tokens)
  expect(tokens(plain[1])).toEqual(tokens(plain[0]))
  const streamed: number[] = []
  for await (const { token } of model.stream(prompts[0]!, { ...ways[0], inputVectors: [inputVectors[0]] })) streamed.push(token)
  expect(streamed).toEqual(tokens(plain[0])[0])
})

it('a continued request reuses its cache only if its input vectors are the same', async () => {
  using model = await LoopLM.fromPretrained(models[0]!, { device: 'cpu', dtype: 'float32' })
  const vectors = randomVectors(model.config.hidden_size)
  for (const own of [vectors[0]!, { ...vectors[0]!, values: vectors[1]!.values }]) {
    using scheduler = model.scheduler()
    const kept = { ...options, exit: { rule: 'fixed' }, temperature: 0, keep: true } as const
    const first = scheduler.add(prompts[0]!, { ...kept, inputVectors: [vectors[0]] })
    const { tokens } = await first.result()
    const next = await scheduler.continue(first, [7, 8], { inputVectors: [own] }).result()
    const whole = [...prompts[0]!, ...tokens, 7, 8]
    const [fresh] = await model.generate([whole], { ...options, exit: { rule: 'fixed' }, temperature: 0, inputVectors: [own] })
    expect(next.tokens).toEqual(fresh!.tokens)
    for (const [j, value] of next.logprobs.entries()) expect(Math.abs(value - fresh!.logprobs[j]!)).toBeLessThan(1e-5)
    expect(scheduler.stats().reused).toBe(own === vectors[0] ? prompts[0]!.length + tokens.length - 1 : 0)
  }
})

it('input vectors that do not fit are rejected by name', async () => {
  using model = await tinyModel()
  const message = async (inputVectors: unknown) =>
    (await refusal(() => model.generate([[1, 2, 3]], { inputVectors } as never))).message
  const values = Array.from({ length: 16 }, () => 0.5)
  expect(await message([])).toMatch(/LoopLM\.generate: inputVectors must be an array with one entry for each of the 1 sequences/)
  expect(await message([{ positions: [0], values: [1] }])).toMatch(/inputVectors\[0\]\.values must hold one of 16 numbers/)
  expect(await message([{ positions: [3], values }])).toMatch(/positions\[0\] \(of 3 tokens, ascending\)/)
})
