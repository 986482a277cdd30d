import { LoopLMError } from '../errors.js'
import { characterOfByte } from '../tokenizer/byte-characters.js'
import type { AddedToken, TokenizerJson } from '../tokenizer/json.js'
import { describe } from '../validation/arguments.js'
import { isDeeper, maxJsonDepth } from '../validation/json-value.js'

/** Special tokens by role, as strings, for example `{ eos: '<eos>' }`. */
export interface SpecialTokens {
  /** Begins a text. */
  bos?: string
  /** Ends a text. */
  eos?: string
  /** Pads a text. */
  pad?: string
}

const maxTokenId = 2 ** 24

/**
 * The tokenizer.json of {@link Tokenizer.characters}: split into characters, look each up in a WordLevel vocabulary, join when
 * decoding. WordLevel requires an `unk_token`. It names one that is not in the vocabulary, so that an unknown character is an
 * error in Python instead of a silent replacement.
 */
export function characterTokenizerJson(alphabet: string, special: SpecialTokens): TokenizerJson {
  const characters = Array.from(alphabet)
  if (characters.length === 0) throw invalidAlphabet('the alphabet is empty')
  const twice = characters.find((character, i) => characters.indexOf(character) !== i)
  if (twice !== undefined) throw invalidAlphabet(`${JSON.stringify(twice)} occurs twice in the alphabet`)
  if (/\p{Surrogate}/u.test(alphabet)) throw invalidAlphabet('the alphabet has half of a surrogate pair')
  const { added_tokens, vocab } = vocabulary(characters, special, 'Tokenizer.characters')
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens,
    normalizer: null,
    pre_tokenizer: { type: 'Split', pattern: { Regex: '[\\s\\S]' }, behavior: 'Isolated', invert: false },
    post_processor: null,
    decoder: { type: 'Fuse' },
    model: { type: 'WordLevel', vocab, unk_token: '<unk>' },
  }
}

/** The tokenizer.json of {@link Tokenizer.bytes}: byte-level BPE with the 256 bytes as its vocabulary and no merges. */
export function byteTokenizerJson(special: SpecialTokens): TokenizerJson {
  const { added_tokens, vocab } = vocabulary([...characterOfByte], special, 'Tokenizer.bytes')
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens,
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges: [],
    },
  }
}

/** The types of a decoder and of the decoders in its sequence. */
export function decoderTypes(decoder: unknown): ReadonlySet<string> {
  const { type, decoders } = (decoder ?? {}) as { type?: string; decoders?: readonly unknown[] }
  const inner = (decoders ?? []).flatMap((step) => [...decoderTypes(step)])
  return new Set(type === undefined ? inner : [type, ...inner])
}

/** Assigns ids 0, 1, … to the tokens and then to the special ones, which are also listed as added tokens. */
function vocabulary(tokens: string[], special: SpecialTokens, operation: string) {
  const all = [...tokens]
  for (const [role, token] of Object.entries(special)) {
    if (typeof token !== 'string' || token === '') {
      const message = `special.${role} must be a string of at least one character, got ${describe(token)}`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    if (tokens.includes(token)) {
      const message = `special.${role} ${JSON.stringify(token)} is already a token; use another string, such as "<${role}>"`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    if (!all.includes(token)) all.push(token) // one token may have several roles
  }
  const added_tokens = all.slice(tokens.length).map((content, i) => ({
    id: tokens.length + i,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }))
  return { added_tokens, vocab: Object.fromEntries(all.map((token, id) => [token, id])) }
}

/**
 * Checks a parsed tokenizer.json before anything is built from it.
 *
 * @param value the parsed file
 * @param source the name in errors
 * @returns the same content with absent optional parts set to null, the model's vocabulary, the added tokens with every field,
 *   and the largest id + 1
 * @throws LoopLMError INVALID_FILE naming the source and the field
 */
export function parseTokenizerJson(
  value: unknown,
  source: string,
): { tokenizer: TokenizerJson; vocab: Map<string, number>; addedTokens: AddedToken[]; vocabSize: number } {
  const invalid = (field: string, problem: string): LoopLMError =>
    new LoopLMError('INVALID_FILE', `${source}: field "${field}" ${problem}`, { operation: 'Tokenizer' })

  if (!isObject(value)) {
    throw new LoopLMError('INVALID_FILE', `${source} must hold a JSON object`, { operation: 'Tokenizer' })
  }
  if (isDeeper(value, maxJsonDepth)) {
    const message = `${source} is nested more than ${maxJsonDepth} deep`
    throw new LoopLMError('INVALID_FILE', message, { operation: 'Tokenizer' })
  }
  const { model, added_tokens = [] } = value
  if (!isObject(model)) throw invalid('model', 'must be an object')
  const types = ['BPE', 'WordLevel', 'WordPiece', 'Unigram']
  if (model.type !== undefined && !types.includes(model.type as string)) {
    throw invalid('model.type', `must be one of ${types.join(', ')}, got ${JSON.stringify(model.type)}`)
  }
  if (value.version !== undefined && value.version !== '1.0') {
    throw invalid('version', `must be "1.0", got ${JSON.stringify(value.version)}`)
  }
  if (!Array.isArray(added_tokens)) throw invalid('added_tokens', 'must be an array')

  const vocab = readVocab(model.vocab, invalid)
  if (Array.isArray(model.vocab)) checkUnknownId(model.unk_id, model.vocab, invalid)
  const addedTokens = readAddedTokens(added_tokens, vocab, Array.isArray(model.vocab) ? model.vocab.length : vocab.size, invalid)
  let vocabSize = Array.isArray(model.vocab) ? model.vocab.length : 0 // if a token occurs twice, the last one counts
  for (const id of vocab.values()) vocabSize = Math.max(vocabSize, id + 1)
  for (const { id } of addedTokens) vocabSize = Math.max(vocabSize, id + 1)
  if (vocabSize === 0) throw invalid('model.vocab', 'has no tokens')

  const absent = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null }
  return { tokenizer: { ...absent, ...value, added_tokens } as unknown as TokenizerJson, vocab, addedTokens, vocabSize }
}

type InvalidField = (field: string, problem: string) => LoopLMError

/** A vocabulary maps tokens to ids, or (Unigram) lists pairs of a token and its score in the order of the ids. */
function readVocab(vocab: unknown, invalid: InvalidField): Map<string, number> {
  const tokens = new Map<string, number>()
  if (Array.isArray(vocab)) {
    for (const [id, entry] of vocab.entries()) {
      if (!Array.isArray(entry) || typeof entry[0] !== 'string' || !Number.isFinite(entry[1])) {
        throw invalid(`model.vocab.${id}`, 'must be a pair of a token and its score, which is a number')
      }
      tokens.set(entry[0], id)
    }
    return tokens
  }
  if (!isObject(vocab)) throw invalid('model.vocab', 'must be an object or an array')
  const taken = new Set<number>()
  for (const token in vocab) {
    const id = vocab[token]
    if (!isTokenId(id)) throw invalid(`model.vocab.${token}`, notAnId(id))
    tokens.set(token, id)
    taken.add(id)
    if (taken.size < tokens.size) throw invalid(`model.vocab.${token}`, `has the id ${id}, which another token has`)
  }
  return tokens
}

/** Checks the id of the unknown token in a Unigram vocabulary. */
function checkUnknownId(id: unknown, vocab: readonly unknown[], invalid: InvalidField): void {
  if (id === undefined || id === null || (Number.isInteger(id) && vocab[id as number] !== undefined)) return
  throw invalid('model.unk_id', `must be an id of the vocabulary, below ${vocab.length}, got ${JSON.stringify(id)}`)
}

/**
 * The added tokens with every field. Python's tokenizers ignores their ids: tokens that the model's vocabulary lacks get the
 * next free ids. So a file with other ids would mean other tokens there.
 */
function readAddedTokens(
  list: readonly unknown[],
  vocab: ReadonlyMap<string, number>,
  size: number,
  invalid: InvalidField,
): AddedToken[] {
  const behind = new Map<string, number>()
  return list.map((token, i) => {
    if (!isObject(token) || typeof token.content !== 'string' || token.content === '') {
      throw invalid(
        `added_tokens.${i}.content`,
        `must be a string of at least one character, got ${describe(isObject(token) ? token.content : token)}`,
      )
    }
    const { content, id, special = false } = token
    if (!isTokenId(id)) throw invalid(`added_tokens.${i}.id`, notAnId(id))
    const given = vocab.get(content) ?? behind.get(content) ?? size + behind.size
    if (!vocab.has(content)) behind.set(content, given)
    if (given !== id) {
      const problem = `is ${id}, but Python's tokenizers gives ${JSON.stringify(content)} the id ${given}; set it to ${given}`
      throw invalid(`added_tokens.${i}.id`, problem)
    }
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: special !== true, special }
    const read = { ...flags, ...token } as unknown as AddedToken
    for (const flag of Object.keys(flags) as (keyof typeof flags)[]) {
      if (typeof read[flag] !== 'boolean') throw invalid(`added_tokens.${i}.${flag}`, 'must be true or false')
    }
    return read
  })
}

function isTokenId(id: unknown): id is number {
  return Number.isInteger(id) && (id as number) >= 0 && (id as number) < maxTokenId
}

function notAnId(value: unknown): string {
  return `must be an id in [0, ${maxTokenId}), got ${JSON.stringify(value)}`
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function invalidAlphabet(problem: string): LoopLMError {
  return new LoopLMError('INVALID_ARGUMENT', problem, { operation: 'Tokenizer.characters' })
}
