// npm run bench: every kernel and the whole steps, each next to the roof that was measured in the same run.
import { execFileSync } from 'node:child_process'
import { cpus } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import type { LoopLMError } from '../src/index.js'
import type { KernelRow, Roofs } from './kernels.js'
import type { ConversationRow, ServeRow } from './serve.js'
import type { StepRow } from './steps.js'
import { type TorchTimes, torchTimes } from './torch.js'

const usage = `npm run bench -- [--json] [--device cpu] [--dtype float32,bfloat16] [--filter REGEX] [--kernels | --steps | --serve]
  --json     one JSON document on standard output, nothing else
  --filter   only rows whose name matches; those of 1.4 B parameters run only when the filter says "1.4 B"
  --kernels  only kernels; --steps: only whole steps
  --serve    only the server's latencies under 1, 8 and 32 clients, --seconds N for each (default 20), and a conversation's`

/** The words of the command line, read before the engine is loaded. */
function words() {
  try {
    const { values } = parseArgs({
      options: {
        json: { type: 'boolean', default: false },
        device: { type: 'string', default: 'cpu' },
        dtype: { type: 'string', default: 'float32,bfloat16' },
        filter: { type: 'string', default: '' },
        kernels: { type: 'boolean', default: false },
        steps: { type: 'boolean', default: false },
        serve: { type: 'boolean', default: false },
        seconds: { type: 'string', default: '20' },
        help: { type: 'boolean', default: false },
      },
    })
    const dtypes = values.dtype.split(',').map((dtype) => {
      if (dtype === 'float32' || dtype === 'bfloat16') return dtype
      throw new Error(`--dtype takes float32, bfloat16 or both with a comma between, got ${values.dtype}`)
    })
    const seconds = Number(values.seconds)
    if (!(seconds > 0)) throw new Error(`--seconds takes a number above 0, got ${values.seconds}`)
    const pattern = new RegExp(values.filter, 'i')
    return { ...values, dtypes, seconds, pattern }
  } catch (error) {
    stop(`${(error as Error).message}\n${usage}`)
  }
}

function stop(message: string): never {
  console.error(message)
  process.exit(2)
}

const percent = (share: number | undefined) => (share === undefined ? '' : `${(100 * share).toFixed(0)} %`)
function printTable(rows: string[][]): void {
  const widths = rows[0]!.map((_, c) => Math.max(...rows.map((r) => r[c]!.length)))
  for (const row of rows)
    console.log(row.map((cell, c) => (c < 2 ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!))).join('  '))
}

const read = words()
if (read.help) {
  console.log(usage)
  process.exit(0)
}
const { devices } = await import('../src/index.js')
const { context } = await import('../src/native.js')
const { emulated, kernelNames, kernelRows, measureRoofs, onGpu } = await import('./kernels.js')
const { large, stepsOn } = await import('./steps.js')

/** The rows that are asked for. */
function rows() {
  const { device, filter, pattern } = read
  const both = read.kernels === read.steps && !read.serve
  const kernels = both || read.kernels ? kernelNames(device) : []
  const steps = both || read.steps ? Object.keys(stepsOn(device)) : []
  const names = [...kernels, ...steps]
  if (names.length > 0 && !names.some((name) => pattern.test(name)))
    stop(`no row matches --filter ${filter}; the rows are:\n  ${names.join('\n  ')}\n${usage}`)
  return { kernels, steps: steps.filter((name) => pattern.test(name) && (!name.includes(large) || filter.includes(large))) }
}

const given = { ...read, ...rows() }
const say = (text: string) => given.json || console.log(text)
const report = {
  date: new Date().toISOString(),
  cpu: cpus()[0]?.model.trim(),
  node: process.version,
  devices: devices(),
  roofs: {} as Record<string, Roofs>,
  kernels: [] as KernelRow[],
  steps: [] as StepRow[],
  torch: undefined as TorchTimes | string | undefined,
  serve: [] as ServeRow[],
  conversation: [] as ConversationRow[],
}
say(`${report.cpu}, Node ${report.node}; ${report.devices.map((d) => `${d.name}: ${d.description}`).join('; ')}`)

// Runs first, before looplm has allocated anything on the GPU.
if (onGpu(given.device) && !emulated(given.device) && !given.serve) {
  report.torch = torchTimes()
  say(typeof report.torch === 'string' ? `PyTorch: ${report.torch}` : `PyTorch ${report.torch.torch} beside it, in bfloat16`)
}
try {
  context(given.device, 0, 'bench')
} catch (error) {
  stop((error as LoopLMError).message)
}
/** PyTorch's columns: its times of the row whose name begins with PyTorch's name. */
function torchCells(row: string, dtype: string): string[] {
  if (report.torch === undefined || typeof report.torch === 'string') return []
  const found = Object.entries(report.torch.seconds).find(([name]) => row === name || row.startsWith(`${name} `))?.[1]
  if (found === undefined || dtype !== 'bfloat16') return ['', '']
  return [found.eager, found.compile].map((t) => (t === undefined ? '' : `${(1e3 * t).toFixed(3)} ms`))
}
const torchTitles = typeof report.torch === 'object' ? ['torch', 'compiled'] : []

if (given.kernels.some((name) => given.pattern.test(name)))
  for (const dtype of given.dtypes) {
    const roofs = await measureRoofs(given.device, dtype)
    report.roofs[dtype] = roofs
    const table = [['kernel', `shape (${dtype})`, 'time', 'GFLOP/s', 'GB/s', 'of roof', ...torchTitles]]
    for await (const row of kernelRows(given.device, dtype, roofs, given.pattern)) {
      report.kernels.push(row)
      table.push([
        row.kernel,
        row.shape,
        `${(1e3 * row.seconds).toFixed(3)} ms`,
        row.gflops.toFixed(0),
        row.gbps.toFixed(1),
        percent(row.share),
        ...torchCells(row.kernel, dtype),
      ])
    }
    say(
      `\n${dtype}: roofs of this run are ${roofs.gflops.toFixed(0)} GFLOP/s (product of squares) and ${roofs.gbps.toFixed(1)} GB/s (memory), ${roofs.int8Gops.toFixed(0)} GOP/s (products of bytes in registers)`,
    )
    if (!given.json) printTable(table)
  }

if (given.steps.length > 0) {
  const table = [['step', 'roof', 'time', 'tokens/s', 'of roof', 'peak MiB', 'loop delay p99', ...torchTitles]]
  for (const name of given.steps) {
    const file = fileURLToPath(new URL('./steps.js', import.meta.url))
    const line = execFileSync(process.execPath, [file, name, given.device], { encoding: 'utf8' })
    const row = JSON.parse(line) as StepRow
    report.steps.push(row)
    const delay = row.eventLoopDelayMs === undefined ? '' : `${row.eventLoopDelayMs.toFixed(1)} ms`
    table.push([
      name,
      row.roof ?? '',
      `${row.seconds.toFixed(3)} s`,
      row.tokensPerSecond > 0 ? row.tokensPerSecond.toFixed(0) : '',
      percent(row.share),
      String(row.peakMiB),
      delay,
      ...torchCells(name, row.dtype),
    ])
  }
  say('')
  if (!given.json) printTable(table)
}
if (given.serve) {
  const { conversation, serveRows } = await import('./serve.js')
  const table = [['clients', 'requests', 'lost', 'first token', 'p99', 'next token', 'p99', 'tokens/s']]
  const ms = (value: number) => `${value.toFixed(value < 100 ? 1 : 0)} ms`
  for await (const row of serveRows([1, 8, 32], given.seconds)) {
    report.serve.push(row)
    const { firstTokenMs: first, interTokenMs: next } = row
    const counts = [row.clients, row.requests, row.lost].map(String)
    table.push([...counts, ms(first.median), ms(first.p99), ms(next.median), ms(next.p99), row.tokensPerSecond.toFixed(0)])
  }
  say('\nserver: 98 M parameters in bfloat16, full depth, 64 tokens in and 32 out')
  if (!given.json) printTable(table)
  const row = await conversation(2000)
  report.conversation.push(row)
  const { firstTokenMs, withoutCacheMs } = row
  const share = (firstTokenMs / withoutCacheMs).toFixed(2)
  say(`second turn of a conversation of ${row.promptTokens} tokens: ${ms(firstTokenMs)} to the first token,`)
  say(`${ms(withoutCacheMs)} without the cache of prompts (${share} of it)`)
}
if (given.json) console.log(JSON.stringify(report, null, 2))
