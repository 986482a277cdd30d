// A model's positions end at max_position_embeddings: what is longer is refused by name, and generation ends there.
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { GRPOTrainer, LoopLM, PretrainTrainer } from '../../src/index.js'
import { refusal } from '../refusal.js'

const families = join(import.meta.dirname, '../fixtures', 'families')
const positions = 24
const config = {
  vocab_size: 20,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  total_ut_steps: 2,
  max_position_embeddings: positions,
}
const sequence = (length: number) => Array.from({ length }, (_, i) => i % 20)
const open = { temperature: 0, stop: [] }

describe('the last position of a model', () => {
  let model: LoopLM
  beforeAll(async () => {
    model = await LoopLM.create(config, { seed: 1 })
  })
  afterAll(() => model.dispose())

  it.each([
    ['score', (m: LoopLM, s: number[][]) => m.score(s)],
    ['embed', (m: LoopLM, s: number[][]) => m.embed(s)],
    ['responseMeans', (m: LoopLM, s: number[][]) => m.responseMeans(s)],
    [
      'backward',
      (m: LoopLM, s: number[][]) =>
        m.backward(
          s,
          s.map((one) => new Float32Array(2 * (one.length - 1))),
        ),
    ],
    [
      'a pre-training step',
      (m: LoopLM, s: number[][]) => new PretrainTrainer(m, { learningRate: 1e-3 }).update({ sequences: s }),
    ],
    [
      'a step with rewards',
      (m: LoopLM, s: number[][]) =>
        new GRPOTrainer(m, { groupSize: 2, learningRate: 1e-3 }).update({
          sequences: s,
          promptLengths: s.map(() => 2),
          rewards: s.map((_, i) => i),
        }),
    ],
  ] as const)('%s accepts a sequence that ends there and rejects a longer one', async (_, run) => {
    await run(model, [sequence(3), sequence(positions)])
    const { code, message } = await refusal(() => run(model, [sequence(3), sequence(positions + 1)]))
    expect(code).toBe('INVALID_ARGUMENT')
    expect(message).toMatch(/sequences\[1\] has 25 tokens.*24 positions \(max_position_embeddings.*Shorten/)
  })

  it('ends generation with the reason length, for any maxNewTokens', async () => {
    const prompts = [sequence(20), sequence(5), sequence(positions - 1)]
    for (const kv of ['per-loop', 'shared'] as const) {
      const results = await model.generate(prompts, { ...open, kv, maxNewTokens: 10 })
      expect(results.map(({ tokens, finishReason }) => [tokens.length, finishReason])).toEqual([
        [4, 'length'],
        [10, 'length'],
        [1, 'length'],
      ])
    }
    const [most] = await model.generate([[1]], { ...open, maxNewTokens: 2 ** 24 })
    expect(most!.tokens).toHaveLength(positions - 1)
    let streamed = 0
    for await (const { finishReason } of model.stream(sequence(20), { ...open, maxNewTokens: 100 })) {
      streamed++
      expect(finishReason).toBe(streamed === 4 ? 'length' : undefined)
    }
    expect(streamed).toBe(4)
    using scheduler = model.scheduler({ maxTokens: positions })
    const { tokens } = await scheduler.add(sequence(22), { ...open, maxNewTokens: 2 ** 24 }).result()
    expect(tokens).toHaveLength(2)
  })

  it('makes generate, stream and schedulers reject a prompt that reaches it', async () => {
    const prompt = sequence(positions)
    using scheduler = model.scheduler()
    for (const run of [
      () => model.generate([[1], prompt], open),
      () => model.stream(prompt, open).next(),
      () => scheduler.add(prompt, open),
      async () => {
        const first = scheduler.add(sequence(4), { ...open, keep: true, maxNewTokens: 2 })
        await first.result()
        scheduler.continue(first, sequence(positions - 6))
      },
    ]) {
      const { code, message } = await refusal(run)
      expect(code).toBe('INVALID_ARGUMENT')
      expect(message).toMatch(/ (prompts\[1\]|prompt) has 24 tokens and room for 1 more; the model has 24 positions/)
    }
  })
})

// Their loops may exceed the configuration's; their positions may not.
it.each(readdirSync(families))('%s rejects sequences beyond its last position', async (name) => {
  using model = await LoopLM.fromPretrained(join(families, name), { device: 'cpu', dtype: 'float32' })
  const long = Array.from({ length: model.config.max_position_embeddings + 1 }, () => 1)
  using scheduler = model.scheduler()
  for (const run of [
    () => model.score([long]),
    () => model.embed([long]),
    () => model.generate([long], open),
    () => scheduler.add(long, open),
    () => model.backward([long], [new Float32Array(model.config.total_ut_steps * (long.length - 1))]),
  ]) {
    const { code, message } = await refusal(run)
    expect(code).toBe('INVALID_ARGUMENT')
    expect(message).toContain('max_position_embeddings of its configuration')
  }
})
