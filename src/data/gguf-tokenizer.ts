import { LoopLMError } from '../errors.js'
import type { AddedToken, TokenizerJson } from '../tokenizer/json.js'
import type { GgufFile, GgufValue } from './gguf.js'
import { Tokenizer, type TokenizerConfig } from './tokenizer.js'

/** Types of tokens, in tokenizer.ggml.token_type. */
const kinds = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5 }

const llama3 = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
const sequence = (...pretokenizers: object[]) => ({ type: 'Sequence', pretokenizers })
const singleDigits = sequence({ type: 'Digits', individual_digits: true }, byteLevel)
const llama3Words = sequence(
  { type: 'Split', pattern: { Regex: llama3 }, behavior: 'Isolated', invert: false },
  { ...byteLevel, use_regex: false },
)

/** How byte-level BPE splits a text, by tokenizer.ggml.pre. */
const preTokenizers: Readonly<Record<string, { pre: object; wholeWords?: boolean; bos?: boolean }>> = {
  'gpt-2': { pre: byteLevel },
  olmo: { pre: byteLevel },
  smollm: { pre: singleDigits },
  starcoder: { pre: singleDigits },
  'llama-bpe': { pre: llama3Words, wholeWords: true, bos: true },
}

/**
 * The tokenizer inside a GGUF file.
 *
 * @returns undefined if there is none
 * @throws LoopLMError INVALID_FILE naming the invalid key, UNSUPPORTED naming a tokenizer type that looplm cannot rebuild
 */
export function ggufTokenizer(file: GgufFile, operation: string): Tokenizer | undefined {
  const model = file.metadata.get('tokenizer.ggml.model')
  if (model === undefined || model === 'none') return undefined
  const keys = new Keys(file, operation)
  if (model === 'gpt2') return build(keys, byteLevelBpe(keys))
  if (model === 'llama') return build(keys, sentencePiece(keys))
  throw keys.unsupported(
    'model',
    `is ${JSON.stringify(model)}; looplm rebuilds "gpt2" (byte-level BPE) and "llama" (SentencePiece)`,
  )
}

/** The ids of the special tokens that the file names. */
export function ggufTokenIds(file: GgufFile, operation: string) {
  const keys = new Keys(file, operation)
  const id = (role: string) => keys.id(`${role}_token_id`)
  return { bos: id('bos'), eos: id('eos'), eot: id('eot'), eom: id('eom'), pad: id('padding'), unknown: id('unknown') }
}

/** The keys of a file's tokenizer. */
class Keys {
  readonly tokens: readonly string[]
  readonly kinds: readonly number[]

  constructor(
    readonly file: GgufFile,
    readonly operation: string,
  ) {
    this.tokens = this.texts('tokens')
    this.kinds = this.value('token_type') === undefined ? this.tokens.map(() => kinds.normal) : this.numbers('token_type')
  }

  value(name: string): GgufValue | undefined {
    return this.file.metadata.get(`tokenizer.ggml.${name}`)
  }

  flag(name: string, absent: boolean): boolean {
    const value = this.value(name) ?? absent
    if (typeof value !== 'boolean') throw this.invalid(name, `must be true or false, got ${JSON.stringify(value).slice(0, 100)}`)
    return value
  }

  texts(name: string): readonly string[] {
    const list = this.value(name) ?? []
    if (!Array.isArray(list) || !list.every((text) => typeof text === 'string'))
      throw this.invalid(name, 'must be a list of strings')
    return list
  }

  /** One number per token. */
  numbers(name: string): readonly number[] {
    const list = this.value(name)
    if (!Array.isArray(list) || !list.every((number) => typeof number === 'number'))
      throw this.invalid(name, 'must be a list of numbers')
    if (list.length === this.tokens.length) return list
    throw this.invalid(name, `has ${list.length} entries for ${this.tokens.length} tokens`)
  }

  id(name: string): number | undefined {
    const id = this.value(name)
    if (id === undefined) return undefined
    const count = this.tokens.length
    if (Number.isInteger(id) && (id as number) >= 0 && (count === 0 || (id as number) < count)) return id as number
    throw this.invalid(name, `must be the id of one of the ${count} tokens, got ${JSON.stringify(id).slice(0, 100)}`)
  }

  invalid(name: string, problem: string): LoopLMError {
    const message = `${this.file.path}: key "tokenizer.ggml.${name}" ${problem}`
    return new LoopLMError('INVALID_FILE', message, { operation: this.operation })
  }

  unsupported(name: string, problem: string): LoopLMError {
    const remedy = "put the model's tokenizer.json and tokenizer_config.json beside the file"
    const message = `${this.file.path}: key "tokenizer.ggml.${name}" ${problem}. ${remedy}`
    return new LoopLMError('UNSUPPORTED', message, { operation: this.operation })
  }
}

/** The parts in which the two types of tokenizers differ. */
type Parts = Pick<TokenizerJson, 'normalizer' | 'pre_tokenizer' | 'decoder' | 'model'> & { bos: boolean }

const bpe = {
  ...{ type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null },
  ...{ fuse_unk: false, byte_fallback: false, ignore_merges: false },
}

function byteLevelBpe(keys: Keys): Parts {
  const name = keys.value('pre') ?? 'default'
  const known = typeof name === 'string' && Object.hasOwn(preTokenizers, name) ? preTokenizers[name] : undefined
  if (known === undefined) {
    const names = Object.keys(preTokenizers).join(', ')
    throw keys.unsupported('pre', `is ${JSON.stringify(name).slice(0, 100)}; looplm knows the pre-tokenizers ${names}`)
  }
  return {
    normalizer: null,
    pre_tokenizer: known.pre,
    decoder: { ...byteLevel, add_prefix_space: true },
    model: { ...bpe, ignore_merges: known.wholeWords === true, vocab: vocabulary(keys), merges: keys.texts('merges') },
    bos: known.bos === true,
  }
}

const space = '▁'

/** SentencePiece's BPE: spaces become marks, with one before the text. Characters without a token become bytes. */
function sentencePiece(keys: Keys): Parts {
  const spaceFirst = keys.flag('add_space_prefix', true)
  const marks = { type: 'Replace', pattern: { String: ' ' }, content: space }
  const unknown = keys.id('unknown_token_id') ?? keys.kinds.indexOf(kinds.unknown)
  const strip = spaceFirst ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []
  return {
    normalizer: spaceFirst ? { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: space }, marks] } : marks,
    pre_tokenizer: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: space }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...strip,
      ],
    },
    model: {
      ...bpe,
      unk_token: keys.tokens[unknown] ?? null,
      fuse_unk: true,
      byte_fallback: true,
      vocab: vocabulary(keys),
      merges: mergesByScore(keys),
    },
    bos: true,
  }
}

/**
 * Every way to merge two tokens into a third, by descending score: the order in which SentencePiece merges. Among equal scores,
 * the one with the longest left part comes first.
 */
function mergesByScore(keys: Keys): [string, string][] {
  const { tokens, kinds: kind } = keys
  const scores = keys.numbers('scores')
  const vocab = new Set(tokens.filter((_, id) => kind[id] === kinds.normal))
  const order = [...tokens.keys()].filter((id) => kind[id] === kinds.normal).sort((a, b) => scores[b]! - scores[a]! || a - b)
  const merges: [string, string][] = []
  for (const id of order) {
    const characters = [...tokens[id]!]
    for (let cut = characters.length - 1; cut > 0; cut--) {
      const pair: [string, string] = [characters.slice(0, cut).join(''), characters.slice(cut).join('')]
      if (vocab.has(pair[0]) && vocab.has(pair[1])) merges.push(pair)
    }
  }
  return merges
}

/** Ids by token, without tokens that are only padding of the vocabulary. */
function vocabulary(keys: Keys): Record<string, number> {
  const { tokens, kinds: kind } = keys
  if (tokens.length === 0) throw keys.invalid('tokens', 'is missing or empty')
  const vocab = new Map<string, number>()
  for (const [id, token] of tokens.entries()) {
    if (kind[id] === kinds.unused && /^\[PAD\d+\]$/.test(token)) continue
    const twice = vocab.get(token)
    if (twice !== undefined) throw keys.invalid('tokens', `has ${JSON.stringify(token)} twice, with the ids ${twice} and ${id}`)
    vocab.set(token, id)
  }
  return Object.fromEntries(vocab)
}

function build(keys: Keys, { bos: begins, ...parts }: Parts): Tokenizer {
  const { tokens, kinds: kind, file, operation } = keys
  const ids = ggufTokenIds(file, operation)
  const special = (id: number) => kind[id] === kinds.control || kind[id] === kinds.unknown
  const added: AddedToken[] = []
  for (const [id, content] of tokens.entries()) {
    if ((!special(id) && kind[id] !== kinds.userDefined) || content === '') continue
    added.push({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: special(id) })
  }
  const around = (name: string, id: number | undefined, absent: boolean) => {
    if (!keys.flag(name, absent && id !== undefined)) return []
    if (id === undefined) throw keys.invalid(name, 'is true, but the file names no such token')
    return [id]
  }
  const [first, last] = [around('add_bos_token', ids.bos, begins), around('add_eos_token', ids.eos, false)]
  const slot = (id: number) => ({ SpecialToken: { id: tokens[id]!, type_id: 0 } })
  const text = { Sequence: { id: 'A', type_id: 0 } }
  const json: TokenizerJson = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    ...parts,
    post_processor:
      [...first, ...last].length === 0
        ? null
        : {
            type: 'TemplateProcessing',
            single: [...first.map(slot), text, ...last.map(slot)],
            pair: [...first.map(slot), text, ...last.map(slot), { Sequence: { id: 'B', type_id: 1 } }, ...last.map(slot)],
            special_tokens: Object.fromEntries(
              [...first, ...last].map((id) => [tokens[id], { id: tokens[id], ids: [id], tokens: [tokens[id]] }]),
            ),
          },
  }
  const named = { bos_token: ids.bos, eos_token: ids.eos, pad_token: ids.pad, unk_token: ids.unknown }
  const config: TokenizerConfig = { tokenizer_class: 'PreTrainedTokenizerFast', clean_up_tokenization_spaces: false }
  for (const [field, id] of Object.entries(named)) if (id !== undefined && tokens[id] !== '') config[field] = tokens[id]
  const template = chatTemplate(file)
  if (template !== undefined) config.chat_template = template
  return new Tokenizer(json, config, `${file.path}, keys "tokenizer.ggml.*"`, `${file.path}, key "tokenizer.chat_template"`)
}

/** One template, or several with names, in the format of tokenizer_config.json. */
function chatTemplate({ metadata }: GgufFile): unknown {
  const key = 'tokenizer.chat_template'
  const main = metadata.get(key)
  const others = [...metadata].filter(([name]) => name.startsWith(`${key}.`))
  if (others.length === 0) return main
  const named = others.map(([name, template]) => ({ name: name.slice(key.length + 1), template }))
  return main === undefined ? named : [{ name: 'default', template: main }, ...named]
}
