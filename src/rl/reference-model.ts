import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { LoopLMError } from '../errors.js'
import { type FolderPart, replaceFolder } from '../files/replace-folder.js'
import { MovingAverage } from '../model/looprpt.js'
import type { LoopLM } from '../model/model.js'
import { loadTrained, saveTrained } from './load-parameters.js'

/** The reference of a policy: the starting model, or its moving average. */
export class ReferenceModel {
  readonly #model: LoopLM
  readonly #runDir: string | undefined
  readonly #operation: string
  #reference: LoopLM | undefined
  #average: MovingAverage | undefined

  readonly #writes: boolean

  /**
   * @param runDir the folder that stores a frozen reference
   * @param writes whether this process writes it there
   */
  constructor(model: LoopLM, runDir: string | undefined, writes: boolean, operation: string) {
    this.#writes = writes
    this.#model = model
    this.#runDir = runDir
    this.#operation = operation
  }

  /** Copies the current model as the reference, unless there is one. */
  async keep(kind: 'frozen' | 'ema' | undefined): Promise<LoopLM | undefined> {
    if (kind === 'ema') await this.#following()
    else if (kind === 'frozen') this.#reference ??= await this.#model.clone()
    return kind && this.#reference
  }

  /**
   * The reference for a batch without `referenceLogprobs`.
   *
   * @param updates number of updates so far; after the first, a reference that was not kept cannot be recovered
   */
  async get(updates: number): Promise<LoopLM> {
    if (this.#reference === undefined && updates > 0) {
      const message =
        'referenceLogprobs: missing. Earlier batches had their own, so no reference model was kept. Pass them in every batch'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: this.#operation })
    }
    this.#reference ??= await this.#model.clone()
    return this.#reference
  }

  /** Updates the moving average after an update of the model. */
  async follow(decay: number): Promise<void> {
    await (await this.#following()).update(decay)
  }

  /**
   * Rejects a checkpoint without the reference, before any part of it is loaded.
   * @throws LoopLMError INVALID_CONFIG
   */
  check(kind: 'frozen' | 'ema' | undefined, checkpoint: string): void {
    if (kind === undefined) return
    const path = kind === 'ema' ? averageIn(checkpoint) : frozenOf(checkpoint)
    if (existsSync(path)) return
    const message =
      `beta: ${path} is missing: the run of ${checkpoint} kept no reference model. It began without beta and without a KL ` +
      'term, or the checkpoint was copied without the reference. Resume without the KL, copy the reference too, or begin a ' +
      "new run from the checkpoint's model"
    throw new LoopLMError('INVALID_CONFIG', message, { operation: this.#operation })
  }

  /**
   * Prepares the reference when a run begins or resumes. A frozen reference is the model at the beginning of the run. A moving
   * average is loaded from the checkpoint.
   */
  async start(kind: 'frozen' | 'ema' | undefined, checkpoint: string | undefined): Promise<void> {
    const reference = await this.keep(kind)
    if (reference === undefined) return
    if (this.#average !== undefined) {
      if (checkpoint !== undefined) await this.#average.load(averageIn(checkpoint))
      return
    }
    const saved = checkpoint === undefined ? undefined : frozenOf(checkpoint)
    const folder = this.#runDir === undefined ? undefined : resolve(this.#runDir, 'reference')
    if (saved !== undefined) await loadTrained(reference, saved)
    if (folder !== undefined && folder !== saved && this.#writes)
      await replaceFolder(folder, [(to) => saveTrained(reference, to)])
  }

  /** The files that a checkpoint stores for it. */
  checkpointParts(): FolderPart[] {
    const average = this.#average
    if (average !== undefined) return [(to) => average.save(averageIn(to))]
    // if the run folder vanished and was created again, it lacks the reference, without which its checkpoints cannot be resumed
    const reference = this.#reference
    const folder = resolve(this.#runDir ?? '', 'reference')
    if (reference === undefined || existsSync(folder)) return []
    return [() => replaceFolder(folder, [(to) => saveTrained(reference, to)])]
  }

  dispose(): void {
    this.#average?.dispose()
    this.#reference?.dispose()
  }

  async #following(): Promise<MovingAverage> {
    this.#reference ??= await this.#model.clone()
    this.#average ??= new MovingAverage(this.#reference, this.#model)
    return this.#average
  }
}

/** The file of a moving average in a checkpoint. */
function averageIn(checkpoint: string): string {
  return `${checkpoint}/reference.safetensors`
}

/** The folder of a frozen reference, beside the checkpoints of its run. */
function frozenOf(checkpoint: string): string {
  return resolve(checkpoint, '..', '..', 'reference')
}
