import { createHash } from 'node:crypto'
import { lstat, open, readdir, readFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { maxFileBytes, readJson } from './read.js'

/*
 * The files of a model's folder. The weights that looplm writes have checksums in the header of their safetensors file
 * (native/engine/safetensors.h): "looplm.xxh64" covers the whole file, "looplm.sha256" lists the checksums of the other files
 * that belong to it.
 */

/** The content of files by name. */
export type FolderFiles = ReadonlyMap<string, string | Uint8Array>

/** Files with settings that people edit. They have no checksum. */
const settings = ['generation_config.json', 'tokenizer_config.json']

/** "NAME:SHA-256" of each file that belongs to the weights, for the header. */
export function listChecksums(files: FolderFiles): string {
  const listed = [...files].filter(([name]) => !settings.includes(name))
  return listed.map(([name, content]) => `${name}:${sha256(content)}`).join(' ')
}

export function sha256(content: string | Uint8Array): string {
  return createHash('sha256').update(content).digest('hex')
}

/** The checksum of a whole safetensors file. undefined if it has none, or if there is no file. */
export async function checksumOf(path: string): Promise<string | undefined> {
  return /^\{"__metadata__":\{"looplm\.xxh64":"([\da-f]{16})"/.exec(await headerStart(path))?.[1]
}

/**
 * The files that have changed since they were saved with the weights. An edit is as likely as damage, so this is not an error.
 *
 * @param weights path of the safetensors file
 * @returns names; empty for weights that other tools wrote
 */
export async function changedFiles(weights: string): Promise<string[]> {
  const list = /"looplm\.sha256":"([^"]*)"/.exec(await headerStart(weights))?.[1] ?? ''
  const changed: string[] = []
  for (const [, name, checksum] of list.matchAll(/([^: ]+):([\da-f]{64})/g)) {
    const content = await readFile(join(dirname(weights), basename(name!))).catch(() => undefined)
    if (content === undefined || sha256(content) !== checksum) changed.push(name!)
  }
  return changed
}

/** Warns if files of a folder have changed since looplm saved it. */
export async function warnOfChanges(folder: string, weights: string): Promise<void> {
  const changed = await changedFiles(weights)
  if (changed.length === 0) return
  const message = `${folder}: ${changed.join(', ')} changed after the folder was saved (by the checksums in ${basename(weights)})`
  const remedy = 'Restore what you did not edit: it is damaged. Saving the folder again ends this warning.'
  process.emitWarning(`${message}. ${remedy}`, { type: 'LoopLMWarning' })
}

/** The first bytes of a file after the length of its header, where looplm writes its checksums. */
async function headerStart(path: string): Promise<string> {
  const file = await open(path, 'r').catch(() => undefined)
  if (file === undefined) return ''
  try {
    if (!(await file.stat()).isFile()) return ''
    const { buffer, bytesRead } = await file.read({ buffer: Buffer.alloc(2 ** 14), position: 8 })
    return buffer.toString('latin1', 0, bytesRead)
  } finally {
    await file.close()
  }
}

/** Files of an adapter, with PEFT's names. */
const adapterFile = /^adapter_(config\.json|model\.(safetensors|bin))$/

/** Weights, shards and their indices, with the names of transformers and other tools. */
const weightsFile = [
  /^(pytorch_)?model(\.(fp16|bf16|fp32))?(-\d+-of-\d+)?\.(safetensors|bin)$/,
  /^(model\.safetensors|pytorch_model\.bin)\.index(\.(fp16|bf16|fp32))?\.json$/,
  /^consolidated(\.\d+)?\.(safetensors|pth)$/,
  /^(tf_model\.h5|flax_model\.msgpack)$/,
]
const configFile = /^(config|generation_config|(hf_)?quant(ize|ization)?_config)\.json$/
const tokenizerFile = [
  /^(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|tekken)\.json$/,
  /^(merges|vocab)\.txt$/,
  /^(tokenizer|tiktoken|spiece|sentencepiece\.bpe)\.model$/,
  /^chat_template\.(jinja|json)$/,
  /^additional_chat_templates$/, // a folder
]

const owned = {
  model: [adapterFile, configFile, ...weightsFile, ...tokenizerFile],
  adapter: [adapterFile],
  tokenizer: tokenizerFile,
} as const

/** The kind of content that a save writes. */
export type Owner = keyof typeof owned

/**
 * Old files in a folder that would be taken for a part of the new content. A model also replaces an adapter and a tokenizer.
 * All other files belong to the user.
 *
 * @param fresh names of the new files
 */
export async function staleFiles(folder: string, owner: Owner, fresh: readonly string[]): Promise<string[]> {
  const patterns = owned[owner]
  const names = await readdir(folder)
  const shards = owner === 'model' ? await indexedFiles(folder, names) : new Set<string>()
  const stale: string[] = []
  for (const name of names) {
    if (fresh.includes(name) || !(shards.has(name) || patterns.some((pattern) => pattern.test(name)))) continue
    const isFolder = (await lstat(join(folder, name))).isDirectory()
    if (isFolder === (name === 'additional_chat_templates')) stale.push(name)
  }
  return stale
}

/** The shards that a folder's index files name. */
async function indexedFiles(folder: string, names: readonly string[]): Promise<Set<string>> {
  const shards = new Set<string>()
  for (const name of names.filter((name) => weightsFile[1]!.test(name))) {
    const index = (await readJson(join(folder, name), maxFileBytes.list).catch(() => null)) as { weight_map?: object } | null
    for (const shard of Object.values(index?.weight_map ?? {}))
      if (typeof shard === 'string' && /\.(safetensors|bin)$/.test(shard)) shards.add(shard)
  }
  return shards
}
