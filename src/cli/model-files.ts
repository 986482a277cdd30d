import { open } from 'node:fs/promises'
import { fileError, LoopLMError } from '../errors.js'
import { findFolder, readCheckpoint } from '../model/checkpoint.js'
import { findGguf, readGgufModel } from '../model/gguf.js'

/** Reads everything but the weights of a checkpoint folder, a GGUF file or a downloaded model. */
export async function readModelFiles(model: string, operation: string) {
  const folder = await findFolder(model, {}, operation)
  const file = await findGguf(folder, operation)
  if (file !== undefined) return { ...(await readGgufModel(file, operation)), path: file }
  const { weights: safetensors, ...read } = await readCheckpoint(folder, operation)
  return { ...read, path: folder, safetensors, types: undefined }
}

/** The dtype in which a model is loaded by default: bfloat16 if its files hold nothing else. The engine applies the same rule. */
export async function storedDType(
  read: Awaited<ReturnType<typeof readModelFiles>>,
  operation: string,
): Promise<'float32' | 'bfloat16'> {
  const types =
    'safetensors' in read
      ? (await Promise.all(read.safetensors.map((path) => floatTypes(path, operation)))).flat()
      : [...read.types.keys()]
  return types.length > 0 && types.every((type) => type === 'BF16') ? 'bfloat16' : 'float32'
}

/** The types of the values of a safetensors file, without codes and their scales. */
async function floatTypes(path: string, operation: string): Promise<string[]> {
  const file = await open(path).catch((cause) => {
    throw fileError(cause, 'read', path, operation)
  })
  try {
    const length = Number((await file.read(Buffer.alloc(8), 0, 8, 0)).buffer.readBigUInt64LE())
    const { size } = await file.stat()
    if (length > size) throw new Error('it is shorter than its header')
    const { buffer } = await file.read(Buffer.alloc(length), 0, length, 8)
    const tensors = JSON.parse(buffer.toString('utf8')) as Record<string, { dtype?: string }>
    const isScale = (name: string) => name.endsWith('_scale') && name.slice(0, -'_scale'.length) in tensors
    return Object.entries(tensors).flatMap(([name, { dtype }]) =>
      dtype !== undefined && /^B?F\d/.test(dtype) && (dtype === 'BF16' || !isScale(name)) ? [dtype] : [],
    )
  } catch (cause) {
    const message = `${path} is not a safetensors file: ${(cause as Error).message}`
    throw new LoopLMError('INVALID_FILE', message, { operation, cause })
  } finally {
    await file.close()
  }
}
