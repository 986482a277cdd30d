import { encodeBytes } from './byte-characters.js'
import type { Fields } from './fields.js'
import { byteTokens, type Model, UnknownPiece } from './model.js'

/** Subtracted from the lowest score of the vocabulary for an unknown character. */
const unknownPenalty = 10

/** How many characters are processed between two pauses. */
const slice = 4096

const maxCached = 20_000
const maxCachedLength = 64

/** SentencePiece's unigram model: finds the tokens with the largest sum of scores. */
export class Unigram implements Model {
  readonly #vocab: ReadonlyMap<string, number>
  readonly #scores: Float64Array
  readonly #unknownScore: number
  readonly #unknown: number | undefined
  readonly #byteFallback: boolean
  /** Lengths of the tokens by their first two UTF-16 units, ascending. Few tokens begin like the text. */
  readonly #lengths = new Map<string, number[]>()
  readonly #cache = new Map<string, readonly number[]>()

  constructor(fields: Fields, vocab: ReadonlyMap<string, number>) {
    const list = fields.list('vocab') as readonly (readonly [string, number])[]
    this.#vocab = vocab
    this.#scores = Float64Array.from(list, ([, score]) => readByRust(score))
    this.#unknownScore = this.#scores.reduce((least, score) => Math.min(least, score), Infinity) - unknownPenalty
    this.#unknown = fields.value('unk_id') === undefined ? undefined : fields.count('unk_id', 0)
    this.#byteFallback = fields.flag('byte_fallback', false)
    for (const token of vocab.keys()) {
      if (token === '') continue
      const start = token.slice(0, 2)
      const lengths = this.#lengths.get(start) ?? []
      if (lengths.length === 0) this.#lengths.set(start, lengths)
      if (!lengths.includes(token.length)) lengths.push(token.length)
    }
    for (const lengths of this.#lengths.values()) lengths.sort((a, b) => a - b)
  }

  tokenize(piece: string, ids: number[]): Generator<void, void> | undefined {
    if (piece.length > slice) return this.#append(piece, ids)
    let tokens = this.#cache.get(piece)
    if (tokens === undefined) {
      const found: number[] = []
      const steps = this.#append(piece, found)
      while (!steps.next().done);
      tokens = found
      if (piece.length <= maxCachedLength) {
        if (this.#cache.size >= maxCached) this.#cache.clear()
        this.#cache.set(piece, tokens)
      }
    }
    for (const token of tokens) ids.push(token)
    return undefined
  }

  *#append(piece: string, ids: number[]): Generator<void, void> {
    const parts: string[] = []
    let end = piece.length
    let unknownEnd = -1 // end of a run of unknown characters, which forms one part
    const { starts, tokens } = yield* this.#bestPath(piece)
    while (end > 0) {
      const start = starts[end]!
      if (tokens[end] === this.#unknown) {
        if (unknownEnd === -1) unknownEnd = end
      } else {
        if (unknownEnd !== -1) parts.push(piece.slice(end, unknownEnd))
        unknownEnd = -1
        parts.push(piece.slice(start, end))
      }
      end = start
    }
    if (unknownEnd !== -1) parts.push(piece.slice(0, unknownEnd))
    for (let i = parts.length - 1; i >= 0; i--) this.#appendPart(parts[i]!, ids)
  }

  #appendPart(part: string, ids: number[]): void {
    const id = this.#vocab.get(part)
    if (id !== undefined) {
      ids.push(id)
      return
    }
    const bytes = this.#byteFallback ? byteTokens(encodeBytes(part), this.#vocab) : undefined
    if (bytes === undefined && this.#unknown === undefined) throw new UnknownPiece(part)
    if (bytes === undefined) ids.push(this.#unknown!)
    else for (const byte of bytes) ids.push(byte)
  }

  /** By position: the start and the id of the last token on the best path that ends there. */
  *#bestPath(piece: string): Generator<void, { starts: Int32Array; tokens: Int32Array }> {
    const scores = new Float64Array(piece.length + 1)
    const starts = new Int32Array(piece.length + 1).fill(-1)
    const tokens = new Int32Array(piece.length + 1)
    const offer = (start: number, end: number, token: number, score: number) => {
      if (starts[end] !== -1 && score <= scores[end]!) return
      scores[end] = score
      starts[end] = start
      tokens[end] = token
    }
    let start = 0
    let turn = 0
    let before = 0 // the score of the best path that ends at start
    const offerAll = (lengths: readonly number[] | undefined) => {
      for (const length of lengths ?? []) {
        const token = start + length > piece.length ? undefined : this.#vocab.get(piece.slice(start, start + length))
        if (token !== undefined) offer(start, start + length, token, this.#scores[token]! + before)
      }
    }
    for (const character of piece) {
      if (++turn % slice === 0) yield
      before = scores[start]!
      const [one, two] = [piece[start]!, piece.slice(start, start + 2)]
      offerAll(this.#lengths.get(one))
      if (two !== one) offerAll(this.#lengths.get(two))
      if (!this.#vocab.has(character)) {
        if (this.#unknown === undefined) throw new UnknownPiece(character)
        offer(start, start + character.length, this.#unknown, this.#unknownScore + before)
      }
      start += character.length
    }
    return { starts, tokens }
  }
}

/**
 * Parses a score as Rust's serde_json does: its digits as one integer, divided by a power of ten. The last bit may be wrong,
 * and decides between paths with equal sums.
 */
function readByRust(score: number): number {
  const [digits, exponent = '0'] = String(Math.abs(score)).split('e')
  const [whole, fraction = ''] = digits!.split('.')
  const power = Number(exponent) - fraction.length
  const scale = Number(`1e${Math.min(Math.abs(power), 308)}`)
  const value = Number(whole! + fraction)
  return Math.sign(score) * (power < 0 ? value / scale : value * scale)
}
