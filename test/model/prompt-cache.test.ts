// Prompts that begin alike run their beginning once, and every request gets the bits that it gets without the cache.
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { type DeviceName, LoopLM, type Scheduler, type SchedulerOptions } from '../../src/index.js'
import { buildEmulated, triedOn } from '../emulated.js'
import { refusal } from '../refusal.js'
import { tinyConfig } from '../tiny.js'

const root = join(import.meta.dirname, '../fixtures', 'families')
const targets = [
  { device: 'reference', dtype: 'float64' },
  { device: 'cpu', dtype: 'float32' },
  { device: 'cpu', dtype: 'bfloat16' },
  { device: 'cuda-emulated' as DeviceName, dtype: 'float32' },
] as const
beforeAll(buildEmulated, 900_000)

const beginning = [1, 5, 2, 9, 3, 7, 7, 4, 1, 8, 2, 6, 5, 3, 9, 4, 2, 1]
const prompts = [
  [...beginning, 6, 6, 3],
  [...beginning, 6, 1],
  [...beginning.slice(0, 17), 5, 5, 5, 2],
  [...beginning, 6, 6, 3, 4, 4, 1, 2],
]
const options = { maxNewTokens: 3, stop: [], seed: 5 }
const reuse = [0, 19, 17, 21] // LEAST is 16

/** What each prompt makes, one after the other. */
async function inTurn(scheduler: Scheduler, own: readonly number[][] = prompts, more: object = {}) {
  const out = []
  const reused = []
  for (const prompt of own) {
    const request = scheduler.add(prompt, { ...options, ...more })
    out.push(await request.result())
    reused.push(request.reused)
  }
  return { out, reused }
}

describe.each(targets)('on $device in $dtype', ({ device, dtype }) => {
  it.each(triedOn(device, readdirSync(root)))('%s: reusing prompts of earlier requests gives the same bits', async (name) => {
    using model = await LoopLM.fromPretrained(join(root, name), { device, dtype })
    using plain = model.scheduler({ prefillTokens: 7 })
    using caching = model.scheduler({ prefillTokens: 7, promptCache: true })
    const expected = await inTurn(plain)
    const found = await inTurn(caching)
    expect(found.out).toEqual(expected.out)
    const twoWay = model.architecture.prefixSeesItself === true // such a prompt is one whole
    expect(found.reused).toEqual(twoWay ? [0, 0, 0, 0] : reuse)
    const { hits, reused, prefilled, retained, cachedTokens } = caching.stats()
    expect({ hits, reused }).toEqual(twoWay ? { hits: 0, reused: 0 } : { hits: 3, reused: 57 })
    expect(prefilled).toBe(plain.stats().prefilled - reused)
    expect(cachedTokens).toBe(retained)
  })
})

describe('a prompt cache', () => {
  const open = async (more: object = {}) =>
    LoopLM.create({ ...tinyConfig, num_hidden_layers: 2, ...more }, { device: 'cpu', seed: 3 })
  const random = (seed: number) => () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
    return seed / 2 ** 32
  }

  it('serves prompts that run at the same time', async () => {
    using model = await open()
    const expected = await model.generate(prompts, { ...options, sequenceNumbers: [0, 0, 0, 0] })
    using scheduler = model.scheduler({ promptCache: true, prefillTokens: 4 })
    const requests = prompts.map((prompt) => scheduler.add(prompt, options))
    const made = await Promise.all(requests.map((request) => request.result()))
    expect(made).toEqual(expected)
    expect(requests.map(({ reused }) => reused)).toEqual(reuse)
    const all = prompts.reduce((sum, { length }) => sum + length, 0)
    expect(scheduler.stats()).toMatchObject({ prefilled: all - 57, reused: 57, hits: 3 })
    expect(await model.generate(prompts, { ...options, sequenceNumbers: [0, 0, 0, 0], promptCache: { maxTokens: 30 } })).toEqual(
      expected,
    )
  })

  it('continues if the request that computes a shared prompt is cancelled', async () => {
    using model = await open()
    const [expected] = await model.generate([prompts[3]!], options)
    using scheduler = model.scheduler({ promptCache: true, prefillTokens: 2 })
    const first = scheduler.add(prompts[0]!, options)
    const second = scheduler.add(prompts[3]!, options)
    await Promise.resolve()
    first.cancel()
    expect(await second.result()).toEqual(expected)
    expect(scheduler.stats().cachedTokens).toBe(scheduler.stats().retained)
  })

  it('keeps at most maxTokens and drops the least recently used prompt', async () => {
    using model = await open()
    using scheduler = model.scheduler({ promptCache: { maxTokens: 50 } })
    const others = [2, 3, 4].map((first) => [first, ...beginning, 1])
    await inTurn(scheduler, [others[0]!, others[1]!])
    expect(scheduler.stats().retained).toBe(40)
    await inTurn(scheduler, [others[0]!, others[2]!]) // the second goes
    expect(scheduler.stats().retained).toBeLessThanOrEqual(50)
    const { reused } = await inTurn(scheduler, [others[0]!, others[1]!])
    expect(reused).toEqual([19, 0])
  })

  it('makes room for requests by dropping unused entries', async () => {
    using model = await open()
    using scheduler = model.scheduler({ promptCache: true, maxTokens: 48 })
    const long = [...Array(45).keys()].map((i) => i % 10)
    const expected = await model.generate([long], options)
    await inTurn(scheduler)
    expect(scheduler.stats().retained).toBeGreaterThan(16)
    expect((await inTurn(scheduler, [long, [...beginning, ...long.slice(20)]])).out[0]).toEqual(expected[0])
  })

  it('shares nothing across other parameters, loops and initial states', async () => {
    using model = await open()
    using scheduler = model.scheduler({ promptCache: true })
    await inTurn(scheduler, [prompts[0]!])
    expect((await inTurn(scheduler, [prompts[1]!], { loops: 2 })).reused).toEqual([0])
    using other = await LoopLM.create({ ...tinyConfig, num_hidden_layers: 2 }, { device: 'cpu', seed: 4 })
    await model.copyParametersFrom(other)
    using fresh = other.scheduler()
    expect(await inTurn(scheduler)).toEqual({ ...(await inTurn(fresh)), reused: [0, 19, 17, 21] })
    await other.addAdapter({ rank: 2 })
    using adapted = other.scheduler({ promptCache: true })
    await inTurn(adapted, [prompts[0]!])
    await other.setParameter(
      'model.norm.weight',
      (await other.getParameter('model.norm.weight')).map((x) => 2 * x),
    )
    expect((await inTurn(adapted, [prompts[1]!])).reused).toEqual([0])
    using huginn = await LoopLM.fromPretrained(join(root, 'huginn'), { device: 'cpu', dtype: 'float32' })
    using seeded = huginn.scheduler({ promptCache: true })
    await inTurn(seeded, [prompts[0]!])
    expect((await inTurn(seeded, [prompts[0]!], { stateSeed: 9 })).reused).toEqual([0])
    expect((await inTurn(seeded, [prompts[0]!], { initialState: 'zeros' })).reused).toEqual([0])
    expect((await inTurn(seeded, [prompts[0]!])).reused).toEqual([20])
  })

  it('serves conversations of many turns side by side', async () => {
    using model = await open({ max_position_embeddings: 1024 })
    using plain = model.scheduler()
    using caching = model.scheduler({ promptCache: true })
    const draw = random(7)
    const talks = [0, 1, 2].map((talk) => [talk, ...beginning])
    for (let turn = 0; turn < 14; turn++) {
      const asked = talks.map((talk) => [...talk, ...Array.from({ length: 2 + turn }, () => Math.floor(draw() * 10))])
      const run = (scheduler: Scheduler) => asked.map((prompt) => scheduler.add(prompt, options))
      const requests = run(caching)
      const found = await Promise.all(requests.map((request) => request.result()))
      expect(found).toEqual(await Promise.all(run(plain).map((request) => request.result())))
      if (turn > 0)
        for (const [i, { reused }] of requests.entries()) expect(reused).toBeGreaterThanOrEqual(talks[i]!.length - 3 - turn)
      for (const [i, prompt] of asked.entries()) talks[i] = [...prompt, ...found[i]!.tokens]
    }
    const { reused, prefilled } = caching.stats()
    expect(reused).toBeGreaterThan(3 * prefilled)
  })

  it.each([1, 2, 3])('gives the same bits with random requests, cancellations and little room (seed %i)', async (seed) => {
    using model = await open()
    using plain = model.scheduler()
    using caching = model.scheduler({ promptCache: { maxTokens: 60 }, maxTokens: 200, maxRows: 4, prefillTokens: 5 })
    const draw = random(seed)
    const asked = Array.from({ length: 60 }, () => {
      const length = 16 + Math.floor(draw() * 40)
      return Array.from({ length }, (_, i) => (i < 14 || draw() < 0.9 ? (i * i) % 7 : 9))
    })
    const requests = []
    for (const prompt of asked) {
      const request = caching.add(prompt, options)
      requests.push(request)
      if (draw() < 0.2) requests[Math.floor(draw() * requests.length)]!.cancel()
      if (draw() < 0.3) await request.result().catch(() => undefined)
    }
    const made = await Promise.all(requests.map((request) => request.result()))
    for (const [i, result] of made.entries()) {
      if (result.finishReason === 'cancelled') continue
      expect(result).toEqual(await plain.add(asked[i]!, options).result())
    }
    const { hits, retained, cachedTokens } = caching.stats()
    expect(hits).toBeGreaterThan(10)
    expect(retained).toBeLessThanOrEqual(60)
    expect(cachedTokens).toBe(retained)
  })

  it('rejects invalid or unsupported options by name', async () => {
    using model = await open()
    const create = (more: SchedulerOptions) => () => model.scheduler({ promptCache: true, ...more })
    expect((await refusal(create({ kv: 'shared' }))).message).toContain('promptCache: continuing a prompt needs the keys')
    expect((await refusal(create({ promptCache: { maxTokens: 0 } }))).message).toContain('promptCache.maxTokens')
    expect((await refusal(create({ promptCache: 3 as never }))).message).toContain('promptCache must be true, false')
    using scheduler = model.scheduler()
    expect((await refusal(() => scheduler.add([1], { promptCache: true }))).message).toContain('Give it to the scheduler')
  })
})
