// The files of an optimizer's state: one file, or one per process of a world.
import { readdir, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { fileError, LoopLMError } from '../errors.js'

const extension = '.safetensors'
const share = /^-(\d+)-of-(\d+)$/

/**
 * The file of one process, named like the shards of a large checkpoint.
 * @param rank counted from 0
 */
export function sharePath(path: string, rank: number, size: number): string {
  const number = (value: number) => String(value).padStart(5, '0')
  return `${stemOf(path)}-${number(rank + 1)}-of-${number(size)}${extension}`
}

/**
 * The files of the optimizer that was saved as `path`.
 *
 * @throws LoopLMError INVALID_FILE if some of its shares are missing
 */
export async function storedShares(path: string, operation: string): Promise<string[]> {
  const found = await sharesBeside(path, operation)
  const sizes = [...new Set(found.map(({ size }) => size))]
  if (sizes.length === 0) return [path]
  const complete = sizes.filter((size) => found.filter((one) => one.size === size).length === size)
  if (complete.length === 1) return found.filter(({ size }) => size === complete[0]).map(({ file }) => file)
  const names = found.map(({ file }) => basename(file)).join(', ')
  const problem = complete.length === 0 ? 'some of the shares are missing' : 'there are several sets of shares'
  throw new LoopLMError('INVALID_FILE', `${path}: ${problem}; there are ${names}`, { operation })
}

/** Removes files of an earlier save by another number of processes. */
export async function removeOtherShares(path: string, size: number, operation: string): Promise<void> {
  const others = (await sharesBeside(path, operation)).filter((one) => size === 1 || one.size !== size)
  for (const file of [...others.map(({ file }) => file), ...(size === 1 ? [] : [path])]) await rm(file, { force: true })
}

/** The share files next to `path`, in the order of the ranks. */
async function sharesBeside(path: string, operation: string): Promise<{ file: string; size: number }[]> {
  const folder = dirname(path)
  const names = await readdir(folder).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT' || cause.code === 'ENOTDIR') return [] // reading the file itself reports the error
    throw fileError(cause, 'read', folder, operation)
  })
  const stem = basename(stemOf(path))
  return names.sort().flatMap((name) => {
    if (!name.startsWith(stem) || !name.endsWith(extension)) return []
    const [, , size] = share.exec(name.slice(stem.length, -extension.length)) ?? []
    return size === undefined ? [] : [{ file: join(folder, name), size: Number(size) }]
  })
}

function stemOf(path: string): string {
  return path.endsWith(extension) ? path.slice(0, -extension.length) : path
}
