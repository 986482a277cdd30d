import type { ChatSettings } from '../data/chat-format.js'
import type { ChatMessage } from '../data/chat-template.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { generateOptions } from '../model/options.js'
import type { Scheduler } from '../model/scheduler.js'
import type { FinishReason, GenerateOptions } from '../model/types.js'
import type { Keys } from '../validation/arguments.js'
import type { ChatSignals, ChatThresholds } from './signals.js'
import type { Tool } from './tools.js'

/** Whether a turn begins with thoughts. `auto` decides by signals that the model shows at the end of the prompt. */
export type ChatMode = 'think' | 'no-think' | 'auto'

/** The values of {@link ChatMode}. */
export const chatModes = ['think', 'no-think', 'auto'] as const

/** The generation options that a turn accepts. */
export type ChatGenerateOptions = Omit<
  GenerateOptions,
  | ('initialStates' | 'inputVectors' | 'sequenceNumbers' | 'logprobs' | 'kv' | 'cacheType' | 'promptCache')
  | ('stop' | 'maxNewTokens' | 'signal')
> & {
  /** The most new tokens of a response; if tools are called, of each of its parts. Defaults to 1024. */
  maxNewTokens?: number
  /** Strings or token ids that end a response, in addition to the end tokens of the model and of the chat template. */
  stop?: readonly (number | string)[]
}

/** Options that a session and each of its turns accept. */
export interface ChatTurnSettings extends ChatGenerateOptions {
  /**
   * Whether the model thinks before it answers. By default the chat template decides. `think` and `no-think` set the template's
   * variable `enable_thinking`. If the template does not use it, the turn begins with an open or with an empty `<think>` block.
   */
  mode?: ChatMode
  /** Thresholds of mode `auto`, which thinks if any of them is exceeded. Defaults to `{ entropy: 0.3 }`. */
  auto?: ChatThresholds
}

/** Options of {@link ChatSession}. Generation options are the defaults of its turns. */
export interface ChatSessionOptions extends ChatTurnSettings {
  /** Defaults to the model's. */
  tokenizer?: Tokenizer
  /** A message of the role `system`, added at the beginning if the conversation has none there. */
  system?: string
  /** The conversation so far, for example {@link ChatSession.messages} of an earlier session. */
  messages?: readonly ChatMessage[]
  /** Tools that the model may call; {@link defineTool} creates one. Fails if the chat template does not show tools. */
  tools?: readonly Tool[]
  /** How many rounds of tool calls run per turn. Later calls are returned to the caller. Defaults to 8. */
  maxToolRounds?: number
  /** Time limit in seconds for a tool call, at most 2147483. 0 means no limit. Defaults to 30. */
  toolTimeout?: number
  /** Variables of the chat template, or another template. */
  chatTemplate?: ChatSettings
  /** The planes of the cache. With `shared`, every turn runs the whole conversation again. Defaults to per-loop. */
  kv?: GenerateOptions['kv']
  /** What the cache stores of keys and values, see {@link CacheType}. Defaults to `model`. */
  cacheType?: GenerateOptions['cacheType']
  /**
   * Make responses bitwise equal to a run of the whole conversation, even after early exits: the tokens of a response run again
   * as part of the next prompt. Defaults to false: they do not run again, and log-probabilities differ by rounding.
   */
  exact?: boolean
  /**
   * A scheduler whose batch is shared with other sessions and requests. By default the session creates and disposes its own.
   */
  scheduler?: Scheduler
}

/** Options of {@link ChatSession.send} and {@link ChatSession.stream}. They override those of the session for this turn. */
export interface ChatTurnOptions extends ChatTurnSettings {
  /** Aborts with code ABORTED. The conversation is then the same as before the turn. */
  signal?: AbortSignal | undefined
  /** Called with every token. If it returns a promise that rejects, the turn fails with its error. */
  onToken?: (piece: ChatPiece) => unknown
  /** Called after every tool call. If it returns a promise, the turn waits for it, and fails with its error. */
  onTool?: (call: ChatToolCall) => unknown
}

/** One token of a response. */
export interface ChatPiece {
  /** The text that is now certain; often ''. */
  text: string
  /** The thoughts that are now certain. */
  reasoning: string
  /** The id of the new token. */
  token: number
  /** As in {@link GenerateResult.logprobs}. */
  logprob: number
  /** The loop that it was read from, 1-based. */
  loop: number
}

/** A tool call and its result. */
export interface ChatToolCall {
  /** The tool that was called. */
  name: string
  /** The arguments that the model passed, as JSON.parse reads them. */
  arguments: Record<string, unknown>
  /** The text that the model reads: the result, or `Error: …`. */
  content: string
  /** Whether the call failed. */
  failed: boolean
}

/** The response to a message. */
export interface ChatAnswer {
  /** The text, without thoughts and tool calls. An empty line separates the texts before and after a call's result. */
  text: string
  /** What the model wrote inside `<think>` blocks. */
  reasoning: string
  /** All sampled tokens, including those of thoughts and calls. */
  tokens: number[]
  /** One log-probability per token. */
  logprobs: number[]
  /** Per token: the loop that it was read from, 1-based. */
  loops: number[]
  /** The tool calls that ran. */
  calls: ChatToolCall[]
  /**
   * `tool-calls`: the model asked for more calls than `maxToolRounds` allows; the last message contains them. `cancelled`: the
   * turn was stopped.
   */
  finishReason: FinishReason | 'tool-calls'
  /** How the turn began. undefined if the chat template decided. */
  mode: 'think' | 'no-think' | undefined
  /** The signals that mode `auto` measured. */
  signals?: ChatSignals
}

const { initialStates, inputVectors, sequenceNumbers, logprobs, promptCache, ...generation } = generateOptions
const { signal: _, ...sampled } = generation
const turnSettings = { ...sampled, mode: true, auto: true } as const

const { kv: _kv, cacheType: _cacheType, ...ofTurns } = turnSettings

/** The names of a session's options. */
export const sessionOptions: Keys<ChatSessionOptions> = {
  ...turnSettings,
  ...{ tokenizer: true, system: true, messages: true, tools: true, maxToolRounds: true, toolTimeout: true },
  ...{ chatTemplate: true, exact: true, scheduler: true },
}

/** The names of a turn's options. */
export const turnOptions: Keys<ChatTurnOptions> = { ...ofTurns, signal: true, onToken: true, onTool: true }
