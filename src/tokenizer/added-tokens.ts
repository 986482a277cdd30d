import type { AddedToken } from './json.js'
import type { Normalizer } from './pieces.js'
import { type Piece, slice } from './pieces.js'
import { isWhitespace, wordClass } from './unicode.js'

const startsWithWord = new RegExp(`^[${wordClass}]`, 'u')
const endsWithWord = new RegExp(`[${wordClass}]$`, 'u')

/** A part of the text, with its id when it is an added token. */
export interface Segment {
  readonly piece: Piece
  readonly id: number | undefined
}

/** Added tokens of a text, found before it is normalized, or behind that: then by their normalized contents. */
export class AddedTokens {
  readonly #tokens = new Map<string, AddedToken>()
  /** Lengths of their texts by the first unit, the longest first: there may be hundreds that begin with "<". */
  readonly #lengths = new Map<number, number[]>()

  /** @param normalize undefined for those that are found in the text as it is */
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

  /** Cuts a piece at its added tokens, the leftmost first, and of those the longest. */
  *cut(piece: Piece): Generator<Segment> {
    const { text } = piece
    let end = 0 // of what has been given out
    for (const { start, stop, token } of this.#found(text)) {
      // A token that strips takes in the white space beside it
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

/** Whether no letter, mark, digit or underscore touches a part of the text. */
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
