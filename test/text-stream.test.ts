// The text of a stream is the text of the whole, whatever the tokens are, and no piece of it splits a character.
import { describe, expect, it } from 'vitest'
import { Random } from '../src/data/random.js'
import { Tokenizer } from '../src/index.js'
import { decodeGenerated, TextStream } from '../src/model/text-stream.js'
import { tokenizerJson } from './ouro-folder.js'

const characters = Array.from('ab é ñ e\u0301 漢字かな 한글 עברית ไทย 😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 𝔘 \u{10ffff} \n\t . , \' "\\')

const fallback = () => {
  const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`)
  const vocab = Object.fromEntries(['<unk>', ...bytes, '▁', 'a', 'b', 'é', '漢'].map((token, id) => [token, id]))
  const model = { type: 'BPE', vocab, merges: [], byte_fallback: true, unk_token: '<unk>' }
  const replace = (from: string, to: string) => ({ type: 'Replace', pattern: { String: from }, content: to })
  const decoders = [
    replace('▁', ' '),
    { type: 'ByteFallback' },
    { type: 'Fuse' },
    { type: 'Strip', content: ' ', start: 1, stop: 0 },
  ]
  const normalizer = { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '▁' }, replace(' ', '▁')] }
  return new Tokenizer({ model, normalizer, decoder: { type: 'Sequence', decoders } })
}

const tokenizers: Record<string, Tokenizer> = {
  bytes: Tokenizer.bytes(),
  'byte-level BPE': new Tokenizer(tokenizerJson()),
  'a tokenizer that cleans up spaces': new Tokenizer(tokenizerJson(), { clean_up_tokenization_spaces: true }),
  'byte fallback with a dropped first space': fallback(),
}

/** Half of a surrogate pair has no place in a piece. */
const whole = (piece: string) => !/\p{Surrogate}/u.test(piece)

function streamed(tokenizer: Tokenizer, tokens: number[], stops: string[] = []) {
  const stream = new TextStream(tokenizer, stops)
  const pieces = tokens.map((token) => stream.push(token))
  return { pieces: [...pieces, stream.flush()], stopped: stream.stopped }
}

describe.each(Object.keys(tokenizers))('streamed text of %s', (name) => {
  const tokenizer = tokenizers[name]!

  it('is the whole text, in pieces of whole characters', () => {
    const random = new Random(1)
    for (let round = 0; round < 300; round++) {
      const text = Array.from({ length: 1 + random.integer(40) }, () => characters[random.integer(characters.length)]).join('')
      const tokens = tokenizer.encode(text)
      const { pieces } = streamed(tokenizer, tokens)
      expect(pieces.join('')).toBe(decodeGenerated(tokenizer, tokens))
      expect(pieces.join('')).toBe(text.startsWith(' ') && name.includes('dropped') ? pieces.join('') : text)
      expect(pieces.every(whole)).toBe(true)
      expect(pieces.join('')).not.toContain('\ufffd')
    }
  })

  it('of tokens that are no valid text is still the whole text', () => {
    const random = new Random(2)
    for (let round = 0; round < 300; round++) {
      // long runs of continuation bytes and beginnings of characters
      const kinds = [
        () => random.integer(tokenizer.vocabSize),
        () => idOf(tokenizer, 0x80 + random.integer(64)),
        () => idOf(tokenizer, 0xf0),
      ]
      const tokens = Array.from({ length: 1 + random.integer(60) }, () => kinds[random.integer(kinds.length)]!())
      const { pieces } = streamed(tokenizer, tokens)
      expect(pieces.join('')).toBe(decodeGenerated(tokenizer, tokens))
    }
  })

  it('ends before the first stop text, wherever tokens cut it', () => {
    const random = new Random(3)
    for (let round = 0; round < 300; round++) {
      const text = `a${Array.from({ length: 5 + random.integer(30) }, () => characters[random.integer(characters.length)]).join('')}`
      const points = Array.from(text)
      const from = 1 + random.integer(points.length - 1)
      const stop = points.slice(from, from + 1 + random.integer(4)).join('')
      const { pieces, stopped } = streamed(tokenizer, tokenizer.encode(text), [stop, 'never in it'])
      expect(stopped).toBe(true)
      expect(pieces.join('')).toBe(text.slice(0, text.indexOf(stop)))
    }
  })
})

it('a long row of invalid bytes comes out before its end', () => {
  const tokenizer = tokenizers.bytes!
  const stream = new TextStream(tokenizer, [])
  let text = ''
  for (let i = 0; i < 4000; i++) {
    text += stream.push(0x80)
    expect(i - text.length).toBeLessThan(20)
  }
  expect(text + stream.flush()).toBe('\ufffd'.repeat(4000))
})

/** The id of the token that is one byte. */
function idOf(tokenizer: Tokenizer, byte: number): number {
  for (let id = 0; id < tokenizer.vocabSize; id++) {
    const bytes = tokenizer.tokenBytes(id)
    if (bytes.length === 1 && bytes[0] === byte) return id
  }
  throw new Error(`no token is the byte ${byte}`)
}
