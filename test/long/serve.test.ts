// Ten minutes of everything a server meets at once. Its memory at the end is that of the beginning. LOOPLM_SOAK_SECONDS shortens it.
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import OpenAI, { APIConnectionError, APIError } from 'openai'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { Random } from '../../src/data/random.js'
import { writeOuroFolder } from '../ouro-folder.js'

const seconds = Number(process.env.LOOPLM_SOAK_SECONDS ?? 600)
const program = join(import.meta.dirname, '..', '..', 'dist', 'src', 'cli', 'main.js')
let root: string
let child: ChildProcess | undefined
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-soak-'))
  const config = { hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4 }
  await writeOuroFolder(join(root, 'ouro'), { config })
})
afterAll(async () => {
  child?.kill('SIGKILL')
  await rm(root, { recursive: true })
}, 60_000)

const counts = { answers: 0, streams: 0, left: 0, full: 0, malformed: 0, broken: 0 }

/** The deed, or an error that names it when nothing comes of it: no request may be lost. */
async function within<Result>(seconds: number, name: string, deed: Promise<Result>): Promise<Result> {
  let timer: NodeJS.Timeout | undefined
  const lost = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${name}: nothing within ${seconds} s`)), seconds * 1000)
  })
  return Promise.race([deed, lost]).finally(() => clearTimeout(timer))
}

const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length

/**
 * The slope of memory against time by least squares, in MiB per minute, and its standard error. Ten means of neighbours are fitted, for
 * the collector's waves make neighbours alike: as so many samples of their own they would make the error too small.
 */
function slopeOf(samples: { minute: number; mebibytes: number }[]): [slope: number, error: number] {
  const blocks = Array.from({ length: 10 }, (_, i) => {
    const block = samples.slice(Math.floor((i * samples.length) / 10), Math.floor(((i + 1) * samples.length) / 10))
    return [mean(block.map(({ minute }) => minute)), mean(block.map(({ mebibytes }) => mebibytes))] as const
  })
  const [x0, y0] = [mean(blocks.map(([x]) => x)), mean(blocks.map(([, y]) => y))]
  const spread = blocks.reduce((sum, [x]) => sum + (x - x0) ** 2, 0)
  const slope = blocks.reduce((sum, [x, y]) => sum + (x - x0) * (y - y0), 0) / spread
  const rest = blocks.reduce((sum, [x, y]) => sum + (y - y0 - slope * (x - x0)) ** 2, 0)
  return [slope, Math.sqrt(rest / (blocks.length - 2) / spread)]
}

/** One client's next deed. */
async function act(client: OpenAI, url: URL, random: Random): Promise<void> {
  const max_tokens = 1 + random.integer(120)
  const extra = { exit: { rule: 'gate', threshold: 0.2 + 0.8 * random.uniform() }, loops: 1 + random.integer(4) }
  const content = 'the é😀 in '.repeat(1 + random.integer(60))
  const chat = { model: 'ouro', messages: [{ role: 'user' as const, content }], max_tokens, n: 1 + random.integer(3), ...extra }
  const deed = random.uniform()
  try {
    if (deed < 0.35) {
      const whole = client.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 2 })
      const { choices } = await within(300, 'a whole answer', whole)
      expect(choices).toHaveLength(chat.n)
      counts.answers++
    } else if (deed < 0.7) {
      let ended = 0
      const read = async () => {
        for await (const { choices } of await client.chat.completions.create({ ...chat, stream: true }))
          ended += choices.filter(({ finish_reason }) => finish_reason !== null).length
      }
      await within(300, 'a stream', read())
      expect(ended).toBe(chat.n)
      counts.streams++
    } else if (deed < 0.9) {
      const controller = new AbortController()
      setTimeout(() => controller.abort(), random.integer(100))
      const read = async () => {
        const body = { ...chat, max_tokens: 1000, stream: true } as const
        for await (const _ of await client.chat.completions.create(body, { signal: controller.signal }));
      }
      await within(
        300,
        'leaving',
        read().catch(() => {}),
      )
      counts.left++
    } else {
      const cut = new Promise<void>((resolve) => {
        const socket = connect(Number(url.port), url.hostname, () => {
          socket.write(
            `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{"model"`,
          )
          setTimeout(() => socket.destroy(), random.integer(50))
        })
        socket.on('error', () => {}).on('close', () => resolve())
      })
      await within(300, 'half a request', cut)
      counts.malformed++
    }
  } catch (error) {
    if (error instanceof APIConnectionError || (error instanceof APIError && error.status === 408)) {
      counts.broken++
      return
    }
    if (!(error instanceof APIError) || error.status !== 429) throw error
    counts.full++
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

it(`memory stays flat over ${seconds} s of load`, { timeout: (seconds + 600) * 1000 }, async () => {
  const server = spawn(process.execPath, [
    '--max-semi-space-size=1', // the collector comes often, and the memory rises between its visits by little
    '--max-old-space-size=64',
    program,
    'serve',
    join(root, 'ouro'),
    '--port',
    '0',
    '--max-running',
    '8',
    '--max-waiting',
    '8',
    '--header-timeout', // a busy machine is slow to read
    '120',
  ])
  child = server
  let stderr = ''
  server.stderr.on('data', (text) => (stderr += text))
  const url = new URL(
    await new Promise<string>((resolve, reject) => {
      server.stdout.on('data', (text) => resolve(/ at (\S+)/.exec(String(text))![1]!))
      server.on('close', (code) => reject(new Error(`looplm serve ended with ${code}: ${stderr}`)))
    }),
  )
  const metric = async (name: string): Promise<number> => {
    for (let attempt = 1; ; attempt++) {
      const page = fetch(`${url.origin}/metrics`, { headers: { connection: 'close' } }).catch(() => undefined)
      const response = await within(300, 'metrics', page)
      if (response?.ok) return Number(new RegExp(`^${name} (.*)$`, 'm').exec(await response.text())![1])
      if (attempt === 5) throw new Error(`no metrics: ${response?.status}`) // the machine may have slept in the middle of one
    }
  }
  const client = new OpenAI({ baseURL: url.href, apiKey: 'none', maxRetries: 0 })
  const end = Date.now() + seconds * 1000
  const samples: { minute: number; mebibytes: number }[] = []
  let pause = 0 // the longest time for which nothing ran here: the machine slept, and kept connections have ended meanwhile
  let tick = Date.now()
  const ticks = setInterval(() => {
    pause = Math.max(pause, Date.now() - tick)
    tick = Date.now()
  }, 1000)
  const clients = Array.from({ length: 12 }, async (_, i) => {
    const random = new Random(i)
    while (Date.now() < end) await act(client, url, random)
  })
  const watch = (async () => {
    while (Date.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, Math.max(100, seconds * 10)))
      const mebibytes = (await metric('process_resident_memory_bytes')) / 2 ** 20
      samples.push({ minute: performance.now() / 60_000, mebibytes })
    }
  })()
  await Promise.all([...clients, watch])
  clearInterval(ticks)
  if (pause < 20_000) expect(counts.broken).toBe(0)

  await expect.poll(() => metric('looplm_sequences_running'), { timeout: 120_000 }).toBe(0)
  const inUse = async () => (await metric('looplm_cached_tokens')) - (await metric('looplm_retained_tokens'))
  await expect.poll(inUse, { timeout: 30_000 }).toBe(0) // rows are freed before the engine's next pass
  expect(await metric('looplm_requests_open')).toBe(0)
  const generated = await metric('looplm_generated_tokens_total')
  server.kill('SIGINT')
  expect(await new Promise((resolve) => server.on('close', resolve))).toBe(0)
  expect(stderr.replace('\nstopping; press Ctrl-C again to end at once\n', '')).toBe('')

  const memory = samples.map(({ mebibytes }) => mebibytes)
  const quarter = Math.floor(samples.length / 4)
  const [second, last] = [mean(memory.slice(quarter, 2 * quarter)), mean(memory.slice(-quarter))]
  const half = samples.slice(-2 * quarter)
  const [slope, error] = slopeOf(half)
  const figures = {
    ...counts,
    generated,
    second: Math.round(second),
    last: Math.round(last),
    most: Math.round(Math.max(...memory)),
    slope: `${slope.toFixed(2)} ± ${error.toFixed(2)}`,
  }
  const units = 'MiB: mean of the second and the last quarter, largest; slope of the last half in MiB per minute'
  console.log(`soak of ${seconds} s: ${JSON.stringify(figures).replaceAll(',"', ', "')} (${units})`)
  expect(counts.answers + counts.streams).toBeGreaterThan(seconds / 10) // a machine that is busy otherwise serves few
  expect(last).toBeLessThan(1.1 * second + 8)
  // 10 MiB are what warming up still adds in the half of a soak of one minute; of ten minutes the half is five, and this 2 MiB per minute
  const minutes = half.at(-1)!.minute - half[0]!.minute
  expect((slope - 2 * error) * minutes).toBeLessThan(10)
})
