import '../dispose.js'
import type { ChatMessage } from '../data/chat-template.js'
import { changedIntegers } from '../data/exact-json.js'
import { opensThought, type ToolCall, ToolCallStream } from '../data/tool-calls.js'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import { generateOptions } from '../model/options.js'
import { readRequests } from '../model/request.js'
import { Scheduler } from '../model/scheduler.js'
import { stopTokens } from '../model/special-tokens.js'
import { TextStream } from '../model/text-stream.js'
import type { FinishReason, GenerateOptions } from '../model/types.js'
import { checkFlag, checkNumber, checkOptions, checkWord, describe } from '../validation/arguments.js'
import {
  type ChatAnswer,
  type ChatPiece,
  type ChatSessionOptions,
  type ChatToolCall,
  type ChatTurnOptions,
  chatModes,
  sessionOptions,
  turnOptions,
} from './options.js'
import { PromptCache } from './prompt-cache.js'
import { type ChatPrompt, ChatPrompts, type Said } from './prompts.js'
import { sampledTurn } from './sampled-turn.js'
import { type ChatThresholds, signalNames, wantsThought } from './signals.js'
import { type Tool, ToolRunner } from './tools.js'
import { ChatTurn } from './turn.js'
import { maxTimeout } from './within.js'

/** A turn in progress. */
interface Turn {
  options: ChatTurnOptions
  answer: ChatAnswer
  push: (piece: ChatPiece) => void
  /** Fires if the caller aborts, or if the turn is stopped. */
  ending: AbortSignal
}

/**
 * A conversation with a model: history, automatic tool calls, and thoughts that you can turn on, turn off or leave to the
 * model. Tokens of the conversation that are in the KV cache do not run again.
 *
 * @example
 * ```ts
 * using chat = new ChatSession(model, { system: 'Be brief.', temperature: 0.7 })
 * const { text, loops } = await chat.send('What is a looped model?')
 * for await (const piece of chat.stream('And why?')) process.stdout.write(piece.text)
 * const later = new ChatSession(model, { messages: chat.messages })
 * ```
 */
export class ChatSession {
  readonly #model: LoopLM
  readonly #options: ChatSessionOptions
  readonly #tools: readonly Tool[]
  readonly #maxToolRounds: number
  readonly #toolTimeout: number
  readonly #prompts: ChatPrompts
  readonly #cache: PromptCache
  readonly #opening: readonly ChatMessage[]
  #messages: ChatMessage[]
  #said: Said | undefined // of the history's last turn
  #turn: ChatTurn | undefined
  #disposed = false

  /**
   * @throws LoopLMError INVALID_ARGUMENT naming the option, UNSUPPORTED without a tokenizer or a chat template, INVALID_CONFIG
   *   for settings of the template
   */
  constructor(model: LoopLM, options: ChatSessionOptions = {}) {
    const operation = 'ChatSession'
    checkOptions(options, sessionOptions, operation)
    checkMode(options, operation)
    const { tokenizer, chatTemplate, tools = [], messages = [], scheduler, kv, cacheType } = options
    const system = options.system ?? chatTemplate?.system
    this.#model = model
    this.#options = given(options)
    this.#tools = readTools(tools, operation)
    this.#maxToolRounds = checkNumber(options.maxToolRounds ?? 8, 'maxToolRounds', { min: 0, integer: true }, operation)
    this.#toolTimeout = checkNumber(options.toolTimeout ?? 30, 'toolTimeout', { min: 0, max: maxTimeout }, operation)
    this.#prompts = new ChatPrompts(model, tokenizer, chatTemplate, tools, operation)
    checkGeneration(model, options, operation)
    if (scheduler !== undefined && !(scheduler instanceof Scheduler && scheduler.belongsTo(model))) {
      const what = scheduler instanceof Scheduler ? 'that of another model' : describe(scheduler)
      const message = `scheduler: must be one that model.scheduler() made for the session's model, got ${what}.`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    const exact = checkFlag(options.exact ?? false, 'exact', operation)
    this.#cache = new PromptCache(model, { scheduler, kv, cacheType, exact })
    const opening = readMessages(messages, 'messages', operation)
    const headed = opening[0]?.role === 'system' || opening[0]?.role === 'developer'
    this.#opening = system === undefined || headed ? opening : [{ role: 'system', content: system }, ...opening]
    this.#messages = [...this.#opening]
  }

  /** The conversation so far. It survives JSON: `new ChatSession(model, { messages })` continues it. */
  get messages(): ChatMessage[] {
    return structuredClone(this.#messages)
  }

  /**
   * Sends a message. If the model calls tools, they run and it continues with their results.
   *
   * @param input the message of a user, or messages of any role
   * @throws LoopLMError INVALID_ARGUMENT if the conversation leaves no room in the model's context, or if another turn is in
   *   progress; as {@link ChatTurn.result}. The conversation is then the same as before.
   */
  async send(input: string | readonly ChatMessage[], options: ChatTurnOptions = {}): Promise<ChatAnswer> {
    return this.#begin(input, options, 'ChatSession.send').result()
  }

  /** Like {@link send}, but yields the tokens as they come. */
  stream(input: string | readonly ChatMessage[], options: ChatTurnOptions = {}): ChatTurn {
    return this.#begin(input, options, 'ChatSession.stream')
  }

  /**
   * Starts a new conversation and frees the cache. Also call it when the parameters of the model have changed.
   *
   * @param messages defaults to those that the session began with
   */
  reset(messages: readonly ChatMessage[] = this.#opening): void {
    const operation = 'ChatSession.reset'
    this.#checkIdle(operation)
    this.#messages = [...readMessages(messages, 'messages', operation)]
    this.#said = undefined
    this.#cache.clear()
  }

  /** Stops a turn in progress and frees the cache. */
  dispose(): void {
    this.#disposed = true
    this.#turn?.stop()
    this.#cache.dispose()
  }

  /** `using chat = …` disposes the session at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  #begin(input: string | readonly ChatMessage[], options: ChatTurnOptions, operation: string): ChatTurn {
    this.#checkIdle(operation)
    checkOptions(options, turnOptions, operation)
    const settings = { ...this.#options, ...given(options) }
    checkMode(settings, operation)
    checkGeneration(this.#model, settings, operation)
    const asked = typeof input === 'string' ? [{ role: 'user', content: input }] : readMessages(input, 'input', operation)
    const turn = new ChatTurn((push, stopped) => this.#answer(asked, settings, push, stopped))
    this.#turn = turn
    return turn
  }

  #checkIdle(operation: string): void {
    if (this.#disposed) throw new LoopLMError('DISPOSED', 'the session was disposed. Make another one.', { operation })
    if (this.#turn === undefined) return
    const message = 'another message is being answered. Wait for its result, or stop it and wait.'
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }

  async #answer(
    asked: readonly ChatMessage[],
    options: ChatTurnOptions,
    push: (piece: ChatPiece) => void,
    stopped: AbortSignal,
  ): Promise<ChatAnswer> {
    const before = { messages: this.#messages, said: this.#said }
    const { signal, onToken } = options
    const answer: ChatAnswer = {
      ...{ text: '', reasoning: '', tokens: [], logprobs: [], loops: [], calls: [] },
      ...{ finishReason: 'stop', mode: undefined },
    }
    const failing = new AbortController()
    const told: Promise<unknown>[] = []
    const tell = (piece: ChatPiece) => {
      push(piece)
      if (onToken === undefined) return
      const heard = Promise.resolve(onToken(piece))
      told.push(heard)
      heard.catch(() => failing.abort())
    }
    const ending = AbortSignal.any([stopped, failing.signal, ...(signal === undefined ? [] : [signal])])
    const turn = { options, answer, push: tell, ending }
    try {
      this.#messages = [...before.messages, ...structuredClone(asked)]
      await Promise.resolve() // now #turn is set
      await this.#play(turn)
      await Promise.all(told)
      if (signal?.aborted) throw aborted(signal)
      if (stopped.aborted) answer.finishReason = 'cancelled'
      return answer
    } catch (error) {
      this.#messages = before.messages
      this.#said = before.said
      throw signal?.aborted ? aborted(signal) : error
    } finally {
      this.#turn = undefined
    }
  }

  /** Runs the model and its tools in turns, until the model calls no tool. */
  async #play(turn: Turn): Promise<void> {
    const { answer, ending } = turn
    const runner = new ToolRunner({ concurrency: 16, timeout: this.#toolTimeout, signal: ending })
    let prompt = await this.#firstPrompt(turn)
    for (let round = 0; ; round++) {
      const calls = await this.#round(prompt, turn)
      if (calls.length === 0 || ending.aborted) return
      if (round === this.#maxToolRounds) {
        answer.finishReason = 'tool-calls'
        return
      }
      const results = await Promise.all(calls.map((call) => this.#call(runner, call, turn)))
      this.#messages.push(...results)
      if (ending.aborted) return
      prompt = this.#prompts.prompt(this.#messages, answer.mode, this.#said)
    }
  }

  /** The prompt of a turn, whose response begins with or without thoughts. */
  async #firstPrompt({ options, answer, ending }: Turn): Promise<ChatPrompt> {
    const write = (mode: 'think' | 'no-think' | undefined) => this.#prompts.prompt(this.#messages, mode, this.#said)
    const { mode, auto = defaultThresholds, grammar } = options
    if (mode === 'auto') {
      const direct = write('no-think')
      this.#checkRoom(direct)
      const signals = await this.#cache.measure(direct.tokens, auto, options.loops, ending)
      answer.mode = signals !== undefined && wantsThought(signals, auto) ? 'think' : 'no-think'
      if (signals !== undefined) answer.signals = signals
      return answer.mode === 'think' ? write('think') : direct
    }
    answer.mode = mode
    const prompt = write(mode)
    if (grammar === undefined || !opensThought(prompt.text)) return prompt
    answer.mode = 'no-think' // the grammar applies from the beginning of the response
    return write('no-think')
  }

  /**
   * Generates one response and adds it to the conversation.
   * @returns its calls of known tools
   */
  async #round(prompt: ChatPrompt, { options, answer, push, ending }: Turn): Promise<ToolCall[]> {
    this.#checkRoom(prompt)
    const { tokenizer } = this.#prompts
    const generation = this.#generation(options)
    const thinking = opensThought(prompt.text)
    const takes = this.#tools.length > 0 && options.grammar === undefined
    const stream = new TextStream(
      tokenizer,
      (options.stop ?? []).filter((stop) => typeof stop === 'string'),
      prompt.tokens,
    )
    const tags = { thinking, leading: options.grammar !== undefined }
    const parts = new ToolCallStream(undefined, { calls: takes ? 'take' : 'keep', ...tags })
    const tokens: number[] = []
    const calls: ToolCall[] = []
    let whole = ''
    let reasoning = ''
    const earlier = { text: answer.text, reasoning: answer.reasoning }
    const add = (field: 'text' | 'reasoning', more: string) => {
      const parting = more !== '' && earlier[field] !== '' && answer[field] === earlier[field] ? '\n\n' : ''
      answer[field] += parting + more
      return parting + more
    }
    const read = (piece: string, last: boolean) => {
      whole += piece
      const [some, rest] = [parts.push(piece), last ? parts.flush() : { text: '', reasoning: '', calls: [] }]
      const thought = some.reasoning + rest.reasoning
      reasoning += thought
      calls.push(...some.calls, ...rest.calls)
      return { text: add('text', some.text + rest.text), reasoning: add('reasoning', thought) }
    }
    let finish: FinishReason | undefined
    await this.#cache.generate(
      prompt.tokens,
      generation,
      ({ token, logprob, loop, finishReason }) => {
        tokens.push(token)
        answer.tokens.push(token)
        answer.logprobs.push(logprob)
        answer.loops.push(loop)
        const ended = finishReason !== undefined
        if (ended) finish = finishReason
        push({ ...read(stream.push(token) + (ended ? stream.flush() : ''), ended), token, logprob, loop })
      },
      ending,
    )
    if (finish === undefined) {
      read(stream.flush(), true)
      finish = ending.aborted ? 'cancelled' : 'stop' // a grammar may also end a response without tokens
    }
    answer.finishReason = finish
    const sampled = sampledTurn(tokenizer, { tokens, finishReason: finish }, generation.stop)
    this.#said = { text: prompt.text + sampled.text, end: sampled.end, tokens: [...prompt.tokens, ...tokens] }
    this.#messages.push(this.#message(whole, reasoning, calls, tags))
    return calls
  }

  /** A response in the form that the template takes: thoughts are separate, and so are calls if the template renders them. */
  #message(
    whole: string,
    reasoning: string,
    calls: readonly ToolCall[],
    tags: { thinking: boolean; leading: boolean },
  ): ChatMessage {
    const taken = this.#prompts.writesCalls && calls.length > 0
    const parts = new ToolCallStream(undefined, { calls: taken ? 'take' : 'keep', ...tags })
    const content = parts.push(whole).text + parts.flush().text
    const earlier = this.#messages.flatMap(({ tool_calls: made }) => (Array.isArray(made) ? made : [])).length
    for (const [i, call] of calls.entries()) call.id = `call_${earlier + i + 1}`
    const written = calls.map(({ id, type, function: { name, arguments: text } }) => {
      // an integer that JavaScript would change stays in the text
      return { id, type, function: { name, arguments: changedIntegers(text).length > 0 ? text : JSON.parse(text) } }
    })
    return {
      ...{ role: 'assistant', content },
      ...(reasoning === '' ? {} : { reasoning_content: reasoning }),
      ...(taken ? { tool_calls: written } : {}),
    }
  }

  /** Runs a tool call. An error becomes its result. */
  async #call(runner: ToolRunner, call: ToolCall, { options, answer, ending }: Turn): Promise<ChatMessage> {
    const { name, arguments: given } = call.function
    const { content, failed } = await runner.run(this.#tools, call).catch((error: unknown) => {
      if (!ending.aborted) throw error
      return { content: 'Error: the answer was stopped before the tool ended', failed: true }
    })
    const made: ChatToolCall = { name, arguments: JSON.parse(given), content, failed }
    answer.calls.push(made)
    await options.onTool?.(made)
    return { role: 'tool', name, tool_call_id: call.id, content }
  }

  /** The options that generation accepts. */
  #generation(options: ChatTurnOptions): GenerateOptions & { stop: (number | string)[] } {
    const stop = [...(options.stop ?? []), ...stopTokens(this.#model, this.#prompts.tokenizer)]
    return { maxNewTokens: 1024, ...generationOf(options), stop }
  }

  #checkRoom({ tokens }: ChatPrompt): void {
    const context = this.#model.config.max_position_embeddings
    if (tokens.length < context) return
    const message =
      `the conversation has ${tokens.length} tokens, and the model has a context of ${context}. ` +
      'Call reset(), or begin a session with fewer messages.'
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'ChatSession' })
  }
}

const defaultThresholds: ChatThresholds = { entropy: 0.3 }

function aborted(signal: AbortSignal): LoopLMError {
  const message = 'the answer was aborted by its AbortSignal'
  return new LoopLMError('ABORTED', message, { operation: 'ChatSession', cause: signal.reason })
}

function readMessages(messages: readonly ChatMessage[], name: string, operation: string): ChatMessage[] {
  if (Array.isArray(messages) && messages.every((message) => typeof message?.role === 'string')) return structuredClone(messages)
  const expected = name === 'input' ? 'a string, or messages such as' : 'a list of messages such as'
  const message = `${name}: must be ${expected} { role: 'user', content: 'Hi' }, got ${describe(messages)}.`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

function readTools(tools: readonly Tool[], operation: string): readonly Tool[] {
  const bad = Array.isArray(tools) ? tools.findIndex((tool) => typeof tool?.call !== 'function') : 0
  if (bad === -1) return tools
  const message = `tools: must be tools that defineTool made, got ${describe(Array.isArray(tools) ? tools[bad] : tools)}.`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

/** Options without those that are undefined, which count as omitted. */
function given<Options extends object>(options: Options): Options {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Options
}

function generationOf(options: ChatTurnOptions): GenerateOptions {
  return Object.fromEntries(Object.entries(options).filter(([name]) => name in generateOptions && name !== 'signal'))
}

function checkGeneration(model: LoopLM, options: ChatTurnOptions, operation: string): void {
  readRequests(model, [[0]], 'prompt', generationOf(options), operation)
}

function checkMode({ mode, auto, grammar }: ChatTurnOptions, operation: string): void {
  if (mode !== undefined) checkWord(mode, 'mode', chatModes, operation)
  if (grammar !== undefined && (mode === 'think' || mode === 'auto')) {
    const message = `grammar: cannot describe the thoughts of mode '${mode}'. Pass mode: 'no-think', or omit grammar.`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  if (auto === undefined) return
  checkOptions(auto, { entropy: true, entropyChange: true, expectedLoops: true }, operation, 'auto')
  for (const name of signalNames) if (auto[name] !== undefined) checkNumber(auto[name], `auto.${name}`, { min: 0 }, operation)
}
