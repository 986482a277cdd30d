// Keys and values in 8 and 4 bits: what a token sees depends on positions alone, and the bits on nothing but the request.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import {
  type CacheType,
  type DeviceName,
  estimateMemory,
  type GenerateOptions,
  LoopLM,
  memory,
  type SchedulerOptions,
} from '../../src/index.js'
import { codedRow, prunedRow } from '../coded-rows.js'
import { buildEmulated } from '../emulated.js'
import { heldBytes } from '../garbage.js'
import { forward, greedy, logSoftmax, type Parameters } from '../looped-model.js'
import { refusal } from '../refusal.js'
import { parametersOf, smallConfig, tinyConfig } from '../tiny.js'

const families = join(import.meta.dirname, '../fixtures', 'families')
const config = { ...tinyConfig, num_hidden_layers: 2 }
const types = ['int8', 'int4', 'residual', 'spark'] as const
const bits = { int8: 8, int4: 4, residual: 4, spark: 4 } as const
const ofBfloat16 = { int8: 0.53125, int4: 0.28125, residual: (0.28125 + 2 * 0.15625) / 3, spark: (13 + 18) / 128 } // of three loops
const prompt = (length: number, first = 1, vocabulary = 12) =>
  Array.from({ length }, (_, i) => (i === 0 ? first : (7 * i + i * i * 3 + (i >> 5)) % vocabulary))
const lengths = [1, 40, 63, 64, 65, 150]
const open: GenerateOptions = { maxNewTokens: 70, stop: [], seed: 3 }

const farthest = (a: ArrayLike<number>, b: ArrayLike<number>) => Math.max(...Array.from(a, (value, i) => Math.abs(value - b[i]!)))

/** The formulas in plain TypeScript, with codes in place of the rows of earlier blocks. */
const described = (cacheType: (typeof types)[number], shared = false) => ({
  ...config,
  coded: (row: readonly number[]) => codedRow(row, bits[cacheType], 8),
  ...(cacheType === 'residual' && !shared && { residual: residualRow }),
  ...(cacheType === 'spark' && { codedKeys: (row: readonly number[]) => prunedRow(row, 8) }),
})
function residualRow(row: readonly number[], anchor: readonly number[]): number[] {
  const difference = row.map((x, i) => Math.fround(Math.fround(x) - Math.fround(anchor[i]!)))
  return codedRow(difference, 2, 8).map((x, i) => x + anchor[i]!)
}

beforeAll(buildEmulated, 900_000)
const emulated = 'cuda-emulated' as DeviceName

describe.each(types)('keys and values in %s', (cacheType) => {
  it.each([
    ['reference', 'float64', 1e-9],
    ['cpu', 'float32', 2e-3],
    [emulated, 'float32', 2e-3],
  ] as const)('agree with the formulas on %s, in prompts and after them', async (device, dtype, tolerance) => {
    using model = await LoopLM.create(config, { device, dtype, seed: 1 })
    const parameters: Parameters = await parametersOf(model)
    // the emulator takes a second for ten tokens: these fill a block each
    const [lengths, maxNewTokens] = device === emulated ? [[61, 189], 5] : [[60, 150], 70]
    for (const length of lengths) {
      const [made] = await model.generate([prompt(length)], { ...open, maxNewTokens, cacheType })
      const ids = [...prompt(length), ...made!.tokens]
      const last = forward(described(cacheType), parameters, ids).states.at(-1)!
      const expected = made!.tokens.map((token, i) => logSoftmax(parameters, last[length + i - 1]!)[token]!)
      expect(farthest(made!.logprobs, expected)).toBeLessThan(tolerance)
    }
    const once = { ...open, maxNewTokens: 5 }
    const asked = [prompt(device === emulated ? 61 : 150)]
    const plain = await model.generate(asked, once)
    expect((await model.generate(asked, { ...once, cacheType }))[0]!.logprobs).not.toEqual(plain[0]!.logprobs)
  })

  it('agree with the formulas under early exits, for both values of kv', async () => {
    using model = await LoopLM.create(config, { device: 'reference', seed: 1 })
    const parameters: Parameters = await parametersOf(model)
    const leaves = (states: number[][]) => states.length === 2
    for (const shared of [false, true]) {
      const expected = greedy(described(cacheType, shared), parameters, prompt(90), { tokens: 50, shared, leaves })
      const kv = shared ? 'shared' : 'per-loop'
      const exit = { rule: 'gate', threshold: 1e-9, minLoops: 2 } as const
      const [made] = await model.generate([prompt(90)], { ...open, temperature: 0, maxNewTokens: 50, kv, cacheType, exit })
      expect({ tokens: made!.tokens, loops: Array.from(made!.loops) }).toEqual(expected)
    }
  })

  it.each([
    ['cpu', 'float32'],
    ['cpu', 'bfloat16'],
    ['reference', 'float64'],
    [emulated, 'bfloat16'],
  ] as const)(
    'give a request the same bits alone, batched, in pieces and after other prompts, on %s in %s',
    async (device, dtype) => {
      const [few, blocks, num_hidden_layers] = device === emulated ? [[1, 63], 1, 1] : [lengths, 2, 2]
      using model = await LoopLM.create({ ...smallConfig, num_hidden_layers, total_ut_steps: 2 }, { device, dtype, seed: 2 })
      const prompts = [...few.map((length) => prompt(length, 1, 50)), [...prompt(64 * blocks + 12, 1, 50), 9, 9]]
      const options = { ...open, maxNewTokens: device === 'cpu' ? 70 : 3, cacheType }
      const alone = []
      for (const [i, one] of prompts.entries()) alone.push((await model.generate([one], { ...options, sequenceNumbers: [i] }))[0])
      expect(await model.generate(prompts, options)).toEqual(alone)
      const pieces = { prefillTokens: device === emulated ? 29 : 5 }
      for (const more of [pieces, { prefillTokens: 100, promptCache: true }] as SchedulerOptions[]) {
        using scheduler = model.scheduler({ cacheType, maxRows: 3, ...more })
        const requests = prompts.map((one, sequence) => scheduler.add(one, { ...options, sequence }))
        expect(await Promise.all(requests.map((request) => request.result()))).toEqual(alone)
        const again = scheduler.add(prompts.at(-1)!, { ...options, sequence: prompts.length - 1 })
        expect(await again.result()).toEqual(alone.at(-1))
        expect(again.reused).toBe(more.promptCache === true ? 64 * blocks : 0) // whole blocks
      }
    },
  )

  it('give drafts and wavefronts the tokens of plain decoding, across blocks', async () => {
    using model = await LoopLM.create({ ...smallConfig, total_ut_steps: 4 }, { device: 'cpu', seed: 5, threads: 1 })
    const requests: GenerateOptions[] = [
      { temperature: 0 },
      { temperature: 0.9 },
      { exit: { rule: 'gate', threshold: 0.5 } },
      { exit: { rule: 'kl-previous', threshold: 0.05 } },
    ]
    for (const [i, request] of requests.entries()) {
      const options = { ...open, maxNewTokens: 140, cacheType, ...request, sequenceNumbers: [i] }
      const expected = await model.generate([prompt(30, 1, 50)], options)
      expect(await model.generate([prompt(30, 1, 50)], { ...options, speculate: 'wavefront' })).toEqual(expected)
      if (request.exit) continue
      const drafted = await model.generate([prompt(30, 1, 50)], {
        ...options,
        exit: { rule: 'fixed' },
        speculate: { loops: 2, tokens: 5 },
      })
      expect(drafted[0]!.tokens).toEqual(expected[0]!.tokens)
    }
  })

  it('continue kept requests from whole blocks', async () => {
    using model = await LoopLM.create(config, { device: 'cpu', seed: 1 })
    using scheduler = model.scheduler({ cacheType })
    const first = scheduler.add(prompt(100), { ...open, keep: true })
    const { tokens } = await first.result()
    const second = scheduler.continue(first, [3, 4], { ...open, keep: true })
    const made = await second.result()
    expect(second.reused).toBe(128) // of 170 tokens
    const [whole] = await model.generate([[...prompt(100), ...tokens, 3, 4]], { ...open, cacheType })
    expect(made.tokens).toEqual(whole!.tokens)
    expect(farthest(made.logprobs, whole!.logprobs)).toBeLessThan(2e-2)
    second.release()
    await scheduler.add([1], { maxNewTokens: 1 }).result()
    expect(scheduler.stats().cachedTokens).toBe(0)
  })

  it.each(readdirSync(families))('family %s: stay close to the plain cache, also with prompts in pieces', async (name) => {
    const published = JSON.parse(readFileSync(join(families, name, 'config.json'), 'utf8'))
    using model = await LoopLM.create({ ...published, max_position_embeddings: 256 }, { device: 'cpu', seed: 1 })
    const options = { maxNewTokens: 12, stop: [], temperature: 0, exit: { rule: 'fixed' } } as const
    const prompts = [58, 120].map((length) => prompt(length, 1, model.config.vocab_size))
    const expected = await model.generate(prompts, options)
    const made = await model.generate(prompts, { ...options, cacheType })
    const apart = made.map(({ tokens, logprobs }, i) => {
      const { tokens: wanted, logprobs: exact } = expected[i]!
      const parting = tokens.findIndex((token, j) => token !== wanted[j])
      const same = parting < 0 ? tokens.length : parting // behind another token there is nothing to compare
      return farthest(logprobs.slice(0, same), exact)
    })
    expect(Math.max(...apart)).toBeLessThan({ int8: 2e-3, int4: 3e-2, residual: 6e-2, spark: 6e-2 }[cacheType])
    expect(Math.max(...apart)).toBeGreaterThan(1e-5) // codes were read
    using scheduler = model.scheduler({ cacheType, prefillTokens: 3 })
    const requests = prompts.map((one, sequence) => scheduler.add(one, { ...options, sequence }))
    expect(await Promise.all(requests.map((request) => request.result()))).toEqual(made)
  })

  it('save as much memory as estimateMemory reports', async () => {
    using model = await LoopLM.create(
      { ...smallConfig, hidden_size: 256, num_hidden_layers: 1 },
      { device: 'cpu', dtype: 'bfloat16' },
    )
    const held = async (type: CacheType) => {
      const before = await heldBytes()
      using scheduler = model.scheduler({ cacheType: type, maxTokens: 1025 })
      await scheduler.add(prompt(1023, 1, 50), { maxNewTokens: 2, keep: true }).result()
      const { cachePerToken } = estimateMemory(model.config, { dtype: 'bfloat16', cacheType: type })
      return { measured: memory().bytes - before, estimate: cachePerToken }
    }
    for (const type of ['model', cacheType] as const) await held(type) // scratch memory that the next runs find
    const plain = await held('model')
    const coded = await held(cacheType)
    expect(coded.estimate / plain.estimate).toBe(ofBfloat16[cacheType])
    const saved = 1024 * (plain.estimate - coded.estimate)
    expect(plain.measured - coded.measured).toBeGreaterThan(saved - 130 * plain.estimate) // recent tokens: a block of the prompt, one of the answer
    expect(plain.measured - coded.measured).toBeLessThan(saved)
  })
})

describe('the cache type residual', () => {
  it('equals int4 with one loop or a shared cache', async () => {
    using model = await LoopLM.create({ ...smallConfig, total_ut_steps: 3 }, { device: 'cpu', seed: 4 })
    for (const more of [{ loops: 1 }, { kv: 'shared' }] satisfies GenerateOptions[]) {
      const options = { ...open, ...more, temperature: 0 }
      const [made] = await model.generate([prompt(90, 1, 50)], { ...options, cacheType: 'residual' })
      expect(made).toEqual((await model.generate([prompt(90, 1, 50)], { ...options, cacheType: 'int4' }))[0])
    }
    expect(estimateMemory(model.config, { loops: 1, cacheType: 'residual' })).toEqual(
      estimateMemory(model.config, { loops: 1, cacheType: 'int4' }),
    )
  })

  it('serves requests with different loop counts side by side', async () => {
    using model = await LoopLM.create({ ...smallConfig, total_ut_steps: 4 }, { device: 'cpu', seed: 4 })
    using scheduler = model.scheduler({ cacheType: 'residual', promptCache: true, prefillTokens: 90 })
    const all = [1, 4, 3, 2, 4].map((loops, sequence) => ({ ...open, loops, sequence }))
    const requests = all.map((options) => scheduler.add(prompt(140, 1, 50), options))
    const made = await Promise.all(requests.map((request) => request.result()))
    for (const [i, { sequence, ...options }] of all.entries()) {
      const alone = await model.generate([prompt(140, 1, 50)], { ...options, cacheType: 'residual', sequenceNumbers: [sequence] })
      expect(made[i]).toEqual(alone[0])
    }
  })
})

describe('an invalid cacheType', () => {
  it('is rejected if it differs from the scheduler or does not exist', async () => {
    using model = await LoopLM.create(config, { device: 'cpu' })
    using scheduler = model.scheduler({ cacheType: 'int4' })
    expect((await refusal(() => scheduler.add([1], { cacheType: 'int8' }))).message).toMatch(
      /cacheType is 'int8', but all requests of this scheduler share a cache of type 'int4'/,
    )
    expect((await refusal(() => model.generate([[1]], { cacheType: 'q4_0' as 'int4' }))).message).toMatch(/cacheType must be/)
  })
})
