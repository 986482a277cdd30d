// Conversations as prompts and as lessons, in trainers and evaluations.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { ChatSettings } from '../../src/data/chat-format.js'
import { type Dataset, evaluate, LoopLM, PretrainTrainer, RLTTTrainer, Tokenizer } from '../../src/index.js'
import { encodePrompt, type LessonOptions, trainingSequence } from '../../src/rl/lessons.js'
import { openProblems } from '../../src/rl/problems.js'
import { refusal } from '../refusal.js'
import { difference, parametersOf } from '../tiny.js'

const plain =
  '{% if enable_thinking is defined %}[think {{ enable_thinking }}]{% endif %}{% if tools %}[{{ tools | length }} tools]{% endif %}' +
  '{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
const marked =
  '{% for m in messages %}\n<{{ m.role }}>{% if m.role == "assistant" %}{%- generation -%}\n  {{ m.content }}<end>{%- endgeneration %}' +
  '{% else %}{{ m.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'

let root: string
let chatting: (template: string) => Promise<Tokenizer>
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-conversations-'))
  await Tokenizer.bytes({ special: { bos: '<bos>', eos: '<eos>', pad: '<end>' } }).save(root)
  const json = JSON.parse(await readFile(join(root, 'tokenizer.json'), 'utf8'))
  chatting = async (chat_template) => new Tokenizer(json, { bos_token: '<bos>', eos_token: '<eos>', chat_template })
})
afterAll(() => rm(root, { recursive: true }))

const sizes = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 }
const newModel = (tokenizer: Tokenizer) => LoopLM.create({ vocab_size: tokenizer.vocabSize, ...sizes }, { seed: 1 })
const user = (content: string) => ({ role: 'user', content })
const assistant = (content: string) => ({ role: 'assistant', content })
const dialogue = [user('hi'), assistant('ho'), user('more'), assistant('no')]

/** A source of one row, in the way of trainers. */
async function open(row: object, settings?: ChatSettings, template = plain) {
  const tokenizer = await chatting(template)
  using model = await newModel(tokenizer)
  return openProblems('test', model, { dataset: [row] as Dataset, tokenizer, seed: 0, chatTemplate: settings })
}
const promptText = async (row: object, settings?: ChatSettings) => {
  const source = await open(row, settings)
  const { tokens, text } = await encodePrompt(source, row as never)
  expect(source.tokenizer.decode(tokens)).toBe(text)
  return text
}
/** What is learned in brackets, and the rest. */
const lessonText = async (row: object, options: LessonOptions, template?: string, settings?: ChatSettings) => {
  const source = await open(row, settings, template)
  const { tokens, promptLength, mask } = await trainingSequence(source, row as never, options)
  let text = ''
  let learning = false
  for (const [i, token] of tokens.entries()) {
    const learned = i >= promptLength && mask?.[i - 1] !== 0
    if (learned !== learning) text += learned ? '[' : ']'
    learning = learned
    text += source.tokenizer.decode([token])
  }
  return learning ? `${text}]` : text
}

describe('a prompt', () => {
  it('is rendered by the chat template if it is a list of messages', async () => {
    const row = { prompt: dialogue.slice(0, 3) }
    expect(await promptText(row)).toBe('<user>hi<end><assistant>ho<end><user>more<end><assistant>')
  })

  it.each<[ChatSettings, string]>([
    [{ enable_thinking: false }, '[think False]<user>hi<end><assistant>'],
    [{ tools: [{ name: 'a' }, { name: 'b' }] }, '[2 tools]<user>hi<end><assistant>'],
    [{ system: 'be short' }, '<system>be short<end><user>hi<end><assistant>'],
    [{ template: '{{ messages[0].content }}?' }, 'hi?'],
  ])('is rendered with the option chatTemplate %j', async (settings, text) => {
    expect(await promptText({ prompt: [user('hi')] }, settings)).toBe(text)
  })

  it('takes tools and template variables from the columns of its row', async () => {
    const row = { prompt: [user('hi')], tools: [{ name: 'a' }], chat_template_kwargs: { enable_thinking: true } }
    expect(await promptText(row, { enable_thinking: false, tools: [{}, {}] })).toBe(
      '[think True][1 tools]<user>hi<end><assistant>',
    )
  })

  it('becomes a user message only with wrapPrompts if it is a string', async () => {
    expect(await promptText({ prompt: 'hi' }, { wrapPrompts: true })).toBe('<user>hi<end><assistant>')
    expect(await promptText({ prompt: 'hi' })).toBe('hi')
  })

  it('begins with exactly one bos token, whether template, string or tokenizer adds it', async () => {
    const json = JSON.parse(await readFile(join(root, 'tokenizer.json'), 'utf8'))
    const bos = json.added_tokens.find((token: { content: string }) => token.content === '<bos>')
    const begin = { SpecialToken: { id: '<bos>', type_id: 0 } }
    json.post_processor = {
      type: 'TemplateProcessing',
      single: [begin, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [],
      special_tokens: { '<bos>': { id: '<bos>', ids: [bos.id], tokens: ['<bos>'] } },
    }
    const template = `{{ bos_token }}${plain}`
    const tokenizer = new Tokenizer(json, { bos_token: '<bos>', eos_token: '<eos>', chat_template: template })
    using model = await newModel(tokenizer)
    const source = openProblems('test', model, { dataset: [{ prompt: 'a' }], tokenizer, seed: 0 })
    const text = async (prompt: never) => tokenizer.decode((await encodePrompt(source, { prompt })).tokens)
    expect(await text([user('hi')] as never)).toBe('<bos><user>hi<end><assistant>')
    expect(await text('hi' as never)).toBe('<bos>hi')
    expect(await text('<bos>hi' as never)).toBe('<bos>hi')
  })

  it.each<[object, ChatSettings | undefined, RegExp]>([
    [{ prompt: dialogue }, undefined, /dataset\[0\] field "prompt" ends with a message of the assistant/],
    [{ prompt: [{ role: 'user', content: 5 }] }, undefined, /dataset\[0\] field "prompt\[0\]\.content" must be a string/],
    [{ prompt: [user('hi')] }, { enableThinking: false }, /enableThinking: .*did you mean enable_thinking\?/],
    [{ prompt: [user('hi')] }, { template: '{% if %}' }, /chatTemplate\.template: the chat template does not parse/],
    [{ prompt: [user('hi')] }, { template: 'missing.jinja' }, /cannot read the chat template missing\.jinja/],
  ])('is rejected: %j with chatTemplate %j', async (row, settings, message) => {
    expect((await refusal(() => promptText(row, settings))).message).toMatch(message)
  })
})

describe('a training example', () => {
  it.each<[string, object, LessonOptions, string]>([
    ['the last message', { messages: dialogue }, {}, '<user>hi<end><assistant>ho<end><user>more<end><assistant>[no<end>]'],
    [
      'every message of the assistant',
      { messages: dialogue },
      { assistantOnly: true },
      '<user>hi<end><assistant>[ho<end>]<user>more<end><assistant>[no<end>]',
    ],
    [
      'what the assistant said before a question that nobody answered',
      { messages: dialogue.slice(0, 3) },
      { assistantOnly: true },
      '<user>hi<end><assistant>[ho<end>]<user>more<end>',
    ],
    ['a completion behind messages', { prompt: [user('hi')], completion: 'ho' }, {}, '<user>hi<end><assistant>[ho<end>]'],
    ['an answer behind messages', { prompt: [user('hi')], answer: 'ho' }, {}, '<user>hi<end><assistant>[ho<end>]'],
    [
      'several messages behind messages',
      { prompt: [user('hi')], completion: [assistant('ho'), user('and'), assistant('so')] },
      {},
      '<user>hi<end><assistant>[ho<end><user>and<end><assistant>so<end>]',
    ],
    [
      'those of the assistant alone',
      { prompt: [user('hi')], completion: [assistant('ho'), user('and'), assistant('so')] },
      { assistantOnly: true },
      '<user>hi<end><assistant>[ho<end>]<user>and<end><assistant>[so<end>]',
    ],
  ])('trains on %s', async (_what, row, options, text) => {
    expect(await lessonText(row, options)).toBe(text)
  })

  it('trains on what the template puts in {% generation %}', async () => {
    const text = '<user>hi<end>\n<assistant>[ho<end>]<user>more<end>\n<assistant>[no<end>]'
    expect(await lessonText({ messages: dialogue }, { assistantOnly: true }, marked)).toBe(text.replaceAll('\n', ''))
    const tokenizer = await chatting(marked)
    expect(tokenizer.applyChatTemplate(dialogue)).toBe(text.replaceAll(/[[\]\n]/g, ''))
  })

  it('has the turns of the template if wrapPrompts wraps a string prompt', async () => {
    const text = await lessonText({ prompt: 'hi', answer: 'ho' }, {}, undefined, { wrapPrompts: true })
    expect(text).toBe('<user>hi<end><assistant>[ho<end>]')
  })

  it.each<[object, LessonOptions, string, RegExp]>([
    [{ messages: [user('hi')] }, { assistantOnly: true }, plain, /field "messages": .*no message of the role "assistant"/],
    [
      { messages: dialogue },
      { assistantOnly: true },
      '{% for m in messages %}<{{ m.role }}>{% if loop.last %}!{% endif %}{{ m.content }}{% endfor %}',
      /renders messages\[1\] differently when more messages follow, .*put \{% generation %\}/,
    ],
    [
      { messages: dialogue },
      { assistantOnly: true },
      '{% for m in messages %}{% generation %}{{ m.content }}{% generation %}{% endfor %}',
      /must come in pairs/,
    ],
    [{ prompt: [user('hi')] }, {}, plain, /has messages as "prompt" and no text to learn/],
  ])('is rejected: %j with %j', async (row, options, template, message) => {
    expect((await refusal(() => lessonText(row, options, template))).message).toMatch(message)
  })

  it.each([1, 2] as const)(
    'trains only on assistant messages: one step of Stage %i equals an update with a mask',
    async (stage) => {
      const tokenizer = await chatting(plain)
      using model = await newModel(tokenizer)
      using twin = await model.clone()
      const before = await parametersOf(model)
      const rows = [{ messages: dialogue }, { messages: dialogue.slice(0, 2) }] as unknown as Dataset
      const options = { learningRate: 1e-2, batchSize: 2, steps: 1, stage }
      const trainer = new PretrainTrainer(model, { dataset: rows, tokenizer, assistantOnly: true, ...options })
      let loss = Number.NaN
      for await (const event of trainer.run()) if (event.type === 'step') loss = event.metrics.loss!
      const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false })
      const learned = (tokens: number[], spans: [number, number][]) =>
        tokens.slice(1).map((_, i) => Number(spans.some(([from, to]) => i + 1 >= from && i + 1 < to)))
      // '<end>' is a token, every other character a byte
      const [long, short] = [
        '<user>hi<end><assistant>ho<end><user>more<end><assistant>no<end>',
        '<user>hi<end><assistant>ho<end>',
      ].map(encode)
      const spans: [number, number][] = [
        [20, 23],
        [45, 48],
      ]
      expect(tokenizer.decode(long!.slice(20, 23)) + tokenizer.decode(long!.slice(45, 48))).toBe('ho<end>no<end>')
      const batch = {
        sequences: [long!, short!],
        promptLengths: [1, 1],
        mask: [learned(long!, spans), learned(short!, [[20, 23]])],
      }
      const made = await new PretrainTrainer(twin, options).update(batch)
      expect(loss).toBeCloseTo(made.loss, 6)
      const [own, want] = [await parametersOf(model), await parametersOf(twin)]
      expect(difference(want, own)).toBeLessThan(1e-6)
      const moved = [...own.keys()].filter((name) => String(own.get(name)) !== String(before.get(name)))
      expect(moved).toContain('model.early_exit_gate.weight')
      expect(moved.includes('lm_head.weight')).toBe(stage === 1)
    },
  )
})

describe('conversations', () => {
  const rows = [{ prompt: [user('hi')], answer: 'ho' }, { prompt: [user('more')] }] as unknown as Dataset

  it('are sampled, scored and logged as the template renders them, and stop at its turn end', async () => {
    const tokenizer = await chatting(plain)
    using model = await newModel(tokenizer)
    const seen = new Set<string>()
    const ends = tokenizer.tokenId('<end>')!
    let logged = 0
    using trainer = new RLTTTrainer(model, {
      dataset: rows,
      tokenizer,
      chatTemplate: { enable_thinking: false },
      reward: (prompt, completion, { prompt: messages }) => {
        expect(Array.isArray(messages)).toBe(true)
        seen.add(prompt)
        return completion.length
      },
      promptsPerStep: 2,
      groupSize: 4,
      steps: 2,
      maxNewTokens: 4,
    })
    for await (const event of trainer.run()) {
      if (event.type !== 'step') continue
      for (const { prompt } of event.completions) expect(seen.has(prompt)).toBe(true)
      logged += event.completions.length
    }
    expect(logged).toBe(16)
    const text = (content: string) => `[think False]<user>${content}<end><assistant>`
    expect([...seen].sort()).toEqual([text('hi'), text('more')])
    expect(openProblems('test', model, { dataset: rows, tokenizer, seed: 0 }).stop).toContain(ends)
  })

  it('are evaluated with the template of the option chatTemplate', async () => {
    const tokenizer = await chatting(plain)
    using model = await newModel(tokenizer)
    const prompts: string[] = []
    const reward = (prompt: string) => prompts.push(prompt)
    const chatTemplate = { template: '{{ messages[0].content }}!' }
    await evaluate(model, { dataset: rows, tokenizer, chatTemplate, reward, loops: [1], maxNewTokens: 2 })
    expect(prompts).toEqual(['hi!', 'more!'])
  })

  it('leave the model with the custom template and the end token of the tokenizer', async () => {
    const tokenizer = await chatting(plain)
    using model = await newModel(tokenizer)
    await writeFile(join(root, 'own.jinja'), `\ufeffown: ${plain}`) // the byte order mark is no text
    const chatTemplate = { template: join(root, 'own.jinja') }
    using trainer = new PretrainTrainer(model, { dataset: rows.slice(0, 1), tokenizer, chatTemplate, batchSize: 1, steps: 1 })
    for await (const _ of trainer.run());
    expect(model.tokenizer!.applyChatTemplate([user('hi')])).toBe('own: <user>hi<end>')
    expect(model.endTokens).toContain(tokenizer.eosTokenId)
  })
})
