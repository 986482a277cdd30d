// Requests that go on where others ended: what they make is what score says of the whole, and no token runs twice.
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { type DeviceName, LoopLM, type RealArray, type Scheduler } from '../../src/index.js'
import { buildEmulated, triedOn } from '../emulated.js'
import { refusal } from '../refusal.js'
import { smallConfig, tinyConfig, tinyTask } from '../tiny.js'

const root = join(import.meta.dirname, '../fixtures', 'families')
const targets = [
  { device: 'reference', dtype: 'float64', bound: 1e-12 },
  { device: 'cpu', dtype: 'float32', bound: 1e-5 },
  { device: 'cuda-emulated' as DeviceName, dtype: 'float32', bound: 1e-5 },
] as const
beforeAll(buildEmulated, 900_000)

const prompt = [1, 2, 3, 4]
const options = { keep: true, maxNewTokens: 4, stop: [], seed: 5, sequence: 3, exit: { rule: 'fixed' } } as const
const replies = [[5, 6], [], [7, 8, 9]]

/** Tokens and log-probabilities of an episode of four turns. */
async function episode(scheduler: Scheduler) {
  let request = scheduler.add(prompt, options)
  const tokens = [...prompt]
  const sampled: { at: number; logprob: number }[] = []
  for (let turn = 0; ; turn++) {
    const made = await request.result()
    for (const [j, logprob] of made.logprobs.entries()) sampled.push({ at: tokens.length + j - 1, logprob })
    tokens.push(...made.tokens)
    const reply = replies[turn]
    if (reply === undefined) return { tokens, sampled, request }
    tokens.push(...reply)
    request = scheduler.continue(request, reply)
  }
}

describe.each(targets)('on $device in $dtype', ({ device, dtype, bound }) => {
  it.each(triedOn(device, readdirSync(root)))(
    '%s: turns have the log-probabilities of the whole sequence, and no token is computed twice',
    async (name) => {
      using model = await LoopLM.fromPretrained(join(root, name), { device, dtype })
      using scheduler = model.scheduler({ prefillTokens: 3 })
      const { tokens, sampled, request } = await episode(scheduler)
      const { logprobs } = await model.score([tokens], { promptLengths: [prompt.length], lastLoop: true })
      for (const { at, logprob } of sampled) expect(Math.abs(logprob - logprobs[0]![at]!)).toBeLessThan(bound)
      const { prefilled, reused, kept, evicted } = scheduler.stats()
      // behind the prompt, a turn runs the last token of the turn before, which no loop has seen, and the reply
      expect(prefilled).toBe(prompt.length + replies.reduce((sum, reply) => sum + 1 + reply.length, 0))
      expect({ reused, kept, evicted }).toEqual({ reused: 7 + 13 + 17, kept: 1, evicted: 0 })
      request.release()
      await expect.poll(() => scheduler.stats().cachedTokens).toBe(0)
      expect(scheduler.stats().kept).toBe(0)
    },
  )
})

describe('a kept request', () => {
  const open = async () => LoopLM.create({ ...tinyConfig, num_hidden_layers: 2 }, { device: 'cpu', seed: 3 })
  const expectClose = (got: RealArray, expected: RealArray) => {
    for (const [i, x] of got.entries()) expect(Math.abs(x - expected[i]!)).toBeLessThan(1e-5) // sums over prompts are in another order
  }

  it('gives the same bits beside other requests, and the same up to rounding after eviction', async () => {
    using model = await open()
    using alone = model.scheduler()
    const { tokens, sampled } = await episode(alone)
    using roomy = model.scheduler()
    for (const made of await Promise.all([episode(roomy), episode(roomy), episode(roomy)]))
      expect([made.tokens, made.sampled]).toEqual([tokens, sampled])
    expect(roomy.stats().evicted).toBe(0)
    using tight = model.scheduler({ maxTokens: 40 }) // room for two
    for (const made of await Promise.all([episode(tight), episode(tight), episode(tight)])) {
      expect(made.tokens).toEqual(tokens)
      for (const [i, { at, logprob }] of made.sampled.entries()) {
        expect(at).toBe(sampled[i]!.at)
        expect(Math.abs(logprob - sampled[i]!.logprob)).toBeLessThan(1e-5) // sums over prompts are in another order
      }
    }
    expect(tight.stats().evicted).toBeGreaterThan(0)
  })

  it('can be forked at one of its tokens', async () => {
    using model = await open()
    using scheduler = model.scheduler()
    const trunk = scheduler.add(prompt, { ...options, maxNewTokens: 6 })
    const { tokens } = await trunk.result()
    const before = scheduler.stats()
    const branches = [1, 2, 3].map((sequence) => scheduler.continue(trunk, [], { at: 4, fork: true, sequence }))
    const made = await Promise.all(branches.map((branch) => branch.result()))
    const after = scheduler.stats()
    expect(after.prefilled - before.prefilled).toBe(1) // equal prompts are shared
    for (const [i, { logprobs, tokens: own }] of made.entries()) {
      const whole = [...prompt, ...tokens.slice(0, 4)]
      const fresh = await scheduler.add(whole, { ...options, maxNewTokens: 6, sequence: i + 1, keep: false }).result()
      expect(own).toEqual(fresh.tokens)
      expectClose(logprobs, fresh.logprobs)
    }
    trunk.release()
    expect((await refusal(() => scheduler.continue(trunk, [1]))).message).toContain('it was released')
  })

  it('can be continued inside its prompt and after a stop', async () => {
    using model = await open()
    using scheduler = model.scheduler()
    const first = scheduler.add(prompt, options)
    await first.result()
    const before = scheduler.stats()
    const next = scheduler.continue(first, [9, 8], { at: -2 })
    const fresh = await scheduler.add([1, 2, 9, 8], { ...options, keep: false }).result()
    expect((await next.result()).logprobs).toEqual(fresh.logprobs) // the tokens of prompts alone are reused
    expect(scheduler.stats().reused - before.reused).toBe(2)
    expect((await refusal(() => scheduler.continue(next, [], { at: -5 }))).message).toContain('at must be')
    const long = scheduler.continue(next, [], { at: 0, maxNewTokens: 5000 })
    for await (const _ of long) long.stop()
    const { tokens, finishReason } = await long.result()
    expect(finishReason).toBe('stop')
    expect(tokens.length).toBeLessThan(5000)
    const behind = scheduler.continue(long, [3], { maxNewTokens: 1 })
    await behind.result()
    expect(scheduler.stats().reused - before.reused).toBeGreaterThanOrEqual(2 + 4 + tokens.length - 1)
    behind.stop() // has ended
    behind.release()
  })

  it('keeps its prompt alone if it is stopped before its first token', async () => {
    using model = await open()
    const fresh = async (whole: number[], maxNewTokens: number) =>
      (await model.generate([whole], { maxNewTokens, stop: [], seed: 5 }))[0]!
    using scheduler = model.scheduler()
    const request = scheduler.add(prompt, { ...options, logitsProcessor: () => request.stop() })
    expect(await request.result()).toMatchObject({ tokens: [], finishReason: 'stop' })
    await expect.poll(() => scheduler.stats()).toMatchObject({ kept: 1, cachedTokens: prompt.length })
    const plain = { maxNewTokens: 5, stop: [], seed: 5 }
    const others = [[9, 8], prompt].map((whole) => scheduler.add(whole, plain).result()) // the second has the kept prompt
    expect(await Promise.all(others)).toEqual([await fresh([9, 8], 5), await fresh(prompt, 5)])
    const next = scheduler.continue(request, [5]) // with its processor, which does nothing now
    expect((await next.result()).tokens).toEqual(
      (await scheduler.add([...prompt, 5], { ...options, keep: false }).result()).tokens,
    )
    expect(next.reused).toBe(prompt.length - 1)
    next.release()
    await expect.poll(() => scheduler.stats().cachedTokens).toBe(0)
  })

  it('is not shared, and runs again, after parameters changed', async () => {
    using model = await open()
    using scheduler = model.scheduler()
    const first = scheduler.add(prompt, options)
    const { tokens } = await first.result()
    using other = await LoopLM.create({ ...tinyConfig, num_hidden_layers: 2 }, { device: 'cpu', seed: 4 })
    await model.copyParametersFrom(other)
    using fresh = other.scheduler()
    expect(await scheduler.add(prompt, options).result()).toEqual(await fresh.add(prompt, options).result())
    const next = scheduler.continue(first, [5])
    expect(await next.result()).toEqual(await fresh.add([...prompt, ...tokens, 5], options).result())
    expect(next.reused).toBe(0)
  })

  it('leaves unrelated requests with the same tokens their bits', async () => {
    using model = await LoopLM.create(smallConfig, { device: 'cpu', seed: 1 })
    const made = { keep: true, maxNewTokens: 20, stop: [], temperature: 0 }
    const run = async (continued: boolean, added: boolean) => {
      using scheduler = model.scheduler()
      const first = scheduler.add(prompt, made)
      const whole = [...prompt, ...(await first.result()).tokens, 9]
      const unrelated = [0, 1].map(() => (added ? scheduler.add(whole, made) : undefined))
      const forks = [0, 1].map(() => (continued ? scheduler.continue(first, [9], { fork: true }) : undefined))
      unrelated.push(added ? scheduler.add(whole, made) : undefined)
      const results = await Promise.all([unrelated, forks].map((all) => Promise.all(all.map((one) => one?.result()))))
      expect(scheduler.stats().prefilled).toBe(prompt.length + (added ? whole.length : 0) + (continued ? 2 : 0)) // equal ones share
      return results
    }
    const together = await run(true, true)
    expect(together[0]).toEqual((await run(false, true))[0])
    expect(together[1]).toEqual((await run(true, false))[1])
  })

  it('can be continued after a stop string', async () => {
    using model = await open()
    model.tokenizer = tinyTask.tokenizer
    using scheduler = model.scheduler()
    const whole = await scheduler.add(prompt, { ...options, keep: false }).result()
    const request = scheduler.add(prompt, { ...options, stop: [model.tokenizer.decode([whole.tokens[1]!])] })
    const { tokens } = await request.result()
    expect(tokens).toEqual(whole.tokens.slice(0, whole.tokens.indexOf(whole.tokens[1]!) + 1))
    const next = scheduler.continue(request, [3], { stop: [] })
    const fresh = await scheduler.add([...prompt, ...tokens, 3], { ...options, keep: false }).result()
    expectClose((await next.result()).logprobs, fresh.logprobs)
    expect(scheduler.stats().reused).toBe(prompt.length + tokens.length - 1)
  })

  it('rejects continuations that are not possible, with the reason', async () => {
    using model = await open()
    using scheduler = model.scheduler()
    const plain = scheduler.add(prompt, { maxNewTokens: 2, stop: [] })
    await plain.result()
    expect((await refusal(() => scheduler.continue(plain, [1]))).message).toContain('it was not added with keep: true')
    const running = scheduler.add(prompt, options)
    expect((await refusal(() => scheduler.continue(running, [1]))).message).toContain('it has not ended')
    await running.result()
    expect((await refusal(() => scheduler.continue(running, [1], { at: 5 }))).message).toContain('at must be')
    expect((await refusal(() => scheduler.continue(running, [1], { att: 5 } as object))).message).toContain('att')
    expect((await refusal(() => scheduler.continue(running, [99]))).message).toContain('99')
    running.cancel()
    running.release()
    using shared = model.scheduler({ kv: 'shared' })
    expect((await refusal(() => shared.add(prompt, options))).message).toContain("kv 'per-loop'")
    using small = model.scheduler({ maxTokens: 12 })
    const first = small.add(prompt, options)
    await first.result()
    expect((await refusal(() => small.continue(first, [1, 2]))).message).toContain('maxTokens 12')
  })
})
