import '../dispose.js'
import { LoopLMError } from '../errors.js'
import { call, type NativeAdamWOptions, type NativeOptimizer, native } from '../native.js'
import { World } from '../parallel.js'
import { checkInstance, checkNumber, checkOptions, checkText, describe, type Keys } from '../validation/arguments.js'
import { didYouMean } from '../validation/names.js'
import { LoopLM } from './model.js'
import { removeOtherShares, sharePath, storedShares } from './optimizer-files.js'

/** Options of {@link AdamW}. `step` accepts them too, to override them for one step. */
export interface AdamWOptions {
  /** Defaults to 1e-3. */
  learningRate?: number | undefined
  /** Decay rates of the two moments. Defaults to [0.9, 0.999]. */
  betas?: readonly [number, number] | undefined
  /** Added after the square root. Defaults to 1e-8. */
  eps?: number | undefined
  /** Decoupled weight decay of tensors with two dimensions: learningRate · weightDecay · parameter. Defaults to 0. */
  weightDecay?: number | undefined
  /** Gradients are scaled by min(1, maxGradNorm / (norm + 1e-6)). Defaults to 0: no clipping. */
  maxGradNorm?: number | undefined
  /** The names of the parameters to change; all others get neither step nor decay. Defaults to all. */
  only?: readonly string[] | undefined
  /**
   * The processes that train this model together, as `parallel.init` returns them. All start with the same parameters, and each
   * accumulates the gradients of its own sequences. A step sums the gradients over the processes. Each process keeps a share of
   * the optimizer's state. Only accepted by the constructor.
   */
  world?: World | undefined
}

/** How long the exchange of gradients took, in seconds. */
export interface ExchangeTimes {
  /** Time that the exchange was running, including waiting for slower processes. */
  exchanging: number
  /** Time that computation waited for the exchange. The rest of `exchanging` overlapped with the backward pass. */
  waiting: number
  /** The library that carries gradients: `NCCL 2.23.4`, or an MPI. Empty in a world of one and before the first step. */
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
 * AdamW (Loshchilov and Hutter, arXiv 1711.05101) with bias correction. Moments and, for a bfloat16 model, master parameters
 * are float32 (float64 on device `reference`), so that small steps also change bfloat16 parameters.
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
   * @param model the model to train
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

  /** Number of steps so far, including those of a loaded state. */
  get steps(): number {
    return this.#steps
  }

  /** Totals over all steps so far with a `world` of several processes. Zeros in a world of one. */
  get exchanged(): ExchangeTimes {
    return this.#exchanged
  }

  /**
   * Overlaps the exchange of gradients in the `world` with the next backward pass (`backward` or `accumulateLoss` of the
   * model). The gradients of a layer are sent as soon as they are complete. That backward pass must be the last one before the
   * step; other operations of the world may run in between. The results are bitwise the same as without overlap. The first step
   * does not overlap, nor does a process without sequences. In a world of one this does nothing.
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
   * Updates the model's parameters with the accumulated gradients, then sets the gradients to zero. With a `world`, all its
   * processes must call it with the same options.
   *
   * After NON_FINITE the step can be made again, with other options or after more accumulation. The gradients have the same
   * sum over all processes as before. In a `world` of several processes, each process then holds other parts of this sum.
   *
   * @param overrides options for this step only, for example the learning rate of a schedule
   * @throws LoopLMError INVALID_ARGUMENT naming the option; NON_FINITE, with nothing changed, naming a parameter whose gradient
   *   is not finite, or the options with which the update could leave the range of float32 (float64 on device `reference`);
   *   PARALLEL when another process of the `world` fails or does not arrive in time
   */
  async step(overrides: Omit<AdamWOptions, 'world'> = {}): Promise<{
    /** Global norm of the gradients before clipping. */
    gradNorm: number
  }> {
    return this.#step(overrides, false)
  }

  /**
   * Takes part in a step although this process has no gradients. The step then fails in all processes and changes nothing.
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
   * Writes moments, master weights and the number of steps, without loss. One process writes a safetensors file atomically.
   * With a `world` of several, all processes call it with the same path, and each writes its share next to it: for example
   * optimizer-00001-of-00004.safetensors for optimizer.safetensors.
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
   * Loads what {@link AdamW.save} wrote. The number of processes may differ from that of the save. Load the model's own
   * parameters first.
   *
   * @param path the path that was passed to `save`
   * @throws LoopLMError NOT_FOUND, INVALID_FILE naming the field, also for the state of another model
   */
  async load(path: string): Promise<void> {
    const operation = 'AdamW.load'
    const handle = this.#alive(operation)
    checkText(path, 'path', 'the path of a file', operation)
    const paths = await storedShares(path, operation)
    this.#steps = await call(operation, () => native().optimizerLoad(handle, paths))
  }

  /** Frees the memory once all earlier calls have ended. Later calls throw DISPOSED. */
  dispose(): void {
    this.#handle.dispose()
  }

  /** `using optimizer = …` disposes the optimizer at the end of the block. */
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

/** Checks the names of `only`: a misspelt name would silently exclude its parameter. */
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
