import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { copyFile, mkdir, open, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { LoopLMError } from '../errors.js'

/** Options of {@link download}. */
export interface DownloadOptions {
  /** Branch, tag or commit; default `main`. */
  revision?: string | undefined
  /** Default: the cache of Hugging Face's own tools (HF_HUB_CACHE, HF_HOME, else ~/.cache/huggingface/hub), which share it. */
  cacheDir?: string | undefined
  /** Access token for gated and private repositories; default HF_TOKEN. */
  token?: string | undefined
  /** Default HF_ENDPOINT, else https://huggingface.co. */
  hubUrl?: string | undefined
  /** Rejects with code ABORTED; what has arrived is kept and continued by the next call. */
  signal?: AbortSignal | undefined
  /** Called as bytes arrive: of which file, how many so far, of how many. */
  onProgress?: ((file: string, received: number, size: number) => void) | undefined
}

/** A file of the repository. */
interface RemoteFile {
  path: string
  size: number
  /** SHA-256 of a large file, Git's object id of any other; also the blob's name in the cache. */
  oid: string
}

const operation = 'download'
const attempts = 5

/** What a checkpoint is made of; no code and no other formats. */
const wanted = /^[\w.-]+\.(json|safetensors|jinja)$/

/**
 * Fetches a checkpoint from the Hugging Face Hub into the cache that Hugging Face's tools share: blobs/, snapshots/COMMIT/, refs/. Files
 * that are there already are not fetched again, a file that was cut off is continued, and a file appears only when its checksum is right.
 * Without a network, a revision that was fetched before is found in the cache. Needs the package `@huggingface/hub`.
 *
 * @param name the repository, for example `ByteDance/Ouro-1.4B`
 * @returns the folder of the snapshot, for {@link LoopLM.fromPretrained}
 * @throws LoopLMError UNSUPPORTED without @huggingface/hub, NOT_FOUND, INVALID_FILE when a checksum is wrong, ABORTED
 *
 * @example
 * ```ts
 * const folder = await download('ByteDance/Ouro-1.4B', { revision: 'main' })
 * const ouro = await LoopLM.fromPretrained(folder, { dtype: 'bfloat16' })
 * ```
 */
export async function download(name: string, options: DownloadOptions = {}): Promise<string> {
  const { revision = 'main' } = options
  if (!/^[\w-][\w.-]*\/[\w-][\w.-]*$/.test(name)) {
    throw new LoopLMError('INVALID_ARGUMENT', `${JSON.stringify(name)} is not the name of a model, such as "org/name"`, {
      operation,
    })
  }
  if (!/^[\w-][\w.-]*(\/[\w-][\w.-]*)*$/.test(revision)) {
    throw new LoopLMError('INVALID_ARGUMENT', `revision ${JSON.stringify(revision)} is not a branch, tag or commit`, {
      operation,
    })
  }
  const hub = await loadHub()
  const repository = join(options.cacheDir ?? hub.getHFHubCachePath(), `models--${name.replace('/', '--')}`)
  const ref = join(repository, 'refs', ...revision.split('/'))
  const remote = new Remote(name, revision, options)

  let commit: string
  let files: RemoteFile[]
  try {
    commit = await remote.commit(hub)
    files = await remote.files(hub, commit)
  } catch (error) {
    const known = error instanceof Unreachable ? await snapshotOf(repository, ref, revision) : undefined
    if (known !== undefined) return known
    throw error
  }
  const snapshot = join(repository, 'snapshots', commit)
  for (const file of files) {
    const link = join(snapshot, file.path)
    if (await exists(link)) continue
    const blob = join(repository, 'blobs', file.oid)
    await mkdir(dirname(blob), { recursive: true })
    await mkdir(snapshot, { recursive: true })
    if (!(await exists(blob))) await fetchBlob(remote, commit, file, blob, options)
    await rm(link, { force: true }) // a link to nothing
    await symlink(relative(snapshot, blob), link).catch(() => copyFile(blob, link)) // Windows may refuse links
  }
  await mkdir(dirname(ref), { recursive: true })
  if (revision !== commit) {
    await writeFile(`${ref}.tmp`, commit)
    await rename(`${ref}.tmp`, ref) // last: what refs/ names is complete
  }
  return snapshot
}

type Hub = typeof import('@huggingface/hub')

async function loadHub(): Promise<Hub> {
  try {
    return await import('@huggingface/hub')
  } catch (cause) {
    const message = 'needs the package @huggingface/hub; run npm install @huggingface/hub'
    throw new LoopLMError('UNSUPPORTED', message, { operation, cause })
  }
}

/** The network, or the host, does not answer; the same request may succeed later. */
class Unreachable extends LoopLMError {}

/** A repository on the hub. */
class Remote {
  readonly #name: string
  readonly #revision: string
  readonly #token: string | undefined
  readonly #hubUrl: string
  readonly #signal: AbortSignal | undefined

  constructor(name: string, revision: string, options: DownloadOptions) {
    this.#name = name
    this.#revision = revision
    this.#token = options.token ?? process.env.HF_TOKEN
    this.#hubUrl = (options.hubUrl ?? process.env.HF_ENDPOINT ?? 'https://huggingface.co').replace(/\/$/, '')
    this.#signal = options.signal
  }

  async commit(hub: Hub): Promise<string> {
    const call = { ...this.#call(), name: this.#name, revision: this.#revision, additionalFields: ['sha' as const] }
    const { sha } = await hub.modelInfo(call).catch((error) => this.#refuse(error))
    if (/^[\da-f]{40}$/.test(sha)) return sha
    throw new LoopLMError('INVALID_FILE', `${this.#hubUrl} names no commit for ${this.#what}`, { operation })
  }

  /** The files of a checkpoint among those of a commit. */
  async files(hub: Hub, commit: string): Promise<RemoteFile[]> {
    const files: RemoteFile[] = []
    const list = hub.listFiles({ ...this.#call(), repo: { type: 'model', name: this.#name }, revision: commit })
    try {
      for await (const { type, path, size, oid, lfs } of list) {
        if (type !== 'file' || !wanted.test(path)) continue
        const id = lfs?.oid ?? oid ?? ''
        if (!/^([\da-f]{40}|[\da-f]{64})$/.test(id)) {
          throw new LoopLMError('INVALID_FILE', `${this.#hubUrl} gives no checksum for ${this.#name}/${path}`, { operation })
        }
        files.push({ path, size: lfs?.size ?? size, oid: id })
      }
    } catch (error) {
      this.#refuse(error)
    }
    if (files.some(({ path }) => path.endsWith('.safetensors'))) return files
    throw new LoopLMError('NOT_FOUND', `${this.#what} has no safetensors file`, { operation })
  }

  /** The file's bytes from one on. */
  async read(commit: string, file: RemoteFile, from: number): Promise<Response> {
    const url = `${this.#hubUrl}/${this.#name}/resolve/${commit}/${encodeURIComponent(file.path)}`
    const headers: Record<string, string> = from > 0 ? { range: `bytes=${from}-` } : {}
    if (this.#token !== undefined) headers.authorization = `Bearer ${this.#token}` // fetch drops it when it is sent elsewhere
    const response = await fetch(url, { headers, signal: this.#signal ?? null }).catch((error) => this.#refuse(error))
    if (response.ok || response.status === 416) return response
    return this.#refuse({ statusCode: response.status, message: `${url}: status ${response.status}` })
  }

  get #what(): string {
    return `${this.#name} at revision ${this.#revision}`
  }

  #call() {
    const signalled: typeof fetch = (url, init) => fetch(url, { ...init, signal: this.#signal ?? null })
    return { hubUrl: this.#hubUrl, fetch: signalled, ...(this.#token === undefined ? {} : { accessToken: this.#token }) }
  }

  #refuse(cause: unknown): never {
    if (cause instanceof LoopLMError) throw cause
    if (this.#signal?.aborted)
      throw new LoopLMError('ABORTED', 'the download was aborted by its AbortSignal', { operation, cause })
    const { statusCode: status, message } = cause as { statusCode?: number; message: string }
    if (status === 401 || status === 403) {
      const remedy = 'it does not exist, or is private or gated: set HF_TOKEN to a token that may read it'
      throw new LoopLMError('NOT_FOUND', `${this.#what} cannot be read (status ${status}); ${remedy}`, { operation, cause })
    }
    if (status === 404) throw new LoopLMError('NOT_FOUND', `${this.#hubUrl} has no ${this.#what}`, { operation, cause })
    const why = (cause as Error).cause instanceof Error ? `${message}: ${((cause as Error).cause as Error).message}` : message
    throw new Unreachable('NOT_FOUND', `${this.#hubUrl} does not answer: ${why}`, { operation, cause })
  }
}

/** Fetches a file, continuing after interruptions, and gives it its name when its checksum is right. */
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
      if ((await sizeOf(incomplete)) > before) attempt = 0 // it goes on, slowly
      if (attempt >= attempts) throw error
      await new Promise((resolve) => setTimeout(resolve, 100 * 2 ** attempt))
    }
  }
  const sum = await checksum(incomplete, file)
  if (sum !== file.oid) {
    await rm(incomplete)
    const message = `${file.path} has the checksum ${sum} instead of ${file.oid}; it was removed, try again`
    throw new LoopLMError('INVALID_FILE', message, { operation })
  }
  await rename(incomplete, blob)
}

async function receive(
  remote: Remote,
  commit: string,
  file: RemoteFile,
  incomplete: string,
  { signal, onProgress }: DownloadOptions,
): Promise<void> {
  let received = await sizeOf(incomplete)
  if (received > file.size) received = 0
  if (received < file.size || file.size === 0) {
    const response = await remote.read(commit, file, received)
    if (response.status !== 206) received = 0 // the server sends the whole
    const output = await open(incomplete, received === 0 ? 'w' : 'a')
    try {
      for await (const part of response.body ?? []) {
        await output.write(part)
        received += part.length
        onProgress?.(file.path, received, file.size)
      }
      await output.sync()
    } catch (cause) {
      if (signal?.aborted) throw new LoopLMError('ABORTED', 'the download was aborted by its AbortSignal', { operation, cause })
      throw new Unreachable('NOT_FOUND', `${file.path} was cut off after ${received} bytes`, { operation, cause })
    } finally {
      await output.close()
    }
  }
  if (received < file.size) throw new Unreachable('NOT_FOUND', `${file.path} was cut off after ${received} bytes`, { operation })
}

/** SHA-256 of a large file; for others Git's, which begins with the length. */
async function checksum(path: string, { oid }: RemoteFile): Promise<string> {
  const hash = createHash(oid.length === 64 ? 'sha256' : 'sha1')
  if (oid.length === 40) hash.update(`blob ${await sizeOf(path)}\0`)
  for await (const part of createReadStream(path)) hash.update(part)
  return hash.digest('hex')
}

/** The snapshot of a revision that was fetched before. */
async function snapshotOf(repository: string, ref: string, revision: string): Promise<string | undefined> {
  const commit = /^[\da-f]{40}$/.test(revision) ? revision : await readFile(ref, 'utf8').catch(() => undefined)
  if (commit === undefined || !/^[\da-f]{40}$/.test(commit)) return undefined
  const snapshot = join(repository, 'snapshots', commit)
  return (await exists(snapshot)) ? snapshot : undefined
}

const sizeOf = (path: string): Promise<number> =>
  stat(path).then(
    ({ size }) => size,
    () => 0,
  )

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  )
