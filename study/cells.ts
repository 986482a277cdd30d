// Tables in Markdown, and the numbers in their cells.
import { interval, type Outcome, type PairedTest } from './statistics.js'

export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return 'No runs yet.'
  return [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n')
}

export const percent = (value: number) => (100 * value).toFixed(1)
export const signed = (value: number) => `${value < 0 ? '−' : '+'}${Math.abs(100 * value).toFixed(1)}`
export const pValue = (p: number) => (p < 0.0001 ? '<.0001' : p.toFixed(4).replace(/^0/, ''))

/** `68.2 ± 3.2`, in percent, with half of the 95 % interval. */
export function estimate(values: readonly number[]): string {
  if (values.length === 1) return percent(values[0]!)
  const { mean, high } = interval(values)
  return `${percent(mean)} ± ${percent(high - mean)}`
}

export const comparisonHead = ['difference in points', 'bases ahead', 't', 'p', 'p (Holm)']

/** `+1.7 ± 1.1`, in points. */
export const signedRange = ({ mean, high }: PairedTest) => `${signed(mean)} ± ${percent(high - mean)}`

/** Under {@link comparisonHead}. */
export function comparisonCells({ test, adjusted, ahead }: Outcome): string[] {
  return [signedRange(test), `${ahead}/${test.count}`, test.t.toFixed(2), pValue(test.p), pValue(adjusted)]
}

const longestLine = 120 // bytes

/** Lines as the documents have them. @param first how the text begins, and `rest` every line after the first */
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

/** An entry of a list. */
export const entry = (text: string): string => wrapped(text, '*', '  ')
