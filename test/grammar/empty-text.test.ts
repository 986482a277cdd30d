import { describe, expect, it } from 'vitest'
import { withoutRepeatedEmptyText } from '../../src/grammar/empty-text.js'
import { grammarText } from '../../src/grammar/grammar.js'
import { accepts } from './accepts.js'

describe('the empty text in rules', () => {
  it.each([
    ['root ::= "" ""', 'root ::= ""'],
    ['root ::= "" # one\n  "" "" ""', 'root ::= ""'],
    ['root ::= "a"{0}', 'root ::= ""'],
    ['root ::= "a"{0} [b]{0,0} "c"{ 00 }', 'root ::= ""'],
    ['root ::= (""){2}', 'root ::= ""'],
    ['root ::= ((("") | ("a" ("b" | "c")){0}))+', 'root ::= ""'],
    ['root ::= x x y{0}\nx ::= ""\ny ::= "b"', 'root ::= ""\nx ::= ""\ny ::= "b"'],
    ['root ::= x x\nx ::= z\nz ::= ("" "")', 'root ::= ""\nx ::= ""\nz ::= ""'],
    ['root ::= ("a" ("b"){0} "{0}")', 'root ::= ("a" "" "{0}")'],
  ])('is written once: %j', async (ebnf, written) => {
    expect(withoutRepeatedEmptyText(ebnf)).toBe(written)
    expect(grammarText({ ebnf }, 'test')).toBe(written)
  })

  it.each(['root ::= "a" # "" ""\n  ("b" | "c")*', 'root ::= "\\"\\"" [""{0}] "x{0}"', 'root ::= "a"{1,0'])(
    'is not seen where there is none: %j',
    (ebnf) => {
      expect(withoutRepeatedEmptyText(ebnf)).toBe(ebnf)
    },
  )

  it('changes no texts', async () => {
    const ebnf = 'root ::= ("" | "a" ("" ""){2}) x ("b"{0} "c"){1,2}\nx ::= "" | x-1{0}\nx-1 ::= "d"'
    for (const text of ['c', 'ac', 'acc']) expect(await accepts({ ebnf }, text)).toBe(true)
    for (const text of ['', 'a', 'bc', 'dc', 'ccc']) expect(await accepts({ ebnf }, text)).toBe(false)
  })
})
