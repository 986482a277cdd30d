import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { z } from 'zod'
import { LoopLMError } from '../errors.js'

/*
 * A checkpoint is runDir/checkpoints/step-<n>: the model as a Hugging Face folder, optimizer.safetensors and trainer_state.json.
 * Prompts, draws and the learning rate are functions of (seed, step), so these three are all that a run consists of.
 */

const stateSchema = z.object({
  format: z.literal(1),
  trainer: z.string(),
  step: z.int().min(0),
  tokens: z.int().min(0),
  skippedUpdates: z.int().min(0),
  config: z.record(z.string(), z.unknown()),
})

/** What a trainer knows beside parameters and optimizer moments; trainer_state.json. */
export type TrainerState = z.output<typeof stateSchema>

/** Writes one part of a checkpoint into the folder it is given. */
export type CheckpointPart = (folder: string) => Promise<void>

/**
 * Writes a checkpoint to a temporary folder, syncs it, renames it, and removes all but the newest ones.
 *
 * @param runDir the run's folder
 * @param state what goes into trainer_state.json; names the folder by its step
 * @param parts write the model, the optimizer and what else belongs there
 * @param keep checkpoints to keep
 * @returns the checkpoint's path
 */
export async function saveCheckpoint(
  runDir: string,
  state: TrainerState,
  parts: readonly CheckpointPart[],
  keep: number,
): Promise<string> {
  const folder = join(runDir, 'checkpoints')
  const path = join(folder, `step-${state.step}`)
  await writeFolder(path, [...parts, (to) => writeFile(join(to, 'trainer_state.json'), `${JSON.stringify(state, null, 2)}\n`)])
  const steps = await checkpointSteps(folder)
  for (const step of steps.slice(0, -keep)) await rm(join(folder, `step-${step}`), { recursive: true, force: true })
  return path
}

/**
 * Writes a folder that exists completely or not at all.
 *
 * @param path replaced when it exists
 */
export async function writeFolder(path: string, parts: readonly CheckpointPart[]): Promise<void> {
  const parent = join(path, '..')
  const temporary = join(parent, `.${basename(path)}.tmp`)
  await rm(temporary, { recursive: true, force: true })
  await mkdir(temporary, { recursive: true })
  for (const part of parts) await part(temporary)
  for (const name of await readdir(temporary)) await sync(join(temporary, name))
  await sync(temporary)
  await rm(path, { recursive: true, force: true })
  await rename(temporary, path)
  await sync(parent)
}

/** The newest checkpoint of a run, or undefined. */
export async function newestCheckpoint(runDir: string): Promise<string | undefined> {
  const folder = join(runDir, 'checkpoints')
  const step = (await checkpointSteps(folder)).at(-1)
  return step === undefined ? undefined : join(folder, `step-${step}`)
}

/**
 * Reads trainer_state.json of a checkpoint.
 *
 * @param trainer the trainer that wants to resume
 * @throws LoopLMError NOT_FOUND, INVALID_FILE naming the field, or INVALID_CONFIG when another trainer wrote it
 */
export async function readTrainerState(checkpoint: string, trainer: string): Promise<TrainerState> {
  const operation = 'resume'
  const path = join(checkpoint, 'trainer_state.json')
  let value: unknown
  try {
    value = JSON.parse(await readFile(path, 'utf8'))
  } catch (cause) {
    if ((cause as { code?: string }).code === 'ENOENT') {
      throw new LoopLMError('NOT_FOUND', `${checkpoint} is not a checkpoint of a trainer: no file ${path}`, { operation, cause })
    }
    throw new LoopLMError('INVALID_FILE', `cannot read ${path}: ${(cause as Error).message}`, { operation, cause })
  }
  const result = stateSchema.safeParse(value)
  if (!result.success) {
    const problems = result.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`)
    throw new LoopLMError('INVALID_FILE', `${path}: ${problems.join('; ')}`, { operation, cause: result.error })
  }
  if (result.data.trainer !== trainer) {
    throw new LoopLMError('INVALID_CONFIG', `${checkpoint} was written by the trainer ${result.data.trainer}, not ${trainer}`, {
      operation,
    })
  }
  return result.data
}

/** Steps of the complete checkpoints of a folder, in ascending order. */
async function checkpointSteps(folder: string): Promise<number[]> {
  const names = await readdir(folder).catch((error) => {
    if (error.code === 'ENOENT') return []
    throw error
  })
  return names
    .map((name) => /^step-(\d+)$/.exec(name)?.[1])
    .filter((step) => step !== undefined)
    .map(Number)
    .sort((a, b) => a - b)
}

async function sync(path: string): Promise<void> {
  const file = await open(path, 'r')
  try {
    await file.sync()
  } finally {
    await file.close()
  }
}
