/**
 * Comparing short mathematical answers written in LaTeX or plain text. The rules are few and textual: a wrong answer must not
 * pass, and a right answer in an unusual notation may fail.
 */

/**
 * The content of the last `\boxed{…}` whose braces balance, or undefined. A box that the text ends before closing does not
 * count; `\{` and `\}` are characters, not braces.
 *
 * @example
 * ```ts
 * lastBoxed('so \\boxed{\\frac{1}{2}}.') // '\\frac{1}{2}'
 * ```
 */
export function lastBoxed(text: string): string | undefined {
  const open: number[] = [] // for each brace not closed yet: where a box's content starts, or -1
  let start = -1
  let content: string | undefined
  for (const match of text.matchAll(/\\boxed\s*\{|[{}]|\\[{}]|\\\\(?!boxed)/g)) {
    const [token] = match
    if (token === '{') open.push(-1)
    else if (token.startsWith('\\boxed')) open.push(match.index + token.length)
    else if (token === '}') {
      const closed = open.pop() ?? -1
      if (closed > start) {
        start = closed
        content = text.slice(start, match.index)
      }
    }
  }
  return content
}

/** `\text{…}` at the end, after a digit or a closing brace, with an exponent as in `\text{cm}^2`. */
const unitPattern = new RegExp(
  [
    /([\d}])\s*\\(?:text|mathrm|mbox)\s*/,
    /\{(?!\s*(?:hundred|thousand|million|billion|trillion|dozen))[^{}]*\}/,
    /(?:\^\{?\d\}?)?\s*\.?$/,
  ]
    .map((part) => part.source)
    .join(''),
)

/**
 * Brings an answer into a comparable form.
 *
 * What it does:
 * - drops dollar signs (math mode and currency), `\( \) \[ \]`, `\left`, `\right`, LaTeX spacing and all spaces but one after a comma
 * - writes `\dfrac`, `\tfrac`, `\cfrac` and `\frac12` as `\frac{1}{2}`, `\%` as `%` and the Unicode minus as `-`
 * - removes thousands separators (`1,234`, `1{,}234`, `1\,234`) when the whole answer is such a number
 * - drops degree signs and a unit in `\text{…}`, `\mathrm{…}` or `\mbox{…}` after a number, but not `\text{million}` and its like
 * - unwraps `\text`, `\textbf`, `\mathrm`, `\mathbf` and `\mbox` elsewhere
 * - drops a final full stop and a leading `+`
 *
 * What it does not do: algebra (`x+1` and `1+x` differ), roots and powers, upper and lower case, `x = 5` for `5`, plain-text
 * units (`5 cm`), the order of lists, intervals, or words for numbers.
 *
 * @param answer the content of a box or a gold answer
 * @returns text to compare with `===`; {@link answersEqual} also compares numbers by value
 *
 * @example
 * ```ts
 * normalizeAnswer('$\\dfrac12$') // '\\frac{1}{2}'
 * normalizeAnswer('1,234\\text{ cm}') // '1234'
 * ```
 */
export function normalizeAnswer(answer: string): string {
  let text = answer
    .replace(/\\?\$|\\[()[\]]/g, '')
    .replace(/\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])/g, '')
    .replace(/\\[,;:! ]|~/g, '')
    .replace(/\u2212/g, '-')
    .replace(/\\%/g, '%')
    .replace(/\{,\}/g, ',')
    .replace(/\\[dtc]frac(?![a-zA-Z])/g, '\\frac')
    .replace(/\\frac\s*(\d)\s*(\d)/g, '\\frac{$1}{$2}')
    .replace(/\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\u00b0/g, '')
    .trim()
    .replace(unitPattern, '$1')
    .replace(/\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}/g, '$1')
    .replace(/\.$/, '')
    .trim()
    .replace(/^\+/, '')
  if (/^-?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*%?$/.test(text)) text = text.replaceAll(',', '')
  return text.replace(/\s+/g, '').replaceAll(',', ', ')
}

const decimal = '(?:\\d+\\.?\\d*|\\.\\d+)(?:[eE][+-]?\\d+)?'
const signed = `[+-]?${decimal}`
const decimalPattern = new RegExp(`^${signed}$`)
const slashPattern = new RegExp(`^(${signed})/(${signed})$`)
const fractionPattern = new RegExp(`^([+-]?)(\\d*)\\\\frac\\{(${signed})\\}\\{(${signed})\\}$`)
const maxNumberLength = 1000 // a longer text is compared as text

/** The value of a normalised number without a percent sign, or undefined. A number before a fraction is a mixed number. */
function numericValue(text: string): number | undefined {
  if (text.length > maxNumberLength) return undefined
  const slash = slashPattern.exec(text)
  const fraction = fractionPattern.exec(text)
  let value = Number.NaN
  if (decimalPattern.test(text)) value = Number(text)
  else if (slash !== null) value = Number(slash[1]) / Number(slash[2])
  else if (fraction !== null) {
    const [, sign, whole, numerator, denominator] = fraction
    const mixed = whole !== ''
    if (mixed && !/^\d+\/\d+$/.test(`${numerator}/${denominator}`)) return undefined
    value = (sign === '-' ? -1 : 1) * (Number(whole) + Number(numerator) / Number(denominator))
  }
  return Number.isFinite(value) ? value : undefined
}

/** An integer's sign and digits without leading zeros, or undefined: integers of any length are compared exactly. */
function integerText(text: string): string | undefined {
  const match = /^([+-]?)0*(\d+)$/.exec(text)
  if (match === null) return undefined
  return match[1] === '-' && match[2] !== '0' ? `-${match[2]}` : match[2]
}

function numbersEqual(a: string, b: string, tolerance: number): boolean {
  const integerA = integerText(a)
  const integerB = integerText(b)
  if (integerA !== undefined && integerB !== undefined) return integerA === integerB
  const valueA = numericValue(a)
  const valueB = numericValue(b)
  if (valueA === undefined || valueB === undefined) return false
  return Math.abs(valueA - valueB) <= tolerance * Math.min(1, Math.max(Math.abs(valueA), Math.abs(valueB)))
}

/**
 * Whether two answers are the same after {@link normalizeAnswer}, as text or as numbers.
 *
 * Numbers are integers, decimals, `a/b`, `\frac{a}{b}` and mixed numbers. Two integers must be equal exactly; otherwise values
 * may differ by `tolerance · min(1, larger magnitude)`, so `0.3333333` equals `1/3` and `0.33` does not. A percentage equals
 * the same number with the sign and without it, and its value as a fraction: `50%` equals `50` and `0.5`.
 *
 * @param tolerance default 1e-6
 *
 * @example
 * ```ts
 * answersEqual('\\frac{3}{4}', '0.75') // true
 * ```
 */
export function answersEqual(a: string, b: string, tolerance = 1e-6): boolean {
  const textA = normalizeAnswer(a)
  const textB = normalizeAnswer(b)
  if (textA === textB) return textA !== ''
  const percentA = textA.endsWith('%')
  const percentB = textB.endsWith('%')
  const numberA = percentA ? textA.slice(0, -1) : textA
  const numberB = percentB ? textB.slice(0, -1) : textB
  if (numbersEqual(numberA, numberB, tolerance)) return true
  if (percentA === percentB) return false
  const percent = numericValue(percentA ? numberA : numberB)
  return percent !== undefined && numbersEqual(String(percent / 100), percentA ? numberB : numberA, tolerance)
}
