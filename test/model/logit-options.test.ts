// Biases, bans, penalties and processors change what is drawn, by formulas written here once more, and nothing that is reported.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type ExitRule, type GenerateOptions, type GenerateResult, LoopLM } from '../../src/index.js'
import { refusal } from '../refusal.js'

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
const exits: ExitRule[] = [
  { rule: 'fixed' },
  { rule: 'gate', threshold: 0.6 },
  { rule: 'hidden-delta', threshold: 0.7 },
  { rule: 'kl', threshold: 0.5 },
  { rule: 'entropy', threshold: 2 },
  { rule: 'argmax-stable' },
]
/** Every request of another kind. */
const mixed: GenerateOptions[] = [
  { temperature: 0, logitBias: { 3: 4, 7: -2.5 } },
  { temperature: 0.7, topK: 5, bannedTokens: [0, 1, 2], exit: exits[1]! },
  { repetitionPenalty: 1.4, exit: exits[2]! },
  { frequencyPenalty: 0.7, presencePenalty: 0.3, exit: exits[3]!, logprobs: 3 },
  { temperature: 0, repetitionPenalty: 1.7, speculate: { loops: 2, tokens: 3 }, exit: exits[0]! },
  {
    logitsProcessor: (logits, { tokens }) => void logits.fill(-Infinity, tokens.length % V, (tokens.length % V) + 1),
    exit: exits[5]!,
  },
  {},
]

/** One draw's logits as the documentation says, from plain ones. */
function processed(plain: readonly number[], prompt: readonly number[], drawn: readonly number[], o: GenerateOptions): number[] {
  const { logitBias = {} } = o
  const biases = new Map(logitBias instanceof Map ? logitBias : Object.entries(logitBias).map(([id, bias]) => [Number(id), bias]))
  return plain.map((logit, token) => {
    let x = logit + (biases.get(token) ?? 0)
    if (o.bannedTokens?.includes(token)) return -Infinity
    const penalty = o.repetitionPenalty ?? 1
    if (prompt.includes(token) || drawn.includes(token)) x = x > 0 ? x / penalty : x * penalty
    const times = drawn.filter((other) => other === token).length
    return x - times * (o.frequencyPenalty ?? 0) - (times > 0 ? (o.presencePenalty ?? 0) : 0)
  })
}

describe.each([
  { device: 'cpu', dtype: 'float32' },
  { device: 'cpu', dtype: 'bfloat16' },
  { device: 'reference', dtype: 'float64' },
] as const)('sampling with logit options on $device in $dtype', ({ device, dtype }) => {
  let model: LoopLM
  beforeAll(async () => {
    model = await LoopLM.create(config, { device, dtype, seed: 11 })
  })
  afterAll(() => model.dispose())
  const alone = async (prompt: number[], options: GenerateOptions): Promise<GenerateResult> =>
    (await model.generate([prompt], options))[0]!

  const tolerance = dtype === 'float64' ? 1e-13 : 2e-6

  /** The model's own logits before each of some tokens, which are drawn in any case. */
  async function own(prompt: number[], tokens: readonly number[], options: GenerateOptions): Promise<number[][]> {
    const seen: number[][] = []
    const logitsProcessor: GenerateOptions['logitsProcessor'] = (logits, { tokens: { length } }) => {
      seen.push(Array.from(logits))
      return Array.from(logits, (logit, token) => (token === tokens[length] ? logit : -Infinity))
    }
    const { loops = 4, exit = { rule: 'fixed' } } = options
    const result = await alone(prompt, { ...open, maxNewTokens: tokens.length, loops, exit, logitsProcessor })
    expect(result.tokens).toEqual(tokens)
    return seen
  }

  it.each<GenerateOptions>([
    { logitBias: { 3: 4, 7: -2.5 } },
    { logitBias: new Map([[3, 4]]), bannedTokens: [1, 5, 19] },
    { repetitionPenalty: 1.5 },
    { repetitionPenalty: 0.8 },
    { frequencyPenalty: 1.5 },
    { presencePenalty: -2 },
    { logitBias: { 4: 1, 5: -1 }, repetitionPenalty: 1.3, frequencyPenalty: 0.4, presencePenalty: 0.6, bannedTokens: [2] },
  ])('draws from the logits that the formulas give: %o', async (changes) => {
    for (const prompt of prompts.slice(2, 4)) {
      const seen: number[][] = []
      const logitsProcessor = (logits: ArrayLike<number>) => void seen.push(Array.from(logits))
      const { tokens } = await alone(prompt, { ...open, ...changes, temperature: 0, logitsProcessor })
      expect((await alone(prompt, { ...open, ...changes, temperature: 0 })).tokens).toEqual(tokens)
      const raw = await own(prompt, tokens, {})
      for (const [j, logits] of seen.entries()) {
        for (const [v, x] of processed(raw[j]!, prompt, tokens.slice(0, j), changes).entries())
          if (x === -Infinity) expect(logits[v]).toBe(x)
          else expect(Math.abs(logits[v]! - x), `token ${v} of draw ${j}`).toBeLessThan(tolerance * (1 + Math.abs(x)))
        expect(tokens[j]).toBe(logits.indexOf(Math.max(...logits)))
      }
      expect(seen.flat()).not.toEqual(raw.flat())
    }
  })

  it('reports the log-probabilities of the model itself', async () => {
    for (const [i, options] of mixed.entries()) {
      const { tokens, logprobs, topLogprobs } = await alone(prompts[i]!, { ...open, ...options })
      const raw = await own(prompts[i]!, tokens, options)
      for (const [j, token] of tokens.entries()) {
        const scaled = raw[j]!.map((logit) => logit / (options.temperature || 1))
        const largest = Math.max(...scaled)
        const sum = largest + Math.log(scaled.reduce((total, x) => total + Math.exp(x - largest), 0))
        expect(Math.abs(logprobs[j]! - (scaled[token]! - sum))).toBeLessThan(10 * tolerance)
        const best = topLogprobs?.[j]?.[0]
        if (best !== undefined) expect(Math.abs(best.logprob - (largest - sum))).toBeLessThan(10 * tolerance)
      }
    }
  })

  it('gives the bits of plain sampling where options change nothing', async () => {
    const plain = await alone(prompts[3]!, { ...open, logprobs: 4 })
    for (const nothing of [
      { logitBias: {}, bannedTokens: [], repetitionPenalty: 1, frequencyPenalty: 0, presencePenalty: 0 },
      { logitsProcessor: (logits: ArrayLike<number>) => logits },
      { logitBias: { 0: 1e-30 } }, // takes the other path, and leaves the logits as they are
    ]) {
      const { logprobs, topLogprobs, ...result } = await alone(prompts[3]!, { ...open, logprobs: 4, ...nothing })
      expect(result).toEqual({ tokens: plain.tokens, loops: plain.loops, finishReason: plain.finishReason })
      if (device === 'cpu') expect([logprobs, topLogprobs]).toEqual([plain.logprobs, plain.topLogprobs])
      else for (const [j, logprob] of logprobs.entries()) expect(logprob).toBeCloseTo(plain.logprobs[j]!, 13)
    }
  })

  it('gives a request the same result alone and beside others', async () => {
    for (const limits of [{ maxRows: 7 }, { maxRows: 3, prefillTokens: 1 }]) {
      using scheduler = model.scheduler(limits)
      const requests = prompts.map((prompt, i) => scheduler.add(prompt, { ...open, ...mixed[i] }))
      const results = await Promise.all(requests.map((request) => request.result()))
      for (const [i, prompt] of prompts.entries())
        expect(results[i], `request ${i}`).toEqual(await alone(prompt, { ...open, ...mixed[i] }))
      expect(scheduler.stats()).toMatchObject({ rows: 0, waiting: 0, cachedTokens: 0 })
    }
  })

  it.each(exits)('does not change the exit loops: $rule', async (exit) => {
    // a bias that no draw notices: exits are decided on the model's own distributions
    const [{ loops }, biased] = [
      await alone(prompts[3]!, { ...open, exit }),
      await alone(prompts[3]!, { ...open, exit, logitBias: { 0: 1e-30 } }),
    ]
    expect(biased.loops).toEqual(loops)
    const pushed = await alone(prompts[3]!, { ...open, exit, logitBias: { 2: 100 } })
    expect(pushed.tokens).toEqual(Array(10).fill(2))
    expect(pushed.loops[0]).toBe(loops[0])
  })

  it.each([
    { loops: 1, tokens: 2 },
    { loops: 3, tokens: 8 },
  ])('gives the tokens of plain decoding with speculation: %o', async (speculate) => {
    for (const changes of [
      { repetitionPenalty: 1.6 },
      { frequencyPenalty: 2, temperature: 0 },
      { bannedTokens: [3, 4], logitBias: { 5: 2 } },
    ]) {
      const options: GenerateOptions = { ...open, maxNewTokens: 17, exit: { rule: 'fixed' }, ...changes }
      expect(await alone(prompts[3]!, { ...options, speculate })).toEqual(await alone(prompts[3]!, options))
    }
  })

  it('never draws a banned token, even an end token', async () => {
    const { tokens } = await alone(prompts[0]!, { ...open, maxNewTokens: 200, bannedTokens: [0, 3, 9] })
    expect(tokens.filter((token) => [0, 3, 9].includes(token))).toEqual([])
    expect(new Set(tokens).size).toBeGreaterThan(5)
    const { finishReason } = await alone(prompts[0]!, { ...open, stop: [3], bannedTokens: [3] })
    expect(finishReason).toBe('length')
  })
})

describe('logit options', () => {
  let model: LoopLM
  beforeAll(async () => {
    model = await LoopLM.create(config, { seed: 11 })
  })
  afterAll(() => model.dispose())
  const generate = async (options: object) => (await refusal(() => model.generate([[1, 2]], options as GenerateOptions))).message

  it('are rejected with their value and the allowed values if they are wrong', async () => {
    expect(await generate({ logitBias: { 20: 1 } })).toMatch(
      /an id of logitBias must be an integer of at least 0 and at most 19, got 20/,
    )
    expect(await generate({ logitBias: { x: 1 } })).toMatch(/an id of logitBias must be an integer.*got 'x'/)
    expect(await generate({ logitBias: { 1: Infinity } })).toMatch(/logitBias\[1\] must be a finite number.*got Infinity/)
    expect(await generate({ logitBias: [1] })).toMatch(/logitBias must be an object or a Map from token ids to numbers/)
    expect(await generate({ bannedTokens: [1, -1] })).toMatch(/bannedTokens\[1\] must be an integer of at least 0/)
    expect(await generate({ bannedTokens: 3 })).toMatch(/bannedTokens must be an array of token ids, got 3/)
    expect(await generate({ bannedTokens: Array.from({ length: V }, (_, v) => v) })).toMatch(/every token is banned/)
    expect(await generate({ repetitionPenalty: 0 })).toMatch(
      /repetitionPenalty must be a finite number of at least 0\.000001 .*got 0/,
    )
    expect(await generate({ frequencyPenalty: Number.NaN })).toMatch(/frequencyPenalty must be a finite number.*got NaN/)
    expect(await generate({ presencePenalty: '1' })).toMatch(/presencePenalty must be a finite number.*got '1'/)
    expect(await generate({ repetition_penalty: 1 })).toMatch(
      /repetition_penalty: unknown option; did you mean.*repetitionPenalty/,
    )
    expect(await generate({ logitsProcessor: 3 })).toMatch(/logitsProcessor must be a function/)
    const speculate = { loops: 2 }
    expect(await generate({ logitsProcessor: () => {}, speculate, exit: { rule: 'fixed' } })).toMatch(
      /speculate does not work with/,
    )
  })

  it.each([
    { logitBias: { 5: 1e39 } },
    { logitBias: { 5: -1e39 } },
    { frequencyPenalty: -1e38 },
    { presencePenalty: -1e39 },
    { repetitionPenalty: 1e-40 },
    { repetitionPenalty: 1e39 },
  ])('are rejected where float32 would overflow: %j', async (options) => {
    const [value] = Object.values(options).map((given) => (typeof given === 'object' ? given[5] : given))
    expect(await generate(options)).toMatch(new RegExp(`of at least .* and at most .*, got ${String(value).replace('+', '\\+')}`))
  })

  it.each([
    [{ logitBias: { 5: 1e30 }, repetitionPenalty: 1e-6, frequencyPenalty: -1e30, presencePenalty: -1e30 }, 5],
    [{ logitBias: { 5: 1e30, 6: 1e29 }, bannedTokens: [1], repetitionPenalty: 1e-6 }, 5],
  ])('choose the right token at their limits: %j', async (options, token) => {
    const [result] = await model.generate([[1, 5]], { ...open, ...options })
    expect(result!.tokens).toEqual(Array(10).fill(token))
  })

  it('draw every other token at the highest temperature', async () => {
    const [result] = await model.generate([[1, 5]], { ...open, maxNewTokens: 200, temperature: 1e30, bannedTokens: [V - 1] })
    expect([...new Set(result!.tokens)].sort((a, b) => a - b)).toEqual(Array.from({ length: V - 1 }, (_, token) => token))
  })

  it('end only the request whose processor fails', async () => {
    using scheduler = model.scheduler()
    const other = scheduler.add([1, 2], open)
    const failing: [GenerateOptions['logitsProcessor'], RegExp][] = [
      [() => [1, 2], /must return 20 logits, or nothing, got Array of length 2/],
      [(logits) => void logits.fill(-Infinity), /ruled out every token/],
      [(logits) => void logits.fill(Number.NaN, 4, 5), /set the logit of token 4 to NaN/],
      [() => Array.from({ length: V }, (_, token) => (token === 4 ? 1e39 : 0)), /set the logit of token 4 to 1e\+39/],
      [() => Array(V).fill(-1e39), /ruled out every token/],
      [
        () => {
          throw new Error('the lamp went out')
        },
        /the lamp went out/,
      ],
    ] // prettier-ignore
    for (const [logitsProcessor, words] of failing) {
      const request = scheduler.add([1, 2], { ...open, logitsProcessor: logitsProcessor! })
      expect((await refusal(() => request.result())).message).toMatch(words)
    }
    expect((await other.result()).tokens).toHaveLength(10)
    expect(scheduler.stats()).toMatchObject({ rows: 0, waiting: 0, cachedTokens: 0 })
  })

  it('allow a request to be cancelled or aborted inside its processor', async () => {
    using scheduler = model.scheduler()
    const stopped = scheduler.add([1, 2], { ...open, logitsProcessor: () => void stopped.cancel() })
    expect(await stopped.result()).toMatchObject({ tokens: [], finishReason: 'cancelled' })
    const control = new AbortController()
    const aborted = scheduler.add([1, 2], { ...open, signal: control.signal, logitsProcessor: () => control.abort() })
    expect((await refusal(() => aborted.result())).message).toMatch(/aborted/)
    expect((await scheduler.add([1, 2], open).result()).tokens).toHaveLength(10)
    expect(scheduler.stats()).toMatchObject({ rows: 0, waiting: 0, cachedTokens: 0 })
  })
})
