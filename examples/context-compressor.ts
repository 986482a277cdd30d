// A hybrid context compressor. A frozen model answers questions about a long context. A learnt adapter turns the context into two
// vectors, a retention classifier chooses the eight tokens that stay, and the model reads these in place of the whole.
// node dist/examples/context-compressor.js [steps of the model] [steps of the compressor] [held-out problems]
import { AdamW, type InputVectors, LoopLM, type RealArray, type TokenSequence } from 'looplm'

// A context is 6 facts, each a key with its value in one token, among 25 to 35 words. Two of three words belong to the topic. The answer is
// the value of a key under the topic: the fact is at one place, the topic is everywhere.
const [keys, values, topics, words] = [8, 8, 2, 12]
const factToken = (key: number, value: number) => key * values + value
const wordToken = (topic: number, word: number) => keys * values + topic * words + word // the last "topic" is that of common words
const queryToken = (key: number) => keys * values + (topics + 1) * words + key
const answerToken = (topic: number, value: number) => queryToken(keys) + topic * values + value
const vectorToken = answerToken(topics, 0) // the id under a vector
const hidden = 64
const [facts, kept, globals] = [6, 8, 2] // in a context; tokens and vectors in its place

let state = 1
const below = (n: number) => {
  state = (state * 48271) % 2147483647
  return state % n
}
interface Problem {
  context: number[]
  query: number
  answer: number
}
/** @param fewest words in the context, of 35 at most */
function problem(fewest: number): Problem {
  const topic = below(topics)
  const known = new Map<number, number>()
  while (known.size < facts) known.set(below(keys), below(values))
  const length = fewest + below(36 - fewest)
  const context = Array.from({ length }, () => wordToken(below(3) === 0 ? topics : topic, below(words)))
  for (const [key, value] of known) context.splice(below(context.length + 1), 0, factToken(key, value))
  const [key, value] = [...known][below(facts)]!
  return { context, query: queryToken(key), answer: answerToken(topic, value) }
}
const problems = (count: number, fewest = 25) => Array.from({ length: count }, () => problem(fewest))

/** What the model reads: the context or the rest of it, the question, and the answer that it should give. */
interface Reading {
  tokens: TokenSequence
  vectors?: InputVectors | undefined
}
const whole = ({ context, query, answer }: Problem): Reading => ({ tokens: [...context, query, answer] })

/** Loss of the answers at the last loop, the share of right ones, and the way back. */
async function answers(model: LoopLM, readings: readonly Reading[]) {
  const scored = await model.score(
    readings.map(({ tokens }) => tokens),
    {
      predictions: true,
      readLoops: [model.config.total_ut_steps],
      promptLengths: readings.map(({ tokens }) => tokens.length - 1),
      inputVectors: readings.map(({ vectors }) => vectors),
    },
  )
  const last = <T>(rows: ArrayLike<T>) => rows[rows.length - 1]!
  const loss = scored.logprobs.reduce((sum, row) => sum - last(row) / readings.length, 0)
  const right = readings.filter(({ tokens }, i) => last(scored.predicted![i]!) === last(tokens)).length / readings.length
  const coefficients = scored.logprobs.map((row) => row.map((_, j) => (j === row.length - 1 ? -1 / readings.length : 0)))
  return { loss, right, backward: () => scored.backward(coefficients) }
}

/** Adam for a few numbers. */
class Parameters {
  readonly values: Float64Array
  readonly #mean: Float64Array
  readonly #square: Float64Array
  #steps = 0
  constructor(count: number, scale: number) {
    this.values = Float64Array.from({ length: count }, () => scale * (below(2001) / 1000 - 1))
    this.#mean = new Float64Array(count)
    this.#square = new Float64Array(count)
  }
  descend(gradient: ArrayLike<number>, rate: number): void {
    this.#steps++
    for (let i = 0; i < this.values.length; i++) {
      this.#mean[i] = 0.9 * this.#mean[i]! + 0.1 * gradient[i]!
      this.#square[i] = 0.99 * this.#square[i]! + 0.01 * gradient[i]! ** 2
      const size = Math.sqrt(this.#square[i]! / (1 - 0.99 ** this.#steps)) + 1e-8
      this.values[i]! -= (rate * (this.#mean[i]! / (1 - 0.9 ** this.#steps))) / size
    }
  }
}

class Compressor {
  /** [globals × hidden, hidden]: from the mean of the context's embeddings to the vectors. */
  readonly #adapter = new Parameters(globals * hidden * hidden, 0.05)
  /** One weight per feature of a token's embedding, and a bias. */
  readonly #retention = new Parameters(hidden + 1, 0)
  readonly #model: LoopLM
  readonly #table: RealArray
  constructor(model: LoopLM, table: RealArray) {
    this.#model = model
    this.#table = table
  }
  #embedding(token: number): ArrayLike<number> {
    return this.#table.subarray(token * hidden, (token + 1) * hidden)
  }
  #mean(context: readonly number[]): Float64Array {
    const mean = new Float64Array(hidden)
    for (const token of context) for (let d = 0; d < hidden; d++) mean[d]! += this.#embedding(token)[d]! / context.length
    return mean
  }
  /** How much a token matters, 0 to 1. */
  #importance(token: number): number {
    const { values: weights } = this.#retention
    let sum = weights[hidden]!
    for (let d = 0; d < hidden; d++) sum += weights[d]! * this.#embedding(token)[d]!
    return 1 / (1 + Math.exp(-sum))
  }

  /** The vectors, the tokens that matter most in their order, and the question. */
  reading({ context, query, answer }: Problem): Reading {
    const order = [...context.keys()].sort((a, b) => this.#importance(context[b]!) - this.#importance(context[a]!))
    const chosen = new Set(order.slice(0, kept))
    const mean = this.#mean(context)
    const vectors = new Float64Array(globals * hidden)
    for (let row = 0; row < vectors.length; row++)
      for (let d = 0; d < hidden; d++) vectors[row]! += this.#adapter.values[row * hidden + d]! * mean[d]!
    const left = context.filter((_, at) => chosen.has(at))
    const tokens = [...Array<number>(globals).fill(vectorToken), ...left, query, answer]
    return { tokens, vectors: { positions: Array.from({ length: globals }, (_, i) => i), values: vectors } }
  }

  /** The gradient at a token's vector says how much the answer hangs on it: its share is what the classifier predicts. */
  async learnRetention(batch: readonly Problem[]): Promise<void> {
    const readings = batch.map((each) => {
      const positions = [...each.context.keys()]
      return {
        ...whole(each),
        vectors: { positions, values: each.context.flatMap((token) => [...Array.from(this.#embedding(token))]) },
      }
    })
    const { inputVectors } = await (await answers(this.#model, readings)).backward()
    await this.#model.zeroGradients()
    const gradient = new Float64Array(hidden + 1)
    for (const [i, { context }] of batch.entries()) {
      const sizes = context.map((_, at) => Math.hypot(...inputVectors[i]!.subarray(at * hidden, (at + 1) * hidden)))
      const most = Math.max(...sizes)
      for (const [at, token] of context.entries()) {
        const error = (this.#importance(token) - sizes[at]! / most) / (batch.length * context.length)
        for (let d = 0; d < hidden; d++) gradient[d]! += error * this.#embedding(token)[d]!
        gradient[hidden]! += error
      }
    }
    this.#retention.descend(gradient, 0.05)
  }

  async learnVectors(batch: readonly Problem[], rate: number): Promise<{ loss: number; right: number }> {
    const { loss, right, backward } = await answers(
      this.#model,
      batch.map((each) => this.reading(each)),
    )
    const { inputVectors } = await backward()
    await this.#model.zeroGradients()
    const gradient = new Float64Array(globals * hidden * hidden)
    for (const [i, { context }] of batch.entries()) {
      const mean = this.#mean(context)
      for (let row = 0; row < globals * hidden; row++)
        for (let d = 0; d < hidden; d++) gradient[row * hidden + d]! += inputVectors[i]![row]! * mean[d]!
    }
    this.#adapter.descend(gradient, rate)
    return { loss, right }
  }
}

const [modelSteps = 600, compressorSteps = 200, heldOut = 1000] = process.argv.slice(2).map(Number)
const percent = (share: number) => `${(100 * share).toFixed(1)} %`
const config = {
  vocab_size: vectorToken + 1,
  hidden_size: hidden,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 4,
}
using model = await LoopLM.create({ ...config, total_ut_steps: 2, initializer_range: 0.1 }, { seed: 1 })
using optimizer = new AdamW(model, { learningRate: 2e-3, maxGradNorm: 1 })
for (let step = 1; step <= modelSteps; step++) {
  const { loss, right, backward } = await answers(model, problems(64, 1).map(whole)) // short contexts too
  if (step % 100 === 0) console.log(`model, step ${step}: loss ${loss.toFixed(3)}, right ${percent(right)}`)
  await backward()
  await optimizer.step()
}

const compressor = new Compressor(model, await model.getParameter('model.embed_tokens.weight'))
for (let step = 1; step <= compressorSteps; step++) await compressor.learnRetention(problems(32))
for (let step = 1; step <= compressorSteps; step++) {
  const { loss, right } = await compressor.learnVectors(problems(64), 0.01 * (1 - (step - 1) / compressorSteps))
  if (step % 50 === 0) console.log(`compressor, step ${step}: loss ${loss.toFixed(3)}, right ${percent(right)}`)
}

// New problems: `generate` reads the compressed prompts.
const held = problems(heldOut)
const compressed = held.map((each) => compressor.reading(each))
const lengths = (readings: readonly Reading[]) =>
  readings.reduce((sum, { tokens }) => sum + tokens.length - 1, 0) / readings.length
const generated = await model.generate(
  compressed.map(({ tokens }) => tokens.slice(0, -1) as number[]),
  { inputVectors: compressed.map(({ vectors }) => vectors), maxNewTokens: 1, temperature: 0, stop: [] },
)
const right = generated.filter(({ tokens }, i) => tokens[0] === held[i]!.answer).length / held.length
const without = held.map((_, i) => ({ tokens: compressed[i]!.tokens.slice(globals) as number[] }))
console.log(
  `whole prompts: ${lengths(held.map(whole)).toFixed(1)} tokens, right ${percent((await answers(model, held.map(whole))).right)}`,
)
console.log(`vectors and kept tokens: ${lengths(compressed).toFixed(1)} positions, right ${percent(right)}`)
console.log(`kept tokens alone: ${lengths(without).toFixed(1)} tokens, right ${percent((await answers(model, without)).right)}`)
