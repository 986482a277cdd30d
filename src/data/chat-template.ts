import { randomInt } from 'node:crypto'
import { LoopLMError } from '../errors.js'
import { checkFlag, checkOptions, describe, type Keys } from '../validation/arguments.js'
import { WrittenNumber } from './exact-json.js'
import { compileJinja, type JinjaTemplate } from './jinja.js'

/** One turn of a conversation. Other fields, such as `tool_calls` or `name`, are passed to the template unchanged. */
export interface ChatMessage {
  /** Usually system, user, assistant or tool. The template defines which roles exist. */
  role: string
  /** A string, or other content that the template accepts. Absent if the message only calls tools. */
  content?: unknown
  [field: string]: unknown
}

/** Options of {@link Tokenizer.applyChatTemplate}. */
export interface ChatTemplateOptions {
  /** End with the beginning of an assistant message. Defaults to false. */
  addGenerationPrompt?: boolean
  /** Sets the template's `enable_thinking`. If unset, the template decides. */
  enableThinking?: boolean | undefined
  /** JSON schemas of functions, as the template expects them. Fails if the template does not show them to the model. */
  tools?: readonly object[] | undefined
  /** Further variables of the template, by their names in it, for example `{ reasoning_effort: 'low' }`. */
  variables?: Readonly<Record<string, unknown>> | undefined
}

const chatOptions: Keys<ChatTemplateOptions> = { addGenerationPrompt: true, enableThinking: true, tools: true, variables: true }

/** The largest template. Published ones have some kilobytes. */
export const maxTemplateBytes = 2 ** 20

/** Where a template was read. */
export interface TemplateSource {
  /** A string, or Hugging Face's list of named templates. */
  template: unknown
  /** The name in errors: the file and, in JSON, the field. */
  name: string
}

/** A part of a rendered conversation. */
export interface ChatPart {
  text: string
  /** Whether the model learns this part; otherwise it is part of the prompt. */
  learned: boolean
}

/** Compiled templates by name. A single template is named `default`. */
export type ChatTemplates = ReadonlyMap<string, JinjaTemplate>

/**
 * Compiles chat templates.
 *
 * @throws LoopLMError INVALID_FILE naming the file and what is wrong with the template
 */
export function compileChatTemplates({ template, name }: TemplateSource, operation: string): ChatTemplates {
  const invalid = (problem: string, cause?: unknown) =>
    new LoopLMError('INVALID_FILE', `${name}: ${problem}`, { operation, cause })
  const named = typeof template === 'string' ? [{ name: 'default', template }] : template
  if (!Array.isArray(named) || named.length === 0) {
    throw invalid(`the chat template must be a string or a list of { name, template }, got ${describe(template)}`)
  }
  return new Map(
    named.map((entry: { name?: unknown; template?: unknown } | null, i) => {
      if (typeof entry?.name !== 'string' || typeof entry.template !== 'string') {
        throw invalid(`entry ${i} of the chat template must have the strings "name" and "template"`)
      }
      if (entry.template.length > maxTemplateBytes) {
        throw invalid(`a chat template has at most ${maxTemplateBytes} characters, this one ${entry.template.length}`)
      }
      try {
        return [entry.name, compileJinja(entry.template)]
      } catch (cause) {
        throw invalid(`the chat template does not parse: ${(cause as Error).message}`, cause)
      }
    }),
  )
}

/**
 * Renders a conversation. With tools, a template named `tool_use` is preferred, as in transformers.
 *
 * @param special the special tokens by role, as strings: bos_token, eos_token, …
 * @throws LoopLMError INVALID_ARGUMENT naming the message, or the template's file and its reason to reject the messages
 */
export function renderChat(
  templates: ChatTemplates,
  source: string,
  messages: readonly ChatMessage[],
  options: ChatTemplateOptions,
  special: Readonly<Record<string, string>>,
  operation: string,
): string {
  const refuse = (problem: string, cause?: unknown) => new LoopLMError('INVALID_ARGUMENT', problem, { operation, cause })
  if (!Array.isArray(messages) || messages.length === 0) throw refuse('messages must be an array of at least one message')
  const bad = messages.findIndex((message) => typeof message?.role !== 'string')
  if (bad !== -1) throw refuse(`messages[${bad}].role must be a string such as "user", got ${describe(messages[bad]?.role)}`)
  checkOptions(options, chatOptions, operation)
  const { enableThinking, tools, variables } = options
  const addGenerationPrompt = checkFlag(options.addGenerationPrompt ?? false, 'addGenerationPrompt', operation)
  if (enableThinking !== undefined) checkFlag(enableThinking, 'enableThinking', operation)
  checkTools(tools, operation)
  const template = (tools === undefined ? undefined : templates.get('tool_use')) ?? templates.get('default')
  if (template === undefined) {
    throw refuse(`${source}: none of the templates ${[...templates.keys()].join(', ')} is named default`)
  }
  const numbers = new StandIns()
  const render = (shown: readonly object[] | null) =>
    numbers.show(
      template({
        ...special,
        ...variables,
        messages: numbers.hide(messages),
        tools: shown,
        documents: null,
        add_generation_prompt: addGenerationPrompt,
        ...(enableThinking === undefined ? {} : { enable_thinking: enableThinking }),
      }),
    )
  let text: string
  try {
    text = render(tools ?? null)
  } catch (cause) {
    throw refuse(`${source}: the chat template refused the messages: ${(cause as Error).message}`, cause)
  }
  if (!tools?.length) return text
  try {
    if (text !== render(null)) return text
  } catch {
    return text // the template requires tools
  }
  const message = `tools: ${source} does not show them to the model; omit tools, or describe them in a system message`
  throw new LoopLMError('UNSUPPORTED', message, { operation })
}

/*
 * The tags `{% generation %}` … `{% endgeneration %}` of transformers surround what the assistant writes. The compiler drops
 * them. So each tag is split in two with a marker in between, which stays in the text and keeps the white space handling on
 * both sides.
 */
const [beginMark, endMark] = ['\ue000looplm begins\ue000', '\ue000looplm ends\ue000']
const generationTag = /\{%(-?)\s*(end)?generation\s*(-?)%\}/g

/** The template with markers for {@link chatParts}. undefined if it has no generation tags. */
export function withMarks({ template, name }: TemplateSource): TemplateSource | undefined {
  const mark = (text: string) =>
    text.replaceAll(generationTag, (_, left: string, end: string | undefined, right: string) => {
      const tag = `${end ?? ''}generation`
      return `{%${left} ${tag} %}${end === undefined ? beginMark : endMark}{% ${tag} ${right}%}`
    })
  const has = (text: unknown) => typeof text === 'string' && text.search(generationTag) !== -1
  if (typeof template === 'string') return has(template) ? { template: mark(template), name } : undefined
  if (!Array.isArray(template) || !template.some((entry) => has(entry?.template))) return undefined
  return { template: template.map((entry) => ({ ...entry, template: mark(String(entry?.template)) })), name }
}

/**
 * Splits a text at its markers.
 * @throws LoopLMError INVALID_ARGUMENT if they do not come in pairs
 */
export function chatParts(text: string, source: string, operation: string): ChatPart[] {
  const parts: ChatPart[] = []
  let learned = false
  for (const piece of text.split(/(\ue000looplm (?:begins|ends)\ue000)/)) {
    if (piece !== beginMark && piece !== endMark) {
      if (piece !== '') parts.push({ text: piece, learned })
    } else if (learned === (piece === endMark)) {
      learned = !learned
    } else {
      const message = `${source}: {% generation %} and {% endgeneration %} must come in pairs, one after the other`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
  }
  return parts
}

/** The words of a template. */
export function templateWords({ template }: TemplateSource): Set<string> {
  const texts =
    typeof template === 'string' ? [template] : Array.isArray(template) ? template.map((entry) => entry?.template) : []
  return new Set(texts.flatMap((text) => String(text).match(/[A-Za-z_]\w*/g) ?? []))
}

function checkTools(tools: unknown, operation: string): void {
  const refuse = (problem: string) => new LoopLMError('INVALID_ARGUMENT', problem, { operation })
  if (tools === undefined) return
  if (!Array.isArray(tools)) throw refuse(`tools must be an array of JSON schemas of functions, got ${describe(tools)}`)
  const bad = tools.findIndex((tool) => typeof tool !== 'object' || tool === null)
  if (bad !== -1) throw refuse(`tools[${bad}] must be the JSON schema of a function, got ${describe(tools[bad])}`)
}

/** Numbers of 15 digits that stand for {@link WrittenNumber}s while a template renders them. */
class StandIns {
  readonly #begin = String(randomInt(1e6, 1e7))
  readonly #written = new Map<string, string>()

  /** A value with numbers that the template can read. */
  hide(value: unknown): unknown {
    if (value instanceof WrittenNumber) {
      const digits = this.#begin + String(2 * this.#written.size + 1).padStart(8, '0') // odd: as a fraction it keeps its last digit
      const standIn = /[.e]/i.test(value.text) ? `0.${digits}` : digits
      this.#written.set(standIn, value.text)
      return Number(standIn)
    }
    if (Array.isArray(value)) return value.map((item) => this.hide(item))
    if (typeof value !== 'object' || value === null) return value
    return Object.fromEntries(Object.entries(value).map(([name, field]) => [name, this.hide(field)]))
  }

  /** The rendered text with the numbers as they were written. */
  show(text: string): string {
    if (this.#written.size === 0) return text
    return text.replaceAll(new RegExp(`(?:0\\.)?${this.#begin}\\d{8}`, 'g'), (found) => this.#written.get(found) ?? found)
  }
}
