// npm run agent -- search: a model learns to ask a search engine twice, with a reward for each look-up that helps.
import { type Dataset, defineTool, type Environment, LoopLM, ObjectiveTrainer, PretrainTrainer, Random } from 'looplm'
import MiniSearch from 'minisearch'
import { z } from 'zod'
import { type AgentRun, before, conversations, succeed } from './agent.js'
import { fragmentTokenizer, printable } from './tokenizer.js'

const call = ['<tool_call>{"name":"search","arguments":{"query":"', '"}}</tool_call>'] as const
const { template, marks } = conversations
const relations = [' lives in', ' lies in'] as const
const tokenizer = fragmentTokenizer(printable, [...marks, ...relations, ...call], ';;', template)

/** Syllables, so that names of three letters can be read aloud: people end in a, cities in o, countries in i. */
const names = (end: string, count: number, random: Random) => {
  const consonants = Array.from('bdfgklmnprstvz')
  const all = consonants.flatMap((a) => Array.from('aeiou').flatMap((b) => consonants.map((c) => `${a}${b}${c}${end}`)))
  return random.shuffle(all).slice(0, count)
}

/** Who lives where, and which country that is. */
export function world(seed: number) {
  const random = new Random(seed)
  const countries = names('i', 12, random)
  const cities = names('o', 60, random).map((name, i) => ({ name, country: countries[i % countries.length]! }))
  const people = names('a', 600, random).map((name, i) => ({ name, city: cities[i % cities.length]! }))
  const documents = [
    ...people.map(({ name, city }) => `${name}${relations[0]} ${city.name}`),
    ...cities.map(({ name, country }) => `${name}${relations[1]} ${country}`),
  ].map((text, id) => ({ id, text }))
  const rows = random.shuffle(people.map(({ name, city }) => ({ prompt: name, city: city.name, answer: city.country })))
  return { documents, countries, train: rows.slice(0, 400), test: rows.slice(400) }
}
type Row = ReturnType<typeof world>['train'][number]

/** A tool that finds documents by BM25. */
function searchTool(documents: readonly { id: number; text: string }[]) {
  const index = new MiniSearch<{ id: number; text: string }>({ fields: ['text'], storeFields: ['text'] })
  index.addAll([...documents])
  return defineTool({
    name: 'search',
    description: 'Finds the document that fits a query best.',
    parameters: z.object({ query: z.string().min(1) }),
    run: ({ query }) => (index.search(query)[0]?.text as string | undefined) ?? 'E',
  })
}

/** A look-up that brings the next document of the chain earns a quarter, the right country 1. */
const environment: Environment = (problem) => {
  const { prompt, city, answer } = problem as unknown as Row
  const wanted = new Set([`"${prompt}${relations[0]}`, `"${city}${relations[1]}`])
  return {
    prompt: [{ role: 'user', content: prompt }],
    step: ({ text, toolCalls }) => {
      if (toolCalls.length === 0) return { reward: text === answer ? 1 : 0, done: true }
      const found = [...wanted].find((query) => toolCalls[0]!.function.arguments.includes(query))
      if (found !== undefined) wanted.delete(found)
      return { reward: found === undefined ? 0 : 0.25 }
    },
  }
}

/** What the model sees before reinforcement: guesses, answers after one look-up, and some good searches. */
function traces(rows: readonly Row[], countries: readonly string[], tools: object[], seed: number): Dataset {
  return rows.map(({ prompt, city, answer }, i) => {
    const random = new Random(seed, i)
    const said = (content: string) => ({ role: 'assistant', content })
    const lookUp = (subject: string, relation: string, object: string) => [
      said(call.join(subject + relation)),
      { role: 'tool', content: `${subject}${relation} ${object}` },
    ]
    const guess = said(countries[random.integer(countries.length)]!)
    const draw = random.uniform()
    const first = lookUp(prompt, relations[0], city)
    const turns =
      draw < 0.4 ? [guess] : draw < 0.75 ? [...first, guess] : [...first, ...lookUp(city, relations[1], answer), said(answer)]
    return { messages: [{ role: 'user', content: prompt }, ...turns], tools }
  }) as unknown as Dataset
}

/** @param scale 1: as documented; less makes fewer steps */
export async function search({ scale = 1, seed = 0, say = () => {} }: AgentRun = {}) {
  const { documents, countries, train, test } = world(seed)
  const tool = searchTool(documents)
  const { name, description, parameters } = tool
  const offered = [{ type: 'function', function: { name, description, parameters } }]
  using model = await LoopLM.create(
    {
      ...{ vocab_size: tokenizer.vocabSize, hidden_size: 64, intermediate_size: 160, num_hidden_layers: 2 },
      ...{ num_attention_heads: 4, total_ut_steps: 2, max_position_embeddings: 96, initializer_range: 0.12 },
    },
    { seed },
  )
  const dataset = traces(train, countries, offered, seed)
  const lessons = { dataset, tokenizer, assistantOnly: true, batchSize: 64, learningRate: 3e-3, weightDecay: 0 }
  using pretrain = new PretrainTrainer(model, { ...lessons, steps: Math.ceil(400 * scale), warmupSteps: 20, seed })
  for await (const { type, step, metrics } of pretrain.run())
    if (type === 'step' && step % 50 === 0) say(`Stage I, step ${step}: loss ${metrics.loss!.toFixed(3)}`)

  const episodes = { environment, tools: [tool], maxTurns: 4, maxNewTokens: 10, tokenizer }
  const right = (_: string, completion: string, { answer }: Record<string, unknown>) => (completion === answer ? 1 : 0)
  const measure = () => succeed(model, { ...episodes, dataset: test, problems: Math.ceil(200 * scale), reward: right })
  const first = await measure()
  say(before(first))
  using trainer = new ObjectiveTrainer(model, {
    ...{ ...episodes, dataset: train, promptsPerStep: 16, groupSize: 8, learningRate: 1e-3, seed, objective: 'turn-grpo' },
    ...{ steps: Math.ceil(40 * scale), logprobCheckEvery: 0, onWarning: () => {} },
  })
  for await (const { type, step, metrics } of trainer.run())
    if (type === 'step' && step % 5 === 0)
      say(`turn-grpo, step ${step}: reward ${metrics.reward!.toFixed(3)}, calls ${metrics['tools/call_frequency']!.toFixed(2)}`)
  return { before: first, after: await measure() }
}
