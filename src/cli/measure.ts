import { architectureOf, type LoopLMConfig, type LoopLMConfigInput } from '../model/config.js'
import { LoopLM } from '../model/model.js'
import type { LoadOptions } from '../model/types.js'
import { parameterCount } from '../native/architecture.js'

/** Operations per second of a device, as a slice of the model reached them. */
export interface Rates {
  /** Forward and backward of a training step. */
  train: number
  /** Decoding with so many rows at a time. */
  decode: number
  rows: number
}

/** How much a step computes: rollouts of so many tokens, of which so many are sampled. */
export interface StepSize {
  rollouts: number
  tokens: number
  sampled: number
}

const slice = { layers: 2, loops: 2 }
const trainedTokens = 512
const decoded = [4, 20] as const // tokens; the difference has no prompt in it

/** Operations of one token's forward pass: products with the blocks' matrices in every loop, and the head where it is read. */
export function forwardOperations(config: LoopLMConfig, readLoops: number): number {
  const { vocabulary, hidden, loops, tied, exitGate } = architectureOf(config)
  const embedding = vocabulary * hidden * (tied ? 1 : 2) + (exitGate ? hidden + 1 : 0)
  const blocks = parameterCount(architectureOf(config)) - embedding
  return 2 * (blocks * loops + readLoops * vocabulary * hidden)
}

/**
 * Runs a slice of the model, with as many rows and tokens as a step has or fewer, for a second or so: two layers, two loops, drawn
 * parameters.
 *
 * @returns undefined for families that are not cut into layers this way
 */
export async function measureRates(config: LoopLMConfig, place: LoadOptions, step: StepSize): Promise<Rates | undefined> {
  if (architectureOf(config).family !== 'ouro') return undefined
  const small = {
    ...config,
    num_hidden_layers: Math.min(config.num_hidden_layers, slice.layers),
    total_ut_steps: Math.min(config.total_ut_steps, slice.loops),
  }
  using model = await LoopLM.create(small as unknown as LoopLMConfigInput, { ...place, seed: 0 })
  const token = (i: number) => i % config.vocab_size
  const length = Math.min(step.tokens, trainedTokens)
  const count = Math.max(1, Math.min(step.rollouts, Math.floor(trainedTokens / length)))
  const sequences = Array.from({ length: count }, (_, row) => Array.from({ length }, (_, i) => token(31 * row + 7 * i)))
  const train = async () => {
    const scored = await model.score(sequences)
    await scored.backward(scored.logprobs.map((rows) => rows.map(() => -1 / rows.length)))
    await model.zeroGradients()
  }
  const trained = 3 * count * length * forwardOperations(small, small.total_ut_steps)
  const rows = Math.min(step.rollouts, 64)
  const prompts = Array.from({ length: rows }, (_, row) => Array.from({ length: 8 }, (_, i) => token(row + i)))
  const decode = (maxNewTokens: number) => model.generate(prompts, { maxNewTokens, stop: [], seed: 0 })
  await train() // the first time reserves memory
  await decode(decoded[0])
  const trainSeconds = await seconds(train)
  const [few, many] = [await seconds(() => decode(decoded[0])), await seconds(() => decode(decoded[1]))]
  const steps = (decoded[1] - decoded[0]) * rows * forwardOperations(small, 1)
  return { train: trained / trainSeconds, decode: steps / Math.max(many - few, 1e-6), rows }
}

/** Seconds of a step: sampling and one update. Rewards, evaluations and the optimizer are not in it. */
export function stepSeconds(config: LoopLMConfig, { train, decode }: Rates, { rollouts, tokens, sampled }: StepSize) {
  const { total_ut_steps: loops } = config
  const prompts = (rollouts * (tokens - sampled) * forwardOperations(config, 1)) / train
  return {
    sampling: prompts + (rollouts * sampled * forwardOperations(config, 1)) / decode,
    update: (3 * rollouts * tokens * forwardOperations(config, loops)) / train,
  }
}

/** The shorter of two times. */
async function seconds(action: () => Promise<unknown>): Promise<number> {
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < 2; i++) {
    const start = performance.now()
    await action()
    best = Math.min(best, (performance.now() - start) / 1000)
  }
  return best
}
