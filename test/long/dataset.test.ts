// Streamed datasets of 200 MB in every format and of 2 GB as JSON Lines, alone and under a trainer: how long the event loop waits meanwhile, and
// how much memory it takes.
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { finished } from 'node:stream/promises'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { afterAll, beforeAll, expect, it } from 'vitest'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-large-set-'))
})
afterAll(() => rm(root, { recursive: true }))

const sentence = 'The cat sat on the mat, saw a "bird" and flew away. '
const row = (i: number) => ({ prompt: `${i}: ${sentence.repeat(1 + (i % 8))}`, answer: `${(i * 7) % 1000}`, id: `${i}` })

async function write(name: string, bytes: number, head: string, line: (i: number) => string, tail: string): Promise<string> {
  const path = join(root, name)
  const file = createWriteStream(path)
  file.write(head)
  for (let i = 0, written = 0; written < bytes; ) {
    let part = ''
    for (let end = i + 1000; i < end; i++) part += line(i)
    written += part.length
    if (!file.write(part)) await once(file, 'drain')
  }
  file.end(tail)
  await finished(file)
  return path
}

const cell = (text: string) => `"${text.replaceAll('"', '""')}"`

/** Shards with a row group of 20 MB, larger than what is decoded at a time. */
async function writeShards(name: string, bytes: number): Promise<string> {
  const folder = join(root, name)
  await mkdir(folder)
  const rows = 180_000 // 45 MB
  for (let shard = 0; shard * 45e6 < bytes; shard++) {
    const made = Array.from({ length: rows }, (_, i) => row(shard * rows + i))
    const columnData = (['prompt', 'answer', 'id'] as const).map((key) => ({
      name: key,
      data: made.map((one) => one[key]),
      type: 'STRING' as const,
    }))
    await writeFile(join(folder, `${shard}.parquet`), new Uint8Array(parquetWriteBuffer({ columnData, rowGroupSize: 90_000 })))
  }
  return folder
}

/** Takes batches all over two passes. */
const reading = `
    const begun = performance.now()
    const stream = await looplm.DatasetStream.open(path, { seed: 1, shuffleBuffer: 10_000 })
    const opened = performance.now()
    for (let i = 0; i < 12; i++) await stream.take(Math.floor((i * stream.rows) / 6) + 17, 256)
    const rows = stream.rows`

/** Trains on a path. The time is that until the first step. */
const training = `
    const options = { dataset: path, tokenizer: looplm.Tokenizer.bytes(), steps: 40, batchSize: 16, seed: 1 }
    const trainer = new looplm.PretrainTrainer(model, options)
    const begun = performance.now()
    let opened
    for await (const _ of trainer.run()) opened ??= performance.now()
    const rows = 40 * 16
    trainer.dispose()`

/**
 * Works on a set in a separate process, and measures from the moment at which a model is there. What a turn of the event loop takes is the
 * processor time of its thread, which other programs do not change; the delay by the clock is measured too.
 */
function measure(path: string, work: string) {
  const index = new URL('../../dist/src/index.js', import.meta.url).href
  const script = `
    import { readFileSync } from 'node:fs'
    import { monitorEventLoopDelay } from 'node:perf_hooks'
    import * as looplm from ${JSON.stringify(index)}
    const path = ${JSON.stringify(path)}
    const sizes = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 }
    const model = await looplm.LoopLM.create({ vocab_size: 256, ...sizes }, { seed: 0 })
    const cpuTime = () => Number(readFileSync('/proc/self/task/' + process.pid + '/schedstat', 'latin1').split(' ')[0]) / 1e6
    const before = process.memoryUsage.rss() // maxRSS begins with that of the process that started this one
    let peak = before
    const delay = monitorEventLoopDelay({ resolution: 1 })
    const turns = []
    let watching = true
    let last = cpuTime()
    const turn = () => {
      const now = cpuTime()
      if (now - last > 0.1) turns.push(now - last) // the others did nothing
      last = now
      peak = Math.max(peak, process.memoryUsage.rss())
      if (watching) setImmediate(turn)
    }
    setImmediate(turn)
    delay.enable()
    ${work}
    delay.disable()
    watching = false
    turns.sort((a, b) => a - b)
    console.log(JSON.stringify({
      rows,
      seconds: (opened - begun) / 1000,
      turns: turns.length,
      p99: turns[Math.floor(0.99 * turns.length)],
      longest: turns.at(-1),
      delay: delay.percentile(99) / 1e6,
      mebibytes: (peak - before) / 2 ** 20,
    }))`
  const options = ['--max-old-space-size=96', '--input-type=module', '--eval', script]
  return JSON.parse(execFileSync(process.execPath, options, { encoding: 'utf8' })) as Record<
    'rows' | 'seconds' | 'turns' | 'p99' | 'longest' | 'delay' | 'mebibytes',
    number
  >
}

const cases: [what: string, make: () => Promise<string>, work?: string][] = [
  ['200 MB of JSON Lines', () => write('a.jsonl', 200e6, '', (i) => `${JSON.stringify(row(i))}\n`, '')],
  ['200 MB as one JSON array', () => write('a.json', 200e6, '[{"prompt":"first"}', (i) => `,\n${JSON.stringify(row(i))}`, ']')],
  ['200 MB of CSV', () => write('a.csv', 200e6, 'prompt,answer,id\n', (i) => `${Object.values(row(i)).map(cell)}\n`, '')],
  ['200 MB in shards of Parquet', () => writeShards('parquet', 200e6)],
  ['2 GB of JSON Lines', () => write('b.jsonl', 2e9, '', (i) => `${JSON.stringify(row(i))}\n`, '')],
  ['training on 200 MB in shards of Parquet', () => writeShards('trained', 200e6), training],
  ['training on 2 GB of JSON Lines', () => write('c.jsonl', 2e9, '', (i) => `${JSON.stringify(row(i))}\n`, ''), training],
]

it.each(cases)('%s', async (what, make, work = reading) => {
  const path = await make()
  const { rows, seconds, turns, p99, longest, delay, mebibytes } = measure(path, work)
  await rm(path, { recursive: true })
  const loop = `of ${turns} turns p99 ${p99.toFixed(1)} ms, longest ${longest.toFixed(0)} ms (delay by the clock p99 ${delay.toFixed(1)} ms)`
  console.log(
    `${what}: ${rows} rows ${work === reading ? 'opened' : 'trained, the first'} in ${seconds.toFixed(1)} s; ${loop}; ${mebibytes.toFixed(0)} MiB more`,
  )
  expect(p99).toBeLessThan(10)
  expect(mebibytes).toBeLessThan(300)
})
