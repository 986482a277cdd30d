// npm run agent -- calculator: a model learns to call a tool for products that it cannot work out.
import { type Dataset, defineTool, type Environment, GRPOTrainer, LoopLM, PretrainTrainer, Random } from 'looplm'
import { z } from 'zod'
import { type AgentRun, before, conversations, succeed } from './agent.js'
import { fragmentTokenizer, printable } from './tokenizer.js'

const call = ['<tool_call>{"name":"calculate","arguments":{"expression":"', '"}}</tool_call>'] as const
const { template, marks } = conversations
const tokenizer = fragmentTokenizer(printable, [...marks, ...call], ';;', template)

const calculate = defineTool({
  name: 'calculate',
  description: 'Works out a product such as 12*34.',
  parameters: z.object({ expression: z.string() }),
  run: ({ expression }) => {
    if (!/^\d{1,3}\*\d{1,3}$/.test(expression)) throw new Error('no product')
    return expression.split('*').reduce((product, factor) => product * Number(factor), 1)
  },
})

/** Products of two-digit numbers: those of the last rows are for evaluations, and no other row has their factors in this order. */
function products(seed: number) {
  const all = Array.from({ length: 90 * 90 }, (_, k) => `${10 + (k % 90)}*${10 + Math.floor(k / 90)}`)
  new Random(seed).shuffle(all)
  const rows = all.map((prompt) => ({ prompt, answer: String(prompt.split('*').reduce((a, b) => a * Number(b), 1)) }))
  return { train: rows.slice(0, 6000), test: rows.slice(6000) }
}

/** What the model sees before reinforcement: most answers are guesses, some are looked up. */
function traces(rows: readonly { prompt: string; answer: string }[], seed: number): Dataset {
  const { name, description, parameters } = calculate
  const tools = [{ type: 'function', function: { name, description, parameters } }]
  return rows.map(({ prompt, answer }, i) => {
    const random = new Random(seed, i)
    const user = { role: 'user', content: prompt }
    const said = (content: string) => ({ role: 'assistant', content })
    if (random.uniform() < 0.85) return { messages: [user, said(String(1000 + random.integer(3000)))], tools }
    const asked = [user, said(call.join(prompt)), { role: 'tool', content: answer }, said(answer)]
    return { messages: asked, tools }
  }) as unknown as Dataset
}

const environment: Environment = ({ prompt, answer }) => ({
  prompt: [{ role: 'user', content: prompt as string }],
  step: ({ text, toolCalls }) => (toolCalls.length > 0 ? {} : { reward: text === answer ? 1 : 0, done: true }),
})

/** @param scale 1: as documented; less makes fewer steps */
export async function calculator({ scale = 1, seed = 0, say = () => {} }: AgentRun = {}) {
  const { train, test } = products(seed)
  using model = await LoopLM.create(
    {
      ...{ vocab_size: tokenizer.vocabSize, hidden_size: 64, intermediate_size: 160, num_hidden_layers: 2 },
      ...{ num_attention_heads: 4, total_ut_steps: 2, max_position_embeddings: 64, initializer_range: 0.12 },
    },
    { seed },
  )
  const lessons = {
    dataset: traces(train, seed),
    tokenizer,
    assistantOnly: true,
    batchSize: 96,
    learningRate: 3e-3,
    weightDecay: 0,
  }
  using pretrain = new PretrainTrainer(model, { ...lessons, steps: Math.ceil(400 * scale), warmupSteps: 20, seed })
  for await (const { type, step, metrics } of pretrain.run())
    if (type === 'step' && step % 50 === 0) say(`Stage I, step ${step}: loss ${metrics.loss!.toFixed(3)}`)

  const episodes = { environment, tools: [calculate], maxTurns: 3, maxNewTokens: 10, tokenizer }
  const measure = () => succeed(model, { ...episodes, dataset: test, problems: Math.ceil(500 * scale) })
  const first = await measure()
  say(before(first))
  using trainer = new GRPOTrainer(model, {
    ...{ ...episodes, dataset: train, promptsPerStep: 32, groupSize: 8, learningRate: 1e-3, seed },
    ...{ steps: Math.ceil(40 * scale), logprobCheckEvery: 0, onWarning: () => {} },
  })
  for await (const { type, step, metrics } of trainer.run())
    if (type === 'step' && step % 5 === 0)
      say(`GRPO, step ${step}: reward ${metrics.reward!.toFixed(3)}, calls ${metrics['tools/call_frequency']!.toFixed(2)}`)
  return { before: first, after: await measure() }
}
