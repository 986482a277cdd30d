// Rollouts that follow a grammar: what is sampled, which log-probabilities go with it, what is trained, and what is refused.
import { describe, expect, it } from 'vitest'
import {
  type Environment,
  evaluate,
  GRPOTrainer,
  LoopLM,
  ObjectiveTrainer,
  RLTTTrainer,
  type Rollout,
  Tokenizer,
} from '../../src/index.js'
import { refusal } from '../refusal.js'
import { parametersOf } from '../tiny.js'

const tokenizer = Tokenizer.characters('abcdef', { special: { eos: '<eos>' } })
const sizes = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 }
const create = () =>
  LoopLM.create(
    { vocab_size: tokenizer.vocabSize, ...sizes, initializer_range: 0.3, max_position_embeddings: 64 },
    { device: 'reference', seed: 4 },
  )
const dataset = ['ab', 'b', 'cab'].map((prompt) => ({ prompt, answer: 'ab' }))
const reward = (_: string, completion: string) => completion.length + (completion.charCodeAt(0) % 2)
const grammar = { regex: '(ab|b)c{0,2}' }
const base = {
  ...{ dataset, tokenizer, reward, grammar, groupSize: 4, promptsPerStep: 3, steps: 1, learningRate: 1e-2, maxNewTokens: 8 },
  logprobCheckEvery: 1,
} as const
const whole = /^(?:ab|b)c{0,2}$/

describe('rollouts with a grammar', () => {
  it.each([
    ['rltt', (model: LoopLM, options: object) => new RLTTTrainer(model, { ...base, ...options })],
    ['grpo', (model: LoopLM, options: object) => new GRPOTrainer(model, { ...base, ...options })],
    ['objective', (model: LoopLM, options: object) => new ObjectiveTrainer(model, { ...base, ...options, objective: 'grpo' })],
  ] as const)('match the grammar, and train like the same completions without a grammar: %s', async (_, make) => {
    using model = await create()
    const seen: Rollout[] = []
    const metrics = []
    using trainer = make(model, {
      callbacks: { onRollouts: ({ rollouts }: { rollouts: readonly Rollout[] }) => void seen.push(...rollouts) },
    })
    for await (const event of trainer.run()) if (event.type === 'step') metrics.push(event.metrics)
    expect(seen).toHaveLength(12)
    expect(new Set(seen.map(({ text }) => text)).size).toBeGreaterThan(2)
    for (const { text, truncated } of seen) {
      expect(text).toMatch(whole)
      expect(truncated).toBe(false)
    }
    // the log-probabilities are those of the full vocabulary, so the first update compares the model with itself
    expect(metrics[0]!['sampling/logprob_difference/max']).toBeLessThan(1e-12)
    using other = await create()
    using plain = make(other, { grammar: undefined })
    const sequences = seen.map(({ tokens }) => tokens)
    const promptLengths = seen.map(({ promptLength }) => promptLength)
    await plain.update({ sequences, promptLengths, rewards: seen.map(({ reward }) => reward!) })
    expect(await parametersOf(model)).toEqual(await parametersOf(other))
  })

  it('keep the log-probabilities of the model even if the grammar allows one token', async () => {
    using model = await create()
    const seen: Rollout[] = []
    const callbacks = { onRollouts: ({ rollouts }: { rollouts: readonly Rollout[] }) => void seen.push(...rollouts) }
    using trainer = new RLTTTrainer(model, { ...base, grammar: { ebnf: 'root ::= "ace"' }, callbacks })
    for await (const _ of trainer.run());
    using untrained = await create()
    expect(seen).toHaveLength(12)
    for (const { text, tokens, promptLength, samplingLogprobs } of seen) {
      expect(text).toBe('ace')
      const { logprobs } = await untrained.score([tokens], { promptLengths: [promptLength], lastLoop: true })
      const own = Array.from(logprobs[0]!).slice(promptLength - 1)
      expect(samplingLogprobs).toHaveLength(own.length)
      expect(own.length).toBeGreaterThanOrEqual(3) // its letters
      for (const [i, value] of Array.from(samplingLogprobs!).entries()) {
        expect(value).toBeLessThan(-0.1) // of the masked distribution it would be 0
        expect(Math.abs(value - own[i]!)).toBeLessThan(1e-12)
      }
    }
  })

  it('follow the grammar in every turn of an episode and in evaluations', async () => {
    using model = await create()
    const turns: string[] = []
    const environment: Environment = ({ prompt }) => ({
      prompt: prompt as string,
      step: ({ text, index }) => {
        turns.push(text)
        return { reward: text.length, ...(index === 0 ? { reply: 'd' } : { done: true }) }
      },
    })
    const options = { ...base, reward: undefined, environment, evalDataset: dataset, evalEvery: 1 }
    using trainer = new RLTTTrainer(model, options)
    for await (const _ of trainer.run());
    expect(turns.length).toBeGreaterThan(24)
    for (const text of turns) expect(text).toMatch(whole)
    using single = new RLTTTrainer(model, { ...base, evalDataset: dataset })
    const answered = [...(await single.evaluate()), ...(await evaluate(model, { dataset, tokenizer, grammar, loops: [1, 2] }))]
    const texts = answered.flatMap(({ answers }) => answers.flat().map(({ completion }) => completion))
    expect(texts).toHaveLength(12)
    for (const text of texts) expect(text).toMatch(whole)
  })
})

describe('a wrong grammar', () => {
  it('is rejected by the name of its field', async () => {
    using model = await create()
    const message = async (grammar: object) =>
      (await refusal(() => new RLTTTrainer(model, { ...base, grammar: grammar as never }))).message
    expect(await message({ regex: '(?=a)' })).toMatch(/grammar: .*look/)
    expect(await message({ regex: 'a', ebnf: 'root ::= "a"' })).toMatch(
      /grammar: must have one of jsonSchema, regex and ebnf, got 2/,
    )
    expect(await message({ jsonSchema: { not: {} } })).toMatch(/grammar: .*not/)
    expect(await message({ regx: 'a' })).toMatch(/grammar\.regx: unknown option; did you mean regex\?/)
  })

  it('is rejected before training if model and data have different tokenizers', async () => {
    using model = await create()
    model.tokenizer = Tokenizer.characters('fedcba', { special: { eos: '<eos>' } })
    using trainer = new RLTTTrainer(model, base)
    const run = async () => {
      for await (const _ of trainer.run());
    }
    expect((await refusal(run)).message).toMatch(/grammar: the data uses another tokenizer.*set model\.tokenizer/)
    const { message } = await refusal(() => evaluate(model, { dataset, tokenizer, grammar }))
    expect(message).toMatch(/evaluate: grammar: the data uses another tokenizer/)
  })
})
