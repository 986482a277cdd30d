import { stat } from 'node:fs/promises'
import { basename, join, posix, relative, sep } from 'node:path'
import { LoopLMError } from '../errors.js'
import { maxFileBytes, readText } from '../files/read.js'
import { onDisk } from '../files/write.js'
import { extensions, type Format, formatOf } from './formats/format.js'
import { listFiles } from './list-files.js'
import { parseYaml, yamlValue } from './yaml.js'

/** Which files of a source are read. */
export interface FileChoice {
  /** Defaults to the format of the files' names. */
  format?: Format | undefined
  /** `train`, `test`, …. Defaults to `train` if there are several. */
  split?: string | undefined
  /** A configuration of the dataset, as its README.md names them, or a folder in it. */
  config?: string | undefined
}

/** The shards of a dataset, in the order of their names. */
export interface DataFiles {
  paths: string[]
  format: Format
}

/** JSON files that describe a dataset but contain no rows. */
const descriptions = new Set(['config.json', 'dataset_info.json', 'dataset_infos.json', 'dataset_dict.json', 'state.json'])

/** The words that name a split, as in Hugging Face's tools. */
const splitWords: Readonly<Record<string, readonly string[]>> = {
  train: ['train', 'training'],
  validation: ['validation', 'valid', 'val', 'dev'],
  test: ['test', 'testing', 'eval', 'evaluation'],
}

/**
 * The files of a local dataset.
 *
 * @param source a file, or a folder that is searched recursively
 * @throws LoopLMError NOT_FOUND, INVALID_FILE, INVALID_ARGUMENT listing the splits or configurations
 */
export async function findDataFiles(source: string, choice: FileChoice, operation: string): Promise<DataFiles> {
  const found = await stat(source).catch((cause) => {
    if ((cause as { code?: string }).code !== 'ENOENT') return onDisk('read', source, Promise.reject(cause), operation)
    throw new LoopLMError('NOT_FOUND', `no file or folder ${source}`, { operation, cause })
  })
  if (!found.isDirectory()) {
    const given = (['split', 'config'] as const).find((name) => choice[name] !== undefined)
    if (given !== undefined) {
      const message = `${given}: ${source} is a single file, and only folders have a ${given}; omit it, or pass the folder`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    return { paths: [source], format: choice.format ?? checkFormat(source, operation) }
  }
  const isData = (path: string) => choice.format !== undefined || formatOf(path) !== undefined || basename(path) === 'README.md'
  const names = (await listFiles(source, isData, operation)).map((path) => relative(source, path).replaceAll(sep, '/'))
  const readme = names.includes('README.md')
    ? await readText(join(source, 'README.md'), maxFileBytes.config, operation)
    : undefined
  const chosen = chooseFiles(names, readme, choice, source, operation)
  return { paths: chosen.names.map((name) => join(source, name)), format: chosen.format }
}

function checkFormat(path: string, operation: string): Format {
  const format = formatOf(path)
  if (format !== undefined) return format
  const message = `${path}: the extension is none of ${extensions.join(', ')}; pass format`
  throw new LoopLMError('INVALID_FILE', message, { operation })
}

/**
 * The files of a dataset's split: by the front matter of README.md, otherwise by their names.
 *
 * @param names relative to the dataset
 */
export function chooseFiles(
  names: readonly string[],
  readme: string | undefined,
  choice: FileChoice,
  source: string,
  operation: string,
): { names: string[]; format: Format } {
  const data = names.filter((name) => {
    const file = basename(name)
    return file !== 'README.md' && !descriptions.has(file) && !/(^|\/)[._]/.test(name)
  })
  const splits =
    splitsOfReadme(readme, data, choice, source, operation) ?? splitsByName(inFolder(data, choice.config, source, operation))
  const { names: chosen, patterns } = pick(splits, choice.split, source, operation)
  const kinds = [...new Set(chosen.map((name) => choice.format ?? formatOf(name)))].filter((kind) => kind !== undefined)
  if (kinds.length === 1) return { names: chosen, format: kinds[0]! }
  const problem =
    kinds.length === 0
      ? `holds no ${extensions.join(', ')} file${patterns === undefined ? '' : ` that matches ${patterns}, as its README.md asks`}`
      : `holds files of several formats (${kinds.join(', ')}); give the path of one of them or of a folder of one format`
  throw new LoopLMError('INVALID_FILE', `${source} ${problem}`, { operation })
}

/** The files of a split, and the patterns that chose them if README.md has some. */
interface Split {
  names: string[]
  patterns?: string
}

function pick(splits: ReadonlyMap<string, Split>, split: string | undefined, source: string, operation: string): Split {
  const known = [...splits.keys()]
  if (split === undefined && known.length === 1) return splits.get(known[0]!)!
  const found = splits.get(split ?? 'train')
  if (found !== undefined) return found
  if (known.length === 0) return { names: [] }
  const problem = split === undefined ? 'give one' : `there is no ${JSON.stringify(split)}`
  throw new LoopLMError('INVALID_ARGUMENT', `split: ${source} has ${known.join(', ')}; ${problem}`, { operation })
}

function inFolder(names: readonly string[], folder: string | undefined, source: string, operation: string): string[] {
  if (folder === undefined) return [...names]
  const inside = names.filter((name) => name.startsWith(`${folder}/`))
  if (inside.length > 0) return inside
  const folders = [...new Set(names.filter((name) => name.includes('/')).map((name) => name.split('/')[0]!))]
  const known = folders.length === 0 ? 'it has none' : `it has ${folders.join(', ')}`
  throw new LoopLMError('INVALID_ARGUMENT', `config: ${source} has no ${JSON.stringify(folder)}; ${known}`, { operation })
}

/** Files whose names name no split are `train`, unless others are: these may repeat the rows of other splits. */
function splitsByName(names: readonly string[]): Map<string, Split> {
  const hasTrain = names.some((name) => splitOf(name) === 'train')
  const splits = new Map<string, Split>()
  for (const name of names) {
    const split = splitOf(name) ?? (hasTrain ? undefined : 'train')
    if (split !== undefined) splits.set(split, { names: [...(splits.get(split)?.names ?? []), name] })
  }
  return splits
}

/** The split that a path names: `data/test-00000-of-00002.parquet`, `validation/a.jsonl`, `train.csv`. */
function splitOf(path: string): string | undefined {
  const words = path
    .toLowerCase()
    .split(/[^a-z]+/)
    .reverse() // the file's own name first
  for (const word of words) {
    for (const [split, names] of Object.entries(splitWords)) if (names.includes(word)) return split
  }
  return /([\w.]+)-\d{5}-of-\d{5}\.\w+$/.exec(path)?.[1]
}

interface ReadmeConfig {
  config_name?: unknown
  default?: unknown
  data_dir?: unknown
  data_files?: unknown
}

/** The splits of a configuration by the front matter of a README.md. undefined if it has no configurations. */
function splitsOfReadme(
  readme: string | undefined,
  names: readonly string[],
  { config }: FileChoice,
  source: string,
  operation: string,
): Map<string, Split> | undefined {
  const configs = readmeConfigs(readme)
  if (configs.length === 0) return undefined
  const chosen =
    config === undefined
      ? (configs.find((one) => one.default === true || one.config_name === 'default') ??
        (configs.length === 1 ? configs[0] : undefined))
      : configs.find((one) => one.config_name === config)
  if (chosen === undefined) {
    const problem = config === undefined ? 'give one' : `there is no ${JSON.stringify(config)}`
    const known = configs.map((one) => String(one.config_name)).join(', ')
    throw new LoopLMError('INVALID_ARGUMENT', `config: ${source} has ${known}; ${problem}`, { operation })
  }
  const { data_files: files } = chosen
  const folder = String(chosen.data_dir ?? '.')
  const matching = (given: unknown): Split => {
    const patterns = [given].flat().map((pattern) => posix.join(folder, String(pattern)))
    const tests = patterns.map(globTest)
    return { names: names.filter((name) => tests.some((test) => test.test(name))), patterns: patterns.join(', ') }
  }
  if (files == null) {
    const inside = matching('**')
    return inside.names.length === 0 ? new Map([['train', inside]]) : splitsByName(inside.names)
  }
  const parts = [files].flat() as (string | { split?: unknown; path?: unknown })[]
  if (parts.every((part) => typeof part === 'string')) return new Map([['train', matching(parts)]])
  return new Map(
    parts.map((part) => (typeof part === 'string' ? ['train', matching(part)] : [String(part.split), matching(part.path)])),
  )
}

function readmeConfigs(readme: string | undefined): ReadmeConfig[] {
  const front = /^\ufeff?---\r?\n([\s\S]*?)\r?\n---/.exec(readme ?? '')?.[1]
  if (front === undefined) return []
  try {
    const { configs } = yamlValue(parseYaml(front, 'README.md'), 'README.md') as { configs?: unknown }
    return Array.isArray(configs) ? configs.filter((one) => typeof one === 'object' && one !== null) : []
  } catch {
    return [] // the README is written for people, and file names are enough
  }
}

/** Tests a pattern in which `*` matches part of a name, `**` any folders, `?` one character and `[0-9]` one of a set. */
function globTest(pattern: string): RegExp {
  const text = pattern.replaceAll(/\*\*\/|\*\*|[*?]|\[!?[^\]]+\]|[.+^${}()|[\]\\]/g, (found) => {
    if (found === '**/') return '(?:.*/)?'
    if (found === '**') return '.*'
    if (found === '*') return '[^/]*'
    if (found === '?') return '[^/]'
    if (found.length === 1) return `\\${found}`
    const set = found.slice(1, -1).replaceAll(/[\\^[]/g, '\\$&')
    return set.startsWith('!') ? `[^/${set.slice(1)}]` : `[${set}]`
  })
  try {
    return new RegExp(`^${text}$`)
  } catch {
    return /(?!)/ // a set such as [z-a] has no characters
  }
}
