// Any looped model that a description says (src/model/architectures), in plain TypeScript for models of a few hundred weights: in
// float64, or rounded after every operation (test/rounding.ts). Written from the formulas of the description; it shares nothing with
// the engine.
import type { Architecture, Role, Step } from '../src/native/architecture.js'
import { type Arithmetic, type Computation, exitLogPdf, float64, type Parameters, product } from './looped-model.js'

/** Of the family in test/fixtures/two-registers.ts. */
export const describedConfig = {
  ...{ model_type: 'two_registers', vocab_size: 12, hidden_size: 16, intermediate_size: 20, num_hidden_layers: 4 },
  ...{ num_attention_heads: 2, initializer_range: 0.3 },
}

type Rows = number[][] // [position][channel]

export interface DescribedOptions {
  /** Default the model's. */
  loops?: number
  /** Tokens at the front that see each other both ways, where the description says so. Default 1. */
  promptLength?: number
  /** The initial states, length × D; default zeros. */
  initialStates?: ArrayLike<number>
  /** Matrices of a layer's Shift-FFN (docs/math.md): [rank, D], [rank, 2 D], [D, rank]. */
  shift?: (layer: number) => { a: ArrayLike<number>; b: ArrayLike<number>; c: ArrayLike<number> }
  /** [loop][position][D], added to register 0 behind every loop. */
  noise?: readonly Rows[]
  r?: Arithmetic
}

const plus = (x: number[], y: ArrayLike<number>, { act }: Arithmetic) => x.map((v, i) => act(v + (y[i] ?? 0)))
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x))

function softmax(x: number[], r: Arithmetic): number[] {
  const top = Math.max(...x)
  const e = x.map((v) => r.real(Math.exp(v - top)))
  const sum = e.reduce((a, b) => r.real(a + b), 0)
  return e.map((v) => r.real(v / sum))
}

type ByRole = (role: Role, index?: number) => Float64Array | undefined
const known = new WeakMap<Parameters, ByRole>()

/** The parameters of a description by role and index: the parts of a matrix or a vector one behind the other. */
function byRole({ parameters }: Architecture, values: Parameters): ByRole {
  const found = known.get(values)
  if (found !== undefined) return found
  const whole = new Map<string, Float64Array>()
  for (const { name, role, index = 0 } of parameters) {
    const key = `${role} ${index}`
    const [first, part] = [whole.get(key), values.get(name)!]
    if (first === undefined) {
      whole.set(key, part instanceof Float64Array ? part : Float64Array.from(part))
      continue
    }
    const both = new Float64Array(first.length + part.length)
    both.set(first)
    both.set(part, first.length)
    whole.set(key, both)
  }
  const of: ByRole = (role, index = 0) => whole.get(`${role} ${index}`)
  known.set(values, of)
  return of
}

/** Computes with a description's sizes and one kind of arithmetic. */
class Layers {
  constructor(
    private readonly a: Architecture,
    private readonly r: Arithmetic,
    private readonly promptLength: number,
    private readonly shift: DescribedOptions['shift'],
  ) {
    this.#frequencies = Array.from({ length: a.headDim / 2 }, (_, pair) => this.#frequency(pair))
  }
  readonly #frequencies: number[]

  norm(x: number[], weight: ArrayLike<number> | undefined): number[] {
    const { r } = this
    const scale = r.real(1 / Math.sqrt(r.real(r.dot(x, x, 0) / x.length + this.a.normEps)))
    return x.map((v, i) => r.act(r.act(v * scale) * (weight?.[i] ?? 1)))
  }

  linear(x: number[], weight: ArrayLike<number> | undefined, bias: ArrayLike<number> | undefined): number[] {
    const y = product(x, weight!, this.r)
    return bias === undefined ? y : plus(y, bias, this.r)
  }

  #frequency(pair: number): number {
    const { rotary, headDim } = this.a
    const f = rotary.theta ** ((-2 * pair) / headDim)
    if (rotary.scaling === undefined) return f
    const { factor, low, high, original } = rotary.scaling
    const s = Math.min(1, Math.max(0, ((original * f) / (2 * Math.PI) - low) / (high - low)))
    return ((1 - s) * f) / factor + s * f
  }

  /** Every head of a row, turned by its position. */
  rotate(x: number[], position: number): number[] {
    const { rotary, headDim: d } = this.a
    return x.map((v, i) => {
      const [head, j] = [i - (i % d), i % d]
      const neighbours = rotary.pairs === 'neighbours'
      const first = neighbours ? j % 2 === 0 : j < d / 2
      const other = head + (neighbours ? j ^ 1 : (j + d / 2) % d)
      const angle = position * this.#frequencies[neighbours ? j >> 1 : j % (d / 2)]!
      return this.r.act(v * Math.cos(angle) + (first ? -1 : 1) * x[other]! * Math.sin(angle))
    })
  }

  #normHeads(x: number[], weight: Float64Array | undefined): number[] {
    const { queryKeyNorm = 'none', headDim } = this.a
    if (queryKeyNorm === 'none') return x
    if (queryKeyNorm === 'all') return this.norm(x, weight)
    return Array.from({ length: x.length / headDim }, (_, h) => this.norm(x.slice(h * headDim, (h + 1) * headDim), weight)).flat()
  }

  attention(rows: Rows, p: ByRole, layer: number): Rows {
    const { heads, kvHeads, headDim: d, attentionGate = false, prefixSeesItself = false } = this.a
    const { r } = this
    const [width, kv] = [heads * d, kvHeads * d]
    const projected = rows.map((x, position) => {
      const y = this.linear(x, p('attention', layer), p('attentionBias', layer))
      const gate = attentionGate ? y.splice(0, width) : undefined
      return {
        gate,
        query: this.rotate(this.#normHeads(y.slice(0, width), p('queryNorm', layer)), position),
        key: this.rotate(this.#normHeads(y.slice(width, width + kv), p('keyNorm', layer)), position),
        value: y.slice(width + kv),
      }
    })
    const columns = Array.from({ length: kv }, (_, i) => projected.map(({ value }) => value[i]!))
    return projected.map(({ gate, query }, position) => {
      const seen = projected.slice(
        0,
        Math.max(position + 1, prefixSeesItself && position < this.promptLength ? this.promptLength : 0),
      )
      const mixed = Array.from({ length: heads }, (_, head) => {
        const shared = d * Math.floor((head * kvHeads) / heads)
        const own = query.slice(head * d, (head + 1) * d)
        const weights = softmax(
          seen.map(({ key }) => r.real(r.dot(own, key, shared) / Math.sqrt(d))),
          r,
        ).map(r.act)
        return columns.slice(shared, shared + d).map((column) => r.act(r.dot(weights, column, 0)))
      }).flat()
      const open = gate === undefined ? mixed : mixed.map((v, i) => r.act(r.act(sigmoid(gate[i]!)) * v))
      return this.linear(open, p('attentionOutput', layer), p('attentionOutputBias', layer))
    })
  }

  /** x_i + C (relu(B [x_(i-1) ; x_i]) · (A x_(i-1))), zeros before the first. */
  #edited(rows: Rows, layer: number): Rows {
    const { r } = this
    if (this.shift === undefined) return rows
    const { a, b, c } = this.shift(layer)
    return rows.map((x, j) => {
      const before = j > 0 ? rows[j - 1]! : x.map(() => 0)
      const gate = product([...before, ...x], b, r).map((v) => Math.max(v, 0))
      const m = product(before, a, r).map((v, k) => r.act(gate[k]! * v))
      return plus(x, product(m, c, r), r)
    })
  }

  mlp(rows: Rows, p: ByRole, layer: number): Rows {
    const F = this.a.intermediate
    return this.#edited(rows, layer).map((x) => {
      const y = this.linear(x, p('gateUp', layer), p('gateUpBias', layer))
      const active = y.slice(0, F).map((g, i) => this.r.act(this.r.act(g * sigmoid(g)) * y[F + i]!))
      return this.linear(active, p('down', layer), p('downBias', layer))
    })
  }

  block(h: Rows, p: ByRole, layer: number): Rows {
    const attention = this.#branch(h, p('attentionNorm', layer), p('attentionNorm2', layer), (x) => this.attention(x, p, layer))
    return this.#branch(attention, p('mlpNorm', layer), p('mlpNorm2', layer), (x) => this.mlp(x, p, layer))
  }

  #branch(h: Rows, first: Float64Array | undefined, second: Float64Array | undefined, f: (x: Rows) => Rows): Rows {
    const { residual } = this.a
    const out = f(residual === 'post' ? h : h.map((x) => this.norm(x, first)))
    if (residual === 'normed') return h.map((x, j) => this.norm(plus(x, out[j]!, this.r), second))
    return h.map((x, j) => plus(x, residual === 'pre' ? out[j]! : this.norm(out[j]!, second), this.r))
  }
}

/**
 * What the head reads behind every loop: [loop][position][D].
 *
 * @param parameters by name; or those of a loop, where they differ from loop to loop (-1: of steps before and behind the loops)
 */
export function describedStates(
  a: Architecture,
  parameters: Parameters | ((loop: number) => Parameters),
  ids: readonly number[],
  { loops = a.loops, promptLength = 1, initialStates, shift, noise, r = float64 }: DescribedOptions = {},
): Rows[] {
  const layers = new Layers(a, r, promptLength, shift)
  const D = a.hidden
  const of = (loop: number) => byRole(a, typeof parameters === 'function' ? parameters(loop) : parameters)
  const outside = of(-1)
  const run = (registers: Rows[], steps: readonly Step[], p: ByRole) => {
    for (const step of steps) {
      const h = registers[step.to]!
      const from = 'from' in step ? registers[step.from]! : []
      registers[step.to] = {
        embed: () => {
          const scale = step.kind === 'embed' ? (step.scale ?? 1) : 1
          const row = (id: number) => Array.from(p('embedding')!.subarray(id * D, (id + 1) * D))
          return ids.map((id) => row(id).map((v) => (scale === 1 ? v : r.act(v * scale))))
        },
        start: () => ids.map(() => Array.from(p('start', step.kind === 'start' ? step.index : 0)!)),
        state: () => ids.map((_, j) => Array.from({ length: D }, (_, k) => r.act(initialStates?.[j * D + k] ?? 0))),
        block: () => layers.block(h, p, step.kind === 'block' ? step.index : 0),
        norm: () => h.map((x) => layers.norm(x, step.kind === 'norm' ? p('norm', step.index) : undefined)),
        add: () => h.map((x, j) => plus(x, from[j]!, r)),
        inject: () => h.map((x, j) => product([...x, ...from[j]!], p('inject', step.kind === 'inject' ? step.index : 0)!, r)),
        copy: () => from.map((x) => [...x]),
      }[step.kind]()
    }
  }
  const registers: Rows[] = Array.from({ length: a.registers }, () => [])
  run(registers, a.begin, outside)
  return Array.from({ length: loops }, (_, t) => {
    run(registers, a.loop, of(t))
    if (noise !== undefined) registers[0] = registers[0]!.map((x, j) => plus(x, noise[t]![j]!, r))
    const read = [...registers]
    run(read, a.read, outside)
    return read[0]!
  })
}

/** ln softmax(logits / temperature) of one state that the head reads. */
export function describedLogSoftmax(a: Architecture, p: Parameters, state: number[], temperature = 1, r = float64): number[] {
  const head = byRole(a, p)(a.tied ? 'embedding' : 'head')!
  const logits = Array.from({ length: a.vocabulary }, (_, v) => r.real(r.real(r.dot(state, head, v * a.hidden)) / temperature))
  const top = Math.max(...logits)
  const whole = Math.log(logits.reduce((sum, v) => r.real(sum + r.real(Math.exp(v - top))), 0))
  return logits.map((v) => r.real(r.real(v - top) - r.real(whole)))
}

/** The exit gate's logit of one such state. */
export function describedGateLogit(a: Architecture, p: Parameters, state: number[], r = float64): number {
  const of = byRole(a, p)
  return r.real(r.dot(state, of('exitGate')!, 0) + of('exitGateBias')![0]!)
}

/** The same for LoopRPT, with initial states of zeros: noise goes on the state that the next loop receives. */
export function describedComputation(a: Architecture, promptLength = 1): Computation {
  const run: Computation['run'] = (p, ids, noise, site = 'state') => {
    if (site !== 'state') throw new Error(`no noise at ${site}`)
    const states = describedStates(a, p, ids, { promptLength, ...(noise === undefined ? {} : { noise }) })
    return (j) => {
      const tables = states.map((rows) => describedLogSoftmax(a, p, rows[j]!))
      return {
        logprobs: tables.map((row) => row[ids[j + 1]!]!),
        logPdf: exitLogPdf(states.map((rows) => describedGateLogit(a, p, rows[j]!))),
        entropy: -tables.at(-1)!.reduce((sum, l) => sum + Math.exp(l) * l, 0),
      }
    }
  }
  return { vocabulary: a.vocabulary, loops: a.loops, run }
}
