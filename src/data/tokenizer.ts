import { createHash } from 'node:crypto'
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { LoopLMError } from '../errors.js'
import { staleFiles } from '../files/folder-files.js'
import { maxFileBytes, readJson, readText } from '../files/read.js'
import { jsonText, onDisk, replaceFile } from '../files/write.js'
import { bytesOfCharacters } from '../tokenizer/byte-characters.js'
import { byteOfToken, cleanUpSpaces as cleanUp } from '../tokenizer/decoders.js'
import type { TokenizerJson } from '../tokenizer/json.js'
import { UnknownPiece } from '../tokenizer/model.js'
import { Pipeline } from '../tokenizer/pipeline.js'
import { nextTurn, turnIsOver } from '../turns.js'
import { checkFlag, checkOptions, checkText, describe, type Keys } from '../validation/arguments.js'
import {
  type ChatMessage,
  type ChatPart,
  type ChatTemplateOptions,
  type ChatTemplates,
  chatParts,
  compileChatTemplates,
  maxTemplateBytes,
  renderChat,
  type TemplateSource,
  templateWords,
  withMarks,
} from './chat-template.js'
import {
  byteTokenizerJson,
  characterTokenizerJson,
  decoderTypes,
  parseTokenizerJson,
  type SpecialTokens,
} from './tokenizer-json.js'

/** The fields of tokenizer_config.json that looplm reads. All others are kept and saved again. */
export interface TokenizerConfig {
  /** Begins a text: a string, or an object with `content`. */
  bos_token?: unknown
  /** Ends a text. */
  eos_token?: unknown
  /** Pads a text. */
  pad_token?: unknown
  /** Replaces text that the vocabulary lacks. */
  unk_token?: unknown
  /** Whether `decode` removes spaces before punctuation, as Python does. */
  clean_up_tokenization_spaces?: unknown
  /** The same for BPE, as Python names it. */
  clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output?: unknown
  /** Jinja templates for conversations: one, or several by name. */
  chat_template?: unknown
  [field: string]: unknown
}

/** Options of {@link Tokenizer.encode}. */
export interface EncodeOptions {
  /** Apply the tokenizer's template, for example a leading bos token. Defaults to true. */
  addSpecialTokens?: boolean
}

/** Options of {@link Tokenizer.decode}. */
export interface DecodeOptions {
  /** Skip special tokens. Defaults to false. */
  skipSpecialTokens?: boolean
  /**
   * Skip unknown ids, as Python does. Defaults to false. If a model's vocab_size is larger than the tokenizer's, it may draw
   * such ids, though rarely once it is trained. Generation decodes with this option.
   */
  skipUnknownTokens?: boolean
  /**
   * Drop spaces before punctuation. Defaults to clean_up_tokenization_spaces of tokenizer_config.json. As in transformers 5, it
   * has no effect on BPE tokenizers.
   */
  cleanUpSpaces?: boolean
}

const encodeOptions: Keys<EncodeOptions> = { addSpecialTokens: true }
const decodeOptions: Keys<DecodeOptions> = { skipSpecialTokens: true, skipUnknownTokens: true, cleanUpSpaces: true }

/** Part of the fingerprint. Version 1 encoded some texts differently. */
const encodingVersion = 2

/** Placeholder for a response, used to find out what the template writes after it. */
const answerMark = 'answer of looplm'

/**
 * Converts text to token ids and back. It reads the tokenizer.json of a Hugging Face checkpoint, or creates a small character
 * or byte tokenizer that Python's `tokenizers` can also load.
 *
 * @example
 * ```ts
 * const tokenizer = Tokenizer.characters('0123456789+=')
 * tokenizer.encode('12+30=') // [1, 2, 10, 3, 0, 11]
 * tokenizer.decode([4, 2]) // '42'
 * ```
 */
export class Tokenizer {
  /** Largest token id + 1. A model's `vocab_size` must be at least this; larger ids of the model have no text. */
  readonly vocabSize: number
  /** The content of tokenizer_config.json, for example its `chat_template`. */
  readonly config: Readonly<TokenizerConfig>
  /** Id of the token that begins a text. undefined if the configuration names none. */
  readonly bosTokenId: number | undefined
  /** Id of the token that ends a text. undefined if the configuration names none. */
  readonly eosTokenId: number | undefined
  /** Id of the token that pads batches. undefined if the configuration names none. */
  readonly padTokenId: number | undefined
  readonly #json: TokenizerJson
  readonly #source: string
  readonly #pipeline: Pipeline
  readonly #decoders: ReadonlySet<string>
  readonly #isAdded: ReadonlySet<number>
  readonly #templateSource: string
  #templates: ChatTemplates | undefined
  #marked: ChatTemplates | null | undefined // null: the template has no generation tags
  #chatEnd: { token: number | undefined } | undefined

  /**
   * @param json the parsed content of a tokenizer.json
   * @param config the parsed content of a tokenizer_config.json
   * @param source the tokenizer's name in errors, usually its path
   * @param templateSource the chat template's name in errors, usually its path and field
   * @throws LoopLMError INVALID_FILE naming the source and the field
   */
  constructor(
    json: unknown,
    config: TokenizerConfig = {},
    source = 'tokenizer.json',
    templateSource = 'tokenizer_config.json, field "chat_template"',
  ) {
    const { tokenizer, vocab, addedTokens, vocabSize } = parseTokenizerJson(json, source)
    this.#json = tokenizer
    this.#source = source
    this.#templateSource = templateSource
    this.vocabSize = vocabSize
    this.config = config
    this.#decoders = decoderTypes(tokenizer.decoder)
    this.#isAdded = new Set(addedTokens.map(({ id }) => id))
    this.#pipeline = new Pipeline(tokenizer, vocab, addedTokens, source)
    this.bosTokenId = this.#configuredId('bos_token', source)
    this.eosTokenId = this.#configuredId('eos_token', source)
    this.padTokenId = this.#configuredId('pad_token', source)
  }

  /**
   * Reads a tokenizer.json.
   *
   * @param path the file
   * @param config content of tokenizer_config.json, for example `{ eos_token: '<|endoftext|>' }`
   * @throws LoopLMError NOT_FOUND, or INVALID_FILE naming the file and the field
   */
  static async fromFile(path: string, config: TokenizerConfig = {}): Promise<Tokenizer> {
    return new Tokenizer(await readJson(path, maxFileBytes.tokenizer, 'Tokenizer.fromFile'), config, path)
  }

  /**
   * Reads tokenizer.json and, if they exist, tokenizer_config.json and chat_template.jinja from a checkpoint folder.
   * chat_template.jinja takes precedence over the `chat_template` of tokenizer_config.json, as in transformers.
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
   * Creates a tokenizer with one token per character. The i-th character of the alphabet has id i; special tokens follow. Its
   * tokenizer.json is a WordLevel model without an unknown token, so a character outside the alphabet is an error in Python
   * too.
   *
   * @param alphabet distinct characters (Unicode code points)
   * @throws LoopLMError INVALID_ARGUMENT if a character occurs twice or a special token is one of them
   */
  static characters(
    alphabet: string,
    options: {
      /** Tokens that begin, end or pad a text, for example `{ eos: '<eos>' }`. */
      special?: SpecialTokens
    } = {},
  ): Tokenizer {
    const special = readSpecial(options, 'Tokenizer.characters')
    return new Tokenizer(characterTokenizerJson(alphabet, special), savedConfig(special), 'Tokenizer.characters')
  }

  /**
   * Creates a tokenizer with one token per byte of UTF-8. The id of a token is the byte; special tokens follow from 256. Its
   * tokenizer.json is a byte-level BPE model without merges.
   *
   * @example
   * ```ts
   * Tokenizer.bytes().encode('é') // [0xc3, 0xa9]
   * ```
   */
  static bytes(
    options: {
      /** Tokens that begin, end or pad a text, for example `{ eos: '<eos>' }`. */
      special?: SpecialTokens
    } = {},
  ): Tokenizer {
    const special = readSpecial(options, 'Tokenizer.bytes')
    return new Tokenizer(byteTokenizerJson(special), savedConfig(special), 'Tokenizer.bytes')
  }

  /**
   * Encodes text as token ids, exactly like Python's tokenizers.
   *
   * @param text if it contains the text of an added token, that becomes the token, as in Python
   * @param options.addSpecialTokens apply the tokenizer's template, for example a leading bos token; defaults to true
   * @throws LoopLMError INVALID_ARGUMENT if the text is not a string, or naming the first piece of it that the vocabulary
   *   lacks, unless the tokenizer has an unknown token; UNSUPPORTED if the file asks for truncation or padding that would
   *   change the result
   */
  encode(text: string, options: EncodeOptions = {}): number[] {
    const operation = 'Tokenizer.encode'
    const steps = this.#encoding(text, options, operation)
    try {
      let step = steps.next()
      while (!step.done) step = steps.next()
      return this.#checkLength(step.value, operation)
    } catch (error) {
      throw this.#encodeError(error, text, operation)
    }
  }

  /**
   * Like {@link Tokenizer.encode}, but yields to the event loop every few milliseconds, so that a server can answer other
   * requests while it encodes a long text.
   *
   * @param text the text
   * @param options as for encode
   * @throws LoopLMError as encode
   *
   * @example
   * ```ts
   * const ids = await Tokenizer.bytes().encodeAsync('a'.repeat(500_000))
   * ```
   */
  async encodeAsync(text: string, options: EncodeOptions = {}): Promise<number[]> {
    const operation = 'Tokenizer.encodeAsync'
    const steps = this.#encoding(text, options, operation)
    try {
      let step = steps.next()
      while (!step.done) {
        if (turnIsOver()) await nextTurn()
        step = steps.next()
      }
      return this.#checkLength(step.value, operation)
    } catch (error) {
      throw this.#encodeError(error, text, operation)
    }
  }

  #encoding(text: string, options: EncodeOptions, operation: string): Generator<void, number[]> {
    if (typeof text !== 'string') {
      const message = `text must be a string, got ${describe(text)}; render a list of messages with applyChatTemplate first`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    checkOptions(options, encodeOptions, operation)
    return this.#pipeline.encode(text, checkFlag(options.addSpecialTokens ?? true, 'addSpecialTokens', operation))
  }

  /** Python's tokenizers truncates and pads as tokenizer.json says. transformers only does so if the caller asks for it. */
  #checkLength(ids: number[], operation: string): number[] {
    const refuse = (field: string, does: string) => {
      const message = `${this.#source}: field "${field}" ${does} in Python's tokenizers, but not in transformers; set it to null`
      return new LoopLMError('UNSUPPORTED', message, { operation })
    }
    const { max_length: longest } = (this.#json.truncation ?? {}) as { max_length?: unknown }
    if (typeof longest === 'number' && ids.length > longest) {
      throw refuse('truncation', `cuts this text of ${ids.length} tokens to ${longest}`)
    }
    const { strategy, pad_to_multiple_of: multiple } = (this.#json.padding ?? {}) as Record<string, unknown>
    const fixed = (strategy as { Fixed?: unknown } | null | undefined)?.Fixed
    let length = Math.max(ids.length, typeof fixed === 'number' ? fixed : 0)
    if (typeof multiple === 'number' && multiple > 0) length = Math.ceil(length / multiple) * multiple
    if (length > ids.length) throw refuse('padding', `fills this text of ${ids.length} tokens up to ${length}`)
    return ids
  }

  /**
   * Decodes token ids. Bytes that are not valid UTF-8, for example half a character, become U+FFFD.
   *
   * @param ids token ids; an empty list gives an empty string
   * @param options.skipSpecialTokens skip special tokens; defaults to false
   * @param options.skipUnknownTokens skip unknown ids, as Python does; defaults to false
   * @param options.cleanUpSpaces drop spaces before punctuation; no effect on BPE tokenizers
   * @throws LoopLMError INVALID_ARGUMENT if ids is not a list of integers, or naming an id that the vocabulary lacks
   */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const operation = 'Tokenizer.decode'
    const refuse = (problem: string) => new LoopLMError('INVALID_ARGUMENT', problem, { operation })
    const isList = typeof ids === 'object' && ids !== null && Number.isSafeInteger(ids.length)
    if (!isList) throw refuse(`ids must be an array of token ids, got ${describe(ids)}`)
    checkOptions(options, decodeOptions, operation)
    const flag = (name: keyof DecodeOptions, absent: boolean) => checkFlag(options[name] ?? absent, name, operation)
    const skipUnknown = flag('skipUnknownTokens', false)
    const known: number[] = []
    for (let i = 0; i < ids.length; i++) {
      const id: unknown = ids[i]
      if (typeof id !== 'number') throw refuse(`ids[${i}] must be a token id, got ${describe(id)}`)
      if (this.#pipeline.token(id) !== undefined) known.push(id)
      else if (!skipUnknown) throw refuse(`no token has the id ${id}; the vocabulary has ${this.vocabSize} ids`)
    }
    const skipSpecial = flag('skipSpecialTokens', false)
    const cleans = flag('cleanUpSpaces', this.config.clean_up_tokenization_spaces === true)
    if (known.length === 0) return ''
    const text = this.#pipeline.decode(known, skipSpecial)
    const { clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output: evenBpe } = this.config
    return cleans && (this.#pipeline.type !== 'BPE' || evenBpe === true) ? cleanUp(text) : text
  }

  /**
   * Whether decoding with skipSpecialTokens and skipUnknownTokens skips an id.
   * @internal
   */
  isSkipped(id: number): boolean {
    return this.#pipeline.token(id) === undefined || this.#pipeline.isSpecial(id)
  }

  /** Whether the configuration has a chat template. */
  get hasChatTemplate(): boolean {
    return this.config.chat_template != null
  }

  /**
   * Renders a conversation with the checkpoint's own Jinja template. Encode the text with `addSpecialTokens: false`, because
   * the template already writes the special tokens.
   *
   * @param messages at least one; `role` and usually `content`
   * @param options.addGenerationPrompt end with the beginning of an assistant message; defaults to false
   * @param options.enableThinking the template's `enable_thinking`; if unset, the template decides
   * @param options.tools JSON schemas of functions, for templates that show them
   * @param options.variables further variables of the template, by their names in it
   * @throws LoopLMError UNSUPPORTED without a template, or with tools that it does not show; INVALID_FILE if it does not parse,
   *   INVALID_ARGUMENT if it rejects the messages; the latter two name the template's file and the cause
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
    this.#templates ??= compileChatTemplates(this.#template, operation)
    return renderChat(this.#templates, this.#templateSource, messages, options, this.#specialTexts(), operation)
  }

  /**
   * A rendered conversation in parts: those inside the template's `{% generation %}` tags, and those between them. undefined if
   * the template has no such tags.
   * @internal
   */
  chatParts(messages: readonly ChatMessage[], options: ChatTemplateOptions): ChatPart[] | undefined {
    const operation = 'Tokenizer.applyChatTemplate'
    if (this.#marked === undefined) {
      const marked = this.hasChatTemplate ? withMarks(this.#template) : undefined
      this.#marked = marked === undefined ? null : compileChatTemplates(marked, operation)
    }
    if (this.#marked === null) return undefined
    const text = renderChat(this.#marked, this.#templateSource, messages, options, this.#specialTexts(), operation)
    return chatParts(text, this.#templateSource, operation)
  }

  /**
   * All words of the chat template, which include the variables that it uses.
   * @internal
   */
  chatWords(): ReadonlySet<string> {
    return templateWords(this.#template)
  }

  /**
   * Returns the same tokenizer with another chat template.
   *
   * @param template Jinja
   * @param source the name in errors
   * @throws LoopLMError INVALID_FILE if it does not parse
   *
   * @example
   * ```ts
   * const chatty = tokenizer.withChatTemplate('{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}')
   * ```
   */
  withChatTemplate(template: string, source = 'the chat template'): Tokenizer {
    compileChatTemplates({ template, name: source }, 'Tokenizer.withChatTemplate')
    return new Tokenizer(this.#json, { ...this.config, chat_template: template }, this.#source, source)
  }

  get #template(): TemplateSource {
    return { template: this.config.chat_template, name: this.#templateSource }
  }

  /** The special tokens by role, as strings, for templates. */
  #specialTexts(): Record<string, string> {
    const special = Object.entries(this.config).flatMap(([field, value]) => {
      const content = field.endsWith('_token') ? tokenContent(value) : undefined
      return content === undefined ? [] : [[field, content]]
    })
    return Object.fromEntries(special)
  }

  /**
   * The special token that the chat template writes after a response. undefined if it writes none. A turn ends there, whatever
   * the checkpoint's end tokens are.
   */
  chatEndToken(): number | undefined {
    this.#chatEnd ??= { token: this.#findChatEnd() }
    return this.#chatEnd.token
  }

  /** Tries it with and without a system message, because some templates require one and others reject it. */
  #findChatEnd(): number | undefined {
    const chat = [
      { role: 'user', content: 'question' },
      { role: 'assistant', content: answerMark },
    ]
    return this.#tokenAfterAnswer(chat) ?? this.#tokenAfterAnswer([{ role: 'system', content: 'system' }, ...chat])
  }

  #tokenAfterAnswer(messages: readonly ChatMessage[]): number | undefined {
    let text: string
    try {
      text = this.applyChatTemplate(messages)
    } catch {
      return undefined // the template rejects such messages
    }
    const at = text.lastIndexOf(answerMark)
    if (at === -1) return undefined
    const after = text.slice(at + answerMark.length).trimStart()
    const ends = this.#json.added_tokens.filter(({ special }) => special)
    const eos = tokenContent(this.config.eos_token)
    const found = [...ends.map(({ content }) => content), ...(eos === undefined ? [] : [eos])].filter((end) =>
      after.startsWith(end),
    )
    const longest = found.sort((a, b) => b.length - a.length)[0]
    return longest === undefined ? undefined : this.tokenId(longest)
  }

  /** A hash of tokenizer.json and of the end token. Equal for tokenizers that encode equally. */
  get fingerprint(): string {
    return createHash('sha256')
      .update(JSON.stringify([encodingVersion, this.#json, this.eosTokenId ?? null]))
      .digest('hex')
      .slice(0, 32)
  }

  /** The id of a token by its spelling in the vocabulary. undefined if there is none. */
  tokenId(token: string): number | undefined {
    return this.#pipeline.id(token)
  }

  /**
   * The UTF-8 bytes of one token, which may be part of a character. Empty for unknown ids.
   *
   * @example
   * ```ts
   * Tokenizer.bytes().tokenBytes(0xc3) // Uint8Array [0xc3], the first half of é
   * ```
   */
  tokenBytes(id: number): Uint8Array {
    const token = this.#pipeline.token(id)
    if (token === undefined) return new Uint8Array()
    // Decoders that drop the space at the start of a text only drop that of the first token
    const bytes = this.#isAdded.has(id) ? undefined : this.#bytesOf(token)
    if (bytes !== undefined) return bytes
    const text = (ids: number[]) => this.#pipeline.decode(ids, false)
    return new TextEncoder().encode(text([id, id]).slice(text([id]).length))
  }

  #bytesOf(token: string): Uint8Array | undefined {
    const byte = this.#decoders.has('ByteFallback') ? byteOfToken(token) : undefined
    if (byte !== undefined) return Uint8Array.of(byte)
    return this.#decoders.has('ByteLevel') ? bytesOfCharacters(token) : undefined
  }

  /**
   * Whether a token such as `<0xE2>` is a byte that decoding joins with its neighbours.
   * @internal
   */
  isByteToken(id: number): boolean {
    return this.#decoders.has('ByteFallback') && byteOfToken(this.#pipeline.token(id) ?? '') !== undefined
  }

  /**
   * Writes tokenizer.json and tokenizer_config.json, each to a temporary file that is then renamed. Files of another tokenizer
   * in the folder, such as chat_template.jinja and vocab.json, are removed.
   *
   * @param folder created if it does not exist
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
   * The files that {@link Tokenizer.save} writes: names and content.
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

  #encodeError(error: unknown, text: string, operation: string): unknown {
    if (!(error instanceof UnknownPiece)) return error
    const { piece } = error
    const alphabet = this.#pipeline.tokens().slice(0, 128).join('')
    const points = Array.from(piece, (character) => `U+${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, '0')}`)
    const at = text.indexOf(piece) // -1 if a normalizer changed the piece
    const where = `${JSON.stringify(piece)} (${points.slice(0, 8).join(' ')})${at === -1 ? '' : ` at position ${at}`}`
    const message = `${where} is not in the alphabet ${JSON.stringify(alphabet)}; remove it or build a tokenizer that has it`
    return new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
}

/** The content of a token, which transformers writes as a string or as an object. */
function tokenContent(token: unknown): string | undefined {
  if (typeof token === 'string') return token
  const content = (token as { content?: unknown } | null | undefined)?.content
  return typeof content === 'string' ? content : undefined
}

function readSpecial(options: { special?: SpecialTokens }, operation: string): SpecialTokens {
  checkOptions(options, { special: true }, operation)
  const { special = {} } = options
  checkOptions(special, { bos: true, eos: true, pad: true } satisfies Keys<SpecialTokens>, operation, 'special')
  return special
}

function savedConfig(special: SpecialTokens): TokenizerConfig {
  const tokens = Object.entries(special).map(([role, token]) => [`${role}_token`, token])
  return { tokenizer_class: 'PreTrainedTokenizerFast', clean_up_tokenization_spaces: false, ...Object.fromEntries(tokens) }
}
