// Numerical bounds that hold on every processor. The truth is the model's formulas in float64 (looped-model.ts). How far rounding may lead
// from it is drawn: in the standard model of floating point a rounded result is (1 + δ) times the exact one, with |δ| at most the unit
// roundoff, so the formulas are evaluated several times with a random δ at every operation. The engine rounds less often, in another
// order and with its own exp: it may be twice as far from the truth as the farthest draw.
import { expect } from 'vitest'
import type { LoopLM } from '../src/index.js'
import { describedLogSoftmax, describedStates } from './described-model.js'
import { type Arithmetic, float64, forward, gateLogit, logSoftmax, type Parameters, type Sizes } from './looped-model.js'
import { parametersOf } from './tiny.js'

/** Largest relative error of one rounding to nearest: 2^-p with p digits. */
export const unitRoundoff = { bfloat16: 2 ** -8, float32: 2 ** -24, float64: 2 ** -53 } as const
export type Rounded = keyof typeof unitRoundoff

const draws = 4

/** Errors of activations in a dtype, and of sums in float32 where that is finer: beside 2^-8 its 2^-24 is nothing. */
function disturbed(dtype: 'bfloat16' | 'float32', seed: number): Arithmetic {
  const unit = unitRoundoff[dtype] / 2 ** 31
  let state = seed + 1
  const act = (x: number) => {
    state ^= state << 13 // Marsaglia's xorshift32: a number for every product and sum must be cheap
    state ^= state >>> 17
    state ^= state << 5
    return x * (1 + unit * state)
  }
  if (dtype === 'bfloat16') return { ...float64, act }
  const dot: Arithmetic['dot'] = (a, b, at) => {
    let [sum, drawn] = [0, state]
    for (let i = 0; i < a.length; i++) {
      drawn ^= drawn << 13
      drawn ^= drawn >>> 17
      drawn ^= drawn << 5
      sum = (sum + a[i]! * b[at + i]!) * (1 + unit * drawn)
    }
    state = drawn
    return sum
  }
  return { act, real: act, dot }
}

/** As `LoopLM.score` returns them: of every sequence, loops × positions. */
export interface Scored {
  logprobs: number[][]
  entropy: number[][]
  gateLogits: number[][]
}
type Sequences = readonly (readonly number[])[]

/** What `LoopLM.score` computes, from parameters by name. */
export function evaluate(c: Sizes, p: Parameters, sequences: Sequences, temperature = 1, r: Arithmetic = float64): Scored {
  const runs = sequences.map((ids) => forward(c, p, ids, undefined, 'state', [], r))
  const tables = runs.map(({ states }) =>
    states.map((rows) => rows.slice(0, -1).map((row) => logSoftmax(p, row, temperature, r))),
  )
  return {
    logprobs: tables.map((loops, i) => loops.flatMap((rows) => rows.map((row, j) => row[sequences[i]![j + 1]!]!))),
    entropy: tables.map((loops) => loops.flat().map((row) => -row.reduce((sum, l) => sum + Math.exp(l) * l, 0))),
    gateLogits: runs.map(({ states }) => states.flatMap((rows) => rows.map((row) => gateLogit(p, row, r)))),
  }
}

/** The truth, and evaluations whose errors are those of a dtype once multiplied by `scale`. */
export interface Yardstick {
  truth: Scored
  rounded: Scored[]
  scale: number
}

/** For a model's own parameters, or for others that it stands for. */
export async function yardstick(
  model: LoopLM,
  c: Sizes,
  sequences: Sequences,
  { temperature = 1, parameters }: { temperature?: number; parameters?: Parameters } = {},
): Promise<Yardstick> {
  // one kind of array keeps the loops over products fast
  const p = new Map([...(parameters ?? (await parametersOf(model)))].map(([name, values]) => [name, Float64Array.from(values)]))
  // Nothing finer than float64 is at hand: its errors are those of float32 in proportion, and the truth has them too.
  const scale = model.dtype === 'float64' ? (2 * unitRoundoff.float64) / unitRoundoff.float32 : 1
  const drawn = model.dtype === 'bfloat16' ? 'bfloat16' : 'float32'
  return {
    truth: evaluate(c, p, sequences, temperature),
    rounded: Array.from({ length: draws }, (_, seed) => evaluate(c, p, sequences, temperature, disturbed(drawn, seed))),
    scale,
  }
}

/** The same of any family, from its description. Inside a prompt that sees itself both ways log-probabilities mean nothing: omitted. */
export async function describedYardstick(
  model: LoopLM,
  sequences: Sequences,
  options: { promptLengths?: readonly number[]; initialStates?: readonly ArrayLike<number>[]; parameters?: Parameters } = {},
): Promise<Yardstick> {
  const a = model.architecture
  const own = options.parameters ?? (await parametersOf(model))
  const p = new Map([...own].map(([name, values]) => [name, Float64Array.from(values)]))
  const scored = (r: Arithmetic): Scored => {
    const tables = sequences.map((ids, i) => {
      const promptLength = options.promptLengths?.[i] ?? 1
      const states = describedStates(a, p, ids, { promptLength, initialStates: options.initialStates?.[i] ?? [], r })
      return states.map((rows) => rows.slice(promptLength - 1, -1).map((row) => describedLogSoftmax(a, p, row, 1, r)))
    })
    const target = (i: number, j: number) => sequences[i]![(options.promptLengths?.[i] ?? 1) + j]!
    return {
      logprobs: tables.map((loops, i) => loops.flatMap((rows) => rows.map((row, j) => row[target(i, j)]!))),
      entropy: tables.map((loops) => loops.flat().map((row) => -row.reduce((sum, l) => sum + Math.exp(l) * l, 0))),
      gateLogits: [],
    }
  }
  const dtype = model.dtype === 'bfloat16' ? 'bfloat16' : 'float32'
  const scale = model.dtype === 'float64' ? (2 * unitRoundoff.float64) / unitRoundoff.float32 : 1
  const rounded = Array.from({ length: draws }, (_, seed) => scored(disturbed(dtype, seed)))
  return { truth: scored(float64), rounded, scale }
}

const flat = (rows: readonly ArrayLike<number>[]) => rows.flatMap((row) => Array.from(row))
const distance = (a: readonly number[], b: readonly number[]) => Math.hypot(...a.map((v, i) => v - b[i]!))

/** Claims that numbers are near the ones that `pick` takes from the truth: ‖got - truth‖ ≤ 2 max ‖rounded - truth‖. */
export function expectRounded(got: ArrayLike<number>, of: Yardstick, pick: (scored: Scored) => ArrayLike<number>): void {
  const truth = Array.from(pick(of.truth))
  expect(got.length).toBe(truth.length)
  const farthest = Math.max(...of.rounded.map((scored) => distance(Array.from(pick(scored)), truth)))
  expect(distance(Array.from(got), truth)).toBeLessThanOrEqual(2 * of.scale * farthest)
}

/** The same of a whole score, each of its fields by itself. */
export function expectScores(got: Record<keyof Scored, ArrayLike<number>[]>, of: Yardstick): void {
  for (const field of ['logprobs', 'entropy', 'gateLogits'] as const)
    expectRounded(flat(got[field]), of, (scored) => flat(scored[field]))
}
