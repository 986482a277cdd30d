import { encodeBytes } from './byte-characters.js'
import type { Fields } from './fields.js'
import { MergeTable, merged } from './merge.js'
import { byteTokens, type Model, UnknownPiece } from './model.js'

/** How many pieces are cached with their tokens, and the longest of them. */
const maxCached = 20_000
const maxCachedLength = 64

/** The longest piece, in UTF-16 units, that is merged without pausing. */
const longPiece = 4096

/** Byte-pair encoding: merges the characters of a piece pair by pair, in the order of the merges. */
export class Bpe implements Model {
  readonly #vocab: ReadonlyMap<string, number>
  readonly #merges: MergeTable
  readonly #unknown: string | undefined
  readonly #fuseUnknown: boolean
  readonly #byteFallback: boolean
  readonly #ignoreMerges: boolean
  readonly #prefix: string // of every symbol except the first
  readonly #suffix: string // of the last symbol
  readonly #cache = new Map<string, readonly number[]>()

  constructor(fields: Fields, vocab: ReadonlyMap<string, number>) {
    this.#vocab = vocab
    const dropout = fields.value('dropout') ?? 0
    if (dropout !== 0)
      throw fields.unsupported('dropout', `is ${JSON.stringify(dropout)}: random merges are not supported; set it to null`)
    this.#unknown = fields.value('unk_token') === undefined ? undefined : fields.string('unk_token')
    this.#fuseUnknown = fields.flag('fuse_unk', false)
    this.#byteFallback = fields.flag('byte_fallback', false)
    this.#ignoreMerges = fields.flag('ignore_merges', false)
    this.#prefix = fields.string('continuing_subword_prefix', '')
    this.#suffix = fields.string('end_of_word_suffix', '')
    this.#merges = this.#readMerges(fields)
  }

  /** Reads the merges. A merge is "a b" or [a, b]. Both parts and their concatenation must be tokens. */
  #readMerges(fields: Fields): MergeTable {
    const merges = fields.list('merges')
    const table = new MergeTable(merges.length)
    for (const [rank, merge] of merges.entries()) {
      if (typeof merge === 'string' && merge.startsWith('#version')) continue
      const pair = typeof merge === 'string' ? merge.split(' ') : merge
      const [a, b] = Array.isArray(pair) && pair.length === 2 ? (pair as unknown[]) : []
      if (typeof a !== 'string' || typeof b !== 'string') throw fields.invalid(`merges.${rank}`, 'must be two tokens')
      const made = a + b.slice(this.#prefix.length)
      const ids = [a, b, made].map((token) => this.#vocab.get(token))
      const lacking = ids.indexOf(undefined)
      if (lacking !== -1) {
        const token = JSON.stringify([a, b, made][lacking])
        throw fields.invalid(`merges.${rank}`, `needs the token ${token}, which model.vocab lacks`)
      }
      table.set(ids[0]!, ids[1]!, rank, ids[2]!)
    }
    return table
  }

  tokenize(piece: string, ids: number[]): Generator<void, void> | undefined {
    const whole = this.#ignoreMerges ? this.#vocab.get(piece) : undefined
    if (whole !== undefined) {
      ids.push(whole)
      return undefined
    }
    if (piece.length > longPiece) return this.#append(piece, ids)
    let tokens = this.#cache.get(piece)
    if (tokens === undefined) {
      const made: number[] = []
      const steps = this.#append(piece, made)
      while (!steps.next().done);
      tokens = made
      if (piece.length <= maxCachedLength) {
        if (this.#cache.size >= maxCached) this.#cache.clear()
        this.#cache.set(piece, tokens)
      }
    }
    for (const token of tokens) ids.push(token)
    return undefined
  }

  *#append(piece: string, ids: number[]): Generator<void, void> {
    const symbols = yield* this.#symbols(piece)
    for (const token of yield* merged(symbols, this.#merges)) ids.push(token)
  }

  /**
   * The ids of a piece's characters. Consecutive unknown characters are fused, so the first one waits. As in Python, byte
   * tokens of a later character overtake it.
   */
  *#symbols(piece: string): Generator<void, number[]> {
    const symbols: number[] = []
    let waiting: number | undefined
    let end = 0
    let turn = 0
    for (const character of piece) {
      if (++turn % longPiece === 0) yield
      const isFirst = end === 0
      end += character.length
      let text = !isFirst ? this.#prefix + character : character
      if (end === piece.length) text += this.#suffix
      const id = this.#vocab.get(text)
      if (id !== undefined) {
        if (waiting !== undefined) symbols.push(waiting)
        waiting = undefined
        symbols.push(id)
        continue
      }
      const bytes = this.#byteFallback ? byteTokens(encodeBytes(text), this.#vocab) : undefined
      if (bytes !== undefined) {
        symbols.push(...bytes)
      } else if (this.#unknown !== undefined) {
        if (waiting !== undefined && !this.#fuseUnknown) symbols.push(waiting)
        waiting = this.#vocab.get(this.#unknown)
        if (waiting === undefined) throw new UnknownPiece(character)
      }
    }
    if (waiting !== undefined) symbols.push(waiting)
    return symbols
  }
}
