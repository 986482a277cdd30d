import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { LoopLMError } from '../errors.js'
import { type FolderPart, replaceFolder } from '../files/replace-folder.js'
import { MovingAverage } from '../model/looprpt.js'
import type { LoopLM } from '../model/model.js'
import { loadTrained, saveTrained } from './load-parameters.js'

/** What a policy is compared with: the model as it was at the start, or its moving average. */
export class ReferenceModel {
  readonly #model: LoopLM
  readonly #runDir: string | undefined
  readonly #operation: string
  #reference: LoopLM | undefined
  #average: MovingAverage | undefined

  readonly #writes: boolean

  /**
   * @param runDir where a frozen reference is kept
   * @param writes whether this process keeps it there
   */
  constructor(model: LoopLM, runDir: string | undefined, writes: boolean, operation: string) {
    this.#writes = writes
    this.#model = model
    this.#runDir = runDir
    this.#operation = operation
  }

  /** Makes the reference from the model as it is now, unless there is one. */
  async keep(kind: 'frozen' | 'ema' | undefined): Promise<LoopLM | undefined> {
    if (kind === 'ema') await this.#following()
    else if (kind === 'frozen') this.#reference ??= await this.#model.clone()
    return kind && this.#reference
  }

  /**
   * The reference that a batch without `referenceLogprobs` is compared with.
   *
   * @param updates that were made; a reference that was not kept before them is lost
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

  /** Takes the average one update further. */
  async follow(decay: number): Promise<void> {
    await (await this.#following()).update(decay)
  }

  /** The frozen reference is the model as it is now, or as it was when the run that is resumed began; an average goes on. */
  async start(kind: 'frozen' | 'ema' | undefined, checkpoint: string | undefined): Promise<void> {
    const reference = await this.keep(kind)
    if (reference === undefined) return
    if (this.#average !== undefined) {
      if (checkpoint !== undefined) await this.#average.load(`${checkpoint}/reference.safetensors`)
      return
    }
    const saved = checkpoint === undefined ? undefined : resolve(checkpoint, '..', '..', 'reference')
    const folder = this.#runDir === undefined ? undefined : resolve(this.#runDir, 'reference')
    if (saved !== undefined) await loadTrained(reference, saved)
    if (folder !== undefined && folder !== saved && this.#writes)
      await replaceFolder(folder, [(to) => saveTrained(reference, to)])
  }

  /** What a checkpoint holds of it. */
  checkpointParts(): FolderPart[] {
    const average = this.#average
    if (average !== undefined) return [(to) => average.save(`${to}/reference.safetensors`)]
    // a run folder that vanished and was made again lacks the reference, without which its checkpoints could not be resumed
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
