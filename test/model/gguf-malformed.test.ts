// GGUF files that are not what they should be: an error that names the file and what is wrong in it, no crash, no memory beyond the file.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { LoopLM, LoopLMError, memory, resetPeakMemory } from '../../src/index.js'
import { heldBytes } from '../garbage.js'
import { type Entry, generator, ggufBytes, ggufMetadata, ggufName, type Metadata, randomData, text, u64 } from '../gguf-file.js'
import { refusal } from '../refusal.js'

let root: string
let path: string
let entries: Entry[]
const config = {
  ...{ vocab_size: 12, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 },
  looplm_exit_gate: false,
}
const metadata: Metadata = ggufMetadata('ouro', config)

beforeAll(async () => {
  vi.spyOn(process, 'emitWarning').mockImplementation(() => {}) // none of these has an exit gate
  root = await mkdtemp(join(tmpdir(), 'looplm-gguf-malformed-'))
  path = join(root, 'model.gguf')
  using model = await LoopLM.create(config as never, { threads: 1 })
  entries = model.parameters().map(({ name, shape }, i) => {
    const type = shape.length > 1 ? 'Q8_0' : 'F32'
    return {
      name: ggufName('ouro', name)!,
      type,
      shape: [...shape],
      data: randomData(
        type,
        shape.reduce((a, b) => a * b, 1),
        i,
      ),
    }
  })
})
afterAll(() => rm(root, { recursive: true, force: true }))

const load = () => LoopLM.fromPretrained(path, { threads: 1 })
const good = () => ggufBytes(metadata, entries)
const without = (key: string): Metadata => Object.fromEntries(Object.entries(metadata).filter(([name]) => name !== key))
const withTensor = (name: string, change: Partial<Entry>) =>
  ggufBytes(
    metadata,
    entries.map((entry) => (entry.name === name ? { ...entry, ...change } : entry)),
  )
/** Changes bytes behind the first place where some bytes lie. */
const behind = (find: Buffer, change: (bytes: Buffer, at: number) => void) => () => {
  const bytes = good()
  change(bytes, bytes.indexOf(find) + find.length)
  return bytes
}
const name = text('blk.0.attn_q.weight') // then dimensions, two sizes, the type, the offset
const q = 'blk.0.attn_q.weight'

const cases: [what: string, bytes: () => Buffer, message: RegExp][] = [
  ['is empty', () => Buffer.alloc(0), /has 0 bytes/],
  ['is another format', () => Buffer.from('x'.repeat(100)), /does not begin with "GGUF"/],
  ['has version 1', behind(Buffer.from('GGUF'), (b, at) => b.writeUInt32LE(1, at)), /has version 1; looplm reads 2 and 3/],
  ['is big-endian', behind(Buffer.from('GGUF'), (b, at) => b.writeUInt32BE(3, at)), /big-endian/],
  ['claims 2^60 tensors', behind(Buffer.from('GGUF\x03\0\0\0'), (b, at) => u64(2n ** 60n).copy(b, at)), /claims .* entries/],
  ['claims 2^60 keys', behind(Buffer.from('GGUF\x03\0\0\0'), (b, at) => u64(2n ** 60n).copy(b, at + 8)), /claims .* entries/],
  ['claims a key of 2^62 bytes', behind(Buffer.from('GGUF'), (b, at) => u64(2n ** 62n).copy(b, at + 20)), /key 0 of .* claims/],
  ['is cut in the header', () => good().subarray(0, 300), /cut short/],
  ['is cut in the data', () => good().subarray(0, good().length - 64), /cut short/],
  [
    'has a key twice',
    () => Buffer.from(good().toString('latin1').replace('ouro.rope.freq_base', 'ouro.context_length'), 'latin1'),
    /key "ouro\.context_length" is there twice/,
  ],
  ['names a tensor twice', () => ggufBytes(metadata, [...entries, entries.at(-1)!]), /tensor "output\.weight" is there twice/],
  ['lacks a key', () => ggufBytes(without('ouro.block_count'), entries), /key "ouro\.block_count" is missing/],
  ['lacks rope.freq_base', () => ggufBytes(without('ouro.rope.freq_base'), entries), /key "ouro\.rope\.freq_base" is missing/],
  [
    'is of another family',
    () => ggufBytes({ ...metadata, 'general.architecture': ['text', 'llama'] }, entries),
    /is "llama"; looplm reads GGUF files of ouro and nanbeige/,
  ],
  [
    'has a key of another type',
    () => ggufBytes({ ...metadata, 'ouro.block_count': ['text', 'one'] }, entries),
    /key "ouro\.block_count" must be one number/,
  ],
  [
    'has layers of different widths',
    () => ggufBytes({ ...metadata, 'ouro.feed_forward_length': ['u32s', [32, 64]] }, entries),
    /the same for all layers/,
  ],
  [
    'has experts',
    () => ggufBytes({ ...metadata, 'ouro.expert_count': ['u32', 8] }, entries),
    /key "ouro\.expert_count" is 8, which looplm does not compute/,
  ],
  [
    'scales its positions',
    () => ggufBytes({ ...metadata, 'ouro.rope.scaling.type': ['text', 'yarn'] }, entries),
    /rope\.scaling\.type" is "yarn"/,
  ],
  [
    'has a size that config.json could not have',
    () => ggufBytes({ ...metadata, 'ouro.num_loops': ['u32', 1000] }, entries),
    /total_ut_steps/,
  ],
  ['has fractions for sizes', () => ggufBytes({ ...metadata, 'ouro.block_count': ['f32', 1.5] }, entries), /num_hidden_layers/],
  [
    'claims a vocabulary that it does not have',
    () => ggufBytes({ ...metadata, 'ouro.vocab_size': ['u32', 99] }, entries),
    /vocab_size" is 99, but token_embd\.weight has 12 rows/,
  ],
  ['has a part of its tensors', () => ggufBytes(metadata, entries.slice(0, 5)), /cannot be the \d+ parameters/],
  [
    'lacks a norm',
    () =>
      ggufBytes(
        metadata,
        entries.filter(({ name }) => name !== 'output_norm.weight'),
      ),
    /model\.norm\.weight|values cannot be/,
  ],
  [
    'has an unknown tensor',
    () => ggufBytes(metadata, [...entries, { ...entries[0]!, name: 'rope_freqs.weight' }]),
    /tensor "rope_freqs\.weight" is unknown in models of/,
  ],
  [
    'describes more than it holds',
    () => ggufBytes({ ...metadata, 'ouro.block_count': ['u32', 1000] }, entries),
    /cannot be the \d+ parameters/,
  ],
  [
    'is a part of several by another name',
    () => ggufBytes({ ...metadata, 'split.count': ['u16', 2] }, entries),
    /part 1 of 2\. Give it a name of the form NAME-00001-of-00002\.gguf/,
  ],
  [
    'is no whole part',
    () => ggufBytes({ ...metadata, 'split.count': ['f32', 1.5] }, entries),
    /key "split\.count" must be a whole number, got 1\.5/,
  ],
  [
    'has queries, keys and values of other sizes in one',
    () => ggufBytes(metadata, [...entries, { ...entries[0]!, name: 'blk.0.attn_qkv.weight' }]),
    /"blk\.0\.attn_qkv\.weight" has the shape \[\d+, \d+\].*have \d+ rows/,
  ],
  [
    'has a type that looplm does not read',
    () => withTensor(q, { type: 'Q2_K' }),
    /tensor "blk\.0\.attn_q\.weight" has the type Q2_K, which looplm does not read; convert/,
  ],
  [
    'has a type that nobody knows',
    behind(name, (b, at) => b.writeUInt32LE(99, at + 20)),
    /attn_q\.weight" has the type number 99/,
  ],
  ['has five dimensions', behind(name, (b, at) => b.writeUInt32LE(5, at)), /has 5 dimensions/],
  ['has no dimensions', behind(name, (b, at) => b.writeUInt32LE(0, at)), /has 0 dimensions/],
  ['has a dimension of 0', behind(name, (b, at) => u64(0).copy(b, at + 4)), /shape \[32, 0\]/],
  ['has a shape that overflows', behind(name, (b, at) => u64(2n ** 62n).copy(b, at + 4)), /shape|cut short/],
  [
    'has rows that are no whole blocks',
    behind(name, (b, at) => u64(33).copy(b, at + 4)),
    /rows of 33 values, which are no whole blocks of Q8_0/,
  ],
  [
    'has another shape than its keys say',
    behind(name, (b, at) => u64(16).copy(b, at + 12)),
    /cannot be|shape \[16, 32\], but the configuration asks for/,
  ],
  ['has an offset off the alignment', behind(name, (b, at) => u64(40).copy(b, at + 24)), /no multiple of the alignment 32/],
  ['has an offset behind the end', behind(name, (b, at) => u64(2n ** 40n).copy(b, at + 24)), /cut short/],
  ['has an offset near 2^64', behind(name, (b, at) => u64(2n ** 64n - 32n).copy(b, at + 24)), /cut short|multiple/],
  ['has tensors that overlap', behind(name, (b, at) => u64(0).copy(b, at + 24)), /overlaps tensor/],
  ['has an alignment of 48', () => ggufBytes({ ...metadata, 'general.alignment': ['u32', 48] }, entries), /power of two, got 48/],
  ['has an alignment of 0', () => ggufBytes({ ...metadata, 'general.alignment': ['u32', 0] }, entries), /power of two, got 0/],
  [
    'has a norm that is not finite',
    () => withTensor('output_norm.weight', { data: Buffer.alloc(128, 0xff) }),
    /model\.norm\.weight.*element 0 is not finite/,
  ],
  [
    'has a scale that is not finite',
    () => withTensor(q, { data: Buffer.alloc(1088, 0xff) }),
    /q_proj\.weight.*scale of block 0 is not finite/,
  ],
  [
    'has an end token outside',
    () => ggufBytes({ ...metadata, 'tokenizer.ggml.eos_token_id': ['u32', 50] }, entries),
    /eos_token_id/,
  ],
  [
    'has numbers for tokens',
    () =>
      ggufBytes({ ...metadata, 'tokenizer.ggml.model': ['text', 'gpt2'], 'tokenizer.ggml.tokens': ['i32s', [1, 2]] }, entries),
    /tokens" must be a list of strings/,
  ],
  [
    'has fewer kinds than tokens',
    () =>
      ggufBytes(
        {
          ...metadata,
          'tokenizer.ggml.model': ['text', 'gpt2'],
          'tokenizer.ggml.tokens': ['texts', ['a', 'b']],
          'tokenizer.ggml.token_type': ['i32s', [1]],
        },
        entries,
      ),
    /token_type" has 1 entries for 2 tokens/,
  ],
  [
    'has a token twice',
    () =>
      ggufBytes(
        {
          ...metadata,
          'tokenizer.ggml.model': ['text', 'gpt2'],
          'tokenizer.ggml.pre': ['text', 'gpt-2'],
          'tokenizer.ggml.tokens': ['texts', ['a', 'a']],
        },
        entries,
      ),
    /has "a" twice/,
  ],
  [
    'has a tokenizer without scores',
    () =>
      ggufBytes(
        { ...metadata, 'tokenizer.ggml.model': ['text', 'llama'], 'tokenizer.ggml.tokens': ['texts', ['a', 'b']] },
        entries,
      ),
    /scores" must be a list of numbers/,
  ],
  [
    'has merges of unknown tokens',
    () =>
      ggufBytes(
        {
          ...metadata,
          'tokenizer.ggml.model': ['text', 'gpt2'],
          'tokenizer.ggml.pre': ['text', 'gpt-2'],
          'tokenizer.ggml.tokens': ['texts', ['a', 'b']],
          'tokenizer.ggml.merges': ['texts', ['a c']],
        },
        entries,
      ),
    /needs the token "c"/,
  ],
  [
    'has more tokens than the model has ids',
    () =>
      ggufBytes(
        {
          ...metadata,
          'tokenizer.ggml.model': ['text', 'gpt2'],
          'tokenizer.ggml.pre': ['text', 'gpt-2'],
          'tokenizer.ggml.tokens': ['texts', [...'abcdefghijklmno']],
        },
        entries,
      ),
    /the tokenizer has 15 ids, the model 12/,
  ],
]

it('the unmodified file loads', async () => {
  await writeFile(path, good())
  using model = await load()
  expect(model.quantization).toEqual({ bits: 8, groupSize: 32 })
})

it.each(cases)('a file that %s is rejected', async (_, bytes, message) => {
  await writeFile(path, bytes())
  const error = await refusal(load)
  expect(error.message).toMatch(message)
  expect(error.message).toContain(path)
  expect(['INVALID_FILE', 'INVALID_CONFIG', 'UNSUPPORTED']).toContain(error.code)
})

it('files with random byte changes load or are rejected with a LoopLMError', async () => {
  const next = generator(11)
  const whole = good()
  const headerEnd = whole.indexOf(entries[0]!.data.subarray(0, 16))
  const before = await heldBytes()
  resetPeakMemory()
  let refused = 0
  for (let i = 0; i < 600; i++) {
    let bytes = Buffer.from(whole)
    for (let k = 0; k < 1 + Math.floor(next() * 3); k++) {
      const at = Math.floor(next() * (next() < 0.9 ? headerEnd : whole.length))
      const way = next()
      if (way < 0.5) bytes[at] = Math.floor(next() * 256)
      else if (way < 0.8) bytes[at] = [0, 1, 127, 128, 255][Math.floor(next() * 5)]!
      else if (way < 0.9) bytes.fill(0xff, at, at + 8)
      else bytes = bytes.subarray(0, Math.max(1, at))
      if (at >= bytes.length) break
    }
    await writeFile(path, bytes)
    try {
      using model = await load()
      await model.score([[1, 2, 3]])
    } catch (error) {
      expect(error, `file ${i}`).toBeInstanceOf(LoopLMError)
      expect(['INVALID_FILE', 'INVALID_CONFIG', 'UNSUPPORTED'], `file ${i}: ${error}`).toContain((error as LoopLMError).code)
      refused++
    }
  }
  expect(refused).toBeGreaterThan(200)
  expect(refused).toBeLessThan(600)
  expect(memory().peak - before).toBeLessThan(2 ** 24)
  expect((await readFile(path)).length).toBeGreaterThan(0)
}, 120_000)
