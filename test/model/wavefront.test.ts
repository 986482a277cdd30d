// Wavefront decoding returns what plain decoding returns, bit for bit, in fewer passes where readouts settle early.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type GenerateOptions, type GenerateResult, LoopLM, Tokenizer } from '../../src/index.js'
import { refusal } from '../refusal.js'
import { settle } from '../settling.js'
import { wavefrontConfig as config, decodesAlike, open } from '../wavefront-cases.js'

/** `every`: how many of the cases run, for the slow ones a part. */
const targets = [
  { device: 'cpu', dtype: 'float32', every: 1 },
  { device: 'cpu', dtype: 'bfloat16', every: 2 },
  { device: 'cpu', dtype: 'bfloat16', quantize: 'int8', groupSize: 32, every: 3 },
  { device: 'cpu', dtype: 'bfloat16', quantize: 'int4', groupSize: 32, every: 3 },
  { device: 'reference', dtype: 'float64', every: 4 },
] as const

describe.each(targets)('$device $dtype $quantize', ({ every, ...target }) => decodesAlike(target, every))

describe('a model whose readouts settle early', () => {
  let model: LoopLM
  const greedy = { ...open, temperature: 0, maxNewTokens: 60, exit: { rule: 'fixed' } } as const
  beforeAll(async () => {
    model = await LoopLM.create({ ...config, vocab_size: 257, eos_token_id: 256 }, { seed: 11, threads: 1 })
    await settle(model, 0.0002)
    model.tokenizer = Tokenizer.bytes({ special: { eos: '<eos>' } })
  })
  afterAll(() => model.dispose())
  /** A request alone, and the passes that it took. */
  const run = async (options: GenerateOptions) => {
    using scheduler = model.scheduler({ ...(options.kv ? { kv: options.kv } : {}) })
    const result = await scheduler.add([1, 2, 3], options).result()
    return { result, stats: scheduler.stats() }
  }

  it('takes one pass per token while drafts are accepted', async () => {
    const plain = await run(greedy)
    const ahead = await run({ ...greedy, speculate: 'wavefront' })
    expect(ahead.result).toEqual(plain.result)
    expect(plain.stats).toMatchObject({ passes: 4 * 59, passRows: 4 * 59, drafted: 0, accepted: 0 })
    const { drafted, accepted, passes } = ahead.stats
    expect(accepted).toBeGreaterThan(0.9 * drafted)
    // the first token takes four passes; a wrong draft costs up to three more
    expect(passes).toBeLessThanOrEqual(59 + 3 + 3 * (drafted - accepted))
    expect(passes).toBeLessThan(2 * 59)
  })

  it('streams, continues and forks like plain decoding', async () => {
    const tokens = async (options: GenerateOptions) => {
      const out: number[] = []
      for await (const { token } of model.stream([1, 2, 3], options)) out.push(token)
      return out
    }
    const ahead = { ...greedy, speculate: 'wavefront' } as const
    expect(await tokens(ahead)).toEqual(await tokens(greedy))
    const turns = async (options: GenerateOptions): Promise<GenerateResult[]> => {
      using scheduler = model.scheduler()
      const first = scheduler.add([1, 2, 3], { ...options, keep: true, maxNewTokens: 9 })
      const results = [await first.result()]
      const forked = scheduler.continue(first, [7], { fork: true, at: 5 })
      const next = scheduler.continue(first, [8, 8])
      results.push(await forked.result(), await next.result())
      return results
    }
    expect(await turns(ahead)).toEqual(await turns(greedy))
  })

  it('continues beside a request that is cancelled', async () => {
    const ahead = { ...greedy, speculate: 'wavefront' } as const
    const [plain] = await model.generate([[4]], greedy)
    using scheduler = model.scheduler()
    const other = scheduler.add([1, 2, 3], ahead)
    const stays = scheduler.add([4], ahead)
    let seen = 0
    for await (const _ of other) if (++seen === 5) other.cancel()
    expect(await stays.result()).toEqual(plain)
    expect(scheduler.stats()).toMatchObject({ rows: 0, cachedTokens: 0 })
  })

  it.each<[string, GenerateOptions]>([
    ['shared planes', { kv: 'shared' }],
    ['a grammar', { grammar: { regex: '[a-z]{1,60}' } }],
    ['a processor of logits', { logitsProcessor: (logits) => void logits.fill(-Infinity, 0, 9) }],
    ['one loop', { loops: 1 }],
  ])('falls back to plain decoding with %s', async (_, options) => {
    const plain = await run({ ...greedy, ...options })
    const ahead = await run({ ...greedy, ...options, speculate: 'wavefront' })
    expect(ahead.result).toEqual(plain.result)
    expect(ahead.stats).toMatchObject({ drafted: 0, passes: plain.stats.passes })
  })

  it('rejects other values of speculate', async () => {
    const error = await refusal(() => model.generate([[1]], { speculate: 'wave' as never }))
    expect(error.message).toMatch(/speculate must be one of 'wavefront', 'off', got "?'?wave/)
  })
})

it('wavefront decoding falls back to plain decoding if readouts never settle', async () => {
  using model = await LoopLM.create({ ...config, vocab_size: 997 }, { seed: 5, threads: 1 })
  const options: GenerateOptions = { ...open, maxNewTokens: 400, temperature: 1 }
  using scheduler = model.scheduler()
  const ahead = await scheduler.add([1, 2, 3], { ...options, speculate: 'wavefront' }).result()
  const { passes, passRows, drafted, accepted } = scheduler.stats()
  expect(ahead).toEqual((await model.generate([[1, 2, 3]], options))[0])
  expect(accepted).toBeLessThan(10)
  expect(drafted).toBeLessThan(40)
  expect(passRows).toBeLessThan(1.05 * 4 * 399)
  expect(passes).toBeGreaterThan(0.98 * 4 * 399)
})
