// Keeps the newest sequence of a conversation in the KV cache. The next prompt continues from the longest common prefix.
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
  /** The tokens of the prompt and the generated tokens. */
  tokens: readonly number[]
}

/**
 * `continue` inherits the options of the previous request. This unsets all, so that no option of a turn reaches the next one.
 */
const unset = Object.fromEntries(Object.keys(continueOptions).map((name) => [name, undefined]))

/** Generates one token after a prompt, which runs every loop. */
const probe = { maxNewTokens: 1, temperature: 0, stop: [], exit: { rule: 'fixed' } } as const satisfies GenerateOptions

/** Generates after prompts with a common prefix. Each token of a prompt runs only once. */
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
   * @param given.scheduler whose batch the requests join; by default the cache creates its own
   * @param given.exact only reuse tokens that ran as part of a prompt: decoded ones differ in their last bits
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
    // If the prompt has bidirectional attention, it changes completely when it grows. A shared plane only has the keys of the
    // last loop.
    this.#keeps = model.architecture.prefixSeesItself !== true && (typeof kv === 'object' ? kv.planes : kv) !== 'shared'
  }

  /**
   * Generates after a prompt.
   *
   * @param took called with every token
   * @param signal ends the generation; the tokens so far stay in the cache
   */
  async generate(
    prompt: readonly number[],
    options: GenerateOptions,
    took: (chunk: GenerateChunk) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const before = this.#kept
    // For an exact cache, a sequence with one new token keeps the prompt, which runs once for both.
    const alone = { ...probe, ...(options.loops === undefined ? {} : { loops: options.loops }), keep: true }
    const held = this.#keeps && this.#exact ? this.#begin(prompt, alone) : undefined
    let request: GenerateRequest
    try {
      request = this.#begin(prompt, { ...options, keep: this.#keeps && held === undefined })
    } catch (error) {
      held?.release()
      throw error
    }
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
   * Measures signals at the end of a prompt. A following turn only runs the prompt's last token again.
   *
   * @returns undefined if the signal ended it
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

  /** Frees the cache. The next prompt runs as a whole. */
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
    const place = { at: same - kept.promptLength, fork: true } // released when the new request has begun
    return scheduler.continue(kept.request, prompt.slice(same), { ...unset, ...request, ...place })
  }

  /** A scheduler that can run at least this many loops. */
  #scheduler(loops = this.#model.config.total_ut_steps): Scheduler {
    if (this.#given !== undefined) return this.#given
    if (this.#own !== undefined && this.#own.loops >= loops) return this.#own.scheduler
    this.#own?.scheduler.dispose()
    this.#kept = undefined
    this.#own = { scheduler: this.#model.scheduler({ loops, ...this.#settings }), loops }
    return this.#own.scheduler
  }
}
