// Tables in Markdown, and the numbers in their cells.
import { interval, type Outcome, type PairedTest } from './statistics.js'

export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return 'No runs yet.'
  return [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n')
}

export const percent = (value: number) => (100 * value).toFixed(1)
export const signed = (value: number) => `${value < 0 ? '−' : '+'}${Math.abs(100 * value).toFixed(1)}`
export const pValue = (p: number) => (p < 0.0001 ? '<.0001' : p.toFixed(4).replace(/^0/, ''))

/** `68.2 [65.0, 71.4]`, in percent. */
export function estimate(values: readonly number[]): string {
  const { mean, low, high } = interval(values)
  return `${percent(mean)} [${percent(low)}, ${percent(high)}]`
}

export const comparisonHead = ['difference in points', 'bases ahead', 't', 'p', 'p (Holm)']

/** `+1.7 [+0.6, +2.8]`, in points. */
export const signedRange = ({ mean, low, high }: PairedTest) => `${signed(mean)} [${signed(low)}, ${signed(high)}]`

/** Under {@link comparisonHead}. */
export function comparisonCells({ test, adjusted, ahead }: Outcome): string[] {
  return [signedRange(test), `${ahead}/${test.count}`, test.t.toFixed(2), pValue(test.p), pValue(adjusted)]
}

const longestLine = 119

/** An entry of a list, wrapped as the documents are. */
export function entry(text: string): string {
  const lines = ['*']
  for (const word of text.split(' ')) {
    const longer = `${lines.at(-1)} ${word}`
    if ([...longer].length <= longestLine) lines[lines.length - 1] = longer
    else lines.push(`  ${word}`)
  }
  return lines.join('\n')
}
