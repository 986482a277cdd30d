import { type SampledTurn, tokensBehind } from '../chat/sampled-turn.js'
import type { ChatMessage } from '../data/chat-template.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { opensThought } from '../data/tool-calls.js'
import { LoopLMError } from '../errors.js'

/** What a model reads after its turn. */
export interface Continuation {
  /** The tokens to append. If the conversation was encoded again, all of its tokens. */
  tokens: number[]
  /** Whether the template rendered earlier turns differently, so that `tokens` is the whole conversation. */
  reencoded: boolean
}

/** Cache of the tokens of prompts by text. The episodes of a group start from the same prompt, which is encoded once. */
export type EncodedPrompts = Map<string, number[]>

/**
 * A conversation as tokens that grow turn by turn. The tokens of the model's turns stay as sampled. The text between them is
 * encoded separately.
 */
export class Transcript {
  readonly promptTokens: number[]
  readonly promptText: string
  /** The conversation so far. undefined if the prompt is a string. */
  messages: ChatMessage[] | undefined
  readonly #tokenizer: Tokenizer
  readonly #render: (messages: readonly ChatMessage[]) => string
  readonly #reencode: boolean
  #text = '' // the text rendered so far

  /** @param render renders a conversation, followed by the start of a turn of the model */
  constructor(
    tokenizer: Tokenizer,
    prompt: string | readonly ChatMessage[],
    { render, reencode }: { render: (messages: readonly ChatMessage[]) => string; reencode: boolean },
    encoded: EncodedPrompts = new Map(),
    begun?: Pick<Transcript, 'promptText' | 'promptTokens'>,
  ) {
    this.#tokenizer = tokenizer
    this.#render = render
    this.#reencode = reencode
    if (typeof prompt === 'string') {
      this.promptText = begun?.promptText ?? prompt
      this.promptTokens = begun?.promptTokens ?? once(encoded, prompt, () => tokenizer.encode(prompt))
      return
    }
    this.messages = [...prompt]
    this.#text = render(this.messages)
    this.promptText = this.#text
    const key = `messages ${this.#text}` // plain text also gets the tokenizer's special tokens
    this.promptTokens = once(encoded, key, () => this.#encode(this.#text))
  }

  /** A copy of the conversation, which can continue differently. */
  copy(): Transcript {
    const copy = new Transcript(this.#tokenizer, '', { render: this.#render, reencode: this.#reencode }, undefined, this)
    if (this.messages !== undefined) copy.messages = [...this.messages]
    copy.#text = this.#text
    return copy
  }

  /**
   * What the model reads after a turn.
   *
   * @param results of the tools that it called
   * @throws LoopLMError INVALID_ARGUMENT if the template renders earlier turns differently, unless `reencode` is set
   */
  next(turn: SampledTurn, results: readonly ToolMessage[], reply: string | readonly ChatMessage[] | undefined): Continuation {
    if (this.messages === undefined) return { tokens: this.#nextText(results, reply), reencoded: false }
    const lead = opensThought(this.#text) ? this.#text.slice(this.#text.lastIndexOf('<think>')) : ''
    this.messages.push({ role: 'assistant', content: lead + turn.text })
    this.messages.push(...results)
    if (typeof reply === 'string') this.messages.push({ role: 'user', content: reply })
    else if (reply !== undefined) this.messages.push(...reply)
    const before = this.#text
    const whole = this.#render(this.messages)
    this.#text = whole
    const tokens = tokensBehind(this.#tokenizer, before + turn.text, turn.end, whole)
    return tokens === undefined ? this.#rewritten(before + turn.text, whole) : { tokens, reencoded: false }
  }

  /** Adds the last turn, after which nothing follows. */
  end(turn: SampledTurn, results: readonly ToolMessage[]): void {
    this.messages?.push({ role: 'assistant', content: turn.text }, ...results)
  }

  #nextText(results: readonly ToolMessage[], reply: string | readonly ChatMessage[] | undefined): number[] {
    if (reply !== undefined && typeof reply !== 'string') {
      const message =
        'reply: must be a string, because the prompt of the episode is one; reply with a string, or pass messages as prompt'
      throw new LoopLMError('INVALID_ARGUMENT', message)
    }
    const said = results.map(({ content }) => `<tool_response>\n${content}\n</tool_response>\n`).join('')
    return this.#encode(said + (reply ?? ''))
  }

  #rewritten(expected: string, whole: string): Continuation {
    if (this.#reencode) return { tokens: this.#encode(whole), reencoded: true }
    let at = 0
    while (at < expected.length && expected[at] === whole[at]) at++
    const quote = (text: string) => JSON.stringify(text.slice(Math.max(0, at - 10), at + 30))
    const message =
      `the chat template rewrites earlier turns once they are answered: ${quote(expected)} became ${quote(whole)}. What was sampled ` +
      'would not be what is trained. Use a template that leaves earlier turns as they are, or set reencode: true, which trains ' +
      'the turns since the last rewriting alone'
    throw new LoopLMError('INVALID_ARGUMENT', message)
  }

  #encode(text: string): number[] {
    return this.#tokenizer.encode(text, { addSpecialTokens: false })
  }
}

function once(encoded: EncodedPrompts, key: string, encode: () => number[]): number[] {
  const known = encoded.get(key) ?? encode()
  encoded.set(key, known)
  return known
}

/** The result of a tool in a conversation. */
export interface ToolMessage extends ChatMessage {
  role: 'tool'
  name: string
  content: string
}
