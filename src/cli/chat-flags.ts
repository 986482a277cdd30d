import { type Command, InvalidArgumentError } from 'commander'
import { ChatFormat, type ChatSettings } from '../data/chat-format.js'
import type { ChatMessage } from '../data/chat-template.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { parseYaml, yamlValue } from '../data/yaml.js'
import { errorMessage, LoopLMError } from '../errors.js'

/** The flags of {@link chatOptions}. */
export interface ChatFlags {
  chat?: boolean
  system?: string
  chatTemplate?: ChatSettings
}

/** Adds options for how prompts and conversations are rendered. */
export function chatOptions(command: Command): Command {
  return templateOptions(command.option('--chat', 'send a prompt that is a string as a user message, through the chat template'))
}

/** Adds options for how conversations are rendered. */
export function templateOptions(command: Command): Command {
  return command
    .option('--system <text>', 'system message for conversations that have none')
    .option(
      '--chat-template <settings>',
      'variables of the chat template such as "{ enable_thinking: false }", or a .jinja file that replaces it',
      settings,
    )
}

/** Parses settings in YAML, or the path of a template. */
function settings(text: string): ChatSettings {
  if (text.endsWith('.jinja')) return { template: text }
  let value: unknown
  try {
    value = yamlValue(parseYaml(text, '--chat-template'), '--chat-template')
  } catch (cause) {
    throw new InvalidArgumentError(`must be YAML such as "{ enable_thinking: false }" (${errorMessage(cause)}).`)
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as ChatSettings
  throw new InvalidArgumentError('must be YAML such as "{ enable_thinking: false }", or a file that ends in .jinja.')
}

/** Parses a conversation: a list of messages in YAML or JSON. */
export function conversation(text: string, previous: readonly ChatMessage[][] = []): ChatMessage[][] {
  let value: unknown
  try {
    value = yamlValue(parseYaml(text, '--messages'), '--messages')
  } catch (cause) {
    throw new InvalidArgumentError(`must be messages such as "[{ role: user, content: Hi }]" (${errorMessage(cause)}).`)
  }
  if (Array.isArray(value)) return [...previous, value as ChatMessage[]]
  throw new InvalidArgumentError('must be a list of messages such as "[{ role: user, content: Hi }]".')
}

/** The settings that were given. undefined if there are none. */
export function chatSettings({ chat, system, chatTemplate }: ChatFlags): ChatSettings | undefined {
  const given = { ...chatTemplate, ...(system === undefined ? {} : { system }), ...(chat ? { wrapPrompts: true } : {}) }
  return Object.keys(given).length === 0 ? undefined : given
}

/** The tokens of conversations that need a response. */
export async function encodeConversations(
  tokenizer: Tokenizer | undefined,
  prompts: readonly (string | readonly ChatMessage[])[],
  flags: ChatFlags,
): Promise<number[][]> {
  if (tokenizer === undefined)
    throw new LoopLMError(
      'UNSUPPORTED',
      'the model has no tokenizer, and a conversation needs one: use a folder with tokenizer.json',
    )
  const format = new ChatFormat(tokenizer, { ...chatSettings(flags), wrapPrompts: true })
  const encoded: number[][] = []
  for (const prompt of prompts) {
    encoded.push(await format.tokenizer.encodeAsync(format.prompt(prompt, {}).text, { addSpecialTokens: false }))
  }
  return encoded
}
