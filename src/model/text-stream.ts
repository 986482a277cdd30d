import type { Tokenizer } from '../data/tokenizer.js'

/**
 * How many prompt tokens serve as context for decoding. The second number is the limit if the first ones are only white space.
 */
const contextTokens = 8
const longestContext = 64

/**
 * The last tokens of a prompt, without those that decoding skips. Some decoders drop the space at the start of a text; with
 * this context they keep the space at the start of a response. The context starts neither inside a run of byte tokens, which is
 * only valid as a whole, nor with only white space.
 */
export function contextOf(tokenizer: Tokenizer, prompt: ArrayLike<number>): number[] {
  const reversed: number[] = []
  for (let i = prompt.length - 1; i >= 0; i--) {
    const token = prompt[i]!
    if (tokenizer.isSkipped(token)) continue
    reversed.push(token)
    if (reversed.length < contextTokens || tokenizer.isByteToken(token)) continue
    if (reversed.length >= longestContext || visible(decode(tokenizer, reversed.toReversed()))) break
  }
  return reversed.reverse()
}

/**
 * The text of generated tokens after a prompt. Spaces stay as the tokens have them, even if the tokenizer would clean them up:
 * cleaning would change text that a stream has already sent.
 *
 * @param prompt the tokens before them, or their {@link contextOf}
 */
export function decodeGenerated(tokenizer: Tokenizer, tokens: readonly number[], prompt: ArrayLike<number> = []): string {
  const context = contextOf(tokenizer, prompt)
  return added(decode(tokenizer, context), decode(tokenizer, [...context, ...tokens]))
}

function decode(tokenizer: Tokenizer, tokens: readonly number[]): string {
  return tokenizer.decode(tokens, { skipSpecialTokens: true, skipUnknownTokens: true, cleanUpSpaces: false })
}

const visible = (text: string) => text.trim() !== ''

/** The part of `whole` that comes after `before`. `before` may end with half a character. */
function added(before: string, whole: string): string {
  if (whole.startsWith(before)) return whole.slice(before.length)
  let same = 0
  while (same < before.length && before[same] === whole[same]) same++
  return whole.slice(same)
}

/**
 * Decodes text token by token. Each piece is the text that the newest token adds. It is decoded together with the previous
 * tokens, so that characters of several tokens, and spaces that a tokenizer drops at the start, come out as in the whole text.
 * Text that may be the beginning of a stop string is held back until that is decided.
 */
export class TextStream {
  /** Whether a stop string was found. The pieces end before it. */
  stopped = false
  readonly #tokenizer: Tokenizer
  readonly #stops: readonly string[]
  readonly #tokens: number[]
  #context = 0 // tokens from this one on are decoded again together with the newest
  #read: number // number of tokens that have been turned into text
  #before: string // the text of the tokens from #context to #read
  #held = ''

  /** @param prompt the tokens before the stream, or their {@link contextOf} */
  constructor(tokenizer: Tokenizer, stops: readonly string[], prompt: ArrayLike<number> = []) {
    this.#tokenizer = tokenizer
    this.#stops = stops
    this.#tokens = contextOf(tokenizer, prompt)
    this.#read = this.#tokens.length
    this.#before = this.#text(0, this.#read)
  }

  /** The next piece. Empty while a character is incomplete. */
  push(token: number): string {
    if (this.#tokenizer.isSkipped(token)) return ''
    this.#tokens.push(token)
    if (this.#tokenizer.isByteToken(token)) return '' // a run of byte tokens can only be decoded at its end
    const piece = this.#unread()
    if (piece.endsWith('\uFFFD')) return this.#invalid(piece)
    this.#advance(piece, this.#tokens.length)
    return this.#release(piece, false)
  }

  /**
   * Handles long invalid runs of bytes. A character has at most four bytes, so the beginning of a longer run is final and is
   * not decoded again.
   */
  #invalid(piece: string): string {
    const end = this.#tokens.length - 4
    if (end - this.#read < 12) return ''
    const settled = added(this.#before, this.#text(this.#context, end))
    if (!piece.startsWith(settled)) return '' // it ends inside a character
    this.#advance(settled, end)
    return this.#release(settled, false)
  }

  /** The remaining text when no token follows. */
  flush(): string {
    const piece = this.#unread()
    this.#advance(piece, this.#tokens.length)
    return this.#release(piece, true)
  }

  /**
   * The newest piece becomes the context of the next one. If it is empty or only white space, the pieces before it stay in the
   * context too: a decoder that drops spaces at the start would also drop the next one's.
   */
  #advance(piece: string, read: number): void {
    if (visible(piece) || read - this.#context > longestContext) this.#context = this.#read
    this.#read = read
    this.#before = this.#text(this.#context, read)
  }

  #unread(): string {
    return added(this.#before, this.#text(this.#context, this.#tokens.length))
  }

  #text(from: number, to: number): string {
    return decode(this.#tokenizer, this.#tokens.slice(from, to))
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

  /** Length of the longest suffix of the text that is the beginning of a stop string. */
  #possibleStop(text: string): number {
    const longest = Math.max(0, ...this.#stops.map((stop) => stop.length - 1))
    for (let length = Math.min(longest, text.length); length > 0; length--) {
      if (this.#stops.some((stop) => stop.startsWith(text.slice(-length)))) return length
    }
    return 0
  }
}
