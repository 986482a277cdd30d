// What the grammar of a regular expression allows, and the expressions that are refused.
import { describe, expect, it } from 'vitest'
import { regexToEbnf } from '../../src/grammar/regex.js'
import { refusal } from '../refusal.js'
import { expectLinear } from '../scaling.js'
import { accepts } from './accepts.js'

describe('a regular expression', () => {
  it('may have groups nested 50 levels deep', async () => {
    const nested = (levels: number, end = ')') => `${'('.repeat(levels)}a${end.repeat(levels)}`
    expect(await accepts({ regex: nested(50) }, 'a')).toBe(true)
    expect(await accepts({ jsonSchema: { pattern: `^${nested(50, '|b)*')}$` } }, '"ab"')).toBe(true)
    for (const pattern of [nested(51), '('.repeat(30000)])
      expect((await refusal(() => regexToEbnf(pattern))).message).toMatch(
        /groups nested more than 50 levels deep \(remove some\)/,
      )
  })

  it.each(['\\ud83d\\ude00', '[\\ud83d\\ude00]', '\\u{1F600}', '[\\u{1F5FF}-\\ud83d\\ude01]'])(
    'reads a pair of surrogates as one character: %s',
    async (pattern) => {
      expect(await accepts({ regex: pattern }, '😀')).toBe(true)
    },
  )

  it.each(['\\ud83d', '\\ude00\\ud83d', '\\ud83dx', '[\\ud83d]', '[^\\ud800-\\udfff]', '\\u{d83d}', 'a\ud83d', '[\ude00]'])(
    'is refused with half of a surrogate pair: %j',
    async (pattern) => {
      expect((await refusal(() => regexToEbnf(pattern))).message).toMatch(/half of a surrogate pair at character \d+, which/)
    },
  )

  it.each(['\\u{110000}', '[\\u{FFFFFF}a]'])('is refused with a code that no character has: %s', async (pattern) => {
    expect((await refusal(() => regexToEbnf(pattern))).message).toMatch(/a code above 10FFFF at character \d+, which/)
  })

  it('keeps the white space and the ends of lines of Unicode out of \\S and of the dot', async () => {
    for (const space of ['\u00a0', '\u1680', '\u2003', '\u2028', '\u202f', '\u205f', '\u3000', '\ufeff'])
      expect(await accepts({ regex: 'a\\Sb' }, `a${space}b`)).toBe(false)
    for (const end of ['\u2028', '\u2029', '\n', '\r']) expect(await accepts({ regex: 'a.b' }, `a${end}b`)).toBe(false)
    for (const regex of ['a\\Sb', 'a.b']) expect(await accepts({ regex }, 'aéb')).toBe(true)
  })

  it('is read in time that grows with its length', () => {
    expectLinear((length) => regexToEbnf('a\\u0041(?:a){2}'.repeat(length)), 600)
  })
})
