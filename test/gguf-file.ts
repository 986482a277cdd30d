// Writes GGUF files as the format's specification says, and models in them as llama.cpp's converter does; says what the blocks of a type
// stand for. It shares nothing with src/data/gguf.ts or native/engine/block_formats.cpp.
import { writeFile } from 'node:fs/promises'
import type { Stored } from './stored-tensors.js'

/** A value with its type. */
export type Value =
  | ['u8' | 'u16' | 'u32' | 'i32' | 'f32' | 'u64' | 'f64', number]
  | ['bool', boolean]
  | ['text', string]
  | ['texts', readonly string[]]
  | ['i32s' | 'f32s' | 'u32s', readonly number[]]

export interface Entry {
  name: string
  type: string
  /** Row-major. */
  shape: readonly number[]
  data: Buffer
}

const numbers: Record<string, number> = { F32: 0, F16: 1, Q4_0: 2, Q4_1: 3, Q5_0: 6, Q5_1: 7, Q8_0: 8, Q2_K: 10 }
Object.assign(numbers, { Q4_K: 12, Q5_K: 13, Q6_K: 14, F64: 28, BF16: 30 })

const u32 = (value: number) => {
  const out = Buffer.alloc(4)
  out.writeUInt32LE(value)
  return out
}
export const u64 = (value: number | bigint) => {
  const out = Buffer.alloc(8)
  out.writeBigUInt64LE(BigInt(value))
  return out
}
export const text = (value: string) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)])
const f32 = (value: number) => {
  const out = Buffer.alloc(4)
  out.writeFloatLE(value)
  return out
}
const f64 = (value: number) => {
  const out = Buffer.alloc(8)
  out.writeDoubleLE(value)
  return out
}
const i32 = (value: number) => {
  const out = Buffer.alloc(4)
  out.writeInt32LE(value)
  return out
}

function valueBytes([type, value]: Value): Buffer {
  const list = (of: number, each: Buffer[]) => Buffer.concat([u32(9), u32(of), u64(each.length), ...each])
  switch (type) {
    case 'u8':
      return Buffer.concat([u32(0), Buffer.of(value)])
    case 'u16': {
      const out = Buffer.alloc(2)
      out.writeUInt16LE(value)
      return Buffer.concat([u32(2), out])
    }
    case 'u32':
      return Buffer.concat([u32(4), u32(value)])
    case 'i32':
      return Buffer.concat([u32(5), i32(value)])
    case 'f32':
      return Buffer.concat([u32(6), f32(value)])
    case 'bool':
      return Buffer.concat([u32(7), Buffer.of(value ? 1 : 0)])
    case 'text':
      return Buffer.concat([u32(8), text(value)])
    case 'u64':
      return Buffer.concat([u32(10), u64(value)])
    case 'f64':
      return Buffer.concat([u32(12), f64(value)])
    case 'texts':
      return list(8, value.map(text))
    case 'i32s':
      return list(5, value.map(i32))
    case 'u32s':
      return list(4, value.map(u32))
    case 'f32s':
      return list(6, value.map(f32))
  }
}

export type Metadata = Record<string, Value>

const padding = (size: number, alignment: number) => Buffer.alloc((alignment - (size % alignment)) % alignment)

/** The bytes of a file. */
export function ggufBytes(metadata: Metadata, tensors: readonly Entry[], alignment = 32): Buffer {
  const keys = { ...metadata, ...(alignment === 32 ? {} : { 'general.alignment': ['u32', alignment] as Value }) }
  let offset = 0
  const infos = tensors.map(({ name, type, shape, data }) => {
    const info = [text(name), u32(shape.length), ...[...shape].reverse().map(u64), u32(numbers[type]!), u64(offset)]
    offset += data.length + padding(data.length, alignment).length
    return Buffer.concat(info)
  })
  const header = Buffer.concat([
    Buffer.from('GGUF'),
    u32(3),
    u64(tensors.length),
    u64(Object.keys(keys).length),
    ...Object.entries(keys).flatMap(([key, value]) => [text(key), valueBytes(value)]),
    ...infos,
  ])
  const data = tensors.flatMap(({ data }) => [data, padding(data.length, alignment)])
  return Buffer.concat([header, padding(header.length, alignment), ...data])
}

/** Of a binary16. */
export function halfValue(bits: number): number {
  const fraction = bits & 1023
  const exponent = (bits >> 10) & 31
  const size = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25)
  return bits & 0x8000 ? -size : size
}

const size32: Record<string, number> = { Q4_0: 18, Q4_1: 20, Q5_0: 22, Q5_1: 24, Q8_0: 34 }
const size256: Record<string, number> = { Q4_K: 144, Q5_K: 176, Q6_K: 210 }
/** Elements and bytes of a block. */
export const blockSize = (type: string): [elements: number, bytes: number] =>
  type in size32 ? [32, size32[type]!] : [256, size256[type]!]

const round = Math.fround
const nibble = (byte: number, upper: boolean) => (upper ? byte >> 4 : byte & 15)
const signed = (byte: number) => (byte << 24) >> 24

/** What element i of a block stands for. */
function element(type: string, b: Buffer, i: number): number {
  const d = halfValue(b.readUInt16LE(type === 'Q6_K' ? 208 : 0))
  const m = halfValue(b.readUInt16LE(2))
  const four = (at: number) => nibble(b[at + (i % 16)]!, i >= 16)
  const fifth = (at: number) => ((b.readUInt32LE(at) >>> i) & 1) << 4
  switch (type) {
    case 'Q8_0':
      return round(d * signed(b[2 + i]!))
    case 'Q4_0':
      return round(d * (four(2) - 8))
    case 'Q4_1':
      return round(round(d * four(4)) + m)
    case 'Q5_0':
      return round(d * ((four(6) | fifth(2)) - 16))
    case 'Q5_1':
      return round(round(d * (four(8) | fifth(4))) + m)
    case 'Q6_K': {
      const within = i % 128
      const low = nibble(b[64 * Math.floor(i / 128) + (within % 64)]!, within >= 64)
      const high = (b[128 + 32 * Math.floor(i / 128) + (i % 32)]! >> (2 * Math.floor(within / 32))) & 3
      return round(round(d * signed(b[192 + Math.floor(i / 16)]!)) * ((low | (high << 4)) - 32))
    }
    default: {
      const group = Math.floor(i / 32)
      const s = b.subarray(4, 16)
      const first = group < 4
      const scale = first ? s[group]! & 63 : (s[group + 4]! & 15) | ((s[group - 4]! >> 6) << 4)
      const least = first ? s[group + 4]! & 63 : (s[group + 4]! >> 4) | ((s[group]! >> 6) << 4)
      const codes = type === 'Q4_K' ? 16 : 48
      const code = nibble(b[codes + 32 * Math.floor(group / 2) + (i % 32)]!, group % 2 === 1)
      const extra = type === 'Q5_K' ? ((b[16 + (i % 32)]! >> group) & 1) << 4 : 0
      return round(round(round(d * scale) * (code | extra)) - round(m * least))
    }
  }
}

/** The values of a tensor's bytes. */
export function valuesOf(type: string, data: Buffer): Float64Array {
  const count = { F32: 4, F16: 2, BF16: 2, F64: 8 }[type]
  if (count !== undefined) {
    return Float64Array.from({ length: data.length / count }, (_, i) => {
      if (type === 'F32') return data.readFloatLE(4 * i)
      if (type === 'F64') return data.readDoubleLE(8 * i)
      if (type === 'F16') return halfValue(data.readUInt16LE(2 * i))
      return f32Of((data.readUInt16LE(2 * i) << 16) >>> 0)
    })
  }
  const [elements, bytes] = blockSize(type)
  return Float64Array.from({ length: (data.length / bytes) * elements }, (_, i) => {
    const block = Math.floor(i / elements)
    return element(type, data.subarray(block * bytes, (block + 1) * bytes), i % elements)
  })
}
const f32Of = (bits: number) => {
  const word = Buffer.alloc(4)
  word.writeUInt32LE(bits)
  return word.readFloatLE()
}

/** A small generator, so that a failure can be repeated. */
export function generator(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

/** Bytes of a tensor with values around ±0.3. */
export function randomData(type: string, count: number, seed: number): Buffer {
  const next = generator(seed)
  const byte = () => Math.floor(next() * 256)
  const scale = () => 0x1000 + Math.floor(next() * 0x800) // 2^-11 … 2^-9
  const [elements, bytes] = type in { F32: 0, F16: 0, BF16: 0, F64: 0 } ? [1, 0] : blockSize(type)
  if (bytes === 0) {
    const values = Array.from({ length: count }, () => (next() - 0.5) * 0.6)
    if (type === 'F32') return Buffer.concat(values.map(f32))
    if (type === 'F64') return Buffer.concat(values.map(f64))
    const bits = values.map(() => (type === 'F16' ? 0x2800 + Math.floor(next() * 0x1000) : 0x3d00 + Math.floor(next() * 0x180)))
    const out = Buffer.alloc(2 * count)
    for (const [i, value] of bits.entries()) out.writeUInt16LE(value | (next() < 0.5 ? 0x8000 : 0), 2 * i)
    return out
  }
  return Buffer.concat(
    Array.from({ length: count / elements }, () => {
      const block = Buffer.from(Array.from({ length: bytes }, byte))
      const small = { Q8_0: 0x1400, Q6_K: 0x0100 }[type] ?? scale() + (elements === 32 ? 0x1400 : 0)
      block.writeUInt16LE(small + Math.floor(next() * 64), type === 'Q6_K' ? 208 : 0)
      if (type === 'Q4_1' || type === 'Q5_1') block.writeUInt16LE(0xb000 + byte(), 2)
      if (type === 'Q4_K' || type === 'Q5_K') block.writeUInt16LE(scale() + byte(), 2)
      return block
    }),
  )
}

/** Rows of heads with the halves in turns, as llama.cpp writes queries and keys; `back` undoes it. */
export function turned<Row>(rows: readonly Row[], headRows: number, back = false): Row[] {
  const half = headRows / 2
  const out = [...rows]
  for (const [i, row] of rows.entries()) {
    const head = i - (i % headRows)
    const own = i % headRows
    const place = head + (own < half ? 2 * own : 2 * (own - half) + 1)
    if (back) out[i] = rows[place]!
    else out[place] = row
  }
  return out
}

const layerNames: [published: string, name: string][] = [
  ['self_attn.q_proj', 'attn_q'],
  ['self_attn.k_proj', 'attn_k'],
  ['self_attn.v_proj', 'attn_v'],
  ['self_attn.o_proj', 'attn_output'],
  ['mlp.gate_proj', 'ffn_gate'],
  ['mlp.up_proj', 'ffn_up'],
  ['mlp.down_proj', 'ffn_down'],
  ['input_layernorm', 'attn_norm'],
]

/** llama.cpp's name of a published tensor; undefined for the exit gate, which it drops. */
export function ggufName(family: 'ouro' | 'nanbeige', name: string): string | undefined {
  const plain = { 'model.embed_tokens.weight': 'token_embd.weight', 'model.norm.weight': 'output_norm.weight' }
  const whole: Record<string, string> = { ...plain, 'lm_head.weight': 'output.weight' }
  if (name in whole) return whole[name]
  const ouro: typeof layerNames = [
    ['input_layernorm_2', 'post_attention_norm'],
    ['post_attention_layernorm', 'ffn_norm'],
    ['post_attention_layernorm_2', 'post_ffw_norm'],
  ]
  const names = [...layerNames, ...(family === 'ouro' ? ouro : ([['post_attention_layernorm', 'ffn_norm']] as typeof layerNames))]
  const [, layer, part, suffix] = /^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(name) ?? []
  const found = names.find(([published]) => published === part)
  return found === undefined ? undefined : `blk.${layer}.${found[1]}.${suffix}`
}

type Config = Record<string, unknown>

/** The keys that llama.cpp's converter writes of a configuration. */
export function ggufMetadata(family: 'ouro' | 'nanbeige', c: Config): Metadata {
  const heads = c.num_attention_heads as number
  const headDim = (c.head_dim as number | undefined) ?? (c.hidden_size as number) / heads
  const own: Metadata = {
    context_length: ['u32', (c.max_position_embeddings as number | undefined) ?? 512],
    embedding_length: ['u32', c.hidden_size as number],
    block_count: ['u32', c.num_hidden_layers as number],
    feed_forward_length: ['u32', c.intermediate_size as number],
    'attention.head_count': ['u32', heads],
    'attention.head_count_kv': ['u32', (c.num_key_value_heads as number | undefined) ?? heads],
    'attention.key_length': ['u32', headDim],
    'attention.value_length': ['u32', headDim],
    'attention.layer_norm_rms_epsilon': ['f32', (c.rms_norm_eps as number | undefined) ?? 1e-6],
    'rope.freq_base': ['f32', (c.rope_theta as number | undefined) ?? 1e6],
    'rope.dimension_count': ['u32', headDim],
    vocab_size: ['u32', c.vocab_size as number],
    num_loops: ['u32', ((c.total_ut_steps ?? c.num_loops) as number | undefined) ?? 4],
    skip_loop_final_norm: ['bool', c.skip_loop_final_norm === true],
  }
  const named = Object.entries(own).map(([key, value]) => [`${family}.${key}`, value])
  return { 'general.architecture': ['text', family], ...Object.fromEntries(named) }
}

/** Published tensors as llama.cpp writes them, without the exit gate. */
export function ggufTensors(family: 'ouro' | 'nanbeige', tensors: readonly Stored[], headDim: number): Entry[] {
  return tensors.flatMap(({ name, dtype, shape, data }) => {
    const own = ggufName(family, name)
    if (own === undefined) return []
    if (!/\.[qk]_proj\./.test(name)) return [{ name: own, type: dtype, shape, data }]
    const bytes = data.length / shape[0]!
    const rows = Array.from({ length: shape[0]! }, (_, i) => data.subarray(i * bytes, (i + 1) * bytes))
    return [{ name: own, type: dtype, shape, data: Buffer.concat(turned(rows, headDim)) }]
  })
}

/** A model in parts as llama-gguf-split writes it: paths of files that lie beside each other, the first one first. */
export async function writeGgufParts(
  model: string,
  metadata: Metadata,
  tensors: readonly Entry[],
  { perPart, emptyFirst = false }: { perPart: number; emptyFirst?: boolean },
): Promise<string[]> {
  const parts: Entry[][] = emptyFirst ? [[]] : []
  for (let i = 0; i < tensors.length; i += perPart) parts.push(tensors.slice(i, i + perPart))
  const five = (n: number) => String(n).padStart(5, '0')
  return Promise.all(
    parts.map((own, i) => {
      const split: Metadata = {
        'split.no': ['u16', i],
        'split.count': ['u16', parts.length],
        'split.tensors.count': ['i32', tensors.length],
      }
      return writeGguf(`${model}-${five(i + 1)}-of-${five(parts.length)}.gguf`, i === 0 ? { ...metadata, ...split } : split, own)
    }),
  )
}

/** Queries, keys and values of every layer in one tensor: its rows are theirs, as they are. */
export function fuseQkv(tensors: readonly Entry[]): Entry[] {
  return tensors.flatMap((tensor) => {
    const [, layer, part, suffix] = /^(blk\.\d+)\.attn_([qkv])\.(\w+)$/.exec(tensor.name) ?? []
    if (part === undefined) return [tensor]
    if (part !== 'q') return []
    const three = ['q', 'k', 'v'].map((p) => tensors.find(({ name }) => name === `${layer}.attn_${p}.${suffix}`)!)
    const rows = three.reduce((sum, { shape }) => sum + shape[0]!, 0)
    const data = Buffer.concat(three.map(({ data }) => data))
    return [{ ...tensor, name: `${layer}.attn_qkv.${suffix}`, shape: [rows, ...tensor.shape.slice(1)], data }]
  })
}

export async function writeGguf(path: string, metadata: Metadata, tensors: readonly Entry[], alignment = 32): Promise<string> {
  await writeFile(path, ggufBytes(metadata, tensors, alignment))
  return path
}
