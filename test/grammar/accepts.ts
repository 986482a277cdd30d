import { type Grammar, grammarText } from '../../src/grammar/grammar.js'
import { beginGrammar } from '../../src/grammar/sessions.js'
import { Tokenizer } from '../../src/index.js'

const tokenizer = Tokenizer.bytes()

/** Whether a grammar allows a text, byte by byte. */
export async function accepts(grammar: Grammar, text: string): Promise<boolean> {
  const session = await beginGrammar(tokenizer, tokenizer.vocabSize, grammarText(grammar, 'accepts'))
  try {
    let next = await session.next()
    for (const byte of new TextEncoder().encode(text)) {
      if (((next.allowed[byte >> 5]! >>> (byte & 31)) & 1) === 0) return false
      next = await session.next(byte)
    }
    return next.mayEnd
  } finally {
    session.close()
  }
}
