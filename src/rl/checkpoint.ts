import { readdir, rename, rm, writeFile } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { z } from 'zod'
import { LoopLMError } from '../errors.js'
import { checksumOf, sha256 } from '../files/folder-files.js'
import { maxFileBytes, readJson } from '../files/read.js'
import { type FolderPart, namesIn, replaceFolder, settleFolder, unsettledFolders } from '../files/replace-folder.js'
import { exists, jsonText, onDisk } from '../files/write.js'
import { checkSchema } from '../validation/schema.js'

/*
 * A checkpoint is runDir/checkpoints/step-<n>: the model as a Hugging Face folder, optimizer.safetensors and trainer_state.json.
 * Prompts, draws and the learning rate are functions of (seed, step), so these three are all that a run consists of. The last file is
 * written last and has checksums: its own, and those of the others, so that no file of another checkpoint passes for one of this.
 */

const step = z
  .int()
  .min(0)
  .max(2 ** 32)
const stepFolder = /^step-(\d+)$/

const stateSchema = z.object({
  /** 1: without checksums. */
  format: z.union([z.literal(1), z.literal(2)]),
  /** Checksum of each safetensors file of the folder. */
  files: z.record(z.string(), z.string()).default({}),
  /** SHA-256 of the other fields. */
  checksum: z.string().optional(),
  trainer: z.string(),
  step,
  tokens: z.int().min(0),
  skippedUpdates: z.int().min(0),
  /** What the run reads: a hash, and words for people. */
  data: z.object({ fingerprint: z.string(), description: z.string() }).optional(),
  /** Evaluations so far: the newest one's step, -1 for none; those since the last improvement; the best ones; the first one. */
  evaluated: z
    .int()
    .min(-1)
    .max(2 ** 32)
    .default(-1),
  stalled: z.int().min(0).default(0),
  best: z.array(z.object({ step, value: z.number() })).default([]),
  firstEvaluation: z.object({ step, metrics: z.record(z.string(), z.number()) }).optional(),
  config: z.record(z.string(), z.unknown()),
})

/** What a trainer knows beside parameters and optimizer moments; trainer_state.json. */
export type TrainerState = Omit<z.output<typeof stateSchema>, 'format' | 'files' | 'checksum'>

/**
 * Writes a checkpoint, and removes all but the newest ones and those that are to stay.
 *
 * @param runDir the run's folder
 * @param state what goes into trainer_state.json; names the folder by its step
 * @param parts write the model, the optimizer and what else belongs there
 * @param keep the newest checkpoints to keep; those of `state.best` stay too
 * @returns the checkpoint's path
 * @throws LoopLMError INVALID_FILE naming the file that could not be written; earlier checkpoints are untouched then
 */
export async function saveCheckpoint(
  runDir: string,
  state: TrainerState,
  parts: readonly FolderPart[],
  keep: number,
): Promise<string> {
  const folder = join(runDir, 'checkpoints')
  const path = checkpointPath(runDir, state.step)
  await replaceFolder(path, [...parts, (to) => writeState(to, state)])
  const best = new Set(state.best.map(({ step }) => step))
  const old = (await checkpointSteps(folder)).slice(0, -keep).filter((step) => !best.has(step))
  for (const step of old) {
    const going = join(folder, `.step-${step}.tmp`) // half a folder must not look like a checkpoint
    await onDisk('remove', checkpointPath(runDir, step), rename(checkpointPath(runDir, step), going))
    await onDisk('remove', going, rm(going, { recursive: true, force: true }))
  }
  return path
}

async function writeState(folder: string, state: TrainerState): Promise<void> {
  const files: Record<string, string> = {}
  for (const name of await readdir(folder)) {
    const checksum = await checksumOf(join(folder, name))
    if (checksum !== undefined) files[name] = checksum
  }
  const content = { format: 2, ...state, files }
  await writeFile(join(folder, 'trainer_state.json'), jsonText({ ...content, checksum: stateChecksum(content) }))
}

function stateChecksum(content: object): string {
  return sha256(JSON.stringify({ ...content, checksum: undefined }))
}

/** Where the checkpoint of a step lies. */
export function checkpointPath(runDir: string, step: number): string {
  return join(runDir, 'checkpoints', `step-${step}`)
}

/**
 * Ends what a process that died had begun in a run's folder, the reference and checkpoints. Other files and folders are the user's.
 */
export async function settle(runDir: string): Promise<void> {
  await settleFolder(runDir, 'reference')
  const checkpoints = join(runDir, 'checkpoints')
  for (const name of await unsettledFolders(checkpoints)) if (stepFolder.test(name)) await settleFolder(checkpoints, name)
}

/** The newest checkpoint of a run, or undefined. */
export async function newestCheckpoint(runDir: string): Promise<string | undefined> {
  const step = (await checkpointSteps(join(runDir, 'checkpoints'))).at(-1)
  return step === undefined ? undefined : checkpointPath(runDir, step)
}

/**
 * The checkpoint that a run goes on from, as its option `resume` says; undefined for a new run.
 *
 * @throws LoopLMError INVALID_CONFIG
 */
export async function findCheckpoint(
  resume: boolean | string,
  runDir: string | undefined,
  operation: string,
): Promise<string | undefined> {
  if (resume === false) return undefined
  if (typeof resume === 'string') return resume
  if (runDir !== undefined) return newestCheckpoint(runDir)
  const message = 'resume: true needs runDir; or give the path of a checkpoint'
  throw new LoopLMError('INVALID_CONFIG', message, { operation })
}

/** What has changed between a checkpoint and the run that goes on from it, in sentences. */
export function changesSince(
  checkpoint: string,
  state: TrainerState,
  config: Readonly<Record<string, unknown>>,
  data: TrainerState['data'],
): string[] {
  const changed = [...new Set([...Object.keys(state.config), ...Object.keys(config)])].filter(
    (field) => JSON.stringify(state.config[field]) !== JSON.stringify(config[field]),
  )
  const said: string[] = []
  if (changed.length > 0) said.push(`resumed from ${checkpoint}, which was written with other values of ${changed.join(', ')}`)
  if (state.data !== undefined && data !== undefined && state.data.fingerprint !== data.fingerprint) {
    const message = `the data has changed since ${checkpoint} was written: it was ${state.data.description}, and is now ${data.description}`
    said.push(
      `${message}; the run continues at the same position, but its results will differ from those of an uninterrupted run`,
    )
  }
  return said
}

/**
 * Takes the checkpoints after a step out of a run that goes on from that step: they belong to a course that was abandoned. They keep
 * their content as given-up-step-<n>.
 *
 * @returns the steps
 */
export async function setAside(runDir: string, step: number): Promise<number[]> {
  const folder = join(runDir, 'checkpoints')
  const later = (await checkpointSteps(folder)).filter((other) => other > step)
  for (const other of later) {
    const aside = join(folder, `given-up-step-${other}`)
    await onDisk('remove', aside, rm(aside, { recursive: true, force: true }))
    await onDisk('write', aside, rename(checkpointPath(runDir, other), aside))
  }
  return later
}

/**
 * Reads trainer_state.json of a checkpoint, and checks that the other files are those that it was written with.
 *
 * @param trainer the trainer that wants to resume
 * @throws LoopLMError NOT_FOUND, INVALID_FILE naming the field, also when the folder's name has another step, or the file with another
 *   checksum, or INVALID_CONFIG when another trainer wrote it
 */
export async function readTrainerState(checkpoint: string, trainer: string): Promise<TrainerState> {
  const operation = 'resume'
  const path = join(checkpoint, 'trainer_state.json')
  const value = await readJson(path, maxFileBytes.config, operation).catch((cause: LoopLMError) => {
    if (cause.code !== 'NOT_FOUND') throw cause
    const message = `${checkpoint} is not a checkpoint of a trainer: no file ${path}`
    throw new LoopLMError('NOT_FOUND', message, { operation, cause })
  })
  const { files, checksum, format, ...state } = checkSchema(path, stateSchema, value, { code: 'INVALID_FILE' })
  if (state.trainer !== trainer) {
    const message = `${path}: trainer: ${checkpoint} was written by the trainer ${state.trainer}, not ${trainer}`
    throw new LoopLMError('INVALID_CONFIG', message, { operation })
  }
  const invalid = (message: string) => new LoopLMError('INVALID_FILE', message, { operation })
  const named = stepFolder.exec(basename(resolve(checkpoint)))?.[1]
  if (named !== undefined && Number(named) !== state.step) {
    throw invalid(`${path}: step: is ${state.step} in the folder of step ${named}; the file belongs to another checkpoint`)
  }
  const remedy = 'Restore it from a copy, or resume from another checkpoint'
  if (format > 1 && checksum !== stateChecksum(value as object)) {
    throw invalid(`${path}: checksum: is not that of the other fields; the file is damaged or was edited. ${remedy}`)
  }
  for (const [name, saved] of Object.entries(files)) {
    const found = await checksumOf(join(checkpoint, name))
    if (found === saved || !(await exists(join(checkpoint, name), operation))) continue // a missing one is named when it is read
    const has = found === undefined ? 'no checksum' : `the checksum ${found}`
    throw invalid(
      `${join(checkpoint, name)} has ${has}, ${path} says ${saved}; the file is damaged or of another checkpoint. ${remedy}`,
    )
  }
  return state
}

/**
 * Refuses a state whose steps the optimizer cannot have made: every step of a run is one update of it or more, or skipped ones.
 *
 * @param updates those that the optimizer's state counts
 * @throws LoopLMError INVALID_FILE
 */
export function checkUpdates(checkpoint: string, { step, skippedUpdates }: TrainerState, updates: number): void {
  if (step <= updates + skippedUpdates) return
  const path = join(checkpoint, 'trainer_state.json')
  const message = `${path}: step: is ${step}, but optimizer.safetensors has made ${updates} updates, and ${skippedUpdates} were skipped; the files belong to different checkpoints`
  throw new LoopLMError('INVALID_FILE', message, { operation: 'resume' })
}

/** Steps of the complete checkpoints of a folder, in ascending order. */
async function checkpointSteps(folder: string): Promise<number[]> {
  return (await namesIn(folder))
    .map((name) => stepFolder.exec(name)?.[1])
    .filter((step) => step !== undefined)
    .map(Number)
    .sort((a, b) => a - b)
}
