// The server inside your own program, called with OpenAI's client. `looplm serve FOLDER` is the same server as a separate program.
import { createServer } from 'looplm'
import OpenAI from 'openai'
import { openModel } from './model.js'

using model = await openModel()
const server = createServer(model, { name: 'local', port: 0, maxRunning: 8 })
const client = new OpenAI({ baseURL: `${await server.listen()}/v1`, apiKey: 'none' })

// OpenAI's types do not know looplm's fields; they pass all the same
const depth = { loops: 4, exit: { rule: 'gate', threshold: 0.5 } }
const request = { model: 'local', prompt: 'Looped models', max_tokens: 12, seed: 1, ...depth }

const { choices, usage } = await client.completions.create(request)
console.log('whole:', JSON.stringify(choices[0]!.text), usage)

let text = ''
for await (const chunk of await client.completions.create({ ...request, stream: true })) text += chunk.choices[0]?.text ?? ''
console.log('streamed the same text:', text === choices[0]!.text)
await server.close()
