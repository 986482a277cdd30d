import { encodeBytes } from './byte-characters.js'
import type { Fields } from './fields.js'
import type { Normalizer } from './pieces.js'

/**
 * The character map of a SentencePiece model: the size of a trie in bytes, the trie as a double array of 32-bit units, and the
 * zero-terminated replacements.
 */
class CharacterMap {
  readonly #units: Uint32Array
  readonly #replacements: Uint8Array

  constructor(bytes: Uint8Array) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const size = bytes.length < 4 ? -1 : view.getUint32(0, true)
    if (size < 4 || size % 4 !== 0 || size > bytes.length - 4) throw new Error('its trie is cut')
    this.#units = Uint32Array.from({ length: size / 4 }, (_, i) => view.getUint32(4 + 4 * i, true))
    this.#replacements = bytes.subarray(4 + size)
  }

  /** The replacement of a text: that of its shortest prefix with a replacement, as in Python. */
  replacement(text: string): string | undefined {
    const units = this.#units
    let position = offset(units[0]!)
    for (const byte of encodeBytes(text)) {
      if (byte === 0) return undefined
      position ^= byte
      const unit = units[position]
      if (unit === undefined || (unit & 0x800000ff) !== byte) return undefined
      position ^= offset(unit)
      if (unit & 0x100) return this.#at(units[position]! & 0x7fffffff)
    }
    return undefined
  }

  #at(start: number): string {
    const end = this.#replacements.indexOf(0, start)
    return new TextDecoder().decode(this.#replacements.subarray(start, end === -1 ? undefined : end))
  }
}

/** Distance to a unit's children. */
function offset(unit: number): number {
  return (unit >>> 10) << ((unit & 0x200) >>> 6)
}

/**
 * Applies the character map of a SentencePiece model to grapheme clusters of up to 5 bytes, or otherwise to single characters.
 */
export function readPrecompiled(fields: Fields): Normalizer {
  const text = fields.string('precompiled_charsmap', '')
  if (text === '') return (piece) => piece
  let map: CharacterMap
  try {
    map = new CharacterMap(Buffer.from(text, 'base64'))
  } catch (cause) {
    throw fields.invalid('precompiled_charsmap', `is not a character map of SentencePiece: ${(cause as Error).message}`, cause)
  }
  const graphemes = new Intl.Segmenter('en', { granularity: 'grapheme' })
  const replacements = new Map<string, string>() // characters repeat in a text
  const replaced = (part: string): string | undefined => {
    let found = replacements.get(part)
    if (found === undefined) {
      found = map.replacement(part)
      if (found !== undefined) replacements.set(part, found)
    }
    return found
  }
  const changed = (cluster: string): string => {
    const whole = cluster.length < 6 && encodeBytes(cluster).length < 6 ? replaced(cluster) : undefined
    return whole ?? Array.from(cluster, (character) => replaced(character) ?? character).join('')
  }
  return (piece) => {
    // Without combining characters every character is a cluster, and finding clusters is slow
    const parts = /^[\n -~]*$/.test(piece.text)
      ? Array.from(piece.text, changed)
      : Array.from(graphemes.segment(piece.text), ({ segment }) => changed(segment))
    const first = parts[0] ?? ''
    return { text: parts.join(''), head: piece.head === 0 || first === '' ? 0 : first.codePointAt(0)! > 0xffff ? 2 : 1 }
  }
}
