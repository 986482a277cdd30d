// Where a text ends: training, generation, evaluation and what is saved agree on it.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { Corpus, evaluate, exactMatch, LoopLM, PretrainTrainer, RLTTTrainer, Tokenizer } from '../../src/index.js'
import { stopTokens } from '../../src/model/special-tokens.js'
import { tinyModel, tinyTask } from '../tiny.js'

let root: string
let json: unknown
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-ends-'))
  await Tokenizer.bytes({ special: { bos: '<bos>', eos: '<eos>', pad: '<pad>' } }).save(join(root, 'bytes'))
  json = JSON.parse(await readFile(join(root, 'bytes', 'tokenizer.json'), 'utf8'))
})
afterAll(() => rm(root, { recursive: true }))

const id = (token: string) => new Tokenizer(json).tokenId(token)!
const named = (config = {}) => new Tokenizer(json, { bos_token: '<bos>', eos_token: '<eos>', pad_token: '<pad>', ...config })
const nameless = () => new Tokenizer(json)
const turns = (end: string) =>
  `{% for m in messages %}{{ m.role }}:{{ m.content }}${end}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}`

const sizes = { vocab_size: 259, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2 }
const newModel = (fields = {}) => LoopLM.create({ ...sizes, total_ut_steps: 2, initializer_range: 0.3, ...fields }, { seed: 1 })

async function saved(model: LoopLM, name: string) {
  const folder = join(root, name)
  await model.save(folder)
  const read = async (file: string) => JSON.parse(await readFile(join(folder, file), 'utf8'))
  return { folder, config: await read('config.json'), generation: await read('generation_config.json') }
}

const rows = Array.from({ length: 8 }, (_, i) => ({ prompt: `${i}:`, completion: 'yes', answer: 'yes' }))
const lesson = { dataset: rows, batchSize: 8, steps: 150, learningRate: 1e-2 }

async function finish(trainer: PretrainTrainer | RLTTTrainer): Promise<void> {
  for await (const _ of trainer.run());
}

describe('a new model', () => {
  it('takes over the end, begin and padding tokens of its tokenizer, and saves them', async () => {
    using model = await newModel()
    expect([model.endTokens, model.config.bos_token_id]).toEqual([[], null])
    model.tokenizer = named()
    const ids = { bos_token_id: id('<bos>'), eos_token_id: id('<eos>'), pad_token_id: id('<pad>') }
    expect(model.endTokens).toEqual([id('<eos>')])
    const { folder, config, generation } = await saved(model, 'taken')
    expect(config).toMatchObject(ids)
    expect(generation).toMatchObject(ids)
    using loaded = await LoopLM.fromPretrained(folder)
    expect(loaded.endTokens).toEqual([id('<eos>')])
    using clone = await model.clone()
    expect(clone.endTokens).toEqual([id('<eos>')])
  })

  it('takes only the special tokens that its tokenizer has', async () => {
    using model = await newModel()
    model.tokenizer = new Tokenizer(json, { eos_token: '<eos>' })
    expect(model.config).toMatchObject({ eos_token_id: id('<eos>'), bos_token_id: null })
    expect(model.config).not.toHaveProperty('pad_token_id')
    model.tokenizer = nameless()
    expect(model.endTokens).toEqual([])
  })

  it('keeps the special tokens that its configuration names', async () => {
    using model = await newModel({ eos_token_id: [7, 8], bos_token_id: 9, pad_token_id: 0 })
    model.tokenizer = named()
    expect(model.endTokens).toEqual([7, 8])
    expect(model.config).toMatchObject({ eos_token_id: [7, 8], bos_token_id: 9, pad_token_id: 0 })
    using none = await newModel({ eos_token_id: [] })
    none.tokenizer = named()
    expect(none.endTokens).toEqual([])
  })

  it('follows a change of the tokenizer', async () => {
    using model = await newModel()
    model.tokenizer = named({ eos_token: '<pad>' })
    expect(model.endTokens).toEqual([id('<pad>')])
    using clone = await model.clone()
    using merged = await model.mergeAdapter()
    for (const changed of [model, clone, merged]) {
      changed.tokenizer = named()
      expect(changed.endTokens).toEqual([id('<eos>')])
      expect(changed.config.eos_token_id).toBe(id('<eos>'))
      changed.tokenizer = undefined
      expect(changed.endTokens).toEqual([])
      expect(changed.config.eos_token_id).toBe(null)
    }
  })

  it('keeps what it took from its tokenizer in a copy', async () => {
    using model = await newModel({ eos_token_id: 7 })
    model.tokenizer = named()
    using clone = await model.clone()
    expect(clone.config).toEqual(model.config)
    expect(clone.config.pad_token_id).toBe(id('<pad>'))
  })

  it('also stops at the token with which the chat template ends a turn', async () => {
    using model = await newModel()
    model.tokenizer = named({ chat_template: turns('<pad>') })
    expect(model.endTokens).toEqual([id('<eos>'), id('<pad>')])
    const { config, generation } = await saved(model, 'turns')
    expect(config.eos_token_id).toBe(id('<eos>'))
    expect(generation.eos_token_id).toEqual([id('<eos>'), id('<pad>')])
  })

  it('takes the end token of its tokenizer if the loaded folder names none', async () => {
    using model = await newModel()
    const { folder, config, generation } = await saved(model, 'silent')
    expect([config.eos_token_id, generation.eos_token_id]).toEqual([null, null])
    await named().save(folder)
    using loaded = await LoopLM.fromPretrained(folder)
    expect(loaded.endTokens).toEqual([id('<eos>')])
    await writeFile(join(folder, 'generation_config.json'), JSON.stringify({ eos_token_id: [] }))
    using told = await LoopLM.fromPretrained(folder)
    expect(told.endTokens).toEqual([])
  })
})

describe('the end token of training and generation', () => {
  it('is that of the tokenizer if the model names none', async () => {
    using model = await newModel()
    using trainer = new PretrainTrainer(model, { ...lesson, tokenizer: named() })
    await finish(trainer)
    const [result] = await model.generate(['3:'], { temperature: 0, maxNewTokens: 16 })
    expect(result).toMatchObject({ text: 'yes', finishReason: 'stop' })
    const [evaluation] = await evaluate(model, { dataset: rows, loops: [2], maxNewTokens: 16 })
    expect(evaluation).toMatchObject({ reward: 1, clippedRatio: 0, completionLength: 4 })
    using sampler = new RLTTTrainer(model, {
      dataset: rows,
      reward: exactMatch,
      groupSize: 4,
      promptsPerStep: 2,
      steps: 1,
      temperature: 0.2,
      maxNewTokens: 16,
      onWarning() {},
    })
    const clipped: unknown[] = []
    for await (const { type, metrics } of sampler.run()) if (type === 'step') clipped.push(metrics['completions/clipped_ratio'])
    expect(clipped).toEqual([0])
  })

  it('is that of the model if the tokenizer names none', async () => {
    using model = await newModel({ eos_token_id: 5 })
    using trainer = new PretrainTrainer(model, { ...lesson, tokenizer: nameless() })
    await finish(trainer)
    expect((await model.generate(['3:'], { temperature: 0, maxNewTokens: 16 }))[0]).toMatchObject({
      finishReason: 'stop',
      tokens: [...Buffer.from('yes'), 5],
    })
  })

  it('also ends answers in evaluations of a model without a tokenizer', async () => {
    using model = await newModel()
    using trainer = new PretrainTrainer(model, { ...lesson, tokenizer: named() })
    await finish(trainer)
    model.tokenizer = undefined
    const [evaluation] = await evaluate(model, { dataset: rows, tokenizer: named(), loops: [2], maxNewTokens: 16 })
    expect(evaluation!.reward).toBe(1)
  })

  it.each([
    ['the tokenizer alone', {}, () => named(), ['<eos>']],
    ['the model alone', { eos_token_id: 3 }, nameless, [3]],
    ['both, alike', { eos_token_id: [3, 257] }, () => named(), ['<eos>', 3]],
    ['both, differently', { eos_token_id: 3 }, () => named(), [3]],
    ['neither', {}, nameless, []],
    ['the model: nowhere', { eos_token_id: [] }, () => named(), []],
  ])('is set by %s', async (_who, fields, tokenizer, ends) => {
    using model = await newModel(fields)
    expect(stopTokens(model, tokenizer())).toEqual(ends.map((end) => (typeof end === 'string' ? id(end) : end)))
  })

  it('is appended to packed text', async () => {
    const path = join(root, 'text.txt')
    await writeFile(path, 'abc')
    const last = async (fields: object, tokenizer: Tokenizer) => {
      using model = await newModel(fields)
      const [endToken = null] = stopTokens(model, tokenizer)
      const corpus = await Corpus.open(path, tokenizer, { contextLength: 8, endToken })
      const [block] = await corpus.take(0, 1)
      corpus.close()
      return [...block!].slice(3)
    }
    expect(await last({}, named())).toEqual([id('<eos>')])
    expect(await last({ eos_token_id: 3 }, nameless())).toEqual([3])
    expect(await last({ eos_token_id: 3 }, named())).toEqual([3])
    expect(await last({}, nameless())).toEqual([])
  })

  it('is appended to packed text that a trainer reads', async () => {
    const corpus = join(root, 'packed.txt')
    await writeFile(corpus, 'abc')
    const tokens = async (fields: object) => {
      using model = await newModel(fields)
      const options = { corpus, tokenizer: nameless(), contextLength: 8, heldOutShare: 0, batchSize: 1, steps: 1 }
      using trainer = new PretrainTrainer(model, options)
      for await (const { type, metrics } of trainer.run()) if (type === 'step') return metrics.num_tokens
    }
    expect([await tokens({ eos_token_id: 3 }), await tokens({})]).toEqual([4, 3])
  })

  it('is appended to conversations whose template writes none', async () => {
    const messages = [
      { role: 'user', content: 'a' },
      { role: 'assistant', content: 'b' },
    ]
    const tokens = async (tokenizer: Tokenizer) => {
      using model = await newModel()
      using trainer = new PretrainTrainer(model, { dataset: [{ prompt: '', messages }], tokenizer, batchSize: 1, steps: 1 })
      for await (const { type, metrics } of trainer.run()) if (type === 'step') return metrics.num_tokens
    }
    const text = 'user:aassistant:b'
    expect(await tokens(named({ chat_template: turns('') }))).toBe(text.length + 1)
    expect(await tokens(named({ chat_template: turns('<eos>') }))).toBe(text.length + 2)
  })

  it('is saved in checkpoints of a run, with the tokenizer of the data', async () => {
    const runDir = join(root, 'run')
    using model = await newModel()
    using trainer = new PretrainTrainer(model, { ...lesson, steps: 1, tokenizer: named(), runDir })
    await finish(trainer)
    expect(model.tokenizer?.fingerprint).toBe(named().fingerprint)
    using loaded = await LoopLM.fromPretrained(join(runDir, 'checkpoints', 'step-1'))
    expect([loaded.endTokens, loaded.tokenizer?.fingerprint]).toEqual([[id('<eos>')], named().fingerprint])
  })
})

describe('a run', () => {
  async function warnings(fields: object, tokenizer: Tokenizer, options = {}): Promise<string[]> {
    using model = await newModel(fields)
    const onWarning = vi.fn()
    using trainer = new PretrainTrainer(model, { ...lesson, steps: 1, tokenizer, onWarning, ...options })
    await finish(trainer)
    return onWarning.mock.calls.map(([message]) => message)
  }
  const conversation = {
    dataset: [
      {
        prompt: '',
        messages: [
          { role: 'user', content: 'a' },
          { role: 'assistant', content: 'b' },
        ],
      },
    ],
  }

  it.each([
    [
      'that both name other end tokens',
      { eos_token_id: 3 },
      named,
      {},
      /^eos_token_id: the tokenizer ends texts with 257 \("<eos>"\), .* at 3/,
    ],
    ['that the model ends nowhere', { eos_token_id: [] }, named, {}, /^eos_token_id: .* generation at no token/],
    ['that both name other begin tokens', { bos_token_id: 3 }, named, {}, /^bos_token_id: the tokenizer begins texts with 256/],
    ['that no end is learned', {}, nameless, {}, /^neither the model nor the tokenizer names an end token/],
    [
      'that answers end at a token at which generation does not',
      { eos_token_id: 257 },
      () => named({ chat_template: turns('<pad>') }),
      conversation,
      /^the chat template ends an answer with token 258, but generation does not stop there. Add it to eos_token_id/,
    ],
  ])('warns %s', async (_what, fields, tokenizer, options, message) => {
    const said = await warnings(fields, tokenizer(), options)
    expect(said.filter((text) => message.test(text))).toHaveLength(1)
  })

  it('gives no warning if model and tokenizer agree', async () => {
    expect(await warnings({}, named())).toEqual([])
    expect(await warnings({ eos_token_id: [257, 3], bos_token_id: 256 }, named())).toEqual([])
    expect(await warnings({ eos_token_id: 3 }, nameless())).toEqual([])
    expect(await warnings({}, named({ chat_template: turns('<pad>') }), conversation)).toEqual([])
  })

  it('warns that the data has another tokenizer than the model', async () => {
    using model = await newModel()
    model.tokenizer = named()
    const onWarning = vi.fn()
    const tokenizer = Tokenizer.characters('0123:yes')
    using trainer = new PretrainTrainer(model, { ...lesson, dataset: rows.slice(0, 4), steps: 1, tokenizer, onWarning })
    await finish(trainer)
    expect(onWarning).toHaveBeenCalledWith(expect.stringMatching(/^the data uses another tokenizer than the model/))
  })
})

describe('completions that are all cut off', () => {
  const options = { groupSize: 4, promptsPerStep: 2, steps: 5, maxNewTokens: 3, reward: () => 0.5 }
  const cut = /every completion of the first 2 steps was cut off at maxNewTokens = 3/

  async function warnings(make: (onWarning: (message: string) => void) => Promise<RLTTTrainer>): Promise<string[]> {
    const list: string[] = []
    using trainer = await make((message) => list.push(message))
    await finish(trainer)
    trainer.model.dispose()
    return list.filter((message) => message.includes('cut off'))
  }

  it('cause a warning after two steps that names the end token', async () => {
    const never = await warnings(
      async (onWarning) =>
        new RLTTTrainer(await newModel({ eos_token_id: 9 }), { ...options, dataset: rows, tokenizer: nameless(), onWarning }),
    )
    expect(never).toEqual([expect.stringMatching(cut)])
    expect(never[0]).toMatch(/^step 2: .*A completion ends at token 9: .*Raise maxNewTokens/)
  })

  it('cause a warning that the model has no end token', async () => {
    const none = await warnings(
      async (onWarning) => new RLTTTrainer(await newModel(), { ...options, dataset: rows, tokenizer: nameless(), onWarning }),
    )
    expect(none).toEqual([expect.stringMatching(/The model has no end token: set its eos_token_id/)])
  })

  it('cause no warning if one ends, or in tasks with answers of one length', async () => {
    const ending = async (onWarning: (message: string) => void) => {
      const model = await newModel({ eos_token_id: Array.from({ length: 250 }, (_, i) => i) })
      return new RLTTTrainer(model, { ...options, dataset: rows, tokenizer: nameless(), onWarning })
    }
    expect(await warnings(ending)).toEqual([])
    const { maxNewTokens: _, ...rest } = options
    const fixed = async (onWarning: (message: string) => void) =>
      new RLTTTrainer(await tinyModel('cpu'), { ...rest, task: tinyTask, onWarning })
    expect(await warnings(fixed)).toEqual([])
  })

  it('cause a warning at once in an evaluation', async () => {
    using model = await newModel({ eos_token_id: 9 })
    const onWarning = vi.fn()
    const evaluated = { ...options, steps: 1, dataset: rows, evalDataset: rows, evalEvery: 1, tokenizer: nameless(), onWarning }
    using trainer = new RLTTTrainer(model, evaluated)
    const events = []
    for await (const event of trainer.run()) events.push(event)
    expect(events[0]).toMatchObject({ type: 'eval', step: 0, metrics: { 'eval/loop_2/clipped_ratio': 1 } })
    expect(onWarning).toHaveBeenCalledWith(expect.stringMatching(/^step 0: every answer of the evaluation was cut off .*token 9/))
  })
})

describe('events', () => {
  it('contain every completion of a step; completions.jsonl gets the first few', async () => {
    const runDir = join(root, 'completions')
    using model = await newModel()
    const reward = [
      { name: 'first', reward: (_prompt: string, completion: string) => completion.length % 2 },
      { name: 'second', reward: () => null, weight: 2 },
    ]
    const options = { dataset: rows, tokenizer: named(), reward, groupSize: 4, promptsPerStep: 2, maxNewTokens: 3, steps: 2 }
    using trainer = new RLTTTrainer(model, { ...options, logCompletions: 3, runDir, onWarning() {} })
    const lines: unknown[] = []
    for await (const event of trainer.run()) {
      if (event.type !== 'step') continue
      expect(event.completions).toHaveLength(8)
      expect(event.completions[0]).toEqual({
        prompt: expect.stringMatching(/^\d:$/),
        completion: expect.any(String),
        answer: 'yes',
        reward: expect.any(Number),
        rewards: { first: expect.any(Number), second: null },
      })
      expect(event.completions.reduce((sum, { reward }) => sum + reward!, 0) / 8).toBeCloseTo(event.metrics.reward!, 12)
      lines.push(...event.completions.slice(0, 3).map((completion) => ({ step: event.step, ...completion })))
    }
    const written = (await readFile(join(runDir, 'completions.jsonl'), 'utf8')).trimEnd().split('\n')
    expect(written.map((line) => JSON.parse(line))).toEqual(lines)
  })

  it('contain no completions for steps without sampling', async () => {
    using model = await tinyModel('cpu')
    using trainer = new PretrainTrainer(model, { task: tinyTask, batchSize: 2, steps: 1 })
    const completions: unknown[] = []
    for await (const event of trainer.run()) if (event.type === 'step') completions.push(event.completions)
    expect(completions).toEqual([[]])
  })

  it('are written to metrics.jsonl with the time of day', async () => {
    const runDir = join(root, 'times')
    using model = await tinyModel('cpu')
    const from = Date.now()
    await finish(new PretrainTrainer(model, { task: tinyTask, batchSize: 2, steps: 2, evalEvery: 1, evalProblems: 2, runDir }))
    const lines = (await readFile(join(runDir, 'metrics.jsonl'), 'utf8')).trimEnd().split('\n')
    const times = lines.map((line) => Date.parse(JSON.parse(line).time))
    expect(times).toHaveLength(5)
    expect(times).toEqual(times.toSorted((a, b) => a - b))
    expect(times.every((time) => time >= from && time <= Date.now())).toBe(true)
  })
})
