// What clients send beyond a plain prompt, and what they get: echo, embeddings, thoughts, neutral fields, limits, errors.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect } from 'node:util'
import OpenAI, { APIError } from 'openai'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { createServer, LoopLM, LoopLMError, type LoopLMServer, type ServeOptions, Tokenizer } from '../../src/index.js'
import { writeOuroFolder } from '../ouro-folder.js'

let root: string
let model: LoopLM
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-requests-'))
  model = await LoopLM.fromPretrained(await writeOuroFolder(join(root, 'ouro')))
})
afterAll(async () => {
  model.dispose()
  await rm(root, { recursive: true })
})

const servers: LoopLMServer[] = []
async function serve(options: ServeOptions = {}, served = model) {
  const log: string[] = []
  const server = createServer(served, { name: 'tiny', port: 0, log: (line) => log.push(line), ...options })
  servers.push(server)
  const url = await server.listen()
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: options.apiKey ?? 'none', maxRetries: 0 })
  const post = async (path: string, body: unknown) => {
    const text = typeof body === 'string' ? body : JSON.stringify(body)
    const answer = await fetch(url + path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: text })
    // biome-ignore lint/suspicious/noExplicitAny: answers of every form
    return { status: answer.status, headers: answer.headers, body: (await answer.json()) as any }
  }
  return { server, url, client, log, post }
}
afterEach(async () => {
  vi.restoreAllMocks()
  await Promise.all(servers.splice(0).map((server) => server.close()))
})

const chat = { model: 'tiny', messages: [{ role: 'user', content: 'a' }], max_tokens: 2, seed: 1 }
const completion = { model: 'tiny', prompt: 'the', max_tokens: 2, seed: 1 }

describe('echo', () => {
  it.each([0, 1])("gives a harness the log-probabilities of a prompt's tokens, with max_tokens %i", async (max_tokens) => {
    const { post } = await serve()
    // as lm-evaluation-harness's local-completions sends it
    const prompts = [[5, 100, 7, 260, 9], [40, 41], [9]]
    const request = { model: 'tiny', prompt: prompts, temperature: 0, max_tokens, logprobs: 1, seed: 1234, echo: true }
    const { status, body } = await post('/v1/completions', request)
    expect(status).toBe(200)
    const { logprobs } = await model.score(prompts.slice(0, 2), { lastLoop: true })
    const best = await model.score(prompts.slice(0, 2), { lastLoop: true, predictions: true })
    for (const [i, prompt] of prompts.entries()) {
      const { logprobs: given, text, finish_reason, loops } = body.choices[i]
      const rows = prompt.length === 1 ? [] : Array.from(logprobs[i]!)
      expect(given.token_logprobs.slice(0, prompt.length)).toEqual([null, ...rows])
      expect(given.top_logprobs[0]).toBeNull()
      for (const [j, row] of rows.entries()) {
        const top: Record<string, number> = given.top_logprobs[j + 1]
        const greedy = best.predicted![i]![j] === prompt[j + 1]
        expect(row === Math.max(...Object.values(top)), 'the harness calls it greedy').toBe(greedy)
        expect(Object.keys(top)).toHaveLength(greedy ? 1 : 2)
      }
      expect(given.tokens).toHaveLength(prompt.length + max_tokens)
      expect(loops).toHaveLength(max_tokens)
      if (max_tokens === 0) expect([text, finish_reason]).toEqual([model.tokenizer!.decode(prompt), 'length'])
    }
    expect(body.usage).toMatchObject({ prompt_tokens: 8, completion_tokens: 3 * max_tokens })
  })

  it('prepends the prompt to every choice, whole and streamed, with token offsets', async () => {
    const { client, post } = await serve()
    const request = { model: 'tiny', prompt: ['the é漢 in', 'an'], max_tokens: 6, seed: 3, n: 2, logprobs: 2 }
    const plain = await client.completions.create(request)
    const { choices, usage } = await client.completions.create({ ...request, echo: true })
    expect(usage).toEqual(plain.usage)
    for (const [i, { text, logprobs }] of choices.entries()) {
      const prompt = request.prompt[Math.floor(i / 2)]!
      expect(text).toBe(prompt + plain.choices[i]!.text)
      const ids = model.tokenizer!.encode(prompt)
      const behind = (list: readonly unknown[]) => list.slice(ids.length)
      expect(behind(logprobs!.token_logprobs!)).toEqual(plain.choices[i]!.logprobs!.token_logprobs)
      expect(behind(logprobs!.text_offset!)).toEqual(
        plain.choices[i]!.logprobs!.text_offset!.map((offset) => offset + prompt.length),
      )
      for (const [j, token] of logprobs!.tokens!.slice(0, ids.length).entries())
        if (!token.startsWith('bytes:')) expect(text.slice(logprobs!.text_offset![j]).startsWith(token)).toBe(true)
    }
    const texts = ['', '', '', '']
    const scores: unknown[][] = [[], [], [], []]
    for await (const { choices } of await client.completions.create({ ...request, echo: true, stream: true }))
      for (const { index, text, logprobs } of choices) {
        texts[index] += text
        scores[index]!.push(...logprobs!.token_logprobs!)
      }
    expect(texts).toEqual(choices.map(({ text }) => text))
    expect(scores).toEqual(choices.map(({ logprobs }) => logprobs!.token_logprobs))
    const bare = await post('/v1/completions', { ...request, logprobs: null, echo: true, max_tokens: 0 })
    expect(bare.body.choices.map(({ text }: { text: string }) => text)).toEqual(['the é漢 in', 'the é漢 in', 'an', 'an'])
  })

  it('includes start tokens of the tokenizer, which are not in the text', async () => {
    using small = await LoopLM.create({ ...model.config, vocab_size: 300 }, { seed: 3 })
    const json = JSON.parse(JSON.stringify(await tokenizerWithStart()))
    small.tokenizer = new Tokenizer(json, { bos_token: '<s>' })
    const { client } = await serve({}, small)
    const { choices } = await client.completions.create({ model: 'tiny', prompt: 'ab', max_tokens: 0, logprobs: 0, echo: true })
    expect(choices[0]).toMatchObject({ text: 'ab', logprobs: { tokens: ['<s>', 'a', 'b'], text_offset: [0, 0, 1] } })
    const without = { model: 'tiny', prompt: 'ab', max_tokens: 0, logprobs: 0, echo: true, add_special_tokens: false }
    expect((await client.completions.create(without)).choices[0]!.logprobs!.tokens).toEqual(['a', 'b'])
  })

  it('scores prompts after the requested loops, and batches those of many requests', async () => {
    const { client, url } = await serve()
    const real = model.score.bind(model)
    let open = () => {}
    const gate = new Promise<void>((resolve) => {
      open = resolve
    })
    const score = vi.spyOn(model, 'score').mockImplementation(async (...args) => {
      await gate
      return real(...args)
    })
    const ask = (prompt: number[], loops?: number) =>
      client.completions.create({
        ...{ model: 'tiny', prompt, max_tokens: 0, logprobs: 0, echo: true },
        ...(loops === undefined ? {} : { loops }),
      })
    const prompts = Array.from({ length: 24 }, (_, i) => [5 + i, 6, 7])
    const asked = prompts.map((prompt) => ask(prompt))
    const running = async () => ((await (await fetch(`${url}/health`)).json()) as { running: number }).running
    await expect.poll(running).toBe(24)
    open()
    const answers = await Promise.all(asked)
    expect(score.mock.calls.length).toBeLessThan(4) // those that came first, and the rest
    const { logprobs } = await model.score(prompts, { lastLoop: true })
    for (const [i, { choices }] of answers.entries())
      expect(choices[0]!.logprobs!.token_logprobs!.slice(1)).toEqual(Array.from(logprobs[i]!))
    const two = await model.score([[5, 6, 7]], { lastLoop: true, loops: 2 })
    expect((await ask([5, 6, 7], 2)).choices[0]!.logprobs!.token_logprobs!.slice(1)).toEqual(Array.from(two.logprobs[0]!))
  })

  it('is rejected for too many log-probabilities', async () => {
    const { post } = await serve()
    const prompts = Array.from({ length: 50 }, () => Array(1000).fill(5))
    const { status, body } = await post('/v1/completions', {
      model: 'tiny',
      prompt: prompts,
      echo: true,
      logprobs: 20,
      max_tokens: 0,
    })
    expect([status, body.error.param]).toEqual([400, 'logprobs'])
    expect(body.error.message).toMatch(/have 1050000 log-probabilities, at most 1000000/)
  })

  it('fails for one prompt without affecting others in the batch', async () => {
    const { post, log } = await serve()
    const real = model.score.bind(model)
    vi.spyOn(model, 'score').mockImplementation((sequences, options) => {
      if (sequences.some(([first]) => first === 13)) throw new LoopLMError('INTERNAL', 'no luck in /secret/file')
      return real(sequences, options)
    })
    const ask = (first: number) =>
      post('/v1/completions', { model: 'tiny', prompt: [first, 6], max_tokens: 0, logprobs: 0, echo: true })
    const answers = await Promise.all([12, 13, 14, 15].map(ask))
    expect(answers.map(({ status }) => status)).toEqual([200, 500, 200, 200])
    expect(answers[1]!.body.error.message).not.toContain('secret')
    expect(log.join()).toContain('/secret/file')
  })
})

/** A tokenizer.json of bytes that begins every text with <s>. */
async function tokenizerWithStart() {
  const folder = join(root, 'bytes')
  await Tokenizer.bytes({ special: { bos: '<s>' } }).save(folder)
  const json = JSON.parse(await readFile(join(folder, 'tokenizer.json'), 'utf8'))
  const start = { SpecialToken: { id: '<s>', type_id: 0 } }
  return {
    ...json,
    post_processor: {
      type: 'TemplateProcessing',
      single: [start, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [256], tokens: ['<s>'] } },
    },
  }
}

describe('embeddings', () => {
  const dot = (a: readonly number[], b: readonly number[]) => a.reduce((sum, value, i) => sum + value * b[i]!, 0)

  it('are those of the model, scaled to length 1, as numbers and as base64', async () => {
    const { client, post } = await serve()
    const inputs = ['the', 'in the', '漢']
    const ids = inputs.map((input) => model.tokenizer!.encode(input))
    const own = await model.embed(ids)
    const { data, usage } = await client.embeddings.create({ model: 'tiny', input: inputs, encoding_format: 'float' })
    expect(usage).toEqual({ prompt_tokens: ids.flat().length, total_tokens: ids.flat().length })
    for (const [i, { index, embedding }] of data.entries()) {
      expect(index).toBe(i)
      expect(dot(embedding, embedding)).toBeCloseTo(1, 12)
      expect(dot(embedding, Array.from(own[i]!))).toBeCloseTo(Math.sqrt(dot(Array.from(own[i]!), Array.from(own[i]!))), 5)
    }
    const base64 = await client.embeddings.create({ model: 'tiny', input: ids }) // the client asks for base64 and reads it
    expect(base64.data.map(({ embedding }) => embedding)).toEqual(
      data.map(({ embedding }) => Array.from(Float32Array.from(embedding))),
    )
    const raw = await post('/v1/embeddings', { model: 'tiny', input: 'the', encoding_format: 'base64' })
    expect(Buffer.from(raw.body.data[0].embedding, 'base64')).toHaveLength(4 * model.config.hidden_size)
  })

  it('accept one string, one list of ids, one token, fewer loops', async () => {
    const { post } = await serve()
    const ask = async (body: object) => (await post('/v1/embeddings', { model: 'tiny', ...body })).body.data.length
    expect(await ask({ input: 'the' })).toBe(1)
    expect(await ask({ input: [5, 6, 7] })).toBe(1)
    expect(await ask({ input: [5], loops: 2, user: 'me', dimensions: null })).toBe(1)
    expect(await ask({ input: [5], dimensions: model.config.hidden_size })).toBe(1)
    expect(await ask({ input: Array(200).fill('in the'), encoding_format: null })).toBe(200)
  })

  it.each([
    [{ input: '' }, 'input'],
    [{ input: ['a', ''] }, 'input[1]'],
    [{ input: [] }, 'input'],
    [{ input: 'a', dimensions: 8 }, 'dimensions'],
    [{ input: 'a', encoding_format: 'int8' }, 'encoding_format'],
    [{ input: 'a', loops: 9 }, 'loops'],
    [{ input: Array(4097).fill(5) }, 'input'],
    [{ input: 'a', inptu: 1 }, 'inptu'],
    [{ input: 'a', model: 'other' }, 'model'],
  ])('of %j are rejected, naming the field', async (body, param) => {
    const { post } = await serve()
    const answer = await post('/v1/embeddings', { model: 'tiny', ...body })
    expect(answer.status).toBe('model' in body ? 404 : 400)
    expect(answer.body.error.param).toBe(param)
  })
})

describe('a field of a request', () => {
  const both: [string, ...unknown[]][] = [
    ['repetition_penalty', 1],
    ['frequency_penalty', 0, -0],
    ['presence_penalty', 0],
    ['length_penalty', 1],
    ['min_tokens', 0],
    ['ignore_eos', false],
    ['skip_special_tokens', true],
    ['spaces_between_special_tokens', true, false],
    ['include_stop_str_in_output', false],
    ['use_beam_search', false],
    ['top_k', -1, 0],
    ['min_p', 0],
    ['typical_p', 1],
    ['stop', '', []],
    ['stop_token_ids', []],
    ['logit_bias', {}],
    ['n', 1],
    ['best_of', 1],
    ['user', 'me'],
    ['metadata', {}, { a: 'b' }],
    ['store', false],
    ['service_tier', 'auto'],
    ['priority', 0],
    ['bad_words', []],
    ['cache_prompt', true],
    ['truncate_prompt_tokens'],
    ['guided_json'],
    ['stream', false],
    ['stream_options', {}, { include_usage: false }, { include_usage: null }],
    ['a_field_of_tomorrow'],
    ['temperature', 1],
    ['top_p', 1],
    ['seed', 1],
    ['exit'],
    ['loops'],
  ]
  const cases: [string, string, object, [string, ...unknown[]][]][] = [
    ['completions', '/v1/completions', completion, [...both, ['suffix', ''], ['logprobs', false], ['echo', false]]],
    [
      'chats',
      '/v1/chat/completions',
      chat,
      [
        ...both,
        ['parallel_tool_calls', true],
        ['response_format', { type: 'text' }],
        ['modalities', ['text']],
        ['tool_choice', 'auto'],
        ['tools', []],
        ['reasoning_effort', 'medium'],
        ['add_generation_prompt', true],
        ['continue_final_message', false],
        ['chat_template_kwargs', {}, { enable_thinking: null }],
        ['logprobs', false],
        ['top_logprobs', 0],
        ['include_reasoning', true],
        ['max_completion_tokens'],
      ],
    ],
  ]
  it.each(cases)('that has no effect is accepted in %s, also as null', async (_what, path, body, fields) => {
    const { post } = await serve()
    const plain = await post(path, body)
    const strip = ({ choices }: { choices: object[] }) => JSON.stringify(choices)
    for (const [field, ...values] of fields)
      for (const value of [...values, null]) {
        const sent = JSON.stringify({ ...body, [field]: value }).replace(':-0', ':-0.0')
        const answer = await post(path, sent)
        expect(answer.status, `${field} ${JSON.stringify(value)}: ${JSON.stringify(answer.body)}`).toBe(200)
        if (field !== 'seed') expect(strip(answer.body), field).toBe(strip(plain.body))
      }
  })

  it('of a message may be null', async () => {
    const { post } = await serve()
    const nothing = { name: null, tool_calls: null, function_call: null, refusal: null, audio: null, reasoning_content: null }
    const messages = ['user', 'assistant', 'user'].map((role) => ({ role, content: role === 'user' ? 'a' : null, ...nothing }))
    const { status, body } = await post('/v1/chat/completions', { ...chat, messages })
    expect(status, JSON.stringify(body)).toBe(200)
  })

  it.each([
    ['repeat_penalty', 1.1, /frequency_penalty, presence_penalty and repetition_penalty/],
    ['allowed_token_ids', [5], /logit_bias/],
    ['min_tokens', 5, /a minimum length is not supported/],
    ['use_beam_search', true, /beam search is not supported/],
    ['typical_p', 0.5, /way of sampling is not supported/],
    ['guided_json', {}, /use response_format with a json_schema/],
    ['guided_regex', 'a', /only response_format constrains answers/],
    ['structured_outputs', { json: {} }, /use response_format with a json_schema/],
    ['skip_special_tokens', false, /special tokens are never part of a text/],
    ['include_stop_str_in_output', true, /before its stop string/],
    ['best_of', 3, /ask for n/],
    ['top_k', -2, />=-1/],
    ['seed', 1.5, /integer of 64 bits/],
    ['seed', 2 ** 65, /integer of 64 bits/],
    ['stop_token_ids', [9999], /token id from 0 to/],
  ])('is rejected for a value that is not supported: %s %j', async (field, value, message) => {
    const { post } = await serve()
    for (const [path, body] of [
      ['/v1/completions', completion],
      ['/v1/chat/completions', chat],
    ] as const) {
      const answer = await post(path, { ...body, [field]: value })
      expect(answer.status).toBe(400)
      expect(answer.body.error.param).toMatch(new RegExp(`^${field}`))
      expect(answer.body.error.message).toMatch(message)
    }
  })

  it.each([
    [
      { response_format: { type: 'json_schema', json_schema: { name: 'a', schema: { type: 'array', uniqueItems: true } } } },
      'response_format.json_schema.schema',
      /#\/uniqueItems: this keyword is not supported/,
    ],
    [
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] },
      'messages[0].content',
      /images are not supported/,
    ],
    [
      { messages: [{ role: 'user', content: [{ type: 'text', text: 'a' }, { type: 'input_audio' }] }] },
      'messages[0].content',
      /part 1 .*sounds are not supported/,
    ],
    [{ messages: [{ role: 'user', content: [{ type: 'file', file: {} }] }] }, 'messages[0].content', /files are not supported/],
    [{ messages: [{ role: 'user', content: 5 }] }, 'messages[0].content', /must be a string/],
    [{ messages: [{ role: 'user', content: [null] }] }, 'messages[0].content', /part 0 must be/],
    [{ messages: [{ role: 'robot', content: 'a' }] }, 'messages[0].role', /must be one of system/],
    [{ messages: [{ role: 'function', content: 'a', name: 'f' }] }, 'messages[0].role', /must be one of/],
    [{ response_format: { type: 'yaml' } }, 'response_format.type', /text/],
    [{ response_format: { type: 'json_schema' } }, 'response_format.json_schema', /missing/],
    [{ response_format: { type: 'json_schema', json_schema: {} } }, 'response_format.json_schema.name', /missing/],
    [{ tool_choice: 'required' }, 'tool_choice', /a call is required, and there are no tools/],
    [{ reasoning_effort: 'high' }, 'reasoning_effort', /no other effort/],
    [{ continue_final_message: true }, 'continue_final_message', /begins a turn/],
    [{ modalities: ['text', 'audio'] }, 'modalities', /answers are text only/],
  ])('of a chat is rejected for a value that is not supported: %j', async (change, param, message) => {
    const { post } = await serve()
    const { status, body } = await post('/v1/chat/completions', { ...chat, ...change })
    expect([status, body.error.param]).toEqual([400, param])
    expect(body.error.message).toMatch(message)
  })

  it('may be a 64-bit seed, top_p 0 as greedy, ignore_eos or stop_token_ids', async () => {
    const { post } = await serve()
    const text = async (change: object | string) => {
      const long = { ...completion, max_tokens: 12, temperature: 2, ignore_eos: true }
      const sent = typeof change === 'string' ? `${JSON.stringify(long).slice(0, -1)},"seed":${change}}` : { ...long, ...change }
      const { status, body } = await post('/v1/completions', sent)
      expect(status, JSON.stringify(body)).toBe(200)
      return body.choices[0].text
    }
    const seeds = [
      '18446744073709551615',
      '9223372036854775807',
      '-9007199254740994',
      '9007199254740993',
      '1152921504606846976',
      '0',
    ]
    const texts = await Promise.all(seeds.map(text))
    expect(new Set(texts).size).toBe(seeds.length)
    expect(await text({ top_p: 0, seed: 7 })).toBe(await text({ temperature: 0 }))
    const ends = { ...completion, max_tokens: 400, temperature: 3, n: 16 }
    const reasons = async (change: object) =>
      (await post('/v1/completions', { ...ends, ...change })).body.choices.map((c: { finish_reason: string }) => c.finish_reason)
    expect(await reasons({})).toContain('stop')
    expect(new Set(await reasons({ ignore_eos: true }))).toEqual(new Set(['length']))
    const early = await post('/v1/completions', { ...ends, stop_token_ids: Array.from({ length: 100 }, (_, i) => 5 + i) })
    expect(early.body.usage.completion_tokens).toBeLessThan(16 * 40)
  })

  it.each([
    ['ignore_eos', {}],
    ['a stop string that holds text back', { stop: ['1x'] }],
  ])('may constrain the whole answer with %s, whole and streamed', async (_, change) => {
    const { client } = await serve()
    const response_format = { type: 'json_schema' as const, json_schema: { name: 'one', schema: { enum: [1] } } }
    const body = { ...chat, messages: [{ role: 'user' as const, content: 'a' }], response_format, ignore_eos: true, ...change }
    const { choices } = await client.chat.completions.create({ ...body, max_tokens: 20 })
    expect(choices).toMatchObject([{ message: { content: '1' }, finish_reason: 'stop' }])
    const [pieces, reasons]: [string[], unknown[]] = [[], []]
    for await (const { choices } of await client.chat.completions.create({ ...body, max_tokens: 20, stream: true })) {
      pieces.push(choices[0]!.delta.content ?? '')
      reasons.push(choices[0]!.finish_reason)
    }
    expect([pieces.join(''), reasons.at(-1)]).toEqual(['1', 'stop'])
  })
})

describe('max_tokens above a limit', () => {
  it('is reduced to the limit, and a header says so', async () => {
    const { post, url } = await serve({ maxNewTokens: 10, maxContext: 30, corsOrigins: ['*'] })
    const ask = async (path: string, body: object) => {
      const { status, headers, body: answer } = await post(path, body)
      return [status, headers.get('x-looplm-max-tokens'), answer.usage?.completion_tokens ?? answer.error.message]
    }
    const endless = { ...completion, ignore_eos: true }
    expect(await ask('/v1/completions', { ...endless, max_tokens: 10 })).toEqual([200, null, 10])
    expect(await ask('/v1/completions', { ...endless, max_tokens: 11 })).toEqual([200, '10', 10])
    const long = Array(25).fill(5)
    expect(await ask('/v1/completions', { ...endless, prompt: long, max_tokens: 9 })).toEqual([200, '5', 5])
    expect(await ask('/v1/completions', { ...endless, prompt: [[5], long], max_tokens: 9 })).toEqual([200, '5', 9 + 5])
    const none = await ask('/v1/completions', { ...endless, prompt: Array(30).fill(5), max_tokens: 1 })
    expect(none).toEqual([400, null, expect.stringMatching(/30 tokens leave no room for an answer in the context of 30 tokens/)])
    expect((await ask('/v1/completions', { ...endless, prompt: Array(30).fill(5), max_tokens: 0 }))[0]).toBe(200)
    const tight = await serve({ maxNewTokens: 3 })
    const chatted = await tight.post('/v1/chat/completions', { ...chat, max_completion_tokens: 1000, ignore_eos: true })
    expect(chatted.headers.get('x-looplm-max-tokens')).toBe('3')
    expect(chatted.body.choices[0].finish_reason).toBe('length')
    const free = await tight.post('/v1/chat/completions', { ...chat, max_tokens: null })
    expect(free.headers.get('x-looplm-max-tokens')).toBeNull()
    const page = await fetch(`${url}/v1/models`, { headers: { origin: 'https://page.example' } })
    expect(page.headers.get('access-control-expose-headers')).toContain('x-looplm-max-tokens')
  })
})

describe('paths', () => {
  it('answer HEAD and OPTIONS, with a slash at the end or without', async () => {
    const { url } = await serve({ name: 'org/tiny' })
    for (const path of ['/v1/models', '/v1/models/', '/v1/models/org/tiny', '/v1/models/org%2Ftiny/', '/health/', '/metrics']) {
      const got = await fetch(url + path)
      expect(got.status, path).toBe(200)
      const head = await fetch(url + path, { method: 'HEAD' })
      expect([head.status, await head.text()], path).toEqual([200, ''])
      const options = await fetch(url + path, { method: 'OPTIONS' })
      expect([options.status, options.headers.get('allow')], path).toEqual([204, 'GET, HEAD, OPTIONS'])
    }
    expect((await fetch(`${url}/v1/models/tiny`)).status).toBe(404)
    for (const path of ['/v1/completions', '/v1/chat/completions/', '/v1/embeddings']) {
      const options = await fetch(url + path, { method: 'OPTIONS' })
      expect([options.status, options.headers.get('allow')], path).toEqual([204, 'POST, OPTIONS'])
      expect((await fetch(url + path)).headers.get('allow')).toBe('POST, OPTIONS')
    }
    expect((await fetch(`${url}/nothing`, { method: 'OPTIONS' })).status).toBe(404)
  })

  it('include /metrics, which reports cached tokens and their limit', async () => {
    const { url } = await serve({ maxCachedTokens: 777 })
    const text = await (await fetch(`${url}/metrics`)).text()
    expect(text).toMatch(/^looplm_cached_tokens 0$/m)
    expect(text).toMatch(/^looplm_cached_tokens_limit 777$/m)
  })
})

describe('thoughts', () => {
  /** A server whose model says a text letter by letter. */
  async function saying(
    text: string,
    template = '{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}',
  ) {
    const folder = await mkdtemp(join(root, 'saying-'))
    await writeOuroFolder(folder, { endTokens: [] })
    await writeFile(join(folder, 'chat_template.jinja'), template)
    const speaking = await LoopLM.fromPretrained(folder)
    const tokens = speaking.tokenizer!.encode(text, { addSpecialTokens: false })
    vi.spyOn(speaking, 'scheduler').mockReturnValue({
      stats: () => ({ cachedTokens: 0 }),
      dispose: () => {},
      async *add(_: unknown, { maxNewTokens }: { maxNewTokens: number }) {
        let said = ''
        for (const [i, token] of tokens.slice(0, maxNewTokens).entries()) {
          const now = speaking.tokenizer!.decode(tokens.slice(0, i + 1))
          const end =
            i + 1 === tokens.length ? { finishReason: 'stop' } : i + 1 === maxNewTokens ? { finishReason: 'length' } : {}
          yield { token, logprob: -1, loop: 1, text: now.slice(said.length), ...end }
          said = now
        }
      },
    } as never)
    const served = await serve({}, speaking)
    const ask = async (change: object = {}) => {
      const body = { model: 'tiny', messages: [{ role: 'user', content: 'a' }], max_tokens: 4000, ...change }
      const whole = (await served.post('/v1/chat/completions', body)).body.choices[0]
      const stream = await served.client.chat.completions.create({ ...body, stream: true } as never)
      const streamed = { content: '', reasoning: '', calls: 0, finish: '' }
      for await (const { choices } of stream as unknown as AsyncIterable<OpenAI.ChatCompletionChunk>)
        for (const { delta, finish_reason } of choices) {
          streamed.content += delta.content ?? ''
          streamed.reasoning += (delta as { reasoning_content?: string }).reasoning_content ?? ''
          streamed.calls += delta.tool_calls?.length ?? 0
          streamed.finish = finish_reason ?? streamed.finish
        }
      const { content, reasoning_content, tool_calls } = whole.message
      expect(streamed).toEqual({
        content: content ?? '',
        reasoning: reasoning_content ?? '',
        calls: tool_calls?.length ?? 0,
        finish: whole.finish_reason,
      })
      return { content, reasoning_content, calls: streamed.calls, finish: whole.finish_reason }
    }
    return { ask, dispose: () => speaking.dispose() }
  }
  const call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
  const tools = [{ type: 'function', function: { name: 'f', parameters: {} } }]

  it('are separate from the answer, and calls inside them are not carried out', async () => {
    const { ask, dispose } = await saying(`<think>\nI could ${call}\n</think>\n\nThe answer.`)
    const thought = { reasoning_content: `I could ${call}`, content: 'The answer.', calls: 0, finish: 'stop' }
    expect(await ask()).toEqual(thought)
    expect(await ask({ tools })).toEqual(thought)
    expect(await ask({ tools, parallel_tool_calls: false })).toEqual(thought)
    expect(await ask({ tool_choice: 'none' })).toEqual(thought)
    expect(await ask({ max_tokens: 12 })).toMatchObject({ content: '', calls: 0, finish: 'length' })
    dispose()
  })

  it('are recognized when the template opens them, and calls after them are carried out', async () => {
    const text = `I call.\n</think>\n${call}\n${call}`
    const { ask, dispose } = await saying(
      text,
      '{{ messages[0].content }}{{ tools | tojson }}{% if add_generation_prompt %}<think>\n{% endif %}',
    )
    expect(await ask({ tools })).toEqual({ reasoning_content: 'I call.', content: null, calls: 2, finish: 'tool_calls' })
    expect(await ask({ tools, parallel_tool_calls: false })).toMatchObject({ calls: 1, finish: 'tool_calls' })
    expect(await ask({ tools, tool_choice: 'none' })).toEqual({
      reasoning_content: 'I call.',
      content: '',
      calls: 0,
      finish: 'stop',
    })
    expect(await ask()).toMatchObject({ content: `${call}\n${call}`, calls: 0 }) // without tools it is text
    dispose()
  })

  it('are not found in a text with only a closing tag', async () => {
    const { ask, dispose } = await saying(' a < b\n and </think> c ')
    expect(await ask()).toEqual({ content: ' a < b\n and </think> c ', reasoning_content: undefined, calls: 0, finish: 'stop' })
    dispose()
  })

  it('are not found inside JSON', async () => {
    const json = `{"a": "use <think> or <tool_call>"}`
    const { ask, dispose } = await saying(`<think>t</think>${json}`)
    const answer = { reasoning_content: 't', content: json, calls: 0, finish: 'stop' }
    for (const change of [{}, { tools }, { tools, tool_choice: 'none' }])
      expect(await ask({ response_format: { type: 'json_object' }, ...change })).toEqual(answer)
    dispose()
  })

  it('are off with reasoning_effort none', async () => {
    const { client } = await serve()
    const render = vi.spyOn(model.tokenizer!, 'applyChatTemplate')
    await client.chat.completions.create({ ...chat, reasoning_effort: 'none' } as never)
    expect(render.mock.lastCall![1]).toMatchObject({ enableThinking: false })
    await client.chat.completions.create({ ...chat, reasoning_effort: 'medium' } as never)
    expect(render.mock.lastCall![1]!.enableThinking).toBeUndefined()
  })
})

describe('an error', () => {
  async function withTemplate(template: string) {
    const folder = await mkdtemp(join(root, 'template-'))
    await writeOuroFolder(folder)
    await writeFile(join(folder, 'chat_template.jinja'), template)
    const loaded = await LoopLM.fromPretrained(folder)
    const { post, log } = await serve({}, loaded)
    const { status, body } = await post('/v1/chat/completions', chat)
    const text = JSON.stringify(body)
    for (const part of [root, folder, 'chat_template.jinja']) expect(text).not.toContain(part)
    await Promise.all(servers.splice(0).map((server) => server.close()))
    loaded.dispose()
    return { status, error: body.error, log: log.join() }
  }

  it('from a chat template has the words of the template and no path', async () => {
    const refused = await withTemplate("{{ raise_exception('Roles must alternate.') }}")
    expect([refused.status, refused.error.param]).toEqual([400, 'messages'])
    expect(refused.error.message).toBe('messages: the chat template refused them: Roles must alternate.')
    const confused = await withTemplate('{{ messages[0].nothing.at.all }}')
    expect(confused.status).toBe(400)
  })

  it.each([
    ['that does not parse', '{% if %}'],
    ['that is empty of an end', '{{ messages'],
  ])('has status 500 for a template %s, and the log names the file', async (_what, template) => {
    const { status, error, log } = await withTemplate(template)
    expect([status, error.type]).toEqual([500, 'server_error'])
    expect(log).toContain('chat_template.jinja')
  })

  /** Makes every way to encode a text fail. */
  function failEncoding(error: Error): void {
    const tokenizer = model.tokenizer! as unknown as Record<string, () => unknown>
    for (const name of ['encode', 'encodeAsync'])
      if (name in tokenizer)
        vi.spyOn(tokenizer, name).mockImplementation(() => {
          throw error
        })
  }

  it.each([
    ['INVALID_ARGUMENT', 400, /prompt: Tokenizer says so/],
    ['INVALID_FILE', 500, /internal error/],
    ['OUT_OF_MEMORY', 503, /out of memory/],
    ['INTERNAL', 500, /internal error/],
    ['DISPOSED', 500, /internal error/],
  ] as const)('in encode with the code %s has status %i', async (code, status, message) => {
    const { post, log } = await serve()
    failEncoding(new LoopLMError(code, 'Tokenizer says so', { operation: 'Tokenizer.encode' }))
    const answer = await post('/v1/completions', completion)
    expect(answer.status).toBe(status)
    expect(answer.body.error.message).toMatch(message)
    expect(log.length > 0).toBe(status >= 500)
  })

  it('of unknown kind does not reveal its message', async () => {
    const { post, log } = await serve()
    failEncoding(new TypeError('cannot read /etc/passwd'))
    for (const [path, body] of [
      ['/v1/completions', completion],
      ['/v1/chat/completions', chat],
      ['/v1/embeddings', { model: 'tiny', input: 'a' }],
    ] as const) {
      const answer = await post(path, body)
      expect(answer.status).toBe(500)
      expect(JSON.stringify(answer.body)).not.toContain('passwd')
    }
    expect(log).toHaveLength(3)
  })

  it('is returned for JSON nested too deeply, in a body and in call arguments', async () => {
    const { post } = await serve()
    const deep = (n: number) => `${'['.repeat(n)}${']'.repeat(n)}`
    const body = (n: number) => JSON.stringify({ ...chat, metadata: 'X' }).replace('"X"', deep(n))
    expect((await post('/v1/chat/completions', body(100))).status).toBe(200)
    for (const n of [200, 6000, 100_000]) {
      const answer = await post('/v1/chat/completions', body(n))
      expect([answer.status, answer.body.error.message]).toEqual([400, expect.stringMatching(/nested 128 deep at most/)])
      const call = { type: 'function', function: { name: 'f', arguments: `{"a":${deep(n)}}` } }
      const messages = [...chat.messages, { role: 'assistant', tool_calls: [call] }]
      const refused = await post('/v1/chat/completions', { ...chat, messages })
      expect([refused.status, refused.body.error.param]).toEqual([400, 'messages[1].tool_calls[0].function.arguments'])
    }
  })

  it.each(['INVALID_ARGUMENT', 'INVALID_SHAPE', 'INVALID_CONFIG', 'UNSUPPORTED', 'NOT_FOUND', 'ABORTED'] as const)(
    'with the code %s has a 4xx status',
    (code) => expect(Math.floor(new LoopLMError(code, 'x').status / 100)).toBe(4),
  )
  it.each(['INVALID_FILE', 'OUT_OF_MEMORY', 'DISPOSED', 'NON_FINITE', 'NATIVE_LOAD', 'INTERNAL'] as const)(
    'with the code %s has a 5xx status',
    (code) => expect(Math.floor(new LoopLMError(code, 'x').status / 100)).toBe(5),
  )

  it('for a wrong prompt has status 400 in a Fastify server', async () => {
    const { default: Fastify } = await import('fastify')
    const app = Fastify()
    app.post<{ Body: { prompt: string } }>('/generate', async ({ body }) => {
      const [result] = await model.generate([body.prompt], { maxNewTokens: 2 })
      return { text: result!.text }
    })
    const ask = async (payload: object) => (await app.inject({ method: 'POST', url: '/generate', payload })).statusCode
    expect(await ask({ prompt: 'the' })).toBe(200)
    expect(await ask({ prompt: '' })).toBe(400)
    expect(await ask({ prompt: [99_999] })).toBe(400)
    await app.close()
  })
})

it('the settings of a server never reveal its API key', async () => {
  const { server, url } = await serve({ apiKey: 'hidden-key', host: '127.0.0.1' })
  expect(JSON.stringify(server.settings)).not.toContain('hidden-key')
  expect(inspect(server, { depth: 10, showHidden: true })).not.toContain('hidden-key')
  expect(server.settings).toMatchObject({ name: 'tiny', port: 0, maxRunning: 32 })
  expect((await fetch(`${url}/v1/models`, { headers: { authorization: 'Bearer hidden-key' } })).status).toBe(200)
  const { client } = await serve({ apiKey: 'hidden-key' })
  await client.models.list()
  const wrong = new OpenAI({ baseURL: client.baseURL, apiKey: 'other', maxRetries: 0 })
  const error = await wrong.models.list().then(
    () => undefined,
    (error: unknown) => error,
  )
  expect(error).toBeInstanceOf(APIError)
  expect(String((error as APIError).message)).not.toContain('hidden-key')
})
