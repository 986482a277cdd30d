import { readFileSync, statSync } from 'node:fs'
import { fileError, LoopLMError } from '../errors.js'
import { textOf } from '../files/read.js'
import { didYouMean } from '../validation/names.js'
import { type ChatMessage, type ChatPart, type ChatTemplateOptions, maxTemplateBytes } from './chat-template.js'
import type { Tokenizer } from './tokenizer.js'

/** How conversations are rendered: the option `chatTemplate` of trainers, evaluations and configuration files. */
export interface ChatSettings {
  /** A template that replaces the tokenizer's: Jinja, or the path of a file that ends in `.jinja`. */
  template?: string | undefined
  /** JSON schemas of functions that are shown to the model. A row's column `tools` overrides them. */
  tools?: Record<string, unknown>[] | undefined
  /** A system message for conversations without one. */
  system?: string | undefined
  /** Turn string prompts into a user message. */
  wrapPrompts?: boolean | undefined
  /** A variable of the template by its name, for example `enable_thinking: false`. */
  [variable: string]: unknown
}

/** Columns with which a row changes how its conversation is rendered. */
interface ChatColumns {
  tools?: readonly object[] | null | undefined
  chat_template_kwargs?: Readonly<Record<string, unknown>> | null | undefined
}

/** Columns of a row. Those of {@link ChatColumns} are checked. */
type Columns = Readonly<Record<string, unknown>>

/** Messages of a row, or the text of its prompt. */
export type PromptContent = string | readonly ChatMessage[]

/**
 * Renders conversations with the chat template of a tokenizer. The text already contains all special tokens: encode it with
 * `addSpecialTokens: false`.
 */
export class ChatFormat {
  readonly tokenizer: Tokenizer
  readonly #settings: ChatSettings
  readonly #variables: Readonly<Record<string, unknown>>

  /**
   * @throws LoopLMError INVALID_CONFIG for a variable that the template does not read, UNSUPPORTED for settings without a
   *   template, NOT_FOUND or INVALID_FILE for a template
   */
  constructor(tokenizer: Tokenizer, settings: ChatSettings = {}) {
    const { template, tools: _tools, system: _system, wrapPrompts: _wraps, ...variables } = settings
    this.tokenizer = template === undefined ? tokenizer : withTemplate(tokenizer, template)
    this.#settings = settings
    this.#variables = variables
    if (Object.keys(settings).length > 0 && !this.tokenizer.hasChatTemplate) {
      const message = 'the tokenizer has no chat template; pass one as chatTemplate.template'
      throw new LoopLMError('UNSUPPORTED', message, { operation: 'chatTemplate' })
    }
    this.#checkVariables(variables)
  }

  /** Whether string prompts become a user message. */
  get wrapsPrompts(): boolean {
    return this.#settings.wrapPrompts === true
  }

  /** Roughly how many characters a rendered conversation may have beyond those of its row. */
  get extraLength(): number {
    return 8192 + JSON.stringify(this.#settings).length
  }

  /**
   * The text of a prompt.
   *
   * @returns `rendered`: whether the template rendered it, which includes all special tokens
   * @throws LoopLMError INVALID_ARGUMENT with the template's reason to reject the messages, UNSUPPORTED without a template
   */
  prompt(content: PromptContent, columns: Columns): { text: string; rendered: boolean } {
    if (typeof content === 'string' && !this.wrapsPrompts) return { text: content, rendered: false }
    return { text: this.#render(this.messages(content), columns, true), rendered: true }
  }

  /** A prompt as messages. A string becomes a user message. */
  messages(content: PromptContent): readonly ChatMessage[] {
    return typeof content === 'string' ? [{ role: 'user', content }] : content
  }

  /**
   * Splits a conversation into parts that are learned and parts that are the prompt.
   *
   * @param given how many messages are the prompt; the messages after them are learned as one response
   * @throws LoopLMError INVALID_ARGUMENT if the parts cannot be separated
   */
  lesson(messages: readonly ChatMessage[], given: number, columns: Columns): ChatPart[] {
    const whole = this.#render(messages, columns, false)
    const prompt = this.#render(messages.slice(0, given), columns, true)
    if (whole.startsWith(prompt)) {
      return [
        { text: prompt, learned: false },
        { text: whole.slice(prompt.length), learned: true },
      ]
    }
    throw refuse(
      'the chat template renders the conversation differently when the answer follows, so the text of the answer cannot be found: use a template that leaves earlier messages as they are',
    )
  }

  /**
   * The same, but every assistant message is learned: the text inside `{% generation %}` of the template or, without these
   * tags, the text that each message adds to the conversation before it.
   *
   * @throws LoopLMError INVALID_ARGUMENT if there is no such message, or if the template rewrites earlier turns
   */
  assistantLesson(messages: readonly ChatMessage[], columns: Columns): ChatPart[] {
    const answers = [...messages.keys()].filter((i) => messages[i]!.role === 'assistant')
    if (answers.length === 0) throw refuse('has no message of the role "assistant" to learn')
    const marked = this.tokenizer.chatParts(this.#completed(messages), this.#options(columns, false))
    if (marked !== undefined) return marked
    const whole = this.#render(messages, columns, false)
    const parts: ChatPart[] = []
    let done = 0
    for (const i of answers) {
      const before = this.#render(messages.slice(0, i), columns, true)
      const after = i === messages.length - 1 ? whole : this.#render(messages.slice(0, i + 1), columns, false)
      if (!after.startsWith(before) || !whole.startsWith(after) || before.length < done) {
        const remedy =
          'so the text of the answers cannot be found: put {% generation %} and {% endgeneration %} around answers in the template'
        throw refuse(`the chat template renders messages[${i}] differently when more messages follow, ${remedy}`)
      }
      parts.push({ text: whole.slice(done, before.length), learned: false })
      parts.push({ text: whole.slice(before.length, after.length), learned: true })
      done = after.length
    }
    return [...parts, { text: whole.slice(done), learned: false }].filter(({ text }) => text !== '')
  }

  #render(messages: readonly ChatMessage[], columns: Columns, addGenerationPrompt: boolean): string {
    return this.tokenizer.applyChatTemplate(this.#completed(messages), this.#options(columns, addGenerationPrompt))
  }

  #completed(messages: readonly ChatMessage[]): readonly ChatMessage[] {
    const { system } = this.#settings
    if (system === undefined || messages[0]?.role === 'system' || messages[0]?.role === 'developer') return messages
    return [{ role: 'system', content: system }, ...messages]
  }

  #options(columns: Columns, addGenerationPrompt: boolean): ChatTemplateOptions {
    const { tools, chat_template_kwargs: own } = columns as ChatColumns
    if (own != null) this.#checkVariables(own)
    return { addGenerationPrompt, tools: tools ?? this.#settings.tools, variables: { ...this.#variables, ...own } }
  }

  #checkVariables(variables: Readonly<Record<string, unknown>>): void {
    const words = Object.keys(variables).length === 0 ? new Set() : this.tokenizer.chatWords()
    const unread = Object.keys(variables).find((name) => !words.has(name))
    if (unread === undefined) return
    const near = didYouMean(unread, [...(words as Set<string>), 'template', 'tools', 'system', 'wrapPrompts'], 'remove it')
    const message = `${unread}: the chat template reads no such variable; ${near}`
    throw new LoopLMError('INVALID_CONFIG', message, { operation: 'chatTemplate' })
  }
}

function refuse(problem: string): LoopLMError {
  return new LoopLMError('INVALID_ARGUMENT', problem, { operation: 'chatTemplate' })
}

function withTemplate(tokenizer: Tokenizer, template: string): Tokenizer {
  if (!template.endsWith('.jinja')) return tokenizer.withChatTemplate(template, 'chatTemplate.template')
  const operation = 'chatTemplate'
  let text: string
  try {
    const { size } = statSync(template)
    if (size > maxTemplateBytes) throw refuse(`a template has at most ${maxTemplateBytes} bytes, ${template} has ${size}`)
    text = textOf(readFileSync(template), template, operation)
  } catch (cause) {
    throw cause instanceof LoopLMError ? cause : fileError(cause, 'read the chat template', template, operation)
  }
  return tokenizer.withChatTemplate(text, template)
}
