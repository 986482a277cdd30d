import { LoopLMError, toLoopLMError } from '../errors.js'
import type { FolderPart } from '../files/replace-folder.js'
import { parametersChecksum } from '../model/checksum.js'
import type { LoopLM } from '../model/model.js'
import type { AdamW } from '../model/optimizer.js'
import { RunFolder } from '../monitor/run-folder.js'
import type { BestCheckpoints } from './best-checkpoint.js'
import {
  changesSince,
  checkpointPath,
  checkUpdates,
  findCheckpoint,
  newestCheckpoint,
  readTrainerState,
  saveCheckpoint,
  setAside,
  settle,
  type TrainerState,
} from './checkpoint.js'
import { plainConfig } from './config.js'
import type { DataDescription } from './data.js'
import { factsOfRun } from './facts-of-run.js'
import { loadTrained, saveTrained } from './load-parameters.js'
import type { TrainerConfig } from './options.js'
import type { Ranks } from './ranks.js'
import type { Position } from './updates.js'

/** What a run's checkpoints consist of, and whom they tell. */
export interface CheckpointedParts {
  /** The trainer as checkpoints call it. */
  name: string
  /** How errors name the trainer. */
  operation: string
  model: LoopLM
  optimizer: AdamW
  config: TrainerConfig
  ranks: Ranks
  position: Position
  selection: BestCheckpoints
  /** Takes over what the trainer itself keeps in a checkpoint; undefined: the run begins. */
  start(checkpoint: string | undefined): Promise<void>
  /** What the trainer itself keeps in a checkpoint. */
  extra(): FolderPart[]
  warn(message: string): void
}

/** The checkpoint that a run goes on from. */
export interface FoundCheckpoint {
  path: string
  state: TrainerState
}

/** Begins, resumes and saves the runs of a trainer. */
export class RunCheckpoints {
  readonly #parts: CheckpointedParts
  #refused: LoopLMError | undefined // of a resume that was refused when parts of the checkpoint had been taken over

  constructor(parts: CheckpointedParts) {
    this.#parts = parts
  }

  /** @throws LoopLMError where parts of a damaged checkpoint were taken over and cannot go back */
  checkUsable(): void {
    if (this.#refused !== undefined) throw this.#refused
  }

  /** The checkpoint that the option `resume` asks for. */
  async find(): Promise<FoundCheckpoint | undefined> {
    const { runDir, resume, loadBestModelAtEnd } = this.#parts.config
    const { operation, name } = this.#parts
    if (loadBestModelAtEnd && runDir === undefined) {
      const message = 'loadBestModelAtEnd: needs runDir, where the best checkpoint is kept'
      throw new LoopLMError('INVALID_CONFIG', message, { operation })
    }
    return this.#parts.ranks.first('resume', async () => {
      if (runDir !== undefined) await settle(runDir).catch(() => {}) // a folder that cannot be written is refused later
      const path = await findCheckpoint(resume, runDir, operation)
      return path === undefined ? undefined : { path, state: await readTrainerState(path, name) }
    })
  }

  /** @throws LoopLMError PARALLEL where processes that train together do not run the same thing */
  async agree(data: DataDescription): Promise<void> {
    const { ranks, name, config, model, operation } = this.#parts
    await ranks.agree(() => factsOfRun(name, config, model, data), operation)
  }

  /** @throws LoopLMError INVALID_ARGUMENT where a run begins in the folder of another */
  async checkFolder(found: FoundCheckpoint | undefined): Promise<void> {
    const { runDir, resume } = this.#parts.config
    if (found !== undefined || runDir === undefined || resume !== false || !this.begins) return
    await this.#parts.ranks.first('run folder', () => RunFolder.requireNew(runDir))
  }

  /**
   * Begins a run, or takes over all of a checkpoint. Where a part of it is damaged, model and position stay as they were. Optimizer and
   * teacher cannot go back: a trainer whose optimizer was replaced by then refuses any further use.
   */
  async begin(found: FoundCheckpoint | undefined, data: DataDescription): Promise<void> {
    const { ranks, model, operation } = this.#parts
    await ranks.each('begin', () => this.#begin(found, data))
    await ranks.agree(async () => ({ parameters: await parametersChecksum(model) }), operation)
  }

  async #begin(found: FoundCheckpoint | undefined, data: DataDescription): Promise<void> {
    if (found === undefined) return this.#parts.start(undefined)
    const { model, optimizer, position, selection } = this.#parts
    using before = await model.clone()
    const [{ ...were }, ranked] = [position, selection.state]
    let replaced = false
    try {
      await loadTrained(model, found.path)
      await optimizer.load(`${found.path}/optimizer.safetensors`)
      replaced = true
      checkUpdates(found.path, found.state, optimizer.steps)
      this.#goOnFrom(found, data)
      await this.#parts.start(found.path)
    } catch (cause) {
      await model.copyParametersFrom(before)
      Object.assign(position, were)
      selection.state = ranked
      if (!replaced) throw cause
      const { code, message } = toLoopLMError(cause)
      const remedy = 'the trainer has loaded parts of the checkpoint and cannot be used: make a new trainer'
      this.#refused = new LoopLMError(code, `${message}; ${remedy}`, { cause })
      throw this.#refused
    }
  }

  /**
   * Opens the run's folder at the position of the run.
   *
   * @param given replaces its config.yaml
   * @returns undefined where the run has none, and in all processes but the first
   */
  async openFolder(given: Record<string, unknown> | undefined): Promise<RunFolder | undefined> {
    const { runDir } = this.#parts.config
    if (runDir === undefined) return undefined
    return this.#parts.ranks.each('run folder', async () =>
      this.#parts.ranks.leads ? this.#openFolder(runDir, given) : undefined,
    )
  }

  async #openFolder(runDir: string, given: Record<string, unknown> | undefined): Promise<RunFolder> {
    const { name, config, position, warn } = this.#parts
    const written = given ?? { trainer: name, ...plainConfig(config) }
    const folder = await RunFolder.open(runDir, { config: written, replace: given !== undefined, warn })
    const aside = await setAside(runDir, position.step)
    if (aside.length > 0) {
      const names = aside.map((step) => `step-${step}`).join(', ')
      warn(`the run goes on from step ${position.step}; the later ${names} of ${runDir} were renamed to given-up-step-…`)
    }
    return folder
  }

  /**
   * Writes the checkpoint of the current step and returns its path: the first process the folder, each its share of the optimizer.
   *
   * @param folder of the first process
   * @param flush waits there until no metric is lost, so that no checkpoint is newer than its metrics
   */
  async save(folder: RunFolder | undefined, data: DataDescription, flush: () => Promise<void>): Promise<string> {
    const { ranks, optimizer } = this.#parts
    const saveOptimizer = async (folder: () => string) => {
      const to = await ranks.first('checkpoint folder', folder)
      await ranks.each('optimizer', () => optimizer.save(`${to}/optimizer.safetensors`))
    }
    const paths = await ranks.all('checkpoint', async () => {
      if (folder === undefined) return saveOptimizer(() => '')
      let asked = false
      const part = (to: string) => {
        asked = true
        return saveOptimizer(() => to)
      }
      return this.#save(folder.path, data, part, flush).catch(async (cause: unknown) => {
        const failed = () => {
          throw cause
        }
        if (!asked) await saveOptimizer(failed).catch(() => {}) // for whom the others wait
        throw cause
      })
    })
    return paths[0] as string
  }

  async #save(
    folder: string,
    { fingerprint, description }: DataDescription,
    saveOptimizer: FolderPart,
    flush: () => Promise<void>,
  ): Promise<string> {
    const { name, model, config, position, selection, extra } = this.#parts
    const parts: FolderPart[] = [
      (to) => saveTrained(model, to),
      saveOptimizer,
      async (to) => {
        if (model.adapter !== undefined) await model.tokenizer?.save(to)
      },
      ...extra(),
    ]
    const data = { fingerprint, description }
    const state = { trainer: name, ...position, data, ...selection.state, config: plainConfig(config) }
    try {
      await flush()
      return await saveCheckpoint(folder, state, parts, config.keepCheckpoints)
    } catch (cause) {
      const newest = await newestCheckpoint(folder).catch(() => undefined)
      const left = newest === undefined ? 'the run has no checkpoint yet' : `the newest checkpoint is ${newest}`
      const { code, message } = toLoopLMError(cause)
      throw new LoopLMError(code, `${message}; ${left}`, { cause })
    }
  }

  /** The best evaluation so far, and its checkpoint where there is a run's folder. */
  get best(): { step: number; value: number; path?: string } | undefined {
    const { selection, config } = this.#parts
    const { best } = selection
    return best === undefined || config.runDir === undefined ? best : { ...best, path: checkpointPath(config.runDir, best.step) }
  }

  /** Returns the step whose parameters the model got, or has already; undefined where the best ones are not asked for. */
  async loadBest(): Promise<number | undefined> {
    const { best } = this
    const { config, model, position, ranks } = this.#parts
    if (!config.loadBestModelAtEnd || best?.path === undefined) return undefined
    if (best.step !== position.step) await ranks.each('best', () => loadTrained(model, best.path!))
    return best.step
  }

  /** Whether nothing of the run was made or evaluated yet. */
  get begins(): boolean {
    return this.#parts.position.step === 0 && this.#parts.selection.state.evaluated < 0
  }

  #goOnFrom({ path, state }: FoundCheckpoint, data: DataDescription): void {
    const { position, selection, config, warn } = this.#parts
    const { step, tokens, skippedUpdates } = state
    Object.assign(position, { step, tokens, skippedUpdates })
    selection.state = state
    for (const message of changesSince(path, state, plainConfig(config), data)) warn(message)
  }
}
