import type { Fields } from './fields.js'
import { type Model, UnknownPiece } from './model.js'

/** Treats every piece as one token. */
export class WordLevel implements Model {
  readonly #vocab: ReadonlyMap<string, number>
  readonly #unknown: number | undefined

  constructor(fields: Fields, vocab: ReadonlyMap<string, number>) {
    this.#vocab = vocab
    this.#unknown = vocab.get(fields.string('unk_token'))
  }

  tokenize(piece: string, ids: number[]): undefined {
    const id = this.#vocab.get(piece) ?? this.#unknown
    if (id === undefined) throw new UnknownPiece(piece)
    ids.push(id)
  }
}

/**
 * BERT's model: the longest token that the piece begins with, then that of the rest. If it does not end with a token, the whole
 * piece is unknown.
 */
export class WordPiece implements Model {
  readonly #vocab: ReadonlyMap<string, number>
  readonly #unknown: number | undefined
  readonly #prefix: string // of every token except the first
  readonly #maxCharacters: number
  readonly #longestToken: number

  constructor(fields: Fields, vocab: ReadonlyMap<string, number>) {
    this.#vocab = vocab
    this.#unknown = vocab.get(fields.string('unk_token'))
    this.#prefix = fields.string('continuing_subword_prefix')
    this.#maxCharacters = fields.count('max_input_chars_per_word', 0)
    let longest = 0
    for (const token of vocab.keys()) longest = Math.max(longest, token.length)
    this.#longestToken = longest
  }

  tokenize(piece: string, ids: number[]): undefined {
    const tokens = this.#tokens(piece)
    if (tokens !== undefined) {
      for (const token of tokens) ids.push(token)
    } else {
      if (this.#unknown === undefined) throw new UnknownPiece(piece)
      ids.push(this.#unknown)
    }
  }

  #tokens(piece: string): number[] | undefined {
    // Counting the characters of a long text takes time
    const { length } = piece
    if (length > 2 * this.#maxCharacters || (length > this.#maxCharacters && Array.from(piece).length > this.#maxCharacters)) {
      return undefined
    }
    const tokens: number[] = []
    let start = 0
    while (start < length) {
      const prefix = start === 0 ? '' : this.#prefix
      let end = Math.min(length, start + this.#longestToken)
      let token: number | undefined
      while (start < end) {
        token = this.#vocab.get(prefix + piece.slice(start, end))
        if (token !== undefined) break
        end--
      }
      if (token === undefined) return undefined
      tokens.push(token)
      start = end
    }
    return tokens
  }
}
