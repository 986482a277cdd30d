import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type FolderFiles, listChecksums } from '../files/folder-files.js'
import { jsonText } from '../files/write.js'
import { writeFolder } from '../files/write-folder.js'
import { call, type NativeModel, native, type Quantization } from '../native.js'
import { type Adapter, adapterConfig } from './adapter.js'
import type { LoopLMConfig } from './architectures/family.js'
import { configJson } from './checkpoint.js'
import type { GenerationConfig } from './special-tokens.js'
import type { ModelDType } from './types.js'

const fileDTypes = { float32: 'F32', bfloat16: 'BF16', float64: 'F64' } as const

/** The content of a checkpoint folder besides the weights. */
interface Described {
  config: LoopLMConfig
  generation: GenerationConfig
  /** Files of the model's Python code. */
  code: ReadonlyMap<string, Uint8Array>
  /** Files of the tokenizer. undefined if there is none. */
  tokenizer: readonly [name: string, text: string][] | undefined
  quantization: Quantization | undefined
}

/**
 * Writes a checkpoint folder.
 * @param dequantize write the plain values of quantized matrices
 */
export async function saveModel(
  handle: NativeModel,
  folder: string,
  { config, generation, code, tokenizer, quantization }: Described,
  { dtype, dequantize }: { dtype: ModelDType; dequantize: boolean },
  operation: string,
): Promise<void> {
  const { bos_token_id, eos_token_id } = config
  const files: FolderFiles = new Map<string, string | Uint8Array>([
    ['config.json', jsonText(configJson(config, dtype, code, dequantize ? undefined : quantization))],
    ['generation_config.json', jsonText({ bos_token_id, eos_token_id, ...generation })],
    ...code,
    ...(tokenizer ?? []),
  ])
  const stale = await writeFolder(folder, 'model', operation, async (temporary) => {
    const weights = join(temporary, 'model.safetensors')
    await call(operation, () => native().modelSave(handle, weights, fileDTypes[dtype], dequantize, listChecksums(files)))
    await writeFiles(temporary, files)
  })
  if (tokenizer !== undefined || !stale.includes('tokenizer.json')) return
  const message = `the model has no tokenizer, so the tokenizer files of the model that was in ${folder} were removed`
  process.emitWarning(`${operation}: ${message}; set model.tokenizer, or pass tokenizer`, { type: 'LoopLMWarning' })
}

/** Writes the folder of an adapter, as PEFT does. */
export async function saveAdapter(
  handle: NativeModel,
  folder: string,
  adapter: Adapter,
  dtype: ModelDType,
  operation: string,
): Promise<void> {
  const files: FolderFiles = new Map([['adapter_config.json', jsonText(adapterConfig(adapter))]])
  await writeFolder(folder, 'adapter', operation, async (temporary) => {
    const weights = join(temporary, 'adapter_model.safetensors')
    await call(operation, () => native().modelSaveAdapter(handle, weights, fileDTypes[dtype], listChecksums(files)))
    await writeFiles(temporary, files)
  })
}

async function writeFiles(folder: string, files: FolderFiles): Promise<void> {
  for (const [name, content] of files) await writeFile(join(folder, name), content)
}
