import type { Tokenizer } from '../data/tokenizer.js'

/**
 * The text of generated tokens. Spaces stay as the tokens have them, also where a tokenizer would clean them up: that takes back text which
 * a stream has sent.
 */
export function decodeGenerated(tokenizer: Tokenizer, tokens: readonly number[]): string {
  return tokenizer.decode(tokens, { skipSpecialTokens: true, skipUnknownTokens: true, cleanUpSpaces: false })
}

/**
 * Text that grows token by token. Each piece is what the newest token adds, decoded together with the tokens just before it, so that a
 * character made of several tokens, or a space that a tokenizer drops at the start, comes out as in the whole text. What may be the
 * beginning of a stop text is held back until it is clear.
 */
export class TextStream {
  /** A stop text was found; the pieces end before it. */
  stopped = false
  readonly #tokenizer: Tokenizer
  readonly #stops: readonly string[]
  readonly #tokens: number[] = []
  #context = 0 // tokens from here on are decoded again with the newest
  #read = 0 // tokens before this one have been turned into text
  #held = ''

  constructor(tokenizer: Tokenizer, stops: readonly string[]) {
    this.#tokenizer = tokenizer
    this.#stops = stops
  }

  /** The next piece; '' while a character is incomplete. */
  push(token: number): string {
    this.#tokens.push(token)
    const piece = this.#unread()
    if (piece.endsWith('\uFFFD')) return this.#invalid(piece)
    this.#context = this.#read
    this.#read = this.#tokens.length
    return this.#release(piece, false)
  }

  /** A character has at most four bytes: what a longer row of tokens makes of its beginning stays, and is not decoded again and again. */
  #invalid(piece: string): string {
    const end = this.#tokens.length - 4
    if (end - this.#read < 12) return ''
    const before = this.#decode(this.#tokens.slice(this.#context, this.#read))
    const settled = this.#decode(this.#tokens.slice(this.#context, end)).slice(before.length)
    if (!piece.startsWith(settled)) return '' // it ends inside a character
    this.#context = this.#read
    this.#read = end
    return this.#release(settled, false)
  }

  /** What is left when no token follows. */
  flush(): string {
    const piece = this.#unread()
    this.#read = this.#tokens.length
    return this.#release(piece, true)
  }

  #unread(): string {
    const before = this.#decode(this.#tokens.slice(this.#context, this.#read))
    return this.#decode(this.#tokens.slice(this.#context)).slice(before.length)
  }

  #decode(tokens: number[]): string {
    return decodeGenerated(this.#tokenizer, tokens)
  }

  #release(piece: string, last: boolean): string {
    if (this.stopped) return ''
    const text = this.#held + piece
    const found = this.#stops.map((stop) => text.indexOf(stop)).filter((index) => index >= 0)
    this.stopped = found.length > 0
    const end = this.stopped ? Math.min(...found) : last ? text.length : text.length - this.#possibleStop(text)
    this.#held = this.stopped ? '' : text.slice(end)
    return text.slice(0, end)
  }

  /** Length of the longest end of the text that a stop text begins with. */
  #possibleStop(text: string): number {
    const longest = Math.max(0, ...this.#stops.map((stop) => stop.length - 1))
    for (let length = Math.min(longest, text.length); length > 0; length--) {
      if (this.#stops.some((stop) => stop.startsWith(text.slice(-length)))) return length
    }
    return 0
  }
}
