// The server as OpenAI's own client meets it.
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer as createHttpServer, request as httpRequest, type IncomingMessage, type ServerResponse } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import OpenAI, { APIError, APIUserAbortError } from 'openai'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { createServer, LoopLM, type LoopLMServer, type ServeOptions, Tokenizer } from '../../src/index.js'
import { authorize } from '../../src/serve/access.js'
import { chatFormat, completionFormat } from '../../src/serve/responses.js'
import { writeOuroFolder } from '../ouro-folder.js'
import { refusal } from '../refusal.js'

let root: string
let model: LoopLM
let slow: LoopLM // without end tokens
let quick: LoopLM // without them too
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-serve-'))
  model = await LoopLM.fromPretrained(await writeOuroFolder(join(root, 'ouro')))
  const config = { hidden_size: 128, intermediate_size: 256, num_hidden_layers: 8 }
  slow = await LoopLM.fromPretrained(await writeOuroFolder(join(root, 'slow'), { config, endTokens: [] }))
  quick = await LoopLM.fromPretrained(await writeOuroFolder(join(root, 'quick'), { endTokens: [] }))
})
afterAll(async () => {
  model.dispose()
  slow.dispose()
  quick.dispose()
  await rm(root, { recursive: true })
})

const servers: LoopLMServer[] = []
async function serve(options: ServeOptions = {}, served = model) {
  const server = createServer(served, { name: 'tiny', port: 0, ...options })
  servers.push(server)
  const url = await server.listen()
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: options.apiKey ?? 'none', maxRetries: 0 })
  const metric = async (name: string) => {
    const headers: Record<string, string> = options.apiKey === undefined ? {} : { authorization: `Bearer ${options.apiKey}` }
    const text = await (await fetch(`${url}/metrics`, { headers })).text()
    return Number(new RegExp(`^${name.replaceAll(/[{}"]/g, '\\$&')} (.*)$`, 'm').exec(text)?.[1])
  }
  return { server, url, client, metric }
}
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()))
})

/** The refusal of a call of the client. */
async function apiError(call: Promise<unknown>): Promise<APIError> {
  const error = await call.then(
    () => undefined,
    (error: unknown) => error,
  )
  expect(error).toBeInstanceOf(APIError)
  return error as APIError
}

/** Extra fields of looplm, which the client's types do not know. */
type Extra = { loops: number[] }
const loopsOf = (choice: unknown) => (choice as Extra).loops
const meanLoops = (usage: unknown) => (usage as { mean_loops: number }).mean_loops

/** More tokens of the slow model than any of these tests waits for. */
const endless = { model: 'tiny', prompt: 'the', max_tokens: 4000 }
const until = async (what: () => Promise<boolean> | boolean, seconds = 300) => {
  for (const end = Date.now() + seconds * 1000; !(await what()); await new Promise((resolve) => setTimeout(resolve, 10)))
    if (Date.now() > end) throw new Error('waited in vain')
}

describe("OpenAI's client", () => {
  it('lists the model', async () => {
    const { client } = await serve()
    const { data } = await client.models.list()
    expect(data).toEqual([expect.objectContaining({ id: 'tiny', object: 'model', loops: 4, context: 4096 })])
    expect((await client.models.retrieve('tiny')).id).toBe('tiny')
    expect((await apiError(client.models.retrieve('other'))).status).toBe(404)
  })

  it('gets the completion that the model generates', async () => {
    const { client } = await serve()
    const [expected] = await model.generate(['in the'], { maxNewTokens: 12, temperature: 0.7, topP: 0.9, seed: 3 })
    const body = { model: 'tiny', prompt: 'in the', max_tokens: 12, temperature: 0.7, top_p: 0.9, seed: 3 }
    const completion = await client.completions.create(body)
    const [choice] = completion.choices
    expect(choice).toMatchObject({ index: 0, text: expected!.text, finish_reason: expected!.finishReason, logprobs: null })
    expect(loopsOf(choice)).toEqual(expected!.loops)
    const { usage } = completion
    const n = expected!.tokens.length
    const p = model.tokenizer!.encode('in the').length
    expect(usage).toMatchObject({ prompt_tokens: p, completion_tokens: n, total_tokens: p + n, mean_loops: 4 })
    const tokens = model.tokenizer!.encode('in the')
    expect((await client.completions.create({ ...body, prompt: tokens })).choices[0]!.text).toBe(expected!.text)
  })

  it('can set logit biases and penalties', async () => {
    const { client } = await serve()
    const own = { logitBias: { 40: 3, 41: -100 }, frequencyPenalty: 1.5, presencePenalty: -0.5, repetitionPenalty: 1.2 }
    const fields = { logit_bias: { 40: 3, 41: -100 }, frequency_penalty: 1.5, presence_penalty: -0.5, repetition_penalty: 1.2 }
    const [expected] = await model.generate(['in the'], { maxNewTokens: 12, seed: 3, logprobs: 2, ...own })
    const body = { model: 'tiny', prompt: 'in the', max_tokens: 12, seed: 3, logprobs: 2, ...fields }
    const { choices } = await client.completions.create(body)
    expect(choices[0]!.text).toBe(expected!.text)
    expect(choices[0]!.logprobs!.token_logprobs).toEqual(Array.from(expected!.logprobs))
    const [plain] = await model.generate(['in the'], { maxNewTokens: 12, seed: 3 })
    expect(plain!.tokens).not.toEqual(expected!.tokens)
  })

  it('gets the same answers with the prompt cache, which reuses earlier tokens', async () => {
    const { client, metric } = await serve()
    const { client: without, metric: metricWithout } = await serve({ promptCache: false })
    const ask = async (one: OpenAI, content: string) => {
      const messages = [
        { role: 'system' as const, content: 'You answer in few words and never say more than you know.' },
        { role: 'user' as const, content },
      ]
      const { choices, usage } = await one.chat.completions.create({ model: 'tiny', messages, max_completion_tokens: 6, seed: 4 })
      return { answer: choices[0]!.message.content, cached: usage!.prompt_tokens_details?.cached_tokens, usage }
    }
    for (const content of ['Who?', 'Where?', 'Where? When?']) {
      const [found, plain] = [await ask(client, content), await ask(without, content)]
      expect(found.answer).toBe(plain.answer)
      expect(plain.cached).toBe(0)
      if (content === 'Who?') expect(found.cached).toBe(0)
      else expect(found.cached).toBeGreaterThan(16)
      expect(found.cached).toBeLessThan(found.usage!.prompt_tokens)
    }
    const twice = { model: 'tiny', prompt: 'in the beginning was the word and the word was', n: 2, max_tokens: 2, seed: 1 }
    const streamed = { ...twice, stream: true as const, stream_options: { include_usage: true } }
    const { usage } = await client.completions.create(twice)
    let last: typeof usage | null
    for await (const chunk of await client.completions.create(streamed)) last = chunk.usage
    expect(last!.prompt_tokens_details!.cached_tokens).toBe(usage!.prompt_tokens - 1)
    // nothing runs any more: the cache holds ended prompts alone, or nothing
    const [kept, used] = [await metric('looplm_retained_tokens'), await metric('looplm_cached_tokens')]
    expect(kept).toBeGreaterThan(usage!.prompt_tokens)
    expect(used).toBe(kept)
    expect([await metricWithout('looplm_retained_tokens'), await metricWithout('looplm_cached_tokens')]).toEqual([0, 0])
  })

  it('gets a chat answer to the prompt that the template renders', async () => {
    const { client } = await serve()
    const messages = [{ role: 'user' as const, content: 'Hi é😀' }]
    const text = model.tokenizer!.applyChatTemplate(messages, { addGenerationPrompt: true })
    const prompt = model.tokenizer!.encode(text, { addSpecialTokens: false })
    const [expected] = await model.generate([prompt], { maxNewTokens: 30, seed: 8 })
    const chat = { model: 'tiny', messages, max_completion_tokens: 30, seed: 8 }
    const { choices, usage } = await client.chat.completions.create(chat)
    expect(choices[0]).toMatchObject({
      message: { role: 'assistant', content: expected!.text },
      finish_reason: expected!.finishReason,
    })
    expect(usage!.prompt_tokens).toBe(prompt.length)
    const parts = [
      {
        role: 'user' as const,
        content: [
          { type: 'text' as const, text: 'Hi ' },
          { type: 'text' as const, text: 'é😀' },
        ],
      },
    ]
    expect((await client.chat.completions.create({ ...chat, messages: parts })).choices[0]!.message).toEqual(choices[0]!.message)
    const plain = { ...chat, chat_template_kwargs: { enable_thinking: false } }
    expect((await client.chat.completions.create(plain)).usage!.prompt_tokens).toBeGreaterThan(prompt.length)
  })

  it('streams the same choices as in a whole answer, with the usage', async () => {
    const { client } = await serve()
    const body = { model: 'tiny', prompt: 'é 漢', max_tokens: 40, seed: 2, n: 3, logprobs: 0 }
    const whole = await client.completions.create(body)
    const texts = ['', '', '']
    const loops: number[][] = [[], [], []]
    const offsets: number[][] = [[], [], []]
    const reasons: unknown[] = []
    let usage: unknown
    const stream = await client.completions.create({ ...body, stream: true, stream_options: { include_usage: true } })
    for await (const chunk of stream) {
      for (const choice of chunk.choices) {
        texts[choice.index] += choice.text
        loops[choice.index]!.push(...loopsOf(choice))
        offsets[choice.index]!.push(...choice.logprobs!.text_offset!)
        if (choice.finish_reason !== null) reasons[choice.index] = choice.finish_reason
      }
      usage = chunk.usage ?? usage
    }
    expect(texts).toEqual(whole.choices.map(({ text }) => text))
    expect(loops).toEqual(whole.choices.map(loopsOf))
    expect(offsets).toEqual(whole.choices.map(({ logprobs }) => logprobs!.text_offset))
    expect(reasons).toEqual(whole.choices.map(({ finish_reason }) => finish_reason))
    expect(usage).toEqual(whole.usage)
    expect(new Set(texts).size).toBe(3)
  })

  it('streams a chat: the role first, then the text, then [DONE]', async () => {
    const { client, url } = await serve()
    const body = { model: 'tiny', messages: [{ role: 'user' as const, content: 'a' }], max_tokens: 20, seed: 1 }
    const whole = await client.chat.completions.create(body)
    const deltas = []
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
      expect(chunk.object).toBe('chat.completion.chunk')
      deltas.push(chunk.choices[0]!.delta)
    }
    expect(deltas[0]).toEqual({ role: 'assistant', content: '' })
    expect(deltas.map(({ content }) => content).join('')).toBe(whole.choices[0]!.message.content)
    const headers = { 'content-type': 'application/json' }
    const raw = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers,
      body: JSON.stringify({ ...body, stream: true }),
    })
    expect(raw.headers.get('content-type')).toBe('text/event-stream; charset=utf-8')
    expect((await raw.text()).endsWith('data: [DONE]\n\n')).toBe(true)
  })

  it('reads the log-probability of every token', async () => {
    const { client } = await serve()
    const prompt = model.tokenizer!.encode('the')
    const [expected] = await model.generate([prompt], { maxNewTokens: 10, temperature: 0 })
    const body = { model: 'tiny', prompt, max_tokens: 10, temperature: 0 }
    const { logprobs } = (await client.completions.create({ ...body, logprobs: 0 })).choices[0]!
    expect(logprobs!.token_logprobs).toEqual(Array.from(expected!.logprobs))
    expect(logprobs!.tokens).toHaveLength(expected!.tokens.length)
    const messages = [{ role: 'user' as const, content: 'b' }]
    const chat = await client.chat.completions.create({ model: 'tiny', messages, max_tokens: 10, seed: 2, logprobs: true })
    const content = chat.choices[0]!.logprobs!.content!
    const bytes = Buffer.from(content.flatMap(({ bytes }) => bytes!))
    const text = bytes.toString().replaceAll(/<\|\w+\|>/g, '') // special tokens are no text
    expect(text).toBe(chat.choices[0]!.message.content)
  })

  it('reads the most probable tokens beside the one that was drawn', async () => {
    const { client } = await serve()
    const body = { model: 'tiny', prompt: 'the', max_tokens: 6, seed: 5 }
    const [expected] = await model.generate(['the'], { maxNewTokens: 6, seed: 5, logprobs: 3 })
    const { logprobs } = (await client.completions.create({ ...body, logprobs: 3 })).choices[0]!
    expect(logprobs!.top_logprobs).toHaveLength(6)
    for (const [i, top] of logprobs!.top_logprobs!.entries()) {
      const drawn = expected!.logprobs[i]!
      const values = new Set([...expected!.topLogprobs![i]!.map(({ logprob }) => logprob), drawn])
      expect(Object.values(top).sort((a, b) => b - a)).toEqual([...values])
      expect(top[logprobs!.tokens![i]!]).toBe(drawn)
    }
    const messages = [{ role: 'user' as const, content: 'b' }]
    const chat = await client.chat.completions.create({
      ...body,
      prompt: undefined,
      messages,
      logprobs: true,
      top_logprobs: 2,
    } as never)
    const text = model.tokenizer!.applyChatTemplate(messages, { addGenerationPrompt: true })
    const prompt = model.tokenizer!.encode(text, { addSpecialTokens: false })
    const [said] = await model.generate([prompt], { maxNewTokens: 6, seed: 5, logprobs: 2 })
    const { content } = (chat as OpenAI.ChatCompletion).choices[0]!.logprobs!
    const values = (list: readonly { logprob: number }[]) => list.map(({ logprob }) => logprob)
    expect(content!.map(({ top_logprobs }) => values(top_logprobs))).toEqual(said!.topLogprobs!.map(values))
    expect(values(content!)).toEqual(Array.from(said!.logprobs))
  })

  it('keeps top tokens with the same text apart', () => {
    const tokenizer = Tokenizer.bytes() // the ids from 256 on are no text
    const logprob = -1
    const alternatives = [300, 65, 301, 302].map((token) => ({ token, logprob: -token }))
    const piece = {
      index: 0,
      text: '',
      reasoning: '',
      calls: [],
      tokens: [{ token: 301, logprob, loop: 1, alternatives }],
      finishReason: null,
    }
    const { choices } = completionFormat('tiny', tokenizer, true, () => []).delta(piece) as OpenAI.Completion
    expect(choices[0]!.logprobs).toMatchObject({
      tokens: [''],
      top_logprobs: [{ 'token_id:300': -300, A: -65, '': -301, 'token_id:302': -302 }],
    })
  })

  it('spells a token that is U+FEFF', () => {
    const tokenizer = Tokenizer.characters('a\ufeff')
    const tokens = [{ token: tokenizer.tokenId('\ufeff')!, logprob: -1, loop: 1, alternatives: [] }]
    const piece = { ...{ index: 0, text: '\ufeff', reasoning: '', calls: [] }, tokens, finishReason: null }
    const { choices } = chatFormat('tiny', tokenizer, true).delta(piece) as OpenAI.ChatCompletionChunk
    expect(choices[0]!.logprobs!.content).toMatchObject([{ token: '\ufeff', bytes: [0xef, 0xbb, 0xbf] }])
  })

  it.each([undefined, 'in no text'])('finds each token in the text by its offset, with stop string %j', async (stop) => {
    const { client } = await serve()
    const [prompt, seed, max_tokens] = ['é 漢', 2, 40]
    const offsets: number[] = []
    let text = ''
    for await (const chunk of model.stream(prompt, { maxNewTokens: max_tokens, seed })) {
      offsets.push(text.length)
      text += chunk.text
    }
    const body = { model: 'tiny', prompt, seed, max_tokens, logprobs: 0, ...(stop === undefined ? {} : { stop }) }
    const choice = (await client.completions.create(body)).choices[0]!
    expect(choice.text).toBe(text)
    expect(choice.logprobs!.tokens!.some((token) => token.startsWith('bytes:'))).toBe(true)
    expect(choice.logprobs!.text_offset).toEqual(offsets)
  })

  it('chooses loops and the exit rule', async () => {
    const { client } = await serve()
    const extra = { loops: 3, exit: { rule: 'gate', threshold: 1e-6 } }
    const { choices, usage } = await client.completions.create({ model: 'tiny', prompt: 'the', max_tokens: 5, ...extra })
    expect(loopsOf(choices[0])).toEqual(Array(loopsOf(choices[0]).length).fill(1))
    expect(meanLoops(usage)).toBe(1)
    const two = await client.completions.create({ model: 'tiny', prompt: 'the', max_tokens: 5, ...{ loops: 2 } })
    expect(meanLoops(two.usage)).toBe(2)
  })

  it('stops before a stop string, and still at end tokens', async () => {
    const { client } = await serve()
    const body = { model: 'tiny', prompt: 'the', max_tokens: 60, seed: 4 }
    const { text } = (await client.completions.create(body)).choices[0]!
    const stop = Array.from(text.replaceAll('\ufffd', ''))[3]!
    const cut = (await client.completions.create({ ...body, stop })).choices[0]!
    expect(cut).toMatchObject({ text: text.slice(0, text.indexOf(stop)), finish_reason: 'stop' })
    const many = await client.completions.create({ ...body, n: 32, max_tokens: 200, temperature: 3, stop: 'not in any text' })
    expect(many.choices.some(({ finish_reason }) => finish_reason === 'stop')).toBe(true)
  })
})

describe('a rejected request', () => {
  let client: OpenAI
  const chat = { model: 'tiny', messages: [{ role: 'user', content: 'a' }] }
  const completion = { model: 'tiny', prompt: 'a' }

  it.each([
    ['chat', { messages: chat.messages }, 400, 'model', /model: is missing/],
    ['chat', { ...chat, model: 'gpt' }, 404, 'model', /no model "gpt"; this server has "tiny"/],
    ['chat', { ...chat, messages: [] }, 400, 'messages', /messages: /],
    ['chat', { ...chat, messages: [{ content: 'a' }] }, 400, 'messages[0].role', /is missing/],
    ['chat', { ...chat, messages: [{ role: 'owl', content: 'a' }] }, 400, 'messages[0].role', /one of system, developer, user/],
    ['chat', { ...chat, messages: [{ role: 'user', content: [{ type: 'image_url' }] }] }, 400, 'messages[0].content', /text/],
    ['chat', { ...chat, temperature: -1 }, 400, 'temperature', />=0/],
    ['chat', { ...chat, temprature: 1 }, 400, 'temprature', /did you mean temperature\?/],
    ['chat', { ...chat, max_tokens: 0 }, 400, 'max_tokens', />=1/],
    ['chat', { ...chat, top_logprobs: 3 }, 400, 'top_logprobs', /needs logprobs/],
    ['chat', { ...chat, response_format: { type: 'json' } }, 400, 'response_format.type', /text/],
    ['chat', { ...chat, frequency_penalty: 3 }, 400, 'frequency_penalty', /<=2/],
    ['chat', { ...chat, presence_penalty: -2.5 }, 400, 'presence_penalty', />=-2/],
    ['completions', { ...completion, repetition_penalty: 0 }, 400, 'repetition_penalty', />0/],
    ['completions', { ...completion, logit_bias: { 5: 101 } }, 400, 'logit_bias.5', /<=100/],
    ['completions', { ...completion, logit_bias: { five: 1 } }, 400, 'logit_bias.five', /must be a token id/],
    ['completions', { ...completion, logit_bias: { 5000: 1 } }, 400, 'logit_bias', /5000 is not a token id of the model/],
    ['chat', { ...chat, n: 129 }, 400, 'n', /128/],
    ['completions', { ...completion, prompt: [1, 5000] }, 400, 'prompt[1]', /got 5000/],
    ['completions', { ...completion, prompt: '' }, 400, 'prompt', /no tokens/],
    ['completions', { ...completion, stop: [''] }, 400, 'stop[0]', />=1 char/],
    ['chat', { ...chat, echo: true }, 400, 'echo', /not repeated/],
    ['completions', { ...completion, loops: 5 }, 400, 'loops', /at most 4/],
    ['completions', { ...completion, exit: { rule: 'never' } }, 400, 'exit.rule', /gate/],
    ['completions', { ...completion, exit: { rule: 'kl' } }, 400, 'exit.threshold', /is missing/],
    ['completions', { ...completion, exit: { rule: 'gate', threshold: 0 } }, 400, 'exit.threshold', />0/],
    ['completions', { ...completion, exit: { rule: 'fixed', threshold: 0.5 } }, 400, 'exit.threshold', /fixed takes all loops/],
    ['completions', { ...completion, exit: { rule: 'fixed', min_loops: 2 } }, 400, 'exit.min_loops', /fixed takes all loops/],
    ['completions', { ...completion, exit: { rule: 'argmax-stable', threshold: 1 } }, 400, 'exit.threshold', /has none/],
    ['completions', { ...completion, exit: { rule: 'gate', min_loops: 5 } }, 400, 'exit.min_loops', /^400 exit\.min_loops: .*4/],
    ['completions', { ...completion, loops: 2, exit: { rule: 'gate', min_loops: 3 } }, 400, 'exit.min_loops', /the 2 loops/],
    ['completions', { ...completion, top_k: 1e12 }, 400, 'top_k', /^400 top_k: /],
    ['completions', { ...completion, exit: { rule: 'gate', max_loops: 2 } }, 400, 'exit.max_loops', /unknown/],
    ['completions', { ...completion, exit: 'gate' }, 400, 'exit', /"rule"/],
    ['completions', { ...completion, stream_options: { include_usage: true } }, 400, 'stream_options', /needs stream to be true/],
    ['completions', { ...completion, stream_options: { includeUsage: true } }, 400, 'stream_options.includeUsage', /unknown/],
  ] as const)('to %s with %j has status %i and names %s', async (kind, body, status, param, message) => {
    client ??= (await serve()).client
    servers.length = 0 // this one serves all the cases
    const path = kind === 'chat' ? '/chat/completions' : '/completions'
    const error = await apiError(client.post(path, { body }))
    expect(error.status).toBe(status)
    expect(error.message).toMatch(message)
    expect(error.param).toBe(param)
    expect(error.type).toBe('invalid_request_error')
  })

  /** What a client may ask with a field that must then show in the answer, or be refused. */
  const telling: Record<string, unknown> = {
    ...{ audio: { voice: 'alloy', format: 'wav' }, frequency_penalty: 0.5, presence_penalty: -1, logit_bias: { 5: 10 } },
    ...{ function_call: 'auto', functions: [{ name: 'f' }], logprobs: true, max_completion_tokens: 2, max_tokens: 2 },
    ...{ metadata: { a: 'b' }, modalities: ['text', 'audio'], moderation: { model: 'm' }, n: 2, parallel_tool_calls: false },
    ...{ prediction: { type: 'content', content: 'a' }, prompt_cache_key: 'a', prompt_cache_options: { mode: 'implicit' } },
    ...{
      prompt_cache_retention: '24h',
      reasoning_effort: 'low',
      response_format: { type: 'json_object' },
      safety_identifier: 'a',
    },
    ...{ seed: -5, service_tier: 'flex', stop: ['x', 'y'], store: true, stream: false, stream_options: { include_usage: true } },
    ...{ temperature: 1.5, tool_choice: 'required', top_logprobs: 2, top_p: 0.5, user: 'me', verbosity: 'low' },
    ...{ tools: [{ type: 'function', function: { name: 'f' } }], web_search_options: {} },
    ...{ best_of: 2, echo: true, suffix: 'end', model: 'tiny', prompt: 'a', messages: chat.messages },
  }
  it.each([
    ['/chat/completions', 'chat/completions/completions.d.ts', 'ChatCompletionCreateParamsBase', chat, {}],
    ['/completions', 'completions.d.ts', 'CompletionCreateParamsBase', completion, { logprobs: 2 }],
  ])(
    'to %s is one with a field that docs/serving.md lists as rejected',
    async (path, file, name, body, own: Record<string, unknown>) => {
      const { client } = await serve()
      const types = await readFile(join(import.meta.dirname, '..', '../node_modules/openai/resources', file), 'utf8')
      const fields = [...new RegExp(`interface ${name} \\{\\n([^]*?)\\n\\}`).exec(types)![1]!.matchAll(/^ {4}(\w+)\??:/gm)]
      expect(fields.length).toBeGreaterThan(15)
      const documentation = await readFile(join(import.meta.dirname, '..', '../docs/serving.md'), 'utf8')
      const named = (title: string) =>
        [...new RegExp(`\\* \\*\\*${title}\\*\\*([^]*?)\\n(?=[*\\n])`).exec(documentation)![1]!.matchAll(/`(\w+)`/g)].map(
          ([, field]) => field,
        )
      const [taken, ignored, refused] = [named('Supported'), named('Ignored'), named('Rejected')]
      for (const [, field] of fields) {
        const value = own[field!] ?? telling[field!]
        expect(value, `${field} is new to this test`).toBeDefined()
        const short = field!.startsWith('max_') ? body : { ...body, max_tokens: 8 }
        if (!(field! in body)) {
          const unset = client.post(path, { body: { ...short, [field!]: null } })
          await expect(unset, `${field} null`).resolves.toHaveProperty('choices')
        }
        const needed = {
          ...{ top_logprobs: { logprobs: true }, stream_options: { stream: true }, tool_choice: { tools: telling.tools } },
        }[field!]
        const request = { ...short, ...needed, [field!]: value }
        const call = client.post(path, { body: request })
        if (refused.includes(field)) {
          const error = await apiError(call)
          expect([error.status, error.param!.split(/[.[]/)[0]]).toEqual([400, field])
        } else {
          expect([...taken, ...ignored], field).toContain(field)
          await expect(call.then(JSON.stringify), field).resolves.toContain('choices') // an object, or the text of a stream
        }
      }
    },
  )

  it('with a chat that is too long renders the template only once', async () => {
    const { client } = await serve()
    const messages = Array.from({ length: 2000 }, () => ({ role: 'user' as const, content: 'a' }))
    const tools = [{ type: 'function' as const, function: { name: 'f', parameters: { x: Array(20_000).fill(1) } } }]
    const render = vi.spyOn(model.tokenizer!, 'applyChatTemplate')
    const error = await apiError(client.chat.completions.create({ model: 'tiny', messages, tools }))
    const rendered = render.mock.calls.filter(([given]) => given.length > 1)
    render.mockRestore()
    expect([error.status, error.code]).toEqual([400, 'context_length_exceeded'])
    expect(rendered).toHaveLength(1)
  })

  it('for a chat says when the model has no chat template', async () => {
    using plain = await LoopLM.fromPretrained(await writeOuroFolder(join(root, 'plain'), { template: 'none' }))
    const server = createServer(plain, { port: 0, name: 'tiny' })
    servers.push(server)
    const client = new OpenAI({ baseURL: `${await server.listen()}/v1`, apiKey: 'x', maxRetries: 0 })
    const call = client.chat.completions.create({ model: 'tiny', messages: [{ role: 'user', content: 'a' }] })
    expect((await apiError(call)).message).toMatch(/no chat template/)
    await server.close()
  })
})

describe('server options', () => {
  it('are named when wrong, and a host open to other machines needs a key', async () => {
    expect((await refusal(() => createServer(model, { port: -1 }))).message).toMatch(/createServer: port: .*got -1/)
    expect((await refusal(() => createServer(model, { prot: 1 } as never))).message).toMatch(/did you mean port/)
    for (const host of ['0.0.0.0', '::', '192.168.0.7', 'example.com'])
      expect((await refusal(() => createServer(model, { host }))).message).toMatch(/apiKey: is needed/)
    createServer(model, { host: '0.0.0.0', apiKey: 'k' })
    for (const wrong of [undefined, {}, Promise.resolve(model)])
      expect((await refusal(() => createServer(wrong as never))).message).toMatch(/createServer: model must be a LoopLM, as/)
    using bare = await LoopLM.create(model.config)
    expect((await refusal(() => createServer(bare))).message).toMatch(/no tokenizer/)
  })

  it.each(['https://a.com/', 'https://a.com/page', 'https://A.com', 'http://a.com:80', 'a.com', ''])(
    'reject %j as an origin, which browsers never send',
    async (origin) => {
      const { message } = await refusal(() => createServer(model, { corsOrigins: [origin] }))
      expect(message).toMatch(
        /corsOrigins\.0: must be \* or an origin as browsers send it, such as https:\/\/example\.com without/,
      )
      expect(message).toContain(`got ${JSON.stringify(origin)}`)
    },
  )

  it('accept every origin that browsers and apps send', () => {
    const corsOrigins = ['*', 'null', 'https://a.com', 'http://localhost:3000', 'http://[::1]:8080', 'tauri://localhost']
    expect(createServer(model, { corsOrigins }).settings.corsOrigins).toEqual(corsOrigins)
  })

  it('let requests without a Host header pass on every address of this machine, and no others', () => {
    const ask = (authority: string | undefined, host: string) => () =>
      authorize({ headers: {} } as IncomingMessage, authority, host, undefined)
    for (const host of ['::1', '127.0.0.1', 'localhost']) expect(ask(undefined, host)).not.toThrow()
    for (const authority of ['[::1]:8080', '127.0.0.1:8080', 'localhost']) expect(ask(authority, '::1')).not.toThrow()
    expect(ask('example.com:8080', '::1')).toThrow(/host example\.com is not this machine/)
  })

  it('with a port in use fail with the reason', async () => {
    const { url } = await serve()
    const second = createServer(model, { port: Number(new URL(url).port) })
    expect((await refusal(() => second.listen())).message).toMatch(
      /cannot listen on 127\.0\.0\.1:\d+: .*EADDRINUSE.*choose another port/,
    )
  })
})

describe('access', () => {
  it('needs the API key when one is set', async () => {
    const { client, url } = await serve({ apiKey: 'secret' })
    await client.models.list()
    const other = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'wrong', maxRetries: 0 })
    const error = await apiError(other.models.list())
    expect([error.status, error.code]).toEqual([401, 'invalid_api_key'])
    expect((await fetch(`${url}/metrics`)).status).toBe(401)
    expect((await fetch(`${url}/health`)).status).toBe(200)
    const lower = await fetch(`${url}/v1/models`, { headers: { authorization: 'bearer secret' } })
    expect(lower.status).toBe(200) // names of schemes have no case
  })

  it.each([
    ['http://localhost/v1/models?a=/', 200],
    ['http://localhost/v1/nothing', 404],
    ['http://page.example/v1/models', 403], // it counts more than the Host header
  ])('with an absolute URL as the request target: %s has status %i', async (path, status) => {
    const { port } = new URL((await serve()).url)
    const answer = await new Promise<IncomingMessage>((resolve, reject) =>
      httpRequest({ port, path, headers: { host: 'localhost' } }, resolve)
        .on('error', reject)
        .end(),
    )
    expect(answer.resume().statusCode).toBe(status)
  })

  it('is denied to web pages unless corsOrigins names them', async () => {
    const { url } = await serve()
    const origin = { origin: 'https://page.example' }
    const preflight = await fetch(`${url}/v1/completions`, { method: 'OPTIONS', headers: origin })
    expect([preflight.status, preflight.headers.get('allow')]).toEqual([204, 'POST, OPTIONS'])
    expect(preflight.headers.get('access-control-allow-origin')).toBeNull()
    const simple = await fetch(`${url}/v1/completions`, { method: 'POST', headers: origin, body: '{}' })
    expect(simple.status).toBe(415) // what a page may send without asking first
    const open = await serve({ corsOrigins: ['https://page.example'] })
    const allowed = await fetch(`${open.url}/v1/models`, { headers: origin })
    expect(allowed.headers.get('access-control-allow-origin')).toBe('https://page.example')
    const headers = { ...origin, 'access-control-request-headers': 'authorization' }
    const asked = await fetch(`${open.url}/v1/completions`, { method: 'OPTIONS', headers })
    const permitted = ['origin', 'methods', 'headers'].map((what) => asked.headers.get(`access-control-allow-${what}`))
    expect([asked.status, ...permitted]).toEqual([204, 'https://page.example', 'GET, POST', 'authorization'])
    const stranger = await fetch(`${open.url}/v1/models`, { headers: { origin: 'https://other.example' } })
    expect(stranger.headers.get('access-control-allow-origin')).toBeNull()
  })
})

describe('load', () => {
  it('of 32 clients at once gives each what it gets alone', async () => {
    const { client } = await serve({ maxRunning: 7 })
    const requests = Array.from({ length: 32 }, (_, i) => ({
      prompt: Array.from({ length: 1 + i }, (_, j) => 3 + ((7 * i + j) % 250)),
      seed: i,
      options: { maxNewTokens: 5 + (i % 11), temperature: 0.8, exit: { rule: 'gate' as const, threshold: 0.3 + 0.02 * i } },
    }))
    const answers = await Promise.all(
      requests.map(async ({ prompt, seed, options }, i) => {
        const { maxNewTokens: max_tokens, temperature, exit } = options
        const body = { model: 'tiny', prompt, seed, max_tokens, temperature, ...{ exit } }
        if (i % 2 === 0) return (await client.completions.create(body)).choices[0]!.text
        let text = ''
        for await (const { choices } of await client.completions.create({ ...body, stream: true })) text += choices[0]!.text
        return text
      }),
    )
    for (const [i, { prompt, seed, options }] of requests.entries()) {
      const [alone] = await model.generate([prompt], { ...options, seed })
      expect(answers[i]).toBe(alone!.text)
    }
  })

  it('beyond the queue is rejected with 429 and Retry-After; accepted requests are answered', async () => {
    const { client, url, metric } = await serve({ maxRunning: 2, maxWaiting: 3 }, slow)
    const call = () => client.completions.create({ model: 'tiny', prompt: 'the', max_tokens: 20 })
    const outcomes = await Promise.allSettled(Array.from({ length: 12 }, call))
    const refused = outcomes.filter((outcome) => outcome.status === 'rejected').map(({ reason }) => reason as APIError)
    expect(refused.length).toBeGreaterThan(0)
    for (const error of refused) {
      expect(error.status).toBe(429)
      expect(Number(error.headers!.get('retry-after'))).toBeGreaterThanOrEqual(1)
    }
    expect(outcomes.length - refused.length).toBeGreaterThanOrEqual(5)
    expect(await metric('looplm_requests_total{path="/v1/completions",status="429"}')).toBe(refused.length)
    const tooMany = await apiError(client.completions.create({ model: 'tiny', prompt: 'a', n: 6 }))
    expect([tooMany.status, tooMany.param]).toEqual([400, 'n'])
    expect(await (await fetch(`${url}/health`)).json()).toMatchObject({ status: 'ok', running: 0, waiting: 0 })
  })

  it('beyond the cache waits for room and is answered', async () => {
    const { client, metric } = await serve({ maxCachedTokens: 100 }, slow)
    const call = () => client.completions.create({ model: 'tiny', prompt: 'the', max_tokens: 60 })
    const answers = await Promise.all([call(), call(), call()])
    expect(answers.map(({ usage }) => usage!.completion_tokens)).toEqual([60, 60, 60])
    expect(await metric('looplm_cached_tokens')).toBe(0)
    const { usage } = await client.completions.create({ model: 'tiny', prompt: 'the', max_tokens: 100 })
    expect(usage!.completion_tokens).toBe(99)
    const error = await apiError(client.completions.create({ model: 'tiny', prompt: Array(100).fill(5) }))
    expect(error.message).toMatch(/prompt: 100 tokens leave no room for an answer in the context of 100 tokens/)
  })

  it('is counted for Prometheus', async () => {
    const { client, url, metric } = await serve()
    const { usage } = await client.completions.create({ model: 'tiny', prompt: 'the', max_tokens: 9, n: 2 })
    expect(await metric('looplm_prompt_tokens_total')).toBe(usage!.prompt_tokens)
    expect(await metric('looplm_generated_tokens_total')).toBe(usage!.completion_tokens)
    expect(await metric('looplm_token_loops_bucket{le="3"}')).toBe(0)
    expect(await metric('looplm_token_loops_bucket{le="4"}')).toBe(usage!.completion_tokens)
    expect(await metric('looplm_time_to_first_token_seconds_count')).toBe(2)
    const text = await (await fetch(`${url}/metrics`)).text()
    for (const line of text.trimEnd().split('\n')) expect(line).toMatch(/^(# (HELP|TYPE) \w+ .+|\w+(\{[^}]*\})? [-\d.e+]+)$/)
  })
})

describe('a client that disconnects', () => {
  it.each([
    ['a stream', true],
    ['a whole answer', false],
  ])('during %s frees its rows at once', async (_what, streamed) => {
    const { client, metric } = await serve({ maxRunning: 4 }, slow)
    const controller = new AbortController()
    const { signal } = controller
    const read = async () => {
      if (!streamed) return client.completions.create({ ...endless, n: 8 }, { signal })
      for await (const _ of await client.completions.create({ ...endless, n: 8, stream: true }, { signal }));
    }
    const reading = read().catch((error: unknown) => error)
    await until(async () => (await metric('looplm_generated_tokens_total')) > 10)
    expect(await metric('looplm_sequences_running')).toBe(4)
    expect(await metric('looplm_sequences_waiting')).toBe(4)
    expect(await metric('looplm_cached_tokens')).toBeGreaterThan(4000)
    controller.abort()
    const ended = await reading // a stream ends quietly
    if (streamed) expect(ended).toBeUndefined()
    else expect(ended).toBeInstanceOf(APIUserAbortError)
    await until(async () => (await metric('looplm_sequences_running')) === 0) // which they are not by themselves
    expect(await metric('looplm_sequences_waiting')).toBe(0)
    expect(await metric('looplm_disconnects_total')).toBe(1)
    await until(async () => (await metric('looplm_cached_tokens')) === 0) // before the engine's next pass
    // and the places are of use to others
    const { choices } = await client.completions.create({ model: 'tiny', prompt: 'the', max_tokens: 3, n: 4 })
    expect(choices).toHaveLength(4)
  })
})

describe('listening', () => {
  it('again gives the same address', async () => {
    const { server, url } = await serve()
    expect(await Promise.all([server.listen(), server.listen()])).toEqual([url, url])
  })

  it('can be tried again after a failure', async () => {
    const host = createHttpServer()
    await new Promise<void>((resolve) => host.listen(0, '127.0.0.1', resolve))
    const { port } = host.address() as AddressInfo
    const server = createServer(model, { port })
    servers.push(server)
    expect((await refusal(() => server.listen())).message).toMatch(/EADDRINUSE/)
    await new Promise((resolve) => host.close(resolve))
    expect(await server.listen()).toBe(`http://127.0.0.1:${port}`)
  })

  it.each(['127.0.0.1', 'localhost'])('on %s ends with close, even before it has begun', async (host) => {
    const server = createServer(model, { host, port: 0 })
    const listening = server.listen()
    await server.close()
    await expect(fetch(await listening)).rejects.toThrow()
    expect(await refusal(() => server.listen())).toMatchObject({ code: 'DISPOSED', message: /create another/ })
  })
})

describe('stopping', () => {
  it('lets running answers finish and rejects new requests', async () => {
    const { server, client, url, metric } = await serve({}, slow)
    const answer = client.completions.create({ ...endless, max_tokens: 60 })
    await until(async () => (await metric('looplm_generated_tokens_total')) > 2)
    const closing = server.close()
    const late = await fetch(`${url}/health`).then(
      ({ status }) => status,
      () => 'refused',
    )
    expect([503, 'refused']).toContain(late)
    expect((await answer).choices[0]!.finish_reason).toBe('length')
    await closing
  })

  it('ends answers that exceed stopTimeout, with a message', async () => {
    const { server, client, metric } = await serve({ stopTimeout: 0.2 }, slow)
    const whole = apiError(client.completions.create(endless))
    const stream = await client.completions.create({ ...endless, stream: true })
    const streamed = apiError(
      (async () => {
        for await (const _ of stream);
      })(),
    )
    await until(async () => (await metric('looplm_sequences_running')) === 2)
    await server.close()
    expect((await whole).status).toBe(503)
    expect((await streamed).message).toMatch(/the server is stopping/)
  })
})

describe('mounted into another server', () => {
  it('answers until it is closed', async () => {
    const server = createServer(model, { name: 'tiny' })
    const host = createHttpServer((request, response) => {
      if (request.url === '/mine') response.end('mine')
      else server.handler(request, response)
    })
    await new Promise<void>((resolve) => host.listen(0, '127.0.0.1', resolve))
    const url = `http://127.0.0.1:${(host.address() as AddressInfo).port}`
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 })
    expect((await client.completions.create({ model: 'tiny', prompt: 'the', max_tokens: 3 })).usage!.prompt_tokens).toBe(1)
    expect(await (await fetch(`${url}/mine`)).text()).toBe('mine')
    await server.close()
    expect((await apiError(client.completions.create({ model: 'tiny', prompt: 'the' }))).status).toBe(503)
    host.close()
    host.closeAllConnections()
  })

  /** The answer of a server in which `first` meets a request before the handler does. */
  async function behind(first: (request: IncomingMessage & { body?: unknown }) => Promise<void>, log?: (line: string) => void) {
    const server = createServer(model, { name: 'tiny', ...(log === undefined ? {} : { log }) })
    const host = createHttpServer((request: IncomingMessage, response: ServerResponse) => {
      first(request).then(() => server.handler(request, response))
    })
    await new Promise<void>((resolve) => host.listen(0, '127.0.0.1', resolve))
    const url = `http://127.0.0.1:${(host.address() as AddressInfo).port}/v1/completions`
    const headers = { 'content-type': 'application/json' }
    const answer = await fetch(url, { method: 'POST', headers, body: JSON.stringify({ model: 'tiny', prompt: 'the' }) })
    const body = (await answer.json()) as { choices?: unknown[]; error?: { message: string } }
    await server.close()
    host.close()
    host.closeAllConnections()
    return { status: answer.status, ...body }
  }
  const bytesOf = async (request: IncomingMessage) => Buffer.concat(await request.toArray())

  it.each([
    ['a value, as express.json() leaves it', (bytes: Buffer) => JSON.parse(bytes.toString())],
    ['a text', (bytes: Buffer) => bytes.toString()],
    ['bytes', (bytes: Buffer) => bytes],
  ])('answers after a body parser has made the body %s', async (_what, parse) => {
    const { status, choices } = await behind(async (request) => {
      request.body = parse(await bytesOf(request))
    })
    expect([status, choices?.length]).toEqual([200, 1])
  })

  it('fails with a remedy when the body was already read', async () => {
    const log: string[] = []
    const { status, error } = await behind(
      (request) => bytesOf(request).then(() => {}),
      (line) => log.push(line),
    )
    expect(status).toBe(500)
    expect(error!.message).toMatch(/body was read before the handler was called; set request\.body/)
    expect(log.join()).toContain('set request.body')
  })
})

describe('a client that does not read', () => {
  // more than the system's own buffers take: every piece of the answer names the model
  const name = 'tiny'.repeat(10_000)
  const tokens = { n: 4, max_tokens: 150 }
  const body = JSON.stringify({ ...endless, ...tokens, model: name, stream: true, loops: 1 })

  /** The socket of a client that has asked and does not read. */
  function ask(url: string) {
    const headers = ['host: localhost', 'content-type: application/json', `content-length: ${body.length}`, 'connection: close']
    const socket = connect(Number(new URL(url).port), '127.0.0.1', () => {
      socket.pause().write(`POST /v1/completions HTTP/1.1\r\n${headers.join('\r\n')}\r\n\r\n${body}`)
    })
    const read = { bytes: 0, end: '', closed: false, limit: Number.POSITIVE_INFINITY }
    socket
      .on('error', () => {})
      .on('data', (data) => {
        read.bytes += data.length
        read.end = (read.end + data).slice(-100)
        if (read.bytes >= read.limit) socket.pause()
      })
      .on('close', () => {
        read.closed = true
      })
    return { socket, read }
  }

  it('does not block others once its answer is generated', async () => {
    const { url, client, metric } = await serve({ name, maxRunning: 4, maxWaiting: 0, writeTimeout: 300 }, quick)
    const { socket } = ask(url)
    const generated = () => metric('looplm_generated_tokens_total')
    await until(async () => (await generated()) === tokens.n * tokens.max_tokens)
    await until(async () => (await metric('looplm_sequences_running')) === 0)
    expect(await metric('looplm_cached_tokens')).toBe(0)
    expect(await metric('looplm_requests_open')).toBe(1)
    expect((await client.completions.create({ model: name, prompt: 'the', max_tokens: 3, n: 4 })).choices).toHaveLength(4)
    socket.destroy()
    await until(async () => (await metric('looplm_requests_open')) === 0)
    expect(await metric('looplm_disconnects_total')).toBe(1)
  })

  it.each([
    ['writeTimeout', { writeTimeout: 0.5 }],
    ['requestTimeout', { requestTimeout: 3 }],
  ])('is disconnected after %s', async (_, limit) => {
    const { url, metric } = await serve({ name, ...limit }, quick)
    const { socket, read } = ask(url)
    await until(async () => (await metric('looplm_requests_open')) > 0)
    await until(async () => (await metric('looplm_requests_open')) === 0)
    socket.resume()
    await until(() => read.closed)
    expect(read.bytes).toBeGreaterThan(0)
    expect(read.end).not.toContain('[DONE]')
  })

  it('is not disconnected as long as it continues to read', async () => {
    const { url, metric } = await serve({ name, writeTimeout: 1 }, quick)
    const { socket, read } = ask(url)
    await until(async () => (await metric('looplm_requests_open')) > 0)
    const start = performance.now()
    while (!read.closed) {
      read.limit = read.bytes + 800_000
      socket.resume()
      await until(() => read.bytes >= read.limit || read.closed)
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
    expect(read.bytes).toBeGreaterThan(10_000_000) // more than ten pauses
    expect(performance.now() - start).toBeGreaterThan(1000) // longer than the limit
    expect(read.end).toContain('data: [DONE]')
    expect(await metric('looplm_disconnects_total')).toBe(0)
  })
})

describe('requestTimeout', () => {
  it('limits the time for an answer', async () => {
    const { client } = await serve({ requestTimeout: 0.3 }, slow)
    const error = await apiError(client.completions.create(endless))
    expect([error.status, error.code]).toEqual([504, 'timeout'])
  })
})
