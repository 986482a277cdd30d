import { createHash, type Hash, randomUUID } from 'node:crypto'
import { closeSync, createReadStream, fsync, open, openSync, read, renameSync, write } from 'node:fs'
import { mkdir, mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { extname, join } from 'node:path'
import { promisify } from 'node:util'
import { z } from 'zod'
import { fileError, LoopLMError } from '../errors.js'
import { maxFileBytes, readJson } from '../files/read.js'
import { onDisk, replaceFile } from '../files/write.js'
import { checkNumber, checkOptions, checkText, type Keys } from '../validation/arguments.js'
import { listFiles } from './list-files.js'
import { DatasetSampler } from './sampler.js'
import { isText, readText, textExtensions } from './text-formats.js'
import type { Tokenizer } from './tokenizer.js'

/*
 * Text is tokenized once, into a file of token ids. Memory holds one piece of text and one block, however large the corpus is.
 * The documents are concatenated, each with an end token. Blocks of `contextLength` tokens overlap by one token, so that a pass
 * over them predicts every token but the first exactly once.
 */

/** How a {@link Corpus} is opened. */
export interface CorpusOptions {
  /** Tokens per block, at least 2. */
  contextLength: number
  /** Fraction of the blocks that is held out, spread evenly. Defaults to 0: none. */
  heldOutShare?: number | undefined
  /** Seed of the order of the training blocks. Defaults to 0. */
  seed?: number | undefined
  /** Folder that keeps the token ids for later use. Without it they are in an unnamed temporary file. */
  cache?: string | undefined
  /** Token that ends each document; null for none. Defaults to the tokenizer's end token. */
  endToken?: number | null | undefined
  /** Aborts the preparation with code ABORTED. */
  signal?: AbortSignal | undefined
}

const corpusOptions = {
  contextLength: true,
  heldOutShare: true,
  seed: true,
  cache: true,
  endToken: true,
  signal: true,
} satisfies Keys<CorpusOptions>

const bufferedTokens = 2 ** 16

const cacheSchema = z.object({
  format: z.literal(1),
  fingerprint: z.string(),
  tokens: z.int().min(0),
  bytesPerToken: z.union([z.literal(2), z.literal(4)]),
  /** checksum of tokens.bin */
  sha256: z.string(),
})

const openFile = promisify(open)
const readAt = promisify(read)
const writeAt = promisify(write)
const syncFile = promisify(fsync)
// closes the files of corpora that were garbage-collected before close()
const forgotten = new FinalizationRegistry<number>((file) => closeSync(file))

/**
 * Files of text as training data.
 *
 * @example
 * ```ts
 * const corpus = await Corpus.open('texts', tokenizer, { contextLength: 256, heldOutShare: 0.05 })
 * const batch = await corpus.take(0, 32) // the first 32 blocks in the order of the seed
 * corpus.close()
 * ```
 */
export class Corpus {
  /** Equal if files and tokenizer are equal. */
  readonly fingerprint: string
  /** Total number of tokens. */
  readonly tokens: number
  /** Files in the order in which they are read. */
  readonly files: readonly string[]
  readonly #file: number
  readonly #bytesPerToken: 2 | 4
  readonly #contextLength: number
  readonly #seed: number
  readonly #training: readonly number[]
  readonly #heldOut: readonly number[]
  #sampler: DatasetSampler<number> | undefined
  #closed = false

  private constructor(file: number, stored: Stored, files: readonly string[], options: CorpusOptions) {
    this.#file = file
    forgotten.register(this, file, this)
    this.fingerprint = stored.fingerprint
    this.tokens = stored.tokens
    this.files = files
    this.#bytesPerToken = stored.bytesPerToken
    this.#contextLength = options.contextLength
    this.#seed = options.seed ?? 0
    const share = options.heldOutShare ?? 0
    const isHeldOut = (block: number) => Math.floor((block + 1) * share + 1e-9) > Math.floor(block * share + 1e-9)
    const blocks = Array.from({ length: Math.ceil((stored.tokens - 1) / (options.contextLength - 1)) }, (_, block) => block)
    this.#training = blocks.filter((block) => !isHeldOut(block))
    this.#heldOut = blocks.filter(isHeldOut)
  }

  /**
   * Reads .txt and .md files (each a document) and .jsonl files (each line an object with the document as `text`).
   *
   * @param paths files and folders; folders are searched recursively, in the order of the names; symbolic links to files are
   *   followed
   * @param tokenizer encodes the text; its end token ends each document, unless `endToken` is set
   * @throws LoopLMError NOT_FOUND, INVALID_FILE naming file and line, INVALID_ARGUMENT naming the option, or file and line of
   *   text that the tokenizer rejects, ABORTED
   */
  static async open(paths: string | readonly string[], tokenizer: Tokenizer, options: CorpusOptions): Promise<Corpus> {
    const given = { ...options }
    checkOptions({ ...given, endToken: undefined }, corpusOptions, operation) // whose null means none
    const { cache, signal, endToken = tokenizer.eosTokenId ?? null } = given
    checkNumber(given.contextLength, 'contextLength', { min: 2, integer: true }, operation)
    checkNumber(given.heldOutShare ?? 0, 'heldOutShare', { min: 0, max: 1 }, operation)
    checkNumber(given.seed ?? 0, 'seed', { min: 0, below: 2 ** 53, integer: true }, operation)
    checkNumber(endToken ?? 0, 'endToken', { min: 0, max: 2 ** 31 - 1, integer: true }, operation)
    if (cache !== undefined) checkText(cache, 'cache', 'the path of a folder', operation)
    const files = await findFiles([paths].flat())
    const fingerprint = await fingerprintOf(files, tokenizer, endToken, signal)
    const cached = cache === undefined ? undefined : await openCached(cache, fingerprint, signal)
    const { file, stored } = cached ?? (await tokenise(files, tokenizer, endToken, fingerprint, cache, signal))
    if (stored.tokens < 2) {
      closeSync(file)
      const message = `${[paths].flat().join(', ')}: ${stored.tokens} tokens of text; at least 2 are needed`
      throw new LoopLMError('INVALID_FILE', message, { operation })
    }
    return new Corpus(file, stored, files, given)
  }

  /** Number of training blocks per pass, without the held-out ones. */
  get blocks(): number {
    return this.#training.length
  }

  /** Number of held-out blocks. */
  get heldOutBlocks(): number {
    return this.#heldOut.length
  }

  /**
   * Training blocks, pass after pass. The order only depends on the seed and the pass.
   *
   * @param start how many were taken before
   */
  async take(start: number, count: number): Promise<Int32Array[]> {
    if (this.#sampler?.state.index !== start) {
      this.#sampler = new DatasetSampler(this.#training, { seed: this.#seed, index: start })
    }
    return Promise.all(this.#sampler.take(count).map((block) => this.#read(block)))
  }

  /** Up to `count` held-out blocks, spread over the corpus. They are always the same. */
  async heldOut(count: number): Promise<Int32Array[]> {
    const all = this.#heldOut
    const size = Math.min(count, all.length)
    return Promise.all(Array.from({ length: size }, (_, i) => this.#read(all[Math.floor((i * all.length) / size)]!)))
  }

  /** Closes the file of token ids. An unnamed file is deleted. Later calls reject with DISPOSED. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    forgotten.unregister(this)
    closeSync(this.#file)
  }

  #checkOpen(): void {
    if (this.#closed) throw new LoopLMError('DISPOSED', 'the corpus was closed; open it again', { operation })
  }

  async #read(block: number): Promise<Int32Array> {
    const begin = block * (this.#contextLength - 1)
    const length = Math.min(this.#contextLength, this.tokens - begin)
    const width = this.#bytesPerToken
    const bytes = new Uint8Array(length * width)
    this.#checkOpen()
    for (let done = 0; done < bytes.length; ) {
      const reading = readAt(this.#file, bytes, done, bytes.length - done, begin * width + done)
      const { bytesRead } = await reading.finally(() => this.#checkOpen()) // once closed, the number may be another file's
      if (bytesRead === 0) throw new LoopLMError('INVALID_FILE', 'the file of token ids was cut short', { operation })
      done += bytesRead
    }
    return Int32Array.from(width === 2 ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer))
  }
}

const operation = 'corpus'

interface Stored {
  fingerprint: string
  tokens: number
  bytesPerToken: 2 | 4
}

/** The files to read, without duplicates. */
async function findFiles(paths: readonly string[]): Promise<string[]> {
  const files: string[] = []
  for (const path of paths) {
    const found = await onDisk('read', path, stat(path), operation)
    if (!found.isDirectory()) {
      if (!isText(path) || !found.isFile()) {
        throw new LoopLMError('INVALID_FILE', `${path}: a corpus is made of ${textExtensions.join(', ')} files`, { operation })
      }
      files.push(path)
      continue
    }
    const inside = await listFiles(path, isText, operation)
    if (inside.length === 0) {
      throw new LoopLMError('INVALID_FILE', `${path} holds no ${textExtensions.join(', ')} file`, { operation })
    }
    for (const file of inside) files.push(file)
  }
  return [...new Set(files)]
}

/** A hash of all content and of the tokenizer. Paths do not matter, so that a corpus can be moved. */
async function fingerprintOf(
  files: readonly string[],
  tokenizer: Tokenizer,
  endToken: number | null,
  signal: AbortSignal | undefined,
): Promise<string> {
  const hash = createHash('sha256').update(tokenizer.fingerprint)
  if (endToken !== (tokenizer.eosTokenId ?? null)) hash.update(`end ${endToken}`)
  for (const path of files) {
    const own = createHash('sha256').update(extname(path).toLowerCase())
    await hashFile(own, path, signal)
    hash.update(own.digest())
  }
  return hash.digest('hex').slice(0, 32)
}

/** Opens cached token ids, unless they belong to other text or have changed on the disk. */
async function openCached(
  folder: string,
  fingerprint: string,
  signal: AbortSignal | undefined,
): Promise<{ file: number; stored: Stored } | undefined> {
  const kept = await readJson(join(folder, 'corpus.json'), maxFileBytes.config, operation).catch(() => undefined)
  const parsed = cacheSchema.safeParse(kept)
  if (!parsed.success || parsed.data.fingerprint !== fingerprint) return undefined
  const path = join(folder, 'tokens.bin')
  const found = await stat(path).catch(() => undefined)
  if (!found?.isFile() || found.size !== parsed.data.tokens * parsed.data.bytesPerToken) return undefined
  const hash = createHash('sha256')
  const file = await onDisk('read', path, openFile(path, 'r'), operation)
  let isValid = false
  try {
    await hashFile(hash, path, signal, file) // not by its name, which another process may give to a new file
    isValid = hash.digest('hex') === parsed.data.sha256
  } finally {
    if (!isValid) closeSync(file)
  }
  return isValid ? { file, stored: parsed.data } : undefined
}

async function hashFile(hash: Hash, path: string, signal: AbortSignal | undefined, file?: number): Promise<void> {
  const opened = file === undefined ? {} : { fd: file, start: 0, autoClose: false }
  try {
    for await (const chunk of createReadStream(path, { highWaterMark: 2 ** 20, ...opened })) {
      throwIfAborted(signal)
      hash.update(chunk)
    }
  } catch (cause) {
    throw fileError(cause, 'read', path, operation)
  }
}

/** Writes the token ids. corpus.json is written last and marks them as complete. */
async function tokenise(
  files: readonly string[],
  tokenizer: Tokenizer,
  endToken: number | null,
  fingerprint: string,
  cache: string | undefined,
  signal: AbortSignal | undefined,
): Promise<{ file: number; stored: Stored }> {
  const folder = cache ?? (await onDisk('write', tmpdir(), mkdtemp(join(tmpdir(), 'looplm-corpus-')), operation))
  const path = join(folder, 'tokens.bin')
  const bytesPerToken = tokenizer.vocabSize <= 2 ** 16 ? 2 : 4
  const stored: Stored = { fingerprint, tokens: 0, bytesPerToken }
  const hash = createHash('sha256')
  let file: number | undefined
  try {
    await mkdir(folder, { recursive: true })
    await rm(join(folder, 'corpus.json'), { force: true })
    const fresh = `${path}.tmp-${randomUUID()}`
    file = openSync(fresh, 'wx+')
    renameSync(fresh, path) // a corpus that has the old file open keeps its tokens
    if (cache === undefined) await rm(folder, { recursive: true }) // an open file without a name is deleted when it is closed
    const buffer = bytesPerToken === 2 ? new Uint16Array(bufferedTokens) : new Uint32Array(bufferedTokens)
    let used = 0
    const flush = async () => {
      const bytes = new Uint8Array(buffer.buffer, 0, used * bytesPerToken)
      if (cache !== undefined) hash.update(bytes)
      for (let done = 0; done < bytes.length; ) done += (await writeAt(file!, bytes, done)).bytesWritten
      stored.tokens += used
      used = 0
    }
    for (const source of files) {
      for await (const ids of tokensOf(source, tokenizer, endToken)) {
        throwIfAborted(signal)
        for (let begin = 0; begin < ids.length; begin += bufferedTokens) {
          const part = ids.slice(begin, begin + bufferedTokens)
          if (used + part.length > bufferedTokens) await flush()
          buffer.set(part, used)
          used += part.length
        }
      }
    }
    await flush()
    if (cache !== undefined) {
      await syncFile(file)
      const text = `${JSON.stringify({ format: 1, ...stored, sha256: hash.digest('hex') })}\n`
      await replaceFile(join(folder, 'corpus.json'), text, operation)
    }
    return { file, stored }
  } catch (cause) {
    if (file !== undefined) closeSync(file)
    await rm(path, { force: true }).catch(() => {})
    throw fileError(cause, 'write', path, operation)
  }
}

/** The token ids of a file, some lines at a time. */
async function* tokensOf(path: string, tokenizer: Tokenizer, endToken: number | null): AsyncGenerator<number[], void, undefined> {
  const end = endToken === null ? [] : [endToken]
  let ended = true // whether the last document has its end token
  for await (const { text, line, ends } of readText(path)) {
    const ids = await encode(text, tokenizer, path, line)
    yield ends ? [...ids, ...end] : ids
    ended = ends
  }
  if (!ended) yield end
}

/** Encodes without the tokenizer's template. If the tokenizer rejects the text, finds the line. */
async function encode(text: string, tokenizer: Tokenizer, path: string, line: number): Promise<number[]> {
  const options = { addSpecialTokens: false }
  try {
    return await tokenizer.encodeAsync(text, options)
  } catch (cause) {
    for (const [i, part] of text.split('\n').entries()) {
      try {
        tokenizer.encode(i === 0 ? part : `\n${part}`, options)
      } catch (own) {
        throw new LoopLMError('INVALID_ARGUMENT', `${path} line ${line + i}: ${(own as Error).message}`, {
          operation,
          cause: own,
        })
      }
    }
    throw cause
  }
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new LoopLMError('ABORTED', 'the corpus was not read to its end', { operation, cause: signal.reason })
}
