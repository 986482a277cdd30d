// Requests that come and go: what one returns depends on it alone, places and cache become free, drafts change nothing, exit rules do
// what their formulas say.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type ExitRule, type GenerateOptions, type GenerateResult, LoopLM, memory, Tokenizer } from '../../src/index.js'
import { collectGarbage } from '../garbage.js'
import { forward, gateLogit, greedy, type Parameters, probabilities } from '../looped-model.js'
import { refusal } from '../refusal.js'
import { expectRounded, unitRoundoff, yardstick } from '../rounding.js'
import { parametersOf } from '../tiny.js'

const V = 20
const config = {
  vocab_size: V,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  total_ut_steps: 4,
  initializer_range: 0.5,
}
const prompts = [[1, 2, 3], [4], [1, 2, 3], [5, 6, 7, 8, 9], [10, 11], [3, 3, 3, 3], [7, 1, 7]]
const open: GenerateOptions = { maxNewTokens: 10, stop: [], seed: 3 }
const exits: Exclude<ExitRule, { rule: 'sampled' }>[] = [
  { rule: 'fixed' },
  { rule: 'gate', threshold: 0.6 },
  { rule: 'gate', threshold: 0.3, minLoops: 2 },
  { rule: 'hidden-delta', threshold: 0.7 },
  { rule: 'kl', threshold: 0.5 },
  { rule: 'entropy', threshold: 2 },
  { rule: 'argmax-stable' },
  { rule: 'argmax-stable', minLoops: 3 },
  { rule: 'cosine', threshold: 0.3 },
  { rule: 'kl-previous', threshold: 0.5 },
  { rule: 'entropy-change', threshold: 0.3 },
  { rule: 'argmax-stable', patience: 2 },
]
/** Every request of another kind. */
const mixed: GenerateOptions[] = [
  { temperature: 0, exit: exits[1]! },
  { temperature: 0.7, topK: 5, exit: exits[4]! },
  { temperature: 1, topP: 0.8, seed: 9 },
  { maxNewTokens: 3, exit: exits[5]!, logprobs: 3 },
  { temperature: 0, loops: 2 },
  { temperature: 0, speculate: { loops: 2, tokens: 3 }, exit: { rule: 'fixed' } },
  { exit: exits[6]!, minP: 0.05 },
]

describe.each([
  { device: 'cpu', dtype: 'float32' },
  { device: 'cpu', dtype: 'bfloat16' },
  { device: 'reference', dtype: 'float64' },
] as const)('a scheduler on $device in $dtype', ({ device, dtype }) => {
  let model: LoopLM
  beforeAll(async () => {
    model = await LoopLM.create(config, { device, dtype, seed: 11 })
  })
  afterAll(() => model.dispose())
  const alone = async (prompt: number[], options: GenerateOptions): Promise<GenerateResult> =>
    (await model.generate([prompt], options))[0]!

  it.each([
    { maxRows: 7, prefillTokens: 512 },
    { maxRows: 2, prefillTokens: 2 },
    { maxRows: 3, prefillTokens: 1, maxTokens: 40 },
  ])('gives a request the same result alone and beside others: %o', async (options) => {
    using scheduler = model.scheduler(options)
    const requests = prompts.map((prompt, i) => scheduler.add(prompt, { ...open, ...mixed[i] }))
    const results = await Promise.all(requests.map((request) => request.result()))
    for (const [i, prompt] of prompts.entries()) expect(results[i], `${i}`).toEqual(await alone(prompt, { ...open, ...mixed[i] }))
    expect(scheduler.stats()).toMatchObject({ rows: 0, waiting: 0, cachedTokens: 0 })
  })

  it('lets requests enter while others run, first come first served', async () => {
    using scheduler = model.scheduler({ maxRows: 2 })
    const ended: number[] = []
    const first = scheduler.add(prompts[0]!, open)
    const later: Promise<void>[] = []
    let tokens = 0
    for await (const { token } of first) {
      expect(token).toBe((await alone(prompts[0]!, open)).tokens[tokens++])
      if (tokens > 3) continue
      const place = tokens
      const request = scheduler.add(prompts[place]!, { ...open, maxNewTokens: 2 })
      later.push(request.result().then(() => void ended.push(place)))
    }
    await Promise.all(later)
    expect(tokens).toBe(10)
    expect(ended).toEqual([1, 2, 3])
  })

  it('shares one pass among rows at different loops', async () => {
    using scheduler = model.scheduler()
    await Promise.all(prompts.map((prompt) => scheduler.add(prompt, { ...open, exit: exits[1]! }).result()))
    const { passes, passRows } = scheduler.stats()
    const results = await Promise.all(prompts.map((prompt) => alone(prompt, { ...open, exit: exits[1]! })))
    // the first token of a request comes from its prompt's states
    const loops = results.map((result) => result.loops.slice(1).reduce((sum, loop) => sum + loop, 0))
    expect(passRows).toBe(loops.reduce((sum, n) => sum + n))
    expect(passes).toBe(Math.max(...loops))
  })

  it.each(exits)('gives the same bits for a prompt in pieces: $rule', async (exit) => {
    const long = Array.from({ length: 23 }, (_, j) => (j * j + 3 * j) % V)
    for (const kv of ['per-loop', 'shared'] as const) {
      const options = { ...open, exit, maxNewTokens: 4, kv }
      const whole = await alone(long, options)
      for (const prefillTokens of [1, 5, 16]) {
        using scheduler = model.scheduler({ prefillTokens, kv })
        expect(await scheduler.add(long, options).result(), `${kv}, pieces of ${prefillTokens}`).toEqual(whole)
      }
    }
  })

  it.each([
    { maxRows: 3, prefillTokens: 4 },
    { maxRows: 5, prefillTokens: 1, maxTokens: 80 },
  ])('runs prompts in pieces beside running rows with a shared cache: %o', async (limits) => {
    const options = { ...open, exit: exits[1]!, kv: 'shared' as const }
    const lengths = [2, 17, 5, 17, 9, 31]
    const long = lengths.map((length, i) => Array.from({ length }, (_, j) => (j * j + 3 * j + (i === 3 ? 1 : i)) % V))
    const loops = [undefined, 3, undefined, 3, 2, undefined]
    using scheduler = model.scheduler({ ...limits, kv: 'shared' })
    const add = (prompt: number[], i: number) => scheduler.add(prompt, { ...options, ...(loops[i] ? { loops: loops[i] } : {}) })
    const first = long.slice(0, 2).map(add)
    for await (const _ of first[0]!) break // the others come while these run, and the first is gone
    const others = long.slice(2).map((prompt, i) => add(prompt, i + 2))
    const gone = add([...long[5]!].reverse(), 5)
    setImmediate(() => gone.cancel()) // wherever its prompt is by then
    const results = await Promise.all([first[1]!, ...others].map((request) => request.result()))
    for (const [i, result] of results.entries()) {
      const own = { ...options, ...(loops[i + 1] ? { loops: loops[i + 1]! } : {}) }
      expect(result).toEqual(await alone(long[i + 1]!, own))
    }
    expect(scheduler.stats().cachedTokens).toBe(0)
  })

  it.each([
    { loops: 1, tokens: 2 },
    { loops: 2, tokens: 4 },
    { loops: 3, tokens: 8 },
  ])('gives the tokens of plain decoding with speculation: %o', async (speculate) => {
    using scheduler = model.scheduler()
    for (const options of [{ temperature: 0 }, { temperature: 0.8, topP: 0.9 }]) {
      const settings = { ...open, ...options, maxNewTokens: 17, exit: { rule: 'fixed' as const } }
      const plain = await Promise.all(prompts.map((prompt) => alone(prompt, settings)))
      const requests = prompts.map((prompt) => scheduler.add(prompt, { ...settings, speculate }))
      expect(await Promise.all(requests.map((request) => request.result()))).toEqual(plain)
      const stop = plain[0]!.tokens[7]!
      const stopped = await scheduler.add(prompts[0]!, { ...settings, speculate, stop: [stop] }).result()
      expect(stopped.tokens).toEqual(plain[0]!.tokens.slice(0, plain[0]!.tokens.indexOf(stop) + 1))
    }
    const { drafted, accepted, cachedTokens } = scheduler.stats()
    expect(drafted).toBeGreaterThan(accepted)
    expect(accepted).toBeGreaterThan(0)
    expect(cachedTokens).toBe(0)
  })

  it('reports the most probable tokens', async () => {
    for (const temperature of [0, 0.7]) {
      const [{ tokens, logprobs, topLogprobs }] = [await alone(prompts[4]!, { ...open, temperature, logprobs: V })]
      const every = Array.from({ length: V }, (_, v) => [...prompts[4]!, v])
      const options = { temperature: temperature || 1 }
      const s = await model.score(every, { lastLoop: true, ...options })
      const of = await yardstick(model, config, every, options)
      const own = topLogprobs![0]!
      expect(own.map(({ token }) => token).sort((a, b) => a - b)).toEqual(Array.from({ length: V }, (_, v) => v))
      for (const [k, { logprob }] of own.entries()) if (k > 0) expect(logprob).toBeLessThanOrEqual(own[k - 1]!.logprob)
      const last = (rows: readonly ArrayLike<number>[]) => rows.map((row) => row[row.length - 1]!)
      const listed = every.map((_, v) => own.find(({ token }) => token === v)!.logprob)
      for (const got of [listed, last(s.logprobs)]) expectRounded(got, of, (scored) => last(scored.logprobs))
      // The same logits, whose exponentials are added up in another order: the sum of V has an error of V roundings, and so has its logarithm.
      for (const [j, token] of tokens.entries()) {
        const { logprob } = topLogprobs![j]!.find((entry) => entry.token === token)!
        expect(Math.abs(logprob - logprobs[j]!)).toBeLessThan(2 * (V + Math.abs(logprob)) * unitRoundoff.float32)
      }
    }
    expect((await alone(prompts[0]!, { ...open, logprobs: 2 })).topLogprobs!.every((list) => list.length === 2)).toBe(true)
  })
})

describe('an exit rule', () => {
  let model: LoopLM
  beforeAll(async () => {
    model = await LoopLM.create(config, { device: 'reference', seed: 5 })
  })
  afterAll(() => model.dispose())
  const T = config.total_ut_steps

  /** Σ_v of every loop's distribution behind a prefix, from sequences that the model scores whole. */
  async function distributions(prefix: readonly number[]): Promise<{ p: number[][]; cdf: number[] }> {
    const s = await model.score(Array.from({ length: V }, (_, v) => [...prefix, v]))
    const width = prefix.length
    const p = Array.from({ length: T }, (_, t) => s.logprobs.map((l) => Math.exp(l[t * width + width - 1]!)))
    let sum = 0
    const cdf = Array.from({ length: T }, (_, t) => (sum += s.exitPdf[0]![t * (width + 1) + width - 1]!))
    return { p, cdf }
  }
  const entropy = (p: number[]) => -p.reduce((sum, x) => sum + x * Math.log(x), 0)
  const divergence = (p: number[], q: number[]) => p.reduce((sum, x, v) => sum + x * Math.log(x / q[v]!), 0)
  const argmax = (p: number[]) => p.indexOf(Math.max(...p))
  const holds: Record<string, (p: number[][], cdf: number[], t: number, threshold: number, patience: number) => boolean> = {
    gate: (_, cdf, t, threshold) => cdf[t]! >= threshold,
    entropy: (p, _, t, threshold) => entropy(p[t]!) <= threshold,
    kl: (p, _, t, threshold) => t > 0 && divergence(p[t]!, p[t - 1]!) <= threshold,
    'argmax-stable': (p, _, t, __, patience) =>
      t >= patience && p.slice(t - patience, t).every((before) => argmax(before) === argmax(p[t]!)),
    'kl-previous': (p, _, t, threshold) => divergence(t > 0 ? p[t - 1]! : p[t]!.map(() => 1 / V), p[t]!) <= threshold,
    'entropy-change': (p, _, t, threshold) => t > 0 && Math.abs(entropy(p[t]!) - entropy(p[t - 1]!)) <= threshold,
  }

  it.each(exits.filter(({ rule }) => rule in holds))('$rule exits where its formula says', async (exit) => {
    type Fields = { rule: string; threshold?: number; minLoops?: number; patience?: number }
    const { rule, threshold = 0, minLoops = 1, patience = 1 } = exit as Fields
    const seen = new Set<number>()
    for (let seed = 0; seed < 24; seed++) {
      const prefix = Array.from({ length: 1 + (seed % 5) }, (_, j) => (seed * 7 + j * 3 + seed * j) % V)
      const { p, cdf } = await distributions(prefix)
      let want = minLoops - 1
      while (want < T - 1 && !holds[rule]!(p, cdf, want, threshold, patience)) want++
      const [result] = await model.generate([prefix], { ...open, maxNewTokens: 1, temperature: 0, exit })
      expect(result!.loops, `${prefix}`).toEqual([want + 1])
      expect(result!.tokens).toEqual([argmax(p[want]!)])
      expect(result!.logprobs[0]).toBeCloseTo(Math.log(p[want]![result!.tokens[0]!]!), 9)
      seen.add(want)
    }
    expect(seen.size).toBeGreaterThan(1)
  })

  it.each(exits)('$rule exits the same with the cache as with a recomputed prefix', async (exit) => {
    let compared = 0
    for (let first = 0; first < V; first++) {
      const [cached] = await model.generate([[first, 2]], { ...open, temperature: 0, exit, maxNewTokens: 12 })
      // tokens that left early have lent their keys to deeper loops, so the comparison ends with the first of them
      const early = cached!.loops.findIndex((loop) => loop < T)
      const end = early < 0 ? cached!.tokens.length : early + 1
      for (let j = 0; j < end; j++) {
        const prefix = [first, 2, ...cached!.tokens.slice(0, j)]
        const [again] = await model.generate([prefix], { ...open, temperature: 0, exit, maxNewTokens: 1 })
        expect([again!.tokens[0], again!.loops[0]]).toEqual([cached!.tokens[j], cached!.loops[j]])
        expect(again!.logprobs[0]).toBeCloseTo(cached!.logprobs[j]!, 9)
        compared++
      }
    }
    expect(compared).toBeGreaterThan(V)
  })

  it('hidden-delta exits at once with a huge threshold and never with 0', async () => {
    const loops = async (threshold: number, minLoops = 1) =>
      (await model.generate([[1, 2]], { ...open, exit: { rule: 'hidden-delta', threshold, minLoops } }))[0]!.loops
    expect(await loops(1e9)).toEqual(Array(10).fill(2)) // a change needs two states
    expect(await loops(1e9, 3)).toEqual(Array(10).fill(3))
    expect(await loops(0)).toEqual(Array(10).fill(4))
    const settled = await loops(0.7)
    expect(new Set(settled).size).toBeGreaterThan(1)
  })

  it('gives the same result with both values of kv at one loop', async () => {
    const options = { ...open, loops: 1 }
    expect(await model.generate(prompts, { ...options, kv: 'shared' })).toEqual(await model.generate(prompts, options))
  })
})

describe('an exit rule against its formula in plain TypeScript', () => {
  const sizes = { ...config, num_key_value_heads: config.num_attention_heads }
  let model: LoopLM
  let parameters: Parameters
  beforeAll(async () => {
    model = await LoopLM.create(sizes, { device: 'reference', seed: 5 })
    // states of equal length would not tell by which of them a change is measured
    for (const { name, shape } of model.parameters())
      if (name.includes('norm'))
        await model.setParameter(
          name,
          Float64Array.from({ length: shape[0]! }, (_, i) => 1.1 + Math.sin(9 * i)),
        )
    parameters = await parametersOf(model)
  })
  afterAll(() => model.dispose())

  const norm = (x: readonly number[]) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0))
  const argmax = (p: readonly number[]) => p.indexOf(Math.max(...p))
  const table = (state: number[]) => probabilities(parameters, state)
  const entropy = (p: number[]) => -p.reduce((sum, v) => sum + v * Math.log(v), 0)
  /** Whether a token goes after the last of its states, by the rule alone; of `sampled` see exit-sampled.test.ts. */
  const goes: Record<Exclude<ExitRule['rule'], 'sampled'>, (h: number[][], threshold: number, patience: number) => boolean> = {
    fixed: () => false,
    gate: (h, threshold) => 1 - h.reduce((stay, state) => stay / (1 + Math.exp(gateLogit(parameters, state))), 1) >= threshold,
    'hidden-delta': (h, threshold) =>
      h.length > 1 && norm(h.at(-1)!.map((v, i) => v - h.at(-2)![i]!)) <= threshold * norm(h.at(-1)!),
    kl: (h, threshold) => {
      if (h.length < 2) return false
      const before = table(h.at(-2)!)
      return table(h.at(-1)!).reduce((sum, v, i) => sum + v * Math.log(v / before[i]!), 0) <= threshold
    },
    entropy: (h, threshold) => entropy(table(h.at(-1)!)) <= threshold,
    cosine: (h, threshold) => {
      if (h.length < 2) return false
      const [now, before] = [h.at(-1)!, h.at(-2)!]
      return 1 - now.reduce((sum, v, i) => sum + v * before[i]!, 0) / (norm(now) * norm(before)) <= threshold
    },
    'kl-previous': (h, threshold) => {
      const now = table(h.at(-1)!)
      const before = h.length < 2 ? now.map(() => 1 / V) : table(h.at(-2)!)
      return before.reduce((sum, v, i) => sum + v * Math.log(v / now[i]!), 0) <= threshold
    },
    'entropy-change': (h, threshold) =>
      h.length > 1 && Math.abs(entropy(table(h.at(-1)!)) - entropy(table(h.at(-2)!))) <= threshold,
    'argmax-stable': (h, _, patience) => {
      if (h.length <= patience) return false
      const last = h.slice(-patience - 1).map((state) => argmax(table(state)))
      return last.every((token) => token === last[0])
    },
  }
  const leaves =
    (exit: { rule: keyof typeof goes; threshold?: number; minLoops?: number; patience?: number }) => (h: number[][]) =>
      h.length >= (exit.minLoops ?? 1) && goes[exit.rule](h, exit.threshold ?? 0, exit.patience ?? 1)

  it.each([
    { rule: 'fixed' },
    { rule: 'gate', threshold: 0.6 },
    { rule: 'hidden-delta', threshold: 0.7 },
    { rule: 'kl', threshold: 0.5 },
    { rule: 'entropy', threshold: 1.2 },
    { rule: 'cosine', threshold: 0.3 },
    { rule: 'kl-previous', threshold: 0.5 },
    { rule: 'entropy-change', threshold: 0.3 },
    { rule: 'argmax-stable' },
    { rule: 'argmax-stable', patience: 2 },
  ] as const)('exits at the right loop between minLoops and loops: $rule', async (exit) => {
    const left: Record<string, number> = {}
    for (let seed = 0; seed < 12; seed++) {
      const prefix = Array.from({ length: 1 + (seed % 4) }, (_, j) => (seed * 7 + j * 3 + seed * j) % V)
      const h = forward(sizes, parameters, prefix).states.map((rows) => rows.at(-1)!)
      for (const [minLoops, loops] of [
        [1, 4],
        [2, 4],
        [3, 4],
        [4, 4],
        [1, 3],
        [2, 3],
        [1, 2],
        [2, 2],
        [1, 1],
      ] as const) {
        let want = minLoops
        while (want < loops && !leaves({ ...exit, minLoops })(h.slice(0, want))) want++
        if (exit.rule === 'fixed') want = loops
        const least = exit.rule === 'fixed' ? {} : { minLoops }
        const options = { ...open, maxNewTokens: 1, temperature: 0, loops, exit: { ...exit, ...least } as ExitRule }
        const [result] = await model.generate([prefix], options)
        expect(result!.loops, `${prefix}, ${minLoops} to ${loops}`).toEqual([want])
        expect(result!.tokens).toEqual([argmax(table(h[want - 1]!))])
        left[want] = (left[want] ?? 0) + Number(want > minLoops && want < loops)
      }
    }
    // the formula alone, neither of the bounds, decided some of them
    if (exit.rule !== 'fixed') expect(Object.values(left).reduce((a, b) => a + b)).toBeGreaterThan(2)
  })

  it.each(exits.flatMap((exit) => (['per-loop', 'shared'] as const).map((kv) => ({ ...exit, kv }))))(
    'exits at the right loop token by token: $rule, kv $kv',
    async ({ kv, ...exit }) => {
      let early = 0
      for (const loops of [4, 3])
        for (let seed = 0; seed < 6; seed++) {
          const prompt = Array.from({ length: 1 + (seed % 5) }, (_, j) => (seed * 7 + j * 3 + seed * j) % V)
          const options = { tokens: 12, shared: kv === 'shared', leaves: leaves(exit) }
          const want = greedy({ ...sizes, total_ut_steps: loops }, parameters, prompt, options)
          const [got] = await model.generate([prompt], { ...open, maxNewTokens: 12, temperature: 0, loops, kv, exit })
          expect({ tokens: got!.tokens, loops: got!.loops }, `${prompt}, ${loops} loops`).toEqual(want)
          early += want.loops.filter((loop) => loop < loops).length
        }
      expect(early > 0).toBe(exit.rule !== 'fixed')
    },
  )
})

describe('a scheduler whose model gets another adapter', () => {
  const shift = (shiftRank: number) => ({ rank: 2, targetModules: ['q_proj'], shiftRank })
  const long = Array.from({ length: 40 }, (_, j) => (j * j + 3 * j) % V)
  /** Away from its first values, at which an adapter changes nothing. */
  async function move(model: LoopLM) {
    for (const { name } of model.adapter!.parameters) {
      const values = await model.getParameter(name)
      await model.setParameter(
        name,
        values.map((x, i) => x + 0.3 * Math.sin(i + name.length)),
      )
    }
  }

  it.each(['cpu', 'reference'] as const)('gives the tokens of a new scheduler on %s', async (device) => {
    using model = await LoopLM.create(config, { device, seed: 11 })
    for (const options of [{}, { promptCache: true }]) {
      using scheduler = model.scheduler(options)
      for (const rank of [0, 1, 64, 0, 4]) {
        await model.removeAdapter()
        if (rank > 0) await model.addAdapter(shift(rank))
        if (rank > 0) await move(model)
        for (const [prompt, maxNewTokens] of [
          [[1, 2], 4],
          [[2, ...long], 30],
        ] as const) {
          const [expected] = await model.generate([prompt], { ...open, maxNewTokens })
          expect(await scheduler.add(prompt, { ...open, maxNewTokens }).result(), `shift of rank ${rank}`).toEqual(expected)
        }
      }
    }
  })

  it('runs all tokens of a kept request again when it goes on', async () => {
    using model = await LoopLM.create(config, { device: 'cpu', seed: 11 })
    using scheduler = model.scheduler()
    const first = scheduler.add(long, { ...open, keep: true })
    const { tokens } = await first.result()
    await model.addAdapter(shift(4))
    await move(model)
    const next = scheduler.continue(first, [1])
    const [expected] = await model.generate([[...long, ...tokens, 1]], open)
    expect(await next.result()).toEqual(expected)
    expect(next.reused).toBe(0)
    expect(scheduler.stats()).toMatchObject({ kept: 1, evicted: 1 })
  })

  it('refuses to go on with requests that have begun, and takes new ones', async () => {
    using model = await LoopLM.create(config, { device: 'cpu', seed: 11 })
    using scheduler = model.scheduler()
    let added: Promise<void> | undefined
    const logitsProcessor = () => {
      added ??= model.addAdapter(shift(4))
    }
    const { code, message } = await refusal(() => scheduler.add(long, { ...open, logitsProcessor }).result())
    await added
    expect(code).toBe('INVALID_ARGUMENT')
    expect(message).toMatch(/an adapter was added to the model or removed from it.*wait for the results, or cancel/)
    expect(await scheduler.add(long, open).result()).toEqual((await model.generate([long], open))[0])
  })
})

describe('ending a request', () => {
  let model: LoopLM
  beforeAll(async () => {
    model = await LoopLM.create(config, { seed: 11 })
    model.tokenizer = Tokenizer.characters('0123456789abcdefghij')
  })
  afterAll(() => model.dispose())
  const endless: GenerateOptions = { maxNewTokens: 1_000_000, stop: [], temperature: 1 }

  it('by a shared signal ends all its requests without a leak warning', async () => {
    using scheduler = model.scheduler({ maxRows: 4 })
    const warnings: Error[] = []
    const keep = (warning: Error) => warnings.push(warning)
    process.on('warning', keep)
    const controller = new AbortController()
    const { signal } = controller
    const requests = Array.from({ length: 30 }, () => scheduler.add([1, 2], { ...endless, signal }))
    const scores = Promise.all(Array.from({ length: 30 }, () => model.score([[1, 2, 3]], { signal })))
    await scores
    controller.abort(new Error('enough'))
    for (const request of requests) expect((await refusal(() => request.result())).code).toBe('ABORTED')
    await expect.poll(() => scheduler.stats()).toMatchObject({ rows: 0, waiting: 0 })
    process.off('warning', keep)
    expect(warnings).toEqual([])
  })

  it('by cancel frees its row at once and keeps the tokens made so far', async () => {
    using scheduler = model.scheduler({ maxRows: 1 })
    const first = scheduler.add([1], endless)
    const second = scheduler.add([2, 3], open)
    let count = 0
    for await (const _ of first) if (++count === 5) first.cancel()
    expect(count).toBe(5)
    const { tokens, finishReason, text } = await first.result()
    expect(finishReason).toBe('cancelled')
    expect(tokens).toHaveLength(5)
    expect(text).toHaveLength(5)
    expect((await second.result()).tokens).toEqual((await model.generate([[2, 3]], open))[0]!.tokens)
    await expect.poll(() => scheduler.stats()).toMatchObject({ rows: 0, waiting: 0, cachedTokens: 0 })
  })

  it('works by break, by a signal, before its start, and by dispose', async () => {
    const scheduler = model.scheduler({ maxRows: 2 })
    for await (const _ of scheduler.add([1], endless)) break
    const controller = new AbortController()
    const aborted = scheduler.add([1], { ...endless, signal: controller.signal })
    const waiting = [scheduler.add([1], endless), scheduler.add([4, 4], endless)]
    waiting[1]!.cancel()
    setTimeout(() => controller.abort(), 20)
    expect((await refusal(() => aborted.result())).code).toBe('ABORTED')
    await expect.poll(() => scheduler.stats()).toMatchObject({ rows: 1, waiting: 0 })
    expect((await waiting[1]!.result()).tokens).toEqual([])
    expect((await refusal(() => scheduler.add([1], { ...open, signal: AbortSignal.abort() }).result())).code).toBe('ABORTED')
    scheduler.dispose()
    expect((await refusal(() => waiting[0]!.result())).code).toBe('DISPOSED')
    expect((await refusal(async () => scheduler.add([1]))).code).toBe('DISPOSED')
  })

  it('at a stop string makes no further token and streams the text before it', async () => {
    using scheduler = model.scheduler()
    const whole = await scheduler.add('12', { ...open, maxNewTokens: 30 }).result()
    const stop = whole.text!.slice(9, 11)
    const at = whole.text!.indexOf(stop)
    const request = scheduler.add('12', { ...open, maxNewTokens: 30, stop: [stop] })
    let text = ''
    for await (const chunk of request) text += chunk.text
    expect(text).toBe(whole.text!.slice(0, at))
    expect(await request.result()).toMatchObject({ text, finishReason: 'stop', tokens: whole.tokens.slice(0, at + 2) })
  })

  it('gives all memory back', async () => {
    const leave = async () => {
      using scheduler = model.scheduler()
      const requests = [scheduler.add([1], endless), scheduler.add([2], { ...open, exit: exits[4]! })]
      await requests[1]!.result()
      scheduler.dispose()
      await model.score([[1, 2]])
      return memory()
    }
    await leave()
    await collectGarbage()
    const { bytes, buffers } = await leave()
    expect(await leave()).toMatchObject({ bytes, buffers })
  })

  it('a full cache makes requests wait, and one that never fits is rejected', async () => {
    using scheduler = model.scheduler({ maxTokens: 12 })
    const requests = prompts.map((prompt) => scheduler.add(prompt, { ...open, maxNewTokens: 4 }))
    await expect.poll(() => scheduler.stats().slots).toBe(12)
    const results = await Promise.all(requests.map((request) => request.result()))
    expect(results.every(({ tokens }) => tokens.length === 4)).toBe(true)
    expect(scheduler.stats()).toMatchObject({ slots: 12, cachedTokens: 0 })
    const { code, message } = await refusal(async () => scheduler.add([1, 2, 3], { maxNewTokens: 11 }))
    expect([code, message]).toEqual(['INVALID_ARGUMENT', expect.stringMatching(/prompt of 3 tokens and 11 new.*maxTokens 12/)])
  })

  it('wrong arguments are rejected by name', async () => {
    using scheduler = model.scheduler({ loops: 2 })
    const add = async (options: GenerateOptions) => (await refusal(async () => scheduler.add([1], options))).message
    expect(await add({ loops: 3 })).toMatch(/loops 3 are more than the scheduler's 2/)
    expect(await add({ kv: 'shared' })).toMatch(/kv is 'shared'.*'per-loop'/)
    expect(await add({ exit: { rule: 'entropy' } as never })).toMatch(/exit\.threshold/)
    expect(await add({ exit: { rule: 'kl', threshold: 1, minLoops: 3 } })).toMatch(/minLoops must be between 1 and the 2/)
    expect(await add({ speculate: { loops: 2 } })).toMatch(/a draft needs at least 1 loop, fewer than the 2/)
    expect(await add({ speculate: { loops: 1 }, exit: { rule: 'argmax-stable' } })).toMatch(/needs exit rule fixed/)
    expect(await add({ sequenceNumbers: [5] })).toMatch(/sequenceNumbers: a request has one number\. Pass it as sequence/)
    expect(await add({ stop: 'x' as never })).toMatch(/stop must be an array of token ids and strings, got 'x'/)
    expect(await add({ logprobs: 21 })).toMatch(/logprobs.*at most 20/)
    expect((await refusal(async () => model.scheduler({ maxRows: 0 }))).message).toMatch(/maxRows.*at least 1/)
    expect(await add(null as never)).toMatch(/Scheduler\.add: options must be an object.*got null/)
    expect(await add({ maxTokens: 3 } as never)).toMatch(/Scheduler\.add: maxTokens: unknown option; did you mean maxNewTokens/)
    const make = async (options: object) => (await refusal(async () => model.scheduler(options))).message
    expect(await make(null as never)).toMatch(/LoopLM\.scheduler: options must be an object.*got null/)
    expect(await make({ maxrow: 3 })).toMatch(/LoopLM\.scheduler: maxrow: unknown option; did you mean maxRows/)
  })
})
