// Panels that the figures of both studies share.
import type { Panel, Series } from '../src/monitor/chart.js'
import { interval, type PairedTest } from './statistics.js'

export const figureWidth = 560

/** A series of mean accuracies with intervals, clipped to 0 and 1. `shift` separates neighbouring series. */
export function means(name: string, xs: readonly number[], values: readonly (readonly number[])[], shift = 0): Series {
  const estimates = values.map(interval)
  return {
    name,
    points: estimates.map(({ mean }, i) => [xs[i]! + shift, mean]),
    intervals: estimates.map(({ low, high }) => [Math.max(low, 0), Math.min(high, 1)]),
  }
}

export const across = (count: number, i: number, width: number) => (count < 2 ? 0 : (i / (count - 1) - 0.5) * width)

export const loopAxis = (loopCounts: readonly number[]) => ({ xLabel: 'loops', xTicks: loopCounts, xPadding: 0.2 })

/** Paired differences by loop, so that a claim can be read relative to the zero line. */
export function differencePanel(
  title: string,
  names: readonly string[],
  tests: readonly (readonly PairedTest[])[],
  loopCounts: readonly number[],
): Panel {
  const zero: Series = { name: 'zero', points: [loopCounts[0]!, loopCounts.at(-1)!].map((t) => [t, 0]) }
  const series = tests.map((list, i): Series => {
    const shift = across(tests.length, i, 0.24)
    return {
      name: names[i]!,
      points: list.map(({ mean }, t) => [loopCounts[t]! + shift, 100 * mean]),
      intervals: list.map(({ low, high }) => [100 * low, 100 * high]),
    }
  })
  const ends = tests.flat().flatMap(({ low, high }) => [100 * low, 100 * high])
  const yRange: [number, number] = [Math.min(-1, ...ends) - 0.5, Math.max(1, ...ends) + 0.5]
  return {
    ...loopAxis(loopCounts),
    title,
    yLabel: 'points, mean with 95 % interval; above zero is better',
    yRange,
    series: [zero, ...series],
  }
}
