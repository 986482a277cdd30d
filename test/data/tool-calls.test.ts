// Functions that a model calls: out of its text, and with OpenAI's client against a model that has learnt three answers by heart.
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import OpenAI, { APIError } from 'openai'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { opensThought, ToolCallStream } from '../../src/data/tool-calls.js'
import { createServer, LoopLM, type LoopLMServer } from '../../src/index.js'
import { type Lesson, learn } from '../lessons.js'
import { writeOuroFolder } from '../ouro-folder.js'
import { expectLinear } from '../scaling.js'

const one = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, "<x>"]}}\n</tool_call>'
const other = '<tool_call>{"name": "now"}</tool_call>'

describe('tool calls in generated text', () => {
  const pieces = (text: string, size: number) =>
    Array.from({ length: Math.ceil(text.length / size) }, (_, i) => text.slice(i * size, (i + 1) * size))
  const read = (text: string, size: number, most?: number) => {
    const stream = new ToolCallStream(most)
    const parts = [...pieces(text, size).map((piece) => stream.push(piece)), stream.flush()]
    const calls = parts.flatMap(({ calls }) => calls.map(({ function: f }) => [f.name, JSON.parse(f.arguments)]))
    return [parts.map(({ text }) => text).join(''), ...calls]
  }
  const add = ['add', { a: 1, b: [2, '<x>'] }]
  const now = ['now', {}]

  it.each([
    ['Hello, 1 < 2.', ['Hello, 1 < 2.']],
    [one, ['', add]],
    [`I add.\n${one}\n${other}\n`, ['I add.', add, now]],
    [`${one} Done, it is late. `, ['Done, it is late. ', add]],
    [`a <tool_call>no JSON</tool_call> b ${other}`, ['a <tool_call>no JSON</tool_call> b', now]],
    ['<tool_call>{"arguments": {}}</tool_call>', ['<tool_call>{"arguments": {}}</tool_call>']],
    ['<tool_call>{"name": "x", "arguments": "y"}</tool_call>', ['<tool_call>{"name": "x", "arguments": "y"}</tool_call>']],
    ['<tool_call>{"name": "now"}', ['', now]], // the end was cut off, or is a stop text
    ['<tool_call>{"name": "no', ['<tool_call>{"name": "no']],
    ['ends in <tool', ['ends in <tool']],
    ['<tool_<tool_call>\n{"name":"now"}</tool_call>', ['<tool_', now]],
  ])('%j', (text, expected) => {
    for (const size of [1, 2, 3, 7, 1000]) expect(read(text, size), `pieces of ${size}`).toEqual(expected)
  })

  const parts = (text: string, size: number, options: ConstructorParameters<typeof ToolCallStream>[1] = {}) => {
    const stream = new ToolCallStream(undefined, options)
    const all = [...pieces(text, size).map((piece) => stream.push(piece)), stream.flush()]
    return {
      text: all.map(({ text }) => text).join(''),
      reasoning: all.map(({ reasoning }) => reasoning).join(''),
      calls: all.flatMap(({ calls }) => calls.map(({ function: f }) => f.name)),
    }
  }

  it.each([
    ['in a thought is no call', `<think>\n${one}\n</think>\n\nNo.`, { text: 'No.', reasoning: one, calls: [] }],
    ['behind a thought is one', `\n<think>hm</think>\n${other}`, { text: '', reasoning: 'hm', calls: ['now'] }],
    ['in an unclosed thought is none', `<think>a ${other} b`, { text: '', reasoning: `a ${other} b`, calls: [] }],
    ['in a thought inside the text', `I <think>x ${other}</think> see.`, { text: 'I see.', reasoning: `x ${other}`, calls: [] }],
    ['between two texts', `a\n${other}\n\nb`, { text: 'a\nb', reasoning: '', calls: ['now'] }],
    ['between two thoughts', `<think>a</think>${other}<think>b</think>c`, { text: 'c', reasoning: 'a\n\nb', calls: ['now'] }],
    [
      'behind an empty thought',
      `<think>\n</think><think>b</think> <think> </think>${other}`,
      { text: '', reasoning: 'b', calls: ['now'] },
    ],
    [
      'with a thought inside it',
      '<tool_call><think>{"name":"now"}</tool_call>',
      { text: '<tool_call><think>{"name":"now"}</tool_call>', reasoning: '', calls: [] },
    ],
    [
      'with the mark in its arguments',
      '<tool_call>{"name":"f","arguments":{"a":"<think>"}}</tool_call> b',
      { text: 'b', reasoning: '', calls: ['f'] },
    ],
    [
      'with its end in a string',
      '<tool_call>{"name":"f","arguments":{"a":"\\"</tool_call>\\\\"}}</tool_call> b',
      { text: 'b', reasoning: '', calls: ['f'] },
    ],
    [
      'behind one whose string does not end in its line',
      `<tool_call>{"name\n</tool_call> ${other}`,
      { text: '<tool_call>{"name\n</tool_call>', reasoning: '', calls: ['now'] },
    ],
    [
      'behind a tag that is spoken of',
      `Use \`<think>\` and \`<tool_call>\`. ${other}`,
      { text: 'Use `<think>` and `<tool_call>`.', reasoning: '', calls: ['now'] },
    ],
    [
      'in a thought that speaks of its end',
      `<think>a \`</think>\` ${other}</think>b`,
      { text: 'b', reasoning: `a \`</think>\` ${other}`, calls: [] },
    ],
    ['cut off in the mark of a thought', '<thi', { text: '<thi', reasoning: '', calls: [] }],
    ['cut off in the end of a thought', '<think>a</thi', { text: '', reasoning: 'a</thi', calls: [] }],
    ['with an end of a thought that did not begin', `a </think> ${other}`, { text: 'a </think>', reasoning: '', calls: ['now'] }],
  ])('%s', (_what, text, expected) => {
    for (const size of [1, 2, 3, 7, 1000]) expect(parts(text, size), `pieces of ${size}`).toEqual(expected)
  })

  it('are ignored before the end of a thought that the prompt has opened', () => {
    for (const size of [1, 5, 1000]) {
      expect(parts(`${one}\n</think>\nYes.${other}`, size, { thinking: true })).toEqual({
        text: 'Yes.',
        reasoning: one,
        calls: ['now'],
      })
    }
    expect(opensThought('<|im_start|>assistant\n<think>\n')).toBe(true)
    expect(opensThought('<|im_start|>assistant\n<think>\n\n</think>\n\n')).toBe(false)
  })

  it('are dropped or kept as text, as the option calls says', () => {
    const text = `a ${one} b <tool_call>no JSON</tool_call> c <think>t</think>d <tool_call>{"na`
    for (const size of [1, 4, 1000]) {
      expect(parts(text, size, { calls: 'drop' })).toEqual({ text: 'a b c d', reasoning: 't', calls: [] })
      expect(parts(text, size, { calls: 'keep' })).toEqual({
        text: text.replace('<think>t</think>', ''),
        reasoning: 't',
        calls: [],
      })
    }
  })

  it('are not found, nor are thoughts, behind the beginning of a text with the option leading', () => {
    const json = `{"a": "use <think> or ${other}"}`
    for (const size of [1, 4, 1000]) {
      expect(parts(json, size, { leading: true })).toEqual({ text: json, reasoning: '', calls: [] })
      expect(parts(`<think>t</think>\n${json}`, size, { leading: true })).toEqual({ text: json, reasoning: 't', calls: [] })
      expect(parts(`t</think>${other}`, size, { leading: true, thinking: true }).calls).toEqual(['now'])
    }
  })

  it('have numbers as the model wrote them', () => {
    const stream = new ToolCallStream()
    const { calls } = stream.push('<tool_call>{"name": "f", "arguments": {"id": 175928847299117063, "x": [1.0]}}</tool_call>')
    expect(calls[0]!.function.arguments).toBe('{"id":175928847299117063,"x":[1.0]}')
    expect(stream.push('<tool_call>{"name": "f", "arguments": 1.0}</tool_call>').calls).toEqual([])
  })

  it.each([100, 6000, 100_000])('nested %i deep are calls up to a limit, and text beyond it', (depth) => {
    const nested = (open: string, close: string) =>
      `<tool_call>{"name":"f","arguments":{"a":${open.repeat(depth)}1${close.repeat(depth)}}}</tool_call>`
    for (const text of [nested('[', ']'), nested('{"a":', '}')]) {
      const { calls, text: left } = parts(text, 1000)
      expect([calls, left]).toEqual(depth === 100 ? [['f'], ''] : [[], text])
    }
    const quoted = `<tool_call>{"name":"f","arguments":{"a":"${'[\\"{'.repeat(depth)}"}}</tool_call>`
    expect(parts(quoted, 1000).calls).toEqual(['f'])
  })

  it.each([
    ['a call without an end', (n: number) => `<tool_call>${'x'.repeat(n)}`],
    ['a thought without an end', (n: number) => `<think>${'x '.repeat(n / 2)}`],
    ['white space', (n: number) => ' '.repeat(n)],
    ['marks that begin', (n: number) => '<tool_cal'.repeat(n / 9)],
    ['calls that are none', (n: number) => '<tool_call></tool_call>'.repeat(n / 23)],
    ['a string without an end', (n: number) => `<tool_call>"${'\\"'.repeat(n / 2)}</tool_call>`],
    ['open brackets in a string', (n: number) => `<tool_call>{"name":"f","arguments":{"a":"${'['.repeat(n)}"}}</tool_call>`],
  ])('are found in linear time, letter by letter: %s', { timeout: 60_000 }, (_what, make) => {
    expectLinear((n) => {
      const stream = new ToolCallStream()
      for (const letter of make(n)) stream.push(letter)
      stream.flush()
    }, 100_000)
  })

  it('beyond the maximum are dropped, with everything after them', () => {
    expect(read(`a ${one} b ${other} c`, 1, 1)).toEqual(['a', add])
  })
})

const tools = [
  {
    type: 'function' as const,
    function: { name: 'add', parameters: { type: 'object', properties: { a: { type: 'number' }, b: { type: 'number' } } } },
  },
]
const user = (content: string) => ({ role: 'user' as const, content })
const asked = [user('1+2?')]
const arguments_ = { a: 1, b: 2 }
const call = { id: 'call_1', type: 'function' as const, function: { name: 'add', arguments: JSON.stringify(arguments_) } }
const answered = [
  ...asked,
  { role: 'assistant' as const, content: null, tool_calls: [call] },
  { role: 'tool' as const, tool_call_id: 'call_1', content: '3' },
]
const text = (a: number, b: number) => `<tool_call>\n{"name": "add", "arguments": {"a": ${a}, "b": ${b}}}\n</tool_call>`
/** Conversations as the template gets them, and what the model learns to answer. */
const lessons: Lesson[] = [
  [asked, tools, text(1, 2)],
  [[user('both')], tools, `Two sums.\n${text(1, 2)}\n${text(3, 4)}`],
  [
    [
      answered[0]!,
      { ...answered[1]!, content: '', tool_calls: [{ ...call, function: { name: 'add', arguments: arguments_ } }] },
      answered[2]!,
    ],
    tools,
    'It is 3.',
  ],
  [asked, undefined, 'Three.'],
]

async function apiError(call: PromiseLike<unknown>): Promise<APIError> {
  const error = await Promise.resolve(call).catch((error: unknown) => error)
  expect(error).toBeInstanceOf(APIError)
  return error as APIError
}

describe("OpenAI's client", () => {
  let root: string
  let model: LoopLM
  let server: LoopLMServer
  let client: OpenAI
  beforeAll(async () => {
    root = await mkdtemp(join(tmpdir(), 'looplm-tools-'))
    model = await learn(join(root, 'ouro'), lessons)
    server = createServer(model, { name: 'tiny', port: 0 })
    client = new OpenAI({ baseURL: `${await server.listen()}/v1`, apiKey: 'none', maxRetries: 0 })
  }, 120_000)
  afterAll(async () => {
    await server?.close()
    model?.dispose()
    await rm(root, { recursive: true })
  })
  const body = (messages: OpenAI.ChatCompletionMessageParam[]) => ({ model: 'tiny', messages, temperature: 0, max_tokens: 200 })
  const parsed = (calls: readonly { function?: { name?: string; arguments?: string } }[] | undefined) =>
    calls?.map((call) => [call.function!.name, JSON.parse(call.function!.arguments!)])

  it('gets a tool call, returns its result, and gets the answer', async () => {
    const { choices } = await client.chat.completions.create({ ...body(asked), tools })
    const { message, finish_reason } = choices[0]!
    expect(finish_reason).toBe('tool_calls')
    expect(message.content).toBeNull()
    const [made] = message.tool_calls as OpenAI.ChatCompletionMessageFunctionToolCall[]
    expect(made).toEqual({ id: expect.stringMatching(/^call_\w+$/), type: 'function', function: call.function })
    const result = { role: 'tool' as const, tool_call_id: made!.id, content: '3' }
    const next = await client.chat.completions.create({ ...body([...asked, message, result]), tools })
    expect(next.choices[0]).toMatchObject({ message: { content: 'It is 3.' }, finish_reason: 'stop' })
    expect(next.choices[0]!.message.tool_calls).toBeUndefined()
  })

  it('gets several calls after a text, or one with parallel_tool_calls false', async () => {
    const both = { ...body([user('both')]), tools }
    const { choices } = await client.chat.completions.create(both)
    expect(choices[0]!.message.content).toBe('Two sums.')
    expect(parsed(choices[0]!.message.tool_calls as never)).toEqual([
      ['add', { a: 1, b: 2 }],
      ['add', { a: 3, b: 4 }],
    ])
    const single = await client.chat.completions.create({ ...both, parallel_tool_calls: false })
    expect(parsed(single.choices[0]!.message.tool_calls as never)).toEqual([['add', { a: 1, b: 2 }]])
    expect(single.choices[0]!.finish_reason).toBe('tool_calls')
    expect(single.usage!.completion_tokens).toBeLessThan(
      0.75 * (await client.chat.completions.create(both)).usage!.completion_tokens,
    )
  })

  it('streams several tool calls, each with its index', async () => {
    const stream = client.chat.completions.stream({ ...body([user('both')]), tools, stream_options: { include_usage: true } })
    const indices: number[] = []
    for await (const { choices } of stream)
      for (const { delta } of choices) {
        expect(delta.content ?? '').not.toContain('<')
        indices.push(...(delta.tool_calls ?? []).map(({ index }) => index))
      }
    expect(indices).toEqual([0, 1])
    const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0]!
    expect(finish_reason).toBe('tool_calls')
    expect(message.content).toBe('Two sums.')
    expect(parsed(message.tool_calls as never)).toEqual([
      ['add', { a: 1, b: 2 }],
      ['add', { a: 3, b: 4 }],
    ])
    expect((await stream.totalUsage()).completion_tokens).toBeGreaterThan(20)
  })

  it('runs functions with runTools', async () => {
    const runner = client.chat.completions.runTools({
      ...body(asked),
      tools: [
        {
          type: 'function',
          function: { ...tools[0]!.function, parse: JSON.parse, function: ({ a, b }: { a: number; b: number }) => String(a + b) },
        },
      ],
    } as never)
    expect(await runner.finalContent()).toBe('It is 3.')
  })

  it('gets text with tool_choice none, and a call cut off by max_tokens as text', async () => {
    const none = await client.chat.completions.create({ ...body(asked), tools, tool_choice: 'none' })
    expect(none.choices[0]!.message).toMatchObject({ content: 'Three.' })
    const cut = await client.chat.completions.create({ ...body(asked), tools, max_tokens: 30 })
    expect(cut.choices[0]!.finish_reason).toBe('length')
    expect(cut.choices[0]!.message.content).toMatch(/^<tool_call>\n\{"name/)
  })

  it('gets a forced call whose arguments fit the parameters', async () => {
    const parameters = { type: 'object', properties: { a: { type: 'integer' }, b: { enum: ['x', 'y'] } }, required: ['a', 'b'] }
    const given = [...tools, { type: 'function' as const, function: { name: 'other', parameters } }]
    for (const tool_choice of ['required', { type: 'function', function: { name: 'other' } }] as const) {
      const choice = (await client.chat.completions.create({ ...body(asked), max_tokens: 400, tools: given, tool_choice }))
        .choices[0]!
      expect(choice.finish_reason).toBe('tool_calls')
      const [call] = choice.message.tool_calls as { function: { name: string; arguments: string } }[]
      expect(tool_choice === 'required' ? ['add', 'other'] : ['other']).toContain(call!.function.name)
      const values = JSON.parse(call!.function.arguments)
      if (call!.function.name === 'other') expect(values).toEqual({ a: expect.any(Number), b: expect.stringMatching(/^[xy]$/) })
      else expect(values).toEqual({ a: expect.any(Number), b: expect.any(Number) })
    }
  })

  it.each([
    [{ tools: [{ type: 'retrieval' }] }, 'tools[0].type'],
    [{ tools: [{ type: 'function', function: {} }] }, 'tools[0].function.name'],
    [{ tool_choice: 'required' }, 'tool_choice'],
    [{ tools, tool_choice: 'always' }, 'tool_choice'],
    [{ tools, tool_choice: { type: 'function', function: { name: 'subtract' } } }, 'tool_choice'],
    [{ tools, tool_choice: { type: 'function' } }, 'tool_choice.function'],
    [{ functions: [] }, 'functions'],
    [{ messages: [{ role: 'assistant', tool_calls: [{ type: 'function' }] }] }, 'messages[0].tool_calls[0].function'],
    [
      { messages: [{ role: 'assistant', tool_calls: [{ function: { name: 'f', arguments: '{' } }] }] },
      'messages[0].tool_calls[0].function.arguments',
    ],
    [
      { messages: [{ role: 'assistant', tool_calls: [{ function: { name: 'f', arguments: '[1]' } }] }] },
      'messages[0].tool_calls[0].function.arguments',
    ],
  ])('gets a 400 that names the wrong field: %j', async (change, param) => {
    const error = await apiError(client.post('/chat/completions', { body: { ...body(asked), ...change } }))
    expect([error.status, error.param]).toEqual([400, param])
  })

  it.each([
    ['a string', JSON.stringify(arguments_)],
    ['an object, as Ollama writes it', arguments_],
  ])('may return the arguments of a call as %s', async (_what, given) => {
    const made = { type: 'function', function: { name: 'add', arguments: given } }
    const messages = [...asked, { role: 'assistant', content: null, tool_calls: [made] }, answered[2]]
    const { choices } = await client.chat.completions.create({ ...body(messages as never), tools })
    expect(choices[0]!.message.content).toBe('It is 3.')
  })

  it('may return a call with numbers as they were written', async () => {
    const given = '{"id": 175928847299117063, "x": 1.0, "s": "175928847299117063"}'
    const made = { type: 'function', function: { name: 'add', arguments: given } }
    const messages = [...asked, { role: 'assistant', content: null, tool_calls: [made] }, answered[2]]
    const render = vi.spyOn(model.tokenizer!, 'applyChatTemplate')
    await client.chat.completions.create({ ...body(messages as never), max_tokens: 1, tools })
    const texts = render.mock.results.map(({ value }) => value)
    render.mockRestore()
    expect(texts).toContainEqual(expect.stringContaining(`"arguments": ${given}}`))
  })

  it.each([[''], [null], [undefined]])('may return a call without arguments: %j', async (given) => {
    const made = { type: 'function', function: { name: 'add', arguments: given } }
    const messages = [...asked, { role: 'assistant', content: null, tool_calls: [made] }, answered[2]]
    const render = vi.spyOn(model.tokenizer!, 'applyChatTemplate')
    await client.chat.completions.create({ ...body(messages as never), max_tokens: 1, tools })
    const [rendered] = render.mock.calls.find(([messages]) => messages.length === 3)!
    render.mockRestore()
    expect(rendered[1]!.tool_calls).toMatchObject([{ function: { name: 'add', arguments: {} } }])
  })

  it('gets a 400 when the chat template does not support tools', async () => {
    await writeOuroFolder(join(root, 'deaf'))
    await writeFile(join(root, 'deaf', 'chat_template.jinja'), '{% for m in messages %}{{ m.content }}{% endfor %}')
    using plain = await LoopLM.fromPretrained(join(root, 'deaf'))
    const deaf = createServer(plain, { name: 'tiny', port: 0 })
    const other = new OpenAI({ baseURL: `${await deaf.listen()}/v1`, apiKey: 'none', maxRetries: 0 })
    const error = await apiError(other.chat.completions.create({ ...body(asked), tools }))
    const answer = { role: 'assistant' as const, content: null, tool_calls: [call] }
    const lost = await apiError(other.chat.completions.create(body([...asked, answer, ...asked])))
    await deaf.close()
    expect([lost.status, lost.param]).toEqual([400, 'messages[1].tool_calls'])
    expect([error.status, error.param]).toEqual([400, 'tools'])
    expect(error.message).toMatch(/the chat template of the model does not show it any/)
  })
})
