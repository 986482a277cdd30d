import { basename, join, relative, sep } from 'node:path'
import { LoopLMError } from '../errors.js'
import { maxFileBytes, readText } from '../files/read.js'
import { exists } from '../files/write.js'
import { checkOptions } from '../validation/arguments.js'
import { chooseFiles, type DataFiles, type FileChoice } from './dataset-files.js'
import { type DownloadOptions, downloadOptions } from './download-options.js'
import { formatOf } from './formats/format.js'
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
import { listFiles } from './list-files.js'

/** Which part of a dataset is downloaded, and how. */
export interface DatasetDownloadOptions extends DownloadOptions, FileChoice {}

const operation = 'downloadDataset'

/**
 * Downloads the files of a dataset's split from the Hugging Face Hub into the cache that Hugging Face's tools share; see
 * {@link download} for its guarantees. Afterwards `loadDataset('hub:org/name')` finds them without a network, at the downloaded
 * commit.
 *
 * @param name the repository, for example `openai/gsm8k`
 * @returns the folder of the snapshot
 * @throws LoopLMError as {@link download}, and INVALID_ARGUMENT listing the splits or configurations
 *
 * @example
 * ```ts
 * await downloadDataset('openai/gsm8k', { config: 'main', split: 'train' })
 * const dataset = await loadDataset('hub:openai/gsm8k', { config: 'main', split: 'train', columns: 'gsm8k' })
 * ```
 */
export async function downloadDataset(name: string, options: DatasetDownloadOptions = {}): Promise<string> {
  checkOptions(options, { ...downloadOptions, format: true, split: true, config: true }, operation)
  const { revision = 'main' } = options
  checkName(name, operation)
  checkRevision(revision, operation)
  const hub = await loadHub()
  const cache = new Repository('dataset', options.cacheDir ?? hubCache(), name)
  const remote = new Remote('dataset', name, revision, options)
  let commit: string
  let files: RemoteFile[]
  try {
    commit = await remote.commit(hub)
    files = await remote.files(hub, commit, (path) => isWanted(path, options))
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error
    const found = await findInCache(name, options, operation)
    if ('folder' in found) return found.folder
    throw error
  }
  const fetchFile = async (path: string) => {
    const file = files.find((one) => one.path === path)!
    if (!(await exists(cache.link(commit, file)))) await obtain(remote, cache, commit, file, options)
  }
  const names = files.map(({ path }) => path)
  await cache.writeListing(commit, files)
  if (names.includes('README.md')) await fetchFile('README.md')
  const chosen = chooseFiles(names, await readmeOf(cache.snapshot(commit)), options, name, operation)
  for (const path of chosen.names) await fetchFile(path)
  if (revision !== commit) await cache.writeRef(revision, commit)
  return cache.snapshot(commit)
}

/**
 * The files of a dataset that looplm or Hugging Face's own tools downloaded before. Uses no network.
 *
 * @throws LoopLMError NOT_FOUND if some of them are not in the cache
 */
export async function findDownloadedDataset(
  name: string,
  options: FileChoice & Pick<DownloadOptions, 'revision' | 'cacheDir'>,
  operation: string,
): Promise<DataFiles> {
  checkName(name, operation)
  checkRevision(options.revision ?? 'main', operation)
  const found = await findInCache(name, options, operation)
  if ('files' in found) return found.files
  const problem = found.missing === undefined ? '' : `: it has no ${found.missing}`
  const remedy = 'download: true fetches it from the Hugging Face Hub (looplm download --dataset)'
  throw new LoopLMError('NOT_FOUND', `the dataset ${name} is not in the cache${problem}; ${remedy}`, { operation })
}

async function findInCache(
  name: string,
  options: FileChoice & Pick<DownloadOptions, 'revision' | 'cacheDir'>,
  operation: string,
): Promise<{ folder: string; files: DataFiles } | { missing: string | undefined }> {
  const cache = new Repository('dataset', options.cacheDir ?? hubCache(), name)
  const { commit, names } = await cache.known(options.revision ?? 'main')
  if (commit === undefined || !(await exists(cache.snapshot(commit)))) return { missing: undefined }
  const folder = cache.snapshot(commit)
  const found = names ?? (await namesIn(folder, options, operation))
  const chosen = chooseFiles(found, await readmeOf(folder), options, name, operation)
  const paths = chosen.names.map((path) => join(folder, path))
  for (const [i, path] of paths.entries()) if (!(await exists(path))) return { missing: chosen.names[i] }
  return { folder, files: { paths, format: chosen.format } }
}

async function namesIn(folder: string, choice: FileChoice, operation: string): Promise<string[]> {
  const toName = (path: string) => relative(folder, path).replaceAll(sep, '/')
  return (await listFiles(folder, (path) => isWanted(toName(path), choice), operation)).map(toName)
}

async function readmeOf(folder: string): Promise<string | undefined> {
  const path = join(folder, 'README.md')
  return (await exists(path)) ? readText(path, maxFileBytes.config, operation) : undefined
}

function isWanted(path: string, { format }: FileChoice): boolean {
  return format !== undefined || formatOf(path) !== undefined || basename(path) === 'README.md'
}

function checkName(name: string, operation: string): void {
  if (isRepository(name)) return
  const message = `${JSON.stringify(name)} is not the name of a dataset, such as "org/name"`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}
