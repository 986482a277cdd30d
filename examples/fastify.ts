// Generation inside a web framework's handler. One scheduler serves all requests: each enters the batch that is running and leaves it on
// its own. A client that goes away takes its sequence with it. looplm's errors have a `status`, which Fastify reads: an empty prompt is a 400.
import { Readable } from 'node:stream'
import Fastify from 'fastify'
import { openModel } from './model.js'

using model = await openModel()
using scheduler = model.scheduler({ maxRows: 16 })
const app = Fastify()

app.post<{ Body: { prompt: string } }>('/generate', async ({ body }) => {
  const { text, loops } = await scheduler.add(body.prompt, { maxNewTokens: 16, seed: 1 }).result()
  return { text, loops }
})

app.post<{ Body: { prompt: string } }>('/stream', (request, reply) => {
  const gone = new AbortController()
  request.raw.socket.once('close', () => gone.abort())
  async function* lines() {
    const options = { maxNewTokens: 16, seed: 1, signal: gone.signal }
    for await (const { text, loop } of scheduler.add(request.body.prompt, options)) yield `${JSON.stringify({ text, loop })}\n`
  }
  return reply.type('application/x-ndjson').send(Readable.from(lines()))
})

// eight clients at once
const url = await app.listen({ port: 0, host: '127.0.0.1' })
const call = (path: string, prompt: string) => {
  const headers = { 'content-type': 'application/json' }
  return fetch(url + path, { method: 'POST', headers, body: JSON.stringify({ prompt }) }).then((response) => response.text())
}
const answers = await Promise.all(Array.from({ length: 8 }, (_, i) => call('/generate', `${i}: `)))
const { text, loops } = JSON.parse(answers[3]!) as { text: string; loops: number[] }
const streamed = (await call('/stream', '3: '))
  .trimEnd()
  .split('\n')
  .map((line) => JSON.parse(line) as { text: string; loop: number })
console.log(`${answers.length} answers; the fourth has ${loops.length} tokens, and its stream is the same text:`)
console.log(streamed.map((piece) => piece.text).join('') === text)
await app.close()
