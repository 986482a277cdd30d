// The threads of grammars: what they keep, and what one grammar does to others.
import { describe, expect, it } from 'vitest'
import { beginGrammar } from '../../src/grammar/sessions.js'
import { Tokenizer } from '../../src/index.js'
import { refusal } from '../refusal.js'

const tokenizer = Tokenizer.bytes()
const begin = (ebnf: string) => beginGrammar(tokenizer, tokenizer.vocabSize, ebnf)

describe('a grammar', () => {
  it('that is too deep for the library is refused with a remedy', async () => {
    const deep = `root ::= ${'('.repeat(3000)}"a"${')'.repeat(3000)}`
    expect((await refusal(() => begin(deep))).message).toMatch(/failed on it: make the grammar smaller, or nest it less/)
  })
})

describe('many grammars', () => {
  it('may begin before any of them continues', async () => {
    const sessions = await Promise.all(Array.from({ length: 70 }, (_, i) => begin(`root ::= "${'a'.repeat(i)}b"`)))
    for (const next of await Promise.all(sessions.map((session) => session.next()))) expect(next.any).toBe(true)
    for (const session of sessions) session.close()
  })

  it('leave nothing behind in the library', async () => {
    const rules = Array.from({ length: 8000 }, (_, i) => `r${i} ::= "x${i}"`).join('\n')
    const memory: number[] = []
    for (let i = 0; i < 40; i++) {
      const session = await begin(`root ::= "${i}"\n${rules}`)
      session.close()
      memory.push(process.memoryUsage().rss / 2 ** 20)
    }
    expect(memory[39]! - memory[9]!).toBeLessThan(25) // MiB; objects that nobody disposes of took 50
  })
})
