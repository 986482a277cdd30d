import { copyFile, mkdir, readdir, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import type { Command } from 'commander'
import { uploadModel } from '../data/upload.js'
import { fileError, LoopLMError } from '../errors.js'
import { RunReader } from '../monitor/run-reader.js'
import { bestPath, newestCheckpoint, readTrainerState } from '../rl/checkpoint.js'
import { modelCard } from './model-card.js'
import { interruptible, print } from './output.js'

const operation = 'looplm export'

interface PushFlags {
  revision?: string
  private?: boolean
  message?: string
}

/** Adds `looplm export` and `looplm push`. */
export function addExport(program: Command): void {
  program
    .command('export')
    .description('copy the model of a run or checkpoint, without its optimizer, and write a model card')
    .argument('<run>', 'run folder (its best checkpoint, else its newest), or a checkpoint folder')
    .argument('<folder>', 'new folder')
    .action(exportModel)
  program
    .command('push')
    .description('upload a folder to the Hugging Face Hub; needs the package @huggingface/hub and a token in HF_TOKEN')
    .argument('<folder>', 'what looplm export or model.save wrote')
    .argument('<name>', 'repository, such as org/name; created if it does not exist')
    .option('--revision <branch>', 'branch (default: main)')
    .option('--private', 'make a new repository private')
    .option('--message <text>', 'title of the commit')
    .action(async (folder: string, name: string, flags: PushFlags) => {
      print(await interruptible((signal) => uploadModel(folder, name, { ...flags, signal })))
    })
}

async function exportModel(source: string, folder: string): Promise<void> {
  const checkpoint = await findCheckpoint(source)
  const state = await readTrainerState(checkpoint, undefined, operation)
  const runDir = dirname(dirname(resolve(checkpoint)))
  const run = await new RunReader(runDir).read().catch(() => undefined)
  const entries = await readdir(folder).catch(() => [])
  if (entries.length > 0) throw new LoopLMError('INVALID_ARGUMENT', `${folder} is not empty; choose a new folder`, { operation })
  try {
    await mkdir(folder, { recursive: true })
    for (const name of await readdir(checkpoint))
      if (!ofTraining(name)) await copyFile(join(checkpoint, name), join(folder, name))
    await writeFile(join(folder, 'README.md'), modelCard(basename(resolve(folder)), state, run))
  } catch (cause) {
    throw fileError(cause, 'write', folder, operation)
  }
  print(`${folder}: ${checkpoint}, with a model card; add a license to ${join(folder, 'README.md')}`)
}

/** Whether a checkpoint's file is only needed to resume the run. */
function ofTraining(name: string): boolean {
  return /^(optimizer|reference|teacher)\b.*\.safetensors$/.test(name) || name === 'trainer_state.json'
}

/** The checkpoint itself, or for a run its best one, else its newest. */
async function findCheckpoint(source: string): Promise<string> {
  const isFile = (path: string) =>
    stat(path).then(
      (found) => found.isFile(),
      () => false,
    )
  if (await isFile(join(source, 'trainer_state.json'))) return source
  const newest = await newestCheckpoint(source)
  if (newest === undefined)
    throw new LoopLMError('NOT_FOUND', `${source} is neither a run with a checkpoint nor a checkpoint folder`, { operation })
  const [best] = (await readTrainerState(newest, undefined, operation)).best
  const path = best && bestPath(source, best)
  return path !== undefined && (await isFile(join(path, 'trainer_state.json'))) ? path : newest
}
