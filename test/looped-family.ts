// Generation of any looped model once more, in plain TypeScript and float64, for models of a few thousand weights: tokens one after the
// other, keys and values in arrays. It reads the same description as the engine and shares nothing else with it.

import type { LoopLM } from '../src/index.js'
import type { Architecture, Role, Step } from '../src/native/architecture.js'

type Row = number[]
/** Keys, rotated, and values of one run of one block, by position. */
type Plane = { key: Row; value: Row }[]

/** What a rule sees after a loop. */
export interface Seen {
  /** 1-based */
  loop: number
  /** Register 0 behind this loop, and behind the one before. */
  h: Row
  previousH: Row
  p: Row
  /** Uniform before the first loop. */
  previousP: Row
}

const dot = (a: Row, b: ArrayLike<number>, offset = 0) => a.reduce((sum, x, i) => sum + x * b[offset + i]!, 0)
const plus = (a: Row, b: Row) => a.map((x, i) => x + b[i]!)
export const softmax = (x: Row) => {
  const top = Math.max(...x)
  const e = x.map((v) => Math.exp(v - top))
  const whole = e.reduce((a, b) => a + b)
  return e.map((v) => v / whole)
}
const silu = (x: number) => x / (1 + Math.exp(-x))
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x))

export class FamilyDecoder {
  readonly #a: Architecture
  readonly #of = new Map<string, number[]>()
  readonly #planes = new Map<string, Plane>()
  #two = 0 // prompt tokens that see each other both ways

  private constructor(architecture: Architecture) {
    this.#a = architecture
  }

  static async of(model: LoopLM): Promise<FamilyDecoder> {
    const decoder = new FamilyDecoder(model.architecture)
    for (const { name, role, index = 0, firstRow = 0 } of decoder.#a.parameters) {
      const values = Array.from(await model.getParameter(name))
      const key = `${role} ${index}`
      const whole = decoder.#of.get(key) ?? []
      if (firstRow === 0) whole.unshift(...values)
      else whole.push(...values)
      decoder.#of.set(key, whole)
    }
    return decoder
  }

  #parameter(role: Role, index = 0): number[] | undefined {
    return this.#of.get(`${role} ${index}`)
  }

  #linear(role: Role, index: number, x: Row, bias?: Role): Row {
    const w = this.#parameter(role, index)!
    const b = bias === undefined ? undefined : this.#parameter(bias, index)
    return Array.from({ length: w.length / x.length }, (_, o) => dot(x, w, o * x.length) + (b?.[o] ?? 0))
  }

  #rms(x: Row, weight: number[] | undefined): Row {
    const scale = 1 / Math.sqrt(dot(x, x) / x.length + this.#a.normEps)
    return x.map((v, i) => v * scale * (weight?.[i] ?? 1))
  }

  #rotate(x: Row, position: number): Row {
    const { theta, pairs, scaling } = this.#a.rotary
    const half = x.length / 2
    const out = [...x]
    for (let j = 0; j < half; j++) {
      let f = theta ** ((-2 * j) / x.length)
      if (scaling !== undefined) {
        const turns = (scaling.original * f) / (2 * Math.PI)
        const kept = Math.min(1, Math.max(0, (turns - scaling.low) / (scaling.high - scaling.low)))
        f = ((1 - kept) * f) / scaling.factor + kept * f
      }
      const [a, b] = pairs === 'neighbours' ? [2 * j, 2 * j + 1] : [j, j + half]
      const [cos, sin] = [Math.cos(position * f), Math.sin(position * f)]
      out[a] = x[a]! * cos - x[b]! * sin
      out[b] = x[b]! * cos + x[a]! * sin
    }
    return out
  }

  #heads(x: Row, map: (head: Row) => Row): Row {
    const size = this.#a.headDim
    return Array.from({ length: x.length / size }, (_, h) => map(x.slice(h * size, (h + 1) * size))).flat()
  }

  #project(l: number, x: Row, position: number) {
    const { heads, kvHeads, headDim, attentionGate, queryKeyNorm } = this.#a
    const all = this.#linear('attention', l, x, 'attentionBias')
    const width = heads * headDim
    const gate = attentionGate ? all.splice(0, width) : undefined
    let [q, k] = [all.slice(0, width), all.slice(width, width + kvHeads * headDim)]
    const [ofQ, ofK] = [this.#parameter('queryNorm', l), this.#parameter('keyNorm', l)]
    if (queryKeyNorm === 'all') [q, k] = [this.#rms(q, ofQ), this.#rms(k, ofK)]
    if (queryKeyNorm === 'head') [q, k] = [this.#heads(q, (h) => this.#rms(h, ofQ)), this.#heads(k, (h) => this.#rms(h, ofK))]
    const rotated = (x: Row) => this.#heads(x, (head) => this.#rotate(head, position))
    return { gate, q: rotated(q), k: rotated(k), v: all.slice(width + kvHeads * headDim) }
  }

  #join(h: Row, branch: Row, norm: Role, l: number): Row {
    const weight = this.#parameter(norm, l)
    if (this.#a.residual === 'pre') return plus(h, branch)
    if (this.#a.residual === 'normed') return this.#rms(plus(h, branch), weight)
    return plus(h, this.#rms(branch, weight))
  }

  /** One block for neighbouring positions from `first` on. */
  #block(l: number, plane: Plane, rows: Row[], first: number): Row[] {
    const { heads, kvHeads, headDim: size, residual } = this.#a
    const before = (h: Row, norm: Role) => (residual === 'post' ? h : this.#rms(h, this.#parameter(norm, l)))
    const projected = rows.map((h, i) => this.#project(l, before(h, 'attentionNorm'), first + i))
    for (const [i, { k, v }] of projected.entries()) plane[first + i] = { key: k, value: v }
    return rows.map((h, i) => {
      const { q, gate } = projected[i]!
      const seen = plane.slice(0, Math.max(first + i + 1, first + i < this.#two ? this.#two : 0))
      const mixed = Array.from({ length: heads }, (_, head) => {
        const query = q.slice(head * size, (head + 1) * size)
        const shared = Math.floor((head * kvHeads) / heads)
        const weights = softmax(seen.map(({ key }) => dot(query, key, shared * size) / Math.sqrt(size)))
        return Array.from({ length: size }, (_, d) =>
          seen.reduce((sum, { value }, j) => sum + weights[j]! * value[shared * size + d]!, 0),
        )
      }).flat()
      const gated = gate === undefined ? mixed : mixed.map((x, d) => x * sigmoid(gate[d]!))
      const middle = this.#join(h, this.#linear('attentionOutput', l, gated, 'attentionOutputBias'), 'attentionNorm2', l)
      const up = this.#linear('gateUp', l, before(middle, 'mlpNorm'), 'gateUpBias')
      const active = up.slice(0, up.length / 2).map((g, d) => silu(g) * up[up.length / 2 + d]!)
      return this.#join(middle, this.#linear('down', l, active, 'downBias'), 'mlpNorm2', l)
    })
  }

  /** Steps over registers [R][rows][D]; planes are `part` and a number. */
  #run(steps: readonly Step[], part: string, registers: Row[][], first: number, ids: number[], state: (position: number) => Row) {
    let blocks = 0
    const D = this.#a.hidden
    for (const s of steps) {
      const to = registers[s.to]!
      const each = (map: (row: Row, i: number) => Row) => to.map(map)
      const next = (): Row[] => {
        switch (s.kind) {
          case 'embed':
            return ids.map((id) =>
              this.#parameter('embedding')!
                .slice(id * D, (id + 1) * D)
                .map((x) => x * (s.scale ?? 1)),
            )
          case 'start':
            return ids.map(() => this.#parameter('start', s.index)!)
          case 'state':
            return ids.map((_, i) => state(first + i))
          case 'block': {
            const name = `${part} ${blocks++}`
            const plane = this.#planes.get(name) ?? []
            this.#planes.set(name, plane)
            return this.#block(s.index, plane, to, first)
          }
          case 'norm':
            return each((row) => this.#rms(row, s.index < 0 ? undefined : this.#parameter('norm', s.index)))
          case 'add':
            return each((row, i) => plus(row, registers[s.from]![i]!))
          case 'inject':
            return each((row, i) => this.#linear('inject', s.index, [...row, ...registers[s.from]![i]!]))
          case 'copy':
            return registers[s.from]!
        }
      }
      registers[s.to] = next()
    }
    return registers
  }

  #logits(registers: Row[][], first: number, row: number): Row {
    const of = registers.map((rows) => [rows[row]!])
    const [[hidden]] = this.#run(this.#a.read, 'read', of, first + row, [0], () => []) as [[Row]]
    return this.#linear(this.#a.tied ? 'embedding' : 'head', 0, hidden)
  }

  /**
   * Greedy tokens behind a prompt that runs at full depth. A token that exits early lends its keys and values to deeper loops; of the
   * readout the cache keeps those of the loop that a token exits from.
   *
   * @param state of a position; leaves: whether the rule holds after a loop
   */
  greedy(prompt: number[], count: number, loops: number, state: (position: number) => Row, leaves: (seen: Seen) => boolean) {
    this.#planes.clear()
    this.#two = this.#a.prefixSeesItself ? prompt.length : 0
    const out = { tokens: [] as number[], loops: [] as number[], logprobs: [] as number[] }
    let ids = prompt
    for (let first = 0; out.tokens.length < count; first += ids.length, ids = [out.tokens.at(-1)!]) {
      let registers: Row[][] = Array.from({ length: this.#a.registers }, () => ids.map(() => []))
      registers = this.#run(this.#a.begin, 'begin', registers, first, ids, state)
      const behind: Row[][][] = []
      const prefill = first === 0
      const last = ids.length - 1
      let previousP = Array.from({ length: this.#a.vocabulary }, () => 1 / this.#a.vocabulary)
      let done = false
      for (let t = 1; t <= loops; t++) {
        registers = this.#run(this.#a.loop, `loop ${t}`, [...registers], first, ids, state)
        behind.push(registers)
      }
      if (prefill && last > 0) {
        const earlier = registers.map((rows) => rows.slice(0, last))
        this.#run(this.#a.read, 'read', earlier, 0, ids.slice(0, last), state)
      }
      for (let t = 1; t <= loops && !done; t++) {
        const p = softmax(this.#logits(behind[t - 1]!, first, last))
        const h = behind[t - 1]![0]![last]!
        const previousH = t > 1 ? behind[t - 2]![0]![last]! : []
        done = t === loops || leaves({ loop: t, h, previousH, p, previousP })
        previousP = p
        if (!done) continue
        if (!prefill) this.#copyUp(t, loops, first)
        const token = p.indexOf(Math.max(...p))
        out.tokens.push(token)
        out.loops.push(t)
        out.logprobs.push(Math.log(p[token]!))
      }
    }
    return out
  }

  #copyUp(exit: number, loops: number, position: number) {
    const blocks = this.#a.loop.filter(({ kind }) => kind === 'block').length
    for (let b = 0; b < blocks; b++)
      for (let t = exit + 1; t <= loops; t++)
        this.#planes.get(`loop ${t} ${b}`)![position] = this.#planes.get(`loop ${exit} ${b}`)![position]!
  }
}
