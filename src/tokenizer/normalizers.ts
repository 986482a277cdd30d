import { byteCharacters, encodeBytes } from './byte-characters.js'
import type { Fields } from './fields.js'
import { readPattern } from './pattern-field.js'
import type { Finder } from './patterns.js'
import { type Normalizer, prepend } from './pieces.js'
import { readPrecompiled } from './precompiled.js'
import { cleaned, lowercase, normalForm, oneOf, strip, withoutMarks, withoutNonspacingMarks } from './unicode.js'

/** Applies a function to every character separately, so that the result of the head is the head of the result. */
const characterwise =
  (change: (text: string) => string): Normalizer =>
  ({ text, head }) => ({ text: change(text), head: change(text.slice(0, head)).length })

/** Ideographs that BERT surrounds with spaces. Its list ends before extension F and lacks U+2B820. */
const ideographs = oneOf('3400-4dbf 4e00-9fff f900-faff 20000-2a6df 2a700-2b81f 2b920-2ceaf 2f800-2fa1f', 'gu')

const ignoredByNmt = oneOf('1-8 b e-1f 7f 8f 9f', 'gu')
const spacesOfNmt = oneOf('9-a c-d 1680 200b-200f 2028-2029 2581 feff fffd', 'gu')

const nmt = (text: string) => text.replaceAll(ignoredByNmt, '').replaceAll(spacesOfNmt, ' ')

function bert(fields: Fields): Normalizer {
  const lower = fields.flag('lowercase')
  const steps: ((text: string) => string)[] = []
  if (fields.flag('clean_text')) steps.push(cleaned)
  if (fields.flag('handle_chinese_chars')) steps.push((text) => text.replaceAll(ideographs, ' $& '))
  if (fields.flag('strip_accents', lower)) steps.push((text) => withoutNonspacingMarks(normalForm(text, 'NFD')))
  if (lower) steps.push(lowercase)
  return characterwise((text) => steps.reduce((changed, step) => step(changed), text))
}

/** A replacement belongs to the last character of its match. */
function replace(find: Finder, content: string): Normalizer {
  return (piece) => {
    const { text, head } = piece
    if (text === '') return piece // an empty pattern would match otherwise
    const made: string[] = []
    let last = 0
    let first = 0 // the new head
    let inHead = head > 0
    const add = (part: string, kept: number) => {
      made.push(part)
      if (inHead) first += kept
    }
    for (const [start, end] of find(text)) {
      const before = Math.max(0, Math.min(start, head) - last)
      add(text.slice(last, start), before)
      inHead &&= start <= head && end <= head
      add(content, content.length)
      last = end
    }
    add(text.slice(last), Math.max(0, head - last))
    return { text: made.join(''), head: first }
  }
}

const readers: Readonly<Record<string, (fields: Fields) => Normalizer>> = {
  BertNormalizer: bert,
  ByteLevel: () => characterwise((text) => byteCharacters(encodeBytes(text))),
  Lowercase: () => characterwise(lowercase),
  NFC: () => characterwise((text) => normalForm(text, 'NFC')),
  NFD: () => characterwise((text) => normalForm(text, 'NFD')),
  NFKC: () => characterwise((text) => normalForm(text, 'NFKC')),
  NFKD: () => characterwise((text) => normalForm(text, 'NFKD')),
  Nmt: () => characterwise(nmt),
  Precompiled: (fields) => readPrecompiled(fields),
  Prepend: (fields) => {
    const added = fields.string('prepend')
    return (piece) => (piece.text === '' ? piece : prepend(piece, added))
  },
  Replace: (fields) => replace(readPattern(fields), fields.string('content')),
  Sequence: (fields) => {
    const steps = fields.objects('normalizers').map(readNormalizer)
    return (piece) => steps.reduce((changed, step) => step(changed), piece)
  },
  Strip: (fields) => {
    const [left, right] = [fields.flag('strip_left'), fields.flag('strip_right')]
    return ({ text, head }) => {
      const stripped = strip(text, left, right)
      const lost = left ? text.length - strip(text, true, false).length : 0
      return { text: stripped, head: Math.min(stripped.length, Math.max(0, head - lost)) }
    }
  },
  StripAccents: () => characterwise(withoutMarks),
}

/** @throws LoopLMError INVALID_FILE or UNSUPPORTED naming the field */
export function readNormalizer(fields: Fields): Normalizer {
  return readers[fields.word('type', Object.keys(readers))]!(fields)
}
