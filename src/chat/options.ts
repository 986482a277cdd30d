import type { ChatSettings } from '../data/chat-format.js'
import type { ChatMessage } from '../data/chat-template.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { generateOptions } from '../model/options.js'
import type { Scheduler } from '../model/scheduler.js'
import type { FinishReason, GenerateOptions } from '../model/types.js'
import type { Keys } from '../validation/arguments.js'
import type { ChatSignals, ChatThresholds } from './signals.js'
import type { Tool } from './tools.js'

/** Whether a turn begins with thoughts. `auto` decides from what the model shows at the end of the prompt. */
export type ChatMode = 'think' | 'no-think' | 'auto'

/** Words of {@link ChatMode}. */
export const chatModes = ['think', 'no-think', 'auto'] as const

/** Options of generation that a turn takes. */
export type ChatGenerateOptions = Omit<
  GenerateOptions,
  'initialStates' | 'inputVectors' | 'sequenceNumbers' | 'logprobs' | 'kv' | 'cacheType' | 'stop' | 'maxNewTokens' | 'signal'
> & {
  /** Most tokens of an answer; with tools, of each of its parts. Default 1024. */
  maxNewTokens?: number
  /** Texts or token ids that end an answer, beside the end tokens of the model and of the chat template. */
  stop?: readonly (number | string)[]
}

/** What a session and each of its turns may set. */
export interface ChatTurnSettings extends ChatGenerateOptions {
  /**
   * Default: the chat template decides. `think` and `no-think` set its variable `enable_thinking`. Where it reads none, the turn begins
   * with an open `<think>` block, or with an empty one.
   */
  mode?: ChatMode
  /** Of mode `auto`, which thinks where any of these is exceeded. Default `{ entropy: 0.3 }`. */
  auto?: ChatThresholds
}

/** Options of {@link ChatSession}; those of generation are defaults of its turns. */
export interface ChatSessionOptions extends ChatTurnSettings {
  /** Default the model's. */
  tokenizer?: Tokenizer
  /** Message of the role `system`, in front of a conversation that begins without one. */
  system?: string
  /** The conversation so far, for example {@link ChatSession.messages} of an earlier session. */
  messages?: readonly ChatMessage[]
  /** The model may call them; {@link defineTool} makes one. Refused where the chat template does not show them. */
  tools?: readonly Tool[]
  /** How often in one turn the calls of the model run. The next calls are left to the caller. Default 8. */
  maxToolRounds?: number
  /** Seconds that a call may take; 0 is any number. Default 30. */
  toolTimeout?: number
  /** Variables of the chat template, or a template in its place. */
  chatTemplate?: ChatSettings
  /** The planes of the cache. With `shared`, every turn runs the whole conversation. Default per-loop. */
  kv?: GenerateOptions['kv']
  /** What the cache keeps of keys and values, see {@link CacheType}. Default `model`. */
  cacheType?: GenerateOptions['cacheType']
  /**
   * Answers have the bits of a run of the whole conversation, also where tokens left the loops early: the tokens of an answer run once more,
   * as a part of the next prompt. Default false: they do not, and log-probabilities differ by rounding.
   */
  exact?: boolean
  /** Its batch is shared with other sessions and requests. Default: one that the session makes and disposes. */
  scheduler?: Scheduler
}

/** Options of {@link ChatSession.send} and {@link ChatSession.stream}; they replace those of the session for this turn. */
export interface ChatTurnOptions extends ChatTurnSettings {
  /** Rejects with code ABORTED. The conversation is then what it was before the turn. */
  signal?: AbortSignal | undefined
  /** Called with every token. */
  onToken?: (piece: ChatPiece) => void
  /** Called with every call of a tool once it has ended. */
  onTool?: (call: ChatToolCall) => void
}

/** One token of an answer. */
export interface ChatPiece {
  /** What it makes certain of the text; often ''. */
  text: string
  /** What it makes certain of the thoughts. */
  reasoning: string
  /** The id of the new token. */
  token: number
  /** As in {@link GenerateResult.logprobs}. */
  logprob: number
  /** The loop it was read from, 1-based. */
  loop: number
}

/** A call of a tool and what came of it. */
export interface ChatToolCall {
  /** The tool that was called. */
  name: string
  /** What the model passed. */
  arguments: Record<string, unknown>
  /** What the model reads: the result, or `Error: …`. */
  content: string
  /** Whether the call ended with an error. */
  failed: boolean
}

/** The answer to a message. */
export interface ChatAnswer {
  /** Without thoughts and calls of tools. */
  text: string
  /** What the model wrote inside `<think>` blocks. */
  reasoning: string
  /** All that were sampled, also those of thoughts and calls. */
  tokens: number[]
  /** Per token. */
  logprobs: number[]
  /** Per token: the loop it was read from, 1-based. */
  loops: number[]
  /** Calls that were run. */
  calls: ChatToolCall[]
  /**
   * `tool-calls`: the model asked for more calls than `maxToolRounds` allows, and the last message has them. `cancelled`: it was stopped.
   */
  finishReason: FinishReason | 'tool-calls'
  /** How the turn began; undefined where the chat template decided. */
  mode: 'think' | 'no-think' | undefined
  /** What mode `auto` has measured. */
  signals?: ChatSignals
}

const { initialStates, inputVectors, sequenceNumbers, logprobs, ...generation } = generateOptions
const { signal: _, ...sampled } = generation
const turnSettings = { ...sampled, mode: true, auto: true } as const

const { kv: _kv, cacheType: _cacheType, ...ofTurns } = turnSettings

/** Names of the options of a session. */
export const sessionOptions: Keys<ChatSessionOptions> = {
  ...turnSettings,
  ...{ tokenizer: true, system: true, messages: true, tools: true, maxToolRounds: true, toolTimeout: true },
  ...{ chatTemplate: true, exact: true, scheduler: true },
}

/** Names of the options of a turn. */
export const turnOptions: Keys<ChatTurnOptions> = { ...ofTurns, signal: true, onToken: true, onTool: true }
