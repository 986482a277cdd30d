import { AddedTokens } from './added-tokens.js'
import { Bpe } from './bpe.js'
import { type Decoder, readDecoder } from './decoders.js'
import { Fields } from './fields.js'
import type { AddedToken, TokenizerJson } from './json.js'
import type { Model } from './model.js'
import { readNormalizer } from './normalizers.js'
import type { Normalizer, Piece } from './pieces.js'
import { type PostProcessor, readPostProcessor } from './post-processors.js'
import { type PreTokenizer, readPreTokenizer } from './pre-tokenizers.js'
import { Unigram } from './unigram.js'
import { WordLevel, WordPiece } from './word-models.js'

/** How many pieces are encoded between two pauses. */
const slice = 256

const models = { BPE: Bpe, WordPiece, WordLevel, Unigram }

/**
 * Runs the steps of a tokenizer.json as Python's tokenizers does. Added tokens are cut out. The rest is normalized, split into
 * pieces and passed to the model. Finally special tokens are added around it.
 */
export class Pipeline {
  readonly type: keyof typeof models
  readonly #vocab: ReadonlyMap<string, number> // the model's vocabulary
  readonly #added: ReadonlyMap<string, number>
  readonly #tokens: string[] = [] // by id, with gaps
  /** The decoded text of added tokens that are matched in normalized form. */
  readonly #normalized = new Map<number, string>()
  readonly #special: ReadonlySet<string>
  readonly #verbatim: AddedTokens
  readonly #afterNormalizer: AddedTokens
  readonly #normalize: Normalizer
  readonly #preTokenize: PreTokenizer
  readonly #model: Model
  readonly #postProcess: PostProcessor
  readonly #decode: Decoder

  /**
   * @param vocab of the model, by token
   * @param added tokens that are found before the model sees the text
   * @param source the file's name in errors
   * @throws LoopLMError INVALID_FILE or UNSUPPORTED naming the source and the field
   */
  constructor(json: TokenizerJson, vocab: ReadonlyMap<string, number>, added: readonly AddedToken[], source: string) {
    const part = <Part>(field: keyof TokenizerJson, read: (fields: Fields) => Part, absent: Part): Part =>
      json[field] == null ? absent : read(new Fields(json[field], field, source))
    this.#normalize = part('normalizer', readNormalizer, (piece) => piece)
    this.#preTokenize = part('pre_tokenizer', readPreTokenizer, (piece) => [piece])
    this.#postProcess = part('post_processor', readPostProcessor, (parts) => parts)
    this.#decode = part('decoder', readDecoder, (tokens) => [tokens.join(' ')])

    this.type = modelType(json)
    this.#model = new models[this.type](new Fields(json.model, 'model', source), vocab)

    this.#vocab = vocab
    this.#added = new Map(added.map(({ content, id }) => [content, id]))
    const listed = Array.isArray(json.model.vocab) ? json.model.vocab : [] // a token may occur twice
    for (const [id, [token]] of listed.entries()) this.#tokens[id] = token
    for (const tokens of [vocab, this.#added]) for (const [token, id] of tokens) this.#tokens[id] = token
    const normalized = added.filter((token) => token.normalized)
    for (const { content, id } of normalized) {
      const { text } = this.#normalize({ text: content, head: 0 })
      if (text !== content) this.#normalized.set(id, text)
    }
    this.#special = new Set(added.filter(({ special }) => special).map(({ content }) => content))
    this.#verbatim = new AddedTokens(added.filter((token) => !token.normalized))
    this.#afterNormalizer = new AddedTokens(normalized, this.#normalize)
  }

  /** The id of a token by its spelling in the vocabulary. undefined if there is none. */
  id(token: string): number | undefined {
    return this.#added.get(token) ?? this.#vocab.get(token)
  }

  /** All tokens, as the vocabulary spells them. */
  tokens(): string[] {
    return Object.values(this.#tokens)
  }

  /** Whether decoding may skip a token of the vocabulary. */
  isSpecial(id: number): boolean {
    return this.#special.has(this.#spelling(id))
  }

  /** The token of an id, as the vocabulary spells it. undefined if there is none. */
  token(id: number): string | undefined {
    return this.#tokens[id]
  }

  /**
   * The ids of a text's tokens. It pauses often enough for a server to handle other requests.
   *
   * @throws UnknownPiece
   */
  *encode(text: string, addSpecialTokens: boolean): Generator<void, number[]> {
    const ids: number[] = []
    let turn = 0
    for (const { piece, id } of this.#segments(text.toWellFormed())) {
      if (id !== undefined) {
        ids.push(id)
        continue
      }
      for (const { text: word } of this.#preTokenize(piece)) {
        const rest = this.#model.tokenize(word, ids)
        if (rest !== undefined) yield* rest
        if (++turn % slice === 0) yield
      }
    }
    const parts = this.#postProcess([ids], addSpecialTokens)
    return parts.length === 1 ? [...parts[0]!] : parts.flat()
  }

  *#segments(text: string) {
    if (text === '') return
    const whole: Piece = { text, head: text.codePointAt(0)! > 0xffff ? 2 : 1 }
    for (const segment of this.#verbatim.cut(whole)) {
      if (segment.id === undefined) yield* this.#afterNormalizer.cut(this.#normalize(segment.piece))
      else yield segment
    }
  }

  /** Decodes ids that the vocabulary has. */
  decode(ids: readonly number[], skipSpecialTokens: boolean): string {
    const tokens = ids.map((id) => this.#spelling(id))
    return this.#decode(skipSpecialTokens ? tokens.filter((token) => !this.#special.has(token)) : tokens).join('')
  }

  #spelling(id: number): string {
    return this.#normalized.get(id) ?? this.#tokens[id]!
  }
}

/** The type of the model. Older files do not state it. */
function modelType({ model }: TokenizerJson): keyof typeof models {
  if (model.type !== undefined) return model.type as keyof typeof models
  if (Array.isArray(model.merges)) return 'BPE'
  if (Array.isArray(model.vocab)) return 'Unigram'
  return model.continuing_subword_prefix === undefined ? 'WordLevel' : 'WordPiece'
}
