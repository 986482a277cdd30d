// Text as training data: packing, order, held-out blocks, the file of token ids, errors; and the trainers that learn from it.
import { spawnSync } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { Corpus } from '../../src/data/corpus.js'
import { Random } from '../../src/data/random.js'
import { Tokenizer } from '../../src/data/tokenizer.js'
import { LoopLM } from '../../src/model/model.js'
import { evaluateSequences } from '../../src/rl/evaluate-sequences.js'
import type { TrainerEvent } from '../../src/rl/events.js'
import { trainingSequence } from '../../src/rl/lessons.js'
import { LoopRPTTrainer } from '../../src/rl/looprpt.js'
import type { PretrainOptions } from '../../src/rl/options.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { openProblems } from '../../src/rl/problems.js'
import { refusal } from '../refusal.js'
import { parametersOf } from '../tiny.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-corpus-test-'))
})
afterAll(() => rm(root, { recursive: true }))

const tokenizer = Tokenizer.bytes({ special: { eos: '<eos>' } })
const end = 256
const bytes = (text: string) => [...Buffer.from(text)]

async function files(folder: string, content: Record<string, string | Uint8Array>): Promise<string> {
  const path = join(root, folder)
  for (const [name, text] of Object.entries(content)) {
    await mkdir(join(path, name, '..'), { recursive: true })
    await writeFile(join(path, name), text)
  }
  return path
}

async function finish(events: AsyncIterable<TrainerEvent>): Promise<TrainerEvent[]> {
  const list = []
  for await (const event of events) list.push(event)
  return list
}

/** Sentences that a model can learn something from. */
function sentences(count: number, seed = 1): string {
  const random = new Random(seed)
  const word = () => ['the', 'cat', 'dog', 'sees', 'a', 'bird', 'and', 'sleeps'][random.integer(8)]!
  return Array.from({ length: count }, () => Array.from({ length: 6 }, word).join(' ')).join('.\n')
}

describe('a corpus', () => {
  const mixed = {
    'b.md': '# Title\n\nsome text\n',
    'a/deep.txt': 'first line\nsecond line',
    'c.jsonl': '{"text": "one"}\n\n{"text": "two", "source": 3}\n{"text": ""}\n',
    'ignored.json': '{',
    'notes.pdf': 'x',
  }
  const wanted = [
    ...[...bytes('first line\nsecond line'), end],
    ...[...bytes('# Title\n\nsome text'), end],
    ...[...bytes('one'), end, ...bytes('two'), end],
  ]

  it('consists of its documents in name order, each followed by an end token', async () => {
    const corpus = await Corpus.open(await files('mixed', mixed), tokenizer, { contextLength: 1000 })
    expect(corpus.tokens).toBe(wanted.length)
    expect(await corpus.take(0, 1)).toEqual([Int32Array.from(wanted)])
    expect(corpus.files.map((file) => file.slice(root.length))).toEqual(['/mixed/a/deep.txt', '/mixed/b.md', '/mixed/c.jsonl'])
    corpus.close()
  })

  it('omits the byte order mark of a file, and keeps U+FEFF anywhere else', async () => {
    const path = await files('marked', { 'a.txt': '\ufeffone\n\ufefftwo', 'b.jsonl': '\ufeff{"text":"\ufeffx"}' })
    const corpus = await Corpus.open(path, tokenizer, { contextLength: 1000 })
    expect(await corpus.take(0, 1)).toEqual([Int32Array.from([...bytes('one\n\ufefftwo'), end, ...bytes('\ufeffx'), end])])
    corpus.close()
  })

  it('follows links to files, not to folders', async () => {
    const elsewhere = await files('elsewhere', { 'linked.txt': 'linked', 'in/b.txt': 'never' })
    const path = await files('links', { 'a.txt': 'own' })
    await symlink(join(elsewhere, 'linked.txt'), join(path, 'z.txt'))
    await symlink(elsewhere, join(path, 'folder'))
    await symlink(path, join(path, 'circle.txt'))
    const corpus = await Corpus.open(path, tokenizer, { contextLength: 100 })
    expect(await corpus.take(0, 1)).toEqual([Int32Array.from([...bytes('own'), end, ...bytes('linked'), end])])
    corpus.close()
    await symlink('nowhere', join(path, 'broken.txt'))
    const error = await refusal(() => Corpus.open(path, tokenizer, { contextLength: 100 }))
    expect(error.message).toMatch(/cannot read .*broken\.txt: it does not exist/)
  })

  it('is packed so that a pass predicts every token but the first exactly once', async () => {
    const path = await files('mixed', mixed)
    for (const contextLength of [2, 7, 16, wanted.length, wanted.length + 5]) {
      const corpus = await Corpus.open(path, tokenizer, { contextLength })
      const blocks = await corpus.take(0, corpus.blocks)
      const predicted = blocks.flatMap((block) => [...block.slice(1)])
      expect(predicted.sort((a, b) => a - b)).toEqual(wanted.slice(1).sort((a, b) => a - b))
      expect(Math.max(...blocks.map((block) => block.length))).toBeLessThanOrEqual(contextLength)
      for (const block of blocks) expect(` ${wanted.join(' ')} `).toContain(` ${[...block].join(' ')} `)
      corpus.close()
    }
  })

  it('is shuffled in an order that depends only on seed and pass', async () => {
    const path = await files('order', { 'a.txt': sentences(60) })
    const blocks = async (seed: number, start: number, count: number) => {
      const corpus = await Corpus.open(path, tokenizer, { contextLength: 20, seed })
      const taken = (await corpus.take(start, count)).map((block) => block.join())
      corpus.close()
      return { taken, pass: corpus.blocks }
    }
    const { taken: first, pass } = await blocks(1, 0, 200)
    expect(new Set(first.slice(0, pass)).size).toBe(pass)
    expect(new Set(first.slice(pass, 2 * pass)).size).toBe(pass)
    expect(first.slice(pass, 2 * pass)).not.toEqual(first.slice(0, pass))
    expect((await blocks(1, pass - 3, 10)).taken).toEqual(first.slice(pass - 3, pass + 7))
    expect((await blocks(2, 0, 200)).taken).not.toEqual(first)
  })

  it('holds out a share of its blocks, which training passes never contain', async () => {
    const path = await files('held', { 'a.txt': sentences(200) })
    const corpus = await Corpus.open(path, tokenizer, { contextLength: 32, heldOutShare: 0.1 })
    expect(corpus.heldOutBlocks / (corpus.blocks + corpus.heldOutBlocks)).toBeCloseTo(0.1, 2)
    const held = new Set((await corpus.heldOut(1000)).map((block) => block.join()))
    expect(held.size).toBe(corpus.heldOutBlocks)
    for (const block of await corpus.take(0, 2 * corpus.blocks)) expect(held.has(block.join())).toBe(false)
    const few = (await corpus.heldOut(3)).map((block) => block.join())
    expect(new Set(few).size).toBe(3)
    expect((await corpus.heldOut(3)).map((block) => block.join())).toEqual(few)
    corpus.close()
  })

  it('is tokenised in pieces with the same result as in one piece', async () => {
    const text = `${sentences(6000)}\n\n  indented é\r\nlast`
    expect(text.length).toBeGreaterThan(2 ** 17)
    const corpus = await Corpus.open(await files('large', { 'a.txt': text }), tokenizer, { contextLength: 2 ** 20 })
    expect([...(await corpus.take(0, 1))[0]!]).toEqual([...bytes(text), end])
    corpus.close()
  })

  it('supports token ids above 65535', async () => {
    const vocab = Object.fromEntries([...'ab'].map((character, i) => [character, i === 0 ? 0 : 70_000]))
    const json = JSON.parse(JSON.stringify(await characterJson('ab')))
    json.model.vocab = vocab
    const wide = new Tokenizer(json)
    const corpus = await Corpus.open(await files('wide', { 'a.txt': 'abba' }), wide, { contextLength: 8 })
    expect(await corpus.take(0, 1)).toEqual([Int32Array.from([0, 70_000, 70_000, 0])])
    corpus.close()
  })
})

async function characterJson(alphabet: string): Promise<unknown> {
  const folder = join(root, 'characters')
  await Tokenizer.characters(alphabet).save(folder)
  return JSON.parse(await readFile(join(folder, 'tokenizer.json'), 'utf8'))
}

describe('the file of token ids', () => {
  it('is reused, and rebuilt when the text, the tokenizer or the file itself has changed', async () => {
    const path = await files('cached', { 'a.txt': sentences(20), 'b.txt': sentences(20, 2) })
    const cache = join(root, 'cached-tokens')
    const open = async (by = tokenizer) => {
      const encode = vi.spyOn(by, 'encodeAsync')
      const corpus = await Corpus.open(path, by, { contextLength: 16, cache })
      const block = (await corpus.take(0, 1))[0]!.join()
      corpus.close()
      const made = encode.mock.calls.length > 0
      encode.mockRestore()
      return { made, block, fingerprint: corpus.fingerprint }
    }
    const first = await open()
    expect(first.made).toBe(true)
    expect(await open()).toEqual({ ...first, made: false })
    await truncate(join(cache, 'tokens.bin'), 10)
    expect(await open()).toEqual(first)
    const stored = await readFile(join(cache, 'tokens.bin'))
    stored[7]! ^= 1
    await writeFile(join(cache, 'tokens.bin'), stored) // of the same size
    expect(await open()).toEqual(first)
    await writeFile(join(cache, 'corpus.json'), '{"format":1,"tok')
    expect(await open()).toEqual(first)
    await appendFile(join(path, 'b.txt'), '!')
    const changed = await open()
    expect(changed).toMatchObject({ made: true })
    expect(changed.fingerprint).not.toBe(first.fingerprint)
    expect((await open(Tokenizer.bytes())).made).toBe(true)
  })

  it('stays that of an open corpus when another one uses the same cache', async () => {
    const cache = join(root, 'shared-tokens')
    const open = async (text: string) =>
      Corpus.open(await files(`shared-${text}`, { 'a.txt': text.repeat(50) }), tokenizer, { contextLength: 10, cache })
    const corpora = [await open('a'), await open('b')]
    const texts = await Promise.all(corpora.map(async (corpus) => tokenizer.decode((await corpus.take(0, 1))[0]!)[0]))
    expect(texts).toEqual(['a', 'b'])
    for (const corpus of corpora) corpus.close()
    expect((await readdir(cache)).sort()).toEqual(['corpus.json', 'tokens.bin'])
  })

  it('is not read once the corpus is closed', async () => {
    const path = await files('closed', { 'a.txt': sentences(20) })
    const corpus = await Corpus.open(path, tokenizer, { contextLength: 16, heldOutShare: 0.5 })
    const early = refusal(() => corpus.take(0, 1))
    corpus.close()
    corpus.close()
    const other = openSync(join(path, 'a.txt'), 'r') // takes the number of the closed file
    for (const late of [early, refusal(() => corpus.take(0, 1)), refusal(() => corpus.heldOut(1))])
      expect((await late).message).toBe('corpus: the corpus was closed; open it again')
    closeSync(other)
  })

  it('leaves no temporary folder behind, and is not opened with an aborted signal', async () => {
    const path = await files('aborted', { 'a.txt': sentences(20) })
    const before = (await readdir(tmpdir())).filter((name) => name.startsWith('looplm-corpus-')).sort()
    const corpus = await Corpus.open(path, tokenizer, { contextLength: 16 })
    expect((await readdir(tmpdir())).filter((name) => name.startsWith('looplm-corpus-')).sort()).toEqual(before)
    corpus.close()
    const signal = AbortSignal.abort()
    const error = await refusal(() => Corpus.open(path, tokenizer, { contextLength: 16, signal, cache: join(root, 'never') }))
    expect(error.code).toBe('ABORTED')
    expect(await readdir(root)).not.toContain('never')
  })
})

describe('a corpus rejects', () => {
  const digits = Tokenizer.characters('0123456789\n')
  it.each<[string, Record<string, string | Uint8Array>, Tokenizer, RegExp]>([
    ['a line that is not JSON', { 'a.jsonl': '{"text": "1"}\n{"text": \n' }, tokenizer, /a\.jsonl line 2 is not JSON/],
    [
      'a row without text',
      { 'a.jsonl': '\n{"txt": "1"}' },
      tokenizer,
      /a\.jsonl line 2 field "text" must be a string, got nothing/,
    ],
    [
      'bytes that are not UTF-8',
      { 'a.txt': Uint8Array.from([65, 10, 66, 10, 0xff, 10]) },
      tokenizer,
      /a\.txt line 3 is not valid UTF-8/,
    ],
    ['text that the tokenizer lacks', { 'a.txt': '123\n4\n5x6\n' }, digits, /a\.txt line 3: .*"x" \(U\+0078\)/],
    ['a row that the tokenizer lacks', { 'a.jsonl': '{"text":"1"}\n{"text":"y"}' }, digits, /a\.jsonl line 2: .*"y"/],
    [
      'a line without an end',
      { 'a.txt': 'x'.repeat(2 ** 24 + 1) },
      tokenizer,
      /a\.txt line 1 is longer than .*; break it into lines$/,
    ],
    ['a folder without text', { 'a.csv': '1' }, tokenizer, /holds no \.txt, \.md, \.jsonl file/],
    ['too little text', { 'a.txt': '' }, tokenizer, /0 tokens of text; at least 2 are needed/],
  ])('%s', async (what, content, by, message) => {
    const error = await refusal(async () => Corpus.open(await files(`refused ${what}`, content), by, { contextLength: 8 }))
    expect(error.message).toMatch(message)
  })

  it.each([
    ['{}', {}, /contextLength must be an integer of at least 2, got undefined/],
    ['nothing', undefined, /contextLength must be an integer of at least 2, got undefined/],
    ['a share above 1', { contextLength: 8, heldOutShare: 7 }, /heldOutShare must be .* at most 1, got 7/],
    ['a negative share', { contextLength: 8, heldOutShare: -1 }, /heldOutShare must be .* at least 0 .*, got -1/],
    ['a misspelt name', { contextLength: 8, heldOutshare: 0.5 }, /heldOutshare: unknown option; did you mean heldOutShare\?/],
    ['a wrong seed', { contextLength: 8, seed: 0.5 }, /seed must be an integer .*, got 0\.5/],
    ['a wrong end token', { contextLength: 8, endToken: '</s>' }, /endToken must be an integer .*, got '<\/s>'/],
  ])('options: %s', async (what, options, message) => {
    const path = await files(`options ${what}`, { 'a.txt': 'abba' })
    const error = await refusal(() => Corpus.open(path, tokenizer, options as never))
    expect([error.code, error.message]).toEqual(['INVALID_ARGUMENT', expect.stringMatching(message)])
  })

  it('a missing path and a file of another kind', async () => {
    const missing = await refusal(() => Corpus.open(join(root, 'nowhere'), tokenizer, { contextLength: 8 }))
    expect(missing).toMatchObject({
      code: 'NOT_FOUND',
      message: expect.stringMatching(/cannot read .*nowhere: it does not exist/),
    })
    const path = join(await files('kinds', { 'a.pdf': 'x' }), 'a.pdf')
    expect((await refusal(() => Corpus.open(path, tokenizer, { contextLength: 8 }))).message).toMatch(
      /a\.pdf: a corpus is made of/,
    )
    const pipe = join(path, '..', 'pipe.txt')
    expect(spawnSync('mkfifo', [pipe]).status).toBe(0)
    expect((await refusal(() => Corpus.open(pipe, tokenizer, { contextLength: 8 }))).message).toMatch(
      /pipe\.txt: a corpus is made/,
    )
  })
})

const config = {
  vocab_size: 257,
  hidden_size: 24,
  intermediate_size: 32,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  total_ut_steps: 3,
  initializer_range: 0.1,
}
const model = (seed = 1) => LoopLM.create(config, { seed, threads: 1 })
const ofRows = { tokenizer, batchSize: 8, learningRate: 1e-2, seed: 4, onWarning() {} }
const base = { ...ofRows, contextLength: 32 }

describe('training on a corpus', () => {
  it('learns, and measures loss and accuracy of held-out text after every loop', async () => {
    const corpus = await files('learn', { 'a.txt': sentences(300) })
    using student = await model()
    using trainer = new PretrainTrainer(student, { ...base, corpus, steps: 40, evalEvery: 20, evalProblems: 10 })
    const [first, second] = (await finish(trainer.run())).filter(({ type }) => type === 'eval').map(({ metrics }) => metrics)
    const names = [1, 2, 3].flatMap((loop) =>
      ['loss', 'accuracy', 'accuracy_low', 'accuracy_high'].map((name) => `eval/loop_${loop}/${name}`),
    )
    expect(Object.keys(first!)).toEqual(names)
    expect(second!['eval/loop_3/loss']).toBeLessThan(first!['eval/loop_3/loss']!)
    expect(second!['eval/loop_3/accuracy']).toBeGreaterThan(0.3)
  })

  it('uses every training sequence at most once per pass', async () => {
    const corpus = await files('passes', { 'a.txt': sentences(40) })
    const opened = await Corpus.open(corpus, tokenizer, { contextLength: 16, heldOutShare: 0.05 })
    const steps = Math.floor(opened.blocks / 8)
    opened.close()
    const seen: string[] = []
    class Watched extends PretrainTrainer {
      protected override prepare(...[batch, operation]: Parameters<PretrainTrainer['prepare']>) {
        seen.push(...batch.sequences.map((sequence) => sequence.join()))
        return super.prepare(batch, operation)
      }
    }
    using student = await model()
    using trainer = new Watched(student, { ...base, corpus, contextLength: 16, batchSize: 8, steps })
    await finish(trainer.run())
    expect(new Set(seen).size).toBe(8 * steps)
  })

  it.each(['pretrain', 'looprpt'] as const)('%s resumes bit for bit in the middle of a pass', async (name) => {
    const corpus = await files('resume', { 'a.txt': sentences(40), 'b.jsonl': JSON.stringify({ text: sentences(20, 2) }) })
    const make = (student: LoopLM, options: object) =>
      name === 'pretrain'
        ? new PretrainTrainer(student, { ...base, corpus, steps: 12, ...options })
        : new LoopRPTTrainer(student, { ...base, corpus, steps: 12, rollouts: 2, ...options })
    using straight = await model()
    using whole = make(straight, {})
    await finish(whole.run())
    const runDir = join(root, `resume-${name}`)
    using cut = await model()
    using half = make(cut, { runDir, steps: 7 })
    await finish(half.run())
    using resumed = await model(99)
    using rest = make(resumed, { runDir, resume: true })
    await finish(rest.run())
    expect(await parametersOf(resumed)).toEqual(await parametersOf(straight))
    expect((await readdir(join(runDir, 'corpus'))).sort()).toEqual(['corpus.json', 'tokens.bin'])
  })

  it('warns when the corpus has changed since the checkpoint of a resumed run', async () => {
    const corpus = await files('changed', { 'a.txt': sentences(40) })
    const runDir = join(root, 'changed-run')
    using student = await model()
    await finish(new PretrainTrainer(student, { ...base, corpus, steps: 1, runDir }).run())
    await appendFile(join(corpus, 'a.txt'), 'one more')
    const onWarning = vi.fn()
    await finish(new PretrainTrainer(student, { ...base, corpus, steps: 1, runDir, resume: true, onWarning }).run())
    expect(onWarning).toHaveBeenCalledExactlyOnceWith(
      expect.stringMatching(
        /the data has changed since .*step-1 was written: it was a corpus of 1 file and \d+ tokens, and is now a corpus of/,
      ),
    )
  })

  it('warns when a dataset has changed since the checkpoint of a resumed run', async () => {
    const dataset = [{ prompt: 'a', answer: 'b' }]
    const runDir = join(root, 'changed-rows')
    using student = await model()
    await finish(new PretrainTrainer(student, { ...ofRows, dataset, steps: 1, runDir }).run())
    const onWarning = vi.fn()
    const other = [{ prompt: 'a', answer: 'c' }]
    await finish(new PretrainTrainer(student, { ...ofRows, dataset: other, steps: 1, runDir, resume: true, onWarning }).run())
    expect(onWarning).toHaveBeenCalledExactlyOnceWith(
      expect.stringMatching(/it was a dataset of 1 rows, and is now a dataset of 1 rows/),
    )
  })

  it('evaluates on evalCorpus when it is set', async () => {
    const corpus = await files('two', { 'train.txt': sentences(40) })
    const evalCorpus = await files('two-held', { 'held.txt': 'zzzz zzzz zzzz' })
    using student = await model()
    using trainer = new PretrainTrainer(student, { ...base, corpus, evalCorpus, steps: 20, evalEvery: 20 })
    const { metrics } = (await finish(trainer.run())).find(({ type }) => type === 'eval')!
    expect(metrics['eval/loop_3/loss']).toBeGreaterThan(5) // never seen
  })

  it.each([
    [{ contextLength: 40_000 }, /contextLength: 40000 is more than the model's max_position_embeddings, 32768/],
    [{ contextLength: 1000, evalEvery: 1 }, /heldOutShare: of \d packed sequences none is held out/],
    [{ dataset: [{ prompt: 'a' }] }, /give a task, a dataset or a corpus, only one of them/],
    [{ tokenizer: undefined }, /tokenizer: a corpus needs one, and the model has none/],
  ])('rejects %j', async (options, message) => {
    const corpus = await files('refusing', { 'a.txt': sentences(40) })
    using student = await model()
    const trainer = new PretrainTrainer(student, { ...base, corpus, steps: 1, ...options } as PretrainOptions)
    expect((await refusal(() => finish(trainer.run()))).message).toMatch(message)
  })
})

describe('predicting given tokens', () => {
  it('gives the loss of score() and the accuracy of greedy generation', async () => {
    using student = await LoopLM.create(config, { device: 'reference', seed: 3 })
    const [answer] = await student.generate([[1, 2]], { loops: 3, temperature: 0, maxNewTokens: 4, stop: [] })
    const sequences = [
      { tokens: [1, 2, ...answer!.tokens], promptLength: 2 }, // right after 3 loops
      { tokens: [9, 8, 7], promptLength: 1 }, // wrong after every loop
    ]
    const evaluations = await evaluateSequences(student, sequences, { loops: [1, 3] })
    expect(evaluations.map(({ loops, accuracy }) => [loops, accuracy])).toEqual([
      [1, 0],
      [3, 4 / 6],
    ])
    for (const { loops, loss, accuracy, tokens } of evaluations) {
      let [sum, right] = [0, 0]
      for (const sequence of sequences) {
        const { logprobs } = await student.score([sequence.tokens], { loops, lastLoop: true })
        for (let j = sequence.promptLength; j < sequence.tokens.length; j++) {
          sum -= logprobs[0]![j - 1]!
          const options = { loops, temperature: 0, maxNewTokens: 1, stop: [] }
          const [greedy] = await student.generate([sequence.tokens.slice(0, j)], options)
          right += Number(greedy!.tokens[0] === sequence.tokens[j])
        }
      }
      expect(tokens).toBe(6)
      expect(loss).toBeCloseTo(sum / 6, 12)
      expect(accuracy).toBe(right / 6)
    }
  })
})

describe('supervised fine-tuning', () => {
  const template =
    '{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'

  it('trains on the completion and its end token, not on the prompt', async () => {
    using student = await model()
    const source = openProblems('test', student, { dataset: [{ prompt: '' }], tokenizer, seed: 0 })
    const { tokens, promptLength } = await trainingSequence(source, { prompt: 'ab', completion: 'cd', answer: 'never' })
    expect(tokens).toEqual([...bytes('abcd'), end])
    expect(promptLength).toBe(2)
  })

  it('trains on the last message of a conversation', async () => {
    using student = await model()
    const chatting = new Tokenizer(await bytesJson(), { chat_template: template })
    const source = openProblems('test', student, { dataset: [{ prompt: '' }], tokenizer: chatting, seed: 0 })
    const messages = [
      { role: 'user', content: 'hi' },
      { role: 'assistant', content: 'ho' },
    ]
    const { tokens, promptLength } = await trainingSequence(source, { prompt: '', messages })
    expect(chatting.decode(tokens as number[])).toBe('<user>hi\n<assistant>ho\n')
    expect(chatting.decode((tokens as number[]).slice(promptLength))).toBe('ho\n')
  })

  it('measures the accuracy of completions in evalDataset', async () => {
    using student = await model()
    const dataset = Array.from({ length: 16 }, (_, i) => ({ prompt: `${i}:`, completion: 'yes' }))
    const options = { ...ofRows, dataset, evalDataset: dataset.slice(0, 4), steps: 60, evalEvery: 60 }
    const { metrics } = (await finish(new PretrainTrainer(student, options).run())).findLast(({ type }) => type === 'eval')!
    expect(metrics['eval/loop_3/accuracy']).toBeGreaterThan(0.9)
  })
})

async function bytesJson(): Promise<unknown> {
  await tokenizer.save(join(root, 'bytes'))
  return JSON.parse(await readFile(join(root, 'bytes', 'tokenizer.json'), 'utf8'))
}
