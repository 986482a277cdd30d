import { readdir, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { type GgufFile, type GgufTensor, type GgufValue, ggufBytes } from '../data/gguf.js'
import { partName, readGgufParts } from '../data/gguf-parts.js'
import { ggufTokenIds, ggufTokenizer } from '../data/gguf-tokenizer.js'
import { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import { exists, onDisk } from '../files/write.js'
import { parameterCount } from '../native/architecture.js'
import { call, context, type NativeModel, type NativeTensorFile, native, type Quantization } from '../native.js'
import type { DeviceName } from '../tensor/types.js'
import { architectureOf, type LoopLMConfig, parseConfig, withExitGateIf } from './config.js'
import { engineQuantization } from './quantization.js'
import type { LoadOptions, ModelDType } from './types.js'

/** A model as described by a GGUF file of llama.cpp. */
export interface GgufModel {
  config: LoopLMConfig
  weights: readonly NativeTensorFile[]
  /**
   * The quantization that keeps the file's codes and scales unchanged. undefined if its blocks are of another type or of
   * several types.
   */
  quantization: Quantization | undefined
  generation: Record<string, unknown>
  tokenizer: Tokenizer | undefined
  /** The element types of the file's matrices, and how many matrices have each. */
  types: ReadonlyMap<string, number>
}

/**
 * Finds the GGUF file that a path names: the file itself, or the one in a folder without safetensors. For a model in parts, any
 * part.
 *
 * @returns undefined for other folders
 * @throws LoopLMError INVALID_ARGUMENT if a folder has several models, INVALID_FILE for other files
 */
export async function findGguf(path: string, operation: string): Promise<string | undefined> {
  const found = await onDisk('read', path, stat(path), operation)
  if (!found.isDirectory()) {
    if (path.endsWith('.gguf')) return path
    const message = `${path} is neither a checkpoint folder nor a file whose name ends in .gguf`
    throw new LoopLMError('INVALID_FILE', message, { operation })
  }
  const names = await readdir(path).catch(() => []) // if the folder cannot be listed, reading its files reports why
  if (names.some((name) => /\.safetensors(\.index\.json)?$/.test(name))) return undefined
  const files = names.filter((name) => name.endsWith('.gguf')).sort()
  if (files.length === 0) return undefined
  const models = new Set(files.map(modelOf))
  if (models.size === 1) return join(path, files[0]!)
  const message = `${path} has ${files.length} GGUF files: name one of ${files.slice(0, 10).join(', ')}`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

/** A name that is the same for all parts of a model. */
function modelOf(file: string): string {
  const part = partName(file)
  return part === undefined ? file : `${part.model}-of-${part.count}`
}

/** Where a model is loaded, and in which dtype. */
export interface LoadPlace {
  device: DeviceName
  dtype: ModelDType | undefined
  threads: number
}

/** How a model is loaded. */
export interface LoadSettings {
  /** undefined: as in the files. */
  quantization: Quantization | undefined
  /** Load the plain values of quantized GGUF files. */
  dequantize: boolean
  /** Add an exit gate if the model has none. */
  exitGate: boolean | undefined
  /** For a quantized model: the form of the activations in its matrix products. */
  activations: LoadOptions['activations']
}

/** Loads the model of a GGUF file into the engine. */
export async function loadGguf(
  path: string,
  { device, dtype, threads }: LoadPlace,
  settings: LoadSettings,
  operation: string,
): Promise<Omit<GgufModel, 'weights' | 'types'> & { handle: NativeModel; dtype: ModelDType }> {
  const { weights, types, config: own, ...model } = await readGgufModel(path, operation)
  const { config, added } = withExitGateIf(settings.exitGate, own, operation)
  const quantization = settings.quantization ?? (settings.dequantize ? undefined : model.quantization)
  const engine = engineQuantization(quantization, settings.activations, operation)
  const on = context(device, threads, operation)
  const architecture = architectureOf(config)
  const load = () => native().modelLoadTensors(on, architecture, dtype, weights, engine, added)
  const handle = await call(operation, load)
  if (config.looplm_exit_gate === false) {
    const lacks = 'the exit rules "gate" and "sampled", exit-pdf weights, Stage II and LoopRPT do not work'
    const remedy = 'Load the original checkpoint, or pass exitGate: true to add a gate that you train'
    const message = `${path} has no exit gate, because llama.cpp drops it: ${lacks}. ${remedy}`
    process.emitWarning(`${operation}: ${message}`, { type: 'LoopLMWarning' })
  }
  return { ...model, config, handle, quantization, dtype: native().modelDType(handle) }
}

/** Reads everything but the weights. @throws LoopLMError naming the file and the key or tensor at fault */
export async function readGgufModel(path: string, operation: string): Promise<GgufModel> {
  const file = await readGgufParts(path, operation)
  const keys = new Keys(file, operation)
  const tokenizer = await findTokenizer(file, operation)
  const config = readConfig(keys)
  if (tokenizer !== undefined && tokenizer.vocabSize > config.vocab_size) {
    const message = `${path}: the tokenizer has ${tokenizer.vocabSize} ids, the model ${config.vocab_size}`
    throw new LoopLMError('INVALID_FILE', message, { operation })
  }
  const matrices = file.tensors.filter(({ shape }) => shape.length > 1)
  const types = new Map<string, number>()
  for (const { type } of matrices) types.set(type, (types.get(type) ?? 0) + 1)
  const weights = byFile(nameTensors(keys, config))
  return { config, weights, quantization: keptQuantization(file), generation: ends(file, tokenizer, operation), tokenizer, types }
}

/** The file's own tokenizer. If the file has none or it cannot be rebuilt, the tokenizer.json next to the file. */
async function findTokenizer(file: GgufFile, operation: string): Promise<Tokenizer | undefined> {
  const folder = dirname(file.path)
  const beside = async () =>
    (await exists(join(folder, 'tokenizer.json'), operation)) ? Tokenizer.fromPretrained(folder) : undefined
  try {
    return ggufTokenizer(file, operation) ?? (await beside())
  } catch (error) {
    const other = error instanceof LoopLMError && error.code === 'UNSUPPORTED' ? await beside() : undefined
    if (other === undefined) throw error
    return other
  }
}

/** The tokens that end generation: the file's end tokens, and the token that ends a turn of its chat template. */
function ends(file: GgufFile, tokenizer: Tokenizer | undefined, operation: string): Record<string, unknown> {
  const { eos, eot, eom } = ggufTokenIds(file, operation)
  const chat = tokenizer?.hasChatTemplate ? tokenizer.chatEndToken() : undefined
  const ids = [...new Set([eos, eot, eom, chat].filter((id) => id !== undefined))]
  return ids.length === 0 ? {} : { eos_token_id: ids }
}

/** Reads the metadata keys of one architecture. */
class Keys {
  readonly family: string

  constructor(
    readonly file: GgufFile,
    readonly operation: string,
  ) {
    const family = file.metadata.get('general.architecture')
    if (typeof family === 'string' && Object.hasOwn(layerNames, family)) {
      this.family = family
      return
    }
    const known = Object.keys(layerNames).join(' and ')
    const message = `${file.path}: key "general.architecture" is ${JSON.stringify(family)?.slice(0, 100)}; looplm reads GGUF files of ${known}`
    throw new LoopLMError('UNSUPPORTED', message, { operation })
  }

  value(name: string): GgufValue | undefined {
    return this.file.metadata.get(`${this.family}.${name}`)
  }

  /** A number. A list with one number per layer is accepted if all are equal. */
  number(name: string): number | undefined {
    const value = this.value(name)
    if (value === undefined) return undefined
    const list = Array.isArray(value) ? value : [value]
    if (typeof list[0] === 'number' && list.every((entry) => entry === list[0])) return list[0]
    throw this.invalid(name, `must be one number, the same for all layers, got ${JSON.stringify(value).slice(0, 100)}`)
  }

  required(name: string): number {
    const value = this.number(name)
    if (value === undefined) throw this.invalid(name, 'is missing')
    return value
  }

  invalid(name: string, problem: string): LoopLMError {
    const message = `${this.file.path}: key "${this.family}.${name}" ${problem}`
    return new LoopLMError('INVALID_FILE', message, { operation: this.operation })
  }
}

/** The keys that must have a neutral value if present, because looplm does not compute what they ask for. */
const neutral: Readonly<Record<string, (value: GgufValue) => boolean>> = {
  ...Object.fromEntries(
    ['expert_count', 'attention.sliding_window', 'attn_logit_softcapping', 'final_logit_softcapping', 'attention.scale'].map(
      (key) => [key, (value: GgufValue) => value === 0],
    ),
  ),
  ...Object.fromEntries(
    ['logit_scale', 'embedding_scale', 'residual_scale'].map((key) => [key, (v: GgufValue) => v === 1 || v === 0]),
  ),
  'rope.scaling.type': (value) => value === 'none',
  'attention.causal': (value) => value === true,
}

/** The configuration with the field names of config.json. */
function readConfig(keys: Keys): LoopLMConfig {
  const { file, family, operation } = keys
  for (const [name, fits] of Object.entries(neutral)) {
    const value = keys.value(name)
    if (value !== undefined && !fits(value))
      throw keys.invalid(name, `is ${JSON.stringify(value).slice(0, 100)}, which looplm does not compute`)
  }
  const shapes = new Map(file.tensors.map(({ name, shape }) => [name, shape]))
  const embedding = shapes.get('token_embd.weight')
  if (embedding?.length !== 2) {
    const problem = embedding === undefined ? 'has no tensor "token_embd.weight"' : 'tensor "token_embd.weight" must be a matrix'
    throw new LoopLMError('INVALID_FILE', `${file.path}: ${problem}`, { operation })
  }
  const vocabulary = embedding[0]!
  if ((keys.number('vocab_size') ?? vocabulary) !== vocabulary)
    throw keys.invalid('vocab_size', `is ${keys.number('vocab_size')}, but token_embd.weight has ${vocabulary} rows`)
  const heads = keys.required('attention.head_count')
  const headDim = keys.number('attention.key_length') ?? keys.number('rope.dimension_count')
  const width = headDim ?? keys.required('embedding_length') / heads
  for (const name of ['attention.value_length', 'rope.dimension_count'])
    if ((keys.number(name) ?? width) !== width) throw keys.invalid(name, `is ${keys.number(name)}, but the heads have ${width}`)
  const { bos, eos, pad } = ggufTokenIds(file, operation)
  const loops = keys.number('num_loops') ?? 1
  const skips = keys.value('skip_loop_final_norm') === true
  const common = {
    vocab_size: vocabulary,
    hidden_size: keys.required('embedding_length'),
    intermediate_size: keys.required('feed_forward_length'),
    num_hidden_layers: keys.required('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: keys.number('attention.head_count_kv') ?? heads,
    head_dim: width,
    max_position_embeddings: keys.required('context_length'),
    rms_norm_eps: decimal(keys.required('attention.layer_norm_rms_epsilon')),
    rope_theta: decimal(keys.required('rope.freq_base')),
    tie_word_embeddings: !shapes.has('output.weight'),
    bos_token_id: bos ?? null,
    eos_token_id: eos ?? null,
    ...(pad === undefined ? {} : { pad_token_id: pad }),
  }
  if (family === 'ouro') {
    if (skips) throw keys.invalid('skip_loop_final_norm', 'is true, which Ouro models do not do')
    const own = { model_type: 'ouro', total_ut_steps: loops, early_exit_threshold: 1, looplm_exit_gate: false }
    return parseConfig({ ...common, ...own }, file.path, true)
  }
  const own = {
    ...{ model_type: 'nanbeige', architectures: ['NanbeigeForCausalLM'], num_loops: loops, skip_loop_final_norm: skips },
    attention_bias: shapes.has('blk.0.attn_q.bias') || shapes.has(`blk.0.${fusedQkv}.bias`),
    mlp_bias: shapes.has('blk.0.ffn_gate.bias'),
  }
  return parseConfig({ ...common, ...own }, file.path, true)
}

/** The shortest decimal number that rounds to this float32: 1e-6 instead of 9.99999997e-7. */
function decimal(value: number): number {
  for (let digits = 1; digits < 10; digits++) {
    const short = Number(value.toPrecision(digits))
    if (Math.fround(short) === value) return short
  }
  return value
}

const matrices = {
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
}
/** The published names of a layer's tensors, by family and by llama.cpp's name. */
const layerNames: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  ouro: {
    ...matrices,
    attn_norm: 'input_layernorm',
    post_attention_norm: 'input_layernorm_2',
    ffn_norm: 'post_attention_layernorm',
    post_ffw_norm: 'post_attention_layernorm_2',
  },
  nanbeige: { ...matrices, attn_norm: 'input_layernorm', ffn_norm: 'post_attention_layernorm' },
}
const names: Readonly<Record<string, string>> = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}

function publishedName(family: string, name: string): string | undefined {
  if (Object.hasOwn(names, name)) return names[name]
  const [, layer, part, suffix] = /^blk\.(\d{1,4})\.(\w+)\.(weight|bias)$/.exec(name) ?? []
  const own = layerNames[family]!
  return part !== undefined && Object.hasOwn(own, part) ? `model.layers.${Number(layer)}.${own[part]}.${suffix}` : undefined
}

/** Queries, keys and values of a layer in one tensor, which llama.cpp also reads. */
const fusedQkv = 'attn_qkv'
const fused = /^blk\.\d{1,4}\.attn_qkv\.(weight|bias)$/

/** Splits a tensor with rows of queries, keys and values into three. Every row consists of whole blocks. */
function unfuse(tensor: GgufTensor, config: LoopLMConfig, operation: string): GgufTensor[] {
  if (!fused.test(tensor.name)) return [tensor]
  const { name, type, shape } = tensor
  const keyRows = config.num_key_value_heads * config.head_dim
  const parts: [string, number][] = [
    ['attn_q', config.num_attention_heads * config.head_dim],
    ['attn_k', keyRows],
    ['attn_v', keyRows],
  ]
  const rows = parts.reduce((sum, [, count]) => sum + count, 0)
  const rowBytes = ggufBytes(type, shape.length === 1 ? 1 : shape.at(-1)!)
  if (shape[0] !== rows || !Number.isInteger(rowBytes)) {
    const problem = `tensor ${JSON.stringify(name)} has the shape [${shape.join(', ')}] and the type ${type}`
    const message = `${tensor.path}: ${problem}; queries, keys and values have ${rows} rows of whole blocks`
    throw new LoopLMError('INVALID_FILE', message, { operation })
  }
  let { offset } = tensor
  return parts.map(([part, count]) => {
    const own = { ...tensor, name: name.replace(fusedQkv, part), shape: [count, ...shape.slice(1)], offset }
    offset += count * rowBytes
    return own
  })
}

type NamedTensor = NativeTensorFile['tensors'][number] & { path: string }

/**
 * The tensors under their published names. llama.cpp rotates neighbouring dimensions of queries and keys, so their rows are
 * interleaved.
 */
function nameTensors({ file, family, operation }: Keys, config: LoopLMConfig): NamedTensor[] {
  let elements = 0
  const stored = file.tensors.flatMap((tensor) => unfuse(tensor, config, operation))
  const tensors = stored.map(({ name, ...tensor }) => {
    const published = publishedName(family, name)
    if (published === undefined) {
      const message = `${tensor.path}: tensor ${JSON.stringify(name)} is unknown in models of family ${family}`
      throw new LoopLMError('UNSUPPORTED', message, { operation })
    }
    elements += tensor.shape.reduce((product, n) => product * n, 1)
    return { ...tensor, name: published, headRows: /\.[qk]_proj\./.test(published) ? config.head_dim : 0 }
  })
  const parameters = parameterCount(architectureOf(config))
  if (elements >= parameters) return tensors // a small file cannot make us allocate a large model
  const message = `${file.path}: ${elements} values cannot be the ${parameters} parameters that its keys describe (is it cut short?)`
  throw new LoopLMError('INVALID_FILE', message, { operation })
}

function byFile(tensors: readonly NamedTensor[]): NativeTensorFile[] {
  const files = new Map<string, NamedTensor[]>()
  for (const tensor of tensors) files.set(tensor.path, [...(files.get(tensor.path) ?? []), tensor])
  return [...files].map(([path, own]) => ({ path, tensors: own }))
}

/** The engine's quantization that holds the blocks of all layers exactly: 8 bits for Q8_0, 4 bits for Q4_0, in groups of 32. */
function keptQuantization({ tensors }: GgufFile): Quantization | undefined {
  const [type, ...others] = new Set(
    tensors.filter(({ name, shape }) => name.startsWith('blk.') && shape.length > 1).map((tensor) => tensor.type),
  )
  if (others.length > 0 || (type !== 'Q8_0' && type !== 'Q4_0')) return undefined
  const head = tensors.find(({ name }) => name === 'output.weight') ?? tensors.find(({ name }) => name === 'token_embd.weight')
  return { bits: type === 'Q8_0' ? 8 : 4, groupSize: 32, ...(head?.type === type ? {} : { head: false }) }
}
