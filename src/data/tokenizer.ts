import { createHash } from 'node:crypto'
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Tokenizer as Pipeline } from '@huggingface/tokenizers'
import { checkText } from '../arguments.js'
import { LoopLMError } from '../errors.js'
import {
  type ChatMessage,
  type ChatTemplateOptions,
  type ChatTemplates,
  compileChatTemplates,
  maxTemplateBytes,
  renderChat,
} from './chat-template.js'
import { staleFiles } from './folder-files.js'
import { maxFileBytes, readJson, readText } from './read-file.js'
import {
  bytesOfToken,
  byteTokenizerJson,
  characterTokenizerJson,
  parseTokenizerJson,
  type SpecialTokens,
  type TokenizerJson,
} from './tokenizer-json.js'
import { jsonText, onDisk, replaceFile } from './write-file.js'

/** The fields of tokenizer_config.json that looplm reads; all others are kept and saved again. */
export interface TokenizerConfig {
  bos_token?: unknown
  eos_token?: unknown
  pad_token?: unknown
  unk_token?: unknown
  clean_up_tokenization_spaces?: unknown
  chat_template?: unknown
  [field: string]: unknown
}

/** Stands for an answer while the template shows what follows one. */
const answerMark = 'answer'

/**
 * Text to token ids and back: the tokenizer.json of a Hugging Face checkpoint, or a small character or byte tokenizer that
 * Python's `tokenizers` loads as well.
 *
 * @example
 * ```ts
 * const tokenizer = Tokenizer.characters('0123456789+=')
 * tokenizer.encode('12+30=') // [1, 2, 10, 3, 0, 11]
 * tokenizer.decode([4, 2]) // '42'
 * ```
 */
export class Tokenizer {
  /** Largest token id + 1. A model's `vocab_size` must be at least this; what it has beyond are spare ids, without a text. */
  readonly vocabSize: number
  /** The content of tokenizer_config.json, for example its `chat_template`. */
  readonly config: Readonly<TokenizerConfig>
  /** Id of the token that begins a text, if the configuration names one. */
  readonly bosTokenId: number | undefined
  /** Id of the token that ends a text, if the configuration names one. */
  readonly eosTokenId: number | undefined
  /** Id of the token that fills batches, if the configuration names one. */
  readonly padTokenId: number | undefined
  readonly #json: TokenizerJson
  readonly #source: string
  readonly #pipeline: Pipeline
  readonly #templateSource: string
  #templates: ChatTemplates | undefined
  #chatEnd: { token: number | undefined } | undefined

  /**
   * @param json the parsed content of a tokenizer.json
   * @param config the parsed content of a tokenizer_config.json
   * @param source how errors name the tokenizer, usually its path
   * @param templateSource how errors name the chat template, usually its path and field
   * @throws LoopLMError INVALID_FILE naming the source and the field
   */
  constructor(
    json: unknown,
    config: TokenizerConfig = {},
    source = 'tokenizer.json',
    templateSource = 'tokenizer_config.json, field "chat_template"',
  ) {
    const { tokenizer, vocabSize } = parseTokenizerJson(json, source)
    this.#json = tokenizer
    this.#source = source
    this.#templateSource = templateSource
    this.vocabSize = vocabSize
    this.config = config
    const unkToken = tokenContent(config.unk_token) ?? tokenizer.model.unk_token
    const pipelineConfig = {
      ...config,
      // the pipeline looks a string up where transformers also writes an object
      eos_token: tokenContent(config.eos_token),
      unk_token: unkToken,
      // as transformers does when the field is absent
      clean_up_tokenization_spaces: config.clean_up_tokenization_spaces === true,
    }
    try {
      this.#pipeline = new Pipeline(tokenizer, pipelineConfig)
    } catch (cause) {
      const message = `${source} describes a tokenizer that cannot be built: ${(cause as Error).message}`
      throw new LoopLMError('INVALID_FILE', message, { operation: 'Tokenizer', cause })
    }
    this.bosTokenId = this.#configuredId('bos_token', source)
    this.eosTokenId = this.#configuredId('eos_token', source)
    this.padTokenId = this.#configuredId('pad_token', source)
  }

  /**
   * Reads a tokenizer.json.
   *
   * @param path the file
   * @param config what tokenizer_config.json would say, for example `{ eos_token: '<|endoftext|>' }`
   * @throws LoopLMError NOT_FOUND, or INVALID_FILE naming the file and the field
   */
  static async fromFile(path: string, config: TokenizerConfig = {}): Promise<Tokenizer> {
    return new Tokenizer(await readJson(path, maxFileBytes.tokenizer, 'Tokenizer.fromFile'), config, path)
  }

  /**
   * Reads tokenizer.json and, where they exist, tokenizer_config.json and chat_template.jinja from a checkpoint folder. The latter wins
   * over the former's `chat_template`, as in transformers.
   *
   * @param folder a Hugging Face checkpoint folder
   * @throws LoopLMError NOT_FOUND, or INVALID_FILE naming the file and the field
   *
   * @example
   * ```ts
   * const tokenizer = await Tokenizer.fromPretrained('checkpoints/ouro-1.4b')
   * const ids = tokenizer.encode('Hello')
   * ```
   */
  static async fromPretrained(folder: string): Promise<Tokenizer> {
    const operation = 'Tokenizer.fromPretrained'
    const path = join(folder, 'tokenizer.json')
    const configPath = join(folder, 'tokenizer_config.json')
    const json = await readJson(path, maxFileBytes.tokenizer, operation)
    const config = await readJson(configPath, maxFileBytes.list, operation).catch((error) => {
      if (error instanceof LoopLMError && error.code === 'NOT_FOUND') return {}
      throw error
    })
    if (typeof config !== 'object' || config === null || Array.isArray(config)) {
      throw new LoopLMError('INVALID_FILE', `${configPath} must hold a JSON object`, { operation })
    }
    const jinjaPath = join(folder, 'chat_template.jinja')
    const jinja = await readText(jinjaPath, maxTemplateBytes, operation).catch((error) => {
      if (error instanceof LoopLMError && error.code === 'NOT_FOUND') return undefined
      throw error
    })
    return jinja === undefined
      ? new Tokenizer(json, config as TokenizerConfig, path, `${configPath}, field "chat_template"`)
      : new Tokenizer(json, { ...config, chat_template: jinja }, path, jinjaPath)
  }

  /**
   * A tokenizer with one token per character. The i-th character of the alphabet has id i; special tokens follow. Its
   * tokenizer.json is a WordLevel model without an unknown token, so a character outside the alphabet is an error in
   * Python too.
   *
   * @param alphabet distinct characters (Unicode code points)
   * @param options.special tokens that begin, end or pad a text, for example `{ eos: '<eos>' }`
   * @throws LoopLMError INVALID_ARGUMENT when a character occurs twice or a special token is one of them
   */
  static characters(alphabet: string, options: { special?: SpecialTokens } = {}): Tokenizer {
    const special = options.special ?? {}
    return new Tokenizer(characterTokenizerJson(alphabet, special), savedConfig(special), 'Tokenizer.characters')
  }

  /**
   * A tokenizer with one token per byte of UTF-8: the token's id is the byte, special tokens follow from 256. Its
   * tokenizer.json is a byte-level BPE model without merges.
   *
   * @param options.special tokens that begin, end or pad a text, for example `{ eos: '<eos>' }`
   *
   * @example
   * ```ts
   * Tokenizer.bytes().encode('é') // [0xc3, 0xa9]
   * ```
   */
  static bytes(options: { special?: SpecialTokens } = {}): Tokenizer {
    const special = options.special ?? {}
    return new Tokenizer(byteTokenizerJson(special), savedConfig(special), 'Tokenizer.bytes')
  }

  /**
   * Text to token ids.
   *
   * @param text the content of an added token inside it becomes that token, as in Python
   * @param options.addSpecialTokens apply the tokenizer's template, for example a leading bos token; default true
   * @throws LoopLMError INVALID_ARGUMENT naming the first piece of text that the vocabulary lacks, unless the tokenizer has
   *   an unknown token; INVALID_FILE naming the tokenizer's file where a part of it cannot be carried out
   */
  encode(text: string, options: { addSpecialTokens?: boolean } = {}): number[] {
    const special = { add_special_tokens: options.addSpecialTokens ?? true }
    const { ids, tokens } = this.#carryOut('encode', () => this.#pipeline.encode(text, special))
    const unknown = (ids as (number | undefined)[]).indexOf(undefined)
    if (unknown !== -1) throw this.#unknownText(text, tokens[unknown]!)
    return ids
  }

  /**
   * Token ids to text. Bytes that are not valid UTF-8, for example half a character, become U+FFFD.
   *
   * @param ids an empty list gives an empty text
   * @param options.skipSpecialTokens leave special tokens out; default false
   * @param options.skipUnknownTokens leave ids out that no token has, as Python does; default false. A model whose vocab_size is larger than
   *   the tokenizer's draws such ids, though rarely once it is trained; generation decodes this way.
   * @param options.cleanUpSpaces drop spaces before punctuation; default what tokenizer_config.json says in clean_up_tokenization_spaces
   * @throws LoopLMError INVALID_ARGUMENT naming an id that the vocabulary lacks
   */
  decode(
    ids: ArrayLike<number>,
    options: { skipSpecialTokens?: boolean; skipUnknownTokens?: boolean; cleanUpSpaces?: boolean } = {},
  ): string {
    const known = (id: number) => this.#pipeline.id_to_token(id) !== undefined
    const list = options.skipUnknownTokens ? Array.from(ids).filter(known) : Array.from(ids)
    if (list.length === 0) return ''
    const unknown = list.find((id) => !known(id))
    if (unknown !== undefined) {
      const message = `no token has the id ${unknown}; the vocabulary has ${this.vocabSize} ids`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'Tokenizer.decode' })
    }
    const { skipSpecialTokens = false, cleanUpSpaces } = options
    const settings = {
      skip_special_tokens: skipSpecialTokens,
      ...(cleanUpSpaces === undefined ? {} : { clean_up_tokenization_spaces: cleanUpSpaces }),
    }
    return this.#carryOut('decode', () => this.#pipeline.decode(list, settings))
  }

  /** Normalizers, decoders and templates are checked by nobody before they are needed. */
  #carryOut<Result>(method: string, action: () => Result): Result {
    try {
      return action()
    } catch (cause) {
      const message = `${this.#source}: a field "normalizer", "pre_tokenizer", "model", "post_processor" or "decoder" cannot be carried out: ${(cause as Error).message}`
      throw new LoopLMError('INVALID_FILE', message, { operation: `Tokenizer.${method}`, cause })
    }
  }

  /** True when the configuration has a chat template. */
  get hasChatTemplate(): boolean {
    return this.config.chat_template != null
  }

  /**
   * Renders a conversation with the checkpoint's own Jinja template. Encode the text with `addSpecialTokens: false`: the template has
   * written them already.
   *
   * @param messages at least one; `role` and usually `content`
   * @param options.addGenerationPrompt end with what begins an answer; default false
   * @param options.enableThinking the template's `enable_thinking`; left out, the template decides
   * @param options.tools JSON schemas of functions, for templates that show them
   * @throws LoopLMError UNSUPPORTED without a template, INVALID_FILE when it does not parse, INVALID_ARGUMENT when it refuses the
   *   messages; the latter two name the template's file and the cause
   *
   * @example
   * ```ts
   * const text = tokenizer.applyChatTemplate([{ role: 'user', content: 'Hi' }], { addGenerationPrompt: true })
   * const prompt = tokenizer.encode(text, { addSpecialTokens: false })
   * ```
   */
  applyChatTemplate(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    const operation = 'Tokenizer.applyChatTemplate'
    if (!this.hasChatTemplate) {
      const message = 'the tokenizer has no chat template; add chat_template.jinja to the checkpoint folder'
      throw new LoopLMError('UNSUPPORTED', message, { operation })
    }
    const source = this.#templateSource
    this.#templates ??= compileChatTemplates({ template: this.config.chat_template, name: source }, operation)
    const special = Object.entries(this.config).flatMap(([field, value]) => {
      const content = field.endsWith('_token') ? tokenContent(value) : undefined
      return content === undefined ? [] : [[field, content]]
    })
    return renderChat(this.#templates, source, messages, options, Object.fromEntries(special), operation)
  }

  /**
   * The special token that the chat template writes after an answer, if it writes one: a turn ends there whatever the checkpoint's
   * end tokens say.
   */
  chatEndToken(): number | undefined {
    this.#chatEnd ??= { token: this.#findChatEnd() }
    return this.#chatEnd.token
  }

  #findChatEnd(): number | undefined {
    const messages = [
      { role: 'user', content: 'question' },
      { role: 'assistant', content: answerMark },
    ]
    let text: string
    try {
      text = this.applyChatTemplate(messages)
    } catch {
      return undefined // such messages do not fit the template
    }
    const at = text.lastIndexOf(answerMark)
    const after = at === -1 ? '' : text.slice(at + answerMark.length)
    const tokens = this.#json.added_tokens.filter(({ special, content }) => special && after.trimStart().startsWith(content))
    return tokens.sort((a, b) => b.content.length - a.content.length)[0]?.id
  }

  /** A hash of tokenizer.json and of the end token: equal for tokenizers that make the same tokens. */
  get fingerprint(): string {
    return createHash('sha256')
      .update(JSON.stringify([this.#json, this.eosTokenId ?? null]))
      .digest('hex')
      .slice(0, 32)
  }

  /** The id of a token as the vocabulary spells it, or undefined. */
  tokenId(token: string): number | undefined {
    return this.#pipeline.token_to_id(token)
  }

  /**
   * The bytes of UTF-8 that one token stands for; a token may be a part of a character. None for an id that no token has.
   *
   * @example
   * ```ts
   * Tokenizer.bytes().tokenBytes(0xc3) // Uint8Array [0xc3], the first half of é
   * ```
   */
  tokenBytes(id: number): Uint8Array {
    const token = this.#pipeline.id_to_token(id)
    if (token === undefined) return new Uint8Array()
    return bytesOfToken(this.#json, token) ?? new TextEncoder().encode(this.decode([id]))
  }

  /**
   * Writes tokenizer.json and tokenizer_config.json, each to a temporary file that is then renamed. Files of another tokenizer in the
   * folder, such as chat_template.jinja and vocab.json, are removed.
   *
   * @param folder created when it does not exist
   * @throws LoopLMError INVALID_ARGUMENT, or INVALID_FILE naming what could not be written
   */
  async save(folder: string): Promise<void> {
    const operation = 'Tokenizer.save'
    checkText(folder, 'folder', 'the path of a folder', operation)
    await onDisk('write', folder, mkdir(folder, { recursive: true }), operation)
    const files = this.files()
    for (const [name, text] of files) await replaceFile(join(folder, name), text, operation)
    const fresh = files.map(([name]) => name)
    for (const name of await onDisk('read', folder, staleFiles(folder, 'tokenizer', fresh), operation))
      await onDisk('remove', join(folder, name), rm(join(folder, name), { recursive: true, force: true }), operation)
  }

  /**
   * The text of the files that {@link Tokenizer.save} writes, by name.
   * @internal
   */
  files(): [name: string, text: string][] {
    return [
      ['tokenizer.json', jsonText(this.#json)],
      ['tokenizer_config.json', jsonText(this.config)],
    ]
  }

  #configuredId(field: 'bos_token' | 'eos_token' | 'pad_token', source: string): number | undefined {
    const content = tokenContent(this.config[field])
    if (content === undefined) return undefined
    const id = this.tokenId(content)
    if (id !== undefined) return id
    const message = `${field} ${JSON.stringify(content)} of the configuration is not in the vocabulary of ${source}`
    throw new LoopLMError('INVALID_FILE', message, { operation: 'Tokenizer' })
  }

  #unknownText(text: string, piece: string): LoopLMError {
    const alphabet = Object.keys(this.#json.model.vocab).slice(0, 128).join('')
    const points = Array.from(piece, (character) => `U+${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, '0')}`)
    const where = `${JSON.stringify(piece)} (${points.slice(0, 8).join(' ')}) at position ${text.indexOf(piece)}`
    const message = `${where} is not in the alphabet ${JSON.stringify(alphabet)}; remove it or build a tokenizer that has it`
    return new LoopLMError('INVALID_ARGUMENT', message, { operation: 'Tokenizer.encode' })
  }
}

/** transformers writes a token as a string or as an object with its content. */
function tokenContent(token: unknown): string | undefined {
  if (typeof token === 'string') return token
  const content = (token as { content?: unknown } | null | undefined)?.content
  return typeof content === 'string' ? content : undefined
}

function savedConfig(special: SpecialTokens): TokenizerConfig {
  const tokens = Object.entries(special).map(([role, token]) => [`${role}_token`, token])
  return { tokenizer_class: 'PreTrainedTokenizerFast', clean_up_tokenization_spaces: false, ...Object.fromEntries(tokens) }
}
