import type { Finder, Match } from './patterns.js'

/** A part of the text between normalizer and model. */
export interface Piece {
  readonly text: string
  /**
   * UTF-16 units at the start of the text that come from the first character of the whole text: Metaspace's prepend_scheme
   * "first" looks there. 0 for pieces that start later.
   */
  readonly head: number
}

/** Changes a text before it is split. */
export type Normalizer = (piece: Piece) => Piece

export const behaviors = ['Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous'] as const

/** What happens to the matches at which a text is split. */
export type Behavior = (typeof behaviors)[number]

export function slice({ text, head }: Piece, start: number, end: number): Piece {
  return { text: text.slice(start, end), head: Math.min(Math.max(head - start, 0), end - start) }
}

/** Prepends a string, which then belongs to the first character. */
export function prepend({ text, head }: Piece, added: string): Piece {
  return { text: added + text, head: head === 0 ? 0 : head + added.length }
}

interface Part {
  start: number
  end: number
  isMatch: boolean
}

/** Yields matches and the text between them. A text without matches is one part. */
function* parts(text: string, matches: Iterable<Match>, invert: boolean): Generator<Part> {
  let end = 0
  for (const [from, to] of matches) {
    if (end < from) yield { start: end, end: from, isMatch: invert }
    yield { start: from, end: to, isMatch: !invert }
    end = to
  }
  if (end < text.length) yield { start: end, end: text.length, isMatch: invert }
}

/**
 * Splits a piece at the matches in it. Empty pieces are dropped.
 *
 * @param invert treat the text between matches as matches, and vice versa
 */
export function* split(piece: Piece, find: Finder, behavior: Behavior, invert = false): Generator<Piece> {
  const { text } = piece
  if (text === '') return
  // The current part. Whether it is joined with the next one depends on the behavior
  let open: Part | undefined
  let wasMatch = false
  for (const part of parts(text, find(text), invert)) {
    const joins =
      (behavior === 'Contiguous' && part.isMatch === wasMatch) ||
      (behavior === 'MergedWithPrevious' && part.isMatch && !wasMatch) ||
      (behavior === 'MergedWithNext' && !part.isMatch && wasMatch)
    wasMatch = part.isMatch
    if (joins && open !== undefined) {
      open.end = part.end
      continue
    }
    if (open !== undefined && open.start < open.end) yield slice(piece, open.start, open.end)
    open = behavior === 'Removed' && part.isMatch ? undefined : part
  }
  if (open !== undefined && open.start < open.end) yield slice(piece, open.start, open.end)
}
