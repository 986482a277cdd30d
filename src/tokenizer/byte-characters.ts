let next = 0x100

/**
 * The printable character of each byte in a byte-level vocabulary (GPT-2): 188 bytes map to themselves, the other 68 map to
 * U+0100, U+0101, …
 */
export const characterOfByte: readonly string[] = Array.from({ length: 256 }, (_, byte) => {
  const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
  return String.fromCharCode(printable ? byte : next++)
})

const byteOfCharacter: ReadonlyMap<string, number> = new Map(characterOfByte.map((character, byte) => [character, byte]))

const encoder = new TextEncoder()

/** The UTF-8 bytes of a text. */
export const encodeBytes = (text: string): Uint8Array => encoder.encode(text)

/** One character per byte. */
export function byteCharacters(bytes: Uint8Array): string {
  let text = ''
  for (const byte of bytes) text += characterOfByte[byte]
  return text
}

/** The bytes of byte-level characters. undefined if a character is not one of them. */
export function bytesOfCharacters(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(text.length)
  let count = 0
  for (const character of text) {
    const byte = byteOfCharacter.get(character)
    if (byte === undefined) return undefined
    bytes[count++] = byte
  }
  return bytes.subarray(0, count)
}

const decoder = new TextDecoder('utf-8', { ignoreBOM: true })

/** Decodes UTF-8. Invalid bytes become U+FFFD. */
export const decodeBytes = (bytes: Uint8Array): string => decoder.decode(bytes)
