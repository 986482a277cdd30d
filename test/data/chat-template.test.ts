import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { parseExactJson } from '../../src/data/exact-json.js'
import { LoopLM, Tokenizer } from '../../src/index.js'
import { chatTemplate, tokenizerJson, writeOuroFolder } from '../ouro-folder.js'
import { refusal } from '../refusal.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-chat-'))
})
afterAll(() => rm(root, { recursive: true }))

const user = [{ role: 'user', content: 'Hi é😀' }]
const system = '<|im_start|>system\nYou help.<|im_end|>\n'
const turn = '<|im_start|>user\nHi é😀<|im_end|>\n'

describe('a chat template', () => {
  it.each(['file', 'field'] as const)('renders a conversation (template in a %s)', async (template) => {
    const tokenizer = await Tokenizer.fromPretrained(await writeOuroFolder(join(root, template), { template }))
    expect(tokenizer.applyChatTemplate(user)).toBe(system + turn)
    const open = { addGenerationPrompt: true }
    expect(tokenizer.applyChatTemplate(user, open)).toBe(`${system}${turn}<|im_start|>assistant\n`)
    expect(tokenizer.applyChatTemplate(user, { ...open, enableThinking: true })).toBe(`${system}${turn}<|im_start|>assistant\n`)
    expect(tokenizer.applyChatTemplate(user, { ...open, enableThinking: false })).toBe(
      `${system}${turn}<|im_start|>assistant\n<think>\n\n</think>\n\n`,
    )
    const tools = [{ type: 'function', function: { name: 'add' } }]
    expect(tokenizer.applyChatTemplate([{ role: 'system', content: 'S' }, ...user], { tools })).toBe(
      `<|im_start|>system\nTools: [{"type": "function", "function": {"name": "add"}}]<|im_end|>\n<|im_start|>system\nS<|im_end|>\n${turn}`,
    )
    const again = join(root, `${template}-again`)
    await tokenizer.save(again)
    expect((await Tokenizer.fromPretrained(again)).applyChatTemplate(user)).toBe(system + turn)
  })

  it('in chat_template.jinja takes precedence over tokenizer_config.json', async () => {
    const folder = await writeOuroFolder(join(root, 'both'), { template: 'field' })
    await writeFile(join(folder, 'chat_template.jinja'), '{{ messages | length }} messages')
    expect((await Tokenizer.fromPretrained(folder)).applyChatTemplate(user)).toBe('1 messages')
  })

  it('renders special tokens that encode to their ids', async () => {
    const tokenizer = await Tokenizer.fromPretrained(await writeOuroFolder(join(root, 'ids')))
    const ids = tokenizer.encode(tokenizer.applyChatTemplate(user), { addSpecialTokens: false })
    expect(ids.filter((id) => id < 3)).toEqual([1, 2, 1, 2])
    expect(tokenizer.decode(ids)).toBe(system + turn)
  })

  it('uses the configured special tokens, and the template tool_use when tools are given', () => {
    const special = { bos: '<s>', eos: '</s>' }
    const base = Tokenizer.bytes({ special })
    const named = [
      { name: 'default', template: '{{ bos_token }}{{ messages[0].content }}{{ eos_token }}' },
      { name: 'tool_use', template: '{{ tools | length }} tools' },
    ]
    const config = { bos_token: { content: '<s>' }, eos_token: '</s>', chat_template: named }
    const json = {
      ...tokenizerJson(),
      ...{ model: { type: 'WordLevel', vocab: { '<s>': 0, '</s>': 1 }, unk_token: '<s>' }, added_tokens: [] },
    }
    const tokenizer = new Tokenizer(json, config)
    expect(tokenizer.applyChatTemplate(user)).toBe('<s>Hi é😀</s>')
    expect(tokenizer.applyChatTemplate(user, { tools: [{}, {}] })).toBe('2 tools')
    expect(base.hasChatTemplate).toBe(false)
  })

  it('supports range() of Jinja', () => {
    const template = '\n{{ range(3) | join }} {{ range(1, 4) | join }} {{ range(5, 0, -2) | join }} {{ range(2, 2) | length }}'
    const tokenizer = new Tokenizer(tokenizerJson(), { chat_template: template })
    for (let again = 0; again < 2; again++) expect(tokenizer.applyChatTemplate(user)).toBe('\n012 123 531 0')
  })

  it('writes numbers as they were written', () => {
    const template = '{% for v in messages[0].v %}{{ v }} {{ v | tojson }} {{ v | string }} {{ v is number }};{% endfor %}'
    const tokenizer = new Tokenizer(tokenizerJson(), { chat_template: template })
    const v = parseExactJson('[9007199254740993, 1.0, 2]')
    expect(tokenizer.applyChatTemplate([{ role: 'user', v }])).toBe(
      `${'9007199254740993 '.repeat(3)}True;1.0 1.0 1.0 True;2 2 2 True;`,
    )
  })

  it('says which token ends an answer', async () => {
    expect((await Tokenizer.fromPretrained(await writeOuroFolder(join(root, 'end')))).chatEndToken()).toBe(2)
    const without = await Tokenizer.fromPretrained(await writeOuroFolder(join(root, 'no-end'), { template: 'none' }))
    expect(without.chatEndToken()).toBeUndefined()
    const plain = new Tokenizer(tokenizerJson(), { chat_template: '{% for m in messages %}{{ m.content }}\n{% endfor %}' })
    expect(plain.chatEndToken()).toBeUndefined()
  })
})

describe('line ends in a chat template, as in Jinja:', () => {
  const rendered = (template: string, options = {}) =>
    new Tokenizer(tokenizerJson(), { chat_template: template }).applyChatTemplate(user, options)

  it.each([
    ['lines that end with CR LF', '{{ messages[0].role }}:\r\nHi\r\n{% if true %}\r\nx{% endif %}\r\n!', 'user:\nHi\nx!'],
    ['lines that end with CR', '{{ messages[0].role }}:\rHi\r!', 'user:\nHi\n!'],
    ['line ends in a string', "{{ 'a\r\nb' }}", 'a\nb'],
    ['a carriage return that is written as an escape', "{{ 'a\\r\\nb' }}", 'a\r\nb'],
  ])('%s', (_what, template, text) => {
    expect(rendered(template)).toBe(text)
  })

  it('line ends of messages are unchanged', () => {
    const tokenizer = new Tokenizer(tokenizerJson(), { chat_template: '{{ messages[0].content }}' })
    expect(tokenizer.applyChatTemplate([{ role: 'user', content: 'a\r\nb\rc' }])).toBe('a\r\nb\rc')
  })

  it('a template file with CR LF renders the same', async () => {
    const folder = await writeOuroFolder(join(root, 'crlf'))
    await writeFile(join(folder, 'chat_template.jinja'), chatTemplate.replaceAll('\n', '\r\n'))
    expect((await Tokenizer.fromPretrained(folder)).applyChatTemplate(user)).toBe(system + turn)
  })
})

describe("a chat template renders as in Python's Jinja:", () => {
  const rendered = (template: string, message: object = {}) => {
    const tokenizer = new Tokenizer(tokenizerJson(), { chat_template: template })
    return tokenizer.applyChatTemplate([{ role: 'user', content: '', ...message }])
  }

  it.each([
    ["{{ 'abc'.strip('ac') }}", 'b'],
    ["{{ '\\n  x \\n'.strip('\\n') }}", '  x '],
    ["{{ '\\n  x'.lstrip('\\n') }}{{ 'y \\n'.rstrip('\\n') }}|", '  xy |'],
    ["{{ 'aXa'.lstrip('a').rstrip('a') }}{{ '😀x😁'.strip('😀') }}{{ '-]-'.strip('-]') }}", 'Xx😁'],
    ["{% set s = '*' %}{% macro m(x) %}{{ x.strip(s) }}{% endmacro %}{{ m('*b*') }}{{ ['*c*'.strip(s)] | first }}", 'bc'],
    ["{{ ' a '.strip() }}{{ ' b '.strip(none) }}", 'ab'],
    ['{{ true }} {{ messages[0].v }} {{ 1 > 2 }} {% if true %}{{ not true }}{% endif %}', 'True True False False'],
    ['{{ true | string }} {{ none | string }} {{ none ~ true ~ missing ~ 1 }} {{ 1.0 | string }}', 'True None NoneTrue1 1.0'],
    ['{{ [true, none] | tojson }}{{ missing }}', '[true, null]'],
    ["{{ '😀a' | length }}{{ [1, 2] | length }}", '22'],
    ['{% macro m() %}{{ varargs | length }}{{ kwargs.a }}{% endmacro %}{{ m(1, a=true) }}', '1True'],
  ])('%s', (template, text) => {
    expect(rendered(template, { v: true })).toBe(text)
  })

  it('indentation of an answer stays', () => {
    const template = "{{ messages[0].content.split('</think>')[-1].lstrip('\\n') }}"
    expect(rendered(template, { content: '<think>\n</think>\n\n    return x' })).toBe('    return x')
  })

  it('dates of strftime_now', async () => {
    vi.useFakeTimers({ now: new Date(2026, 0, 5, 13, 4, 9), toFake: ['Date'] })
    const codes = '%A, %a %d %-d %e %B %b %m %y %Y %I:%M:%S %p %H %j %%'
    expect(rendered(`{{ strftime_now('${codes}') }}`)).toBe('Monday, Mon 05 5  5 January Jan 01 26 2026 01:04:09 PM 13 005 %')
    vi.useRealTimers()
    const error = await refusal(() => rendered("{{ strftime_now('%U') }}"))
    expect(error.message).toContain('strftime_now() does not know %U')
  })

  it.each([
    ['{{ messages[0].v.strip("a") }}', 'strip() needs a text'],
    ['{{ "a".strip(1) }}', 'strip() takes characters'],
  ])('%s fails', async (template, reason) => {
    expect((await refusal(() => rendered(template, { v: 5 }))).message).toContain(reason)
  })
})

describe('applyChatTemplate with tools', () => {
  const tools = [{ type: 'function', function: { name: 'add' } }]
  const withTemplate = (chat_template: unknown) => new Tokenizer(tokenizerJson(), { chat_template })

  it.each([
    ['text', 'add', /tools must be an array of JSON schemas of functions, got 'add'/],
    ['one schema', tools[0], /tools must be an array of JSON schemas/],
    ['names', ['add'], /tools\[0\] must be the JSON schema of a function, got 'add'/],
    ['null among them', [tools[0], null], /tools\[1\] must be/],
  ])('rejects invalid tools: %s', async (_what, given, message) => {
    const error = await refusal(() => withTemplate(chatTemplate).applyChatTemplate(user, { tools: given as object[] }))
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(message)
  })

  it('rejects tools that the template does not show to the model', async () => {
    for (const template of ['x', '{% if tools %}{% endif %}x', [{ name: 'default', template: 'x' }]]) {
      const error = await refusal(() => withTemplate(template).applyChatTemplate(user, { tools }))
      expect(error.code).toBe('UNSUPPORTED')
      expect(error.message).toMatch(/tools: .*field "chat_template" does not show them to the model; omit tools/)
      expect(withTemplate(template).applyChatTemplate(user, { tools: [] })).toBe('x')
    }
    expect(withTemplate(chatTemplate).applyChatTemplate(user, { tools })).toContain('"name": "add"')
  })

  it('rejects unknown and invalid options by name', async () => {
    const tokenizer = withTemplate(chatTemplate)
    const wrong = [{ add_generation_prompt: true }, { addGenerationPrompt: 'yes' }, { enableThinking: 1 }, { tool: tools }]
    for (const options of wrong) {
      const error = await refusal(() => tokenizer.applyChatTemplate(user, options as never))
      expect(error.code).toBe('INVALID_ARGUMENT')
      expect(error.message).toMatch(new RegExp(`^Tokenizer\\.applyChatTemplate: ${Object.keys(options)[0]}(?: must|: unknown)`))
    }
  })
})

describe('the token that ends an answer', () => {
  const turn = "{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
  const end = (template: string, config = {}) =>
    new Tokenizer(tokenizerJson(), { chat_template: `{% for m in messages %}${template}{% endfor %}`, ...config }).chatEndToken()

  it.each([
    [
      'a system message first',
      `{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}${turn}<|im_end|>`,
      2,
    ],
    ['white space before the end', `${turn} \n<|im_end|>`, 2],
    ['the word answer behind it', `${turn}<|im_end|>{% if loop.last %}answer:<|im_start|>{% endif %}`, 2],
    ['no end', turn, undefined],
    ['no system message and no chat', "{{ raise_exception('never') }}", undefined],
  ])('is determined for a template with %s', (_what, template, token) => {
    expect(end(template)).toBe(token)
  })

  it('may be an eos_token that is an ordinary token of the vocabulary', () => {
    expect(end('{{ m.content }}{{ eos_token }}', { eos_token: '!' })).toBe(new Tokenizer(tokenizerJson()).tokenId('!'))
  })
})

describe('applyChatTemplate fails with a specific error for', () => {
  it('a syntax error, at first use, naming the file', async () => {
    const folder = await writeOuroFolder(join(root, 'syntax'))
    await writeFile(join(folder, 'chat_template.jinja'), '{% for message in %}')
    const tokenizer = await Tokenizer.fromPretrained(folder)
    const error = await refusal(() => tokenizer.applyChatTemplate(user))
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toContain(`${join(folder, 'chat_template.jinja')}: the chat template does not parse: `)
  })

  it('messages that the template itself rejects, naming the file', async () => {
    const folder = await writeOuroFolder(join(root, 'refuses'), { template: 'field' })
    const tokenizer = await Tokenizer.fromPretrained(folder)
    const error = await refusal(() => tokenizer.applyChatTemplate([{ role: 'owl', content: '' }]))
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toContain(join(folder, 'tokenizer_config.json'))
    expect(error.message).toContain('field "chat_template"')
    expect(error.message).toContain('no role owl')
  })

  it.each([
    [7, /must be a string or a list of { name, template }, got 7/],
    [[], /must be a string or a list .*, got Array of length 0/],
    [[{ name: 'default' }], /entry 0 .* must have the strings "name" and "template"/],
    [[{ name: 'rag', template: 'x' }], /none of the templates rag is named default/],
  ])('a field chat_template of %j', async (template, message) => {
    const tokenizer = new Tokenizer(tokenizerJson(), { chat_template: template })
    expect((await refusal(() => tokenizer.applyChatTemplate(user))).message).toMatch(message)
  })

  it.each([
    ['of a hundred thousand million numbers', '{% for i in range(100000000000) %}{% endfor %}'],
    ['inside each other', '{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}'],
    ['of small steps', '{% for i in range(0, 1, 0.0000001) %}{% endfor %}'],
  ])('loops over ranges %s', async (_what, template) => {
    const tokenizer = new Tokenizer(tokenizerJson(), { chat_template: template }, 'f', 'some/chat_template.jinja')
    const error = await refusal(() => tokenizer.applyChatTemplate(user))
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(/some\/chat_template\.jinja: .*range\(\)/)
  })

  it('a template of more than a megabyte', async () => {
    const tokenizer = new Tokenizer(tokenizerJson(), { chat_template: 'x'.repeat(2 ** 20 + 1) }, 'f', 'some/file')
    expect((await refusal(() => tokenizer.applyChatTemplate(user))).message).toMatch(/some\/file: .*at most 1048576 characters/)
  })

  it('empty or invalid messages, and a missing template', async () => {
    const tokenizer = new Tokenizer(tokenizerJson(), { chat_template: chatTemplate })
    expect((await refusal(() => tokenizer.applyChatTemplate([]))).message).toMatch(/messages must be an array of at least one/)
    const bad = [...user, { role: 5, content: 'x' }] as never
    expect((await refusal(() => tokenizer.applyChatTemplate(bad))).message).toMatch(
      /messages\[1\]\.role must be a string such as "user", got 5/,
    )
    expect((await refusal(() => new Tokenizer(tokenizerJson()).applyChatTemplate(user))).code).toBe('UNSUPPORTED')
  })
})

describe('an Ouro folder', () => {
  it('ends generation at the tokens of generation_config.json, 0 and 2, not at those of config.json', async () => {
    const folder = await writeOuroFolder(join(root, 'model'))
    expect(JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')).eos_token_id).toBe(0)
    using model = await LoopLM.fromPretrained(folder)
    expect(model.endTokens).toEqual([0, 2])
    const results = await model.generate(Array(64).fill([5, 6, 7]), { maxNewTokens: 100, temperature: 3 })
    const last = results.filter(({ finishReason }) => finishReason === 'stop').map(({ tokens }) => tokens.at(-1))
    expect(new Set(last)).toEqual(new Set([0, 2]))
    for (const { tokens } of results) expect(tokens.slice(0, -1).some((token) => token === 0 || token === 2)).toBe(false)
  })
})

describe('the bytes of a token', () => {
  it('are exact, also for a token that is part of a character', () => {
    const tokenizer = new Tokenizer(tokenizerJson())
    const text = 'the naïve 漢 😀 in'
    const ids = tokenizer.encode(text)
    expect(Buffer.concat(ids.map((id) => tokenizer.tokenBytes(id))).toString()).toBe(text)
    expect(ids.some((id) => tokenizer.decode([id]) === '\ufffd')).toBe(true)
    expect(Buffer.from(tokenizer.tokenBytes(2)).toString()).toBe('<|im_end|>')
  })

  it('are the single byte of a byte-fallback token', () => {
    const vocab = { '<unk>': 0, '<0xC3>': 1, '<0xA9>': 2, '▁é': 3, a: 4 }
    const decoder = {
      type: 'Sequence',
      decoders: [{ type: 'Replace', pattern: { String: '▁' }, content: ' ' }, { type: 'ByteFallback' }, { type: 'Fuse' }],
    }
    const model = { type: 'BPE', vocab, merges: [], byte_fallback: true, unk_token: '<unk>' }
    const tokenizer = new Tokenizer({ model, decoder })
    expect([...tokenizer.tokenBytes(1)]).toEqual([0xc3])
    expect(Buffer.from(tokenizer.tokenBytes(3)).toString()).toBe(' é')
  })
})
