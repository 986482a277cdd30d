// Every reader against malformed input: an error that names the file and what is wrong in it, no crash, nothing half-written, and no more
// memory than the file's honest size accounts for. The files have no checksums, as those of other tools: every reader must see for itself.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { readTrainConfig } from '../src/cli/train-config.js'
import { Corpus, LoopLM, LoopRPTTrainer, loadDataset, memory, resetPeakMemory, Tokenizer } from '../src/index.js'
import { RunReader } from '../src/monitor/run-reader.js'
import { withoutChecksums } from './checksums.js'
import { collectGarbage } from './garbage.js'
import { refusal } from './refusal.js'
import { parametersOf, tinyConfig, tinyTask } from './tiny.js'

let root: string
let good: string
let quantized: string // a folder that was saved with int4 in groups of 32
const options = { task: tinyTask, batchSize: 4, rollouts: 2, steps: 1, onWarning() {} }

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-malformed-'))
  using model = await LoopLM.create(tinyConfig, { seed: 1, threads: 1 })
  using trainer = new LoopRPTTrainer(model, { ...options, runDir: join(root, 'run') })
  for await (const event of trainer.run()) if (event.type === 'checkpoint') good = event.path
  const sizes = { ...tinyConfig, hidden_size: 64, intermediate_size: 96 }
  using small = await LoopLM.create(sizes, { quantize: 'int4', groupSize: 32, threads: 1 })
  quantized = join(root, 'quantized')
  await small.save(quantized)
  for (const folder of [good, quantized]) await withoutChecksums(folder)
})
afterAll(() => rm(root, { recursive: true, force: true }))

/** Spoils a file of a checkpoint. */
type Spoil = (folder: string) => Promise<void>
type Header = Record<string, { dtype?: unknown; shape?: unknown; data_offsets?: unknown }>

const raw =
  (file: string, content: (bytes: Buffer) => Uint8Array | string): Spoil =>
  async (folder) =>
    writeFile(join(folder, file), content(await readFile(join(folder, file)).catch(() => Buffer.alloc(0))))
// biome-ignore lint/suspicious/noExplicitAny: JSON of any form is changed at any place
const json = (file: string, change: (value: any) => unknown): Spoil =>
  raw(file, (bytes) => {
    const value = JSON.parse(bytes.toString() || '{}')
    return JSON.stringify(change(value) ?? value)
  })
const fields = (file: string, change: object) => json(file, (value) => Object.assign(value, change))
/** Changes the header of a safetensors file and leaves its data. */
const header = (file: string, change: (header: Header) => unknown): Spoil =>
  raw(file, (bytes) => {
    const length = Number(bytes.readBigUInt64LE(0))
    const value = JSON.parse(bytes.subarray(8, 8 + length).toString())
    const changed = change(value) ?? value
    const text = typeof changed === 'string' ? changed : JSON.stringify(changed)
    return Buffer.concat([lengthOf(Buffer.byteLength(text)), Buffer.from(text), bytes.subarray(8 + length)])
  })
const entry = (file: string, tensor: string, change: object) =>
  header(file, (value) => {
    Object.assign(value[tensor]!, change)
  })
/** Overwrites the first float of a tensor. */
const value = (file: string, tensor: string, float: number): Spoil =>
  raw(file, (bytes) => {
    const length = Number(bytes.readBigUInt64LE(0))
    const { data_offsets } = JSON.parse(bytes.subarray(8, 8 + length).toString())[tensor]
    bytes.writeFloatLE(float, 8 + length + data_offsets[0])
    return bytes
  })
const remove =
  (file: string): Spoil =>
  (folder) =>
    rm(join(folder, file))
const lengthOf = (bytes: number | bigint) => {
  const out = Buffer.alloc(8)
  out.writeBigUInt64LE(BigInt(bytes))
  return out
}
const pipe =
  (file: string): Spoil =>
  async (folder) => {
    await rm(join(folder, file), { force: true })
    expect(spawnSync('mkfifo', [join(folder, file)]).status).toBe(0)
  }
const link =
  (file: string): Spoil =>
  async (folder) => {
    await rm(join(folder, file), { force: true })
    await symlink(file, join(folder, file))
  }
/** Many small arrays, which take far more memory than their text. */
const arrays = (bytes: number) => `{"a":[${'[],'.repeat(bytes / 3)}0]}`
const nested = (depth: number) => `${'['.repeat(depth)}${']'.repeat(depth)}`

const model = 'model.safetensors'
const norm = 'model.norm.weight'
const optimizer = 'optimizer.safetensors'
const teacher = 'teacher.safetensors'
const state = 'trainer_state.json'

type Case = [what: string, spoil: Spoil, message: RegExp, named?: string] // `named`: where the error names another file

/** What every safetensors file may suffer, with the words of the native reader. */
const safetensors = (file: string, tensor: string): Case[] => [
  ['is empty', raw(file, () => ''), /0 bytes/],
  ['has 7 bytes', raw(file, (b) => b.subarray(0, 7)), /7 bytes/],
  [
    'claims a header of 2^63 bytes',
    raw(file, (b) => Buffer.concat([lengthOf(2n ** 63n), b.subarray(8)])),
    /header's length.*above the limit/,
  ],
  [
    'claims a header of 99 MB',
    raw(file, (b) => Buffer.concat([lengthOf(99e6), b.subarray(8)])),
    /header's length.*more than the file has left/,
  ],
  ['is cut in the header', raw(file, (b) => b.subarray(0, 50)), /header's length|50 bytes/],
  ['is cut in the data', raw(file, (b) => b.subarray(0, b.length - 4)), /data_offsets.*cut short/],
  ['has bytes after the data', raw(file, (b) => Buffer.concat([b, b.subarray(0, 8)])), /8 bytes/],
  ['has a header that is not JSON', header(file, () => '{"a": }'), /tensor "a": expected an object at byte 6/],
  ['has a header that is an array', header(file, () => '[]'), /does not start with '\{'/],
  ['has a header of nested arrays', header(file, () => `{"a":${nested(200_000)}}`), /tensor "a": expected an object at byte 5/],
  [
    'has invalid UTF-8 in a name',
    raw(file, (b) => b.fill(0xff, b.indexOf(`"${tensor}"`) + 1, b.indexOf(`"${tensor}"`) + 2)),
    /invalid UTF-8 at byte/,
  ],
  [
    'names a tensor twice',
    header(file, (h) => JSON.stringify(h).replace(/}$/, `,"${tensor}":${JSON.stringify(h[tensor])}}`)),
    new RegExp(`the key "${tensor}" comes twice`),
  ],
  ['lacks a dtype', entry(file, tensor, { dtype: undefined }), /dtype is missing/],
  ['has an unknown dtype', entry(file, tensor, { dtype: 'F31' }), /dtype "F31" is not known/],
  ['lacks a shape', entry(file, tensor, { shape: undefined }), /shape is missing/],
  ['has a negative shape', entry(file, tensor, { shape: [-16] }), /"shape"/],
  ['has a shape of fractions', entry(file, tensor, { shape: [1.5] }), /"shape"/],
  ['has a shape that overflows', entry(file, tensor, { shape: [2 ** 40, 2 ** 40] }), /product of shape overflows/],
  ['has a shape of 100 dimensions', entry(file, tensor, { shape: Array(100).fill(1) }), /"shape": more than 64 entries/],
  [
    'claims more than the file',
    entry(file, tensor, { shape: [2 ** 35], data_offsets: [0, 2 ** 37] }),
    /data_offsets end at byte/,
  ],
  ['lacks offsets', entry(file, tensor, { data_offsets: undefined }), /data_offsets is missing/],
  ['has offsets the wrong way round', entry(file, tensor, { data_offsets: [64, 0] }), /data_offsets end before they begin/],
  ['has three offsets', entry(file, tensor, { data_offsets: [0, 1, 2] }), /more than 2 entries/],
  ['has tensors that overlap', entry(file, tensor, { data_offsets: [0, 64] }), /overlap/],
  ['has offsets that are texts', entry(file, tensor, { data_offsets: ['0', '64'] }), /"data_offsets"/],
  ['has an unknown field', entry(file, tensor, { stride: 1 }), /unknown field/],
  ['has metadata that is no text', header(file, (h) => ({ ...h, __metadata__: { format: 1 } })), /__metadata__/],
  [
    'lacks a tensor',
    header(file, (h) => JSON.parse(JSON.stringify(h).replace(tensor, 'other.weight'))),
    new RegExp(`tensors are missing: "${tensor}"|tensor "${tensor}": is missing`),
  ],
  ['holds NaN', value(file, tensor, Number.NaN), /not finite/],
  ['holds an infinity', value(file, tensor, Number.POSITIVE_INFINITY), /not finite/],
  [
    'is a folder',
    async (folder) => {
      await rm(join(folder, file))
      await mkdir(join(folder, file))
    },
    /is not a regular file/,
  ],
  [
    'is a link to itself',
    async (folder) => {
      await rm(join(folder, file))
      await symlink(file, join(folder, file))
    },
    /cannot be opened|no file|neither|cannot read/,
  ],
  ['is a pipe that nobody writes', pipe(file), /is not a regular file/],
]

const config = (change: object, message: RegExp): Case => [
  `has ${JSON.stringify(change)}`,
  fields('config.json', change),
  message,
]
const configs: Case[] = [
  ['is missing', remove('config.json'), /no file/],
  ['is empty', raw('config.json', () => ''), /is not JSON/],
  ['is cut', raw('config.json', (b) => b.subarray(0, 40)), /is not JSON/],
  ['is an array', raw('config.json', () => '[]'), /must hold a JSON object/],
  ['is nested too deeply', raw('config.json', () => `{"a":${nested(100_000)}}`), /is nested more than 256 deep/],
  ['is a pipe that nobody writes', pipe('config.json'), /must be a regular file/],
  ['is a link to itself', link('config.json'), /cannot read .*ELOOP/],
  ['is 4 MB of small arrays', raw('config.json', () => arrays(4e6)), /must be a regular file of at most 1048576 bytes, it has/],
  ['lacks vocab_size', json('config.json', (c) => ({ ...c, vocab_size: undefined })), /vocab_size/],
  config({ hidden_size: 0 }, /hidden_size/),
  config({ hidden_size: -16 }, /hidden_size/),
  config({ hidden_size: 16.5 }, /hidden_size/),
  config({ hidden_size: '16' }, /hidden_size/),
  config({ hidden_size: 1e9 }, /hidden_size/),
  config({ vocab_size: 2 ** 24 }, /config\.json describes/),
  config({ vocab_size: 2 ** 24, hidden_size: 2 ** 16 }, /parameters are more than looplm handles|config\.json describes/),
  config({ num_hidden_layers: 1e6 }, /num_hidden_layers/),
  config({ num_attention_heads: 3, head_dim: null }, /head_dim/),
  config({ head_dim: 7 }, /head_dim: must be even/),
  config({ num_key_value_heads: 3 }, /num_key_value_heads/),
  config({ total_ut_steps: 0 }, /total_ut_steps/),
  config({ total_ut_steps: 1e9 }, /total_ut_steps/),
  config({ rms_norm_eps: 0 }, /rms_norm_eps/),
  config({ rope_theta: null, rope_parameters: null }, /rope_theta/),
  config({ rope_theta: -1 }, /rope_theta/),
  config({ rope_scaling: { type: 'yarn' } }, /rope_scaling/),
  config({ hidden_act: 'gelu' }, /hidden_act: must be "silu"/),
  config({ model_type: 'llama' }, /model_type/),
  config({ tie_word_embeddings: 'no' }, /tie_word_embeddings/),
  config({ eos_token_id: 12 }, /eos_token_id/),
  config({ eos_token_id: [-1] }, /eos_token_id/),
  config({ use_sliding_window: true }, /use_sliding_window/),
  config({ attention_bias: true }, /attention_bias/),
  config({ layer_types: ['sliding_attention'] }, /layer_types/),
]

const generation: Case[] = [
  ['is a pipe that nobody writes', pipe('generation_config.json'), /must be a regular file/],
  ['is not JSON', raw('generation_config.json', () => '{"eos'), /is not JSON/],
  ['is a number', raw('generation_config.json', () => '3'), /must hold a JSON object/],
  ['has an end token that is a text', fields('generation_config.json', { eos_token_id: 'end' }), /"eos_token_id"/],
  ['has an end token outside the vocabulary', fields('generation_config.json', { eos_token_id: [0, 12] }), /"eos_token_id"/],
  ['has an end token that is a fraction', fields('generation_config.json', { eos_token_id: 1.5 }), /"eos_token_id"/],
  ['has an end token in an object', fields('generation_config.json', { eos_token_id: { id: 1 } }), /"eos_token_id"/],
]

const index = 'model.safetensors.index.json'
const shards = (content: unknown): Spoil => {
  return async (folder) => {
    await rm(join(folder, model))
    await writeFile(join(folder, index), typeof content === 'string' ? content : JSON.stringify(content))
  }
}
const indices: Case[] = [
  [
    'is a pipe that nobody writes',
    async (folder) => {
      await rm(join(folder, model))
      await pipe(index)(folder)
    },
    /must be a regular file/,
  ],
  ['is 20 MB of small arrays', shards(arrays(20e6)), /must be a regular file of at most 16777216 bytes/],
  ['is not JSON', shards('{'), /is not JSON/],
  ['has no weight_map', shards({}), /"weight_map" must be an object/],
  ['has a weight_map of null', shards({ weight_map: null }), /"weight_map" must be an object/],
  ['has an empty weight_map', shards({ weight_map: {} }), /"weight_map" is empty/],
  [
    'names a file elsewhere',
    shards({ weight_map: { a: '../../x.safetensors' } }),
    /"weight_map".*not a .safetensors file of the same folder/,
  ],
  ['names a number', shards({ weight_map: { a: 1 } }), /"weight_map"/],
  ['names another kind of file', shards({ weight_map: { a: 'config.json' } }), /"weight_map"/],
  ['names a missing file', shards({ weight_map: { a: 'gone.safetensors' } }), /no file/, 'gone.safetensors'],
]

const tokenizer = (change: object) => fields('tokenizer.json', change)
const wordLevel = { type: 'WordLevel', vocab: { a: 0 }, unk_token: '<unk>' }
const bpe = { type: 'BPE', vocab: { a: 0, b: 1, ab: 2 }, merges: ['a b'] }
const unigram = {
  type: 'Unigram',
  vocab: [
    ['a', -1],
    ['b', -2],
  ],
  unk_id: 0,
}
const tokenizers: Case[] = [
  ['is a pipe that nobody writes', pipe('tokenizer.json'), /must be a regular file/],
  [
    'has 65 MB',
    async (folder) => truncate(join(folder, 'tokenizer.json'), 65 * 2 ** 20),
    /must be a regular file of at most 67108864 bytes/,
  ],
  ['is nested too deeply', tokenizer({ normalizer: JSON.parse(nested(300)) }), /is nested more than 256 deep/],
  [
    'merges a token that is not there',
    tokenizer({ model: { ...bpe, merges: ['a b', 'b c'] } }),
    /"model.merges.1" needs the token "c"/,
  ],
  [
    'merges two tokens into none',
    tokenizer({ model: { ...bpe, merges: [['b', 'a']] } }),
    /"model.merges.0" needs the token "ba"/,
  ],
  [
    'has a score that is a text',
    tokenizer({ model: { ...unigram, vocab: [['a', '-1']] } }),
    /"model.vocab.0" must be a pair .* number/,
  ],
  [
    'has an unknown id outside the vocabulary',
    tokenizer({ model: { ...unigram, unk_id: 2 } }),
    /"model.unk_id" must be an id .*got 2/,
  ],
  [
    'has an id for two added tokens',
    tokenizer({ added_tokens: [11, 11].map((id, i) => ({ id, content: `<${i}>` })) }),
    /"added_tokens.[01].id" is 11, but Python's tokenizers gives "<[01]>" the id /,
  ],
  ['is not JSON', raw('tokenizer.json', (b) => b.subarray(0, 100)), /is not JSON/],
  ['is null', raw('tokenizer.json', () => 'null'), /must hold a JSON object/],
  ['is a text', raw('tokenizer.json', () => '"x"'), /must hold a JSON object/],
  ['has a model of null', tokenizer({ model: null }), /"model" must be an object/],
  ['has an unknown model', tokenizer({ model: { ...wordLevel, type: 'Neural' } }), /"model.type"/],
  ['has a vocabulary of null', tokenizer({ model: { ...wordLevel, vocab: null } }), /"model.vocab"/],
  ['has an empty vocabulary', tokenizer({ model: { ...wordLevel, vocab: {} }, added_tokens: [] }), /"model.vocab" has no tokens/],
  ['has a negative id', tokenizer({ model: { ...wordLevel, vocab: { a: -1 } } }), /"model.vocab.a"/],
  ['has an id of 2^53', tokenizer({ model: { ...wordLevel, vocab: { a: 2 ** 53 } } }), /"model.vocab.a"/],
  ['has an id twice', tokenizer({ model: { ...wordLevel, vocab: { a: 0, b: 0 } } }), /"model.vocab.b"/],
  ['has merges that are no list', tokenizer({ model: { type: 'BPE', vocab: { a: 0 }, merges: 3 } }), /"model.merges"/],
  [
    'has merges of numbers',
    tokenizer({ model: { type: 'BPE', vocab: { a: 0 }, merges: [1, 2] } }),
    /"model.merges.0" must be two tokens/,
  ],
  ['has an added token without content', tokenizer({ added_tokens: [{ id: 0 }] }), /"added_tokens.0.content"/],
  ['has an added token of null', tokenizer({ added_tokens: [null] }), /"added_tokens.0/],
  ['has an added token with a huge id', tokenizer({ added_tokens: [{ content: 'x', id: 1e12 }] }), /"added_tokens.0.id"/],
  [
    'has an unknown pre-tokenizer',
    tokenizer({ pre_tokenizer: { type: 'Magic' } }),
    /"pre_tokenizer.type" must be one of .*Magic/,
  ],
  ['has an unknown decoder', tokenizer({ decoder: { type: 'Magic' } }), /"decoder.type" must be one of .*Magic/],
  ['has a normalizer that is a number', tokenizer({ normalizer: 5 }), /"normalizer" must be an object, got 5/],
  [
    'has a pattern that is no regular expression',
    tokenizer({ pre_tokenizer: { type: 'Split', pattern: { Regex: '(' }, behavior: 'Isolated', invert: false } }),
    /"pre_tokenizer.pattern.Regex" "\(" cannot be carried out/,
  ],
  [
    'has more tokens than the model',
    tokenizer({ model: { ...wordLevel, vocab: { a: 0, b: 500 } } }),
    /has 501 ids, vocab_size of .* is 12/,
  ],
]
const tokenizerConfigs: Case[] = [
  ['is a pipe that nobody writes', pipe('tokenizer_config.json'), /must be a regular file/],
  ['is not JSON', raw('tokenizer_config.json', () => '{,}'), /is not JSON/],
  ['is an array', raw('tokenizer_config.json', () => '[1]'), /must hold a JSON object/],
  [
    'names a token that is not there',
    fields('tokenizer_config.json', { eos_token: '</s>' }),
    /eos_token "<\/s>" of the configuration is not in the vocabulary/,
    'tokenizer.json',
  ],
]

const states: Case[] = [
  ['is a pipe that nobody writes', pipe(state), /must be a regular file/],
  ['is 4 MB of small arrays', raw(state, () => arrays(4e6)), /must be a regular file of at most 1048576 bytes/],
  ['has a step beyond counting', fields(state, { step: 2 ** 53 - 1 }), /step: .*<=4294967296/],
  ['has more steps than the optimizer', fields(state, { step: 2 }), /step: is 2, but optimizer\.safetensors has made 1 updates/],
  ['is missing', remove(state), /no file/],
  ['is empty', raw(state, () => ''), /is not JSON: /],
  ['is cut', raw(state, (b) => b.subarray(0, b.length / 2)), /is not JSON: /],
  ['is null', raw(state, () => 'null'), /expected object/i],
  ['has another format', fields(state, { format: 9 }), /format/],
  ['lacks the step', json(state, (s) => ({ ...s, step: undefined })), /step/],
  ['has a negative step', fields(state, { step: -1 }), /step/],
  ['has half a step', fields(state, { step: 1.5 }), /step/],
  ['has a step that is a text', fields(state, { step: '1' }), /step/],
  ['has tokens beyond counting', fields(state, { tokens: 1e300 }), /tokens/],
  ['has no configuration', fields(state, { config: 3 }), /config/],
  ['is of another trainer', fields(state, { trainer: 'grpo' }), /was written by the trainer grpo/],
  ['has a best that is no list', fields(state, { best: {} }), /best/],
  ['has a best without a value', fields(state, { best: [{ step: 1 }] }), /best\.0\.value/],
  ['has a patience that is negative', fields(state, { stalled: -3 }), /stalled/],
  ['has data without a fingerprint', fields(state, { data: { description: 'x' } }), /data\.fingerprint/],
]

const optimizers: Case[] = [
  ['is missing', remove(optimizer), /cannot be opened: No such file/],
  ['has no step', header(optimizer, (h) => ({ ...h, __metadata__: { dtype: 'F32' } })), /__metadata__ has no "step"/],
  [
    'has a step that is a word',
    header(optimizer, (h) => ({ ...h, __metadata__: { dtype: 'F32', step: 'two' } })),
    /"step".*is not a count/,
  ],
  [
    'has a negative step',
    header(optimizer, (h) => ({ ...h, __metadata__: { dtype: 'F32', step: '-2' } })),
    /"step".*is not a count/,
  ],
  [
    'has a step beyond counting',
    header(optimizer, (h) => ({ ...h, __metadata__: { dtype: 'F32', step: '9'.repeat(40) } })),
    /"step".*is not a count/,
  ],
  ['is of another dtype', header(optimizer, (h) => ({ ...h, __metadata__: { dtype: 'BF16', step: '1' } })), /"dtype"/],
  ['has a second moment below zero', value(optimizer, `second.${norm}`, -1), /negative/],
  ['has moments of another shape', entry(optimizer, `first.${norm}`, { shape: [4, 4] }), /shape is not the parameter's/],
]
const teachers: Case[] = [
  ['is missing', remove(teacher), /cannot be opened: No such file/],
  ['has another shape', entry(teacher, `average.${norm}`, { shape: [4, 4] }), /shape/],
]

const query = 'model.layers.0.self_attn.q_proj.weight' // 64 rows of 2 groups of 32
const quantization = (change: object) =>
  json('config.json', (c) => ({ ...c, quantization_config: { ...c.quantization_config, ...change } }))
const quantizations: Case[] = [
  ['has 3 bits', quantization({ bits: 3 }), /quantization_config\.bits: must be 4 or 8/],
  ['has bits in a text', quantization({ bits: '4' }), /quantization_config\.bits: must be 4 or 8/],
  ['lacks the bits', quantization({ bits: undefined }), /quantization_config\.bits/],
  ['has a group of 0', quantization({ group_size: 0 }), /quantization_config\.group_size/],
  [
    'has a group of 48',
    quantization({ group_size: 48 }),
    /quantization_config\.group_size: must be a multiple of 32 that divides/,
  ],
  [
    'has a group that is too wide',
    quantization({ group_size: 64 }),
    /quantization_config\.group_size: must .* 64, 64, 96, got 64/,
  ],
  ['is of another tool', quantization({ quant_method: 'gptq' }), /quantization_config\.quant_method: must be "looplm"/],
  ['says more than is known', quantization({ zero_point: true }), /quantization_config.*zero_point/],
  ['has a quantization that is a text', fields('config.json', { quantization_config: 'int4' }), /quantization_config/],
  ['promises 8 bits for 4', quantization({ bits: 8 }), /bytes cannot hold the \d+ parameters that config.json describes/, model],
  [
    'says nothing of the quantization',
    fields('config.json', { quantization_config: null }),
    /bytes cannot hold the \d+ parameters that config.json describes/,
    model,
  ],
]
const quantizedWeights: Case[] = [
  [
    'lacks scales',
    header(model, (h) => JSON.parse(JSON.stringify(h).replace(`${query}_scale`, 'other'))),
    new RegExp(`1 tensors are missing: "${query}_scale"`),
  ],
  [
    'lacks codes',
    header(model, (h) => JSON.parse(JSON.stringify(h).replace(`"${query}"`, '"other"'))),
    new RegExp(`1 tensors are missing: "${query}"`),
  ],
  [
    'has codes of another dtype',
    entry(model, query, { dtype: 'I8' }),
    /q_proj.weight.*dtype I8.*quantization_config.*asks for U8/,
  ],
  ['has codes as a plain matrix', entry(model, query, { shape: [64, 32] }), /q_proj.weight.*shape \[64, 32\].*\[64, 2, 16\]/],
  ['has scales of another group', entry(model, `${query}_scale`, { shape: [128, 1] }), /_scale.*shape \[128, 1\].*\[64, 2\]/],
  ['has scales as whole numbers', entry(model, `${query}_scale`, { dtype: 'I32' }), /_scale.*dtype I32.*asks for F32/],
  ['has a scale that is not finite', value(model, `${query}_scale`, Number.NaN), /_scale.*element 0 is not finite/],
]

/** A folder with a copy of the checkpoint, spoilt. */
async function spoilt(spoil: Spoil, from = good): Promise<string> {
  const folder = await mkdtemp(join(root, 'case-'))
  await cp(from, folder, { recursive: true })
  await spoil(folder)
  return folder
}

/** Names, sizes and content of a folder. */
async function contentOf(folder: string): Promise<string[]> {
  const names = (await readdir(folder, { withFileTypes: true })).sort((a, b) => (a.name < b.name ? -1 : 1))
  return Promise.all(
    names.map(async (found) => {
      const bytes = found.isFile() ? await readFile(join(folder, found.name)) : Buffer.alloc(0)
      return `${found.name} ${bytes.length} ${createHash('sha256').update(bytes).digest('hex')}`
    }),
  )
}

/** Runs a reader that must refuse; checks the error, the folder and the memory. */
async function refuses(folder: string, file: string, message: RegExp, read: () => Promise<unknown>): Promise<void> {
  const before = await contentOf(folder)
  const honest = before.reduce((sum, line) => sum + Number(line.split(' ')[1]), 0)
  resetPeakMemory()
  const engine = memory().bytes
  const resident = process.memoryUsage.rss()
  const error = await refusal(read)
  expect(error.code, error.message).toMatch(/^(INVALID_FILE|INVALID_CONFIG|INVALID_ARGUMENT|NOT_FOUND)$/)
  expect(error.message).toContain(file)
  expect(error.message).toMatch(message)
  expect(error.message.length).toBeLessThan(4000)
  expect(memory().peak - engine).toBeLessThan(8 * honest + 2 ** 20)
  expect(process.memoryUsage.rss() - resident).toBeLessThan(2 ** 27)
  expect(await contentOf(folder)).toEqual(before)
  if (memory().bytes > engine) await collectGarbage()
  expect(memory().bytes).toBeLessThanOrEqual(engine)
}

const load = (folder: string) => LoopLM.fromPretrained(folder, { threads: 1 })

describe.each<[file: string, cases: Case[]]>([
  [model, safetensors(model, norm)],
  ['config.json', configs],
  ['generation_config.json', generation],
  [index, indices],
  ['tokenizer.json', tokenizers],
  ['tokenizer_config.json', tokenizerConfigs],
  ['chat_template.jinja', [['is a pipe that nobody writes', pipe('chat_template.jinja'), /must be a regular file/]]],
])('a checkpoint whose %s', (file, cases) => {
  it.each(cases)('%s', async (_what, spoil, message, named) => {
    const folder = await spoilt(spoil)
    await refuses(folder, named ?? file, message, () => load(folder))
  })
})

describe.each<[file: string, cases: Case[]]>([
  [model, quantizedWeights],
  ['config.json', quantizations],
])('a quantized checkpoint whose %s', (file, cases) => {
  it.each(cases)('%s', async (_what, spoil, message, named) => {
    const folder = await spoilt(spoil, quantized)
    await refuses(folder, named ?? file, message, () => load(folder))
  })
})

describe.each<[file: string, cases: Case[]]>([
  [state, states],
  [optimizer, [...safetensors(optimizer, `first.${norm}`).slice(0, -2), ...optimizers]],
  [teacher, [...safetensors(teacher, `average.${norm}`).slice(0, -2), ...teachers]],
])('a resume from a checkpoint whose %s', (file, cases) => {
  it.each(cases)('%s', async (_what, spoil, message) => {
    const folder = await spoilt(spoil)
    const student = await LoopLM.create(tinyConfig, { seed: 5, threads: 1 })
    const before = await parametersOf(student)
    const trainer = new LoopRPTTrainer(student, { ...options, resume: folder })
    try {
      await refuses(folder, file, message, async () => {
        try {
          for await (const _ of trainer.run());
        } finally {
          trainer.dispose()
        }
      })
      expect(await parametersOf(student)).toEqual(before)
    } finally {
      student.dispose()
    }
  })
})

describe('a training configuration', () => {
  const valid = 'trainer: rltt\nmodel: m\ntask: addition\n'
  it.each<[what: string, text: string | Uint8Array, message: RegExp]>([
    ['that is empty', '', /must hold fields/],
    ['that is a list', '- a\n', /must hold fields/],
    ['that does not parse', 'trainer: [rltt\n', /line 2|line 1/],
    ['with a tab as indentation', 'options:\n\tsteps: 1\n', /line 2/],
    ['with a key twice', `${valid}trainer: grpo\n`, /unique.*line 4/s],
    ['with an alias to nowhere', `${valid}runDir: *gone\n`, /gone/],
    [
      'with a billion laughs',
      `a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n`,
      /alias/,
    ],
    ['with bytes that are not UTF-8', Uint8Array.from([0x74, 0x3a, 0x20, 0xff, 0xfe, 0x0a]), /is not valid UTF-8/],
    ['of an unknown trainer', valid.replace('rltt', 'dpo'), /trainer: /],
    ['with a model that is a number', valid.replace('model: m', 'model: 5'), /model: must be a checkpoint folder, a GGUF file/],
    ['with an unknown field', `${valid}modle: x\n`, /modle: unknown option; did you mean model\?/],
    ['with an option that is not a number', `${valid}options: { steps: many }\n`, /steps: .*got "many"/],
    ['with an option of another trainer', `${valid}options: { batchSize: 3 }\n`, /batchSize: unknown option/],
    ['with options that are a list', `${valid}options: [1]\n`, /options: /],
    ['with no task', 'trainer: rltt\nmodel: m\n', /needs exactly one of task, dataset and corpus/],
    ['with two sources', `${valid}dataset: a.jsonl\n`, /needs exactly one of task, dataset and corpus/],
    ['with threads below one', `${valid}threads: 0\n`, /threads: /],
    ['with a reward without a name', `${valid}reward: [{ weight: 2 }]\n`, /reward/],
    ['with a date as path', `${valid}runDir: 2020-01-01\nresume: 7\n`, /resume: /],
    ['with an option that is empty', `${valid}runDir:\n`, /runDir: .*got null/],
    ['that never ends', `${valid}# ${'x'.repeat(2 ** 25)}\n`, /at most/],
  ])('%s', async (_what, text, message) => {
    const folder = await mkdtemp(join(root, 'yaml-'))
    await writeFile(join(folder, 'train.yaml'), text)
    await refuses(folder, 'train.yaml', message, () => readTrainConfig(join(folder, 'train.yaml'), []))
  })
})

describe('a dataset', () => {
  it.each<[what: string, text: string | Uint8Array, message: RegExp]>([
    ['that is empty', '', /has no rows/],
    ['with a line that is not JSON', '{"prompt":"a"}\n{"prompt":\n', /line 2 is not JSON/],
    ['with a line that is an array', '["a"]\n', /line 1 must be a JSON object/],
    ['with a line that is null', '{"prompt":"a"}\n\nnull\n', /line 3 must be a JSON object/],
    ['with a prompt that is missing', '{"answer":"a"}\n', /line 1 field "prompt"/],
    ['with a prompt that is a number', '{"prompt":1}\n', /line 1 field "prompt"/],
    ['with an answer that is an object', '{"prompt":"a","answer":{}}\n', /line 1 field "answer"/],
    ['with a completion that is a list', '{"prompt":"a","completion":[]}\n', /line 1 field "completion"/],
    ['with messages that are a text', '{"messages":"hi"}\n', /line 1 field "messages"/],
    ['with bytes that are not UTF-8', Uint8Array.from([0x7b, 0x22, 0xff, 0x0a]), /line 1 is not valid UTF-8/],
    ['with a line without an end', `{"prompt":"${'x'.repeat(2 ** 24 + 10)}"}`, /line 1 is longer than maxRowBytes/],
    ['with a column nested too deeply', `{"prompt":"a","x":${nested(100_000)}}\n`, /line 1 is nested more than 256 deep/],
    ['with a nested line', `{"prompt":"a"}\n${nested(100_000)}\n`, /line 2/],
  ])('%s', async (_what, text, message) => {
    const folder = await mkdtemp(join(root, 'rows-'))
    await writeFile(join(folder, 'rows.jsonl'), text)
    await refuses(folder, 'rows.jsonl', message, () => loadDataset(join(folder, 'rows.jsonl')))
  })
})

describe('a corpus', () => {
  it.each<[what: string, text: string | Uint8Array, message: RegExp]>([
    ['with a line that is not JSON', '{"text":"a"}\n{', /line 2 is not JSON/],
    ['with a line without text', '{"text":"a"}\n{"txt":"a"}', /line 2 field "text"/],
    ['with text that is a number', '{"text":7}', /line 1 field "text"/],
    ['with a line that is null', 'null', /line 1 field "text"/],
    ['with bytes that are not UTF-8', Uint8Array.from([0x7b, 0xff]), /line 1 is not valid UTF-8/],
    ['without text', '\n\n', /0 tokens/],
  ])('%s', async (_what, text, message) => {
    const folder = await mkdtemp(join(root, 'text-'))
    await writeFile(join(folder, 'a.jsonl'), text)
    const open = () => Corpus.open(join(folder, 'a.jsonl'), Tokenizer.bytes(), { contextLength: 8 })
    await refuses(folder, 'a.jsonl', message, open)
  })
})

describe('a byte order mark', () => {
  const marked = (file: string) => raw(file, (bytes) => Buffer.concat([Buffer.from('\ufeff'), bytes]))
  it('before the JSON of a checkpoint is ignored', async () => {
    const folder = await spoilt(async (folder) => {
      for (const file of ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', state])
        await marked(file)(folder)
    })
    using student = await LoopLM.create(tinyConfig, { seed: 5, threads: 1 })
    using trainer = new LoopRPTTrainer(student, { ...options, resume: folder })
    for await (const _ of trainer.run());
    expect(trainer.step).toBe(1)
    using saved = await load(good)
    using loaded = await load(folder)
    expect([loaded.config, loaded.endTokens, loaded.tokenizer!.files()]).toEqual([
      saved.config,
      saved.endTokens,
      saved.tokenizer!.files(),
    ])
    expect(await parametersOf(student)).toEqual(await parametersOf(saved))
  })
})

describe('a run folder', () => {
  it.each(['metrics.jsonl', 'completions.jsonl', 'config.yaml'])(
    'whose %s is a pipe that nobody writes is read without waiting',
    async (file) => {
      const folder = await mkdtemp(join(root, 'piped-'))
      await writeFile(join(folder, 'metrics.jsonl'), '{"step":1,"loss":2}\n')
      await pipe(file)(folder)
      const { step } = await new RunReader(folder).read()
      expect(step).toBe(file === 'metrics.jsonl' ? 0 : 1)
    },
  )

  it('whose metrics.jsonl is a pipe is rejected before the first step', async () => {
    const folder = await mkdtemp(join(root, 'piped-'))
    await pipe('metrics.jsonl')(folder)
    using student = await LoopLM.create(tinyConfig, { seed: 5, threads: 1 })
    using trainer = new LoopRPTTrainer(student, { ...options, runDir: folder })
    const error = await refusal(async () => {
      for await (const _ of trainer.run());
    })
    expect(error.message).toMatch(/cannot write .*metrics\.jsonl: it is not a regular file/)
    expect(trainer.step).toBe(0)
  })
})
