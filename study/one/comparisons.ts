// Measurements of the stored runs, and paired comparisons of methods on the same bases.

import { corrected, type Outcome, type PairedTest, pairedTest } from '../statistics.js'
import { baseId, basesOf, chosenRate, methods, type Part, settings, trainingId } from './plan.js'
import type { BaseResult, Measurement, Result, Tercile, TrainingResult } from './results.js'

export type Results = ReadonlyMap<string, Result>

export const loopCounts = Array.from({ length: settings.model.total_ut_steps }, (_, i) => i + 1)
const fewestBases = 3 // a paired test on two pairs is useless
export const terciles = ['easy', 'medium', 'hard'] as const
/** The methods of part b that are compared, with `looprpt` first. */
export const arms = ['looprpt', 'base', 'stage1', 'stage1-equal-data']

export function partMethods(part: Part): string[] {
  return Object.keys(methods).filter((name) => methods[name]!.part === part)
}

export const drawnMethods = (part: Part) => partMethods(part).filter((name) => methods[name]!.drawn !== false)

/** The final runs of a method on the first bases of its part, as far as they exist. undefined if there are fewer than three. */
export function finalRuns(results: Results, method: string): TrainingResult[] | undefined {
  const rate = chosenRate(method, results)
  if (rate === undefined) return undefined
  const runs: TrainingResult[] = []
  for (const base of basesOf(methods[method]!.part)) {
    const run = results.get(trainingId(method, base, rate)) as TrainingResult | undefined
    if (run === undefined) break
    runs.push(run)
  }
  return runs.length < fewestBases ? undefined : runs
}

/**
 * The measurements of the bases, or of the models that a method trained from them: one per base, of at most the first `bases`.
 */
export function measurements(results: Results, method: string, bases: number = settings.bases.length): Measurement[] | undefined {
  if (method !== 'base')
    return finalRuns(results, method)
      ?.slice(0, bases)
      .map(({ final }) => final)
  const runs = settings.bases.slice(0, bases).map((base) => results.get(baseId(base)) as BaseResult | undefined)
  return runs.includes(undefined) ? undefined : runs.map((run) => run!.final)
}

export const available = (results: Results, names: readonly string[]) =>
  names.filter((name) => measurements(results, name) !== undefined)
export const label = (method: string) => (method === 'base' ? 'base' : methods[method]!.label)

export function paired(results: Results, method: string, reference: string, of: (m: Measurement) => number): PairedTest {
  const own = measurements(results, method)!
  return pairedTest(own.map(of), measurements(results, reference, own.length)!.map(of))
}

/** One comparison of two methods on the same bases. */
export interface Comparison extends Outcome {
  name: string
  reference: string
  tokens?: Tercile
  loop: number
  of: (measurement: Measurement) => number
}

function compare(
  results: Results,
  questions: readonly Pick<Comparison, 'name' | 'reference' | 'tokens' | 'loop' | 'of'>[],
): Comparison[] {
  const pairs = questions.map(({ name, reference, of }) => {
    const own = measurements(results, name)!
    return { own: own.map(of), others: measurements(results, reference, own.length)!.map(of) }
  })
  const outcomes = corrected(pairs)
  return questions.map((question, i) => ({ ...question, ...outcomes[i]! }))
}

/** Greedy accuracy of each method against the reference, by loop count. */
export function loopComparisons(
  results: Results,
  names: readonly string[],
  reference: string,
  loops: readonly number[] = loopCounts,
): Comparison[] {
  if (measurements(results, reference) === undefined) return []
  const of = (loop: number) => (m: Measurement) => m.accuracy[loop - 1]!
  return compare(
    results,
    available(results, names).flatMap((name) => loops.map((loop) => ({ name, reference, loop, of: of(loop) }))),
  )
}

export function tokenComparisons(results: Results): Comparison[] {
  if (measurements(results, 'looprpt') === undefined) return []
  const [name, base, ...others] = arms
  const families = [
    ...terciles.map((tokens) => ({ tokens, reference: base! })),
    ...others.map((reference) => ({ tokens: 'hard' as const, reference })),
  ].filter(({ reference }) => measurements(results, reference) !== undefined)
  return compare(
    results,
    families.flatMap(({ tokens, reference }) =>
      loopCounts.map((loop) => ({
        ...{ name: name!, reference, tokens, loop },
        of: (m: Measurement) => m.tokens[tokens][loop - 1]!,
      })),
    ),
  )
}

/** The number of first bases that all these methods have runs for. */
export function commonBases(results: Results, names: readonly string[]): number {
  return Math.min(...names.map((name) => measurements(results, name)!.length))
}
