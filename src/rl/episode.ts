// One episode: turns of the model, tool calls and the environment's replies. The cache keeps the conversation throughout.
import { setMaxListeners } from 'node:events'
import { whenAborted } from '../abort.js'
import { sampledTurn } from '../chat/sampled-turn.js'
import { entropyOf } from '../chat/signals.js'
import { type Tool, type ToolRunner, toolSchemas } from '../chat/tools.js'
import { within } from '../chat/within.js'
import type { ChatFormat } from '../data/chat-format.js'
import type { ChatMessage } from '../data/chat-template.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { type ToolCall, ToolCallStream } from '../data/tool-calls.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import type { GenerateRequest, Scheduler } from '../model/scheduler.js'
import type { GenerateResult, SchedulerRequestOptions } from '../model/types.js'
import { describe } from '../validation/arguments.js'
import { areTools, type Environment, type Episode, type EpisodeTurn, type StepResult } from './environment.js'
import type { Problem } from './rollout-record.js'
import { type EncodedPrompts, type ToolMessage, Transcript } from './transcript.js'

/** What the episodes of a step share. */
export interface EpisodeSettings {
  environment: Environment
  tools: readonly Tool[]
  tokenizer: Tokenizer
  chat: ChatFormat
  scheduler: Scheduler
  runner: ToolRunner
  /** `maxNewTokens` applies to a turn. */
  generation: SchedulerRequestOptions & { maxNewTokens: number }
  maxTurns: number
  maxEpisodeTokens: number
  reencode: boolean
  /** Cache of encoded prompts. */
  encoded: EncodedPrompts
  /** Branch where the mean entropy of the model is at least this many nats. */
  branch?: { entropy: number } | undefined
  /** Time limit in seconds for a call of the environment. 0 means no limit. */
  timeout: number
  /** Ends all episodes if one of them fails or the run is aborted. */
  signal: AbortSignal
  nameOf(problem: Problem): string
}

/** Identifies an episode. */
export interface EpisodePlace {
  problem: Problem
  /** Seed of the environment. */
  seed: number
  /** Draws of tokens depend on this number and on the seed of the settings. */
  sequence: number
  /** Such numbers for the episodes that may branch off. */
  spare?: readonly number[]
}

/** The result of an episode. */
export interface EpisodeRecord {
  tokens: number[]
  promptLength: number
  /** One entry per token after the prompt. */
  mask: number[]
  logprobs: number[]
  loops: number[]
  turns: { begin: number; end: number; reward: number | null }[]
  /** Sum of the rewards of all turns. null if none had a reward. */
  reward: number | null
  truncated: boolean
  /** The text that the model reads. */
  prompt: string
  /** The text of the last turn. */
  text: string
  messages: ChatMessage[] | undefined
  calls: number
  failures: number
}

/** A running episode. */
export class EpisodePlayer {
  readonly #settings: EpisodeSettings
  readonly place: EpisodePlace
  readonly #controller = new AbortController() // for this episode
  readonly #unwatch: () => void
  readonly #record: EpisodeRecord
  #made: Promise<Episode> | undefined
  #episode: Episode | undefined
  #tools: readonly Tool[] = []
  #transcript: Transcript | undefined
  #request: GenerateRequest | undefined
  #turn = 0
  #spare: readonly number[]
  #before: GenerateRequest | undefined // the previous turn, while episodes may still branch off after it
  #given: readonly number[] = [] // what the environment wrote after it
  readonly #played: EpisodeTurn[] = []
  #replays: readonly EpisodeTurn[] = []

  constructor(settings: EpisodeSettings, place: EpisodePlace) {
    this.#settings = settings
    this.place = place
    this.#spare = place.spare ?? []
    setMaxListeners(0, this.#controller.signal)
    this.#unwatch = whenAborted(settings.signal, () => this.#controller.abort(settings.signal.reason))
    this.#record = {
      ...{ tokens: [], promptLength: 0, mask: [], logprobs: [], loops: [], turns: [], reward: null },
      ...{ truncated: false, prompt: '', text: '', messages: undefined, calls: 0, failures: 0 },
    }
  }

  /** Creates the environment's episode and encodes its prompt. */
  async open(): Promise<void> {
    const { tokenizer, chat, reencode, maxEpisodeTokens, encoded } = this.#settings
    const episode = await this.#makeEpisode()
    const columns = this.#tools.length === 0 ? {} : { tools: toolSchemas(this.#tools) }
    const render = (messages: readonly ChatMessage[]) => chat.prompt(messages, columns).text
    this.#transcript = this.#named('prompt', () => new Transcript(tokenizer, episode.prompt, { render, reencode }, encoded))
    this.#record.prompt = this.#transcript.promptText
    const { promptTokens } = this.#transcript
    if (promptTokens.length === 0) throw this.#error('the prompt has no tokens; give at least one to go on from')
    if (promptTokens.length >= maxEpisodeTokens)
      throw this.#error(
        `the prompt has ${promptTokens.length} tokens, and an episode has at most ${maxEpisodeTokens} (maxEpisodeTokens)`,
      )
    this.#record.tokens.push(...promptTokens)
    this.#record.promptLength = promptTokens.length
  }

  async #makeEpisode(): Promise<Episode> {
    const { environment, tools } = this.#settings
    const { problem, seed } = this.place
    const context = { seed, signal: this.#controller.signal }
    const making = (async () => environment(problem, context))()
    this.#made = making
    const episode = checkEpisode(await this.#ask('the environment', () => making), (message) => this.#error(message))
    this.#episode = episode
    this.#tools = [...tools, ...(episode.tools ?? [])]
    return episode
  }

  /** Adds the prompt to the batch. Equal prompts of episodes that enter together run once. */
  enter(): void {
    this.#request = this.#settings.scheduler.add(this.#record.tokens, this.#options())
  }

  /**
   * Plays the episode to its end.
   *
   * @param branched is called with the episodes that branch off; they are then running
   * @returns the record, and the sequence numbers that no branch has used
   */
  async play(
    branched: (players: readonly EpisodePlayer[]) => void = () => {},
  ): Promise<{ record: EpisodeRecord; spare: readonly number[] }> {
    await this.#catchUp()
    for (;;) {
      const result = await this.#request!.result()
      const branches = this.#branchOff(result)
      if (branches.length > 0) branched(branches)
      const next = await this.#answer(result)
      if (next === undefined) break
      this.#turn++
      if (next.reencoded) {
        this.#request!.release()
        this.#restart(next.tokens)
        this.enter()
      } else {
        this.#add(next.tokens)
        const fork = this.#spare.length > 0
        if (fork) this.#before = this.#request
        this.#given = next.tokens
        this.#request = this.#settings.scheduler.continue(this.#request!, next.tokens, { ...this.#options(), fork })
      }
    }
    this.#record.messages = this.#transcript!.messages
    return { record: this.#record, spare: this.#spare }
  }

  /** Creates episodes that share this episode's beginning and sample the newest turn again. None if the model was certain. */
  #branchOff({ topLogprobs = [] }: GenerateResult): EpisodePlayer[] {
    const before = this.#before
    this.#before = undefined
    if (before === undefined) return []
    const { branch, scheduler } = this.#settings
    if (branch === undefined || uncertainty(topLogprobs) < branch.entropy) {
      before.release()
      return []
    }
    const sequences = this.#spare
    this.#spare = []
    return sequences.map((sequence, i) => {
      const player = new EpisodePlayer(this.#settings, { problem: this.place.problem, seed: this.place.seed, sequence })
      Object.assign(player.#record, structuredClone(this.#record))
      player.#transcript = this.#transcript!.copy()
      player.#turn = this.#turn
      player.#replays = [...this.#played]
      // the last one releases the previous turn, after all have begun
      const options = { ...player.#options(), fork: i + 1 < sequences.length }
      player.#request = scheduler.continue(before, this.#given, options)
      return player
    })
  }

  /** Brings the environment of a branched episode to the current state, by replaying its turns with the same seed. */
  async #catchUp(): Promise<void> {
    if (this.#replays.length === 0) return
    await this.#makeEpisode()
    for (const turn of this.#replays) {
      await this.#step(turn)
      this.#played.push(turn)
    }
  }

  /** Releases all resources. */
  async close(): Promise<void> {
    this.#unwatch()
    this.#before?.release()
    this.#request?.release()
    const episode = this.#episode
    this.#episode = undefined
    // an environment that answers too late, or wrongly, may hold resources too
    if (episode === undefined) this.#made?.then((late: Episode | undefined) => late?.close?.()).catch(() => {})
    try {
      // an aborted run waits for close() as well
      if (episode?.close !== undefined) await this.#ask('close()', async () => episode.close!(), new AbortController().signal)
    } finally {
      this.#controller.abort(new LoopLMError('ABORTED', 'the episode is over'))
    }
  }

  #options(): SchedulerRequestOptions {
    const { generation, maxEpisodeTokens, signal } = this.#settings
    const maxNewTokens = Math.min(generation.maxNewTokens, maxEpisodeTokens - this.#record.tokens.length)
    const watched = this.#turn > 0 && this.#spare.length > 0 ? { logprobs: alternatives } : {}
    return { ...generation, ...watched, keep: true, sequence: this.place.sequence, maxNewTokens, signal }
  }

  /** Adds a turn. Returns what the model reads next, or undefined at the end. */
  async #answer(result: GenerateResult): Promise<{ tokens: number[]; reencoded: boolean } | undefined> {
    const record = this.#record
    const { maxTurns, maxEpisodeTokens, tokenizer, generation } = this.#settings
    const sampled = sampledTurn(tokenizer, result, generation.stop)
    const begin = record.tokens.length
    record.tokens.push(...result.tokens)
    record.mask.push(...result.tokens.map(() => 1))
    record.logprobs.push(...result.logprobs)
    record.loops.push(...result.loops)
    record.text = sampled.text
    const toolCalls = this.#tools.length === 0 ? [] : callsIn(sampled.text)
    const results = await Promise.all(toolCalls.map((call) => this.#call(call)))
    const turn = { text: sampled.text, tokens: result.tokens, toolCalls, index: this.#turn }
    const step = await this.#step(turn)
    this.#played.push(turn)
    if (step.reward !== undefined) record.reward = (record.reward ?? 0) + step.reward
    record.turns.push({ begin, end: record.tokens.length, reward: step.reward ?? null })
    const goesOn = step.done !== true && (results.length > 0 || step.reply !== undefined)
    if (!goesOn) {
      record.truncated = step.done !== true && result.finishReason === 'length'
      this.#transcript!.end(sampled, results)
      return undefined
    }
    const next = this.#named('reply', () => this.#transcript!.next(sampled, results, step.reply))
    const length = next.reencoded ? next.tokens.length : record.tokens.length + next.tokens.length
    if (this.#turn + 1 < maxTurns && length < maxEpisodeTokens) return next
    record.truncated = true
    return undefined
  }

  async #call(call: ToolCall): Promise<ToolMessage> {
    const { content, failed } = await this.#settings.runner.run(this.#tools, call)
    this.#record.calls++
    if (failed) this.#record.failures++
    return { role: 'tool', name: call.function.name, content }
  }

  async #step(turn: EpisodeTurn): Promise<StepResult> {
    const episode = this.#episode!
    if (episode.step === undefined) return {}
    const step = await this.#ask('step()', async () => episode.step!(turn))
    return checkStep(step, (message) => this.#error(message))
  }

  /** Adds tokens that the environment wrote. */
  #add(tokens: readonly number[]): void {
    const record = this.#record
    record.tokens.push(...tokens)
    for (const list of [record.mask, record.logprobs, record.loops]) list.push(...tokens.map(() => 0))
  }

  /** Called when the template rewrote the conversation. Only tokens that are sampled from now on are trained. */
  #restart(tokens: readonly number[]): void {
    const record = this.#record
    let same = 0
    while (same < record.promptLength && record.tokens[same] === tokens[same]) same++
    record.promptLength = Math.max(1, same)
    record.tokens = tokens.slice(0, record.promptLength)
    record.mask = []
    record.logprobs = []
    record.loops = []
    record.turns = []
    this.#add(tokens.slice(record.promptLength))
    this.#before = undefined
  }

  /** Calls the environment with a time limit. */
  async #ask<T>(what: string, call: () => Promise<T>, signal = this.#settings.signal): Promise<T> {
    const { timeout } = this.#settings
    const late = () =>
      new LoopLMError('ABORTED', `no answer within environmentTimeout = ${timeout} s; raise it, or find out what hangs`)
    try {
      return await within(call(), timeout, signal, late)
    } catch (cause) {
      if (signal.aborted) throw signal.reason
      throw this.#error(`${what} failed: ${(cause as Error)?.message ?? String(cause)}`, cause)
    }
  }

  #named<T>(what: string, action: () => T): T {
    try {
      return action()
    } catch (cause) {
      throw this.#error(`${what}: ${(cause as Error).message}`, cause)
    }
  }

  #error(message: string, cause?: unknown): LoopLMError {
    const code = cause === undefined ? 'INVALID_ARGUMENT' : toLoopLMError(cause).code
    const where = `${this.#settings.nameOf(this.place.problem)}, turn ${this.#turn + 1}`
    return new LoopLMError(code, `${where}: ${message}`, { operation: 'environment', cause })
  }
}

const alternatives = 10
const firstTokens = 8

/** Mean entropy, in nats, of the most probable tokens at the beginning of a turn (ARPO, arXiv 2507.19849). */
function uncertainty(tops: readonly (readonly { logprob: number }[])[]): number {
  const first = tops.slice(0, firstTokens)
  const entropies = first.map(entropyOf)
  return entropies.reduce((a, b) => a + b, 0) / Math.max(1, first.length)
}

/** The tool calls in a turn. */
function callsIn(text: string): ToolCall[] {
  const stream = new ToolCallStream()
  return [...stream.push(text).calls, ...stream.flush().calls]
}

function checkEpisode(episode: unknown, refuse: (message: string) => LoopLMError): Episode {
  const { prompt, tools, step, close } = (typeof episode === 'object' && episode !== null ? episode : {}) as Episode
  if (typeof prompt !== 'string' && !Array.isArray(prompt))
    throw refuse(`the environment must return an episode with a prompt, a string or messages, got ${describe(episode)}`)
  if (tools !== undefined && !areTools(tools))
    throw refuse(`tools of an episode must be a list of tools, as defineTool makes them, got ${describe(tools)}`)
  if (step !== undefined && typeof step !== 'function') throw refuse('step of an episode must be a function')
  if (close !== undefined && typeof close !== 'function') throw refuse('close of an episode must be a function')
  return episode as Episode
}

function checkStep(step: unknown, refuse: (message: string) => LoopLMError): StepResult {
  if (step === undefined) return {}
  if (typeof step !== 'object' || step === null) throw refuse(`step() must return an object or nothing, got ${describe(step)}`)
  const { reply, reward, done } = step as StepResult
  const unknown = Object.keys(step).find((name) => !['reply', 'reward', 'done'].includes(name))
  if (unknown !== undefined) throw refuse(`step() returned the unknown field "${unknown}"; there are reply, reward and done`)
  if (reply !== undefined && typeof reply !== 'string' && !Array.isArray(reply))
    throw refuse(`reply must be a string or messages, got ${describe(reply)}`)
  if (reward !== undefined && !(typeof reward === 'number' && Number.isFinite(reward)))
    throw refuse(`reward must be a finite number, got ${describe(reward)}`)
  if (done !== undefined && typeof done !== 'boolean') throw refuse(`done must be true or false, got ${describe(done)}`)
  return step as StepResult
}
