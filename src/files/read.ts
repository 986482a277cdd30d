import { constants } from 'node:fs'
import { open, stat } from 'node:fs/promises'
import { fileError, LoopLMError } from '../errors.js'
import { isDeeper, maxJsonDepth } from '../validation/json-value.js'

/*
 * Files of a checkpoint, a tokenizer or a run's folder may come from anywhere. A pipe in their place must not block the reader,
 * and parsed JSON takes up to 17 times the bytes of its file.
 */

/** The largest size of such a file, in bytes. */
export const maxFileBytes = {
  /** A configuration; published ones have some kilobytes. */
  config: 2 ** 20,
  /** Lists whose length grows with the model: the index of shards, added tokens. */
  list: 16 * 2 ** 20,
  tokenizer: 64 * 2 ** 20,
} as const

const decoder = new TextDecoder('utf-8', { fatal: true })

/**
 * The text of a whole UTF-8 file, without its byte order mark.
 *
 * @param name the file, as the error names it
 * @throws LoopLMError INVALID_FILE
 */
export function textOf(bytes: Uint8Array, name: string, operation?: string): string {
  try {
    return decoder.decode(bytes)
  } catch (cause) {
    throw new LoopLMError('INVALID_FILE', `${name} is not valid UTF-8; save the file as UTF-8`, { operation, cause })
  }
}

/**
 * The text of a regular file of bounded size, without a byte order mark.
 *
 * @throws LoopLMError NOT_FOUND, or INVALID_FILE naming the file and why it cannot be read
 */
export async function readText(path: string, maxBytes: number, operation?: string): Promise<string> {
  try {
    // without O_NONBLOCK, opening a pipe would wait for a writer
    const file = await open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0))
    try {
      const found = await file.stat()
      if (!found.isFile() || found.size > maxBytes) {
        const got = found.isFile() ? `, it has ${found.size}` : ''
        throw new LoopLMError('INVALID_FILE', `${path} must be a regular file of at most ${maxBytes} bytes${got}`, { operation })
      }
      return textOf(await file.readFile(), path, operation)
    } finally {
      await file.close()
    }
  } catch (cause) {
    if ((cause as { code?: string }).code !== 'ENOENT') throw fileError(cause, 'read', path, operation)
    throw new LoopLMError('NOT_FOUND', `no file ${path}`, { operation, cause })
  }
}

/**
 * The size of a regular file, in bytes.
 *
 * @throws LoopLMError NOT_FOUND, or INVALID_FILE for a folder or a pipe
 */
export async function fileBytes(path: string, operation: string): Promise<number> {
  const found = await stat(path).catch(() => undefined)
  if (found === undefined) throw new LoopLMError('NOT_FOUND', `no file ${path}`, { operation })
  if (!found.isFile()) throw new LoopLMError('INVALID_FILE', `${path} is not a regular file`, { operation })
  return found.size
}

/**
 * The JSON of such a file.
 *
 * @throws LoopLMError NOT_FOUND, or INVALID_FILE naming the file and what is wrong with it
 */
export async function readJson(path: string, maxBytes: number, operation?: string): Promise<unknown> {
  const text = await readText(path, maxBytes, operation)
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new LoopLMError('INVALID_FILE', `${path} is not JSON: ${(cause as Error).message}`, { operation, cause })
  }
  if (!isDeeper(value, maxJsonDepth)) return value
  throw new LoopLMError('INVALID_FILE', `${path} is nested more than ${maxJsonDepth} deep`, { operation })
}
