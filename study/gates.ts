// Accuracy under gate exits as a function of mean loops.
import { mean } from './statistics.js'

/** Accuracy and mean loops per token with the gate's exits at a threshold. */
export interface GatePoint {
  accuracy: number
  loops: number
}

/** Interpolates the accuracy between the measured thresholds. */
function accuracyAt(gates: readonly GatePoint[], loops: number): number {
  const points = gates.toSorted((a, b) => a.loops - b.loops)
  const above = points.findIndex((point) => point.loops >= loops)
  const high = points[above]!
  const low = points[Math.max(above - 1, 0)]!
  if (high.loops === low.loops) return high.accuracy
  return low.accuracy + ((high.accuracy - low.accuracy) * (loops - low.loops)) / (high.loops - low.loops)
}

/**
 * Mean accuracy of two models over the range of mean loops, from `least` to `most`, that both reach. undefined if there is no
 * such range.
 */
export function atEqualLoops(
  own: readonly GatePoint[],
  other: readonly GatePoint[],
  most: number,
  least = 1,
): readonly [number, number] | undefined {
  const reached = (gates: readonly GatePoint[], of: typeof Math.min) => of(...gates.map(({ loops }) => loops))
  const fewest = Math.max(least, reached(own, Math.min), reached(other, Math.min))
  const deepest = Math.min(most, reached(own, Math.max), reached(other, Math.max))
  if (deepest < fewest) return undefined
  const grid = Array.from({ length: 101 }, (_, k) => Math.min(deepest, fewest + ((deepest - fewest) * k) / 100))
  return [mean(grid.map((loops) => accuracyAt(own, loops))), mean(grid.map((loops) => accuracyAt(other, loops)))]
}
