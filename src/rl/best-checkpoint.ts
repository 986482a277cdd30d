import { LoopLMError } from '../errors.js'
import type { Metrics } from './events.js'
import type { TrainerConfig } from './options.js'

/** An evaluation and its value of `metricForBestModel`. */
export interface RankedStep {
  step: number
  value: number
  /** Its checkpoint, if that is in the folder of another run, which this run continues. */
  path?: string | undefined
}

/** A held-out metric that is worse than at the first evaluation. */
export interface Fall {
  metric: string
  before: number
  after: number
  /** The steps of the two evaluations. */
  from: number
  to: number
}

/** The state of {@link BestCheckpoints}, which is part of a checkpoint. */
export interface BestCheckpointsState {
  /** Step of the newest evaluation. -1: none yet. */
  evaluated: number
  /** Number of evaluations since the last one that improved on all earlier ones by more than `earlyStoppingThreshold`. */
  stalled: number
  /** The best evaluations, best first, at most `saveBest`. The evaluation before the first step is a candidate too. */
  best: RankedStep[]
  /** The first evaluation, with its finite metrics. */
  firstEvaluation?: { step: number; metrics: Metrics } | undefined
}

/** Follows the evaluations of a run: which steps are best, and when to stop early. */
export class BestCheckpoints {
  readonly #config: TrainerConfig
  readonly #sign: 1 | -1
  readonly #size: number
  #state: BestCheckpointsState = { evaluated: -1, stalled: 0, best: [] }
  #newest: Metrics = {}

  constructor(config: TrainerConfig) {
    const { metricForBestModel = '', greaterIsBetter = !metricForBestModel.endsWith('loss'), saveBest = 1 } = config
    this.#config = config
    this.#sign = greaterIsBetter ? 1 : -1
    this.#size = saveBest
  }

  get state(): BestCheckpointsState {
    return this.#state
  }

  set state({ evaluated, stalled, best, firstEvaluation }: BestCheckpointsState) {
    this.#state = { evaluated, stalled, best: this.#ranked(best), firstEvaluation }
    this.#newest = {}
  }

  /** The best evaluation so far. */
  get best(): RankedStep | undefined {
    return this.#state.best[0]
  }

  /** Whether `earlyStoppingPatience` has run out. */
  get exhausted(): boolean {
    return this.#state.stalled >= (this.#config.earlyStoppingPatience ?? Number.POSITIVE_INFINITY)
  }

  /** Whether a step is among the best. */
  holds(step: number): boolean {
    return this.#state.best.some((ranked) => ranked.step === step)
  }

  /**
   * Adds the metrics of an evaluation.
   *
   * @throws LoopLMError INVALID_CONFIG if they do not contain `metricForBestModel`
   */
  add(step: number, metrics: Metrics): void {
    const { metricForBestModel: name, earlyStoppingThreshold } = this.#config
    const { best, stalled } = this.#state
    const finite = Object.fromEntries(Object.entries(metrics).filter(([, value]) => Number.isFinite(value)))
    this.#newest = metrics
    this.#state = { ...this.#state, evaluated: step, firstEvaluation: this.#state.firstEvaluation ?? { step, metrics: finite } }
    if (name === undefined) return
    const value = metricOf(metrics, name)
    if (value === undefined) {
      const message = `metricForBestModel: an evaluation has no metric ${JSON.stringify(name)}; it has ${Object.keys(metrics).join(', ')}`
      throw new LoopLMError('INVALID_CONFIG', message, { operation: 'run' })
    }
    const better = best[0] === undefined || this.#sign * (value - best[0].value) > earlyStoppingThreshold
    this.#state = { ...this.#state, stalled: better ? 0 : stalled + 1, best: this.#ranked([...best, { step, value }]) }
  }

  /**
   * The metrics that the newest evaluation of this run measured as worse than the first one: `metricForBestModel` or, if it is
   * not set, rewards, accuracies and losses at the largest number of loops.
   */
  falls(): Fall[] {
    const { firstEvaluation: first, evaluated: to } = this.#state
    if (first === undefined || first.step >= to) return []
    const { metricForBestModel: chosen } = this.#config
    const names = chosen === undefined ? leadingMetrics(Object.keys(this.#newest)) : [chosen]
    return names.flatMap((metric) => {
      const [before, after] = [metricOf(first.metrics, metric), metricOf(this.#newest, metric)]
      if (before === undefined || after === undefined) return []
      const sign = chosen === undefined ? (metric.endsWith('loss') ? -1 : 1) : this.#sign
      return sign * (after - before) < 0 ? [{ metric, before, after, from: first.step, to }] : []
    })
  }

  /** Sorts best first; the earlier one wins a tie. Values that are not finite are dropped. */
  #ranked(list: readonly RankedStep[]): RankedStep[] {
    if (this.#config.metricForBestModel === undefined) return []
    const numbers = list.filter(({ value }) => Number.isFinite(value))
    return numbers.sort((a, b) => this.#sign * (b.value - a.value) || a.step - b.step).slice(0, this.#size)
  }
}

/** Looks up a metric by its name, with or without the prefix `eval/`. */
function metricOf(metrics: Metrics, name: string): number | undefined {
  return [name, `eval/${name}`].filter((key) => Object.hasOwn(metrics, key)).map((key) => metrics[key]!)[0]
}

/** For each quantity that is measured per loop, the metric at the largest number of loops. */
function leadingMetrics(names: readonly string[]): string[] {
  const deepest = new Map<string, { name: string; loops: number }>()
  for (const name of names) {
    const [, prefix, loops, quantity] = /^(.+)\/loop_(\d+)\/(reward|accuracy|loss)$/.exec(name) ?? []
    if (prefix === undefined) continue
    const key = `${prefix} ${quantity}`
    if (Number(loops) > (deepest.get(key)?.loops ?? 0)) deepest.set(key, { name, loops: Number(loops) })
  }
  return [...deepest.values()].map(({ name }) => name)
}
