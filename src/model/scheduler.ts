import '../dispose.js'
import { whenAborted } from '../abort.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import { call, type NativeGenerateEvent, type NativeModel, type NativeScheduler, native } from '../native.js'
import { checkNumber } from '../validation/arguments.js'
import { checkLoops } from './checks.js'
import { type GeneratingModel, type Request, readCachePolicy, readRequests } from './request.js'
import { contextOf, decodeGenerated, TextStream } from './text-stream.js'
import type {
  FinishReason,
  GenerateChunk,
  GenerateOptions,
  GenerateResult,
  Prompt,
  SchedulerOptions,
  SchedulerStats,
  TokenLogprob,
} from './types.js'

/**
 * Generation that requests enter and leave while others run; {@link LoopLM.scheduler} makes one. It is scheduled by loop: each pass over
 * the weights takes every row under way one loop further, rows that meet their exit rule go to the head, and waiting requests take the
 * places that become free, in the order in which they came. What a request returns depends on the request alone.
 *
 * The model's parameters must not change while requests are under way.
 *
 * @example
 * ```ts
 * using scheduler = model.scheduler({ maxRows: 8 })
 * const greeting = scheduler.add([1, 2, 3], { maxNewTokens: 8, temperature: 0 })
 * const other = scheduler.add([4, 5], { maxNewTokens: 4, exit: { rule: 'gate', threshold: 0.6 } })
 * for await (const { token, loop } of greeting) console.log(token, loop)
 * const { tokens, finishReason } = await other.result()
 * ```
 */
export class Scheduler {
  readonly #model: GeneratingModel
  readonly #handle: NativeScheduler
  readonly #operation: string
  readonly #signal: AbortSignal | undefined
  readonly #kv: 'per-loop' | 'shared'
  readonly #live = new Map<number, GenerateRequest>()
  #cancelled = false
  #driving = false

  /** @internal */
  constructor(
    model: GeneratingModel,
    handle: NativeModel,
    operation: string,
    options: { [Field in keyof SchedulerOptions]: SchedulerOptions[Field] | undefined },
    signal?: AbortSignal,
  ) {
    const count = (name: 'maxRows' | 'maxTokens' | 'prefillTokens', fallback: number, min: number) =>
      checkNumber(options[name] ?? fallback, name, { min, max: 2 ** 31 - 1, integer: true }, operation)
    this.#model = model
    this.#operation = operation
    this.#signal = signal
    const { planes, force } = readCachePolicy(options.kv, operation)
    this.#kv = planes
    try {
      this.#handle = native().schedulerCreate(handle, {
        maxRows: count('maxRows', 16, 1),
        maxTokens: options.maxTokens === undefined ? 0 : count('maxTokens', 0, 1),
        loops: checkLoops(options.loops, operation),
        sharedCache: planes === 'shared',
        force,
        prefillTokens: count('prefillTokens', 512, 1),
      })
    } catch (error) {
      throw toLoopLMError(error, operation) // loops or planes that the family does not allow
    }
  }

  /**
   * Enters a request. It starts as soon as there is a place for it and room in the cache. When memory runs out it waits for others to
   * end, or fails alone: the others go on.
   *
   * @param prompt token ids, or a text when the model has a tokenizer
   * @param options as for {@link LoopLM.generate}; `kv` must be the scheduler's and `loops` at most the scheduler's. A `signal` that
   * fires ends this request alone.
   * @throws LoopLMError INVALID_ARGUMENT naming the argument, also when the request can never fit in `maxTokens`; OUT_OF_MEMORY when the
   *   device can never hold it; DISPOSED
   */
  add(prompt: Prompt, options: GenerateOptions = {}): GenerateRequest {
    const operation = 'Scheduler.add'
    if (this.#handle.disposed) throw new LoopLMError('DISPOSED', 'the scheduler was disposed', { operation })
    const [request] = readRequests(this.#model, [prompt], 'prompt', options, operation)
    const { planes } = readCachePolicy(options.kv ?? this.#kv, operation)
    if (planes !== this.#kv) {
      const message = `kv is '${planes}', but all requests of this scheduler share a cache that is '${this.#kv}'`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    const entered = this.enter(request!, true, operation, options.signal)
    queueMicrotask(() => this.drive()) // what is added in one go begins together
    return entered
  }

  /** What is going on now. */
  stats(): SchedulerStats {
    return native().schedulerStats(this.#handle)
  }

  /** Ends every request (they reject with DISPOSED) and gives the memory back. */
  dispose(): void {
    if (this.#handle.disposed) return
    for (const [id, request] of this.#live) {
      native().schedulerCancel(this.#handle, id)
      request.fail(new LoopLMError('DISPOSED', 'the scheduler was disposed', { operation: this.#operation }))
    }
    this.#live.clear()
    this.#handle.dispose()
  }

  /** `using scheduler = …` disposes at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal */
  enter(request: Request, watched: boolean, operation = this.#operation, signal?: AbortSignal): GenerateRequest {
    let id: number
    try {
      id = native().schedulerAdd(this.#handle, request.native)
    } catch (error) {
      throw toLoopLMError(error, operation)
    }
    const entered = new GenerateRequest(this.#model, request, watched, operation, () => this.#remove(id), signal)
    this.#live.set(id, entered)
    return entered
  }

  #remove(id: number): void {
    if (!this.#live.delete(id) || this.#handle.disposed) return
    native().schedulerCancel(this.#handle, id)
    this.#cancelled = true
    this.drive()
  }

  /**
   * Runs until no request is left.
   * @internal
   */
  async drive(): Promise<void> {
    if (this.#driving) return
    this.#driving = true
    try {
      while ((this.#live.size > 0 || this.#cancelled) && !this.#handle.disposed) {
        this.#cancelled = false
        const untilToken = [...this.#live.values()].some(({ watched }) => watched)
        const run = (cancel: Parameters<Parameters<typeof call>[1]>[0]) => native().schedulerRun(this.#handle, untilToken, cancel)
        const events = await call(this.#operation, run, this.#signal)
        for (const event of events) this.#receive(event)
      }
    } catch (error) {
      const failed = [...this.#live.values()]
      this.#live.clear()
      for (const request of failed) request.fail(error)
    } finally {
      this.#driving = false
    }
  }

  #receive(event: NativeGenerateEvent): void {
    const request = this.#live.get(event.request)
    if (request === undefined) return
    if (event.finish !== 'none') this.#live.delete(event.request)
    request.receive(event)
  }
}

/**
 * A sequence under way in a {@link Scheduler}: iterate over its tokens, or wait for its result. Leaving the iteration early cancels it.
 */
export class GenerateRequest implements AsyncIterable<GenerateChunk> {
  /** @internal */
  readonly watched: boolean
  readonly #model: GeneratingModel
  readonly #operation: string
  readonly #promptLength: number
  readonly #alternatives: boolean
  readonly #context: readonly number[] // the prompt's last tokens, with which text is decoded
  readonly #text: TextStream | undefined // watched for stop texts
  readonly #remove: () => void
  readonly #unwatch: () => void // the signal
  readonly #tokens: number[] = []
  readonly #logprobs: number[] = []
  readonly #loops: number[] = []
  readonly #topLogprobs: TokenLogprob[][] = []
  readonly #pieces: string[] = []
  #finish: FinishReason | undefined
  #error: unknown
  #wake: (() => void) | undefined
  #change: Promise<void> | undefined

  /** @internal */
  constructor(
    model: GeneratingModel,
    request: Request,
    watched: boolean,
    operation: string,
    remove: () => void,
    signal: AbortSignal | undefined,
  ) {
    this.#model = model
    this.#operation = operation
    this.#promptLength = request.native.prompt.length
    this.#alternatives = request.native.alternatives > 0
    this.#context = model.tokenizer === undefined ? [] : contextOf(model.tokenizer, request.native.prompt)
    this.#text = request.stopTexts.length > 0 ? new TextStream(model.tokenizer!, request.stopTexts, this.#context) : undefined
    this.#remove = remove
    this.watched = watched
    this.#unwatch = whenAborted(signal, () => {
      this.fail(new LoopLMError('ABORTED', 'the operation was aborted by its AbortSignal', { operation, cause: signal?.reason }))
      remove()
    })
  }

  /**
   * Everything the request made, once it has ended.
   *
   * @throws LoopLMError ABORTED by its signal, DISPOSED, NON_FINITE as {@link LoopLM.generate}, OUT_OF_MEMORY when the device has no
   *   room for it
   */
  async result(): Promise<GenerateResult> {
    while (this.#finish === undefined && this.#error === undefined) await this.#next()
    if (this.#error !== undefined) throw this.#error
    const reals = this.#model.dtype === 'float64' ? Float64Array : Float32Array
    const { tokenizer } = this.#model
    return {
      tokens: [...this.#tokens],
      ...(tokenizer === undefined ? {} : { text: this.#decoded() }),
      logprobs: reals.from(this.#logprobs),
      loops: [...this.#loops],
      ...(this.#alternatives ? { topLogprobs: [...this.#topLogprobs] } : {}),
      finishReason: this.#finish!,
    }
  }

  /** Ends the request; its place is free before the next pass. It keeps what it made, with finishReason `cancelled`. */
  cancel(): void {
    if (this.#finish !== undefined || this.#error !== undefined) return
    this.#end('cancelled')
    this.#remove()
  }

  /** Every token from the first, as it comes. */
  async *[Symbol.asyncIterator](): AsyncGenerator<GenerateChunk, void, undefined> {
    const { tokenizer } = this.#model
    const text = this.#text === undefined && tokenizer !== undefined ? new TextStream(tokenizer, [], this.#context) : undefined
    try {
      for (let i = 0; ; i++) {
        while (i >= this.#tokens.length && this.#finish === undefined && this.#error === undefined) await this.#next()
        if (this.#error !== undefined) throw this.#error
        if (i >= this.#tokens.length) return
        const last = this.#finish !== undefined && i + 1 === this.#tokens.length
        const piece = this.#text === undefined ? text?.push(this.#tokens[i]!) : this.#pieces[i]
        const rest = last ? (text?.flush() ?? '') : ''
        yield {
          token: this.#tokens[i]!,
          logprob: this.#logprobs[i]!,
          loop: this.#loops[i]!,
          ...(piece === undefined ? {} : { text: piece + rest }),
          ...(this.#alternatives ? { topLogprobs: this.#topLogprobs[i]! } : {}),
          ...(last && this.#finish !== 'cancelled' ? { finishReason: this.#finish! } : {}),
        }
      }
    } finally {
      this.cancel()
    }
  }

  /** @internal */
  receive({ tokens, logprobs, loops, alternatives, finish, failure }: NativeGenerateEvent): void {
    for (let i = 0; i < tokens.length; i++) {
      if (!Number.isFinite(logprobs[i])) {
        this.fail(this.#nonFinite(logprobs[i]!, loops[i]!))
        this.#remove()
        return
      }
      this.#tokens.push(tokens[i]!)
      this.#logprobs.push(logprobs[i]!)
      this.#loops.push(loops[i]!)
      if (this.#alternatives) this.#topLogprobs.push(alternatives[i]!)
      if (this.#text === undefined) continue
      this.#pieces.push(this.#text.push(tokens[i]!))
      if (!this.#text.stopped) continue
      this.#end('stop')
      this.#remove()
      return
    }
    if (finish === 'failed') this.fail(new LoopLMError('OUT_OF_MEMORY', failure, { operation: this.#operation }))
    else if (finish !== 'none') this.#end(finish)
    else this.#notify()
  }

  /** @internal */
  fail(error: unknown): void {
    if (this.#finish !== undefined || this.#error !== undefined) return
    this.#error = toLoopLMError(error, this.#operation)
    this.#unwatch()
    this.#notify()
  }

  /** Of a token that was drawn from logits that are not numbers: any id, so it is not handed out. */
  #nonFinite(logprob: number, loop: number): LoopLMError {
    const made = this.#tokens.length
    const message =
      `the log-probability of new token ${made} (position ${this.#promptLength + made}), read after loop ${loop}, is ${logprob}: ` +
      "the model's parameters or states overflow; load an earlier checkpoint, or compute in a wider dtype"
    return new LoopLMError('NON_FINITE', message, { operation: this.#operation })
  }

  #end(reason: FinishReason): void {
    this.#finish = reason
    if (this.#text !== undefined && this.#pieces.length > 0) this.#pieces[this.#pieces.length - 1] += this.#text.flush()
    this.#unwatch()
    this.#notify()
  }

  #decoded(): string {
    if (this.#text !== undefined) return this.#pieces.join('')
    return decodeGenerated(this.#model.tokenizer!, this.#tokens, this.#context)
  }

  /** Resolves when something has changed. */
  #next(): Promise<void> {
    this.#change ??= new Promise((resolve) => {
      this.#wake = resolve
    })
    return this.#change
  }

  #notify(): void {
    this.#wake?.()
    this.#wake = this.#change = undefined
  }
}
