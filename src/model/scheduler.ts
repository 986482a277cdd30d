import '../dispose.js'
import { whenAborted } from '../abort.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import { call, type NativeGenerateEvent, type NativeModel, type NativeScheduler, native } from '../native.js'
import { checkFlag, checkNumber, checkOptions } from '../validation/arguments.js'
import { cacheBits } from './cache-type.js'
import { checkLoops } from './checks.js'
import { Constraint } from './constraint.js'
import { checkedLogits } from './logit-options.js'
import { continueOptions, requestOptions } from './options.js'
import { type GeneratingModel, type Request, readCachePolicy, readCacheType, readPromptCache, readRequests } from './request.js'
import { contextOf, decodeGenerated, TextStream } from './text-stream.js'
import type {
  CacheType,
  ContinueOptions,
  FinishReason,
  GenerateChunk,
  GenerateResult,
  Prompt,
  RealArray,
  SchedulerOptions,
  SchedulerRequestOptions,
  SchedulerStats,
  TokenLogprob,
  TokenSequence,
} from './types.js'

/**
 * Generation with continuous batching: requests enter and leave while others run. {@link LoopLM.scheduler} creates one. It
 * schedules by loop: each pass over the weights runs every active row for one more loop, and rows whose exit rule holds go to
 * the head. Waiting requests take free rows in the order of their arrival. The result of a request does not depend on the other
 * requests.
 *
 * The model's parameters must not change while requests are active. If an adapter is added or removed, they end with an error.
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
  readonly #cacheType: CacheType
  readonly #live = new Map<number, GenerateRequest>()
  readonly #kept = new Map<GenerateRequest, Kept>() // requests with `keep`, from their start to their release
  #newest = 0 // the newest request
  readonly #asked = new Map<number, RealArray>() // logits that wait for a processor, by request
  readonly #constraints = new Map<number, Constraint>() // by request
  // by request: the newest token, which waits for the constraint; undefined before the first one
  readonly #moves = new Map<number, NativeGenerateEvent | undefined>()
  readonly #answering = new Set<Promise<void>>()
  #wake: (() => void) | undefined // ends the wait for answers
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
    this.#cacheType = readCacheType(options.cacheType, operation)
    try {
      this.#handle = native().schedulerCreate(handle, {
        maxRows: count('maxRows', 16, 1),
        maxTokens: options.maxTokens === undefined ? 0 : count('maxTokens', 0, 1),
        loops: checkLoops(options.loops, operation),
        sharedCache: planes === 'shared',
        force,
        ...cacheBits[this.#cacheType],
        promptCache: readPromptCache(options.promptCache, operation),
        prefillTokens: count('prefillTokens', 512, 1),
      })
    } catch (error) {
      throw toLoopLMError(error, operation) // the family does not allow these loops or planes
    }
  }

  /**
   * Adds a request. It starts as soon as a row and enough cache are free. If memory runs out it waits for others to end, or
   * fails; the other requests continue.
   *
   * @param prompt token ids, or a string if the model has a tokenizer
   * @param options as for {@link LoopLM.generate}, with `keep` for {@link continue}; `kv` and `cacheType` must be the
   *   scheduler's and `loops` at most the scheduler's. Aborting its `signal` only ends this request.
   * @throws LoopLMError INVALID_ARGUMENT naming the argument, also when the request can never fit in `maxTokens`; OUT_OF_MEMORY
   *   when the device can never hold it; DISPOSED
   */
  add(prompt: Prompt, options: SchedulerRequestOptions = {}): GenerateRequest {
    return this.#begin(prompt, options, {}, 'Scheduler.add')
  }

  /**
   * Continues a request that was added with `keep: true` and has ended. The given tokens are appended to its tokens, then new
   * ones are generated. Cached tokens do not run again. If the cache had to evict them, they run again; the result is then the
   * same up to rounding.
   *
   * @param request must have ended with finish reason `length` or `stop`. It is released when the new request begins, unless
   *   `fork` is set
   * @param tokens appended to the tokens of the request, for example the next question; may be empty
   * @param options override those of the request one by one
   * @throws LoopLMError INVALID_ARGUMENT if the request was not kept, was released or has not ended; otherwise as {@link add}
   *
   * @example
   * ```ts
   * using scheduler = model.scheduler()
   * const first = scheduler.add([1, 2, 3], { keep: true, maxNewTokens: 8 })
   * await first.result()
   * const second = scheduler.continue(first, [7, 8], { maxNewTokens: 4 })
   * await second.result()
   * second.release()
   * ```
   */
  continue(request: GenerateRequest, tokens: TokenSequence, options: ContinueOptions = {}): GenerateRequest {
    const operation = 'Scheduler.continue'
    const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
    const kept = this.#kept.get(request)
    if (kept === undefined) {
      const why =
        request instanceof GenerateRequest
          ? 'it was not added with keep: true, or it was released'
          : 'it is not one of its requests'
      throw refuse(`request: this scheduler cannot continue it: ${why}`)
    }
    checkOptions(options, continueOptions, operation)
    const made = request.ended
    if (made === undefined) throw refuse('request: it has not ended, or it failed; wait for its result')
    const { at = made.length, fork = false, ...changed } = options
    const { length } = kept.prompt
    const stay = checkNumber(at, 'at', { min: -length, max: made.length, integer: true }, operation)
    const prompt = [...[...kept.prompt, ...made].slice(0, length + stay), ...Array.from(tokens)]
    const prefix = length + stay < kept.prefix ? prompt.length : kept.prefix // the prompt of the first request changes
    const parent = { parent: kept.id, prefix, releaseParent: !checkFlag(fork, 'fork', operation) }
    const next = this.#begin(prompt, { ...kept.options, ...changed }, parent, operation)
    if (parent.releaseParent) this.#kept.delete(request)
    return next
  }

  #begin(
    prompt: Prompt,
    options: SchedulerRequestOptions,
    parent: { parent?: number; prefix?: number; releaseParent?: boolean },
    operation: string,
  ): GenerateRequest {
    if (this.#handle.disposed) throw new LoopLMError('DISPOSED', 'the scheduler was disposed', { operation })
    checkOptions(options, requestOptions, operation)
    const { keep = false, sequence = 0, ...generation } = options
    const [request] = readRequests(this.#model, [prompt], 'prompt', generation, operation)
    if (options.promptCache !== undefined) {
      const message =
        'promptCache: all requests of a scheduler share its cache of prompts. Give it to the scheduler, not to a request'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    if (options.sequenceNumbers !== undefined) {
      const message = 'sequenceNumbers: a request has one number. Pass it as sequence, and omit sequenceNumbers'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    const { planes } = readCachePolicy(options.kv ?? this.#kv, operation)
    if (planes !== this.#kv) {
      const message = `kv is '${planes}', but all requests of this scheduler share a cache that is '${this.#kv}'`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    const cacheType = readCacheType(options.cacheType ?? this.#cacheType, operation)
    if (cacheType !== this.#cacheType) {
      const message = `cacheType is '${cacheType}', but all requests of this scheduler share a cache of type '${this.#cacheType}'`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    const added = {
      keep: checkFlag(keep, 'keep', operation),
      sequence: checkNumber(sequence, 'sequence', { min: 0, max: 2 ** 31 - 1, integer: true }, operation),
    }
    const native = { ...request!.native, ...added, ...parent }
    const told = !keep || request!.stopTexts.length > 0 || native.host !== 'none'
    const watched = told ? 'token' : 'finish'
    const entered = this.enter({ ...request!, native }, watched, operation, options.signal)
    if (keep) {
      const { prompt } = native
      const prefix = parent.prefix ?? prompt.length
      this.#kept.set(entered, { id: this.#newest, prompt, prefix, options: { keep, sequence, ...generation } })
    }
    queueMicrotask(() => this.drive()) // requests that are added in the same tick begin together
    return entered
  }

  /**
   * Whether it runs this model.
   * @internal
   */
  belongsTo(model: GeneratingModel): boolean {
    return this.#model === model
  }

  /** Current counters. */
  stats(): SchedulerStats {
    return native().schedulerStats(this.#handle)
  }

  /** Ends every request (they reject with DISPOSED) and frees the memory. */
  dispose(): void {
    if (this.#handle.disposed) return
    for (const [id, request] of this.#live) {
      native().schedulerCancel(this.#handle, id, false)
      request.fail(new LoopLMError('DISPOSED', 'the scheduler was disposed', { operation: this.#operation }))
    }
    for (const id of this.#live.keys()) this.#unconstrain(id)
    this.#live.clear()
    this.#kept.clear()
    this.#handle.dispose()
    this.#wake?.()
  }

  /** `using scheduler = …` disposes the scheduler at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal */
  enter(request: Request, watched: Watched, operation = this.#operation, signal?: AbortSignal): GenerateRequest {
    let id: number
    try {
      id = native().schedulerAdd(this.#handle, request.native)
    } catch (error) {
      throw toLoopLMError(error, operation)
    }
    const remove = (keep: boolean) => {
      if (!keep) this.#kept.delete(entered)
      this.#remove(id, keep)
    }
    const entered: GenerateRequest = new GenerateRequest(this.#model, request, watched, operation, remove, signal)
    this.#live.set(id, entered)
    this.#newest = id
    if (request.grammar !== undefined) {
      this.#constraints.set(id, new Constraint(this.#model, request, operation))
      this.#moves.set(id, undefined)
    }
    return entered
  }

  /** @param keep keep its keys and values in the cache */
  #remove(id: number, keep: boolean): void {
    this.#unconstrain(id)
    if (this.#handle.disposed || (!this.#live.delete(id) && keep)) return
    native().schedulerCancel(this.#handle, id, keep)
    this.#cancelled = true
    this.drive()
  }

  /**
   * Runs until no request is left.
   * @internal
   */
  async drive(): Promise<void> {
    this.#wake?.()
    if (this.#driving) return
    this.#driving = true
    try {
      while ((this.#live.size > 0 || this.#cancelled) && !this.#handle.disposed) {
        this.#cancelled = false
        const watched = [...this.#live.values()].map(({ watched }) => watched)
        const until = (['token', 'finish'] as const).find((kind) => watched.includes(kind)) ?? 'idle'
        const run = (cancel: Parameters<Parameters<typeof call>[1]>[0]) => native().schedulerRun(this.#handle, until, cancel)
        const running = call(this.#operation, run, this.#signal)
        this.#answer() // while the pass runs
        const events = await running
        for (const event of events) this.#receive(event)
        if (events.length === 0) await this.#anAnswer()
      }
    } catch (error) {
      const failed = [...this.#live.values()]
      for (const id of this.#live.keys()) this.#unconstrain(id)
      this.#live.clear()
      for (const request of failed) request.fail(error)
    } finally {
      this.#driving = false
    }
  }

  #receive(event: NativeGenerateEvent): void {
    const request = this.#live.get(event.request)
    if (request === undefined) return
    if (event.finish !== 'none') {
      this.#live.delete(event.request)
      this.#unconstrain(event.request)
    }
    if (this.#constraints.has(event.request)) {
      this.#moves.set(event.request, event) // the request gets the token when it is known whether the text ends with it
      return
    }
    request.receive(event)
    if (event.logits !== undefined) this.#asked.set(event.request, event.logits)
  }

  #unconstrain(id: number): void {
    this.#constraints.get(id)?.close()
    this.#constraints.delete(id)
    this.#moves.delete(id)
  }

  /** Passes the answers that rows wait for before their next draw. */
  #answer(): void {
    for (const [id, logits] of this.#asked) {
      const answer = this.#live.get(id)?.processed(logits)
      if (answer !== undefined && this.#live.has(id)) native().schedulerAnswer(this.#handle, id, new Int32Array(), answer)
    }
    this.#asked.clear()
    for (const [id, event] of this.#moves) {
      const answering = this.#constrain(id, this.#constraints.get(id)!, event).finally(() => this.#answering.delete(answering))
      this.#answering.add(answering)
    }
    this.#moves.clear()
  }

  /** Gives a request its newest token, and tells the engine which tokens may follow. */
  async #constrain(id: number, constraint: Constraint, event: NativeGenerateEvent | undefined): Promise<void> {
    const [next] = await Promise.allSettled([constraint.next(event?.tokens.at(-1))])
    const request = this.#live.get(id)
    if (request === undefined || this.#handle.disposed) return
    try {
      if (event !== undefined) request.receive(event)
      if (!this.#live.has(id)) return // the token completed a stop string, or its logits are not numbers
      if (next.status === 'rejected') throw next.reason
      if (next.value === undefined)
        request.stop() // the text is complete
      else native().schedulerAnswer(this.#handle, id, next.value, new Float64Array())
    } catch (error) {
      request.fail(error)
      this.#remove(id, false)
    }
  }

  /** Resolves when a row may continue, or when another request arrives. */
  async #anAnswer(): Promise<void> {
    if (this.#answering.size === 0) return
    const woken = new Promise<void>((resolve) => {
      this.#wake = resolve
    })
    const unwatch = whenAborted(this.#signal, () => this.#wake?.())
    await Promise.race([woken, ...this.#answering])
    this.#wake = undefined
    unwatch()
  }
}

/** What a request waits for: its next token, its end, or nothing. */
type Watched = 'token' | 'finish' | 'idle'

/** A request that can be continued. */
interface Kept {
  id: number
  prompt: ArrayLike<number> & Iterable<number>
  /** Length in tokens of the first request's prompt. */
  prefix: number
  options: SchedulerRequestOptions
}

/**
 * An active sequence in a {@link Scheduler}. Iterate over its tokens, or wait for its result. Breaking out of the iteration
 * cancels it.
 */
export class GenerateRequest implements AsyncIterable<GenerateChunk> {
  /** @internal */
  watched: Watched
  readonly #model: GeneratingModel
  readonly #operation: string
  readonly #request: Request
  readonly #promptLength: number
  readonly #alternatives: boolean
  readonly #context: readonly number[] // the last tokens of the prompt, as context for decoding text
  readonly #text: TextStream | undefined // searched for stop strings
  readonly #remove: (keep: boolean) => void
  readonly #unwatch: () => void // removes the listener from the signal
  readonly #tokens: number[] = []
  readonly #logprobs: number[] = []
  readonly #loops: number[] = []
  readonly #topLogprobs: TokenLogprob[][] = []
  readonly #pieces: string[] = []
  #reused = 0
  #finish: FinishReason | undefined
  #error: unknown
  #wake: (() => void) | undefined
  #change: Promise<void> | undefined

  /** @internal */
  constructor(
    model: GeneratingModel,
    request: Request,
    watched: Watched,
    operation: string,
    remove: (keep: boolean) => void,
    signal: AbortSignal | undefined,
  ) {
    this.#model = model
    this.#operation = operation
    this.#request = request
    this.#promptLength = request.native.prompt.length
    this.#alternatives = request.native.alternatives > 0
    this.#context = model.tokenizer === undefined ? [] : contextOf(model.tokenizer, request.native.prompt)
    this.#text = request.stopTexts.length > 0 ? new TextStream(model.tokenizer!, request.stopTexts, this.#context) : undefined
    this.#remove = remove
    this.watched = watched
    this.#unwatch = whenAborted(signal, () => {
      this.fail(new LoopLMError('ABORTED', 'the operation was aborted by its AbortSignal', { operation, cause: signal?.reason }))
      remove(false)
    })
  }

  /**
   * Resolves to the whole result when the request has ended.
   *
   * @throws LoopLMError ABORTED if its signal fires, DISPOSED, NON_FINITE as {@link LoopLM.generate}, OUT_OF_MEMORY if the
   *   device has no room for it
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

  /** Cancels the request and frees its row before the next pass. It keeps its tokens so far, with finishReason `cancelled`. */
  cancel(): void {
    if (this.#finish !== undefined || this.#error !== undefined) return
    this.#end('cancelled')
    this.#remove(false)
  }

  /**
   * Ends the request after its current tokens, with finish reason `stop`. If it was added with `keep: true` it can be
   * continued. Does nothing if it has already ended. An iteration that has yielded the last token then ends without a finish
   * reason; {@link result} has it, and the text that was held back for a stop string.
   */
  stop(): void {
    if (this.#finish !== undefined || this.#error !== undefined) return
    this.#end('stop')
    this.#remove(true)
  }

  /** Frees the cache of a request that was added with `keep: true`. It cannot be continued afterwards. */
  release(): void {
    this.cancel()
    this.#remove(false)
  }

  /** How many tokens of its prompt were taken from the cache. 0 before its first token. */
  get reused(): number {
    return this.#reused
  }

  /**
   * Its tokens if it has ended and can be continued.
   * @internal
   */
  get ended(): readonly number[] | undefined {
    return this.#finish === undefined || this.#finish === 'cancelled' ? undefined : this.#tokens
  }

  /** Yields every token, starting with the first. */
  async *[Symbol.asyncIterator](): AsyncGenerator<GenerateChunk, void, undefined> {
    this.watched = 'token'
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

  /**
   * The logits of the next draw after the request's processor. undefined if the processor failed.
   * @internal
   */
  processed(logits: RealArray): Float64Array | undefined {
    const { processor, native } = this.#request
    try {
      const context = { prompt: native.prompt, tokens: this.#tokens, index: native.sequence }
      return checkedLogits(processor!(logits, context) ?? logits, logits.length, this.#operation)
    } catch (error) {
      this.fail(error)
      this.#remove(false)
      return undefined
    }
  }

  /** @internal */
  receive({ tokens, logprobs, loops, alternatives, finish, failure, reused }: NativeGenerateEvent): void {
    if (tokens.length > 0) this.#reused = reused
    for (let i = 0; i < tokens.length; i++) {
      if (!Number.isFinite(logprobs[i])) {
        this.fail(this.#nonFinite(logprobs[i]!, loops[i]!))
        this.#remove(false)
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
      this.#remove(true)
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

  /** The error for a token that was drawn from logits that are not numbers. Its id is arbitrary, so it is not returned. */
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

  /** Resolves when the state of the request has changed. */
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
