import type { AddedToken } from './json.js'
import type { Normalizer } from './pieces.js'
import { type Piece, slice } from './pieces.js'
import { isWhitespace, wordClass } from './unicode.js'

const startsWithWord = new RegExp(`^[${wordClass}]`, 'u')
const endsWithWord = new RegExp(`[${wordClass}]$`, 'u')

/** A part of the text, with its id if it is an added token. */
export interface Segment {
  readonly piece: Piece
  readonly id: number | undefined
}

/**
 * Finds added tokens in a text, either before or after it is normalized. In the latter case their content is normalized too.
 */
export class AddedTokens {
  readonly #tokens = new Map<string, AddedToken>()
  /** Lengths of their texts by the first UTF-16 unit, the longest first. Hundreds of them may begin with "<". */
  readonly #lengths = new Map<number, number[]>()

  /** @param normalize undefined for tokens that are found before normalization */
  constructor(tokens: readonly AddedToken[], normalize?: Normalizer) {
    for (const token of tokens) {
      const { content } = token
      const text = normalize === undefined ? content : normalize({ text: content, head: 0 }).text
      if (text === '') continue
      this.#tokens.set(text, token)
      const lengths = this.#lengths.get(text.charCodeAt(0)) ?? []
      if (!lengths.includes(text.length)) lengths.push(text.length)
      this.#lengths.set(
        text.charCodeAt(0),
        lengths.sort((a, b) => b - a),
      )
    }
  }

  /** Splits a piece at its added tokens. The leftmost match wins, and among those the longest. */
  *cut(piece: Piece): Generator<Segment> {
    const { text } = piece
    let end = 0 // end of what was yielded so far
    for (const { start, stop, token } of this.#found(text)) {
      // A token with lstrip or rstrip includes the white space next to it
      const from = token.lstrip ? Math.max(spaceStart(text, start), end) : start
      if (end < from) yield { piece: slice(piece, end, from), id: undefined }
      end = token.rstrip ? spaceEnd(text, stop) : stop
      yield { piece: slice(piece, from, end), id: token.id }
    }
    if (end < text.length) yield { piece: slice(piece, end, text.length), id: undefined }
  }

  *#found(text: string): Generator<{ start: number; stop: number; token: AddedToken }> {
    if (this.#tokens.size === 0) return
    for (let start = 0; start < text.length; ) {
      const lengths = this.#lengths.get(text.charCodeAt(start)) ?? []
      const length = lengths.find((n) => start + n <= text.length && this.#tokens.has(text.slice(start, start + n)))
      if (length === undefined) {
        start++
        continue
      }
      const stop = start + length
      const token = this.#tokens.get(text.slice(start, stop))!
      if (!token.single_word || isAlone(text, start, stop)) yield { start, stop, token }
      start = stop
    }
  }
}

/** Whether no letter, mark, digit or underscore is adjacent to a part of the text. */
function isAlone(text: string, start: number, stop: number): boolean {
  return !endsWithWord.test(text.slice(Math.max(0, start - 2), start)) && !startsWithWord.test(text.slice(stop, stop + 2))
}

function spaceStart(text: string, end: number): number {
  let start = end
  while (start > 0 && isWhitespace(text[start - 1]!)) start--
  return start
}

function spaceEnd(text: string, start: number): number {
  let end = start
  while (end < text.length && isWhitespace(text[end]!)) end++
  return end
}
