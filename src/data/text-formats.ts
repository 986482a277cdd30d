// The file formats of a corpus. A new format needs a reader and an entry in `formats`.
import { extname } from 'node:path'
import { decodeText, invalidRow, readLines } from './lines.js'
import { typeName } from './rows.js'

const pieceLength = 2 ** 16 // characters; a piece ends at a line end
const longestPiece = 2 ** 20
const longestLine = 2 ** 24 // in bytes
const operation = 'corpus'

/** A piece of text and its first line. `ends`: whether a document ends after it. */
export interface Piece {
  text: string
  line: number
  ends: boolean
}

type Reader = (path: string) => AsyncGenerator<Piece, void, undefined>

/** Readers by file name extension. */
const formats: Readonly<Record<string, Reader>> = { '.txt': readPieces, '.md': readPieces, '.jsonl': readRows }

/** The file name extensions that can be read. */
export const textExtensions: readonly string[] = Object.keys(formats)

export function isText(path: string): boolean {
  return textExtensions.includes(extname(path).toLowerCase())
}

/**
 * The text of a file, some lines at a time.
 * @throws LoopLMError INVALID_FILE naming the line
 */
export function readText(path: string): AsyncGenerator<Piece, void, undefined> {
  return formats[extname(path).toLowerCase()]!(path)
}

/** The documents of a JSON Lines file. */
async function* readRows(path: string): AsyncGenerator<Piece, void, undefined> {
  for await (const lines of readLines(path, { operation })) {
    for (const { bytes, line } of lines) {
      const refuse = (problem: string, cause?: unknown) => invalidRow(path, `line ${line}`, problem, operation, cause)
      const row = decodeText(bytes, path, `line ${line}`, operation).trim()
      if (row === '') continue
      let value: unknown
      try {
        value = JSON.parse(row)
      } catch (cause) {
        throw refuse(`is not JSON: ${(cause as Error).message}`, cause)
      }
      const text = (value as { text?: unknown } | null)?.text
      if (typeof text !== 'string') throw refuse(`field "text" must be a string, got ${typeName(text)}`)
      if (text !== '') yield { text, line, ends: true }
    }
  }
}

/**
 * A text file in pieces of whole lines. A piece ends before a line that does not begin with white space, where tokenizers split
 * anyway. Only very long pieces end elsewhere.
 */
async function* readPieces(path: string): AsyncGenerator<Piece, void, undefined> {
  let text = ''
  let first = 1
  for await (const lines of readLines(path, { operation, maxRowBytes: longestLine, remedy: '; break it into lines' })) {
    for (const { bytes, line } of lines) {
      const next = decodeText(bytes, path, `line ${line}`, operation)
      if (text.length >= longestPiece || (text.length >= pieceLength && /^\S/.test(next))) {
        yield { text, line: first, ends: false }
        text = ''
        first = line
      }
      text += `${next}\n`
    }
  }
  text = text.slice(0, -1)
  if (text.trim() !== '' || first > 1) yield { text, line: first, ends: true }
}
