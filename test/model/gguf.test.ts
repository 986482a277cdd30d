// GGUF files of llama.cpp: a model read from one is, to the last bit, the model of a folder with the same values.
import { spawnSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { LoopLM, Tokenizer } from '../../src/index.js'
import { OneProcess } from '../cli/program.js'
import {
  blockSize,
  type Entry,
  generator,
  ggufMetadata,
  ggufName,
  ggufTensors,
  type Metadata,
  randomData,
  turned,
  valuesOf,
  writeGguf,
} from '../gguf-file.js'
import { chatTemplate, specialTokens, tokenizerJson } from '../ouro-folder.js'
import { refusal } from '../refusal.js'
import { readTensors, type Stored, writeTensors } from '../stored-tensors.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-gguf-'))
})
afterAll(() => rm(root, { recursive: true, force: true }))

const sequences = [
  [1, 2, 3, 4, 5, 6],
  [7, 8, 9],
]
const fixture = (...parts: string[]) => join(import.meta.dirname, '../fixtures', ...parts)
type Config = Record<string, unknown>
const readConfig = async (folder: string): Promise<Config> =>
  JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')) as Config
const headDimOf = (c: Config) =>
  (c.head_dim as number | undefined) ?? (c.hidden_size as number) / (c.num_attention_heads as number)

/** The warnings of a call. */
async function warnings<T>(run: () => Promise<T>): Promise<[T, string[]]> {
  const messages: string[] = []
  const listen = (warning: Error) => messages.push(warning.message)
  process.on('warning', listen)
  const result = await run()
  await new Promise((resolve) => setImmediate(resolve))
  process.off('warning', listen)
  return [result, messages]
}

/** Compared as bytes: a difference of large arrays would be printed for minutes. */
const bytes = (values: Float32Array | Float64Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength)
const floats = (values: ArrayLike<number>) => Buffer.from(Float32Array.from(values).buffer)

const sizes = {
  vocab_size: 40,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  total_ut_steps: 3,
  looplm_exit_gate: false,
}
const large = { ...sizes, hidden_size: 256, intermediate_size: 256, num_hidden_layers: 1, num_attention_heads: 8 }

interface Made {
  entries: Entry[]
  /** With the values of the blocks. */
  plain: Stored[]
  gguf: string
}

/** A random model, its matrices of a type each: as a GGUF file, and its values under the published names. */
async function make(name: string, config: Config, typeOf: (name: string) => string, metadata: Metadata = {}): Promise<Made> {
  using model = await LoopLM.create(config as never)
  const headDim = headDimOf(config)
  const entries: Entry[] = []
  const plain: Stored[] = []
  for (const [i, { name, shape }] of model.parameters().entries()) {
    const type = shape.length > 1 ? typeOf(name) : 'F32'
    const count = shape.reduce((a, b) => a * b, 1)
    const data =
      shape.length > 1 ? randomData(type, count, i + 1) : floats(Array.from({ length: count }, (_, j) => 1 + (j % 5) / 16))
    entries.push({ name: ggufName('ouro', name)!, type, shape: [...shape], data })
    const values = valuesOf(type, data)
    const width = shape.at(-1)!
    const rows = Array.from({ length: count / width }, (_, r) => values.subarray(r * width, (r + 1) * width))
    const ordered = /\.[qk]_proj\.weight/.test(name) ? turned(rows, headDim, true) : rows
    plain.push({ name, dtype: 'F32', shape: [...shape], data: Buffer.concat(ordered.map(floats)) })
  }
  const gguf = await writeGguf(join(root, `${name}.gguf`), { ...ggufMetadata('ouro', config), ...metadata }, entries)
  return { entries, plain, gguf }
}

async function folderOf(name: string, config: Config, tensors: readonly Stored[]): Promise<string> {
  const folder = join(root, name)
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'config.json'), JSON.stringify({ model_type: 'ouro', rope_theta: 1e6, ...config }))
  writeTensors(join(folder, 'model.safetensors'), tensors)
  return folder
}

describe.each([
  { family: 'ouro', folder: fixture('base'), alignment: 32 },
  { family: 'ouro', folder: fixture('gqa'), alignment: 64 },
  { family: 'ouro', folder: fixture('tied'), alignment: 32 },
  { family: 'nanbeige', folder: fixture('families', 'nanbeige'), alignment: 32 },
] as const)('$family as llama.cpp writes it, $folder', ({ family, folder, alignment }) => {
  let path: string
  beforeAll(async () => {
    const config = await readConfig(folder)
    const tensors = readTensors(join(folder, 'model.safetensors'))
    path = join(root, `${folder.split('/').at(-1)}.gguf`)
    await writeGguf(path, ggufMetadata(family, config), ggufTensors(family, tensors, headDimOf(config)), alignment)
  })

  it.each(['reference', 'cpu'] as const)(
    'has the log-probabilities and greedy tokens of the original, bit for bit, on %s',
    async (device) => {
      using original = await LoopLM.fromPretrained(folder, { device })
      const [model, messages] = await warnings(() => LoopLM.fromPretrained(path, { device }))
      using read = model
      const [want, got] = [await original.score(sequences), await read.score(sequences)]
      expect(got.logprobs).toEqual(want.logprobs)
      expect(got.entropy).toEqual(want.entropy)
      const options = { maxNewTokens: 6, temperature: 0, stop: [], exit: { rule: 'fixed' } } as const
      const tokens = async (model: LoopLM) => (await model.generate([[1, 2, 3]], options))[0]!.tokens
      expect(await tokens(read)).toEqual(await tokens(original))
      expect(read.family).toBe(family)
      expect(read.config.total_ut_steps).toBe(original.config.total_ut_steps)
      expect(read.config.rms_norm_eps).toBe(original.config.rms_norm_eps)
      expect(messages.filter((message) => message.includes('has no exit gate')).length).toBe(family === 'ouro' ? 1 : 0)
    },
  )
})

it('a model without an exit gate generates, rejects gate options and is saved without one', async () => {
  const { gguf } = await make('no-gate', sizes, () => 'F32')
  using model = await LoopLM.fromPretrained(gguf)
  expect(model.parameters().some(({ name }) => name.includes('gate.'))).toBe(false)
  expect((await model.generate([[1, 2]], { maxNewTokens: 4 }))[0]!.tokens).toHaveLength(4)
  const gate = { maxNewTokens: 4, exit: { rule: 'gate', threshold: 0.5 } } as const
  expect((await refusal(() => model.generate([[1, 2]], gate))).message).toMatch(
    /exit rule gate needs an exit gate, and this model/,
  )
  await model.save(join(root, 'no-gate-saved'))
  using again = await LoopLM.fromPretrained(join(root, 'no-gate-saved'))
  expect(again.config.looplm_exit_gate).toBe(false)
  expect(await again.score(sequences)).toEqual(await model.score(sequences))
  using gated = await LoopLM.fromPretrained(gguf, { exitGate: true })
  expect((await gated.score(sequences)).logprobs).toEqual((await model.score(sequences)).logprobs)
  expect((await gated.generate([[1, 2]], gate))[0]!.tokens.length).toBe(4)
})

describe.each(['F32', 'F16', 'BF16', 'F64', 'Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q4_K', 'Q5_K', 'Q6_K'])(
  'type %s',
  (type) => {
    const config = type.endsWith('K') ? large : sizes
    it('loads as the plain model with the values of its blocks', async () => {
      const { gguf, plain } = await make(`plain-${type}`, config, () => type)
      using original = await LoopLM.fromPretrained(await folderOf(`plain-${type}`, config, plain), { device: 'reference' })
      using exact = await LoopLM.fromPretrained(gguf, { device: 'reference', dequantize: true })
      expect(exact.quantization).toBeUndefined()
      for (const { name } of original.parameters()) {
        const want = await original.getParameter(name)
        expect(Math.max(...want.map(Math.abs)), name).toBeGreaterThan(0.01)
        const got = await exact.getParameter(name)
        // F64 has more digits than the folder's float32
        if (type === 'F64') expect(floats(got).equals(floats(want)), name).toBe(true)
        else expect(bytes(got).equals(bytes(want)), name).toBe(true)
      }
      if (type === 'F64') return
      const scores = await original.score(sequences)
      expect(scores.logprobs.every((row) => row.every((value) => Number.isFinite(value)))).toBe(true)
      expect(await exact.score(sequences)).toEqual(scores)
      using half = await LoopLM.fromPretrained(gguf, { dtype: 'bfloat16', dequantize: true })
      using rounded = await LoopLM.fromPretrained(join(root, `plain-${type}`), { dtype: 'bfloat16' })
      expect(await half.score(sequences)).toEqual(await rounded.score(sequences))
      using own = await LoopLM.fromPretrained(gguf, { dequantize: true })
      expect(own.dtype).toBe(type === 'BF16' ? 'bfloat16' : 'float32')
    })
  },
)

describe.each([
  { type: 'Q8_0', bits: 8, head: 'Q8_0', tied: false },
  { type: 'Q4_0', bits: 4, head: 'Q4_0', tied: false },
  { type: 'Q4_0', bits: 4, head: 'F16', tied: false },
  { type: 'Q8_0', bits: 8, head: 'Q8_0', tied: true },
  { type: 'Q4_0', bits: 4, head: 'Q8_0', tied: true },
] as const)('$type with a head of $head, tied $tied', ({ type, bits, head, tied }) => {
  const config = { ...sizes, tie_word_embeddings: tied }
  const keepsHead = head === type
  const name = `kept-${type}-${head}-${tied}`
  let made: Made
  beforeAll(async () => {
    made = await make(name, config, (name) => (/lm_head|embed_tokens/.test(name) ? head : type))
  })

  /** The model as looplm itself saves quantized ones, with the codes of the file. */
  async function ownFolder(): Promise<string> {
    const tensors = made.plain.flatMap((tensor, i) => {
      const { data, shape } = made.entries[i]!
      if (shape.length < 2 || tensor.name.includes('embed_tokens') || (tensor.name === 'lm_head.weight' && !keepsHead))
        return [tensor]
      const [rows, width] = shape as [number, number]
      const bytes = blockSize(type)[1]
      const blocks = Array.from({ length: data.length / bytes }, (_, b) => data.subarray(b * bytes, (b + 1) * bytes))
      const perRow = width / 32
      const byRow = Array.from({ length: rows }, (_, r) => blocks.slice(r * perRow, (r + 1) * perRow))
      const ordered = (/\.[qk]_proj/.test(tensor.name) ? turned(byRow, 16, true) : byRow).flat()
      const codes = ordered.map((block) => {
        if (bits === 8) return block.subarray(2)
        const code = (j: number) => (j < 16 ? block[2 + j]! & 15 : block[2 + j - 16]! >> 4)
        return Buffer.from(Array.from({ length: 16 }, (_, j) => code(2 * j) | (code(2 * j + 1) << 4)))
      })
      const scale = ordered.map((block) => valuesOf('F16', block.subarray(0, 2))[0]!)
      return [
        { name: tensor.name, dtype: bits === 8 ? 'I8' : 'U8', shape: [rows, perRow, bits * 4], data: Buffer.concat(codes) },
        { name: `${tensor.name}_scale`, dtype: 'F32', shape: [rows, perRow], data: floats(scale) },
      ]
    })
    const method = { quant_method: 'looplm', bits, group_size: 32, ...(keepsHead ? {} : { modules_to_not_convert: ['lm_head'] }) }
    return folderOf(`${name}-own`, { ...config, quantization_config: method }, tensors)
  }

  it('keeps its codes and scales, and computes with them', async () => {
    using model = await LoopLM.fromPretrained(made.gguf)
    expect(model.quantization).toEqual({ bits, groupSize: 32, ...(keepsHead ? {} : { head: false }) })
    for (const { name, data } of made.plain)
      expect(Buffer.from(Float32Array.from(await model.getParameter(name)).buffer).equals(data), name).toBe(true)
    if (tied) return
    using own = await LoopLM.fromPretrained(await ownFolder())
    expect(await model.score(sequences)).toEqual(await own.score(sequences))
    const options = { maxNewTokens: 8, seed: 4, stop: [] }
    expect(await model.generate([[1, 2, 3], [4]], options)).toEqual(await own.generate([[1, 2, 3], [4]], options))
  })

  it('survives save and load, and has the same values in float64', async () => {
    using model = await LoopLM.fromPretrained(made.gguf)
    const again = join(root, `${name}-saved`)
    await model.save(again)
    using read = await LoopLM.fromPretrained(again)
    expect(read.quantization).toEqual(model.quantization)
    if (!tied || !keepsHead) expect(await read.score(sequences)).toEqual(await model.score(sequences))
    using exact = await LoopLM.fromPretrained(made.gguf, { device: 'reference' })
    using plain = await LoopLM.fromPretrained(made.gguf, { device: 'reference', dequantize: true })
    const [got, want] = [await exact.score(sequences), await plain.score(sequences)]
    for (const [i, row] of got.logprobs.entries())
      for (const [j, value] of row.entries()) expect(value).toBeCloseTo(want.logprobs[i]![j]!, 10)
  })

  it('is requantized on request, and rejects quantize together with dequantize', async () => {
    using other = await LoopLM.fromPretrained(made.gguf, { quantize: bits === 8 ? 'int4' : 'int8', groupSize: 32 })
    expect(other.quantization).toEqual({ bits: 12 - bits, groupSize: 32 })
    const error = await refusal(() => LoopLM.fromPretrained(made.gguf, { quantize: 'int8', dequantize: true }))
    expect(error.message).toMatch(/dequantize and quantize contradict/)
  })
})

it('blocks of several types are loaded as plain values', async () => {
  const { gguf, plain } = await make('mixed', large, (name) => (/v_proj|down|lm_head/.test(name) ? 'Q6_K' : 'Q4_K'))
  using model = await LoopLM.fromPretrained(gguf)
  expect(model.quantization).toBeUndefined()
  for (const { name, data } of plain)
    expect(Buffer.from(Float32Array.from(await model.getParameter(name)).buffer).equals(data), name).toBe(true)
})

describe('where the file is', () => {
  it('a folder with one GGUF file loads it; with several one must be named', async () => {
    const { gguf } = await make('alone', sizes, () => 'F32')
    const folder = join(root, 'holds-one')
    await mkdir(folder)
    await writeFile(join(folder, 'model.gguf'), await readFile(gguf))
    using model = await LoopLM.fromPretrained(folder)
    expect(model.config.looplm_exit_gate).toBe(false)
    await writeFile(join(folder, 'other.gguf'), '')
    const error = await refusal(() => LoopLM.fromPretrained(folder))
    expect(error.message).toMatch(/has 2 GGUF files: name one of model\.gguf, other\.gguf/)
  })

  it('a file without the ending .gguf is rejected', async () => {
    await writeFile(join(root, 'model.bin'), 'x')
    const error = await refusal(() => LoopLM.fromPretrained(join(root, 'model.bin')))
    expect(error.message).toMatch(/neither a checkpoint folder nor a file whose name ends in \.gguf/)
  })
})

const kind = { normal: 1, unknown: 2, control: 3, user: 4, unused: 5, byte: 6 }

describe('the tokenizer in a GGUF file', () => {
  const json = tokenizerJson()
  const tokens = Object.entries(json.model.vocab)
    .sort(([, a], [, b]) => a - b)
    .map(([token]) => token)
  const vocabulary = { ...sizes, vocab_size: tokens.length + 2 }
  const gpt2 = (change: Metadata = {}): Metadata => ({
    'tokenizer.ggml.model': ['text', 'gpt2'],
    'tokenizer.ggml.pre': ['text', 'smollm'],
    'tokenizer.ggml.tokens': ['texts', [...tokens, '[PAD0]', '[PAD1]']],
    'tokenizer.ggml.token_type': [
      'i32s',
      [...tokens.map((_, i) => (i < 3 ? kind.control : kind.normal)), kind.unused, kind.unused],
    ],
    'tokenizer.ggml.merges': ['texts', json.model.merges.map((pair) => pair.join(' '))],
    'tokenizer.ggml.bos_token_id': ['u32', 1],
    'tokenizer.ggml.eos_token_id': ['u32', 0],
    'tokenizer.ggml.padding_token_id': ['u32', 0],
    'tokenizer.ggml.add_bos_token': ['bool', false],
    'tokenizer.chat_template': ['text', chatTemplate],
    ...change,
  })
  const texts = ['the thin ant, 1234!', '<|im_start|>user\nHi there<|im_end|>', '😀 ☃ in\t the   end', 'ünï']

  it('byte-level BPE agrees with its tokenizer.json, and keeps chat template and end token', async () => {
    const { gguf } = await make('gpt2', vocabulary, () => 'F32', gpt2())
    using model = await LoopLM.fromPretrained(gguf)
    const tokenizer = model.tokenizer!
    const want = new Tokenizer(json)
    for (const text of texts) {
      expect(tokenizer.encode(text), text).toEqual(want.encode(text))
      expect(tokenizer.decode(tokenizer.encode(text)), text).toBe(want.decode(want.encode(text)))
    }
    expect(tokenizer.vocabSize).toBe(tokens.length)
    expect([tokenizer.bosTokenId, tokenizer.eosTokenId, tokenizer.padTokenId]).toEqual([1, 0, 0])
    expect(tokenizer.applyChatTemplate([{ role: 'user', content: 'Hi' }])).toContain(`${specialTokens[1]}user\nHi`)
    expect(model.endTokens).toEqual([0, 2])
    await model.save(join(root, 'gpt2-saved'))
    const saved = await Tokenizer.fromPretrained(join(root, 'gpt2-saved'))
    expect(saved.encode(texts[0]!)).toEqual(want.encode(texts[0]!))
  })

  it('the begin token is added where the file says so', async () => {
    const { gguf } = await make('bos', vocabulary, () => 'F32', gpt2({ 'tokenizer.ggml.add_bos_token': ['bool', true] }))
    using model = await LoopLM.fromPretrained(gguf)
    expect(model.tokenizer!.encode('a')).toEqual([1, ...new Tokenizer(json).encode('a')])
    expect(model.tokenizer!.encode('a', { addSpecialTokens: false })).toEqual(new Tokenizer(json).encode('a'))
  })

  it('an unsupported kind is rejected unless a tokenizer.json lies beside the file', async () => {
    const { gguf } = await make('unknown-pre', vocabulary, () => 'F32', gpt2({ 'tokenizer.ggml.pre': ['text', 'tekken'] }))
    const error = await refusal(() => LoopLM.fromPretrained(gguf))
    expect(error.code).toBe('UNSUPPORTED')
    expect(error.message).toMatch(/key "tokenizer\.ggml\.pre" is "tekken".*put the model's tokenizer\.json/)
    const folder = join(root, 'beside')
    await mkdir(folder)
    await writeFile(join(folder, 'model.gguf'), await readFile(gguf))
    await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(json))
    using model = await LoopLM.fromPretrained(join(folder, 'model.gguf'))
    expect(model.tokenizer!.encode(texts[0]!)).toEqual(new Tokenizer(json).encode(texts[0]!))
  })

  it('SentencePiece merges by score, marks spaces, and falls back on bytes', async () => {
    const words = ['▁', 'a', 'b', 'c', 'ab', '▁a', 'bc', '▁ab', 'abc', 'ca', '▁▁', '▁abc']
    const score = [-20, -21, -22, -23, -1, -2, -0.5, -3, -4, -5, -6, -7]
    const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`)
    const all = ['<unk>', '<s>', '</s>', ...bytes, ...words]
    const spm: Metadata = {
      'tokenizer.ggml.model': ['text', 'llama'],
      'tokenizer.ggml.tokens': ['texts', all],
      'tokenizer.ggml.scores': ['f32s', [0, 0, 0, ...bytes.map(() => 0), ...score]],
      'tokenizer.ggml.token_type': [
        'i32s',
        [kind.unknown, kind.control, kind.control, ...bytes.map(() => kind.byte), ...words.map(() => kind.normal)],
      ],
      'tokenizer.ggml.bos_token_id': ['u32', 1],
      'tokenizer.ggml.eos_token_id': ['u32', 2],
      'tokenizer.ggml.unknown_token_id': ['u32', 0],
    }
    const { gguf } = await make('spm', { ...sizes, vocab_size: all.length }, () => 'F32', spm)
    using model = await LoopLM.fromPretrained(gguf)
    const tokenizer = model.tokenizer!
    const next = generator(5)
    for (let i = 0; i < 200; i++) {
      const text = Array.from({ length: 1 + Math.floor(next() * 12) }, () => 'aabbcc  é'[Math.floor(next() * 9)]).join('')
      expect(tokenizer.encode(text), JSON.stringify(text)).toEqual([1, ...spmTokens(text, all, score)])
      expect(tokenizer.decode(tokenizer.encode(text, { addSpecialTokens: false }))).toBe(text)
    }
    expect(tokenizer.encode('<s>abc</s>', { addSpecialTokens: false })).toEqual([1, ...spmTokens('abc', all, score), 2])
    expect(model.endTokens).toEqual([2])
  })

  /** SentencePiece's merging in its plainest form: always the neighbours that make the token of the best score, the leftmost first. */
  function spmTokens(text: string, all: string[], score: number[]): number[] {
    const symbols = [...`▁${text.replaceAll(' ', '▁')}`]
    const scoreOf = (token: string) => score[all.indexOf(token, 3 + 256) - 3 - 256] ?? -Infinity
    for (;;) {
      let best = -1
      for (let i = 0; i + 1 < symbols.length; i++) {
        const own = scoreOf(symbols[i]! + symbols[i + 1]!)
        if (own > -Infinity && (best === -1 || own > scoreOf(symbols[best]! + symbols[best + 1]!))) best = i
      }
      if (best === -1) break
      symbols.splice(best, 2, symbols[best]! + symbols[best + 1]!)
    }
    return symbols.flatMap((symbol) => {
      const id = all.indexOf(symbol, 3 + 256)
      return id === -1 ? [...Buffer.from(symbol)].map((byte) => 3 + byte) : [id]
    })
  }
})

describe('the command line', () => {
  const one = new OneProcess()
  afterAll(() => one[Symbol.asyncDispose]())
  const looplm = (...args: string[]) => one.looplm(root, args)
  let gguf: string
  beforeAll(async () => {
    gguf = (await make('command-line', sizes, () => 'Q8_0')).gguf
  })

  it('describes a file and a folder without loading them', async () => {
    const { stdout } = await looplm('info', gguf, '--json')
    const { model } = JSON.parse(stdout)
    expect(model).toMatchObject({ path: gguf, family: 'ouro', layers: 2, loops: 3, exitGate: false, tokenizer: null })
    expect(model).toMatchObject({ quantization: { bits: 8, groupSize: 32 }, types: { Q8_0: 16 } })
    expect((await looplm('info', gguf)).stdout).toMatch(/ouro, \d+ parameters[\s\S]*16 × Q8_0[\s\S]*loads quantized: 8 bits/)
    const folder = JSON.parse((await looplm('info', fixture('base'), '--json')).stdout).model
    expect(folder).toMatchObject({ family: 'ouro', layers: 2, loops: 4, exitGate: true, types: null, quantization: null })
    const missing = await looplm('info', join(root, 'nowhere.gguf'))
    expect([missing.code, missing.stderr]).toEqual([
      2,
      expect.stringMatching(/no folder or file .*nowhere\.gguf\. Pass a checkpoint folder/),
    ])
  })

  it('estimates the memory of a model from its file', async () => {
    const { model } = JSON.parse((await looplm('info', gguf, '--json')).stdout)
    const estimate = JSON.parse((await looplm('estimate', gguf, '--json')).stdout)
    expect(estimate).toMatchObject({ parameters: model.parameters, weights: 2 * model.parameters })
  })

  it('needs a tokenizer to generate from a file, and quantizes it', async () => {
    const { stdout, stderr } = await looplm('generate', gguf, '--prompt', 'x')
    expect(stdout).toBe('')
    expect(stderr).toMatch(/tokenizer/) // this one has none
    const small = join(root, 'command-line-small')
    expect((await looplm('quantize', gguf, small, '--bits', '4', '--group-size', '32')).stdout).toContain('4 bits, groups of 32')
    using model = await LoopLM.fromPretrained(small)
    expect(model.quantization).toEqual({ bits: 4, groupSize: 32 })
  })
})

it('loading never holds the file in memory beside the model', async () => {
  const config = { ...sizes, vocab_size: 4096, hidden_size: 512, intermediate_size: 1408, num_hidden_layers: 6 }
  const random = (count: number) => {
    const data = randomFillSync(Buffer.alloc((count / 32) * 34))
    for (let at = 0; at < data.length; at += 34) data.writeUInt16LE(0x1400, at)
    return data
  }
  using model = await LoopLM.create(config as never, { dtype: 'bfloat16' })
  const entries = model.parameters().map(({ name, shape }): Entry => {
    const count = shape.reduce((a, b) => a * b, 1)
    const [type, data] = shape.length > 1 ? (['Q8_0', random(count)] as const) : (['F32', floats(Array(count).fill(1))] as const)
    return { name: ggufName('ouro', name)!, type, shape: [...shape], data }
  })
  const gguf = await writeGguf(join(root, 'large.gguf'), ggufMetadata('ouro', config), entries)
  const code = `
    import { readFileSync } from 'node:fs'
    import { LoopLM, memory } from ${JSON.stringify(join(import.meta.dirname, '..', '..', 'dist', 'src', 'index.js'))}
    const high = () => 1024 * Number(/VmHWM:\\s+(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1])
    const [small, large, dequantize] = process.argv.slice(1)
    ;(await LoopLM.fromPretrained(small)).dispose() // what every model brings along
    const before = high()
    const model = await LoopLM.fromPretrained(large, { dtype: 'bfloat16', dequantize: dequantize === 'yes' })
    console.log(JSON.stringify({ bytes: memory().bytes, peak: memory().peak, resident: high() - before }))`
  const { gguf: small } = await make('small', sizes, () => 'Q8_0')
  for (const dequantize of ['no', 'yes']) {
    const run = spawnSync(process.execPath, ['--input-type=module', '-e', code, small, gguf, dequantize], { encoding: 'utf8' })
    const { bytes, peak, resident } = JSON.parse(run.stdout)
    expect(peak).toBe(bytes)
    expect(bytes).toBeLessThan((dequantize === 'yes' ? 2.02 : 1.4) * model.parameterCount)
    expect(resident).toBeLessThan(1.1 * bytes + 2 ** 23) // a second copy is larger: the file has 25 MB
    expect(resident).toBeGreaterThan(2 ** 23)
  }
})
