import type { Tokenizer } from '../data/tokenizer.js'

/** Tokens of the prompt that a text is decoded with; more where they are white space alone, up to the second number. */
const contextTokens = 8
const longestContext = 64

/**
 * The last tokens of a prompt, without those that decoding skips: with them a decoder that drops the space at the start of a text
 * keeps the one at the start of an answer. They begin neither inside a row of byte tokens, which is valid as a whole or not at all,
 * nor with white space alone.
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
 * The text of generated tokens behind a prompt. Spaces stay as the tokens have them, also where a tokenizer would clean them up: that takes
 * back text which a stream has sent.
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

/** What a text has beyond one that it continues. The end of the latter may have been half a character. */
function added(before: string, whole: string): string {
  if (whole.startsWith(before)) return whole.slice(before.length)
  let same = 0
  while (same < before.length && before[same] === whole[same]) same++
  return whole.slice(same)
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
  readonly #tokens: number[]
  #context = 0 // tokens from here on are decoded again with the newest
  #read: number // tokens before this one have been turned into text
  #before: string // the text of those from #context to #read
  #held = ''

  /** @param prompt the tokens before the stream, or their {@link contextOf} */
  constructor(tokenizer: Tokenizer, stops: readonly string[], prompt: ArrayLike<number> = []) {
    this.#tokenizer = tokenizer
    this.#stops = stops
    this.#tokens = contextOf(tokenizer, prompt)
    this.#read = this.#tokens.length
    this.#before = this.#text(0, this.#read)
  }

  /** The next piece; '' while a character is incomplete. */
  push(token: number): string {
    if (this.#tokenizer.isSkipped(token)) return ''
    this.#tokens.push(token)
    if (this.#tokenizer.isByteToken(token)) return '' // what the row of bytes stands for is clear at its end
    const piece = this.#unread()
    if (piece.endsWith('\uFFFD')) return this.#invalid(piece)
    this.#advance(piece, this.#tokens.length)
    return this.#release(piece, false)
  }

  /** A character has at most four bytes: what a longer row of tokens makes of its beginning stays, and is not decoded again and again. */
  #invalid(piece: string): string {
    const end = this.#tokens.length - 4
    if (end - this.#read < 12) return ''
    const settled = added(this.#before, this.#text(this.#context, end))
    if (!piece.startsWith(settled)) return '' // it ends inside a character
    this.#advance(settled, end)
    return this.#release(settled, false)
  }

  /** What is left when no token follows. */
  flush(): string {
    const piece = this.#unread()
    this.#advance(piece, this.#tokens.length)
    return this.#release(piece, true)
  }

  /**
   * The newest piece is the context of the next, together with those before it where it is empty or white space alone: a decoder that drops
   * spaces at the start would drop the next one's too.
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

  /** Length of the longest end of the text that a stop text begins with. */
  #possibleStop(text: string): number {
    const longest = Math.max(0, ...this.#stops.map((stop) => stop.length - 1))
    for (let length = Math.min(longest, text.length); length > 0; length--) {
      if (this.#stops.some((stop) => stop.startsWith(text.slice(-length)))) return length
    }
    return 0
  }
}
