import { basename, dirname, join } from 'node:path'
import { LoopLMError } from '../errors.js'
import { type GgufFile, readGguf } from './gguf.js'

/*
 * A GGUF model in several files, as llama-gguf-split writes them: NAME-00001-of-00003.gguf and so on. Each is a GGUF file with
 * some of the tensors. Every part has three keys: its index (split.no, from 0), the number of parts (split.count), and the
 * total number of tensors (split.tensors.count). The first part has all other keys, and may have no tensors.
 */

/** The part of a model that a file name denotes. */
export interface PartName {
  /** The name without the number, the count and `.gguf`. */
  model: string
  /** Counted from 1. */
  number: number
  count: number
}

/** Parses a file name. undefined if it is not the name of a part. */
export function partName(file: string): PartName | undefined {
  const [, model, number, count] = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/.exec(file) ?? []
  return model === undefined ? undefined : { model, number: Number(number), count: Number(count) }
}

const nameOf = (model: string, number: number, count: number) =>
  `${model}-${String(number).padStart(5, '0')}-of-${String(count).padStart(5, '0')}.gguf`

/**
 * Reads the headers of a GGUF model: of one file, or of all parts if the file is one of several.
 *
 * @returns the path and the metadata of the first part, and the tensors of all
 * @throws LoopLMError as {@link readGguf}; NOT_FOUND naming a missing part
 */
export async function readGgufParts(path: string, operation: string): Promise<GgufFile> {
  const file = await readGguf(path, operation)
  const own = splitOf(file, operation)
  if (own.count <= 1) return file
  const name = partName(basename(path))
  const invalid = (at: string, problem: string) => new LoopLMError('INVALID_FILE', `${at}: ${problem}`, { operation })
  if (name?.number !== own.number || name.count !== own.count) {
    const wanted = nameOf('NAME', own.number, own.count)
    throw invalid(path, `its keys say that it is part ${own.number} of ${own.count}. Give it a name of the form ${wanted}.`)
  }
  const parts: GgufFile[] = []
  for (let number = 1; number <= own.count; number++) {
    const at = join(dirname(path), nameOf(name.model, number, own.count))
    const part = number === own.number ? file : await readPart(at, path, number, own.count, operation)
    const split = splitOf(part, operation)
    if (split.number !== number || split.count !== own.count || split.tensors !== own.tensors) {
      const says = `part ${split.number} of ${split.count}, with ${split.tensors} tensors in all`
      throw invalid(at, `its keys say ${says}, those of ${path} ${own.count} parts with ${own.tensors}. Fetch all parts anew.`)
    }
    parts.push(part)
  }
  const tensors = parts.flatMap((part) => part.tensors)
  const seen = new Map<string, string>()
  for (const tensor of tensors) {
    const other = seen.get(tensor.name)
    if (other !== undefined) throw invalid(tensor.path, `tensor ${JSON.stringify(tensor.name)} is also in ${other}`)
    seen.set(tensor.name, tensor.path)
  }
  if (own.tensors !== undefined && tensors.length !== own.tensors)
    throw invalid(path, `the ${own.count} parts have ${tensors.length} tensors, their keys say ${own.tensors}. Fetch them anew.`)
  return { ...parts[0]!, tensors }
}

async function readPart(at: string, asked: string, number: number, count: number, operation: string): Promise<GgufFile> {
  return readGguf(at, operation).catch((cause) => {
    if (!(cause instanceof LoopLMError) || cause.code !== 'NOT_FOUND') throw cause
    const message = `${asked} is one of ${count} parts, and part ${number} is missing: put ${at} beside it`
    throw new LoopLMError('NOT_FOUND', message, { operation, cause })
  })
}

/** Reads the split keys. `number` counts from 1; `tensors` is the total of all parts. */
function splitOf(
  { path, metadata }: GgufFile,
  operation: string,
): { number: number; count: number; tensors: number | undefined } {
  const read = (key: string): number | undefined => {
    const value = metadata.get(key)
    if (value === undefined || (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0)) return value
    const message = `${path}: key "${key}" must be a whole number, got ${JSON.stringify(value).slice(0, 100)}`
    throw new LoopLMError('INVALID_FILE', message, { operation })
  }
  return { number: (read('split.no') ?? 0) + 1, count: read('split.count') ?? 1, tensors: read('split.tensors.count') }
}
