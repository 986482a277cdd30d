import '../dispose.js'
import { LoopLMError } from '../errors.js'
import { call, type NativeAdamWOptions, type NativeOptimizer, native } from '../native.js'
import { World } from '../parallel.js'
import { checkInstance, checkNumber, checkOptions, checkText, describe, type Keys } from '../validation/arguments.js'
import { didYouMean } from '../validation/names.js'
import { LoopLM } from './model.js'
import { removeOtherShares, sharePath, storedShares } from './optimizer-files.js'

/** Options of {@link AdamW}; `step` takes them again to override them for one step. */
export interface AdamWOptions {
  /** Default 1e-3. */
  learningRate?: number | undefined
  /** Decay rates of the two moments; default [0.9, 0.999]. */
  betas?: readonly [number, number] | undefined
  /** Added after the square root; default 1e-8. */
  eps?: number | undefined
  /** Decoupled decay, learningRate · weightDecay · parameter, of tensors with two dimensions; default 0. */
  weightDecay?: number | undefined
  /** Gradients are scaled by min(1, maxGradNorm / (norm + 1e-6)); 0 (default) never. */
  maxGradNorm?: number | undefined
  /** Names of the parameters that change (the others have neither step nor decay); default all. */
  only?: readonly string[] | undefined
  /**
   * The processes that train this model together, as `parallel.init` resolves to. Each has the same parameters and the gradients of its own
   * sequences. A step sums the gradients over the processes; each keeps a share of the optimizer's state. For the constructor alone.
   */
  world?: World | undefined
}

/** How the exchange of gradients went, in seconds. */
export interface ExchangeTimes {
  /** It was under way, waiting for slower processes included. */
  exchanging: number
  /** Computation stood still for it. What is less than `exchanging` was hidden behind the backward pass. */
  waiting: number
  /** What carries gradients: `NCCL 2.23.4`, or an MPI; empty in a world of one and before the first step. */
  over: string
}

const adamWOptions = {
  learningRate: true,
  betas: true,
  eps: true,
  weightDecay: true,
  maxGradNorm: true,
  only: true,
  world: true,
} satisfies Keys<AdamWOptions>

/**
 * AdamW (Loshchilov and Hutter, arXiv 1711.05101) with bias correction. Moments and, for a bfloat16 model, master parameters are float32
 * (float64 on device `reference`), so that small steps move bfloat16 parameters too.
 *
 * @example
 * ```ts
 * using optimizer = new AdamW(model, { learningRate: 1e-3, weightDecay: 0.1 })
 * await model.backward(sequences, coefficients)
 * const { gradNorm } = await optimizer.step()
 * ```
 */
export class AdamW {
  readonly #handle: NativeOptimizer
  readonly #model: LoopLM
  readonly #options: AdamWOptions
  readonly #world: World | undefined
  #steps = 0
  #exchanged: ExchangeTimes = { exchanging: 0, waiting: 0, over: '' }

  /**
   * @param model whose gradients are stepped on
   * @throws LoopLMError INVALID_ARGUMENT naming the option, DISPOSED
   */
  constructor(model: LoopLM, options: AdamWOptions = {}) {
    const operation = 'AdamW'
    checkInstance(model, 'model', LoopLM, 'LoopLM.create and LoopLM.fromPretrained resolve to', operation)
    const handle = model.handle(operation)
    checkOptions(options, adamWOptions, operation)
    const { world, ...rest } = options
    nativeOptions(rest, model, operation)
    if (world !== undefined) checkInstance(world, 'world', World, 'parallel.init resolves to', operation)
    this.#options = rest
    this.#world = world
    this.#model = model
    this.#handle = native().optimizerCreate(handle, world?.handle)
  }

  /** Steps made so far, those of a loaded state included. */
  get steps(): number {
    return this.#steps
  }

  /** Of all steps so far, with a `world` of several processes; zeros in a world of one. */
  get exchanged(): ExchangeTimes {
    return this.#exchanged
  }

  /**
   * Sends gradients to the other processes of the `world` while the next backward pass (`backward` or `accumulateLoss` of the model) goes on:
   * those of a layer as soon as nothing more is added to them. It must be the last one before the step; other operations of the world may come
   * between. The bits are the same as without. The first step does without, and so does a process without sequences. In a world of one
   * nothing happens.
   *
   * @example
   * ```ts
   * const optimizer = new AdamW(model, { world: await parallel.init() })
   * await optimizer.exchangeDuringNext()
   * await model.backward(sequences, coefficients)
   * await optimizer.step()
   * ```
   */
  async exchangeDuringNext(): Promise<void> {
    const operation = 'AdamW.exchangeDuringNext'
    const handle = this.#alive(operation)
    await call(operation, () => native().optimizerExchangeDuringNext(handle))
  }

  /**
   * Moves the model's parameters by its accumulated gradients, which are then zero. With a `world`, all its processes call it alike.
   *
   * @param overrides options that differ for this step, for example the learning rate of a schedule
   * @throws LoopLMError INVALID_ARGUMENT naming the option; NON_FINITE, with nothing changed, naming a parameter whose gradient is not
   *   finite, or the options with which the update could leave the range of float32 (float64 on device `reference`); PARALLEL when another
   *   process of the `world` fails or does not come in time
   */
  async step(overrides: Omit<AdamWOptions, 'world'> = {}): Promise<{
    /** Global norm of the gradients before clipping. */
    gradNorm: number
  }> {
    return this.#step(overrides, false)
  }

  /**
   * Takes part in a step that cannot be made because this process has no gradients: it fails in all processes, with nothing changed.
   * @internal
   */
  async fail(): Promise<{ gradNorm: number }> {
    return this.#step({}, true)
  }

  async #step(overrides: Omit<AdamWOptions, 'world'>, failed: boolean): Promise<{ gradNorm: number }> {
    const operation = 'AdamW.step'
    const handle = this.#alive(operation)
    checkOptions(overrides, stepOptions, operation)
    const given = Object.fromEntries(Object.entries(overrides).filter(([, value]) => value !== undefined))
    const options = { ...nativeOptions({ ...this.#options, ...given }, this.#model, operation), failed }
    const { gradNorm, steps, exchanging, waiting, over } = await call(operation, () => native().optimizerStep(handle, options))
    this.#steps = steps
    this.#exchanged = { exchanging, waiting, over }
    return { gradNorm }
  }

  /**
   * Writes moments, masters and the number of steps, exactly. One process writes a safetensors file, in one step. Of a `world` of several, all
   * call it with one path, and each writes its share beside it, for example optimizer-00001-of-00004.safetensors for optimizer.safetensors.
   */
  async save(path: string): Promise<void> {
    const operation = 'AdamW.save'
    const handle = this.#alive(operation)
    checkText(path, 'path', 'the path of a file', operation)
    const { rank, size } = this.#world ?? { rank: 0, size: 1 }
    await call(operation, () => native().optimizerSave(handle, size === 1 ? path : sharePath(path, rank, size)))
    if (rank === 0) await removeOtherShares(path, size, operation)
  }

  /**
   * Reads what {@link AdamW.save} wrote, by as many processes or by another number of them, after the model's own parameters have been loaded.
   *
   * @param path as `save` got it
   * @throws LoopLMError NOT_FOUND, INVALID_FILE naming the field, also for the state of another model
   */
  async load(path: string): Promise<void> {
    const operation = 'AdamW.load'
    const handle = this.#alive(operation)
    checkText(path, 'path', 'the path of a file', operation)
    const paths = await storedShares(path, operation)
    this.#steps = await call(operation, () => native().optimizerLoad(handle, paths))
  }

  /** Gives the memory back once the calls that were made before have ended. Later calls throw DISPOSED. */
  dispose(): void {
    this.#handle.dispose()
  }

  /** `using optimizer = …` disposes at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  #alive(operation: string): NativeOptimizer {
    if (!this.#handle.disposed) return this.#handle
    throw new LoopLMError('DISPOSED', 'the optimizer was disposed', { operation })
  }
}

const { world: _, ...stepOptions } = adamWOptions

function nativeOptions(
  options: Omit<AdamWOptions, 'world'>,
  model: LoopLM,
  operation: string,
): Omit<NativeAdamWOptions, 'failed'> {
  const { learningRate = 1e-3, betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0, maxGradNorm = 0, only } = options
  if (!Array.isArray(betas) || betas.length !== 2) {
    throw new LoopLMError('INVALID_ARGUMENT', `betas must be two numbers, got ${describe(betas)}`, { operation })
  }
  const beta = (i: 0 | 1) => checkNumber(betas[i], `betas[${i}]`, { min: 0, below: 1 }, operation)
  return {
    learningRate: checkNumber(learningRate, 'learningRate', { min: 0 }, operation),
    beta1: beta(0),
    beta2: beta(1),
    epsilon: checkNumber(eps, 'eps', { above: 0 }, operation),
    weightDecay: checkNumber(weightDecay, 'weightDecay', { min: 0 }, operation),
    maxGradNorm: checkNumber(maxGradNorm, 'maxGradNorm', { min: 0 }, operation),
    only: only === undefined ? [] : checkNames(only, model, operation),
  }
}

/** A name that is misspelt would leave its parameter as it is in silence. */
function checkNames(only: readonly string[], model: LoopLM, operation: string): readonly string[] {
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
  if (!Array.isArray(only)) throw refuse(`only must be an array of names of parameters, got ${describe(only)}`)
  if (only.length === 0)
    throw refuse('only is an empty list, so a step would change nothing; name parameters, or omit only to train all')
  const names = [...model.parameters(), ...(model.adapter?.parameters ?? [])].map(({ name }) => name)
  const known = new Set(names)
  const at = only.findIndex((name) => !known.has(name))
  if (at === -1) return only
  const remedy = didYouMean(String(only[at]), names, 'model.parameters() lists them', { write: (near) => `'${near}'` })
  throw refuse(`only[${at}]: the model has no parameter ${describe(only[at])}; ${remedy}`)
}
