// Renders a conversation as a prompt, with or without thinking.
import { ChatFormat, type ChatSettings } from '../data/chat-format.js'
import type { ChatMessage } from '../data/chat-template.js'
import { isJsonObject, parseExactJson } from '../data/exact-json.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { opensThought } from '../data/tool-calls.js'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import { nestsTooDeep } from '../validation/json-depth.js'
import { tokensBehind } from './sampled-turn.js'
import { type Tool, toolSchemas } from './tools.js'

/** A prompt for the model. */
export interface ChatPrompt {
  text: string
  tokens: number[]
}

/** A prompt with its response, as they were read and sampled. */
export interface Said {
  /** The text without the token that ended the response. */
  text: string
  end: number | undefined
  tokens: readonly number[]
}

/** Renders the prompts of a session. */
export class ChatPrompts {
  readonly tokenizer: Tokenizer
  readonly #format: ChatFormat
  readonly #tools: object[] | undefined
  readonly #words: ReadonlySet<string>

  /** @throws LoopLMError UNSUPPORTED without a tokenizer or a chat template, INVALID_CONFIG for settings of the template */
  constructor(
    model: LoopLM,
    given: Tokenizer | undefined,
    settings: ChatSettings | undefined,
    tools: readonly Tool[],
    operation: string,
  ) {
    const tokenizer = given ?? model.tokenizer
    const refuse = (message: string) => new LoopLMError('UNSUPPORTED', message, { operation })
    if (tokenizer === undefined) throw refuse('tokenizer: the model has none. Pass tokenizer, or set model.tokenizer.')
    if (!tokenizer.hasChatTemplate && settings?.template === undefined)
      throw refuse('chatTemplate: the tokenizer has no chat template. Pass chatTemplate: { template: "…" }, in Jinja.')
    this.#format = new ChatFormat(tokenizer, settings)
    this.tokenizer = this.#format.tokenizer
    this.#tools = tools.length === 0 ? undefined : toolSchemas(tools)
    this.#words = this.tokenizer.chatWords()
  }

  /** Whether the template writes the field `tool_calls` of a message. */
  get writesCalls(): boolean {
    return this.#words.has('tool_calls')
  }

  /**
   * A conversation, followed by the beginning of a response.
   *
   * @param said what the model has read and written so far. Its tokens are reused if the conversation begins with its text. The
   *   end token is only reused if the template writes it there; it may write another one.
   */
  prompt(messages: readonly ChatMessage[], mode: 'think' | 'no-think' | undefined, said: Said | undefined): ChatPrompt {
    const text = this.#text(messages, mode)
    const kept =
      said === undefined || this.#ends(text, said) ? said : { ...said, end: undefined, tokens: said.tokens.slice(0, -1) }
    const rest = kept === undefined ? undefined : tokensBehind(this.tokenizer, kept.text, kept.end, text)
    const tokens = rest === undefined ? this.tokenizer.encode(text, { addSpecialTokens: false }) : [...kept!.tokens, ...rest]
    return { text, tokens }
  }

  /** Whether a conversation has the end token of what was said, if there is one. */
  #ends(text: string, said: Said): boolean {
    return said.end === undefined || text.startsWith(said.text + this.tokenizer.decode([said.end], { skipSpecialTokens: false }))
  }

  #text(messages: readonly ChatMessage[], mode: 'think' | 'no-think' | undefined): string {
    const written = mode !== undefined && this.#words.has('enable_thinking')
    const variables = written ? { chat_template_kwargs: { enable_thinking: mode === 'think' } } : {}
    const tools = this.#tools === undefined ? {} : { tools: this.#tools }
    const { text } = this.#format.prompt(messages.map(withArguments), { ...variables, ...tools })
    if (mode === undefined || written) return text
    const opened = opensThought(text)
    if (mode === 'think') return opened ? text : `${text}<think>\n`
    return `${opened ? text.trimEnd() : `${text}<think>`}\n\n</think>\n\n`
  }
}

/** A message whose calls have objects as arguments, as templates need them. In OpenAI's format they are text. */
function withArguments(message: ChatMessage): ChatMessage {
  if (!Array.isArray(message.tool_calls)) return message
  return { ...message, tool_calls: message.tool_calls.map(withObject) }
}

function withObject(call: { function?: { arguments?: unknown } } | null): unknown {
  const text = call?.function?.arguments
  if (typeof text !== 'string' || nestsTooDeep(text)) return call
  try {
    const value = parseExactJson(text)
    return isJsonObject(value) ? { ...call, function: { ...call!.function, arguments: value } } : call
  } catch {
    return call
  }
}
