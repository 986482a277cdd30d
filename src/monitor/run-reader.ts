import { constants } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { parseYaml, yamlValue } from '../data/yaml.js'
import { LoopLMError } from '../errors.js'
import { readText } from '../files/read.js'
import type { CompletionGroup, Curve, ReportNote, RunData } from './report-data.js'
import { files } from './run-folder.js'

const limits = {
  points: 2000, // points of a curve; a screen has fewer pixels
  completionSteps: 40,
  text: 4000, // characters of a prompt or a completion
  names: 500, // different metrics
  config: 2 ** 18, // in bytes
  notes: 200,
  line: 2 ** 24, // in bytes
}

/**
 * Reads a run's folder while another process may be writing to it: every call reads what was added since the last one.
 * metrics.jsonl is authoritative. An incomplete last line is left for the next call, and lines that are not JSON are skipped.
 *
 * @example
 * ```ts
 * const run = await new RunReader('runs/addition').read()
 * console.log(run.step, run.curves.reward?.last)
 * ```
 */
export class RunReader {
  /** The folder of the run. */
  readonly path: string
  readonly #metrics: LineFile
  readonly #completions: LineFile
  readonly #noted: LineFile
  #series = new Map<string, { steps: number[]; values: number[] }>()
  #samples = new Map<number, CompletionGroup[]>()
  #step = 0
  #notes: ReportNote[] = []
  /** Times in milliseconds at which the run began or resumed, and those of its lines. */
  #begins: number[] = []
  #times: number[] = []

  /** @param path the run's folder; it may be empty, but must exist when {@link RunReader.read} is called */
  constructor(path: string) {
    this.path = resolve(path)
    this.#metrics = new LineFile(join(this.path, files.metrics))
    this.#completions = new LineFile(join(this.path, files.completions))
    this.#noted = new LineFile(join(this.path, files.notes))
  }

  /** A string that changes when the run's files change. */
  async version(): Promise<string> {
    const names = [...Object.values(files), 'config.yaml', 'run.json']
    const parts = names.map((name) =>
      stat(join(this.path, name)).then(
        ({ ino, size, mtimeMs }) => `${ino}-${size}-${mtimeMs}`,
        () => 'none',
      ),
    )
    return (await Promise.all(parts)).join(' ')
  }

  /**
   * Reads what was added since the last call, and returns everything known about the run.
   *
   * @throws LoopLMError NOT_FOUND if the folder does not exist
   */
  async read(): Promise<RunData> {
    const folder = await stat(this.path).catch(() => undefined)
    if (!folder?.isDirectory()) throw new LoopLMError('NOT_FOUND', `no run folder ${this.path}`, { operation: 'report' })
    await this.#metrics.read(
      () => {
        this.#series = new Map()
        this.#step = 0
        this.#times = []
      },
      (record) => this.#addMetrics(record),
    )
    await this.#completions.read(
      () => {
        this.#samples = new Map()
      },
      (record) => this.#addCompletion(record),
    )
    await this.#noted.read(
      () => {
        this.#notes = []
        this.#begins = []
      },
      (record) => this.#addNote(record),
    )
    const config = await readConfig(this.path)
    const strideOf = (steps: readonly number[]) => Math.max(1, Math.ceil(steps.length / limits.points))
    const stepsPerPoint = [...this.#series.values()].reduce((most, { steps }) => Math.max(most, strideOf(steps)), 1)
    return {
      name: basename(this.path),
      step: this.#step,
      ...config,
      curves: withIntervals([...this.#series].map(([name, { steps, values }]) => [name, curve(steps, values, strideOf(steps))])),
      seconds: elapsed(this.#begins, this.#times),
      notes: this.#notes,
      completions: spread([...this.#samples.keys()].sort((a, b) => a - b)).map((step) => ({
        step,
        groups: this.#samples.get(step)!,
      })),
      stepsPerPoint,
    }
  }

  #addMetrics(record: Record<string, unknown>): void {
    const { step } = record
    if (!isStep(step)) return
    this.#step = Math.max(this.#step, step)
    const time = timeOf(record)
    if (time !== undefined) this.#times.push(time)
    for (const [name, value] of Object.entries(record)) {
      if (name === 'step' || typeof value !== 'number') continue
      const known = this.#series.get(name)
      if (known === undefined && this.#series.size >= limits.names) continue
      const series = known ?? { steps: [], values: [] }
      this.#series.set(name, series)
      if (step <= (series.steps.at(-1) ?? -1)) continue // two processes write the same run
      series.steps.push(step)
      series.values.push(value)
    }
  }

  #addNote(record: Record<string, unknown>): void {
    const { type, step, message = '' } = record
    if (!isStep(step) || typeof message !== 'string') return
    const time = timeOf(record)
    if ((type === 'begin' || type === 'resume') && time !== undefined) this.#begins.push(time)
    if ((type !== 'resume' && type !== 'warning') || this.#notes.length >= limits.notes) return
    this.#notes.push({ type, step, message: shorten(message) })
  }

  #addCompletion({ step, prompt, completion, answer, reward, rewards }: Record<string, unknown>): void {
    if (!isStep(step) || typeof prompt !== 'string' || typeof completion !== 'string') return
    const groups = this.#samples.get(step) ?? []
    if (groups.length === 0) this.#thinOut()
    this.#samples.set(step, groups)
    const shown = shorten(prompt)
    if (groups.at(-1)?.prompt !== shown) groups.push({ prompt: shown, answer: answerText(answer), completions: [] })
    const byName = Object.entries(typeof rewards === 'object' && rewards !== null ? rewards : {})
    const scores = byName.filter((entry): entry is [string, number] => typeof entry[1] === 'number')
    const total = typeof reward === 'number' ? reward : null
    groups.at(-1)!.completions.push({ text: shorten(completion), reward: total, rewards: Object.fromEntries(scores) })
  }

  /** Bounds the memory for a long file: keeps evenly spaced steps. */
  #thinOut(): void {
    if (this.#samples.size < 4 * limits.completionSteps) return
    const kept = new Set(spread([...this.#samples.keys()]))
    for (const step of this.#samples.keys()) if (!kept.has(step)) this.#samples.delete(step)
  }
}

/** The complete lines of a file that grows. */
class LineFile {
  readonly #path: string
  #inode: number | bigint | undefined
  #offset = 0 // position after the last complete line

  constructor(path: string) {
    this.#path = path
  }

  /**
   * Reads what was added.
   *
   * @param restart called first if the file has been replaced: a resumed run has dropped lines
   */
  async read(restart: () => void, line: (record: Record<string, unknown>) => void): Promise<void> {
    // without O_NONBLOCK, opening a pipe would wait for a writer
    const file = await open(this.#path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0)).catch(() => undefined)
    try {
      const now = await file?.stat()
      if (now === undefined || now.ino !== this.#inode || now.size < this.#offset) {
        this.#inode = now?.ino
        this.#offset = 0
        restart()
      }
      if (file !== undefined && now!.isFile()) await this.#readLines(file, line)
    } finally {
      await file?.close()
    }
  }

  async #readLines(file: FileHandle, line: (record: Record<string, unknown>) => void): Promise<void> {
    const chunk = Buffer.alloc(2 ** 16)
    let pending: Buffer[] = []
    let position = this.#offset
    while (true) {
      const { bytesRead } = await file.read(chunk, 0, chunk.length, position)
      if (bytesRead === 0) return
      let start = 0
      for (let end = chunk.indexOf(10); end !== -1 && end < bytesRead; end = chunk.indexOf(10, start)) {
        const record = parseLine(Buffer.concat([...pending, chunk.subarray(start, end)]))
        if (record !== undefined) line(record)
        pending = []
        start = end + 1
        this.#offset = position + start
      }
      const rest = Buffer.from(chunk.subarray(start, bytesRead))
      if (pending.reduce((sum, { length }) => sum + length, rest.length) <= limits.line) pending.push(rest)
      position += bytesRead
    }
  }
}

function parseLine(bytes: Buffer): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(bytes.toString('utf8'))
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined
  } catch {
    return undefined
  }
}

async function readConfig(folder: string): Promise<Pick<RunData, 'config' | 'options' | 'trainer' | 'steps' | 'facts'>> {
  const path = join(folder, 'config.yaml')
  const config = await readText(path, limits.config).catch(() => '')
  const parsed = (parse: () => unknown): [name: string, text: string][] => {
    try {
      return flatten('', parse())
    } catch {
      return [] // incomplete, or there is none
    }
  }
  const run = await readText(join(folder, 'run.json'), limits.config).catch(() => '')
  const options = Object.fromEntries(parsed(() => yamlValue(parseYaml(config, path), path)))
  const described = Object.fromEntries(parsed(() => JSON.parse(run)))
  const { parameters, trained, device = '', dtype = '', data = '', loops: _, rows: __, ...defaults } = described
  const facts =
    parameters === undefined ? null : { parameters: Number(parameters), trained: Number(trained), device, dtype, data }
  const known = facts === null ? options : defaults
  const steps = Number(known['options.steps'] ?? known.steps)
  return { config, options: known, trainer: known.trainer ?? null, steps: Number.isSafeInteger(steps) ? steps : null, facts }
}

/** The leaves of nested fields by their path. Lists are leaves. */
function flatten(path: string, value: unknown): [name: string, text: string][] {
  if (value === undefined) return []
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    return path === '' ? [] : [[path, shorten(typeof value === 'string' ? value : JSON.stringify(value))]]
  }
  return Object.entries(value).flatMap(([name, inner]) => flatten(path === '' ? name : `${path}.${name}`, inner))
}

/** Averages `stride` neighbours. Minimum and maximum are over all values. */
function curve(steps: readonly number[], values: readonly number[], stride: number): Curve {
  const drawn: Curve = { steps: [], values: [], last: values.at(-1)!, min: Infinity, max: -Infinity }
  for (let start = 0; start < steps.length; start += stride) {
    const end = Math.min(start + stride, steps.length)
    let sum = 0
    for (let i = start; i < end; i++) {
      sum += values[i]!
      drawn.min = Math.min(drawn.min, values[i]!)
      drawn.max = Math.max(drawn.max, values[i]!)
    }
    drawn.steps.push(steps[end - 1]!)
    drawn.values.push(sum / (end - start))
  }
  return drawn
}

/** Attaches curves of lower and upper ends to the curve whose interval they are. */
function withIntervals(curves: readonly [name: string, curve: Curve][]): Record<string, Curve> {
  const all = new Map(curves)
  for (const [name, main] of curves) {
    const [low, high] = [all.get(`${name}_low`), all.get(`${name}_high`)]
    if (low?.steps.length !== main.steps.length || high?.steps.length !== main.steps.length) continue
    all.delete(`${name}_low`)
    all.delete(`${name}_high`)
    all.set(name, { ...main, low: low.values, high: high.values })
  }
  return Object.fromEntries(all)
}

/** Total seconds, from each beginning to the last line before the next one. */
function elapsed(begins: readonly number[], times: readonly number[]): number | null {
  const first = times[0]
  if (first === undefined) return null
  const starts = begins.length === 0 ? [first] : begins
  const parts = starts.map((start, i) => {
    const lines = times.filter((time) => time >= start && time < (starts[i + 1] ?? Number.POSITIVE_INFINITY))
    return Math.max(0, (lines.at(-1) ?? start) - start)
  })
  return parts.reduce((sum, part) => sum + part, 0) / 1000
}

function timeOf({ time }: Record<string, unknown>): number | undefined {
  const parsed = typeof time === 'string' ? Date.parse(time) : Number.NaN
  return Number.isFinite(parsed) ? parsed : undefined
}

/** The first step, the last one and evenly spaced ones between them. */
function spread(steps: readonly number[]): number[] {
  const count = limits.completionSteps
  if (steps.length <= count) return [...steps]
  return Array.from({ length: count }, (_, i) => steps[Math.round((i * (steps.length - 1)) / (count - 1))]!)
}

function isStep(step: unknown): step is number {
  return Number.isSafeInteger(step) && (step as number) >= 0
}

function answerText(answer: unknown): string | null {
  return answer === undefined || answer === null ? null : shorten(typeof answer === 'string' ? answer : JSON.stringify(answer))
}

function shorten(text: string): string {
  return text.length <= limits.text ? text : `${text.slice(0, limits.text)}… (${text.length} characters)`
}
