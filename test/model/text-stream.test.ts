// The text of a stream is the text of the whole, whatever the tokens are, and no piece of it splits a character.
import { describe, expect, it } from 'vitest'
import { Random } from '../../src/data/random.js'
import { Tokenizer } from '../../src/index.js'
import { decodeGenerated, TextStream } from '../../src/model/text-stream.js'
import { tokenizerJson } from '../ouro-folder.js'

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

const added = ['<s>', '</s>', '<|x|>']
const words = ['▁', '▁▁', '▁a', 'a', 'b', '▁the', 'é', '漢', '.', "▁'", ...added]

/** A tokenizer of words with a decoder; ids from 256 bytes on where it falls back to them. */
const decoding = (decoder: object | null, tokens: readonly string[] = words) => {
  const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`)
  const vocab = Object.fromEntries(['<unk>', ...bytes, ...tokens].map((token, id) => [token, id]))
  const added_tokens = added.map((content) => ({ id: vocab[content], content, special: true }))
  return new Tokenizer({ model: { type: 'WordLevel', vocab, unk_token: '<unk>' }, added_tokens, decoder })
}

const sequence = (...decoders: object[]) => ({ type: 'Sequence', decoders })
const spaces = { type: 'Replace', pattern: { String: '▁' }, content: ' ' }
const [byteFallback, fuse] = [{ type: 'ByteFallback' }, { type: 'Fuse' }]
const strip = (start: number) => ({ type: 'Strip', content: ' ', start, stop: 0 })
const metaspace = { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true }

/** Tokenizers for random ids: their texts are not encoded. */
const decoders: Record<string, Tokenizer> = {
  'Llama 2': decoding(sequence(spaces, byteFallback, fuse, strip(1))),
  'Llama 2 that drops every space at the start': decoding(sequence(spaces, byteFallback, fuse, strip(100))),
  Gemma: decoding(sequence(spaces, byteFallback, fuse)),
  Metaspace: decoding(metaspace),
  'Metaspace behind byte fallback': decoding(sequence(byteFallback, metaspace)),
  WordPiece: decoding({ type: 'WordPiece', prefix: '##', cleanup: true }, ['a', '##b', '.', "'s", 'the', ...added]),
  CTC: decoding({ type: 'CTC', pad_token: '<pad>', word_delimiter_token: '|', cleanup: true }, [
    'a',
    'b',
    '|',
    '<pad>',
    '.',
    ...added,
  ]),
  'words with suffixes': decoding({ type: 'BPEDecoder', suffix: '</w>' }, ['a', 'b</w>', 'c</w>', ...added]),
  'no decoder': decoding(null),
}

const tokenizers: Record<string, Tokenizer> = {
  bytes: Tokenizer.bytes(),
  'byte-level BPE': new Tokenizer(tokenizerJson()),
  'a tokenizer that cleans up spaces': new Tokenizer(tokenizerJson(), { clean_up_tokenization_spaces: true }),
  'byte fallback with a dropped first space': fallback(),
}

/** Half of a surrogate pair has no place in a piece. */
const whole = (piece: string) => !/\p{Surrogate}/u.test(piece)

function streamed(tokenizer: Tokenizer, tokens: number[], stops: string[] = [], prompt: number[] = []) {
  const stream = new TextStream(tokenizer, stops, prompt)
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
      expect(pieces.join('')).toBe(text)
      expect(pieces.every(whole)).toBe(true)
      expect(pieces.join('')).not.toContain('\ufffd')
    }
  })

  it('is the whole text even if the tokens are not valid text', () => {
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

  it('ends before the first stop string, however tokens split it', () => {
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

describe.each(Object.entries({ ...tokenizers, ...decoders }))('text of random ids of %s', (_name, tokenizer) => {
  const whole = (tokens: number[]) =>
    tokenizer.decode(tokens, { skipSpecialTokens: true, skipUnknownTokens: true, cleanUpSpaces: false })
  /** Ids with and without text; the last ones, of words, more often than bytes. */
  const draw = (random: Random, most: number) =>
    Array.from({ length: random.integer(most) }, () => {
      const last = random.integer(3) > 0 && tokenizer.vocabSize > 20 ? tokenizer.vocabSize - 1 - random.integer(14) : undefined
      return last ?? random.integer(tokenizer.vocabSize + 2)
    })

  it('is the decoded text, whole and in pieces', () => {
    const random = new Random(4)
    for (let round = 0; round < 400; round++) {
      const tokens = draw(random, 24)
      expect(decodeGenerated(tokenizer, tokens)).toBe(whole(tokens))
      expect(streamed(tokenizer, tokens).pieces.join('')).toBe(whole(tokens))
    }
  })

  it('after a prompt is what it adds to the decoded prompt', () => {
    const random = new Random(5)
    for (let round = 0; round < 400; round++) {
      const [prompt, tokens] = [draw(random, 30), draw(random, 24)]
      const text = decodeGenerated(tokenizer, tokens, prompt)
      expect(streamed(tokenizer, tokens, [], prompt).pieces.join('')).toBe(text)
      const [before, both] = [whole(prompt), whole([...prompt, ...tokens])]
      if (both.startsWith(before)) expect(before + text).toBe(both) // else the prompt ends inside a character
    }
  })
})

describe('the space at the start of an answer', () => {
  const id = (tokenizer: Tokenizer, token: string) => tokenizer.tokenId(token)!

  it.each(['Llama 2', 'Metaspace', 'Metaspace behind byte fallback'])('is kept after a prompt: %s', (name) => {
    const tokenizer = decoders[name]!
    const [a, the, bos] = [id(tokenizer, '▁a'), id(tokenizer, '▁the'), id(tokenizer, '<s>')]
    for (const prompt of [[a], [bos, a], [a, bos], [a, ...Array(100).fill(bos)], Array(100).fill(a)]) {
      expect(decodeGenerated(tokenizer, [the, a], prompt)).toBe(' the a')
      expect(streamed(tokenizer, [the, a], [], prompt).pieces).toEqual([' the', ' a', ''])
    }
    // there is no text before it
    for (const prompt of [[], [bos], [bos, bos]])
      expect(streamed(tokenizer, [the, a], [], prompt).pieces).toEqual(['the', ' a', ''])
  })

  it.each(['Llama 2', 'Metaspace'])('is dropped after special and unknown ids without a prompt: %s', (name) => {
    const tokenizer = decoders[name]!
    const [a, the, special, unknown] = [
      id(tokenizer, '▁a'),
      id(tokenizer, '▁the'),
      id(tokenizer, '<|x|>'),
      tokenizer.vocabSize + 7,
    ]
    const tokens = [special, unknown, special, the, special, a, unknown, a]
    expect(streamed(tokenizer, tokens).pieces).toEqual(['', '', '', 'the', '', ' a', '', ' a', ''])
    expect(decodeGenerated(tokenizer, tokens)).toBe('the a a')
  })

  it('is kept after a prompt that ends with white space or byte tokens', () => {
    const all = decoders['Llama 2 that drops every space at the start']!
    const [space, a, the] = [id(all, '▁'), id(all, '▁a'), id(all, '▁the')]
    expect(decodeGenerated(all, [the], [a, ...Array(20).fill(space)])).toBe(' the')
    const bytes = (text: string) => [...Buffer.from(text)].map((byte) => byte + 1)
    expect(decodeGenerated(all, [...bytes('漢'), the], [a, ...bytes('漢'.repeat(10))])).toBe('漢 the')
    expect(streamed(all, [...bytes('漢'), the], [], [a, ...bytes('漢'.repeat(10))]).pieces).toEqual(['', '', '', '漢 the', ''])
  })

  it('is not added again after a long run of white space', () => {
    const tokenizer = decoders['Llama 2']!
    const [space, a] = [id(tokenizer, '▁'), id(tokenizer, '▁a')]
    const tokens = [a, ...Array(300).fill(space), a]
    expect(streamed(tokenizer, tokens).pieces.join('')).toBe(`a${' '.repeat(301)}a`)
  })
})

it('a character that begins in the prompt belongs to the text that completes it', () => {
  const tokenizer = Tokenizer.bytes()
  const bytes = [...Buffer.from('x漢y')]
  for (const cut of [2, 3]) {
    expect(decodeGenerated(tokenizer, bytes.slice(cut), bytes.slice(0, cut))).toBe('漢y')
    expect(streamed(tokenizer, bytes.slice(cut), [], bytes.slice(0, cut)).pieces.join('')).toBe('漢y')
  }
  expect(streamed(tokenizer, [0x79], [], bytes.slice(0, 3)).pieces.join('')).toBe('y')
})

it('a long run of invalid bytes is streamed before it ends', () => {
  const tokenizer = tokenizers.bytes!
  const stream = new TextStream(tokenizer, [])
  let text = ''
  for (let i = 0; i < 4000; i++) {
    text += stream.push(0x80)
    expect(i - text.length).toBeLessThan(20)
  }
  expect(text + stream.flush()).toBe('\ufffd'.repeat(4000))
})

const idsOfBytes = new WeakMap<Tokenizer, number[]>()

/** The id of the token that is one byte. */
function idOf(tokenizer: Tokenizer, byte: number): number {
  let ids = idsOfBytes.get(tokenizer)
  if (ids === undefined) {
    ids = []
    idsOfBytes.set(tokenizer, ids)
    for (let id = 0; id < tokenizer.vocabSize; id++) {
      const bytes = tokenizer.tokenBytes(id)
      if (bytes.length === 1) ids[bytes[0]!] ??= id
    }
  }
  const id = ids[byte]
  if (id === undefined) throw new Error(`no token is the byte ${byte}`)
  return id
}
