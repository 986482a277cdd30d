// npm run agent -- proposer: one model sets itself sums and solves them. What it learns is measured on sums that nobody set.
import { type Dataset, evaluate, exactMatch, GRPOTrainer, LoopLM, PretrainTrainer, Random, type RolloutFunction } from 'looplm'
import { type AgentRun, before } from './agent.js'
import { fragmentTokenizer } from './tokenizer.js'

const groupSize = 8
const proposerGroups = 4
const proposals = proposerGroups * groupSize
const tokenizer = fragmentTokenizer('0123456789+=', ['<|propose|>', '<|solve|>'], ';;')
const proposing = '<|propose|>'
const solving = (sum: string) => `<|solve|>${sum}=`

/** The judge: the result of a text such as 12+34, in three digits and written backwards; undefined where it is no such text. */
function resultOf(text: string): string | undefined {
  const found = /^([1-9]\d)\+([1-9]\d)$/.exec(text)
  return found === null
    ? undefined
    : Array.from(String(Number(found[1]) + Number(found[2])).padStart(3, '0'))
        .reverse()
        .join('')
}

/** Every eighth sum is for evaluations. */
function sums() {
  const all = Array.from({ length: 90 * 90 }, (_, k) => `${10 + (k % 90)}+${10 + Math.floor(k / 90)}`)
  new Random(0).shuffle(all)
  return { train: all.filter((_, k) => k % 8 > 0), test: all.filter((_, k) => k % 8 === 0) }
}

/**
 * A step of self-play: some groups propose sums, and every proposal is solved by its own group. A right answer earns 1. A proposal earns
 * most when half of its answers are right, and nothing when it is no sum.
 */
const selfPlay: RolloutFunction = async (problems, { model, generation }) => {
  const prompt = tokenizer.encode(proposing)
  const say = (tokens: readonly number[]) => tokenizer.decode(tokens, { skipSpecialTokens: true })
  const proposed = await model.generate(Array(proposals).fill(prompt), generation)
  const valid = proposed.map(({ tokens }) => say(tokens)).filter((text) => resultOf(text) !== undefined)
  const asked = proposed.map(({ tokens }, i) =>
    resultOf(say(tokens)) === undefined ? (valid[i % valid.length] ?? '10+10') : say(tokens),
  )
  const questions = asked.map((text) => tokenizer.encode(solving(text)))
  const answers = await model.generate(
    questions.flatMap((question) => Array<number[]>(groupSize).fill(question)),
    { ...generation, seed: generation.seed! + 1 },
  )
  const right = answers.map(({ tokens }, k) => say(tokens) === resultOf(asked[Math.floor(k / groupSize)]!))
  const rollout = (prompt: readonly number[], made: (typeof answers)[number], reward: number) => ({
    tokens: Int32Array.from([...prompt, ...made.tokens]),
    ...{ promptLength: prompt.length, samplingLogprobs: made.logprobs, loops: made.loops, reward },
    ...{ truncated: made.finishReason === 'length', text: say(made.tokens), columns: problems[0]! },
  })
  return [
    ...proposed.map((made, i) => {
      const share = right.slice(i * groupSize, (i + 1) * groupSize).filter(Boolean).length / groupSize
      return rollout(prompt, made, resultOf(say(made.tokens)) === undefined ? 0 : 0.2 + 3.2 * share * (1 - share))
    }),
    ...answers.map((made, k) => rollout(questions[Math.floor(k / groupSize)]!, made, right[k] ? 1 : 0)),
  ]
}

/** Both roles by example. */
function lessons(train: readonly string[]): Dataset {
  return train.map((text, i) =>
    i % 8 === 0 ? { prompt: proposing, completion: text } : { prompt: solving(text), completion: resultOf(text)! },
  ) as unknown as Dataset
}

/** @param scale 1: as documented; less makes fewer steps */
export async function proposer({ scale = 1, seed = 0, say = () => {} }: AgentRun = {}) {
  const { train, test } = sums()
  using model = await LoopLM.create(
    {
      ...{ vocab_size: tokenizer.vocabSize, hidden_size: 64, intermediate_size: 160, num_hidden_layers: 2 },
      ...{ num_attention_heads: 4, total_ut_steps: 3, max_position_embeddings: 32, initializer_range: 0.12 },
    },
    { seed },
  )
  const options = { dataset: lessons(train), tokenizer, batchSize: 128, learningRate: 2e-3, weightDecay: 0, warmupSteps: 20 }
  using pretrain = new PretrainTrainer(model, { ...options, steps: Math.ceil(450 * scale), seed })
  for await (const { type, step, metrics } of pretrain.run())
    if (type === 'step' && step % 50 === 0) say(`Stage I, step ${step}: loss ${metrics.loss!.toFixed(3)}`)

  const questions = test.map((text) => ({ prompt: solving(text), answer: resultOf(text)! }))
  const measure = async () => {
    const loops = [model.config.total_ut_steps]
    const [full] = await evaluate(model, {
      dataset: questions,
      tokenizer,
      reward: exactMatch,
      problems: Math.ceil(1000 * scale),
      loops,
    })
    return full!
  }
  const first = await measure()
  say(before(first))
  using trainer = new GRPOTrainer(model, {
    ...{ rollout: selfPlay, dataset: [{ prompt: proposing }], tokenizer, maxNewTokens: 8, groupSize },
    ...{ promptsPerStep: proposerGroups + proposals, learningRate: 8e-4, warmupSteps: 20, steps: Math.ceil(400 * scale), seed },
    ...{ logprobCheckEvery: 0, onWarning: () => {} },
  })
  for await (const { type, step, metrics } of trainer.run())
    if (type === 'step' && step % 50 === 0) say(`self-play, step ${step}: reward ${metrics.reward!.toFixed(3)}`)
  return { before: first, after: await measure() }
}
