// JSON whose numbers stay as they are written. JSON.parse makes 175928847299117060 of 175928847299117063, and 1 of 1.0.
import { randomUUID } from 'node:crypto'

/** A number that JavaScript would write in another way. */
export class WrittenNumber {
  readonly text: string

  constructor(text: string) {
    this.text = text
  }
}

/** The strings and numbers of a JSON text. */
const part = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g
const changes = (found: string) => found[0] !== '"' && String(Number(found)) !== found

/**
 * As JSON.parse, but numbers that JavaScript would write in another way become a {@link WrittenNumber}.
 * @throws SyntaxError as JSON.parse
 */
export function parseExactJson(text: string): unknown {
  const value: unknown = JSON.parse(text)
  const mark = randomUUID()
  const marked = text.replace(part, (found) => (changes(found) ? `"${mark}${found}"` : found))
  if (marked === text) return value
  const read = (_: string, inner: unknown) =>
    typeof inner === 'string' && inner.startsWith(mark) ? new WrittenNumber(inner.slice(mark.length)) : inner
  return JSON.parse(marked, read)
}

/** Whether a value of {@link parseExactJson} is an object. */
export function isJsonObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof WrittenNumber)
}

/** As JSON.stringify, for what {@link parseExactJson} returns. */
export function writeExactJson(value: unknown): string {
  const mark = randomUUID()
  const write = (_: string, inner: unknown) => (inner instanceof WrittenNumber ? mark + inner.text : inner)
  return JSON.stringify(value, write).replaceAll(new RegExp(`"${mark}([^"]*)"`, 'g'), '$1')
}

/** The integers of a valid JSON text that JSON.parse changes. */
export function changedIntegers(text: string): string[] {
  return (text.match(part) ?? []).filter((found) => changes(found) && /^-?[1-9]\d*$/.test(found))
}
