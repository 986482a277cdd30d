import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { LoopLM } from '../model/model.js'
import type { RunFacts } from '../monitor/logger.js'
import { formatDuration, formatNumber } from '../monitor/progress.js'
import type { Metrics, TrainerEvent } from '../rl/events.js'

/** The fields of a trainer that a banner and a summary read. */
interface SummarizedTrainer {
  readonly name: string
  readonly model: LoopLM
  readonly step: number
  readonly config: {
    steps: number
    runDir?: string | undefined
    batchSize?: number
    promptsPerStep?: number
    groupSize?: number
    gradientAccumulation?: number
  }
  readonly best: { step: number; value: number; path?: string } | undefined
}

/** The lines at the beginning of a run: the model, the data, the device, and how to watch it. */
export function banner(trainer: SummarizedTrainer, { parameters, trained, data, rows }: RunFacts): string {
  const { name, model, step, config } = trainer
  const { steps, runDir, batchSize, promptsPerStep = 1, groupSize, gradientAccumulation = 1 } = config
  const { device, dtype, threads } = model.place
  const learns = trained === parameters ? '' : `, ${formatNumber(trained)} trained`
  const on = `${dtype} on ${device}${threads === undefined ? '' : `, ${threads} ${threads === 1 ? 'thread' : 'threads'}`}`
  const prompts = batchSize ?? promptsPerStep * gradientAccumulation
  const each = groupSize === undefined ? `${prompts} sequences` : `${prompts} × ${groupSize} completions`
  const epochs = rows === undefined ? '' : `, ${formatNumber((steps * prompts) / rows)} epochs`
  return [
    `${name}: ${formatNumber(parameters)} parameters${learns}, ${on}`,
    `${data}: ${steps} steps of ${each}${epochs}${step === 0 ? '' : `; continues from step ${step}`}`,
    runDir === undefined ? 'no run folder (--run-dir): nothing is saved' : `${runDir}; watch it with: looplm watch ${runDir}`,
  ].join('\n')
}

/** Follows the events of a run and summarizes its results at the end. */
export class RunSummary {
  readonly #trainer: SummarizedTrainer
  readonly #start = performance.now()
  #evaluations: { step: number; metrics: Metrics }[] = []
  /** The newest checkpoint. */
  checkpoint: string | undefined
  /** The newest event. */
  last: TrainerEvent | undefined

  constructor(trainer: SummarizedTrainer) {
    this.#trainer = trainer
  }

  add(event: TrainerEvent): void {
    this.last = event
    if (event.type === 'checkpoint') this.checkpoint = event.path
    if (event.type === 'eval') this.#evaluations.push(event)
  }

  /** The summary of a run that ended normally. */
  text(): string {
    const { last } = this
    if (last?.type !== 'done') return ''
    const { loss, reward } = last.metrics
    if (loss === undefined) {
      const { step } = last
      const why = last.stoppedEarly
        ? 'earlyStoppingPatience ran out'
        : `the run has made its ${step} steps; continue it with --set steps=…`
      return `nothing was left to do: ${why}`
    }
    const earned = reward === undefined ? '' : `, reward ${formatNumber(reward)}`
    const why = last.stoppedEarly ? ' (earlyStoppingPatience ran out)' : ''
    const time = formatDuration((performance.now() - this.#start) / 1000)
    const { runDir } = this.#trainer.config
    const report = runDir === undefined ? undefined : join(runDir, 'report.html')
    return [
      `done after ${last.step} steps in ${time}${why}: loss ${formatNumber(loss)}${earned}`,
      ...this.#best(),
      ...(this.checkpoint === undefined ? [] : [`checkpoint ${this.checkpoint}`]),
      ...(report !== undefined && existsSync(report) ? [`report     ${report}`] : []),
    ].join('\n')
  }

  /** The best evaluation: by `metricForBestModel`, else by the reward, accuracy or loss at the largest number of loops. */
  #best(): string[] {
    const chosen = this.#trainer.best
    if (chosen !== undefined) {
      const { step, value, path } = chosen
      return [`best       ${formatNumber(value)} at step ${step}${path === undefined ? '' : ` (${path})`}`]
    }
    const names = Object.keys(this.#evaluations[0]?.metrics ?? {}).filter((name) =>
      /^eval\/loop_\d+\/(reward|accuracy)$/.test(name),
    )
    const name = names.at(-1)
    if (name === undefined) return []
    const ranked = [...this.#evaluations].sort((a, b) => (b.metrics[name] ?? 0) - (a.metrics[name] ?? 0))
    const start = this.#evaluations[0]!
    const from = this.#evaluations.length > 1 ? `, ${formatNumber(start.metrics[name] ?? 0)} at step ${start.step}` : ''
    return [`best       ${name} ${formatNumber(ranked[0]!.metrics[name] ?? 0)} at step ${ranked[0]!.step}${from}`]
  }
}

/** The rewards, accuracies and losses of an evaluation, in one line. */
export function evaluationText(metrics: Readonly<Record<string, number>>): string {
  const shown = Object.entries(metrics).flatMap(([name, value]) => {
    const [, where, what] = /^eval\/(.+)\/(reward|accuracy)$/.exec(name) ?? []
    if (where === undefined) return []
    const [low, high] = [metrics[`${name}_low`], metrics[`${name}_high`]]
    const between = low === undefined || high === undefined ? '' : ` (${formatNumber(low)} to ${formatNumber(high)})`
    return [`${where} ${what === 'reward' ? '' : 'accuracy '}${formatNumber(value)}${between}`]
  })
  return shown.join('  ')
}
