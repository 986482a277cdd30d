// Rows of a dataset: what is refused, with row and field, before anything is trained on it.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Dataset, loadDataset } from '../../src/data/dataset.js'
import { Tokenizer } from '../../src/data/tokenizer.js'
import { LoopLMError } from '../../src/errors.js'
import { evaluate, RLTTTrainer } from '../../src/index.js'
import { LoopLM } from '../../src/model/model.js'
import { describeProblems } from '../../src/rl/data.js'
import { encodePrompt, trainingSequence } from '../../src/rl/lessons.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { openProblems } from '../../src/rl/problems.js'
import { refusal } from '../refusal.js'
import { tinyTask } from '../tiny.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-rows-'))
})
afterAll(() => rm(root, { recursive: true }))

const eos = 256
const tokenizer = Tokenizer.bytes({ special: { eos: '<eos>' } })
const sizes = { vocab_size: 257, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2 }
const newModel = (fields = {}) => LoopLM.create({ ...sizes, total_ut_steps: 2, ...fields }, { seed: 1 })
const bytes = (text: string) => [...new TextEncoder().encode(text)]
const template =
  '{% if tools %}[{{ tools | length }} tools]{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}' +
  '{% if add_generation_prompt %}<assistant>{% endif %}'

/** The byte tokenizer with a chat template. */
async function chatting(chat_template = template): Promise<Tokenizer> {
  await tokenizer.save(join(root, 'bytes'))
  const json = JSON.parse(await readFile(join(root, 'bytes', 'tokenizer.json'), 'utf8'))
  return new Tokenizer(json, { eos_token: '<eos>', chat_template })
}

const user = { role: 'user', content: 'hi' }
const assistant = { role: 'assistant', content: 'ho' }
const messages = [user, assistant]
const cycle: Record<string, unknown> = { prompt: 'a' }
cycle.meta = { inner: cycle }
let deep: unknown = 'x'
for (let i = 0; i < 20_000; i++) deep = [deep]

/** What is refused wherever a row is used. */
const malformed: [what: string, row: unknown, message: RegExp][] = [
  ['null', null, /dataset\[1\] must be an object, got null/],
  ['nothing', undefined, /dataset\[1\] must be an object, got nothing/],
  ['a string', 'a prompt', /dataset\[1\] must be an object, got a value of type string/],
  ['an array', ['a'], /dataset\[1\] must be an object, got an array/],
  [
    'a number as prompt',
    { prompt: 5 },
    /dataset\[1\] field "prompt" must be a string or an array of messages, got a value of type number/,
  ],
  ['a null as prompt', { prompt: null }, /dataset\[1\] field "prompt" must be a string or an array of messages, got null/],
  ['no message as prompt', { prompt: [] }, /dataset\[1\] field "prompt" is empty; give at least one message/],
  ['texts as prompt', { prompt: ['hi'] }, /field "prompt\[0\]" must be an object with role and content/],
  ['messages as answer', { prompt: [user], answer: [assistant] }, /field "answer" must be a string when present, got an array/],
  [
    'a tokenized prompt',
    { prompt: Int32Array.of(1, 2) },
    /field "prompt" must be a string or an array of messages, got a value of type object/,
  ],
  ['no prompt', { question: 'q', solution: 's' }, /got nothing; the row has the fields question, solution/],
  ['no field', {}, /dataset\[1\] field "prompt" must be a string or an array of messages, got nothing/],
  [
    'a number as answer',
    { prompt: 'a', answer: 4 },
    /dataset\[1\] field "answer" must be a string when present, got a value of type number/,
  ],
  ['a null as answer', { prompt: 'a', answer: null }, /field "answer" must be a string when present, got null/],
  [
    'messages as completion',
    { prompt: 'a', completion: [assistant] },
    /field "completion" must be a string when present, or messages after a prompt of messages, got an array/,
  ],
  ['a number as text', { text: 5 }, /dataset\[1\] field "text" must be a string, got a value of type number/],
]

/** Rows that can be used, of which no fingerprint can be made. */
const withoutJson: [what: string, row: unknown, message: RegExp][] = [
  ['a big integer', { prompt: 'a', id: 10n }, /dataset\[1\] field "id" has no JSON .*rows are plain data/],
  ['a big integer deep inside', { prompt: 'a', meta: { ids: [1n] } }, /dataset\[1\] field "meta" has no JSON/],
  ['a cycle', cycle, /dataset\[1\] field "meta" has no JSON/],
  ['a column that is nested without end', { prompt: 'a', tree: deep }, /dataset\[1\] field "tree" has no JSON/],
]

/** Rows that are learned and cannot be answered. */
const unanswered: [what: string, row: unknown, message: RegExp][] = [
  [
    'messages',
    { messages },
    /dataset\[1\] field "prompt" is missing: .*has messages; .*pass the messages before the answer as prompt/,
  ],
  ['messages beside the empty prompt of a file', { prompt: '', messages }, /field "prompt" is missing/],
  ['text', { text: 'once' }, /dataset\[1\] field "prompt" is missing: .*has text/],
]

const first = { prompt: 'a', answer: 'b' }

describe('a row in code', () => {
  const reward = () => expect.unreachable()
  const rl = (model: LoopLM, rows: unknown[]) =>
    new RLTTTrainer(model, { dataset: rows as Dataset, tokenizer, reward, promptsPerStep: 1, groupSize: 2, steps: 1 })

  it.each([...malformed, ...withoutJson, ...unanswered])('with %s is rejected by RLTTTrainer', async (_what, row, message) => {
    using model = await newModel()
    const error = await refusal(async () => {
      for await (const _ of rl(model, [first, row]).run()) expect.unreachable()
    })
    expect(error).toBeInstanceOf(LoopLMError)
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(message)
  })

  it.each([...malformed, ...unanswered])('with %s is rejected by evaluate', async (_what, row, message) => {
    using model = await newModel()
    const error = await refusal(() =>
      evaluate(model, { dataset: [first, row] as Dataset, tokenizer, loops: [1], maxNewTokens: 1 }),
    )
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(new RegExp(message.source.replaceAll('dataset', '(dataset|evalDataset)')))
  })

  it.each([...malformed, ...withoutJson])('with %s is rejected by PretrainTrainer', async (_what, row, message) => {
    using model = await newModel()
    const trainer = new PretrainTrainer(model, { dataset: [first, row] as Dataset, tokenizer, batchSize: 1, steps: 1 })
    const error = await refusal(async () => {
      for await (const _ of trainer.run()) expect.unreachable()
    })
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(message)
  })

  it('that is wrong in evalDataset is rejected before the first step', async () => {
    using model = await newModel()
    const evalDataset = [first, { prompt: 3 }] as unknown as Dataset
    const options = { dataset: [first], evalDataset, tokenizer, batchSize: 1, steps: 1, evalEvery: 1 }
    const error = await refusal(async () => {
      for await (const _ of new PretrainTrainer(model, options).run()) expect.unreachable()
    })
    expect(error.message).toMatch(/evalDataset\[1\] field "prompt" must be a string/)
  })

  it('from a custom task is checked like a row of a dataset', async () => {
    using model = await newModel({ vocab_size: 12 })
    const task = { ...tinyTask, sample: () => ({ prompt: 17, answer: '1' }) as never }
    const error = await refusal(() => evaluate(model, { task, problems: 1, loops: [1] }))
    expect(error.message).toMatch(
      /a problem of the task addition field "prompt" must be a string or an array of messages, got a value of type number/,
    )
  })

  it('that the tokenizer rejects is named with its field', async () => {
    using model = await newModel({ vocab_size: 12 })
    const dataset = [{ prompt: '1+1=' }, { prompt: 'one and one' }]
    const error = await refusal(() => evaluate(model, { dataset, tokenizer: tinyTask.tokenizer, loops: [1] }))
    expect(error.message).toMatch(/\[1\] field "prompt": .*is not in the alphabet/)
  })

  it.each([
    [{ length: 1, 0: first }, /dataset: must be an array of rows, a DatasetStream, a path/],
    [5, /dataset: must be an array of rows/],
    [new Map(), /dataset: must be an array of rows/],
  ])('is not read from an invalid dataset: %o', async (dataset, message) => {
    using model = await newModel()
    expect((await refusal(async () => new PretrainTrainer(model, { dataset } as never))).message).toMatch(message)
  })

  it('is required: an empty dataset is rejected', async () => {
    using model = await newModel()
    expect((await refusal(() => evaluate(model, { dataset: [], tokenizer }))).message).toMatch(/has no rows/)
  })
})

describe('a training row', () => {
  it('may be a text field alone, all of which is trained on', async () => {
    using model = await newModel()
    const source = openProblems('test', model, { dataset: [first], tokenizer, seed: 0 })
    expect(await trainingSequence(source, { text: 'once' } as never)).toEqual({
      tokens: [...bytes('once'), eos],
      promptLength: 1,
    })
    const rows = [{ text: 'once' }, { text: 'upon a time', source: 'book' }] as unknown as Dataset
    using trainer = new PretrainTrainer(model, { dataset: rows, tokenizer, batchSize: 2, steps: 1 })
    const counts = []
    for await (const { type, metrics } of trainer.run()) if (type === 'step') counts.push(metrics.num_tokens)
    expect(counts).toEqual([5 + 12])
  })

  it('may have a text field in a file too', async () => {
    const path = join(root, 'text.jsonl')
    await writeFile(path, '{"text":"once"}\n{"prompt":"p","text":"a column"}\n')
    expect(await loadDataset(path)).toEqual([
      { prompt: '', text: 'once' },
      { prompt: 'p', text: 'a column' },
    ])
    await writeFile(path, '{"text":5}')
    expect((await refusal(() => loadDataset(path))).message).toMatch(/line 1 field "text" must be a string/)
  })

  it('passes its tools to the chat template', async () => {
    using model = await newModel()
    const source = openProblems('test', model, { dataset: [first], tokenizer: await chatting(), seed: 0 })
    const render = async (row: object) => source.tokenizer.decode((await trainingSequence(source, row as never)).tokens)
    expect(await render({ messages, tools: [{ name: 'a' }, { name: 'b' }] })).toBe('[2 tools]<user>hi<eos><assistant>ho<eos>')
    expect(await render({ messages })).toBe('<user>hi<eos><assistant>ho<eos>')
    expect(await render({ messages, tools: null })).toBe('<user>hi<eos><assistant>ho<eos>')
  })

  it.each([
    [{ messages: [] }, /dataset\[0\] field "messages" is empty/],
    [{ messages: 'hi' }, /field "messages" must be an array when present/],
    [{ messages: ['hi', 'ho'] }, /field "messages\[0\]" must be an object with role and content, got a value of type string/],
    [{ messages: [user, null] }, /field "messages\[1\]" must be an object .*got null/],
    [{ messages: [{ content: 'hi' }] }, /field "messages\[0\]\.role" must be a string, got nothing/],
    [
      { messages: [user, { role: 'assistant', content: [{ type: 'text', text: 'ho' }] }] },
      /field "messages\[1\]\.content" must be a string, got an array/,
    ],
    [{ messages: [user, { role: 'assistant', content: 5 }] }, /field "messages\[1\]\.content" must be a string/],
    [{ messages: [user, { role: 'assistant' }] }, /field "messages\[1\]\.content" must be a string, got nothing/],
    [{ messages, tools: '[]' }, /field "tools" must be an array of JSON schemas, got a value of type string/],
    [{ messages, tools: ['search'] }, /field "tools\[0\]" must be a JSON schema/],
    [
      { messages, chat_template_kwargs: { enable_thinking: false } },
      /dataset\[0\] field "messages": .*enable_thinking: the chat template reads no such variable/,
    ],
    [{ messages, chat_template_kwargs: 'think' }, /field "chat_template_kwargs" must be an object/],
    [{ messages, documents: [{}] }, /field "documents" beside messages is not supported/],
    [{ prompt: 'p', messages }, /has the fields "prompt" and "messages"; give one of them/],
    [{ messages, completion: 'ho' }, /has the fields "messages" and "completion"/],
    [{ text: '' }, /dataset\[0\] has 1 tokens; at least 2 are needed/],
  ])('is rejected as %o', async (row, message) => {
    using model = await newModel()
    const dataset = [row] as unknown as Dataset
    const trainer = new PretrainTrainer(model, { dataset, tokenizer: await chatting(), batchSize: 1, steps: 1 })
    const error = await refusal(async () => {
      for await (const _ of trainer.run()) expect.unreachable()
    })
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(message)
  })

  it('that the chat template rejects is named with its field', async () => {
    using model = await newModel()
    const refusing = await chatting("{{ raise_exception('roles must alternate') }}")
    const trainer = new PretrainTrainer(model, { dataset: [{ messages }] as never, tokenizer: refusing, batchSize: 1, steps: 1 })
    const error = await refusal(async () => {
      for await (const _ of trainer.run()) expect.unreachable()
    })
    expect(error.message).toMatch(/dataset\[0\] field "messages": .*roles must alternate/)
  })
})

describe('max_position_embeddings', () => {
  const long = { prompt: 'abcdefgh', answer: 'ij' }

  it('limits a prompt with its answer, naming the row', async () => {
    using model = await newModel({ max_position_embeddings: 8 })
    const error = await refusal(() => evaluate(model, { dataset: [first, long], tokenizer, loops: [1] }))
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(
      /\[1\] field "prompt" has 8 tokens, and a prompt with its answer has at most 8 \(max_position_embeddings\)/,
    )
  })

  it('limits rollouts and training rows', async () => {
    using model = await newModel({ max_position_embeddings: 10 })
    const rollout = new RLTTTrainer(model, {
      dataset: [{ prompt: 'abcdefghij' }],
      tokenizer,
      reward: () => 1,
      promptsPerStep: 1,
      groupSize: 2,
      steps: 1,
      maxNewTokens: 4,
    })
    const run = async (trainer: RLTTTrainer | PretrainTrainer) => {
      for await (const _ of trainer.run());
    }
    expect((await refusal(() => run(rollout))).message).toMatch(/dataset\[0\] field "prompt" has 10 tokens/)
    const lesson = (answer: string) =>
      run(new PretrainTrainer(model, { dataset: [{ prompt: 'abcdefgh', answer }], tokenizer, batchSize: 1, steps: 1 }))
    await lesson('i') // 8 + 1 + the end token
    expect((await refusal(() => lesson('ij'))).message).toMatch(/dataset\[0\] has 11 tokens, and a sequence has at most 10/)
  })

  it('is checked for every row before the first step', async () => {
    using model = await newModel({ max_position_embeddings: 40 })
    const short = Array.from({ length: 50 }, () => first)
    const dataset = [...short, { prompt: 'x'.repeat(30), answer: 'y'.repeat(30) }]
    const trainer = new PretrainTrainer(model, { dataset, tokenizer, batchSize: 1, steps: 1 })
    const error = await refusal(async () => {
      for await (const _ of trainer.run()) expect.unreachable()
    })
    expect(error.message).toMatch(/dataset\[50\] has 61 tokens/)
    const wide = [...short, { prompt: 'a', answer: 'b', notes: 'x'.repeat(1000) }] // long, but not what is read
    const types = []
    for await (const { type } of new PretrainTrainer(model, { dataset: wide, tokenizer, batchSize: 1, steps: 1 }).run())
      types.push(type)
    expect(types).toEqual(['step', 'done'])
  })

  it('requires room for one token after a prompt', async () => {
    using model = await newModel({ max_position_embeddings: 9 })
    const source = openProblems('test', model, { dataset: [long], tokenizer, seed: 0 })
    expect((await encodePrompt(source, long)).tokens).toEqual(bytes('abcdefgh'))
    expect((await refusal(() => encodePrompt(source, { prompt: 'abcdefghi' }))).message).toMatch(/has 9 tokens/)
  })
})

describe('a large dataset', () => {
  it('is hashed without blocking the event loop', async () => {
    using model = await newModel()
    const text = 'x'.repeat(2 ** 19)
    const dataset = Array.from({ length: 64 }, (_, i) => ({ prompt: `${i}:`, answer: 'b', notes: text }))
    let turns = 0
    let waiting = true
    const turn = () => {
      turns++
      if (waiting) setImmediate(turn)
    }
    setImmediate(turn)
    const source = openProblems('test', model, { dataset, tokenizer, seed: 0 })
    await describeProblems(source, { problemOf: () => undefined, read: async () => {} })
    waiting = false
    expect(turns).toBeGreaterThanOrEqual(20) // a slice is a megabyte of 32
  })

  it('fails with ABORTED when the run is aborted while reading it', async () => {
    using model = await newModel()
    const dataset = Array.from({ length: 16 }, () => ({ prompt: 'a', answer: 'b', notes: 'x'.repeat(2 ** 20) }))
    const controller = new AbortController()
    setImmediate(() => controller.abort())
    const trainer = new PretrainTrainer(model, { dataset, tokenizer, batchSize: 1, steps: 1 })
    const error = await refusal(async () => {
      for await (const _ of trainer.run({ signal: controller.signal })) expect.unreachable()
    })
    expect(error.code).toBe('ABORTED')
  })
})
