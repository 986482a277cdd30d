import { bytesOfCharacters, decodeBytes, encodeBytes } from './byte-characters.js'
import type { Fields } from './fields.js'
import { readPattern } from './pattern-field.js'

/** Turns tokens into the parts of a text. */
export type Decoder = (tokens: readonly string[]) => readonly string[]

const strictDecoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** The byte of a token such as `<0xE2>`, or undefined. Rust's parser also accepts a sign. */
export function byteOfToken(token: string): number | undefined {
  return /^<0x(?:[\dA-Fa-f]{2}|\+[\dA-Fa-f])>$/.test(token) ? Number.parseInt(token.slice(3, 5), 16) : undefined
}

/** Decodes runs of byte tokens. In a run that is not valid UTF-8, each byte becomes U+FFFD. */
function byteFallback(tokens: readonly string[]): string[] {
  const made: string[] = []
  let bytes: number[] = []
  const flush = () => {
    if (bytes.length === 0) return
    try {
      made.push(strictDecoder.decode(Uint8Array.from(bytes)))
    } catch {
      for (const _ of bytes) made.push('\ufffd')
    }
    bytes = []
  }
  for (const token of tokens) {
    const byte = byteOfToken(token)
    if (byte !== undefined) {
      bytes.push(byte)
      continue
    }
    flush()
    made.push(token)
  }
  flush()
  return made
}

function byteLevel(tokens: readonly string[]): string[] {
  const parts = tokens.map((token) => bytesOfCharacters(token) ?? encodeBytes(token))
  return [decodeBytes(Buffer.concat(parts))]
}

const cleanups = [' .', ' ?', ' !', ' ,', " ' ", " n't", " 'm", ' do not', " 's", " 've", " 're"].map(
  (dirty) => [dirty, dirty === ' do not' ? " don't" : dirty.trim()] as const,
)

/** The clean-up of WordPiece's and CTC's decoders. */
function cleanUp(text: string): string {
  return cleanups.reduce((cleaned, [dirty, clean]) => cleaned.replaceAll(dirty, clean), text)
}

/** Removes spaces before punctuation, as transformers' `clean_up_tokenization` does. */
export function cleanUpSpaces(text: string): string {
  const used = cleanups.filter(([dirty]) => dirty !== ' do not')
  return used.reduce((cleaned, [dirty, clean]) => cleaned.replaceAll(dirty, clean), text)
}

/** Replaces every occurrence of a string. The empty string matches at every character, not at every UTF-16 unit. */
function replaced(text: string, part: string, content: string): string {
  return part === '' ? text.replaceAll(/(?:)/gu, content) : text.replaceAll(part, content)
}

function wordPiece(fields: Fields): Decoder {
  const prefix = fields.string('prefix')
  const cleans = fields.flag('cleanup')
  return (tokens) =>
    tokens.map((token, i) => {
      const text = i === 0 ? token : token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`
      return cleans ? cleanUp(text) : text
    })
}

function ctc(fields: Fields): Decoder {
  const [padding, delimiter] = [fields.string('pad_token'), fields.string('word_delimiter_token')]
  const cleans = fields.flag('cleanup')
  return (tokens) =>
    tokens
      .filter((token, i) => token !== tokens[i - 1])
      .map((token) => replaced(token, padding, ''))
      .map((token) => (cleans ? replaced(cleanUp(token), delimiter, ' ') : token))
      .filter((token) => token !== '')
}

function metaspace(fields: Fields): Decoder {
  const mark = fields.character('replacement')
  const scheme = fields.word('prepend_scheme', ['first', 'never', 'always'], 'always')
  return (tokens) => tokens.map((token, i) => token.replaceAll(mark, i === 0 && scheme !== 'never' ? '' : ' '))
}

function replace(fields: Fields): Decoder {
  const find = readPattern(fields)
  const content = fields.string('content')
  return (tokens) =>
    tokens.map((token) => {
      let text = ''
      let end = 0
      if (token !== '') {
        for (const [from, to] of find(token)) {
          text += token.slice(end, from) + content
          end = to
        }
      }
      return text + token.slice(end)
    })
}

function strip(fields: Fields): Decoder {
  const content = fields.character('content')
  const [most, mostAtEnd] = [fields.count('start', 0), fields.count('stop', 0)]
  return (tokens) =>
    tokens.map((token) => {
      const characters = Array.from(token)
      let start = 0
      while (start < most && characters[start] === content) start++
      let stop = characters.length
      while (characters.length - stop < mostAtEnd && characters[stop - 1] === content) stop--
      return characters.slice(start, Math.max(start, stop)).join('')
    })
}

const readers: Readonly<Record<string, (fields: Fields) => Decoder>> = {
  BPEDecoder: (fields) => {
    const suffix = fields.string('suffix')
    return (tokens) => tokens.map((token, i) => replaced(token, suffix, i === tokens.length - 1 ? '' : ' '))
  },
  ByteFallback: () => byteFallback,
  ByteLevel: () => byteLevel,
  CTC: ctc,
  Fuse: () => (tokens) => [tokens.join('')],
  Metaspace: metaspace,
  Replace: replace,
  Sequence: (fields) => {
    const steps = fields.objects('decoders').map(readDecoder)
    return (tokens) => steps.reduce((made, step) => step(made), tokens)
  },
  Strip: strip,
  WordPiece: wordPiece,
}

/** @throws LoopLMError INVALID_FILE naming the field */
export function readDecoder(fields: Fields): Decoder {
  return readers[fields.word('type', Object.keys(readers))]!(fields)
}
