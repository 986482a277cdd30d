// Markdown tables, and the format of numbers in their cells.
import { interval, type Outcome, type PairedTest } from './statistics.js'

export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return 'No runs yet.'
  return [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n')
}

export const percent = (value: number) => (100 * value).toFixed(1)
export const signed = (value: number) => `${value < 0 ? '−' : '+'}${Math.abs(100 * value).toFixed(1)}`
export const pValue = (p: number) => (p < 0.0001 ? '<.0001' : p.toFixed(4).replace(/^0/, ''))

/** Formats a mean with half of its 95 % interval, in percent: `68.2 ± 3.2`. */
export function estimate(values: readonly number[]): string {
  if (values.length === 1) return percent(values[0]!)
  const { mean, high } = interval(values)
  return `${percent(mean)} ± ${percent(high - mean)}`
}

export const comparisonHead = ['difference in points', 'bases ahead', 't', 'p', 'p (Holm)']

/** Formats a difference in percentage points: `+1.7 ± 1.1`. */
export const signedRange = ({ mean, high }: PairedTest) => `${signed(mean)} ± ${percent(high - mean)}`

/** The cells of a comparison, for the columns of {@link comparisonHead}. */
export function comparisonCells({ test, adjusted, ahead }: Outcome): string[] {
  return [signedRange(test), `${ahead}/${test.count}`, test.t.toFixed(2), pValue(test.p), pValue(adjusted)]
}

const longestLine = 120 // in bytes

/**
 * Wraps text to the width of the documents.
 * @param first prefix of the first line, `rest` prefix of every later line
 */
export function wrapped(text: string, first = '', rest = ''): string {
  const lines = [first]
  for (const word of text.split(' ')) {
    const line = lines.at(-1)!
    const longer = line === '' || line === rest ? line + word : `${line} ${word}`
    if (Buffer.byteLength(longer) <= longestLine) lines[lines.length - 1] = longer
    else lines.push(rest + word)
  }
  return lines.join('\n')
}

/** An item of a list. */
export const entry = (text: string): string => wrapped(text, '*', '  ')
