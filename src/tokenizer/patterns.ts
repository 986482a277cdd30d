import { asUnicode16 } from './unicode.js'

/** Where a match starts and ends, in UTF-16 units. */
export type Match = readonly [start: number, end: number]

/** Finds the matches in a text, in order. They do not overlap, and may be empty. */
export type Finder = (text: string) => Iterable<Match>

/** Every character of a kind is a separate match. */
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

/** Finds every occurrence of a string. The empty string matches at every character. */
export function stringFinder(part: string): Finder {
  if (part === '') return regularFinder(/(?:)/gu)
  return function* find(text) {
    for (let start = text.indexOf(part); start !== -1; start = text.indexOf(part, start + part.length)) {
      yield [start, start + part.length]
    }
  }
}

/**
 * Finds every match of a regular expression with flag g. As in Oniguruma, an empty match directly after another match does not
 * count.
 */
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
        from = match.index + 1 // V8 finds \B at this position
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
