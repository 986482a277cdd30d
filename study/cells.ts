// Tables in Markdown, and the numbers in their cells.
import { interval } from './statistics.js'

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
