// What a broken or hostile client may send: it is refused with a fitting status, and the next client is served.
import { mkdtemp, rm } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { Random } from '../../src/data/random.js'
import { createServer, LoopLM, type LoopLMServer } from '../../src/index.js'
import { writeOuroFolder } from '../ouro-folder.js'

let root: string
let model: LoopLM
let server: LoopLMServer
let port: number
const log: string[] = []
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-malformed-'))
  model = await LoopLM.fromPretrained(await writeOuroFolder(join(root, 'ouro')))
  const limits = { maxBodyBytes: 100_000, headerTimeout: 1, bodyTimeout: 0.5, maxWaiting: 1000 }
  server = createServer(model, { name: 'tiny', port: 0, log: (line) => log.push(line), ...limits })
  port = Number(new URL(await server.listen()).port)
})
afterAll(async () => {
  await server.close()
  model.dispose()
  await rm(root, { recursive: true })
})

/** What a request is, and the statuses that are right for it. */
interface Case {
  name: string
  statuses: number[]
  /** Sent at once, then, if there is more, after a pause. */
  parts: (string | Buffer)[]
  /** Parts come this many milliseconds apart. */
  pause?: number
}

const request = (path: string, body: string | Buffer, headers: Record<string, string | number> = {}): Buffer => {
  const bytes = Buffer.from(body as string)
  const all = {
    host: 'localhost',
    'content-type': 'application/json',
    'content-length': bytes.length,
    connection: 'close',
    ...headers,
  }
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}`)
  return Buffer.concat([Buffer.from(`POST ${path} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`), bytes])
}

const completion = { model: 'tiny', prompt: 'a', max_tokens: 2 }
const chat = { model: 'tiny', messages: [{ role: 'user', content: 'a' }], max_tokens: 2 }
const wrongValues = [null, true, -1, 1.5, 1e300, '', 'x', [], {}, [null], [[]], { a: 1 }, [1, 'a'], 'x'.repeat(1000), [[[[1]]]]]
/** No field of a completion takes one of these. */
const wrongForAll = [{ a: 1 }, [null], [[]], 1e300, [1, 'a'], '']

function cases(): Case[] {
  const list: Case[] = []
  const add = (name: string, statuses: number[], parts: Case['parts'], pause?: number) =>
    list.push({ name, statuses, parts, ...(pause === undefined ? {} : { pause }) })
  const post = (name: string, body: string | Buffer, status = 400, path = '/v1/completions', headers = {}) =>
    add(name, [status], [request(path, body, headers)])

  // bad JSON
  const text = JSON.stringify(chat)
  for (let cut = 0; cut < text.length; cut += 2) post(`JSON cut after ${cut}`, text.slice(0, cut), 400, '/v1/chat/completions')
  for (const body of ['NaN', '{a:1}', "{'a':1}", '[', ']', '\0', '{"model":"tiny",}', `{"a":${'['.repeat(40_000)}`, '\ufeff{}x'])
    post(`not JSON: ${body.slice(0, 20)}`, body)
  for (const body of ['null', '1', '"a"', '[]', 'true', '[[]]', `${'['.repeat(40_000)}${']'.repeat(40_000)}`])
    post(`JSON that is no object: ${body.slice(0, 20)}`, body)
  post('invalid UTF-8', Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x3a, 0x31, 0x7d]))
  post(
    'half of a surrogate pair as a role',
    '{"model":"tiny","messages":[{"role":"\\ud83d","content":"a"}]}',
    400,
    '/v1/chat/completions',
  )
  post('__proto__', '{"model":"tiny","prompt":"a","__proto__":{"n":2}}')
  post(
    'deep tools',
    `{"model":"tiny","messages":[{"role":"user","content":"a"}],"tools":[{"type":"f","x":${'['.repeat(30_000)}${']'.repeat(30_000)}}]}`,
    400,
    '/v1/chat/completions',
  )

  // wrong types and values
  const fields = [
    'model',
    'prompt',
    'max_tokens',
    'temperature',
    'n',
    'top_p',
    'seed',
    'stop',
    'stream',
    'logprobs',
    'loops',
    'exit',
  ]
  for (const field of fields)
    for (const value of wrongForAll.filter((value) => field !== 'stop' || value !== ''))
      post(`${field}: ${JSON.stringify(value)}`, JSON.stringify({ ...completion, [field]: value }))
  for (const value of wrongValues)
    post(
      `messages: ${JSON.stringify(value).slice(0, 30)}`,
      JSON.stringify({ ...chat, messages: value }),
      400,
      '/v1/chat/completions',
    )
  for (const token of [-1, 272, 1e9, 0.5, '1', null])
    post(`token ${token}`, JSON.stringify({ ...completion, prompt: [1, token] }))
  post('too many tokens', JSON.stringify({ ...completion, prompt: Array(4096).fill(1), max_tokens: 2 }))
  for (const prompt of ['', [], [[]], ['a', ''], [['a']], {}, Array(129).fill('a')])
    post(`prompt ${JSON.stringify(prompt).slice(0, 20)}`, JSON.stringify({ ...completion, prompt }))
  for (const input of [null, '', [], [[]], ['a', ''], [272], [[1, -1]], 5, Array(2049).fill('a'), Array(4097).fill(1)])
    post(`input ${JSON.stringify(input).slice(0, 20)}`, JSON.stringify({ model: 'tiny', input }), 400, '/v1/embeddings')
  post('a prompt longer than the context', JSON.stringify({ ...completion, prompt: 'a '.repeat(40_000) }))
  post('an unknown model', JSON.stringify({ ...completion, model: 'x'.repeat(5000) }), 404)

  // huge bodies
  const huge = 'x'.repeat(200_000)
  post('a huge body', JSON.stringify({ ...completion, prompt: huge }), 413)
  add('a huge body by its header', [413], [request('/v1/completions', '{', { 'content-length': 1e12 })])
  add(
    'a huge chunked body',
    [413],
    [
      'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n',
      ...Array.from({ length: 20 }, () => `2710\r\n${'x'.repeat(10_000)}\r\n`),
    ],
  )
  add('a body that ends early', [400, 408], [request('/v1/completions', '{"model"', { 'content-length': 100 })])

  // slow requests
  for (let i = 0; i < 5; i++)
    add(`a slow body ${i}`, [408], [request('/v1/completions', '', { 'content-length': 50 }), ...Array(20).fill(' ')], 100)
  for (let i = 0; i < 5; i++)
    add(`slow headers ${i}`, [408], [...'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n'].slice(0, 40), 100)

  // not the HTTP that is spoken here
  for (const junk of [
    '\r\n\r\n\r\nhello\r\n\r\n',
    '\x16\x03\x01\x02\x00\x01\x00',
    'GET\r\n\r\n',
    'GET / HTTP/9.9\r\n\r\n',
    'get / http/1.1\r\n\r\n',
  ])
    add(`junk ${JSON.stringify(junk)}`, [400], [junk])
  add('huge headers', [431], [`GET /health HTTP/1.1\r\nhost: localhost\r\nx: ${'y'.repeat(100_000)}\r\n\r\n`])
  add(
    'two lengths',
    [400],
    ['POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}'],
  )
  add(
    'length and chunks',
    [400],
    ['POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n'],
  )
  add('no host', [400], ['GET /health HTTP/1.1\r\n\r\n'])
  for (const type of [
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data',
    '',
    'application/json; charset=utf-16',
  ])
    post(`content-type ${type}`, '{}', 415, '/v1/completions', { 'content-type': type })
  post('an expectation that nobody meets', '{}', 417, '/v1/completions', { expect: 'x' })
  post('compressed', '{}', 415, '/v1/completions', { 'content-encoding': 'gzip' })
  for (const host of ['evil.example', 'evil.example:80', '169.254.169.254', 'localhost.evil.example'])
    post(`host ${host}`, JSON.stringify(completion), 403, '/v1/completions', { host })
  for (const path of [
    '/',
    '/v1',
    '/v1/completions//',
    '//',
    '/../etc/passwd',
    '/v1/responses',
    '/v1/models/tiny/x',
    '/%00',
    '/v1/models/%zz',
    '/constructor',
    '/__proto__',
  ])
    add(`path ${path}`, [404], [`GET ${path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n`])
  for (const method of ['GET', 'PUT', 'DELETE', 'PATCH', 'HEAD', 'TRACE'])
    for (const path of ['/v1/completions', '/v1/completions/', '/v1/embeddings'])
      add(`${method}`, [405], [`${method} ${path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n`])
  return list
}

/** The status of the answer, and whether a body says why; 0 when the connection ended without one. */
function send({ parts, pause = 0 }: Case): Promise<{ status: number; told: boolean }> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1')
    let answer = ''
    let next = 0
    const timer = setTimeout(() => {
      socket.destroy()
      reject(new Error('no answer within 5 minutes'))
    }, 300_000)
    const write = () => {
      if (next >= parts.length || socket.destroyed) return
      socket.write(parts[next++]!)
      if (pause === 0) write()
      else setTimeout(write, pause)
    }
    socket.on('connect', write).on('error', () => {})
    socket.on('data', (data) => {
      answer += data.toString('latin1')
      if (/\r\n\r\n/.test(answer)) setTimeout(() => socket.end(), 50)
    })
    socket.on('close', () => {
      clearTimeout(timer)
      const [, status = 0, body = ''] = /^HTTP\/1\.1 (\d+).*?\r\n\r\n(.*)/s.exec(answer) ?? []
      resolve({ status: Number(status), told: /^\{"error":\{"message":"[^"].*\}\}$/s.test(body) })
    })
  })
}

const serves = async () => {
  const response = await fetch(`http://127.0.0.1:${port}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(completion),
  })
  return response.status
}

it('at least 200 malformed requests get a 4xx each, and the server keeps serving', async () => {
  const all = cases()
  expect(all.length).toBeGreaterThanOrEqual(200)
  const random = new Random(1)
  const order = random.shuffle([...all])
  const wrong: string[] = []
  for (let i = 0; i < order.length; i += 16) {
    const answers = await Promise.all(order.slice(i, i + 16).map(send))
    answers.forEach(({ status, told }, j) => {
      const { name, statuses: right } = order[i + j]!
      if (!told && name !== 'HEAD') wrong.push(`${name}: ${status} without a message`)
      if (!right.includes(status)) wrong.push(`${name}: ${status} instead of ${right.join(' or ')}`)
    })
    expect(await serves()).toBe(200)
  }
  expect(wrong).toEqual([])
  expect(log).toEqual([]) // none of them was an internal error
  const health = await (await fetch(`http://127.0.0.1:${port}/health`)).json()
  expect(health).toMatchObject({ running: 0, waiting: 0 })
})
