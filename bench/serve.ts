// npm run bench -- --serve: the server under 1, 8 and 32 streaming clients, each of which sends its next request as soon as the
// last one is answered, and the second turn of a long conversation. The server runs in a separate process: node
// dist/bench/serve.js prints its address.
import { spawn } from 'node:child_process'
import { type IncomingMessage, request } from 'node:http'
import { fileURLToPath } from 'node:url'
import { createServer, LoopLM, Tokenizer } from '../src/index.js'

const vocabulary = 8192
const sizes = {
  vocab_size: vocabulary,
  hidden_size: 768,
  intermediate_size: 2048,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  total_ut_steps: 4,
}
const [promptTokens, newTokens] = [64, 32]

/** Latencies in milliseconds. */
export interface ServeRow {
  clients: number
  requests: number
  /** Requests without a complete response. */
  lost: number
  firstTokenMs: { median: number; p99: number }
  interTokenMs: { median: number; p99: number }
  tokensPerSecond: number
}

/** Serves a model of 98 million random parameters until its input ends. */
async function serve(): Promise<void> {
  const model = await LoopLM.create(sizes, { dtype: 'bfloat16', seed: 1 })
  // one character per token, so that every token is a piece of the stream
  model.tokenizer = Tokenizer.characters(String.fromCodePoint(...Array.from({ length: vocabulary }, (_, i) => 0x4e00 + i)))
  const server = createServer(model, { name: 'bench', port: 0, promptCache: !process.argv.includes('--no-prompt-cache') })
  console.log(await server.listen())
  process.stdin.resume().on('end', () => server.close().then(() => process.exit()))
}

/** One row per number of clients. */
export async function* serveRows(clientCounts: readonly number[], seconds: number): AsyncGenerator<ServeRow> {
  const { url, close } = await start()
  await stream(url, 0) // the first request creates the scheduler and its cache
  for (const clients of clientCounts) yield await measure(url, clients, seconds)
  close()
}

/** Milliseconds to the first token of the second turn of a conversation. */
export interface ConversationRow {
  promptTokens: number
  firstTokenMs: number
  withoutCacheMs: number
}

/** The second turn has `tokens` tokens: the first prompt, its response, and a twentieth of new ones. */
export async function conversation(tokens: number): Promise<ConversationRow> {
  const prompt = promptOf(1, tokens)
  const first = prompt.slice(0, tokens - Math.floor(tokens / 20) - newTokens)
  const turn = async (url: string, ids: number[]) => {
    const { begun, times } = await stream(url, 1, ids)
    return times[0]! - begun
  }
  const cached = await start()
  await turn(cached.url, first)
  const firstTokenMs = await turn(cached.url, prompt)
  cached.close()
  const plain = await start('--no-prompt-cache')
  await stream(plain.url, 0)
  const withoutCacheMs = await turn(plain.url, prompt)
  plain.close()
  return { promptTokens: tokens, firstTokenMs, withoutCacheMs }
}

async function start(...flags: string[]): Promise<{ url: string; close(): void }> {
  const child = spawn(process.execPath, [fileURLToPath(import.meta.url), ...flags], { stdio: ['pipe', 'pipe', 'inherit'] })
  const url = await new Promise<string>((resolve, reject) => {
    child.stdout.once('data', (text) => resolve(String(text).trim()))
    child.once('close', (code) => reject(new Error(`the server ended with ${code}`)))
  })
  return { url, close: () => child.stdin.end() }
}

function promptOf(seed: number, length: number): number[] {
  return Array.from({ length }, (_, j) => (seed * 7919 + j * 104_729 + ((seed * j) % 31)) % vocabulary)
}

async function measure(url: string, clients: number, seconds: number): Promise<ServeRow> {
  const [first, gaps]: [number[], number[]] = [[], []]
  let [requests, lost, tokens] = [0, 0, 0]
  const start = performance.now()
  const client = async (index: number) => {
    for (let turn = 0; performance.now() - start < seconds * 1000; turn++) {
      requests++
      const { begun, times, whole } = await stream(url, 1 + index * 1000 + turn)
      if (!whole || times.length !== newTokens) lost++
      tokens += times.length
      if (times.length > 0) first.push(times[0]! - begun)
      for (let i = 1; i < times.length; i++) gaps.push(times[i]! - times[i - 1]!)
    }
  }
  await Promise.all(Array.from({ length: clients }, (_, index) => client(index)))
  const taken = (performance.now() - start) / 1000
  return { clients, requests, lost, firstTokenMs: summary(first), interTokenMs: summary(gaps), tokensPerSecond: tokens / taken }
}

/** Streams one completion of a separate prompt. Returns the times of its tokens. */
async function stream(
  url: string,
  seed: number,
  prompt = promptOf(seed, promptTokens),
): Promise<{ begun: number; times: number[]; whole: boolean }> {
  const body = JSON.stringify({ model: 'bench', prompt, max_tokens: newTokens, seed, stream: true, exit: { rule: 'fixed' } })
  const begun = performance.now()
  const times: number[] = []
  let text = ''
  try {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }
      request(`${url}/v1/completions`, { method: 'POST', headers }, resolve).on('error', reject).end(body)
    })
    let rest = ''
    for await (const part of response) {
      const now = performance.now()
      const events = (rest + part).split('\n\n')
      rest = events.pop()!
      for (const event of events) {
        text = event
        if (event.startsWith('data: {') && event.includes('"choices":[{')) times.push(now)
      }
    }
  } catch {
    return { begun, times, whole: false }
  }
  return { begun, times, whole: text === 'data: [DONE]' }
}

function summary(values: number[]): { median: number; p99: number } {
  const sorted = values.sort((a, b) => a - b)
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN
  return { median: at(0.5), p99: at(0.99) }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await serve()
