import { LoopLMError } from '../errors.js'
import type { TrainerConfig } from './config.js'
import type { Metrics } from './events.js'

/** An evaluation and its value of `metricForBestModel`. */
export interface RankedStep {
  step: number
  value: number
}

/** What {@link Selection} knows; part of a checkpoint. */
export interface SelectionState {
  /** Step of the newest evaluation; 0: none yet. */
  evaluated: number
  /** Evaluations since the last one that was better than all before it by more than `earlyStoppingThreshold`. */
  stalled: number
  /** The best evaluations, best first, at most `saveBest`. */
  best: RankedStep[]
}

/** Follows the evaluations of a run: which steps are best, and when patience has run out. */
export class Selection {
  readonly #config: TrainerConfig
  readonly #sign: 1 | -1
  readonly #size: number
  #state: SelectionState = { evaluated: 0, stalled: 0, best: [] }

  constructor(config: TrainerConfig) {
    const { metricForBestModel = '', greaterIsBetter = !metricForBestModel.endsWith('loss'), saveBest = 1 } = config
    this.#config = config
    this.#sign = greaterIsBetter ? 1 : -1
    this.#size = saveBest
  }

  get state(): SelectionState {
    return this.#state
  }

  set state({ evaluated, stalled, best }: SelectionState) {
    this.#state = { evaluated, stalled, best: this.#ranked(best) }
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
   * Takes the metrics of an evaluation.
   *
   * @throws LoopLMError INVALID_CONFIG when they have no `metricForBestModel`
   */
  add(step: number, metrics: Metrics): void {
    const { metricForBestModel: name, earlyStoppingThreshold } = this.#config
    const { best, stalled } = this.#state
    this.#state = { ...this.#state, evaluated: step }
    if (name === undefined) return
    const known = [name, `eval/${name}`].find((full) => Object.hasOwn(metrics, full)) // not of Object's own: toString
    const value = known === undefined ? undefined : metrics[known]
    if (value === undefined) {
      const message = `metricForBestModel: an evaluation has no metric ${JSON.stringify(name)}; it has ${Object.keys(metrics).join(', ')}`
      throw new LoopLMError('INVALID_CONFIG', message, { operation: 'run' })
    }
    const better = best[0] === undefined || this.#sign * (value - best[0].value) > earlyStoppingThreshold
    this.#state = { evaluated: step, stalled: better ? 0 : stalled + 1, best: this.#ranked([...best, { step, value }]) }
  }

  /** Best first; of equal ones the earlier. A value that is not a number is never among them. */
  #ranked(list: readonly RankedStep[]): RankedStep[] {
    if (this.#config.metricForBestModel === undefined) return []
    const numbers = list.filter(({ value }) => Number.isFinite(value))
    return numbers.sort((a, b) => this.#sign * (b.value - a.value) || a.step - b.step).slice(0, this.#size)
  }
}
