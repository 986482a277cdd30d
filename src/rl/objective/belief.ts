import { native } from '../../native.js'
import { reduce, zScores } from './advantages.js'
import type { BeliefSpec } from './schema.js'

const smallest = 1e-6 // the logarithm of a belief of 0 is not finite

/**
 * The contribution of a belief curve to the advantage of every loop (IGPO, MRT, PAV, Clip and Delta; docs/objectives.md).
 *
 * @param spec its belief is `gold-answer` or `forced-exit`; the engine handles `token`
 * @param curves per sequence b_0..b_T in [0, 1]
 * @param groupSize consecutive sequences that form a group
 * @returns per sequence, T numbers: α · norm(G_t)
 */
export function beliefAdvantages(spec: BeliefSpec, curves: readonly ArrayLike<number>[], groupSize: number): number[][] {
  const rewards = {
    value: spec.value,
    attempts: spec.attempts,
    base: spec.base === 'previous' ? ('previous' as const) : ('none' as const),
    cost: spec.cost,
    clip: spec.clip,
    delta: spec.delta,
    discount: spec.base === 'group' ? 0 : spec.discount,
  }
  let returns = curves.map((curve) =>
    native().beliefReturns(
      rewards,
      Float64Array.from(curve, (b) => Math.log(Math.max(b, smallest))),
      0,
      1,
    ),
  )
  const groups = curves.map((_, i) => Math.floor(i / groupSize))
  const perLoop = (change: (values: number[]) => number[]) => {
    const loops = returns[0]?.map((_, t) => change(returns.map((row) => row[t]!))) ?? []
    returns = returns.map((_, i) => loops.map((column) => column[i]!))
  }
  if (spec.base === 'group') {
    perLoop((values) => {
      const means = reduce('mean', values, groups)
      return values.map((value, i) => value - means[groups[i]!]!)
    })
    for (const row of returns) for (let t = row.length - 2; t >= 0; t--) row[t]! += spec.discount * row[t + 1]!
  }
  if (spec.normalize === 'group') perLoop((values) => zScores(values, groups, 1e-6) as number[])
  if (spec.normalize === 'loops' || spec.normalize === 'gain') {
    returns = returns.map((row) => {
      const scores = zScores(
        row,
        row.map(() => 0),
        1e-8,
      ) as number[]
      return spec.normalize === 'gain' ? scores.map((z) => Math.max(0, z)) : scores
    })
  }
  return returns.map((row) => row.map((g) => spec.scale * g))
}
