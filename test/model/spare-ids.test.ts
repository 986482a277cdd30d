// A model whose vocab_size is larger than its tokenizer's draws ids that no token has. As in Python they are tokens without a text.
import OpenAI from 'openai'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createServer, evaluate, LoopLM, RLTTTrainer, Tokenizer } from '../../src/index.js'

const tokenizer = Tokenizer.bytes({ special: { eos: '<eos>' } })
const sizes = { vocab_size: 400, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2 }
let model: LoopLM
beforeAll(async () => {
  model = await LoopLM.create({ ...sizes, total_ut_steps: 2 }, { seed: 1 })
  model.tokenizer = tokenizer
})
afterAll(() => model.dispose())

const text = (tokens: readonly number[]) => Buffer.from(tokens.filter((token) => token < 256)).toString()

describe('ids that no token has', () => {
  it('are rejected by decode unless skipUnknownTokens is set', () => {
    expect(() => tokenizer.decode([97, 300, 98])).toThrow(/no token has the id 300/)
    expect(tokenizer.decode([97, 300, 98], { skipUnknownTokens: true })).toBe('ab')
    expect(tokenizer.decode([300], { skipUnknownTokens: true })).toBe('')
    expect(tokenizer.tokenBytes(300)).toHaveLength(0)
  })

  it('are drawn, and add nothing to the text of a generation or a stream', async () => {
    const options = { maxNewTokens: 64, seed: 2, stop: [] }
    const [result] = await model.generate(['a'], options)
    expect(result!.tokens.some((token) => token > 256)).toBe(true)
    expect(result!.text).toBe(text(result!.tokens))
    let streamed = ''
    for await (const chunk of model.stream('a', options)) streamed += chunk.text
    expect(streamed).toBe(result!.text)
    expect((await model.generate(['a'], { ...options, stop: ['not in the text'] }))[0]!.text).toBe(result!.text)
  })

  it('do not disturb the server', async () => {
    const server = createServer(model, { name: 'spare', port: 0 })
    const client = new OpenAI({ baseURL: `${await server.listen()}/v1`, apiKey: 'none', maxRetries: 0 })
    const body = { model: 'spare', prompt: 'a', max_tokens: 64, seed: 2, logprobs: 3 }
    const { choices } = await client.completions.create(body)
    expect(choices[0]!.logprobs!.tokens).toContain('')
    expect(choices[0]!.logprobs!.tokens).toHaveLength(64)
    let streamed = ''
    for await (const chunk of await client.completions.create({ ...body, stream: true })) streamed += chunk.choices[0]!.text
    expect(streamed).toBe(choices[0]!.text)
    await server.close()
  })

  it('do not break rewards and evaluations', async () => {
    const texts: string[] = []
    const reward = (_prompt: string, completion: string) => texts.push(completion) % 5
    const dataset = [{ prompt: 'a', answer: 'b' }]
    const options = { dataset, reward, groupSize: 4, promptsPerStep: 2, maxNewTokens: 16, steps: 1, onWarning() {} }
    using trainer = new RLTTTrainer(model, options)
    for await (const _ of trainer.run());
    expect(texts).toHaveLength(8)
    const [result] = await evaluate(model, { dataset, reward, problems: 1, loops: [2], maxNewTokens: 16 })
    expect(texts).toHaveLength(9)
    expect(result!.reward).toBe(9 % 5)
  })
})
