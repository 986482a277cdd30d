import { findFolder, readCheckpoint } from '../model/checkpoint.js'
import { findGguf, readGgufModel } from '../model/gguf.js'

/** Reads everything but the weights of a checkpoint folder, a GGUF file or a downloaded model. */
export async function readModelFiles(model: string, operation: string) {
  const folder = await findFolder(model, {}, operation)
  const file = await findGguf(folder, operation)
  const read = file === undefined ? await readCheckpoint(folder, operation) : await readGgufModel(file, operation)
  return { ...read, path: file ?? folder, types: 'types' in read ? read.types : undefined }
}
