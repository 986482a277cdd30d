// What the grammar of a regular expression allows, and the expressions that are refused.
import { describe, expect, it } from 'vitest'
import { regexToEbnf } from '../../src/grammar/regex.js'
import { refusal } from '../refusal.js'
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
})
