import { LoopLMError } from '../errors.js'
import { exists } from '../files/write.js'
import { checkOptions } from '../validation/arguments.js'
import { type DownloadOptions, downloadOptions } from './download-options.js'
import {
  checkRevision,
  hubCache,
  isRepository,
  loadHub,
  obtain,
  Remote,
  type RemoteFile,
  Repository,
  Unreachable,
} from './hub.js'

const operation = 'download'

/** The files of a checkpoint, without code and other formats. */
const wanted = /^[\w.-]+\.(json|safetensors|jinja)$/

/**
 * Downloads a checkpoint from the Hugging Face Hub into the cache that Hugging Face's tools share: blobs/, snapshots/COMMIT/,
 * refs/. Existing files are not downloaded again, an interrupted file is resumed, and a file only appears if its checksum is
 * right. Downloads of the same file wait for each other, even in different processes. Without a network, a revision that is
 * complete in the cache is used. Needs the package `@huggingface/hub`.
 *
 * @param name the repository, for example `ByteDance/Ouro-1.4B`
 * @returns the folder of the snapshot, for {@link LoopLM.fromPretrained}
 * @throws LoopLMError UNSUPPORTED without @huggingface/hub, NOT_FOUND, INVALID_FILE if a checksum is wrong or the cache cannot
 *   be written, ABORTED
 *
 * @example
 * ```ts
 * const folder = await download('ByteDance/Ouro-1.4B', { revision: 'main' })
 * const ouro = await LoopLM.fromPretrained(folder, { dtype: 'bfloat16' })
 * ```
 */
export async function download(name: string, options: DownloadOptions = {}): Promise<string> {
  checkOptions(options, downloadOptions, operation)
  const { revision = 'main' } = options
  if (!isRepository(name)) {
    throw new LoopLMError('INVALID_ARGUMENT', `${JSON.stringify(name)} is not the name of a model, such as "org/name"`, {
      operation,
    })
  }
  checkRevision(revision, operation)
  const hub = await loadHub()
  const cache = new Repository('model', options.cacheDir ?? hubCache(), name)
  const remote = new Remote('model', name, revision, options)

  let commit: string
  let files: RemoteFile[]
  try {
    commit = await remote.commit(hub)
    files = await remote.files(hub, commit, (path) => wanted.test(path))
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error
    const { folder, problem } = await cache.find(revision)
    if (folder !== undefined) return folder
    if (problem === undefined) throw error
    const message = `${error.message.replace(`${operation}: `, '')}; ${problem}`
    throw new LoopLMError('NOT_FOUND', message, { operation, cause: error })
  }
  if (!files.some(({ path }) => path.endsWith('.safetensors'))) {
    throw new LoopLMError('NOT_FOUND', `${remote.what} has no safetensors file`, { operation })
  }
  const missing: RemoteFile[] = []
  for (const file of files) if (!(await exists(cache.link(commit, file)))) missing.push(file)
  if (missing.length > 0) await cache.writeListing(commit, files)
  for (const file of missing) await obtain(remote, cache, commit, file, options)
  if (revision !== commit) await cache.writeRef(revision, commit) // last, so that a commit in refs/ is always complete
  return cache.snapshot(commit)
}

/**
 * The folder of a model that looplm or Hugging Face's own tools downloaded before. Uses no network.
 *
 * @throws LoopLMError NOT_FOUND if some of it is not in the cache
 */
export async function findDownloaded(
  name: string,
  { revision = 'main', cacheDir }: Pick<DownloadOptions, 'revision' | 'cacheDir'>,
  operation: string,
): Promise<string> {
  checkRevision(revision, operation)
  const { folder, problem } = await new Repository('model', cacheDir ?? hubCache(), name).find(revision)
  if (folder !== undefined) return folder
  const remedy = 'download: true fetches a model of that name from the Hugging Face Hub (looplm download)'
  const message = `no folder ${name}${problem === undefined ? '' : `; ${problem}`}; ${remedy}`
  throw new LoopLMError('NOT_FOUND', message, { operation })
}
