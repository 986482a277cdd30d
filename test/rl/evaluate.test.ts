// Evaluations that one would publish: samples, pass@k, intervals, the answers themselves.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Dataset, evaluate, LoopLM, passAtK, Tokenizer, wilsonInterval } from '../../src/index.js'
import { refusal } from '../refusal.js'

const tokenizer = Tokenizer.characters('ab:', { special: { eos: '<eos>' } })
const dataset: Dataset = Array.from({ length: 12 }, (_, i) => ({ prompt: `${'ab'[i % 2]}:`, answer: 'a' }))
const first = (_prompt: string, completion: string) => (completion.startsWith('a') ? 1 : 0)
let model: LoopLM
beforeAll(async () => {
  const sizes = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 }
  model = await LoopLM.create({ vocab_size: tokenizer.vocabSize, eos_token_id: tokenizer.eosTokenId!, ...sizes }, { seed: 3 })
})
afterAll(() => model.dispose())

describe('an evaluation', () => {
  const options = { dataset, tokenizer, reward: first, loops: [2], maxNewTokens: 3 }

  it('gives the interval of Wilson for a share, and every answer with its reward', async () => {
    const [result] = await evaluate(model, options)
    const right = result!.rewards.filter((reward) => reward === 1).length
    expect(result!.interval).toEqual(wilsonInterval(right, 12))
    expect(result!.passAt).toBeUndefined()
    expect(result!.answers.map(([answer]) => answer!.reward)).toEqual(result!.rewards)
    expect(result!.answers.map(([answer]) => first('', answer!.completion))).toEqual(result!.rewards)
  })

  it('samples several answers, whose mean over problems and pass@k it reports', async () => {
    const [result] = await evaluate(model, { ...options, samples: 6 })
    const { answers, rewards, reward, interval, passAt } = result!
    expect(answers.map(({ length }) => length)).toEqual(Array(12).fill(6))
    const right = answers.map((own) => own.filter((answer) => answer.reward === 1).length)
    expect(rewards).toEqual(right.map((count) => count / 6))
    expect(reward).toBeCloseTo(right.reduce((sum, count) => sum + count, 0) / 72, 12)
    expect(Object.keys(passAt!)).toEqual(['1', '2', '4', '6'])
    for (const k of [1, 2, 4, 6]) {
      expect(passAt![k]).toBeCloseTo(right.reduce((sum, count) => sum + passAtK(count, 6, k), 0) / 12, 12)
    }
    expect(passAt![1]).toBeCloseTo(reward, 12)
    expect(interval.low).toBeLessThan(reward)
    expect(interval.high).toBeGreaterThan(reward)
    expect(new Set(answers[0]!.map(({ completion }) => completion)).size).toBeGreaterThan(1)
  })

  it('draws the same answers for the same seed, and others for another', async () => {
    const drawn = async (seed: number) => (await evaluate(model, { ...options, samples: 4, seed }))[0]!.answers
    expect(await drawn(1)).toEqual(await drawn(1))
    expect(await drawn(1)).not.toEqual(await drawn(2))
  })

  it('samples more than one call generates, each answer drawn by itself', async () => {
    const seen: number[] = []
    const onProgress = ({ answered, of }: { answered: number; of: number }) => seen.push(answered, of)
    const [result] = await evaluate(model, { ...options, maxNewTokens: 8, temperature: 2, samples: 100, onProgress })
    expect(seen).toEqual([1024, 1200, 1200, 1200])
    const texts = result!.answers.flat().map(({ completion }) => completion)
    expect(texts.slice(1024)).not.toEqual(texts.slice(0, 176))
  })

  it('of other rewards has an interval and no pass@k, and leaves out what has no opinion', async () => {
    const reward = (_prompt: string, completion: string, { prompt }: Record<string, unknown>) =>
      prompt === 'b:' ? null : completion.length / 3
    const [result] = await evaluate(model, { ...options, reward, samples: 4 })
    expect(result!.passAt).toBeUndefined()
    expect(result!.rewards.filter((value) => value === null)).toHaveLength(6)
    expect(result!.interval.low).toBeLessThanOrEqual(result!.reward)
    expect(result!.interval.high).toBeGreaterThanOrEqual(result!.reward)
    const [none] = await evaluate(model, { ...options, reward: () => null })
    expect(none).toMatchObject({ reward: 0, interval: { low: 0, high: 0 } })
  })

  it.each([
    [{ samples: 0 }, /samples/],
    [{ samples: 2, temperature: 0 }, /2 greedy answers are all the same; give a temperature above 0/],
    [{ temperature: -1 }, /temperature/],
    [{ seed: 0.5 }, /seed/],
  ])('refuses %j', async (wrong, message) => {
    const error = await refusal(() => evaluate(model, { ...options, ...wrong }))
    expect([error.code, error.message]).toEqual(['INVALID_ARGUMENT', expect.stringMatching(message)])
  })
})
