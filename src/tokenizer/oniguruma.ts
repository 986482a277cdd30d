import { toRegExpDetails } from 'oniguruma-to-es'
import { type Finder, regularFinder } from './patterns.js'

/** Escapes, the starts of groups, brackets, and single characters. */
const syntax = /\\[pP]\{\^?\w+\}|\\x\{[\da-fA-F]+\}|\\.|\(\?[a-z-]*:|\(\?<[=!]|\(\?[=!>]|\(\?<\w+>|\[:\^?\w+:\]|\[\^?|./gsu

const tokensOf = (pattern: string): string[] => pattern.match(syntax) ?? []

/** Latin-1 number characters that `\w` outside of brackets counts as letters. */
const latinNumbers = '²³¹¼½¾'

const word = `[\\w${latinNumbers}]`
const insteadOf: Readonly<Record<string, string>> = {
  '\\w': word,
  '\\W': `[^\\w${latinNumbers}]`,
  '\\p{Word}': word,
  '\\b': `(?:(?<=${word})(?!${word})|(?<!${word})(?=${word}))`,
  '\\B': `(?:(?<=${word})(?=${word})|(?<!${word})(?!${word}))`,
}

/** Sequences that equal a single character if case is ignored, such as ss and ß. Oniguruma does this, JavaScript does not. */
const multipleFolds = /ss|st|ff|fi|fl/i

/** A letter in both cases, with the non-ASCII characters that equal it if case is ignored. */
const variants = (letter: string): string => {
  const [lower, upper] = [letter.toLowerCase(), letter.toUpperCase()]
  return lower + upper + (lower === 'k' ? '\u212a' : lower === 's' ? 'ſ' : '')
}

/** An error for syntax that is valid in Oniguruma. */
const unsupported = (what: string) => new Error(`${what} is not supported`)

/**
 * Expands the letters of `(?i:…)`, because JavaScript's flag i would also change what properties such as `\p{L}` match.
 * Expands escapes for words too.
 */
function written(pattern: string): string {
  const groups: boolean[] = [] // for each open group: whether case is ignored around it
  let ignores = false
  let depth = 0 // depth of brackets
  let run = '' // consecutive letters
  let previous = ''
  const parts = tokensOf(pattern).map((part, i, all) => {
    const inside = depth > 0
    if (part.startsWith('[') && !part.startsWith('[:')) depth++
    else if (part === ']' && previous !== '[' && previous !== '[^') depth = Math.max(0, depth - 1)
    previous = part
    if (!inside && part.startsWith('(')) {
      groups.push(ignores)
      const flags = /^\(\?([a-z-]*):$/.exec(part)?.[1] ?? ''
      const inline = part === '(' && all[i + 1] === '?' ? all.slice(i + 2, all.indexOf(')', i)).join('') : ''
      if (/[ix]/.test(inline)) throw unsupported(`(?${inline}) behind the start`)
      if (/x|-/.test(flags) || (ignores && flags !== '')) throw unsupported(part)
      if (flags.includes('i')) {
        ignores = true
        return `(?${flags.replace('i', '')}:`
      }
      return part
    }
    if (!inside && part === ')') {
      ignores = groups.pop() ?? false
      return part
    }
    if (!inside && !ignores) return insteadOf[part] ?? part
    if (!ignores) return part
    if (/^\\[pPwWbBhHkg\dxucM]|^\[:/.test(part)) throw unsupported(`${part} where case is ignored`)
    if (inside && part === '-' && /[a-z]/i.test(all[i - 1]!) && all[i + 1] !== ']') return part
    run = /^[a-z]$/i.test(part) && !inside ? run + part : ''
    if (multipleFolds.test(run)) throw unsupported(`"${run}", which equals other numbers of characters where case is ignored,`)
    if (/^[a-z]$/i.test(part)) {
      if (inside && (all[i + 1] === '-' || (all[i - 1] === '-' && /[a-z]/i.test(all[i - 2] ?? '')))) {
        throw unsupported('a range of letters where case is ignored')
      }
      return inside ? variants(part) : `[${variants(part)}]`
    }
    if (part.length > 0 && !/^[\0-\x7f]+$/.test(part) && part.toLowerCase() !== part.toUpperCase()) {
      throw unsupported(`${part} where case is ignored`)
    }
    return part
  })
  return parts.join('')
}

/**
 * Rejects a repeated or optional group that may match the empty string: Oniguruma leaves such a loop where JavaScript tries
 * again.
 *
 * @param translate converts an Oniguruma pattern to a JavaScript expression
 */
function checkLoops(pattern: string, translate: (body: string) => RegExp): void {
  const starts: number[] = []
  let depth = 0
  let at = 0
  const tokens = tokensOf(pattern)
  for (const [i, part] of tokens.entries()) {
    if (depth === 0 && part.startsWith('(')) starts.push(at + part.length)
    else if (part.startsWith('[') && !part.startsWith('[:')) depth++
    else if (part === ']') depth = Math.max(0, depth - 1)
    else if (depth === 0 && part === ')') {
      const body = pattern.slice(starts.pop(), at)
      const repeats = /^[*+?{]/.test(tokens[i + 1] ?? '')
      if (repeats && translate(`\\A(?:${body})\\z`).test(''))
        throw unsupported(`the repeated group (${body}), which may match nothing,`)
    }
    at += part.length
  }
}

function translated(pattern: string): RegExp {
  const { pattern: source, flags, options } = toRegExpDetails(pattern, { accuracy: 'strict', target: 'ES2024' })
  if (/[iy]/.test(flags) || options?.strategy !== undefined) throw unsupported(flags.includes('i') ? '(?i)' : '\\G')
  // The translator expands \w to letters, marks and all numbers; Oniguruma includes ⓐ but not ①
  const words = source.replaceAll('\\p{L}\\p{M}\\p{N}\\p{Pc}', '\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}')
  return usesSets(words) ? new RegExp(words, 'gv') : withFlagU(words)
}

/**
 * Uses flag u if possible. Node 20's V8 misses matches of /(?:\P{space}+[^a])+\n/v that it finds with flag u. Flag v is only
 * needed for nested classes and set operations.
 */
function withFlagU(source: string): RegExp {
  try {
    return new RegExp(source, 'gu')
  } catch {
    return new RegExp(source, 'gv') // an escape that only flag v has
  }
}

/** Whether a class contains another class or a set operation. */
function usesSets(source: string): boolean {
  let inside = false
  for (const [part] of source.matchAll(/\\.|&&|--|[[\]]/gsu)) {
    if (inside && (part === '[' || part === '&&' || part === '--')) return true
    if (part === '[' || part === ']') inside = part === '['
  }
  return false
}

/**
 * Converts a regular expression of Oniguruma, which Python's tokenizers use, to JavaScript.
 *
 * @throws Error naming what JavaScript does not support
 */
export function onigurumaFinder(pattern: string): Finder {
  const pictographic = /\\p\{\^?extended_?pictographic\}/i.exec(pattern)
  if (pictographic !== null) throw unsupported(pictographic[0]) // it uses an older Unicode
  const whole = written(pattern.startsWith('(?i)') ? `(?i:${pattern.slice(4)})` : pattern)
  const expression = translated(whole)
  checkLoops(whole, translated)
  return regularFinder(expression)
}
