import { open, readFile, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { download, findDownloaded } from '../data/download.js'
import { isRepository } from '../data/hub.js'
import { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import { fileBytes, maxFileBytes, readJson } from '../files/read.js'
import { exists, onDisk } from '../files/write.js'
import { interruptedSave } from '../files/write-folder.js'
import { parameterCount } from '../native/architecture.js'
import type { Quantization } from '../native.js'
import { familyOf } from './architectures/families.js'
import { architectureOf, type LoopLMConfig, parseConfig, parseQuantization } from './config.js'
import type { ModelDType, PretrainedOptions } from './types.js'

/** The parts of a Hugging Face checkpoint folder. */
export interface Checkpoint {
  config: LoopLMConfig
  /** Paths of the safetensors files. */
  weights: string[]
  /** Set if the folder was saved quantized. */
  quantization: Quantization | undefined
  /** The content of generation_config.json, if the file exists. */
  generation: Record<string, unknown>
  /** The Python files that `auto_map` of config.json names, by name. They are not parsed, only saved again. */
  code: ReadonlyMap<string, Uint8Array>
  tokenizer: Tokenizer | undefined
}

/** Finds the checkpoint's folder: the given path, a fresh download if `download` is true, or an earlier download. */
export async function findFolder(name: string, options: PretrainedOptions, operation: string): Promise<string> {
  if (await exists(name, operation)) return name
  const { revision, cacheDir } = options
  if (options.download === true) return download(name, { revision, cacheDir })
  if (isRepository(name)) return findDownloaded(name, options, operation)
  const message = `no folder or file ${name}. Pass a checkpoint folder, a GGUF file, or a model's name on the Hub (org/name).`
  throw new LoopLMError('NOT_FOUND', message, { operation })
}

/** Reads everything but the weights. */
export async function readCheckpoint(folder: string, operation: string): Promise<Checkpoint> {
  const configPath = join(folder, 'config.json')
  if (!(await exists(configPath, operation))) {
    const interrupted = await interruptedSave(folder)
    if (interrupted !== undefined) throw new LoopLMError('INVALID_FILE', interrupted, { operation })
    if (await exists(join(folder, 'adapter_config.json'))) {
      const message = `${folder} holds an adapter: load the model that it belongs to, then the adapter with loadAdapter (--adapter)`
      throw new LoopLMError('INVALID_FILE', message, { operation })
    }
    const inside = (await exists(join(folder, 'checkpoints'))) ? `; those of a run are in ${join(folder, 'checkpoints')}` : ''
    throw new LoopLMError('NOT_FOUND', `no file ${configPath}: ${folder} is not a checkpoint folder${inside}`, { operation })
  }
  const configFile = await readObject(configPath, operation)
  const byTensors = familyOf(configFile) !== undefined // only the tensors tell the layout apart
  const tensors = byTensors ? await tensorNames(await findWeights(folder, operation), operation) : []
  const config = parseConfig(configFile, configPath, true, tensors)
  const quantization = parseQuantization(configFile, config, configPath)
  const weights = await findWeights(folder, operation)
  await checkSize(weights, config, quantization, operation)
  const generationPath = join(folder, 'generation_config.json')
  const generation = (await exists(generationPath, operation)) ? await readObject(generationPath, operation) : {}
  checkEndTokens(generation, generationPath, config, operation)
  const tokenizer = (await exists(join(folder, 'tokenizer.json'), operation)) ? await Tokenizer.fromPretrained(folder) : undefined
  if (tokenizer !== undefined && tokenizer.vocabSize > config.vocab_size) {
    const message = `${join(folder, 'tokenizer.json')}: field "model.vocab" has ${tokenizer.vocabSize} ids, vocab_size of config.json is ${config.vocab_size}`
    throw new LoopLMError('INVALID_FILE', message, { operation })
  }
  return { config, weights, quantization, generation, code: await readCode(folder, config), tokenizer }
}

/** Where transformers finds the model's code on the Hub: no version of transformers includes the model. */
const published = 'ByteDance/Ouro-1.4B--'
const publishedMap = {
  AutoConfig: `${published}configuration_ouro.OuroConfig`,
  AutoModel: `${published}modeling_ouro.OuroModel`,
  AutoModelForCausalLM: `${published}modeling_ouro.OuroForCausalLM`,
}
const maxCodeBytes = 2 ** 20

/** The entries of an auto_map that name a file in the folder itself, such as `modeling_ouro.OuroModel`. */
function localModules(config: LoopLMConfig): [field: string, file: string][] {
  const map = config.auto_map
  if (typeof map !== 'object' || map === null) return []
  return Object.entries(map).flatMap(([field, name]) => {
    const module = /^(\w+)\.\w+$/.exec(String(name))?.[1]
    return module === undefined ? [] : [[field, `${module}.py`] as [string, string]]
  })
}

async function readCode(folder: string, config: LoopLMConfig): Promise<ReadonlyMap<string, Uint8Array>> {
  const code = new Map<string, Uint8Array>()
  for (const file of new Set(localModules(config).map(([, file]) => file))) {
    const found = await stat(join(folder, file)).catch(() => undefined)
    if (found?.isFile() && found.size <= maxCodeBytes)
      code.set(file, await onDisk('read', join(folder, file), readFile(join(folder, file))))
  }
  return code
}

/**
 * An auto_map that lets transformers find the model's code: next to the weights if it is there, otherwise in the published
 * repository.
 */
function autoMap(config: LoopLMConfig, code: ReadonlyMap<string, Uint8Array>): Record<string, unknown> {
  const map = config.auto_map
  if (typeof map !== 'object' || map === null) return publishedMap
  const missing = localModules(config).filter(([, file]) => !code.has(file))
  const own = map as Record<string, unknown>
  return { ...own, ...Object.fromEntries(missing.map(([field]) => [field, `${published}${own[field]}`])) }
}

/** model.safetensors, or the shards that model.safetensors.index.json names. */
async function findWeights(folder: string, operation: string): Promise<string[]> {
  const single = join(folder, 'model.safetensors')
  if (await exists(single, operation)) return [single]
  const indexPath = join(folder, 'model.safetensors.index.json')
  if (!(await exists(indexPath, operation))) {
    const message = `${folder} has neither model.safetensors nor model.safetensors.index.json. Add its weights, or download it again.`
    throw new LoopLMError('NOT_FOUND', message, { operation })
  }
  const map = (await readObject(indexPath, operation, maxFileBytes.list)).weight_map
  const invalid = (problem: string) =>
    new LoopLMError('INVALID_FILE', `${indexPath}: field "weight_map" ${problem}`, { operation })
  if (typeof map !== 'object' || map === null) throw invalid('must be an object')
  const names = [...new Set(Object.values(map))]
  if (names.length === 0) throw invalid('is empty')
  for (const name of names) {
    const plain = typeof name === 'string' && name === basename(name) && name.endsWith('.safetensors') && !name.includes('\\')
    if (!plain) throw invalid(`names ${JSON.stringify(name)}, which is not a .safetensors file of the same folder`)
  }
  return names.map((name) => join(folder, name))
}

/**
 * Bounds the allocation by the file's size, so that a small file cannot make us allocate a large model: a parameter takes at
 * least two bytes in the file, or its quantized bits.
 */
async function checkSize(
  weights: readonly string[],
  config: LoopLMConfig,
  quantization: Quantization | undefined,
  operation: string,
): Promise<void> {
  let bytes = 0
  for (const path of weights) bytes += await fileBytes(path, operation)
  const parameters = parameterCount(architectureOf(config))
  if (bytes >= (parameters * (quantization?.bits ?? 16)) / 8) return
  const message = `${weights.join(', ')}: ${bytes} bytes cannot hold the ${parameters} parameters that config.json describes`
  throw new LoopLMError('INVALID_FILE', message, { operation })
}

function checkEndTokens(generation: Record<string, unknown>, path: string, config: LoopLMConfig, operation: string): void {
  const ids = [generation.eos_token_id ?? []].flat()
  const bad = ids.find((id) => !Number.isInteger(id) || (id as number) < 0 || (id as number) >= config.vocab_size)
  if (bad === undefined) return
  const message = `${path}: field "eos_token_id" holds ${JSON.stringify(bad)}; token ids are integers from 0 to ${config.vocab_size - 1}`
  throw new LoopLMError('INVALID_FILE', message, { operation })
}

/**
 * The content of config.json for a model that looplm saves. Fields are sorted by name as transformers sorts them, so loading
 * and saving gives the same file. transformers 4 calls the dtype torch_dtype, later versions call it dtype.
 */
export function configJson(
  config: LoopLMConfig,
  dtype: ModelDType,
  code: ReadonlyMap<string, Uint8Array>,
  quantization?: Quantization | undefined,
): Record<string, unknown> {
  const dtypes = 'dtype' in config ? { dtype, torch_dtype: dtype } : { torch_dtype: dtype }
  const family = familyOf(config)
  const quantized =
    quantization === undefined ? {} : { quantization_config: { quant_method: 'looplm', ...savedQuantization(quantization) } }
  if (family !== undefined) {
    const published = Object.entries(config).filter(([field]) => !family.aliases.includes(field))
    return sorted({ ...Object.fromEntries(published), ...dtypes, ...quantized })
  }
  const model = { architectures: ['OuroForCausalLM'], model_type: 'ouro', hidden_act: 'silu', rope_scaling: null }
  const unused = { attention_dropout: 0, use_sliding_window: false, use_cache: true }
  const fields = { ...unused, ...config, ...model, auto_map: autoMap(config, code), ...dtypes, ...quantized }
  return sorted(fields)
}

const savedQuantization = ({ bits, groupSize, asymmetric, head }: Quantization) => ({
  ...{ bits, group_size: groupSize },
  ...(asymmetric ? { asymmetric } : {}),
  ...(head === false ? { modules_to_not_convert: ['lm_head'] } : {}),
})

const sorted = (fields: Record<string, unknown>) =>
  Object.fromEntries(Object.entries(fields).sort(([a], [b]) => (a < b ? -1 : 1)))

/**
 * The tensor names of safetensors files. The engine checks the files when it loads them.
 * @throws LoopLMError INVALID_FILE
 */
async function tensorNames(weights: readonly string[], operation: string): Promise<string[]> {
  const ofFile = async (path: string): Promise<string[]> => {
    const file = await open(path)
    try {
      const { buffer: length } = await file.read(Buffer.alloc(8), 0, 8, 0)
      const bytes = Number(length.readBigUInt64LE())
      if (bytes > maxFileBytes.tokenizer) return [] // the engine reports what is wrong
      const { buffer } = await file.read(Buffer.alloc(bytes), 0, bytes, 8)
      return Object.keys(JSON.parse(buffer.toString('utf8')))
    } finally {
      await file.close()
    }
  }
  const names = await Promise.all(weights.map((path) => onDisk('read', path, ofFile(path), operation)))
  return names.flat()
}

/**
 * Reads a JSON object from a file of bounded size.
 * @throws LoopLMError NOT_FOUND, INVALID_FILE
 */
export async function readObject(
  path: string,
  operation: string,
  maxBytes: number = maxFileBytes.config,
): Promise<Record<string, unknown>> {
  const value = await readJson(path, maxBytes, operation).catch(async (cause: LoopLMError) => {
    const interrupted = cause.code === 'NOT_FOUND' ? await interruptedSave(dirname(path)) : undefined
    throw interrupted === undefined ? cause : new LoopLMError('INVALID_FILE', interrupted, { operation, cause })
  })
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  throw new LoopLMError('INVALID_FILE', `${path} must hold a JSON object`, { operation })
}
