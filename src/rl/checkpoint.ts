import { readdir, rename, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { z } from 'zod'
import { LoopLMError } from '../errors.js'
import { checksumOf, sha256 } from '../files/folder-files.js'
import { maxFileBytes, readJson } from '../files/read.js'
import { type FolderPart, namesIn, replaceFolder, settleFolder, unsettledFolders } from '../files/replace-folder.js'
import { exists, jsonText, onDisk } from '../files/write.js'
import { checkSchema } from '../validation/schema.js'
import type { RankedStep } from './best-checkpoint.js'

/*
 * A checkpoint is the folder runDir/checkpoints/step-<n>. It holds the model as a Hugging Face folder, optimizer.safetensors
 * and trainer_state.json. Prompts, draws and the learning rate are functions of (seed, step), so a run needs nothing else.
 * trainer_state.json is written last. It holds checksums of itself and of the other files, so that files of different
 * checkpoints cannot be mixed.
 */

const step = z
  .int()
  .min(0)
  .max(2 ** 32)
const stepFolder = /^step-(\d+)$/

const stateSchema = z.object({
  /** 1 is the format without checksums. */
  format: z.union([z.literal(1), z.literal(2)]),
  /** Checksum of each safetensors file of the folder. */
  files: z.record(z.string(), z.string()).default({}),
  /** SHA-256 of the other fields. */
  checksum: z.string().optional(),
  trainer: z.string(),
  step,
  tokens: z.int().min(0),
  skippedUpdates: z.int().min(0),
  /** The data of the run: a hash, and a description for people. */
  data: z.object({ fingerprint: z.string(), description: z.string() }).optional(),
  /**
   * Evaluations so far: the step of the newest one (-1 for none), the number since the last improvement, the best ones, the
   * first one.
   */
  evaluated: z
    .int()
    .min(-1)
    .max(2 ** 32)
    .default(-1),
  stalled: z.int().min(0).default(0),
  best: z.array(z.object({ step, value: z.number(), path: z.string().optional() })).default([]),
  firstEvaluation: z.object({ step, metrics: z.record(z.string(), z.number()) }).optional(),
  config: z.record(z.string(), z.unknown()),
})

/** The state of a trainer besides parameters and optimizer moments: the content of trainer_state.json. */
export type TrainerState = Omit<z.output<typeof stateSchema>, 'format' | 'files' | 'checksum'>

/**
 * Writes a checkpoint, and removes old ones: only the newest and the best stay.
 *
 * @param runDir the run's folder
 * @param state the content of trainer_state.json; its step names the folder
 * @param parts functions that write the model, the optimizer and other files
 * @param keep the newest checkpoints to keep; those of `state.best` stay too
 * @returns the checkpoint's path
 * @throws LoopLMError INVALID_FILE naming the file that could not be written; earlier checkpoints are then unchanged
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
    const going = join(folder, `.step-${step}.tmp`) // a half-removed folder must not look like a checkpoint
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

/** The path of a step's checkpoint. */
export function checkpointPath(runDir: string, step: number): string {
  return join(runDir, 'checkpoints', `step-${step}`)
}

/** The path of the checkpoint of one of a run's best evaluations. */
export function bestPath(runDir: string, { step, path }: RankedStep): string {
  return path ?? checkpointPath(runDir, step)
}

/**
 * The best evaluations of a checkpoint, each with its own checkpoint: in the folder that the checkpoint was itself resumed
 * from, beside the checkpoint, or in the folder of the run that resumes. Evaluations without a checkpoint are omitted.
 */
export async function findBest(checkpoint: string, { step, best }: TrainerState, runDir: string): Promise<RankedStep[]> {
  const found: RankedStep[] = []
  for (const ranked of best) {
    const own = resolve(checkpointPath(runDir, ranked.step))
    const beside = join(dirname(resolve(checkpoint)), basename(own))
    const places = [ranked.path ?? beside, beside, own]
    const held = await Promise.all(places.map((place) => isOf(place, ranked)))
    const path = ranked.step === step ? own : places[held.indexOf(true)] // a run in another folder writes `checkpoint` again
    if (path !== undefined) found.push({ step: ranked.step, value: ranked.value, ...(path === own ? {} : { path }) })
  }
  return found
}

/** Whether a folder is the checkpoint of an evaluation. One of another run was evaluated with another value. */
async function isOf(folder: string, { step, value }: RankedStep): Promise<boolean> {
  const state = await readTrainerState(folder).catch(() => undefined)
  if (state?.step !== step) return false
  return state.evaluated < step || state.best.some((ranked) => ranked.step === step && ranked.value === value)
}

/**
 * Finishes interrupted writes of a process that died, for the reference and the checkpoints in a run's folder. Other files and
 * folders belong to the user.
 */
export async function settle(runDir: string): Promise<void> {
  await settleFolder(runDir, 'reference')
  const checkpoints = join(runDir, 'checkpoints')
  for (const name of await unsettledFolders(checkpoints)) if (stepFolder.test(name)) await settleFolder(checkpoints, name)
}

/** The newest checkpoint of a run, or undefined if there is none. */
export async function newestCheckpoint(runDir: string): Promise<string | undefined> {
  const step = (await checkpointSteps(join(runDir, 'checkpoints'))).at(-1)
  return step === undefined ? undefined : checkpointPath(runDir, step)
}

/**
 * The checkpoint to resume from, as the option `resume` says. undefined for a new run.
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

/** Describes what changed between a checkpoint and the run that resumes from it, in sentences. */
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
 * Renames the checkpoints after a step when a run resumes from that step, because they belong to an abandoned continuation.
 * They keep their content as superseded-step-<n>.
 *
 * @returns the steps of these checkpoints
 */
export async function setAside(runDir: string, step: number): Promise<number[]> {
  const folder = join(runDir, 'checkpoints')
  const later = (await checkpointSteps(folder)).filter((other) => other > step)
  for (const other of later) {
    const aside = join(folder, `superseded-step-${other}`)
    await onDisk('remove', aside, rm(aside, { recursive: true, force: true }))
    await onDisk('write', aside, rename(checkpointPath(runDir, other), aside))
  }
  return later
}

/**
 * Reads trainer_state.json of a checkpoint, and checks that the other files belong to it.
 *
 * @param trainer the trainer that wants to resume; undefined for any
 * @param operation for errors
 * @throws LoopLMError NOT_FOUND, INVALID_FILE naming the field, also if the folder's name has another step or a file another
 *   checksum, INVALID_CONFIG if another trainer wrote it
 */
export async function readTrainerState(checkpoint: string, trainer?: string, operation = 'resume'): Promise<TrainerState> {
  const path = join(checkpoint, 'trainer_state.json')
  const value = await readJson(path, maxFileBytes.config, operation).catch((cause: LoopLMError) => {
    if (cause.code !== 'NOT_FOUND') throw cause
    const message = `${checkpoint} is not a checkpoint of a trainer: no file ${path}`
    throw new LoopLMError('NOT_FOUND', message, { operation, cause })
  })
  const { files, checksum, format, ...state } = checkSchema(path, stateSchema, value, { code: 'INVALID_FILE' })
  if (trainer !== undefined && state.trainer !== trainer) {
    const message = `${path}: trainer: ${checkpoint} was written by the trainer ${state.trainer}, not ${trainer}`
    throw new LoopLMError('INVALID_CONFIG', message, { operation })
  }
  const invalid = (message: string) => new LoopLMError('INVALID_FILE', message, { operation })
  const named = stepFolder.exec(basename(resolve(checkpoint)))?.[1]
  if (named !== undefined && Number(named) !== state.step) {
    throw invalid(`${path}: step: is ${state.step} in the folder of step ${named}; the file belongs to another checkpoint`)
  }
  const remedy = 'Restore it from a copy, or use another checkpoint'
  if (format > 1 && checksum !== stateChecksum(value as object)) {
    throw invalid(`${path}: checksum: is not that of the other fields; the file is damaged or was edited. ${remedy}`)
  }
  for (const [name, saved] of Object.entries(files)) {
    const found = await checksumOf(join(checkpoint, name))
    // reading a missing file reports its name
    if (found === saved || !(await exists(join(checkpoint, name), operation))) continue
    const has = found === undefined ? 'no checksum' : `the checksum ${found}`
    throw invalid(
      `${join(checkpoint, name)} has ${has}, ${path} says ${saved}; the file is damaged or of another checkpoint. ${remedy}`,
    )
  }
  return state
}

/**
 * Rejects a state with more steps than the optimizer can have made: every step of a run makes at least one update, or skips it.
 *
 * @param updates the number of updates in the optimizer's state
 * @throws LoopLMError INVALID_FILE
 */
export function checkUpdates(checkpoint: string, { step, skippedUpdates }: TrainerState, updates: number): void {
  if (step <= updates + skippedUpdates) return
  const path = join(checkpoint, 'trainer_state.json')
  const message = `${path}: step: is ${step}, but optimizer.safetensors has made ${updates} updates, and ${skippedUpdates} were skipped; the files belong to different checkpoints`
  throw new LoopLMError('INVALID_FILE', message, { operation: 'resume' })
}

/** The steps of a folder's complete checkpoints, ascending. */
async function checkpointSteps(folder: string): Promise<number[]> {
  return (await namesIn(folder))
    .map((name) => stepFolder.exec(name)?.[1])
    .filter((step) => step !== undefined)
    .map(Number)
    .sort((a, b) => a - b)
}
