import { architectureOf, type LoopLMConfig, type LoopLMConfigInput } from '../model/config.js'
import { LoopLM } from '../model/model.js'
import type { LoadOptions } from '../model/types.js'
import type { PlannedPass, PlannedStep } from '../rl/planned-step.js'

type Architecture = LoopLM['architecture']

/** Operations per second of a device, measured with a stand-in for the model. */
export interface Rates {
  /** Forward and backward passes of a training step. */
  train: number
  /** Forward passes of whole sequences. */
  forward: number
  /** Decoding with this many rows at a time. */
  decode: number
  rows: number
}

const standIn = { num_hidden_layers: 2, total_ut_steps: 2 }
const measuredTokens = 512
const decoded = [4, 20] as const // numbers of tokens; the difference of their times does not include the prompt

/**
 * Operations of a token's forward pass: two per weight that the model's steps use, the head for every loop that is read, and
 * attention with a context of this many tokens.
 */
export function forwardOperations(
  architecture: Architecture,
  { loops, reads, context = 0 }: { loops: number; reads: number; context?: number },
): number {
  const { parameters, begin, loop, read, vocabulary, hidden, heads, headDim } = architecture
  const apart = new Set(['embedding', 'head', 'exitGate', 'exitGateBias', 'start'])
  const numbers = (kind: string, index: number) =>
    parameters
      .filter(({ role, index: own = 0 }) => own === index && !apart.has(role) && kind === kindOf(role))
      .reduce((sum, { shape }) => sum + shape.reduce((product, n) => product * n, 1), 0)
  const attention = 4 * heads * headDim * context
  const program = (steps: Architecture['loop']) =>
    steps.reduce(
      (sum, step) => sum + ('index' in step ? 2 * numbers(step.kind, step.index) + (step.kind === 'block' ? attention : 0) : 0),
      0,
    )
  return program(begin) + loops * program(loop) + reads * (program(read) + 2 * vocabulary * hidden)
}

/** The kind of step that a parameter belongs to. */
function kindOf(role: string): string {
  return role === 'norm' || role === 'inject' ? role : 'block'
}

/** Settings that change the cost of a backward pass. */
export interface Backward {
  /** How many tokens a token attends to, on average. */
  context: number
  /** Whether the weights get no gradient. */
  adapter?: boolean
  /** Whether its forward pass runs twice. */
  recompute?: boolean
}

/** Operations of a pass. A backward pass costs two forward passes, or one if the weights get no gradient. */
export function passOperations(
  architecture: Architecture,
  { tokens, loops, reads, backward }: PlannedPass,
  { context, adapter = false, recompute = false }: Backward,
): number {
  const forward = forwardOperations(architecture, { loops, reads, context })
  const returned = backward === 0 ? 0 : forwardOperations(architecture, { loops: backward, reads, context })
  const again = backward > 0 && recompute ? forward : 0
  return tokens * (forward + again + (adapter ? 1 : 2) * returned)
}

/**
 * Measures a model with two layers and two loops whose matrices have the sizes of the given one, in any family. It uses at most
 * as many rows and tokens as a step, and takes about a second.
 */
export async function measureRates(
  architecture: Architecture,
  place: LoadOptions,
  step: { rows: number; tokens: number },
): Promise<Rates> {
  const { vocabulary, hidden, intermediate, heads, kvHeads, headDim } = architecture
  const sizes = { vocab_size: vocabulary, hidden_size: hidden, intermediate_size: intermediate, head_dim: headDim }
  const form = { ...standIn, ...sizes, num_attention_heads: heads, num_key_value_heads: kvHeads }
  using model = await LoopLM.create(form as LoopLMConfigInput, { ...place, seed: 0 })
  const token = (i: number) => i % vocabulary
  const length = Math.max(2, Math.min(step.tokens, measuredTokens))
  const count = Math.max(1, Math.min(step.rows, Math.floor(measuredTokens / length)))
  const sequences = Array.from({ length: count }, (_, row) => Array.from({ length }, (_, i) => token(31 * row + 7 * i)))
  const score = () => model.score(sequences)
  const train = async () => {
    const scored = await score()
    await scored.backward(scored.logprobs.map((rows) => rows.map(() => -1 / rows.length)))
    await model.zeroGradients()
  }
  const loops = standIn.total_ut_steps
  const whole = { tokens: count * length, loops, reads: loops, backward: loops }
  const context = length / 2
  const of = (pass: PlannedPass) => passOperations(model.architecture, pass, { context })
  const rows = Math.min(step.rows, 64)
  const prompts = Array.from({ length: rows }, (_, row) => Array.from({ length: 8 }, (_, i) => token(row + i)))
  const decode = (maxNewTokens: number) => model.generate(prompts, { maxNewTokens, stop: [], seed: 0 })
  await train() // the first run allocates memory
  await decode(decoded[0])
  const [trainSeconds, forwardSeconds] = [await seconds(train), await seconds(score)]
  const [few, many] = [await seconds(() => decode(decoded[0])), await seconds(() => decode(decoded[1]))]
  const steps = (decoded[1] - decoded[0]) * rows * forwardOperations(model.architecture, { loops, reads: 1, context: 16 })
  return {
    train: (of(whole) + of({ ...whole, backward: 0 })) / trainSeconds, // backward runs the forward pass again
    forward: of({ ...whole, backward: 0 }) / forwardSeconds,
    decode: steps / Math.max(many - few, 1e-6),
    rows,
  }
}

/**
 * Estimated seconds of a step: sampling, and the passes over rollouts or rows, without rewards, evaluations and the optimizer.
 */
export function stepSeconds(
  architecture: Architecture,
  { train, forward, decode }: Rates,
  { rollouts, passes, rowTokens }: PlannedStep,
  how: Omit<Backward, 'context'> = {},
): { sampling: number; update: number } {
  const context = rowTokens / 2
  const update = passes.reduce((sum, pass) => {
    const operations = passOperations(architecture, pass, { ...how, context })
    return sum + operations / (pass.backward > 0 ? train : forward)
  }, 0)
  if (rollouts === undefined) return { sampling: 0, update }
  const { prompts, completions, promptTokens, newTokens, loops } = rollouts
  const prompt = forwardOperations(architecture, { loops, reads: 0, context: promptTokens / 2 })
  const token = forwardOperations(architecture, { loops, reads: 1, context: promptTokens + newTokens / 2 })
  return { sampling: (prompts * promptTokens * prompt) / forward + (completions * newTokens * token) / decode, update }
}

/** Tokens per second in training, with every loop read, and in generation with this many rows. */
export function tokensPerSecond(
  config: LoopLMConfig,
  rates: Rates,
  how: { context: number; loops?: number | undefined; recompute: boolean },
): { train: number; generate: number } {
  const architecture = architectureOf(config)
  const { context, loops = architecture.loops, recompute } = how
  const pass = { tokens: 1, loops, reads: loops, backward: loops }
  return {
    train: rates.train / passOperations(architecture, pass, { context: context / 2, recompute }),
    generate: rates.decode / forwardOperations(architecture, { loops, reads: 1, context: context / 2 }),
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
