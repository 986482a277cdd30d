// Direct answers, answers with thoughts, and mode 'auto' between them, on chains of assignments: node dist/examples/chat-modes.js
// A model learns both ways. Thresholds are chosen on one set of problems and measured on another.
import {
  bootstrapInterval,
  type ChatAnswer,
  type ChatMode,
  ChatSession,
  type ChatSignals,
  type ChatThresholds,
  chain,
  type Dataset,
  LoopLM,
  PretrainTrainer,
  wilsonInterval,
} from 'looplm'
import { fragmentTokenizer } from './agents/tokenizer.js'

const scale = Number(process.argv[2] ?? 1) // less than 1: fewer steps and problems
const task = chain({ modulus: 5, operations: 4, minOperations: 1, traces: { direct: 0, half: 0, all: 1, twice: 0 } })
const template =
  "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ '<end>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
const tokenizer = fragmentTokenizer('01234abcde+-*=;?>', ['<think>\n', '\n</think>\n\n'], '<end>', template)

/** The values of a chain by their names, but for the first, which the prompt has: `b=3;c=0`. */
const work = (values: string) =>
  [...values]
    .map((value, i) => `${'abcde'[i]}=${value}`)
    .slice(1)
    .join(';')

/** Half of the rows show their work between the marks, the others nothing. */
const rows: Dataset = Array.from({ length: Math.ceil(60_000 * scale) }, (_, i) => {
  const { prompt, answer, completion } = task.sample('train', i) as { prompt: string; answer: string; completion: string }
  const thought = i % 2 === 0 ? work(completion) : ''
  return { prompt: `${prompt}>`, completion: `<think>\n${thought}\n</think>\n\n${answer}`, answer }
})

const shape = { hidden_size: 64, intermediate_size: 160, num_hidden_layers: 2, num_attention_heads: 4, total_ut_steps: 4 }
using model = await LoopLM.create({ vocab_size: tokenizer.vocabSize, ...shape, initializer_range: 0.12 }, { seed: 0, threads: 1 })
model.tokenizer = tokenizer
const began = performance.now()
using trainer = new PretrainTrainer(model, {
  ...{ dataset: rows, tokenizer, steps: Math.ceil(1200 * scale), batchSize: 64, learningRate: 3e-3, warmupSteps: 50 },
  ...{ weightDecay: 0, onWarning: () => {} },
})
for await (const { type, step, metrics } of trainer.run())
  if (type === 'step' && step % 250 === 0) console.error(`step ${step}: loss ${metrics.loss!.toFixed(3)}`)
console.error(`trained in ${((performance.now() - began) / 1000).toFixed(0)} s`)

interface Outcome {
  operations: number
  right: number
  answer: ChatAnswer
}

/** Answers of sessions that share a batch. */
async function ask(from: number, count: number, mode: ChatMode, auto?: ChatThresholds): Promise<Outcome[]> {
  using scheduler = model.scheduler({ maxRows: 64 })
  const problems = Array.from({ length: count }, (_, i) => task.sample('test', from + i))
  return await Promise.all(
    problems.map(async ({ prompt, answer: expected }) => {
      using chat = new ChatSession(model, { mode, ...(auto && { auto }), scheduler, temperature: 0, maxNewTokens: 24 })
      const answer = await chat.send(prompt)
      return { operations: prompt.split(';').length - 2, right: Number(answer.text === expected), answer }
    }),
  )
}

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length
const percent = (share: number) => `${(100 * share).toFixed(1)} %`

/** A row of the table. The last cell compares with a coin that thinks as often, problem by problem. */
async function row(name: string, outcomes: readonly Outcome[], direct: readonly Outcome[], thinking: readonly Outcome[]) {
  const right = outcomes.map((outcome) => outcome.right)
  const tokens = outcomes.map(({ answer }) => answer.tokens.length)
  const accuracy = wilsonInterval(
    right.reduce((sum, value) => sum + value, 0),
    right.length,
  )
  const length = await bootstrapInterval(tokens)
  const thought = mean(outcomes.map(({ answer }) => Number(answer.mode === 'think')))
  const coin = right.map((_, i) => direct[i]!.right + thought * (thinking[i]!.right - direct[i]!.right))
  const gains = right.map((value, i) => value - coin[i]!)
  const gain = await bootstrapInterval(gains)
  const points = (value: number) => (100 * value).toFixed(1)
  const cells = [
    name,
    `${percent(mean(right))} (${points(accuracy.low)} to ${points(accuracy.high)})`,
    `${mean(tokens).toFixed(2)} (${length.low.toFixed(2)} to ${length.high.toFixed(2)})`,
    percent(thought),
    `${points(mean(gains))} (${points(gain.low)} to ${points(gain.high)})`,
  ]
  return `| ${cells.join(' | ')} |`
}

// Greedy answers of a mode are the same however it was chosen, so one run of each tells what every threshold would do.
const calibration = Math.ceil(500 * scale)
const all = { entropy: 99, entropyChange: 99, expectedLoops: 99 }
const direct = await ask(0, calibration, 'auto', all)
const thinking = await ask(0, calibration, 'think')
const share = (outcomes: readonly Outcome[]) => mean(outcomes.map(({ right }) => right))

/** The highest threshold with which as many answers are right as with thoughts everywhere, to a point. */
function highest(signal: keyof ChatSignals): number {
  const values = direct.map(({ answer }) => answer.signals![signal]!)
  const chosen = (limit: number) => values.map((value, i) => (value > limit ? thinking : direct)[i]!)
  const least = share(thinking) - 0.01
  return [...values].sort((a, b) => b - a).find((limit) => share(chosen(limit)) >= least) ?? 0
}

const [first, count] = [calibration, Math.ceil(1000 * scale)]
const fixed = [await ask(first, count, 'no-think'), await ask(first, count, 'think')] as const
console.log('| mode | right (95 %) | tokens (95 %) | thoughts | points above a coin (95 %) |\n| --- | --- | --- | --- | --- |')
console.log(await row('`no-think`', fixed[0], ...fixed))
console.log(await row('`think`', fixed[1], ...fixed))
for (const signal of ['entropy', 'entropyChange', 'expectedLoops'] as const) {
  const threshold = highest(signal)
  const outcomes = await ask(first, count, 'auto', { [signal]: threshold })
  console.log(await row(`\`auto\`, \`${signal}\` above ${threshold.toFixed(3)}`, outcomes, ...fixed))
}
console.log(await row('`auto`, default', await ask(first, count, 'auto'), ...fixed))
for (const operations of [1, 2, 3, 4]) {
  const of = (outcomes: readonly Outcome[]) => outcomes.filter((outcome) => outcome.operations === operations)
  const signals = of(direct).map(({ answer }) => answer.signals!)
  const values = (['entropy', 'entropyChange', 'expectedLoops'] as const).map(
    (signal) => `${signal} ${mean(signals.map((one) => one[signal]!)).toFixed(2)}`,
  )
  const [a, b] = fixed.map((outcomes) => percent(share(of(outcomes))))
  console.error(`${operations} operations: right ${a} directly, ${b} with thoughts; ${values.join(', ')}`)
}
