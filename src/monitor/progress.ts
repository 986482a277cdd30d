import { stripVTControlCharacters } from 'node:util'
import pc from 'picocolors'

/** Where a progress line goes; `process.stderr` fits. */
export interface ProgressStream {
  isTTY?: boolean
  columns?: number
  write(text: string): unknown
}

/** What the line shows. */
export interface ProgressState {
  step: number
  steps: number
  metrics: Readonly<Record<string, number>>
}

const shown = [
  ['loss', 'loss'],
  ['reward', 'reward'],
  ['entropy', 'entropy'],
  ['exit_loop/mean', 'exit loop'],
  ['grad_norm', 'grad norm'],
  ['tokens_per_second', 'tokens/s'],
] as const

/**
 * A line that shows how a run goes. On a terminal it is redrawn in place; elsewhere one plain line is written every tenth of the
 * run, so that a log stays short.
 *
 * @example
 * ```ts
 * const progress = new Progress(process.stderr)
 * progress.update({ step: 1, steps: 100, metrics: { loss: 0.5 } })
 * progress.end()
 * ```
 */
export class Progress {
  readonly #stream: ProgressStream
  readonly #start = performance.now()
  #firstStep: number | undefined
  #drawn = false

  constructor(stream: ProgressStream) {
    this.#stream = stream
  }

  /** Shows a finished step. */
  update(state: ProgressState): void {
    const { step, steps } = state
    this.#firstStep ??= step - 1
    if (this.#stream.isTTY === true) {
      this.#stream.write(`\r\x1b[2K${clip(this.#line(state), this.#stream.columns ?? 80)}`)
      this.#drawn = true
    } else if (step === steps || step % Math.max(1, Math.round(steps / 10)) === 0) {
      this.#stream.write(`${this.#line(state)}\n`)
    }
  }

  /** Writes a line above the progress line. */
  log(text: string): void {
    this.#stream.write(`${this.#drawn ? '\r\x1b[2K' : ''}${text}\n`)
    this.#drawn = false
  }

  /** Ends the line; what is written next starts on a new one. */
  end(): void {
    if (this.#drawn) this.#stream.write('\n')
    this.#drawn = false
  }

  #line({ step, steps, metrics }: ProgressState): string {
    const colors = pc.createColors(this.#stream.isTTY === true && pc.isColorSupported)
    const seconds = (performance.now() - this.#start) / 1000
    const remaining = (seconds / Math.max(step - (this.#firstStep ?? 0), 1)) * (steps - step)
    const parts = shown
      .filter(([name]) => metrics[name] !== undefined)
      .map(([name, label]) => `${colors.dim(label)} ${formatNumber(metrics[name]!)}`)
    return [`${colors.bold(`step ${step}/${steps}`)}`, ...parts, `${colors.dim('left')} ${formatDuration(remaining)}`].join('  ')
  }
}

/** Three significant digits; large numbers whole. */
export function formatNumber(value: number): string {
  if (value === 0) return '0'
  const size = Math.abs(value)
  if (size >= 1000) return Math.round(value).toLocaleString('en-US')
  return size < 1e-3 ? value.toExponential(2) : value.toPrecision(3)
}

/** Seconds as `42s`, `3m10s` or `2h05m`. */
export function formatDuration(seconds: number): string {
  const total = Math.round(seconds)
  if (total < 60) return `${total}s`
  const minutes = Math.floor(total / 60)
  if (minutes < 60) return `${minutes}m${String(total % 60).padStart(2, '0')}s`
  return `${Math.floor(minutes / 60)}h${String(minutes % 60).padStart(2, '0')}m`
}

/** Cuts a line to a width, so that it never wraps; a line that is cut loses its colours. */
function clip(line: string, columns: number): string {
  const plain = stripVTControlCharacters(line)
  return plain.length < columns ? line : plain.slice(0, columns - 1)
}
