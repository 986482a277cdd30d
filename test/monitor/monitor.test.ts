import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { lineChart, ticks } from '../../src/monitor/chart.js'
import { TensorBoardLogger } from '../../src/monitor/loggers/tensorboard.js'
import { formatDuration, formatNumber, Progress } from '../../src/monitor/progress.js'
import { RunFolder } from '../../src/monitor/run-folder.js'
import { crc32c, scalarEvent } from '../../src/monitor/tensorboard.js'
import { openJsonLines } from '../json-lines.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-monitor-'))
})
afterAll(() => rm(root, { recursive: true }))

describe('run folder', () => {
  it('appends lines, and on resume keeps those up to the resumed step', async () => {
    const path = join(root, 'run')
    const first = await openJsonLines(path, -1, { trainer: 'rltt', steps: 3 })
    for (const step of [1, 2, 3]) await first.log(step, { loss: step / 10 }, 'step')
    await first.completions(3, [{ prompt: '1+1=', completion: '2', reward: 1, rewards: {} }])
    await first.note(1, { type: 'warning', message: 'kept' })
    await first.note(3, { type: 'warning', message: 'of a course that is abandoned' })
    await writeFile(join(path, 'metrics.jsonl'), '{"step":4,"lo', { flag: 'a' }) // a crash in the middle of a line

    const resumed = await openJsonLines(path, 2, { trainer: 'grpo' })
    await resumed.log(3, { loss: 7 }, 'step')
    await resumed.finish({ status: 'finished' })
    const lines = (await readFile(join(path, 'metrics.jsonl'), 'utf8')).trimEnd().split('\n')
    expect(lines.map((line) => JSON.parse(line).loss)).toEqual([0.1, 0.2, 7])
    expect(await readFile(join(path, 'completions.jsonl'), 'utf8')).toBe('')
    expect(await readFile(join(path, 'config.yaml'), 'utf8')).toBe('trainer: rltt\nsteps: 3\n')
    const notes = (await readFile(join(path, 'notes.jsonl'), 'utf8'))
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line))
    expect(notes.map(({ time: _, ...note }) => note)).toEqual([
      { type: 'begin', step: 0 },
      { type: 'warning', message: 'kept', step: 1 },
      { type: 'resume', step: 2 },
      { type: 'end', step: 3, status: 'finished' },
    ])
    expect(JSON.parse(await readFile(join(path, 'run.json'), 'utf8'))).toMatchObject({ trainer: 'grpo', parameters: 1 })
  })

  it('keeps lines whole that contain other line breaks, such as U+2028', async () => {
    const folder = await RunFolder.open(join(root, 'breaks'), { config: {} })
    const records = [0, 1, 2].map((step) => JSON.stringify({ step, prompt: 'one\u2028two\u2029three\u0085four' }))
    const lines = [...records, '{"step":2,\r"loss":1}', '{"step":2}\r']
    await writeFile(folder.pathOf('completions.jsonl'), lines.map((line) => `${line}\n`).join(''))
    expect(await folder.keep('completions.jsonl', 1)).toBe(0)
    expect(await readFile(folder.pathOf('completions.jsonl'), 'utf8')).toBe(`${records[0]}\n${records[1]}\n`)
  })

  it('rejects a new run when it already holds one', async () => {
    await expect(RunFolder.requireNew(join(root, 'run'))).rejects.toThrow(/already holds a run; continue it with resume/)
    await RunFolder.requireNew(join(root, 'other'))
  })
})

describe('progress', () => {
  const state = { step: 10, steps: 100, metrics: { loss: 0.12345, reward: 0.5 } }

  const full = { reward: 0.5, loss: 0.12345, entropy: 1, 'exit_loop/mean': 2.5, grad_norm: 3, tokens_per_second: 12345 }
  /** What a terminal shows after the writes, row by row. */
  function terminal(columns: number) {
    const rows = ['']
    let at = 0
    const write = (text: string) => {
      // biome-ignore lint/suspicious/noControlCharactersInRegex: what terminals obey
      for (const [part] of text.matchAll(/\x1b\[(\d*)([A-Zm])|[\r\n]|[^\x1b\r\n]+/g)) {
        if (part === '\n') {
          at++
          rows[at] ??= ''
        } else if (part === '\r' || (part.startsWith('\x1b') && part.endsWith('m'))) continue
        else if (part.endsWith('A') && part.startsWith('\x1b')) at -= Number(part.slice(2, -1))
        else if (part === '\x1b[J') rows.splice(at, rows.length, '')
        else rows[at] += part
      }
    }
    return { rows, stream: { isTTY: true, columns, write } }
  }

  it.each(Array.from({ length: 100 }, (_, i) => 14 + i))('never cuts step, time left and reward at %i columns', (columns) => {
    const { rows, stream } = terminal(columns)
    const progress = new Progress(stream)
    for (const step of [1, 2, 40_000]) progress.update({ step, steps: 100_000, metrics: full })
    const text = rows.join(' ')
    expect(text).toContain('40000/100000')
    expect(text).toMatch(/(^| )left \d+s/)
    expect(text).toContain('reward 0.500')
    for (const row of rows) expect(row.length).toBeLessThan(columns)
    progress.log('saved')
    progress.update({ step: 40_001, steps: 100_000, metrics: full })
    progress.end()
    expect(rows[0]).toBe('saved')
    expect(rows.join(' ').match(/reward/g)).toHaveLength(1) // the old line is gone
  })

  it('drops the less important fields first', () => {
    const all = ['step', 'left', 'reward', 'loss', 'entropy', 'exit loop', 'grad norm', 'tokens/s']
    const labels = (columns: number) => {
      const { rows, stream } = terminal(columns)
      new Progress(stream).update({ step: 10, steps: 100, metrics: full })
      return all.filter((label) => rows.join(' ').includes(`${label} `))
    }
    expect(labels(120)).toEqual(all)
    const widths = Array.from({ length: 100 }, (_, i) => labels(30 + i))
    const order = ['grad norm', 'exit loop', 'entropy', 'tokens/s', 'loss']
    for (const seen of widths) {
      const gone = order.filter((label) => !seen.includes(label))
      expect(gone).toEqual(order.slice(0, gone.length))
    }
    expect(widths[0]).toEqual(['step', 'left', 'reward'])
  })

  it('writes a plain line every tenth of the run when not on a terminal', () => {
    const written: string[] = []
    const progress = new Progress({ write: (text) => written.push(text) })
    for (let step = 1; step <= 100; step++) progress.update({ ...state, step })
    expect(written).toHaveLength(10)
    expect(written[0]).toMatch(/^step 10\/100 {2}left \d+s {2}reward 0\.500 {2}loss 0\.123\n$/)
  })

  it('writes numbers and durations briefly', () => {
    expect([0, 1234567, 0.5, 1e-5, -2].map(formatNumber)).toEqual(['0', '1,234,567', '0.500', '1.00e-5', '-2.00'])
    expect([5, 190, 7500].map(formatDuration)).toEqual(['5s', '3m10s', '2h05m'])
  })
})

describe('line chart', () => {
  it('has ticks at round numbers inside the range', () => {
    expect(ticks(0, 1, 5)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1])
    expect(ticks(0.13, 0.87, 5)).toEqual([0.2, 0.4, 0.6, 0.8])
    expect(ticks(0, 200, 6)).toEqual([0, 50, 100, 150, 200])
  })

  it('is one accessible SVG with a legend that escapes names', () => {
    const points = [
      [0, 0.1],
      [1, Number.NaN],
      [2, 0.3],
    ] as const
    const panel = { title: 'Reward', xLabel: 'step', yLabel: 'reward', series: [{ name: 'a < b & "c"', points }] }
    const svg = lineChart({ title: 'T', description: 'D', panels: [panel, panel] })
    expect(svg).toMatch(/^<svg [^>]*role="img" aria-labelledby="chart-title chart-description">/)
    expect(svg).toContain('<title id="chart-title">T</title>')
    expect(svg).toContain('prefers-color-scheme:dark')
    expect(svg).toContain('a &lt; b &amp; &quot;c&quot;')
    expect(svg).not.toContain('NaN')
    expect(svg.match(/class="curve line0" d="M[\d. ]+M[\d. ]+"/g)).toHaveLength(2) // the gap breaks the line
  })

  it('draws intervals with their points inside the panel, and labels the given ticks', () => {
    const points: [number, number][] = [
      [1, 0.5],
      [2, Number.NaN],
      [3, 0.7],
    ]
    const intervals: [number, number][] = [
      [0.2, 0.8],
      [0.1, 0.2],
      [0.6, 0.9],
    ]
    const series = [{ name: 'mean', points, intervals }]
    const panel = { title: '', xLabel: '', yLabel: '', xTicks: [1, 3], xPadding: 1, series }
    const svg = lineChart({ title: '', description: '', panels: [panel] })
    const bars = [...svg.matchAll(/class="curve line0" d="M([\d.]+) ([\d.]+)V([\d.]+)"/g)].map((match) =>
      match.slice(1).map(Number),
    )
    expect(bars).toEqual([
      [153, 227.5, 80.5], // x of 1 in [0, 4]; 0.2 and 0.8 in [0.1, 0.9], from 56 at the top to 252
      [347, 129.5, 56],
    ])
    expect(svg.match(/<circle class="dot0" [^>]* r="3"/g)).toHaveLength(2)
    expect([...svg.matchAll(/text-anchor="middle">(\d)</g)].map((match) => match[1])).toEqual(['1', '3'])
  })

  it('draws a flat or empty series', () => {
    const panel = (points: [number, number][]) => ({ title: '', xLabel: '', yLabel: '', series: [{ name: 'x', points }] })
    const flat = panel([
      [2, 1],
      [3, 1],
      [4, 1],
    ])
    const one = panel([
      [3, 1],
      [3, 1],
    ])
    const svg = lineChart({ title: '', description: '', panels: [panel([]), flat, one] })
    expect(svg).not.toMatch(/NaN|Infinity|undefined/)
    // half-way up panels from 56 to 252
    expect([...svg.matchAll(/class="curve line0" d="(.*?)"/g)].map((match) => match[1])).toEqual([
      '',
      'M516 154L710 154L904 154',
      'M1170 154L1170 154',
    ])
  })
})

/** One event as another reader of the format sees it: fields by number, messages as lists of fields. */
type Field = [number: number, value: number | Buffer]

function fields(message: Buffer): Field[] {
  const found: Field[] = []
  let at = 0
  const varint = () => {
    let value = 0
    for (let factor = 1; ; factor *= 128) {
      const byte = message[at++]!
      value += (byte & 127) * factor
      if (byte < 128) return value
    }
  }
  const take = (length: number) => {
    at += length
    return message.subarray(at - length, at)
  }
  while (at < message.length) {
    const tag = varint()
    const kind = tag & 7
    const number = tag >>> 3
    if (kind === 0) found.push([number, varint()])
    else if (kind === 1) found.push([number, take(8).readDoubleLE()])
    else if (kind === 5) found.push([number, take(4).readFloatLE()])
    else found.push([number, take(varint())])
  }
  return found
}

/** The CRC by its definition: the remainder of a division of polynomials, bit by bit. */
function slowCrc(bytes: Buffer): number {
  let crc = 0xffffffffn
  for (const byte of bytes)
    for (let bit = 0; bit < 8; bit++) {
      const carry = (crc ^ BigInt((byte >> bit) & 1)) & 1n
      crc = (crc >> 1n) ^ (carry * 0x82f63b78n)
    }
  return Number(crc ^ 0xffffffffn)
}

function readEvents(file: Buffer): Field[][] {
  const events: Field[][] = []
  const check = (bytes: Buffer, stored: number) => {
    const unmasked = (stored - 0xa282ead8) >>> 0
    expect(((unmasked << 15) | (unmasked >>> 17)) >>> 0).toBe(slowCrc(bytes))
  }
  for (let at = 0; at < file.length; ) {
    const length = Number(file.readBigUInt64LE(at))
    check(file.subarray(at, at + 8), file.readUInt32LE(at + 8))
    const data = file.subarray(at + 12, at + 12 + length)
    check(data, file.readUInt32LE(at + 12 + length))
    events.push(fields(data))
    at += length + 16
  }
  return events
}

describe('events for TensorBoard', () => {
  it('have the checksums of RFC 3720', () => {
    expect(crc32c(Buffer.alloc(32))).toBe(0x8a9136aa)
    expect(crc32c(Buffer.alloc(32, 0xff))).toBe(0x62a8ab43)
    expect(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i))).toBe(0x46dd794e)
    expect(crc32c(Buffer.from('123456789'))).toBe(0xe3069283)
  })

  it('hold the numbers of every step, and where a resumed run begins', async () => {
    const path = join(root, 'events')
    const before = Date.now() / 1000
    const first = new TensorBoardLogger(await RunFolder.open(path, { config: {} }))
    first.start({}, { step: 0 })
    await first.log(1, { loss: 0.5, 'loop_1/weight': 0.25 })
    await first.log(300, { loss: -1e-7 })
    const [name] = (await readdir(path)).filter((file) => file.includes('tfevents'))
    const events = readEvents(await readFile(join(path, name!)))
    expect(events).toHaveLength(4)
    const times = events.map((event) => event[0]![1] as number)
    expect(Math.min(...times)).toBeGreaterThanOrEqual(Math.floor(before))
    expect(Math.max(...times)).toBeLessThanOrEqual(Date.now() / 1000)
    expect(events[0]!.slice(1)).toEqual([
      [2, 0],
      [3, Buffer.from('brain.Event:2')],
    ])
    expect(events[1]!.slice(1)).toEqual([
      [2, 1],
      [7, Buffer.from([8, 1])],
    ]) // session_log { status: START }
    const scalars = (event: Field[]) =>
      fields(event.find(([number]) => number === 5)![1] as Buffer).map(([, value]) => fields(value as Buffer))
    expect(events[2]![1]).toEqual([2, 1])
    expect(scalars(events[2]!)).toEqual([
      [
        [1, Buffer.from('loss')],
        [2, 0.5],
      ],
      [
        [1, Buffer.from('loop_1/weight')],
        [2, 0.25],
      ],
    ])
    expect(events[3]![1]).toEqual([2, 300])
    expect(scalars(events[3]!)).toEqual([
      [
        [1, Buffer.from('loss')],
        [2, Math.fround(-1e-7)],
      ],
    ])
  })

  it('are in a separate file for every opening, even within one second', async () => {
    const path = join(root, 'event-files')
    for (const step of [0, 1, 0]) {
      const logger = new TensorBoardLogger(await RunFolder.open(path, { config: {} }))
      logger.start({}, { step })
      await logger.log(step + 1, { loss: 1 })
    }
    const names = (await readdir(path)).filter((file) => file.includes('tfevents')).sort() // the order in which they are read
    const starts = await Promise.all(names.map(async (name) => readEvents(await readFile(join(path, name)))[1]![1]))
    expect(starts).toEqual([1, 2, 1].map((step) => [2, step]))
  })

  it('count steps beyond 32 bits', () => {
    const [event] = readEvents(Buffer.from(scalarEvent(2 ** 40 + 5, { x: 1 }, 0)))
    expect(event![1]).toEqual([2, 2 ** 40 + 5])
  })
})
