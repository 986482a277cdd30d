import type { LossMetrics } from '../model/types.js'
import type { Metrics } from './events.js'

/**
 * The engine's measurements under TRL's names. Loops that were not scored have no entry. The loss always has an entry, even if
 * it is NaN.
 *
 * @param loss from `LoopLM.accumulateLoss`
 * @param terms which optional terms the objective has
 */
export function lossMetrics(loss: LossMetrics, terms: { ratio: boolean; kl: boolean }): Metrics & { loss: number } {
  const metrics: Metrics = { entropy: loss.entropy }
  if (terms.kl) Object.assign(metrics, { policy_loss: loss.policyLoss, kl: loss.kl })
  if (terms.ratio) {
    metrics['ratio/mean'] = loss.ratio
    metrics['clip_ratio/low_mean'] = loss.clipLow
    metrics['clip_ratio/high_mean'] = loss.clipHigh
    metrics['clip_ratio/region_mean'] = loss.clipLow + loss.clipHigh
  }
  metrics['exit_loop/mean'] = loss.exitLoop
  metrics.exit_entropy = loss.exitEntropy
  for (const [name, values] of [
    ['logprob', loss.loopLogprob],
    ['weight', loss.loopWeight],
    ['exit_prob', loss.loopExit],
  ] as const) {
    for (const [loop, value] of values.entries()) metrics[`loop_${loss.loops[loop]!}/${name}`] = value
  }
  return { loss: loss.loss, ...Object.fromEntries(Object.entries(metrics).filter(([, value]) => !Number.isNaN(value))) }
}

/** The mean of each metric over the entries that have it. */
export function meanMetrics(list: readonly Metrics[]): Metrics {
  const names = new Set(list.flatMap((metrics) => Object.keys(metrics)))
  const means: Metrics = {}
  for (const name of names) {
    const values = list.map((metrics) => metrics[name]).filter((value) => value !== undefined)
    means[name] = values.reduce((sum, value) => sum + value, 0) / values.length
  }
  return means
}

/** The loss and metrics of this process. */
export interface Measured {
  metrics: Metrics & { loss: number }
  /** Weight of this process's means among those of the other processes, for example its number of tokens. */
  weight: number
  /** The metrics that are sums over the processes. All others are means. */
  sums: readonly string[]
}

/** Combines the metrics of the shares of a batch: sums, and weighted means. */
export function sharedMetrics(shares: readonly Measured[]): Metrics & { loss: number } {
  const [first] = shares
  if (first === undefined) return { loss: 0 }
  if (shares.length === 1) return first.metrics
  const totals: Metrics & { loss: number } = { loss: 0 }
  for (const name of new Set(shares.flatMap(({ metrics }) => Object.keys(metrics)))) {
    const known = shares.filter(({ metrics }) => metrics[name] !== undefined)
    const sum = first.sums.includes(name)
    const weight = sum ? 1 : known.reduce((total, share) => total + share.weight, 0)
    totals[name] = known.reduce((total, share) => total + (sum ? 1 : share.weight) * share.metrics[name]!, 0) / (weight || 1)
  }
  return totals
}
