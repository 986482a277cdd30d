import type { ServerResponse } from 'node:http'
import { LoopLMError } from '../errors.js'
import type { GenerateRequest, Scheduler } from '../model/scheduler.js'
import type { GenerateOptions, RealArray, TokenSequence } from '../model/types.js'
import type { Admission } from './admission.js'
import { Batches } from './batches.js'
import { ChoiceReader } from './choice-reader.js'
import { sendEvent } from './http.js'
import type { ServerSettings } from './options.js'
import { type Plan, planEmbedding, type ScoreSettings, type Served } from './plan.js'
import type { Metrics } from './prometheus.js'
import type { EmbeddingRequest } from './request.js'
import { embeddingAnswer, type TokenReport, type Usage, usageOf } from './responses.js'

/**
 * Computes responses. Generated sequences of all requests share the scheduler's batch. Sequences that are scored or embedded
 * run in separate batches.
 */
export class Answers {
  readonly #served: Served
  readonly #settings: ServerSettings
  readonly #admission: Admission
  readonly #metrics: Metrics
  readonly #scores: Batches<ScoreSettings, TokenReport[]>
  readonly #vectors: Batches<{ loops?: number }, RealArray>
  #scheduler: Scheduler | undefined

  constructor(served: Served, settings: ServerSettings, admission: Admission, metrics: Metrics) {
    this.#served = served
    this.#settings = settings
    this.#admission = admission
    this.#metrics = metrics
    const { model } = served
    this.#scores = new Batches(settings.prefillTokens, (sequences, options) => this.#scoreAll(sequences, options))
    this.#vectors = new Batches(settings.prefillTokens, (sequences, options) => model.embed(sequences, options))
  }

  /** A counter of the scheduler. 0 before the first request. */
  count(name: 'cachedTokens' | 'retained' | 'passes' | 'passRows' | 'drafted' | 'accepted'): number {
    return this.#scheduler?.stats()[name] ?? 0
  }

  dispose(): void {
    this.#scheduler?.dispose()
  }

  /** Sends the response as one JSON object. */
  async whole(plan: Plan, controller: AbortController): Promise<object> {
    const readers = plan.choices.map((_, index) => new ChoiceReader(index, plan.parts?.()))
    const choices: object[] = []
    await this.#run(plan, readers, controller, (index) => {
      if (readers[index]!.complete) choices[index] = plan.format.choice(readers[index]!.take())
    })
    return plan.format.whole(choices, usage(plan, readers))
  }

  /** Sends the response as server-sent events. */
  async stream(plan: Plan, response: ServerResponse, controller: AbortController): Promise<void> {
    const { format, includeUsage } = plan
    const send = (value: object) => sendEvent(response, JSON.stringify(includeUsage ? { usage: null, ...value } : value))
    const readers = plan.choices.map((_, index) => new ChoiceReader(index, plan.parts?.()))
    const opened = new Set<number>()
    await this.#run(plan, readers, controller, (index) => {
      const opening = opened.has(index) ? undefined : format.opening(index)
      opened.add(index)
      if (opening !== undefined) send(opening)
      if (readers[index]!.ready) send(format.delta(readers[index]!.take()))
    })
    if (includeUsage) send(format.usage(usage(plan, readers)))
    sendEvent(response, '[DONE]')
    response.end()
  }

  /**
   * Runs all sequences of a request. The first failure ends the others, and all have ended when this returns or throws. A
   * sequence does not wait for the client: unread output stays in memory, and the sequence's slot becomes free.
   *
   * @param changed called when a choice has new output
   */
  async #run(
    plan: Plan,
    readers: readonly ChoiceReader[],
    controller: AbortController,
    changed: (index: number) => void,
  ): Promise<void> {
    const { signal } = controller
    const places = this.#admission.admit(plan.choices.length, signal)
    const start = performance.now()
    const echoes = new Map<TokenSequence, Promise<readonly TokenReport[]>>() // choices of the same prompt share its scores
    const run = async (index: number): Promise<void> => {
      const { prompt, options, echo } = plan.choices[index]!
      const reader = readers[index]!
      await places[index]!.granted
      if (echo !== undefined) {
        const tokens = echo.scores && (echoes.get(prompt) ?? this.#score(prompt, echo.scores, signal))
        if (tokens !== undefined) echoes.set(prompt, tokens)
        reader.repeat({ text: echo.text, tokens: (await tokens) ?? [] })
      }
      if (options.maxNewTokens === 0) {
        reader.end()
        changed(index)
        return
      }
      let before: number | undefined
      const tokens = this.#tokens(prompt, { ...options, signal })
      for await (const chunk of tokens) {
        const now = performance.now()
        if (before === undefined) this.#metrics.firstToken.observe((now - start) / 1000)
        else this.#metrics.interToken.observe((now - before) / 1000)
        before = now
        reader.cachedTokens = tokens.reused
        this.#metrics.newTokens.add()
        this.#metrics.loops.observe(chunk.loop)
        reader.add(chunk)
        changed(index)
        if (reader.complete) break
      }
    }
    const outcomes = await Promise.allSettled(
      plan.choices.map((_, index) =>
        run(index)
          .catch((error: unknown) => {
            const reason = signal.aborted ? signal.reason : error
            controller.abort(reason)
            throw reason
          })
          .finally(() => places[index]!.release()),
      ),
    )
    const failed = outcomes.find((outcome) => outcome.status === 'rejected')
    if (failed !== undefined) throw failed.reason
  }

  #tokens(prompt: TokenSequence, options: GenerateOptions): GenerateRequest {
    const {
      maxRunning: maxRows,
      maxCachedTokens: maxTokens,
      kv,
      cacheType,
      promptCache,
      speculate,
      prefillTokens,
    } = this.#settings
    this.#scheduler ??= this.#served.model.scheduler({ maxRows, maxTokens, kv, cacheType, promptCache, prefillTokens })
    return this.#scheduler.add(prompt, { ...options, speculate })
  }

  /** The log-probability of each token of a prompt, given the tokens before it. */
  async #score(prompt: TokenSequence, settings: ScoreSettings, signal: AbortSignal): Promise<TokenReport[]> {
    const first: TokenReport = { token: prompt[0]!, logprob: null, alternatives: null }
    const rest = prompt.length < 2 ? [] : await this.#scores.add(prompt, settings, signal)
    return [first, ...rest]
  }

  async #scoreAll(sequences: TokenSequence[], { temperature, loops, topLogprobs }: ScoreSettings): Promise<TokenReport[][]> {
    const options = { temperature, topLogprobs, lastLoop: true, ...(loops === undefined ? {} : { loops }) }
    const scores = await this.#served.model.score(sequences, options)
    return sequences.map((sequence, i) =>
      Array.from(scores.logprobs[i]!, (logprob, j) => {
        if (!Number.isFinite(logprob)) {
          const message = `the log-probability of token ${j + 1} of a prompt is ${logprob}: the model's parameters or states overflow`
          throw new LoopLMError('NON_FINITE', message)
        }
        return { token: sequence[j + 1]!, logprob, alternatives: scores.topLogprobs?.[i]?.[j] ?? [] }
      }),
    )
  }

  /** Answers POST /v1/embeddings. */
  async embed(request: EmbeddingRequest, controller: AbortController): Promise<object> {
    const { signal } = controller
    const { sequences } = await planEmbedding(this.#served, request)
    const promptTokens = sequences.reduce((sum, { length }) => sum + length, 0)
    this.#metrics.promptTokens.add(promptTokens)
    const [place] = this.#admission.admit(1, signal)
    try {
      await place!.granted
      const options = request.loops == null ? {} : { loops: request.loops }
      const vectors = await Promise.all(sequences.map((sequence) => this.#vectors.add(sequence, options, signal)))
      return embeddingAnswer(request.model, vectors, request.encoding_format === 'base64', promptTokens)
    } catch (error) {
      controller.abort(error) // the other sequences of this request need not run
      throw error
    } finally {
      place!.release()
    }
  }
}

function usage({ choices, promptTokens }: Plan, readers: readonly ChoiceReader[]): Usage {
  const cached = new Map<TokenSequence, number>() // choices of the same prompt share it; it counts once, for the first choice
  for (const [i, { prompt }] of choices.entries()) {
    cached.set(prompt, Math.min(cached.get(prompt) ?? Infinity, readers[i]!.cachedTokens))
  }
  const cachedTokens = [...cached.values()].reduce((sum, count) => sum + count, 0)
  return usageOf(
    { promptTokens, cachedTokens },
    readers.flatMap((reader) => reader.loops),
  )
}
