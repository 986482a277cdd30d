// What the cache has of a conversation: the newest sequence, behind which the next prompt goes on as far as they agree.
import { whenAborted } from '../abort.js'
import type { LoopLM } from '../model/model.js'
import { continueOptions } from '../model/options.js'
import type { GenerateRequest, Scheduler } from '../model/scheduler.js'
import type {
  CachePolicy,
  CacheType,
  GenerateChunk,
  GenerateOptions,
  SchedulerOptions,
  SchedulerRequestOptions,
} from '../model/types.js'
import { type ChatSignals, type ChatThresholds, mostProbable, probesOf, signalsOf } from './signals.js'

interface Kept {
  request: GenerateRequest
  promptLength: number
  /** Of the prompt, and those made. */
  tokens: readonly number[]
}

/** `continue` takes over the options of the request before; nothing of a turn may reach the next one. */
const unset = Object.fromEntries(Object.keys(continueOptions).map((name) => [name, undefined]))

/** One token behind a prompt, after every loop. */
const probe = { maxNewTokens: 1, temperature: 0, stop: [], exit: { rule: 'fixed' } } as const satisfies GenerateOptions

/** Generates behind prompts that begin alike, each token of which runs once. */
export class PromptCache {
  readonly #model: LoopLM
  readonly #settings: Pick<SchedulerOptions, 'kv' | 'cacheType'>
  readonly #keeps: boolean
  readonly #exact: boolean
  #given: Scheduler | undefined
  #own: { scheduler: Scheduler; loops: number } | undefined
  #kept: Kept | undefined
  #disposed = false

  /**
   * @param scheduler whose batch the requests join; default one for this cache alone
   * @param exact go on behind tokens of prompts alone: those that were decoded differ in their last bits
   */
  constructor(
    model: LoopLM,
    given: { scheduler: Scheduler | undefined; kv: CachePolicy | undefined; cacheType: CacheType | undefined; exact: boolean },
  ) {
    const { scheduler, kv, cacheType, exact } = given
    this.#exact = exact
    this.#model = model
    this.#given = scheduler
    this.#settings = { ...(kv !== undefined && { kv }), ...(cacheType !== undefined && { cacheType }) }
    // A prompt that sees itself both ways is another one whenever it grows. One plane has the keys of the last loop only.
    this.#keeps = model.architecture.prefixSeesItself !== true && (typeof kv === 'object' ? kv.planes : kv) !== 'shared'
  }

  /**
   * Generates behind a prompt.
   *
   * @param took gets every token
   * @param signal ends it; what was made stays in the cache
   */
  async generate(
    prompt: readonly number[],
    options: GenerateOptions,
    took: (chunk: GenerateChunk) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const before = this.#kept
    // Of an exact cache a sequence of one token holds the prompt, which runs once for both.
    const alone = { ...probe, ...(options.loops === undefined ? {} : { loops: options.loops }), keep: true }
    const held = this.#keeps && this.#exact ? this.#begin(prompt, alone) : undefined
    const request = this.#begin(prompt, { ...options, keep: this.#keeps && held === undefined })
    const unwatch = whenAborted(signal, () => request.stop())
    const tokens = [...prompt]
    const keeper = held ?? request
    try {
      for await (const chunk of request) {
        if (tokens.length === prompt.length) {
          before?.request.release()
          const kept = { request: keeper, promptLength: prompt.length, tokens: held === undefined ? tokens : prompt }
          this.#kept = this.#keeps ? kept : undefined
        }
        tokens.push(chunk.token)
        took(chunk)
      }
      await held?.result()
    } catch (error) {
      if (this.#kept?.request === keeper) this.#kept = undefined
      throw error
    } finally {
      unwatch()
      for (const one of [request, keeper]) if (this.#disposed || this.#kept?.request !== one) one.release()
    }
  }

  /**
   * What the model shows at the end of a prompt. A turn that follows runs the last token of it again, and no other.
   *
   * @returns undefined where the signal has ended it
   */
  async measure(
    prompt: readonly number[],
    wanted: ChatThresholds,
    loops: number | undefined,
    signal: AbortSignal,
  ): Promise<ChatSignals | undefined> {
    const [first, ...others] = probesOf(wanted, loops ?? this.#model.config.total_ut_steps)
    const options = {
      ...probe,
      logprobs: Math.min(mostProbable, this.#model.config.vocab_size),
      ...(loops === undefined ? {} : { loops }),
    }
    const requests = others.map(({ exit }) => this.#begin(prompt, { ...options, exit }))
    const read: GenerateChunk[] = []
    const main = this.generate(prompt, { ...options, exit: first!.exit }, (chunk) => read.push(chunk), signal)
    const unwatch = whenAborted(signal, () => {
      for (const request of requests) request.stop()
    })
    const [, ...results] = await Promise.all([main, ...requests.map((request) => request.result())]).finally(unwatch)
    if (signal.aborted) return undefined
    const tokens = [
      { loop: read[0]!.loop, topLogprobs: read[0]!.topLogprobs! },
      ...results.map((made) => ({ loop: made.loops[0]!, topLogprobs: made.topLogprobs![0]! })),
    ]
    return signalsOf(wanted, [first!, ...others], tokens)
  }

  /** Gives the cache back; the next prompt runs whole. */
  clear(): void {
    this.#kept?.request.release()
    this.#kept = undefined
  }

  dispose(): void {
    this.#disposed = true
    this.clear()
    this.#own?.scheduler.dispose()
  }

  #begin(prompt: readonly number[], options: SchedulerRequestOptions): GenerateRequest {
    const scheduler = this.#scheduler(options.loops)
    const loops = this.#own === undefined ? {} : { loops: options.loops ?? this.#model.config.total_ut_steps }
    const request = { ...options, ...loops }
    const kept = this.#kept
    if (kept === undefined) return scheduler.add(prompt, request)
    const most = this.#exact ? kept.promptLength : kept.tokens.length
    let same = 0
    while (same < most && kept.tokens[same] === prompt[same]) same++
    const place = { at: same - kept.promptLength, fork: true } // it is released when the new one has begun
    return scheduler.continue(kept.request, prompt.slice(same), { ...unset, ...request, ...place })
  }

  /** One that can run as many loops. */
  #scheduler(loops = this.#model.config.total_ut_steps): Scheduler {
    if (this.#given !== undefined) return this.#given
    if (this.#own !== undefined && this.#own.loops >= loops) return this.#own.scheduler
    this.#own?.scheduler.dispose()
    this.#kept = undefined
    this.#own = { scheduler: this.#model.scheduler({ loops, ...this.#settings }), loops }
    return this.#own.scheduler
  }
}
