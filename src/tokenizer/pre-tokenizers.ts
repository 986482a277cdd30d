import { byteCharacters, encodeBytes } from './byte-characters.js'
import type { Fields } from './fields.js'
import { onigurumaFinder } from './oniguruma.js'
import { readPattern } from './pattern-field.js'
import { characterFinder, regularFinder } from './patterns.js'
import { behaviors, type Piece, prepend, slice, split } from './pieces.js'
import { isNumeric, isPunctuation, isWhitespace, wordClass } from './unicode.js'

/** Splits a text into the pieces that the model gets one by one. */
export type PreTokenizer = (piece: Piece) => Iterable<Piece>

/** GPT-2's pattern. */
const words = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
const runs = regularFinder(new RegExp(`[${wordClass}]+|[^${wordClass}\\p{White_Space}]+`, 'gu'))
const whitespace = characterFinder(isWhitespace)
const punctuation = characterFinder(isPunctuation)
const digits = characterFinder(isNumeric)

function byteLevel(fields: Fields): PreTokenizer {
  const spaceFirst = fields.flag('add_prefix_space')
  const find = fields.flag('use_regex', true) ? onigurumaFinder(words) : undefined
  const inBytes = (piece: Piece): Piece => ({
    text: byteCharacters(encodeBytes(piece.text)),
    head: piece.head === 0 ? 0 : encodeBytes(piece.text.slice(0, piece.head)).length,
  })
  return function* byteLevelPieces(given) {
    const piece = spaceFirst && !given.text.startsWith(' ') ? prepend(given, ' ') : given
    if (find === undefined) yield inBytes(piece)
    else for (const part of split(piece, find, 'Isolated')) yield inBytes(part)
  }
}

function metaspace(fields: Fields): PreTokenizer {
  const mark = fields.character('replacement')
  const scheme = fields.word('prepend_scheme', ['first', 'never', 'always'], 'always')
  if (!fields.flag('add_prefix_space', true) && scheme !== 'never') {
    throw fields.invalid('add_prefix_space', `is false, but prepend_scheme is "${scheme}"; set the latter to "never"`)
  }
  const isSplit = fields.flag('split', true)
  const marks = characterFinder((character) => character === mark)
  return (given) => {
    const text = given.text.replaceAll(' ', mark)
    const marked = { text, head: given.text.slice(0, given.head).replaceAll(' ', mark).length }
    const prepends = !text.startsWith(mark) && (scheme === 'always' || (scheme === 'first' && given.head > 0))
    const piece = prepends ? prepend(marked, mark) : marked
    return isSplit ? split(piece, marks, 'MergedWithNext') : [piece]
  }
}

function* fixedLength(piece: Piece, length: number): Generator<Piece> {
  let start = 0
  let end = 0
  let count = 0
  for (const character of piece.text) {
    end += character.length
    if (++count < length) continue
    yield slice(piece, start, end)
    start = end
    count = 0
  }
  if (start < end) yield slice(piece, start, end)
}

const readers: Readonly<Record<string, (fields: Fields) => PreTokenizer>> = {
  BertPreTokenizer: () =>
    exclusively([(piece) => split(piece, whitespace, 'Removed'), (piece) => split(piece, punctuation, 'Isolated')]),
  ByteLevel: byteLevel,
  CharDelimiterSplit: (fields) => {
    const delimiter = fields.character('delimiter')
    const find = characterFinder((character) => character === delimiter)
    return (piece) => split(piece, find, 'Removed')
  },
  Digits: (fields) => {
    const behavior = fields.flag('individual_digits') ? 'Isolated' : 'Contiguous'
    return (piece) => split(piece, digits, behavior)
  },
  FixedLength: (fields) => {
    const length = fields.count('length', 1, 5)
    return (piece) => fixedLength(piece, length)
  },
  Metaspace: metaspace,
  Punctuation: (fields) => {
    const behavior = fields.word('behavior', behaviors, 'Isolated')
    return (piece) => split(piece, punctuation, behavior)
  },
  Sequence: (fields) => exclusively(fields.objects('pretokenizers').map(readPreTokenizer)),
  Split: (fields) => {
    const [find, behavior, invert] = [readPattern(fields), fields.word('behavior', behaviors), fields.flag('invert')]
    return (piece) => split(piece, find, behavior, invert)
  },
  UnicodeScripts: (fields) => {
    throw fields.unsupported('type', 'is "UnicodeScripts", which is not supported; split with a regular expression instead')
  },
  Whitespace: () => (piece) => split(piece, runs, 'Removed', true),
  WhitespaceSplit: () => (piece) => split(piece, whitespace, 'Removed'),
}

/** Each step splits the pieces of the previous one. */
function exclusively(steps: readonly PreTokenizer[]): PreTokenizer {
  return (piece) => {
    let pieces: Iterable<Piece> = [piece]
    for (const step of steps) pieces = splitAll(pieces, step)
    return pieces
  }
}

function* splitAll(pieces: Iterable<Piece>, step: PreTokenizer): Generator<Piece> {
  for (const piece of pieces) for (const part of step(piece)) if (part.text !== '') yield part
}

/** @throws LoopLMError INVALID_FILE or UNSUPPORTED naming the field */
export function readPreTokenizer(fields: Fields): PreTokenizer {
  return readers[fields.word('type', Object.keys(readers))]!(fields)
}
