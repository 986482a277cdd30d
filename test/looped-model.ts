// The looped model and the LoopRPT loss (math.md §1 and §5) once more, in plain TypeScript for models of a few hundred weights: in float64,
// or rounded after every operation (test/rounding.ts). Written from the formulas, it shares nothing with the engine but the names of the
// parameters.

/** Rounding of activations as they are stored, and of sums as they are kept. */
export interface Arithmetic {
  act(x: number): number
  real(x: number): number
  /** The sum of a's products with b from `at` on, `real` at each. Each arithmetic has a separate loop: tests spend most of their time here. */
  dot(a: ArrayLike<number>, b: ArrayLike<number>, at: number): number
}
export const float64: Arithmetic = {
  act: (x) => x,
  real: (x) => x,
  dot(a, b, at) {
    let sum = 0
    for (let i = 0; i < a.length; i++) sum += a[i]! * b[at + i]!
    return sum
  },
}

export interface Sizes {
  vocab_size: number
  hidden_size: number
  intermediate_size: number
  num_hidden_layers: number
  num_attention_heads: number
  num_key_value_heads?: number
  total_ut_steps: number
  /** What a row of keys or values has become for tokens of later blocks of 64 positions. */
  coded?: (row: readonly number[]) => number[]
  /** The same of keys alone. */
  codedKeys?: (row: readonly number[]) => number[]
  /** The same of a row of an earlier loop, beside what the last loop's has become. */
  residual?: (row: readonly number[], anchor: readonly number[]) => number[]
}
export type Parameters = ReadonlyMap<string, ArrayLike<number>>
export type Site = 'state' | 'residual' | 'embedding'
/** [loop][position][D], added at the site. */
export type Noise = number[][][]

const sum = (x: readonly number[], { real } = float64) => x.reduce((a, b) => real(a + b), 0)
const plus = (a: number[], b: number[], { act } = float64) => a.map((v, i) => act(v + b[i]!))

/** A matrix by a row of numbers. */
export function product(x: number[], w: ArrayLike<number>, r = float64): number[] {
  const y: number[] = []
  for (let at = 0; at < w.length; at += x.length) y.push(r.act(r.dot(x, w, at)))
  return y
}
const rms = (x: number[], w: ArrayLike<number>, r = float64) => {
  const scale = r.real(1 / Math.sqrt(r.real(r.dot(x, x, 0) / x.length + 1e-6)))
  return x.map((v, i) => r.act(r.act(v * scale) * w[i]!))
}
const softmax = (x: number[], r = float64) => {
  const top = Math.max(...x)
  const e = x.map((v) => r.real(Math.exp(v - top)))
  const whole = sum(e, r)
  return e.map((v) => r.real(v / whole))
}

/** Cosines and sines of a head's pairs, by the size of the head and the position. */
const turns = new Map<number, { cos: number[]; sin: number[] }[]>()

function turnsOf(size: number, position: number): { cos: number[]; sin: number[] } {
  const known = turns.get(size) ?? []
  turns.set(size, known)
  const angles = () => Array.from({ length: size / 2 }, (_, i) => position * 1e6 ** ((-2 * i) / size))
  known[position] ??= { cos: angles().map(Math.cos), sin: angles().map(Math.sin) }
  return known[position]
}

/** Every head of a row, turned by its position. */
function rotate(x: number[], size: number, position: number, { act }: Arithmetic): number[] {
  const half = size / 2
  const { cos, sin } = turnsOf(size, position)
  return x.map((v, i) => {
    const pair = i % half
    return act(v * cos[pair]! + (i % size < half ? -x[i + half]! : x[i - half]!) * sin[pair]!)
  })
}

/** Of the positions so far, at one loop and layer: keys, rotated, and values. */
export type Plane = { keys: number[]; values: number[] }[]

const names: Map<string, string>[] = []

/** The parameter of a layer: made once, because a text that is made anew is looked up slowly. */
function nameOf(layer: number, name: string): string {
  names[layer] ??= new Map()
  const known = names[layer].get(name) ?? `model.layers.${layer}.${name}.weight`
  names[layer].set(name, known)
  return known
}

/** One block for one position; its key and value go to the plane, and what lies there before it is seen. */
function block(c: Sizes, p: Parameters, l: number, row: number[], position: number, plane: Plane, r = float64): number[] {
  const heads = c.num_attention_heads
  const kvHeads = c.num_key_value_heads ?? heads
  const size = c.hidden_size / heads
  const layer = (name: string) => p.get(nameOf(l, name))!
  const x = rms(row, layer('input_layernorm'), r)
  const [q, k, v] = ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'].map((name) => product(x, layer(name), r)) as [
    number[],
    number[],
    number[],
  ]
  const part = (x: number[], head: number) => x.slice(head * size, (head + 1) * size)
  if (c.coded !== undefined && c.residual === undefined && position % 64 === 0 && position > 0)
    for (let j = position - 64; j < position; j++)
      plane[j] = { keys: (c.codedKeys ?? c.coded)(plane[j]!.keys), values: c.coded(plane[j]!.values) }
  plane[position] = { keys: rotate(k, size, position, r), values: v }
  const seen = plane.slice(0, position + 1)
  const queries = rotate(q, size, position, r)
  const mixed = Array.from({ length: heads }, (_, head) => {
    const query = part(queries, head)
    const shared = Math.floor((head * kvHeads) / heads) // the head of keys and values that this query reads
    const scores = seen.map(({ keys }) => r.real(r.dot(query, keys, shared * size) / Math.sqrt(size)))
    const weights = softmax(scores, r).map(r.act)
    const column = (i: number) => seen.map(({ values }) => values[shared * size + i]!)
    return Array.from({ length: size }, (_, i) => r.act(r.dot(weights, column(i), 0)))
  }).flat()
  const h = plus(row, rms(product(mixed, layer('self_attn.o_proj'), r), layer('input_layernorm_2'), r), r)
  const inner = rms(h, layer('post_attention_layernorm'), r)
  const [gate, up] = ['mlp.gate_proj', 'mlp.up_proj'].map((name) => product(inner, layer(name), r))
  const active = gate!.map((g, i) => r.act(r.act(g / (1 + Math.exp(-g))) * up![i]!))
  return plus(h, rms(product(active, layer('mlp.down_proj'), r), layer('post_attention_layernorm_2'), r), r)
}

/** With residuals: position `position` begins, and the block of 64 before it has left the last loop. */
function codeBlock({ coded, residual }: Sizes, planes: readonly Plane[][], position: number): void {
  if (coded === undefined || residual === undefined || position % 64 !== 0 || position === 0) return
  for (const [l, anchor] of planes.at(-1)!.entries())
    for (let j = position - 64; j < position; j++) {
      anchor[j] = { keys: coded(anchor[j]!.keys), values: coded(anchor[j]!.values) }
      for (const plane of planes.slice(0, -1)) {
        const { keys, values } = plane[l]![j]!
        plane[l]![j] = { keys: residual(keys, anchor[j]!.keys), values: residual(values, anchor[j]!.values) }
      }
    }
}

const embedded = (c: Sizes, p: Parameters, id: number) =>
  Array.from({ length: c.hidden_size }, (_, i) => p.get('model.embed_tokens.weight')![id * c.hidden_size + i]!)

/** Normed states [loop][position][D] and gate logits [loop][position]; `planes` [loop][layer] receive keys and values. */
export function forward(
  c: Sizes,
  p: Parameters,
  ids: readonly number[],
  noise?: Noise,
  site: Site = 'state',
  planes: Plane[][] = [],
  r = float64,
) {
  const disturbed = (rows: number[][], where: Site, t: number) =>
    noise === undefined || site !== where ? rows : rows.map((row, j) => plus(row, noise[t]![j]!))
  const embeddings = disturbed(
    ids.map((id) => embedded(c, p, id)),
    'embedding',
    0,
  )
  const loops = Array.from({ length: c.total_ut_steps }, (_, t) => t)
  const states: number[][][] = loops.map(() => [])
  for (const t of loops) planes[t] = Array.from({ length: c.num_hidden_layers }, (): Plane => [])
  const together = c.residual === undefined ? ids.length : 64 // positions that run a loop before any runs the next
  for (let first = 0; first < ids.length; first += together) {
    codeBlock(c, planes, first)
    let h = embeddings.slice(first, first + together)
    const moved = (site: Site, t: number) => disturbed([...states[t]!, ...h], site, t).slice(first)
    for (const t of loops) {
      for (const [l, plane] of planes[t]!.entries()) h = h.map((row, j) => block(c, p, l, row, first + j, plane, r))
      h = moved('residual', t).map((row) => rms(row, p.get('model.norm.weight')!, r))
      h = moved('state', t)
      states[t]!.push(...h)
    }
  }
  const gates = states.map((rows) => rows.map((row) => gateLogit(p, row, r)))
  return { states, gates }
}

export const gateLogit = (p: Parameters, state: number[], r = float64) =>
  r.real(r.dot(state, p.get('model.early_exit_gate.weight')!, 0) + p.get('model.early_exit_gate.bias')![0]!)
export const probabilities = (p: Parameters, state: number[]) => softmax(product(state, p.get('lm_head.weight')!))
/** ln softmax(logits / temperature), and its entropy, of one normed state. */
export function logSoftmax(p: Parameters, state: number[], temperature = 1, r = float64): number[] {
  const logits = product(state, p.get('lm_head.weight')!, r).map((v) => r.real(v / temperature))
  const top = Math.max(...logits)
  const whole = Math.log(
    sum(
      logits.map((v) => r.real(Math.exp(v - top))),
      r,
    ),
  )
  return logits.map((v) => r.real(r.real(v - top) - r.real(whole)))
}

/**
 * Greedy decoding by math.md §7: the prompt at full depth, then token by token over its keys. `leaves` sees the states of a token after each
 * of its loops so far. Where loops have their own planes, a token that leaves early lends its last keys and values to the deeper loops;
 * where they share one, it has those of the prompt's last loop, and every later loop of a token overwrites its own.
 */
export function greedy(
  c: Sizes,
  p: Parameters,
  prompt: readonly number[],
  options: { tokens: number; shared: boolean; leaves: (states: number[][]) => boolean },
): { tokens: number[]; loops: number[] } {
  const planes: Plane[][] = []
  const { states } = forward(c, p, prompt, undefined, 'state', planes)
  const T = c.total_ut_steps
  const last = planes[T - 1]!
  const planesOf = (t: number) => (options.shared ? last : planes[t]!)
  const tokens: number[] = []
  const loops: number[] = []
  const read = (next: (t: number) => number[]) => {
    const seen: number[][] = []
    do seen.push(next(seen.length))
    while (seen.length < T && !options.leaves(seen))
    const table = probabilities(p, seen.at(-1)!)
    tokens.push(table.indexOf(Math.max(...table)))
    loops.push(seen.length)
    return seen.length
  }
  read((t) => states[t]!.at(-1)!)
  while (tokens.length < options.tokens) {
    const position = prompt.length + tokens.length - 1
    if (!options.shared) codeBlock(c, planes, position)
    let h = embedded(c, p, tokens.at(-1)!)
    const left = read((t) => {
      for (let l = 0; l < c.num_hidden_layers; l++) h = block(c, p, l, h, position, planesOf(t)[l]!)
      h = rms(h, p.get('model.norm.weight')!)
      return h
    })
    if (!options.shared) lendUpwards(planes, left, position)
  }
  return { tokens, loops }
}

/** Deeper loops find the keys and values of a token that left after `left` loops. */
function lendUpwards(planes: readonly Plane[][], left: number, position: number): void {
  for (const above of planes.slice(left))
    for (const [l, plane] of above.entries()) plane[position] = planes[left - 1]![l]![position]!
}

/**
 * The policy that leaves early (math.md §7): log p of the loop that each token of a completion is read from, and log P of the token there.
 * The prompt runs at full depth.
 *
 * @param exits one per token, counted from 0
 */
export function adaptivePolicy(
  c: Sizes,
  p: Parameters,
  prompt: readonly number[],
  tokens: readonly number[],
  exits: readonly number[],
): { exitLogprobs: number[]; tokenLogprobs: number[] } {
  const planes: Plane[][] = []
  const { states } = forward(c, p, prompt, undefined, 'state', planes)
  const loops = Array.from({ length: c.total_ut_steps }, (_, t) => t)
  let seen = loops.map((t) => states[t]!.at(-1)!)
  const exitLogprobs: number[] = []
  const tokenLogprobs: number[] = []
  for (const [k, token] of tokens.entries()) {
    const pdf = exitLogPdf(seen.map((state) => gateLogit(p, state)))
    exitLogprobs.push(pdf[exits[k]!]!)
    tokenLogprobs.push(Math.log(probabilities(p, seen[exits[k]!]!)[token]!))
    const position = prompt.length + k
    let h = embedded(c, p, token)
    // All loops run, because the exit of the next token is not known here; what they leave behind it is replaced.
    seen = loops.map((t) => {
      for (let l = 0; l < c.num_hidden_layers; l++) h = block(c, p, l, h, position, planes[t]![l]!)
      h = rms(h, p.get('model.norm.weight')!)
      return h
    })
    if (k + 1 < tokens.length) lendUpwards(planes, exits[k + 1]! + 1, position)
  }
  return { exitLogprobs, tokenLogprobs }
}

/** log p_t of the exits from the gate logits of one position (math.md §1). */
export function exitLogPdf(gates: readonly number[]): number[] {
  const logSigmoid = (a: number) => -Math.log1p(Math.exp(-a))
  return gates.map((a, t) => sum(gates.slice(0, t).map((b) => logSigmoid(-b))) + (t + 1 < gates.length ? logSigmoid(a) : 0))
}

/** What the prediction of token j + 1 looks like from position j: per loop its log-probability and the exit; the last loop's entropy. */
export function prediction(c: Sizes, p: Parameters, run: ReturnType<typeof forward>, ids: readonly number[], j: number) {
  const head = p.get('lm_head.weight')!
  const tables = run.states.map((rows) => softmax(product(rows[j]!, head)))
  return {
    logprobs: tables.map((table) => Math.log(table[ids[j + 1]!]!)),
    logPdf: exitLogPdf(run.gates.map((row) => row[j]!)),
    entropy: -sum(tables[c.total_ut_steps - 1]!.map((q) => q * Math.log(q))),
  }
}
export type Prediction = ReturnType<typeof prediction>

/** A looped model that LoopRPT can be computed for: `run` gives the prediction of token j + 1 by position j. */
export interface Computation {
  vocabulary: number
  loops: number
  run(p: Parameters, ids: readonly number[], noise?: Noise, site?: Site): (j: number) => Prediction
}
export const ouro = (c: Sizes): Computation => ({
  vocabulary: c.vocab_size,
  loops: c.total_ut_steps,
  run: (p, ids, noise, site) => {
    const run = forward(c, p, ids, noise, site)
    return (j) => prediction(c, p, run, ids, j)
  },
})

export function zScores(values: readonly number[], eps: number): number[] {
  const mean = sum(values) / values.length
  const deviation = Math.sqrt(sum(values.map((v) => (v - mean) ** 2)) / (values.length - 1))
  return values.map((v) => (v - mean) / (deviation + eps))
}

export const price = { lambdaBase: 0.02, lambdaScale: 0.5, tau: 0.5 }

/** Reference loop (0-based), λ and the reward R(t) of every loop for a student's log-probabilities. */
export function rewards(vocabulary: number, teacher: Prediction, logprobs: readonly number[]) {
  let cdf = 0
  const reached = teacher.logPdf.findIndex((q) => {
    cdf += Math.exp(q)
    return cdf >= price.tau
  })
  const reference = reached < 0 ? teacher.logPdf.length - 1 : reached
  const certain = 1 - Math.min(1, Math.max(0, teacher.entropy / Math.log(vocabulary)))
  const lambda = price.lambdaBase * (1 + price.lambdaScale * certain)
  return { reference, lambda, R: logprobs.map((l, t) => l - teacher.logprobs[reference]! - lambda * (t - reference)) }
}

/** The clean pass's weights w, which carry no gradient. */
export const cleanWeights = (logPdf: readonly number[], R: readonly number[]) =>
  zScores(R, 1e-8).map((z, t) => Math.exp(logPdf[t]!) * (1 + Math.max(0, z)))
export const representationLoss = (w: readonly number[], logprobs: readonly number[]) => -sum(w.map((v, t) => v * logprobs[t]!))
export const entropyOf = (logPdf: readonly number[]) => -sum(logPdf.map((q) => Math.exp(q) * q))
/** e^δ - δ - 1 of every loop, δ = teacher - student. */
export const k3 = (teacher: readonly number[], student: readonly number[]) =>
  teacher.map((l, t) => Math.exp(l - student[t]!) - (l - student[t]!) - 1)

export interface LoopRptCase {
  sequences: readonly (readonly number[])[]
  promptLengths: readonly number[]
  /** Per prediction; 0: it is never hard. */
  mask?: readonly (readonly number[])[] | undefined
  rollouts: number
  rho: number
  site: Site
  rewardFrom: 'rollout' | 'clean'
  klReduction: 'mean' | 'weighted' | 'last'
  coefficients: { policy: number; representation: number; entropy: number; kl: number }
  /** Of sequence i and rollout g. */
  noise: (i: number, g: number) => Noise
  /** Loop of sequence i, rollout g, position j, 0-based; it may depend on the rollout's exit distribution. */
  exit: (i: number, g: number, j: number, pdf: number[]) => number
}

/**
 * The loss as a function of the student's parameters, and what is detached in it (hard tokens, exits, weights, advantages) taken at
 * `fixed`. Its value at `fixed` is the loss; its derivative there is what the engine must return.
 */
export function loopRptLoss(
  c: Computation,
  of: LoopRptCase,
  teacher: Parameters,
  fixed: Parameters,
): (student: Parameters) => number {
  const noises = of.sequences.map((_, i) => Array.from({ length: of.rollouts }, (_, g) => of.noise(i, g)))
  const passes = (p: Parameters, i: number) => {
    const ids = of.sequences[i]!
    return { clean: c.run(p, ids), noisy: noises[i]!.map((noise) => c.run(p, ids, noise, of.site)) }
  }
  const detached = of.sequences.flatMap((ids, i) => {
    const taught = c.run(teacher, ids)
    const { clean, noisy } = passes(fixed, i)
    const responses = Array.from({ length: ids.length - of.promptLengths[i]! }, (_, n) => of.promptLengths[i]! - 1 + n)
    const positions = responses.filter((j) => of.mask?.[i]?.[j] !== 0)
    const entropy = (j: number) => taught(j).entropy
    const hard = [...positions].sort((a, b) => entropy(b) - entropy(a)).slice(0, Math.ceil(of.rho * positions.length))
    return hard.map((j) => {
      const t = taught(j)
      const own = clean(j)
      const rollouts = noisy.map((run) => run(j))
      const exits = rollouts.map(({ logPdf }, g) => of.exit(i, g, j, logPdf.map(Math.exp)))
      const earned = exits.map((exit, g) => {
        const logprobs = of.rewardFrom === 'clean' ? own.logprobs : rollouts[g]!.logprobs
        return rewards(c.vocabulary, t, logprobs).R[exit]!
      })
      const T = c.loops
      const klWeights = rollouts.map(({ logPdf }) =>
        logPdf.map((q, k) => (of.klReduction === 'mean' ? 1 / T : of.klReduction === 'last' ? Number(k === T - 1) : Math.exp(q))),
      )
      const w = cleanWeights(own.logPdf, rewards(c.vocabulary, t, own.logprobs).R)
      return { i, j, teacher: t.logprobs, exits, advantages: zScores(earned, 1e-8), klWeights, w }
    })
  })
  return (student) => {
    let loss = 0
    for (const i of of.sequences.keys()) {
      const { clean, noisy } = passes(student, i)
      for (const token of detached.filter((token) => token.i === i)) {
        const own = clean(token.j)
        loss +=
          of.coefficients.representation * representationLoss(token.w, own.logprobs) -
          of.coefficients.entropy * entropyOf(own.logPdf)
        for (const [g, run] of noisy.entries()) {
          const { logprobs, logPdf } = run(token.j)
          const kl = sum(k3(token.teacher, logprobs).map((v, t) => v * token.klWeights[g]![t]!))
          loss +=
            (-of.coefficients.policy * token.advantages[g]! * logPdf[token.exits[g]!]! + of.coefficients.kl * kl) / of.rollouts
        }
      }
    }
    return loss / detached.length
  }
}

/** Philox4x32-10 (Salmon et al., SC 2011): four 32-bit words from a counter and a 64-bit key. */
export function philox(counter: readonly number[], key: number): number[] {
  let [a, b, c, d] = counter.map((word) => BigInt(word >>> 0)) as [bigint, bigint, bigint, bigint]
  const mask = 0xffffffffn
  let [k0, k1] = [BigInt(key) & mask, BigInt(key) >> 32n]
  for (let round = 0; round < 10; round++) {
    const [p, q] = [0xd2511f53n * a, 0xcd9e8d57n * c]
    ;[a, b, c, d] = [(q >> 32n) ^ b ^ k0, q & mask, (p >> 32n) ^ d ^ k1, p & mask]
    k0 = (k0 + 0x9e3779b9n) & mask
    k1 = (k1 + 0xbb67ae85n) & mask
  }
  return [a, b, c, d].map(Number)
}
/** Element k of the noise that a rollout has at a position and a loop, before sigma. */
export function latentNoise(seed: number, stream: number, position: number, loop: number, k: number): number {
  const words = philox([Math.floor(k / 4), position, stream, 2 + 4 * loop], seed)
  const pair = (k >> 1) & 1
  const radius = Math.sqrt(-2 * Math.log((words[2 * pair]! + 0.5) / 2 ** 32))
  const angle = (2 * Math.PI * words[2 * pair + 1]!) / 2 ** 32
  return radius * (k % 2 === 0 ? Math.cos(angle) : Math.sin(angle))
}
/** The number in (0, 1) that decides the exit of a stream at a position. */
export function exitUniform(seed: number, stream: number, position: number): number {
  const [high, low] = philox([position, stream, 3, 0], seed)
  return Number((BigInt(high!) << 32n) | BigInt(low!)) / 2 ** 64
}
