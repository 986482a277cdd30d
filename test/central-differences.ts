// Gradients against central differences of a loss that an independent implementation computes.
import { expect } from 'vitest'
import { norm } from './golden-files.js'
import type { Parameters } from './looped-model.js'

/**
 * Claims that gradients are the derivative of `loss` at `own`: along one direction per parameter, in which every weight of it counts.
 *
 * @returns the largest error
 * @param bound on the error, relative to the derivative or to a hundredth of all of them together
 */
export function expectDerivative(
  gradients: ReadonlyMap<string, ArrayLike<number>>,
  own: Parameters,
  loss: (parameters: Parameters) => number,
  bound = 1e-6,
): number {
  const step = 3e-6 // small beside weights of 0.02, whose third derivatives are large
  const [wanted, got]: [number[], number[]] = [[], []]
  for (const [name, gradient] of gradients) {
    const direction = Array.from(gradient, (_, i) => Math.sin(1 + 7 * i + name.length))
    const at = (size: number) =>
      loss(
        new Map(own).set(
          name,
          Float64Array.from(own.get(name)!, (v, i) => v + size * direction[i]!),
        ),
      )
    wanted.push((at(step) - at(-step)) / (2 * step))
    got.push(Array.from(gradient).reduce((sum, g, i) => sum + g * direction[i]!, 0))
  }
  expect(norm(wanted)).toBeGreaterThan(0)
  const errors = wanted.map((value, k) => Math.abs(got[k]! - value) / Math.max(Math.abs(value), 1e-2 * norm(wanted)))
  for (const [k, name] of [...gradients.keys()].entries()) expect(errors[k], name).toBeLessThan(bound)
  return Math.max(...errors)
}
