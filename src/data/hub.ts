import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { copyFile, mkdir, open, readFile, rename, rm, stat, symlink } from 'node:fs/promises'
import { homedir } from 'node:os'
import { basename, dirname, join, relative } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { errorMessage, LoopLMError } from '../errors.js'
import { lockFile } from '../files/lock.js'
import { maxFileBytes, readJson } from '../files/read.js'
import { exists, onDisk, replaceFile } from '../files/write.js'
import type { DownloadOptions } from './download-options.js'

/* Repositories of the Hugging Face Hub: the API of the Hub, and the cache that Hugging Face's own tools share. */

/** The kinds of repositories, with the Hub's names. */
export type RepositoryKind = 'model' | 'dataset'

/** A file of the repository. */
export interface RemoteFile {
  path: string
  size: number
  /** SHA-256 of a large file, Git's object id of any other. It is also the blob's name in the cache. */
  oid: string
}

const operation = 'download'
const attempts = 5

/** Whether a string looks like a repository's name, such as `org/name`. */
export function isRepository(name: string): boolean {
  return /^[\w-][\w.-]*\/[\w-][\w.-]*$/.test(name)
}

/** @throws LoopLMError INVALID_ARGUMENT */
export function checkRevision(revision: string, operation: string): void {
  if (/^[\w-][\w.-]*(\/[\w-][\w.-]*)*$/.test(revision)) return
  const message = `revision ${JSON.stringify(revision)} is not a branch, tag or commit`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

/*
 * The variables of the environment that Hugging Face's tools read. An empty one counts as unset: compose files and CI set those
 * for which they have no value.
 */

/** The folder where Hugging Face's tools keep their downloads. As there, the variables may contain `~` and other variables. */
export function hubCache(): string {
  const { HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME } = process.env
  const named = HF_HUB_CACHE || HUGGINGFACE_HUB_CACHE
  const path = named || join(HF_HOME || join(XDG_CACHE_HOME || '~/.cache', 'huggingface'), 'hub')
  const expanded = path.replace(/\$(?:(\w+)|\{(\w+)\})/g, (whole, short, long) => process.env[short ?? long] ?? whole)
  return expanded.replace(/^~(?=[/\\]|$)/, homedir)
}

/** The access token, if there is one. */
export function hubToken(given: string | undefined, operation: string): string | undefined {
  const token = (given ?? process.env.HF_TOKEN ?? '').trim()
  if (/^[\x21-\x7e]*$/.test(token)) return token === '' ? undefined : token
  const message = `${given === undefined ? 'HF_TOKEN' : 'token'}: has characters that no token has; copy the token again`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

/** The address of the Hub, without a slash at its end. */
export function hubAddress(given: string | undefined, operation: string): string {
  const address = given ?? (process.env.HF_ENDPOINT || 'https://huggingface.co')
  if (/^https?:\/\//.test(address) && URL.canParse(address)) return address.replace(/\/$/, '')
  const name = given === undefined ? 'HF_ENDPOINT' : 'hubUrl'
  const message = `${name}: must be an address such as https://huggingface.co, got ${JSON.stringify(address)}`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

type Hub = typeof import('@huggingface/hub')

/**
 * Loads the Hub's client.
 * @throws LoopLMError UNSUPPORTED if it is not installed
 */
export async function loadHub(): Promise<Hub> {
  try {
    return await import('@huggingface/hub')
  } catch (cause) {
    const message = 'needs the package @huggingface/hub; run npm install @huggingface/hub'
    throw new LoopLMError('UNSUPPORTED', message, { operation, cause })
  }
}

/** The network or the host does not respond. The same request may succeed later. */
export class Unreachable extends LoopLMError {}

/**
 * A repository in the cache. `.looplm/COMMIT.json`, which Hugging Face's tools ignore, lists the files of a commit, because a
 * snapshot may contain only some of them.
 */
export class Repository {
  readonly #cacheDir: string
  readonly #path: string

  constructor(kind: RepositoryKind, cacheDir: string, name: string) {
    this.#cacheDir = cacheDir
    this.#path = join(cacheDir, `${kind}s--${name.replace('/', '--')}`)
  }

  snapshot(commit: string): string {
    return join(this.#path, 'snapshots', commit)
  }

  link(commit: string, file: RemoteFile): string {
    return join(this.snapshot(commit), file.path)
  }

  blob(file: RemoteFile): string {
    return join(this.#path, 'blobs', file.oid)
  }

  /** The lock file of a blob, which Hugging Face's tools also use. */
  lock(file: RemoteFile): string {
    return join(this.#cacheDir, '.locks', basename(this.#path), `${file.oid}.lock`)
  }

  /** Stores the list of a commit's files. */
  async writeListing(commit: string, files: readonly RemoteFile[]): Promise<void> {
    await writeNote(this.#listing(commit), `${JSON.stringify(files.map(({ path }) => path))}\n`)
  }

  /** Stores the commit of a branch or tag. */
  async writeRef(revision: string, commit: string): Promise<void> {
    if ((await this.#commit(revision)) !== commit) await writeNote(this.#ref(revision), commit)
  }

  /** The commit of a revision and the names of its files, if the cache knows them. */
  async known(revision: string): Promise<{ commit: string | undefined; names: string[] | undefined }> {
    const commit = /^[\da-f]{40}$/.test(revision) ? revision : await this.#commit(revision)
    const listed = commit === undefined ? undefined : await readList(this.#listing(commit))
    return { commit, names: Array.isArray(listed) ? listed.map(String) : undefined }
  }

  /** The snapshot of a model's revision if it is complete. If a snapshot exists but lacks a file, `problem` names that file. */
  async find(revision: string): Promise<{ folder?: string; problem?: string }> {
    const commit = /^[\da-f]{40}$/.test(revision) ? revision : await this.#commit(revision)
    if (commit === undefined || !(await exists(this.snapshot(commit)))) return {}
    for (const name of await this.#names(commit)) {
      if (await exists(join(this.snapshot(commit), name))) continue
      return { problem: `${this.snapshot(commit)} in the cache is incomplete: it has no ${name}` }
    }
    return { folder: this.snapshot(commit) }
  }

  /** The files of a commit. If other tools downloaded it and the list is unknown, the files that every model needs. */
  async #names(commit: string): Promise<string[]> {
    const listed = await readList(this.#listing(commit))
    if (Array.isArray(listed)) return listed.map(String)
    const single = 'model.safetensors'
    if (await exists(join(this.snapshot(commit), single))) return ['config.json', single]
    const index = (await readList(join(this.snapshot(commit), `${single}.index.json`))) as { weight_map?: object } | undefined
    const shards = Object.values(index?.weight_map ?? {}).map(String)
    return ['config.json', ...(shards.length === 0 ? [single] : shards)]
  }

  async #commit(revision: string): Promise<string | undefined> {
    const text = await readFile(this.#ref(revision), 'utf8').catch(() => '')
    return /^[\da-f]{40}$/.test(text) ? text : undefined
  }

  #ref(revision: string): string {
    return join(this.#path, 'refs', ...revision.split('/'))
  }

  #listing(commit: string): string {
    return join(this.#path, '.looplm', `${commit}.json`)
  }
}

/** A repository on the hub. */
export class Remote {
  readonly #kind: RepositoryKind
  readonly #name: string
  readonly #revision: string
  readonly #token: string | undefined
  readonly #hubUrl: string
  readonly #signal: AbortSignal | undefined

  constructor(kind: RepositoryKind, name: string, revision: string, options: DownloadOptions) {
    this.#kind = kind
    this.#name = name
    this.#revision = revision
    this.#token = hubToken(options.token, operation)
    this.#hubUrl = hubAddress(options.hubUrl, operation)
    this.#signal = options.signal
  }

  async commit(hub: Hub): Promise<string> {
    const call = { ...this.#call(), name: this.#name, revision: this.#revision, additionalFields: ['sha' as const] }
    const info = this.#kind === 'model' ? hub.modelInfo(call) : hub.datasetInfo(call)
    const { sha } = await info.catch((error: unknown) => this.#refuse(error))
    if (/^[\da-f]{40}$/.test(sha)) return sha
    throw new LoopLMError('INVALID_FILE', `${this.#hubUrl} names no commit for ${this.what}`, { operation })
  }

  /** The wanted files of a commit. For a model, only those in its top folder. */
  async files(hub: Hub, commit: string, wanted: (path: string) => boolean): Promise<RemoteFile[]> {
    const files: RemoteFile[] = []
    const repo = { type: this.#kind, name: this.#name }
    const list = hub.listFiles({ ...this.#call(), repo, revision: commit, recursive: this.#kind === 'dataset' })
    try {
      for await (const { type, path, size, oid, lfs } of list) {
        if (type !== 'file' || !wanted(path)) continue
        const id = lfs?.oid ?? oid ?? ''
        if (!/^([\da-f]{40}|[\da-f]{64})$/.test(id)) {
          throw new LoopLMError('INVALID_FILE', `${this.#hubUrl} gives no checksum for ${this.#name}/${path}`, { operation })
        }
        files.push({ path, size: lfs?.size ?? size, oid: id })
      }
    } catch (error) {
      this.#refuse(error)
    }
    return files
  }

  /** The file's bytes, starting at `from`. */
  async read(commit: string, file: RemoteFile, from: number): Promise<Response> {
    const folder = this.#kind === 'dataset' ? 'datasets/' : ''
    const path = file.path.split('/').map(encodeURIComponent).join('/')
    const url = `${this.#hubUrl}/${folder}${this.#name}/resolve/${commit}/${path}`
    const headers: Record<string, string> = from > 0 ? { range: `bytes=${from}-` } : {}
    const response = await this.#fetch(url, { headers }).catch((error) => this.#refuse(error))
    if (response.ok) return response
    if (response.status === 416) {
      const message = `${url} has at most ${from} bytes instead of ${file.size}; try again later`
      throw new LoopLMError('INVALID_FILE', message, { operation })
    }
    return this.#refuse({ statusCode: response.status, message: `${url}: status ${response.status}` })
  }

  /** The name in errors. */
  get what(): string {
    return `${this.#name} at revision ${this.#revision}`
  }

  /** Sends the token, which `fetch` drops on a redirect to another host. */
  readonly #fetch: typeof fetch = (url, init) => {
    const headers = new Headers(init?.headers)
    if (this.#token !== undefined) headers.set('authorization', `Bearer ${this.#token}`)
    return fetch(url, { ...init, headers, signal: this.#signal ?? null })
  }

  #call() {
    return { hubUrl: this.#hubUrl, fetch: this.#fetch } // no accessToken: the client takes only the Hub's own, not a mirror's
  }

  #refuse(cause: unknown): never {
    if (cause instanceof LoopLMError) throw cause
    if (this.#signal?.aborted) throw aborted(cause)
    const { statusCode: status, message } = cause as { statusCode?: number; message: string }
    if (status === 401 || status === 403) {
      const remedy = 'it does not exist, or is private or gated: set HF_TOKEN to a token that may read it'
      throw new LoopLMError('NOT_FOUND', `${this.what} cannot be read (status ${status}); ${remedy}`, { operation, cause })
    }
    if (status === 404) throw new LoopLMError('NOT_FOUND', `${this.#hubUrl} has no ${this.what}`, { operation, cause })
    const reason = (cause as Error).cause
    const why = reason === undefined ? message : `${message}: ${errorMessage(reason)}`
    throw new Unreachable('NOT_FOUND', `${this.#hubUrl} does not answer: ${why}`, { operation, cause })
  }
}

/** Puts a file of a commit into its snapshot. If several downloads want it, one downloads it and the others wait. */
export async function obtain(
  remote: Remote,
  cache: Repository,
  commit: string,
  file: RemoteFile,
  options: DownloadOptions,
): Promise<void> {
  const { signal, onProgress } = options
  const blob = cache.blob(file)
  const incomplete = `${blob}.incomplete`
  let seen: number | undefined // bytes that another download has received
  const wait = async () => {
    if (signal?.aborted) throw aborted(signal.reason)
    const received = await sizeOf(incomplete)
    if (received > (seen ?? 0)) onProgress?.(file.path, received, file.size)
    seen = received
    await sleep(100)
  }
  const unlock = await lockFile(cache.lock(file), { operation, wait, warn })
  try {
    await onDisk('write', dirname(blob), mkdir(dirname(blob), { recursive: true }), operation)
    if (!(await exists(blob))) await fetchBlob(remote, commit, file, blob, options)
    else if (seen !== undefined) onProgress?.(file.path, file.size, file.size)
    const link = cache.link(commit, file)
    if (!(await exists(link))) await onDisk('write', link, place(blob, link), operation)
  } finally {
    unlock()
  }
}

/** Links a blob under its name in a snapshot. */
async function place(blob: string, link: string): Promise<void> {
  await mkdir(dirname(link), { recursive: true })
  await rm(link, { force: true }) // removes a dangling link
  await symlink(relative(dirname(link), blob), link).catch(async () => {
    await copyFile(blob, `${link}.incomplete`) // some file systems have no links
    await rename(`${link}.incomplete`, link)
  })
}

/** Downloads a file, resumes after interruptions, and renames it once its checksum is right. */
async function fetchBlob(
  remote: Remote,
  commit: string,
  file: RemoteFile,
  blob: string,
  options: DownloadOptions,
): Promise<void> {
  const incomplete = `${blob}.incomplete`
  for (let attempt = 1; ; attempt++) {
    const before = await sizeOf(incomplete)
    try {
      await receive(remote, commit, file, incomplete, options)
      break
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error
      if ((await sizeOf(incomplete)) > before) attempt = 0 // there was progress, so keep trying
      if (attempt >= attempts) throw error
      await sleep(100 * 2 ** attempt)
    }
  }
  const sum = await onDisk('read', incomplete, checksum(incomplete, file), operation)
  if (sum !== file.oid) {
    await onDisk('remove', incomplete, rm(incomplete), operation)
    const message = `${file.path} has the checksum ${sum} instead of ${file.oid}; it was removed, try again`
    throw new LoopLMError('INVALID_FILE', message, { operation })
  }
  await onDisk('write', blob, rename(incomplete, blob), operation)
}

async function receive(
  remote: Remote,
  commit: string,
  file: RemoteFile,
  incomplete: string,
  { signal, onProgress }: DownloadOptions,
): Promise<void> {
  const writing = <Result>(action: Promise<Result>) => onDisk(`write ${file.path} to`, incomplete, action, operation)
  let received = await sizeOf(incomplete)
  const cutOff = (cause?: unknown) =>
    signal?.aborted
      ? aborted(cause)
      : new Unreachable('NOT_FOUND', `${file.path} was cut off after ${received} bytes`, { operation, cause })
  if (received > file.size) received = 0
  if (received < file.size || file.size === 0) {
    const response = await remote.read(commit, file, received)
    if (response.status !== 206) received = 0 // the server sends the whole file
    const output = await writing(open(incomplete, received === 0 ? 'w' : 'a'))
    try {
      for await (const part of partsOf(response, cutOff)) {
        await writing(output.writeFile(part)) // writes all of it; write() may write only a part
        received += part.length
        onProgress?.(file.path, received, file.size)
      }
      await writing(output.sync())
    } finally {
      await writing(output.close())
    }
  }
  if (received < file.size) throw cutOff()
}

/** The body. Errors while reading it are distinguished from errors of the consumer. */
async function* partsOf(
  response: Response,
  broken: (cause: unknown) => LoopLMError,
): AsyncGenerator<Uint8Array, void, undefined> {
  try {
    yield* response.body ?? []
  } catch (cause) {
    throw broken(cause)
  }
}

/** SHA-256 for a large file; for others Git's hash, which begins with the length. */
async function checksum(path: string, { oid }: RemoteFile): Promise<string> {
  const hash = createHash(oid.length === 64 ? 'sha256' : 'sha1')
  if (oid.length === 40) hash.update(`blob ${await sizeOf(path)}\0`)
  for await (const part of createReadStream(path)) hash.update(part)
  return hash.digest('hex')
}

/** Writes a small file of the cache. */
async function writeNote(path: string, text: string): Promise<void> {
  await onDisk('write', dirname(path), mkdir(dirname(path), { recursive: true }), operation)
  await replaceFile(path, text, operation)
}

const aborted = (cause: unknown): LoopLMError =>
  new LoopLMError('ABORTED', 'the download was aborted by its AbortSignal', { operation, cause })

const warned = new Set<string>()

/** Warns once instead of for every file. */
function warn(message: string): void {
  if (warned.has(message)) return
  warned.add(message)
  process.emitWarning(`${message}: make sure that no other process downloads there`, { type: 'LoopLMWarning' })
}

/** The JSON of a list of files. undefined if the file does not exist. */
const readList = (path: string): Promise<unknown> => readJson(path, maxFileBytes.list).catch(() => undefined)

const sizeOf = (path: string): Promise<number> =>
  stat(path).then(
    ({ size }) => size,
    () => 0,
  )
