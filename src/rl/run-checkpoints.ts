import { LoopLMError, toLoopLMError } from '../errors.js'
import type { FolderPart } from '../files/replace-folder.js'
import { parametersChecksum } from '../model/checksum.js'
import type { LoopLM } from '../model/model.js'
import type { AdamW } from '../model/optimizer.js'
import { RunFolder } from '../monitor/run-folder.js'
import type { BestCheckpoints, RankedStep } from './best-checkpoint.js'
import {
  bestPath,
  changesSince,
  checkUpdates,
  findBest,
  findCheckpoint,
  newestCheckpoint,
  readTrainerState,
  saveCheckpoint,
  setAside,
  settle,
  type TrainerState,
} from './checkpoint.js'
import type { DataDescription } from './data.js'
import { factsOfRun } from './facts-of-run.js'
import { loadTrained, saveTrained } from './load-parameters.js'
import type { TrainerConfig } from './options.js'
import { plainConfig } from './plain-config.js'
import type { Ranks } from './ranks.js'
import type { Position } from './updates.js'

/** The parts of a run that its checkpoints need. */
export interface CheckpointedParts {
  /** The trainer's name in checkpoints. */
  name: string
  /** The trainer's name in errors. */
  operation: string
  model: LoopLM
  optimizer: AdamW
  config: TrainerConfig
  ranks: Ranks
  position: Position
  selection: BestCheckpoints
  /** Rejects a checkpoint of `step` that lacks what the run needs. */
  checkResume(checkpoint: string, step: number): void
  /** Loads what the trainer itself stored in a checkpoint. undefined: a new run begins. */
  start(checkpoint: string | undefined): Promise<void>
  /** The files that the trainer itself stores in a checkpoint. */
  extra(): FolderPart[]
  warn(message: string): void
}

/** The checkpoint that a run resumes from. */
export interface FoundCheckpoint {
  path: string
  state: TrainerState
  /** The best evaluations of the state that still have a checkpoint. */
  best: RankedStep[]
}

/** Begins, resumes and saves the runs of a trainer. */
export class RunCheckpoints {
  readonly #parts: CheckpointedParts
  #refused: LoopLMError | undefined // the error of a resume that failed after parts of the checkpoint were loaded
  #opened = false // whether this trainer has opened its folder before, so that the run in it is its own

  constructor(parts: CheckpointedParts) {
    this.#parts = parts
  }

  /** @throws LoopLMError if parts of a damaged checkpoint were loaded and cannot be restored */
  checkUsable(): void {
    if (this.#refused !== undefined) throw this.#refused
  }

  /** Finds the checkpoint that the option `resume` asks for. */
  async find(): Promise<FoundCheckpoint | undefined> {
    const { runDir, resume, loadBestModelAtEnd } = this.#parts.config
    const { operation, name } = this.#parts
    if (loadBestModelAtEnd && runDir === undefined) {
      const message = 'loadBestModelAtEnd: needs runDir, where the best checkpoint is kept'
      throw new LoopLMError('INVALID_CONFIG', message, { operation })
    }
    return this.#parts.ranks.first('resume', async () => {
      if (runDir !== undefined) await settle(runDir).catch(() => {}) // a folder that cannot be written is rejected later
      const path = await findCheckpoint(resume, runDir, operation)
      if (path === undefined) return undefined
      const state = await readTrainerState(path, name)
      return { path, state, best: runDir === undefined ? state.best : await findBest(path, state, runDir) }
    })
  }

  /** @throws LoopLMError PARALLEL if processes that train together do not run the same thing */
  async agree(data: DataDescription): Promise<void> {
    const { ranks, name, config, model, operation } = this.#parts
    await ranks.agree(() => factsOfRun(name, config, model, data), operation)
  }

  /** @throws LoopLMError INVALID_ARGUMENT if a new run would begin in the folder of another run */
  async checkFolder(found: FoundCheckpoint | undefined): Promise<void> {
    const { runDir, resume } = this.#parts.config
    if (found !== undefined || runDir === undefined || resume !== false || this.#opened) return
    await this.#parts.ranks.first('run folder', () => RunFolder.requireNew(runDir))
  }

  /**
   * Begins a run, or loads a whole checkpoint. If a part of the checkpoint is damaged, model and position stay unchanged.
   * Optimizer and teacher cannot be restored: a trainer whose optimizer was already replaced rejects any further use.
   */
  async begin(found: FoundCheckpoint | undefined, data: DataDescription): Promise<void> {
    const { ranks, model, operation } = this.#parts
    await ranks.each('begin', () => this.#begin(found, data))
    await ranks.agree(async () => ({ parameters: await parametersChecksum(model) }), operation)
  }

  async #begin(found: FoundCheckpoint | undefined, data: DataDescription): Promise<void> {
    if (found === undefined) return this.#parts.start(undefined)
    const { model, optimizer, position, selection } = this.#parts
    this.#parts.checkResume(found.path, found.state.step)
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
   * @returns undefined if the run has no folder, and in all processes but the first
   */
  async openFolder(given: Record<string, unknown> | undefined): Promise<RunFolder | undefined> {
    const { runDir } = this.#parts.config
    if (runDir === undefined) return undefined
    const { ranks } = this.#parts
    const folder = await ranks.each('run folder', async () => (ranks.leads ? this.#openFolder(runDir, given) : undefined))
    this.#opened = true
    return folder
  }

  async #openFolder(runDir: string, given: Record<string, unknown> | undefined): Promise<RunFolder> {
    const { name, config, position, warn } = this.#parts
    const written = given ?? { trainer: name, ...plainConfig(config) }
    const folder = await RunFolder.open(runDir, { config: written, replace: given !== undefined, warn })
    const aside = await setAside(runDir, position.step)
    if (aside.length > 0) {
      const names = aside.map((step) => `step-${step}`).join(', ')
      warn(`the run continues from step ${position.step}; the later ${names} of ${runDir} were renamed to superseded-step-…`)
    }
    return folder
  }

  /**
   * Writes the checkpoint of the current step and returns its path. The first process writes the folder, and each process its
   * share of the optimizer.
   *
   * @param folder of the first process
   * @param flush resolves when all metrics are safely written, so that no checkpoint is newer than its metrics
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
      return this.#save(folder, data, part, flush).catch(async (cause: unknown) => {
        const failed = () => {
          throw cause
        }
        if (!asked) await saveOptimizer(failed).catch(() => {}) // the other processes wait for this one
        throw cause
      })
    })
    return paths[0] as string
  }

  async #save(
    folder: RunFolder,
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
      await folder.ensure() // a checkpoint would create it, but only in part
      await flush()
      return await saveCheckpoint(folder.path, state, parts, config.keepCheckpoints)
    } catch (cause) {
      const newest = await newestCheckpoint(folder.path).catch(() => undefined)
      const left = newest === undefined ? 'the run has no checkpoint yet' : `the newest checkpoint is ${newest}`
      const { code, message } = toLoopLMError(cause)
      throw new LoopLMError(code, `${message}; ${left}`, { cause })
    }
  }

  /** The best evaluation so far, and its checkpoint if the run has a folder. */
  get best(): { step: number; value: number; path?: string } | undefined {
    const { selection, config } = this.#parts
    const { best } = selection
    if (best === undefined) return undefined
    const { step, value } = best
    return config.runDir === undefined ? { step, value } : { step, value, path: bestPath(config.runDir, best) }
  }

  /** Loads the best parameters. Returns their step, or undefined if the option is off or there is no best checkpoint. */
  async loadBest(): Promise<number | undefined> {
    const { best } = this
    const { config, model, position, ranks } = this.#parts
    if (!config.loadBestModelAtEnd || best?.path === undefined) return undefined
    if (best.step !== position.step) await ranks.each('best', () => loadTrained(model, best.path!))
    return best.step
  }

  /** Whether the run is still at its beginning, without a step or an evaluation. */
  get begins(): boolean {
    return this.#parts.position.step === 0 && this.#parts.selection.state.evaluated < 0
  }

  #goOnFrom({ path, state, best }: FoundCheckpoint, data: DataDescription): void {
    const { position, selection, config, warn } = this.#parts
    const { step, tokens, skippedUpdates } = state
    Object.assign(position, { step, tokens, skippedUpdates })
    selection.state = { ...state, best }
    const lost = state.best.filter(({ step }) => !best.some((found) => found.step === step))
    if (lost.length > 0 && config.metricForBestModel !== undefined) {
      const names = lost.map(({ step }) => `step-${step}`).join(', ')
      warn(`of the best checkpoints, ${names} was found neither in ${config.runDir} nor beside ${path}, and no longer counts`)
    }
    for (const message of changesSince(path, state, plainConfig(config), data)) warn(message)
  }
}
