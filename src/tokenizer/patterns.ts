import { toRegExpDetails } from 'oniguruma-to-es'
import { asUnicode16 } from './unicode.js'

/** Where a match starts and ends, in UTF-16 units. */
export type Match = readonly [start: number, end: number]

/** Finds the matches in a text, in order; they do not overlap, and may be empty. */
export type Finder = (text: string) => Iterable<Match>

/** Every character of a kind is a match of its own. */
export function characterFinder(isMatch: (character: string) => boolean): Finder {
  return function* find(text) {
    let start = 0
    for (const character of text) {
      const end = start + character.length
      if (isMatch(character)) yield [start, end]
      start = end
    }
  }
}

/** Every occurrence of a string; an empty one matches at every character. */
export function stringFinder(part: string): Finder {
  if (part === '') return regularFinder(/(?:)/gu)
  return function* find(text) {
    for (let start = text.indexOf(part); start !== -1; start = text.indexOf(part, start + part.length)) {
      yield [start, start + part.length]
    }
  }
}

/** Every match of a regular expression with the flag g. An empty match right behind another does not count, as in Oniguruma. */
export function regularFinder(expression: RegExp): Finder {
  return function* find(text) {
    const seen = asUnicode16(text)
    let last = -1
    let from = 0
    while (from <= text.length) {
      expression.lastIndex = from // another search may run in between
      const match = expression.exec(seen)
      if (match === null) return
      const end = match.index + match[0].length
      if (splitsPair(text, match.index)) {
        from = match.index + 1 // V8 finds \B there
        continue
      }
      if (splitsPair(text, match.index)) {
        from = match.index + 1 // V8 finds \B there
        continue
      }
      if (end > match.index || end !== last) {
        yield [match.index, end]
        last = end
        from = end
      } else {
        from = end + (text.codePointAt(end)! > 0xffff ? 2 : 1)
      }
    }
  }
}

/** Whether a position is between the halves of a surrogate pair. */
function splitsPair(text: string, position: number): boolean {
  return (text.charCodeAt(position) & 0xfc00) === 0xdc00 && (text.charCodeAt(position - 1) & 0xfc00) === 0xd800
}

/** Numbers of Latin-1, which a `\w` outside brackets takes for letters in Oniguruma. */
const latinNumbers = '²³¹¼½¾'

const word = `[\\w${latinNumbers}]`
const insteadOf: Readonly<Record<string, string>> = {
  '\\w': word,
  '\\W': `[^\\w${latinNumbers}]`,
  '\\p{Word}': word,
  '\\b': `(?:(?<=${word})(?!${word})|(?<!${word})(?=${word}))`,
  '\\B': `(?:(?<=${word})(?=${word})|(?<!${word})(?!${word}))`,
}

/** Writes out what the escapes for words mean outside brackets. */
function withLatinNumbers(pattern: string): string {
  let depth = 0 // of brackets
  return pattern.replaceAll(/\\p\{\w+\}|\\.|\[\^?\]?|\]/gsu, (part) => {
    if (part.startsWith('[')) depth++
    else if (part === ']') depth = Math.max(0, depth - 1)
    else if (depth === 0) return insteadOf[part] ?? part
    return part
  })
}

/** What equals several characters when case is ignored, such as ß and ss: in Oniguruma, not in JavaScript. */
const multipleFolds = /ss|st|ff|fi|fl|[ßẞŉǰΐΰևẖ-ẚﬀ-ﬆﬓ-ﬗ\u0130\u1f50-\u1fff]/iu

/**
 * A regular expression of Oniguruma, which Python's tokenizers use, as one of JavaScript.
 *
 * @throws Error saying what JavaScript's cannot do
 */
export function onigurumaFinder(pattern: string): Finder {
  const ignoresCase = /\(\?[a-z]*i/.test(pattern)
  if (ignoresCase && multipleFolds.test(pattern)) {
    throw new Error(
      `ignoring the case of "${multipleFolds.exec(pattern)![0]}", which equals other numbers of characters, is not supported`,
    )
  }
  const written = withLatinNumbers(pattern)
  const { pattern: source, flags, options } = toRegExpDetails(written, { accuracy: 'strict', target: 'ES2024' })
  if (flags.includes('y') || options?.strategy !== undefined) throw new Error('\\G is not supported')
  // The translator takes \w for letters, marks and all numbers; Oniguruma counts ⓐ and not ①
  const words = source.replaceAll('\\p{L}\\p{M}\\p{N}\\p{Pc}', '\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}')
  return regularFinder(new RegExp(words, `${flags}g`))
}
