import pc from 'picocolors'

/** The output of a progress line, for example `process.stderr`. */
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

/**
 * From left to right. On a narrow terminal, the fields with the highest number are dropped first. Fields without a number
 * always stay.
 */
const shown = [
  { name: 'reward', label: 'reward' },
  { name: 'loss', label: 'loss', goes: 1 },
  { name: 'entropy', label: 'entropy', goes: 3 },
  { name: 'exit_loop/mean', label: 'exit loop', goes: 4 },
  { name: 'grad_norm', label: 'grad norm', goes: 5 },
  { name: 'tokens_per_second', label: 'tokens/s', goes: 2 },
] as const

/**
 * A line that shows the progress of a run. On a terminal it is redrawn in place: step, remaining time and reward are always
 * shown, other fields if there is room. Otherwise one plain line is written every tenth of the run, so that a log stays short.
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
  #drawn = 0 // number of drawn rows on the terminal

  constructor(stream: ProgressStream) {
    this.#stream = stream
  }

  /** Shows a finished step. */
  update(state: ProgressState): void {
    const { step, steps } = state
    this.#firstStep ??= step - 1
    if (this.#stream.isTTY === true) {
      this.show(this.#fields(state))
    } else if (step === steps || step % Math.max(1, Math.round(steps / 10)) === 0) {
      this.#stream.write(
        `${this.#fields(state)
          .map((field) => write(field))
          .join('  ')}\n`,
      )
    }
  }

  /** Replaces the drawn fields. Does nothing if the stream is not a terminal. */
  show(fields: readonly ProgressField[]): void {
    if (this.#stream.isTTY !== true) return
    const colors = pc.createColors(pc.isColorSupported)
    const rows = arrange(fields, (this.#stream.columns ?? 80) - 1)
    const painted = rows.map((row) => row.map((field) => write(field, colors.dim, colors.bold)).join('  '))
    this.#stream.write(`${this.#over()}${painted.join('\n')}`)
    this.#drawn = rows.length
  }

  /** Writes a line above the progress line. */
  log(text: string): void {
    this.#stream.write(`${this.#over()}${text}\n`)
    this.#drawn = 0
  }

  /** Ends the line. Later output starts on a new line. */
  end(): void {
    if (this.#drawn > 0) this.#stream.write('\n')
    this.#drawn = 0
  }

  /** Moves to the start of the drawn rows and erases them. */
  #over(): string {
    if (this.#drawn === 0) return ''
    return `\r${this.#drawn > 1 ? `\x1b[${this.#drawn - 1}A` : ''}\x1b[J`
  }

  #fields({ step, steps, metrics }: ProgressState): ProgressField[] {
    const seconds = (performance.now() - this.#start) / 1000
    const remaining = (seconds / Math.max(step - (this.#firstStep ?? 0), 1)) * (steps - step)
    const measured = shown.flatMap(({ name, label, ...rest }): ProgressField[] => {
      const value = metrics[name]
      return value === undefined ? [] : [{ label, value: formatNumber(value), ...rest }]
    })
    return [
      { label: 'step', value: `${step}/${steps}`, bold: true },
      { label: 'left', value: formatDuration(remaining) },
      ...measured,
    ]
  }
}

/** A label with its value. */
export interface ProgressField {
  label: string
  value: string
  bold?: boolean
  /** On a narrow terminal, the fields with the highest number are dropped first. A field without a number always stays. */
  goes?: number
}

const plain = (text: string) => text
const write = ({ label, value, bold }: ProgressField, dim = plain, strong = plain) =>
  bold ? strong(`${label} ${value}`) : label === '' ? value : `${dim(label)} ${value}`
const width = (fields: readonly ProgressField[]) => fields.map((field) => write(field)).join('  ').length

/**
 * Arranges fields in rows of at most `columns` characters. First the less important fields are dropped, then labels; then the
 * remaining fields are put on separate rows.
 */
function arrange(fields: readonly ProgressField[], columns: number): ProgressField[][] {
  let left = [...fields]
  while (width(left) > columns && left.some(({ goes }) => goes !== undefined)) {
    const last = Math.max(...left.map(({ goes = 0 }) => goes))
    left = left.filter(({ goes }) => goes !== last)
  }
  if (width(left) <= columns) return [left]
  const rows: ProgressField[][] = []
  for (const field of left) {
    const short = width([field]) <= columns ? field : { ...field, label: '', bold: false }
    const row = rows.at(-1)
    if (row !== undefined && width([...row, short]) <= columns) row.push(short)
    else rows.push([short])
  }
  return rows
}

/** Three significant digits. Large numbers are rounded to integers. */
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
