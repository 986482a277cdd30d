import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Tokenizer } from '../../src/data/tokenizer.js'
import { LoopLMError } from '../../src/errors.js'
import { refusal } from '../refusal.js'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'looplm-tokenizer-'))
})
afterAll(() => rm(folder, { recursive: true }))

async function saved(tokenizer: Tokenizer, name: string) {
  const path = join(folder, name)
  await tokenizer.save(path)
  return { path, json: JSON.parse(await readFile(join(path, 'tokenizer.json'), 'utf8')) }
}

function errorOf(action: () => unknown): LoopLMError {
  try {
    action()
  } catch (error) {
    expect(error).toBeInstanceOf(LoopLMError)
    return error as LoopLMError
  }
  throw new Error('expected an error')
}

describe('a character tokenizer', () => {
  const tokenizer = Tokenizer.characters('0123456789+=')

  it('gives the i-th character the id i', () => {
    expect(tokenizer.vocabSize).toBe(12)
    expect(tokenizer.encode('0123456789+=')).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    expect(tokenizer.encode('12+30=')).toEqual([1, 2, 10, 3, 0, 11])
    expect(tokenizer.tokenId('+')).toBe(10)
    expect(tokenizer.tokenId('x')).toBeUndefined()
  })

  it('decodes what it encodes, also characters outside the basic plane, spaces and line breaks', () => {
    const alphabet = '漢字é😀 \n\t.,!?\'"\\{}\u{10ffff}'
    const unicode = Tokenizer.characters(alphabet)
    const text = `😀😀 .\n漢 ,é字\t!\u{10ffff}?\\'"{}`
    expect(unicode.encode(text)).toHaveLength(Array.from(text).length)
    expect(unicode.decode(unicode.encode(text))).toBe(text)
  })

  it('decodes typed arrays and empty lists', () => {
    expect(tokenizer.decode(Int32Array.of(4, 2))).toBe('42')
    expect(tokenizer.decode([])).toBe('')
    expect(tokenizer.encode('')).toEqual([])
  })

  it('rejects an unknown character, naming it, its position and the alphabet', () => {
    const error = errorOf(() => tokenizer.encode('12+x='))
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toContain('"x" (U+0078) at position 3')
    expect(error.message).toContain('0123456789+=')
    expect(errorOf(() => tokenizer.encode('1😀')).message).toContain('U+1F600')
  })

  it('rejects an unknown id and names it', () => {
    for (const id of [12, -1, 0.5])
      expect(errorOf(() => tokenizer.decode([1, id]))).toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: `Tokenizer.decode: no token has the id ${id}; the vocabulary has 12 ids`,
      })
  })

  it('puts special tokens after the alphabet and skips them on request', () => {
    const special = Tokenizer.characters('ab', { special: { bos: '<s>', eos: '</s>', pad: '</s>' } })
    expect([special.bosTokenId, special.eosTokenId, special.padTokenId, special.vocabSize]).toEqual([2, 3, 3, 4])
    expect(special.encode('<s>ab</s>')).toEqual([2, 0, 1, 3])
    expect(special.decode([2, 0, 1, 3])).toBe('<s>ab</s>')
    expect(special.decode([2, 0, 1, 3], { skipSpecialTokens: true })).toBe('ab')
    expect([tokenizer.bosTokenId, tokenizer.eosTokenId, tokenizer.padTokenId]).toEqual([undefined, undefined, undefined])
  })

  it('rejects an empty alphabet, a repeated character, half a surrogate pair and wrong special tokens', () => {
    expect(errorOf(() => Tokenizer.characters('')).message).toContain('empty')
    expect(errorOf(() => Tokenizer.characters('aba')).message).toContain('"a" occurs twice')
    expect(errorOf(() => Tokenizer.characters('a\ud83d')).message).toContain('surrogate')
    const wrong = (options: object) => errorOf(() => Tokenizer.characters('ab', options)).message
    expect(wrong({ special: { eos: 'b' } })).toMatch(/special\.eos "b" is already a token; use another string, such as "<eos>"/)
    expect(wrong({ special: { eos: '' } })).toMatch(/special\.eos must be a string of at least one character, got ''/)
    expect(wrong({ specials: { eos: '<e>' } })).toMatch(/specials: unknown option; did you mean special\?/)
    expect(wrong({ special: { eoss: '<e>' } })).toMatch(/special\.eoss: unknown option; did you mean special\.eos\?/)
    expect(errorOf(() => Tokenizer.bytes({ specials: {} } as object)).message).toMatch(/did you mean special\?/)
  })

  it('saves the fields that tokenizers of Python requires', async () => {
    const { json } = await saved(Tokenizer.characters('ab', { special: { eos: '<eos>' } }), 'fields')
    expect(json).toEqual({
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: [
        { id: 2, content: '<eos>', single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
      ],
      normalizer: null,
      pre_tokenizer: { type: 'Split', pattern: { Regex: '[\\s\\S]' }, behavior: 'Isolated', invert: false },
      post_processor: null,
      decoder: { type: 'Fuse' },
      model: { type: 'WordLevel', vocab: { a: 0, b: 1, '<eos>': 2 }, unk_token: '<unk>' },
    })
  })
})

describe('a byte tokenizer', () => {
  const tokenizer = Tokenizer.bytes({ special: { eos: '<eos>' } })

  it('gives every byte its own value as id', () => {
    expect(tokenizer.vocabSize).toBe(257)
    expect(tokenizer.eosTokenId).toBe(256)
    for (const text of ['plain text, 123.', ' leading and  double ', 'é漢😀', '\n\t\r\0\u007f\u00ad\u00a0', "it's . , ! n't"]) {
      expect(tokenizer.encode(text)).toEqual([...Buffer.from(text, 'utf8')])
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text)
    }
  })

  it('decodes every sequence of bytes as Node does', () => {
    const every = Array.from({ length: 256 }, (_, byte) => byte)
    expect(tokenizer.decode(every)).toBe(Buffer.from(every).toString('utf8'))
    expect(tokenizer.decode([0xe6, 0xbc])).toBe('\ufffd')
  })

  it('saves the byte-level alphabet of GPT-2', async () => {
    const { json } = await saved(tokenizer, 'bytes')
    const { vocab, merges, type } = json.model
    expect([type, merges, Object.keys(vocab).length]).toEqual(['BPE', [], 257])
    // spot checks against GPT-2's vocab.json: Ġ is the space, Ċ the line feed, ł byte 0xa0, Ń the soft hyphen
    const bytes = [...'!ĠĊłŃÿĀ'].map((character) => vocab[character])
    expect(bytes).toEqual([0x21, 0x20, 0x0a, 0xa0, 0xad, 0xff, 0])
    expect(json.pre_tokenizer).toMatchObject({ type: 'ByteLevel', add_prefix_space: false, use_regex: false })
    expect(json.decoder.type).toBe('ByteLevel')
    expect(json.added_tokens[0]).toMatchObject({ id: 256, content: '<eos>', special: true })
  })
})

describe('saving and loading', () => {
  it('gives back the same tokenizer and leaves no temporary file', async () => {
    for (const [name, tokenizer] of [
      ['characters', Tokenizer.characters('abc é', { special: { eos: '<eos>', pad: '<pad>' } })],
      ['raw', Tokenizer.bytes({ special: { bos: '<bos>' } })],
    ] as const) {
      const { path } = await saved(tokenizer, name)
      const loaded = await Tokenizer.fromPretrained(path)
      expect((await readdir(path)).sort()).toEqual(['tokenizer.json', 'tokenizer_config.json'])
      expect(loaded.encode('abc é')).toEqual(tokenizer.encode('abc é'))
      expect(loaded.vocabSize).toBe(tokenizer.vocabSize)
      expect([loaded.bosTokenId, loaded.eosTokenId, loaded.padTokenId]).toEqual([
        tokenizer.bosTokenId,
        tokenizer.eosTokenId,
        tokenizer.padTokenId,
      ])
    }
  })

  it('keeps every field of a foreign tokenizer', async () => {
    const { path, json } = await saved(Tokenizer.bytes(), 'foreign')
    json.truncation = { max_length: 8, strategy: 'LongestFirst', stride: 0, direction: 'Right' }
    const config = { eos_token: { content: '!', lstrip: false }, chat_template: '{{ messages }}', bos_token: null }
    await writeFile(join(path, 'tokenizer.json'), JSON.stringify(json))
    await writeFile(join(path, 'tokenizer_config.json'), JSON.stringify(config))
    const loaded = await Tokenizer.fromPretrained(path)
    expect([loaded.eosTokenId, loaded.bosTokenId]).toEqual([33, undefined])
    expect(loaded.config.chat_template).toBe('{{ messages }}')
    const again = await saved(loaded, 'foreign-again')
    expect(again.json).toEqual(json)
    expect(JSON.parse(await readFile(join(again.path, 'tokenizer_config.json'), 'utf8'))).toEqual(config)
  })

  it('reads a single file, with special tokens set by the caller', async () => {
    const { path } = await saved(Tokenizer.characters('ab', { special: { eos: '<eos>' } }), 'alone')
    const file = join(path, 'tokenizer.json')
    expect((await Tokenizer.fromFile(file)).eosTokenId).toBeUndefined()
    expect((await Tokenizer.fromFile(file, { eos_token: '<eos>' })).eosTokenId).toBe(2)
  })

  it('cleans up spaces as transformers does, and by default not for BPE', async () => {
    const { json } = await saved(Tokenizer.bytes(), 'spaces')
    const clean = { clean_up_tokenization_spaces: true }
    const bytes = [...Buffer.from("a , b . it 's")]
    expect(new Tokenizer(json).decode(bytes)).toBe("a , b . it 's")
    expect(new Tokenizer(json, clean).decode(bytes)).toBe("a , b . it 's")
    expect(new Tokenizer(json).decode(bytes, { cleanUpSpaces: true })).toBe("a , b . it 's")
    const evenBpe = { ...clean, clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output: true }
    expect(new Tokenizer(json, evenBpe).decode(bytes)).toBe("a, b. it's")

    const vocab = Object.fromEntries(['a', ',', 'b', '.', 'it', "'s", 'do', 'not', "n't", "'"].map((token, id) => [token, id]))
    const words = { model: { type: 'WordLevel', vocab, unk_token: 'a' } }
    const ids = [0, 1, 2, 3, 4, 5]
    expect(new Tokenizer(words).decode(ids)).toBe("a , b . it 's")
    expect(new Tokenizer(words, clean).decode(ids)).toBe("a, b. it's")
    expect(new Tokenizer(words, clean).decode(ids, { cleanUpSpaces: false })).toBe("a , b . it 's")
    expect(new Tokenizer(words, clean).decode([6, 7, 8, 9, 0])).toBe("do notn't'a") // unlike the decoders' cleaning, "do not" stays
  })

  it('applies the template of the post-processor unless addSpecialTokens is false', async () => {
    const { json } = await saved(Tokenizer.characters('ab', { special: { bos: '<s>' } }), 'template')
    json.post_processor = {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [],
      special_tokens: { '<s>': { id: '<s>', ids: [2], tokens: ['<s>'] } },
    }
    const tokenizer = new Tokenizer(json)
    expect(tokenizer.encode('ab')).toEqual([2, 0, 1])
    expect(tokenizer.encode('ab', { addSpecialTokens: false })).toEqual([0, 1])
  })

  it('uses the unknown token of a tokenizer that has one', async () => {
    const { json } = await saved(Tokenizer.characters('ab'), 'unknown')
    json.model.vocab['<unk>'] = 2
    expect(new Tokenizer(json).encode('axb')).toEqual([0, 2, 1])
  })
})

const template = (single: unknown) => ({ post_processor: { type: 'TemplateProcessing', single, special_tokens: {} } })
const splitting = (pattern: object, behavior = 'Isolated') => ({
  pre_tokenizer: { type: 'Split', pattern, behavior, invert: false },
})

describe('a bad tokenizer file', () => {
  const good = { type: 'WordLevel', vocab: { a: 0, b: 1 }, unk_token: '<unk>' }
  const cases: [what: string, content: unknown, message: RegExp][] = [
    ['an array', [], /must hold a JSON object/],
    ['no model', {}, /"model" must be an object/],
    ['an unknown model', { model: { type: 'Magic', vocab: {} } }, /"model.type".*"Magic"/],
    ['no vocabulary', { model: { type: 'BPE', merges: [] } }, /"model.vocab"/],
    ['an empty vocabulary', { model: { ...good, vocab: {} } }, /"model.vocab" has no tokens/],
    ['no merges', { model: { type: 'BPE', vocab: { a: 0 } } }, /"model.merges"/],
    ['a negative id', { model: { ...good, vocab: { a: -1 } } }, /"model.vocab.a".*-1/],
    ['a huge id', { model: { ...good, vocab: { a: 4e9 } } }, /"model.vocab.a".*4000000000/],
    ['a text as id', { model: { ...good, vocab: { a: '0' } } }, /"model.vocab.a".*"0"/],
    ['an id given twice', { model: { ...good, vocab: { a: 0, b: 0 } } }, /"model.vocab.b" has the id 0/],
    ['a bad Unigram entry', { model: { type: 'Unigram', vocab: [['a', 0], 'b'] } }, /"model.vocab.1"/],
    ['added tokens that are no list', { model: good, added_tokens: {} }, /"added_tokens" must be an array/],
    [
      'an added token without content',
      { model: good, added_tokens: [{ id: 2 }] },
      /"added_tokens.0.content" must be a string .*, got undefined/,
    ],
    ['an added token without id', { model: good, added_tokens: [{ content: 'c' }] }, /"added_tokens.0.id"/],
    [
      'an unknown pre-tokenizer',
      { model: good, pre_tokenizer: { type: 'Magic' } },
      /field "pre_tokenizer.type" must be one of .*, got 'Magic'/,
    ],
  ]
  it.each(cases)('with %s is rejected, naming file and field', async (_what, content, message) => {
    const path = join(folder, 'bad.json')
    await writeFile(path, JSON.stringify(content))
    const failure = expect(Tokenizer.fromFile(path)).rejects
    await failure.toMatchObject({ code: 'INVALID_FILE', message: expect.stringContaining(path) })
    await expect(Tokenizer.fromFile(path)).rejects.toThrow(message)
  })

  it('that is missing, a folder or not JSON is rejected', async () => {
    await expect(Tokenizer.fromFile(join(folder, 'none.json'))).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(Tokenizer.fromFile(folder)).rejects.toMatchObject({ code: 'INVALID_FILE' })
    await writeFile(join(folder, 'cut.json'), '{"model":')
    await expect(Tokenizer.fromFile(join(folder, 'cut.json'))).rejects.toThrow(/cut\.json is not JSON/)
  })

  it.each<[what: string, parts: object, message: RegExp]>([
    ['a template that is no list', template(5), /"post_processor.single" must be an array, got 5/],
    [
      'a template with an unknown token',
      template([{ SpecialToken: { id: '<x>' } }]),
      /"post_processor.single.0.SpecialToken.id" "<x>" is not in/,
    ],
    ['a template of a second text', template([{ Sequence: { id: 'B' } }]), /"post_processor.single" has the sequence "B"/],
    [
      'a pair for a token that is none',
      { post_processor: { type: 'BertProcessing', cls: '<s>', sep: ['a', 0] } },
      /"post_processor.cls" must be/,
    ],
    [
      'an unknown behavior',
      splitting({ String: 'a' }, 'Merged'),
      /"pre_tokenizer.behavior" must be one of Removed, .*, got 'Merged'/,
    ],
    ['a bad regular expression', splitting({ Regex: '(' }), /"pre_tokenizer.pattern.Regex" "\(" cannot be carried out: /],
    ['\\G in one', splitting({ Regex: '\\Ga' }), /"pre_tokenizer.pattern.Regex" .* cannot be carried out: \\G is not supported/],
    ['a pattern that is neither', splitting({ Glob: '*' }), /"pre_tokenizer.pattern.Regex" must be a string/],
    [
      'ss without case',
      splitting({ Regex: '(?i:ss)' }),
      /pattern.Regex" .* cannot be carried out: "ss", which equals other numbers of characters/,
    ],
    [
      'a property without case',
      splitting({ Regex: '(?i:\\p{Lu})' }),
      /cannot be carried out: \\p\{Lu\} where case is ignored is not supported/,
    ],
    [
      'a range without case',
      splitting({ Regex: '(?i:[a-z])' }),
      /cannot be carried out: a range of letters where case is ignored/,
    ],
    ['é without case', splitting({ Regex: 'x(?i:é)' }), /cannot be carried out: é where case is ignored/],
    ['flags in the middle', splitting({ Regex: 'a(?i)b' }), /cannot be carried out: \(\?i\) behind the start is not supported/],
    [
      'a loop over nothing',
      splitting({ Regex: '(?:a*|b)+' }),
      /cannot be carried out: the repeated group \(a\*\|b\), which may match nothing/,
    ],
    [
      'an old property',
      splitting({ Regex: '\\p{Extended_Pictographic}' }),
      /cannot be carried out: \\p\{Extended_Pictographic\} is not/,
    ],
    [
      'scripts',
      { pre_tokenizer: { type: 'UnicodeScripts' } },
      /"pre_tokenizer.type" is "UnicodeScripts", which is not supported/,
    ],
    [
      'pieces of no length',
      { pre_tokenizer: { type: 'FixedLength', length: 0 } },
      /"pre_tokenizer.length" must be an integer of at least 1, got 0/,
    ],
    [
      'a mark of two characters',
      { decoder: { type: 'Metaspace', replacement: '▁▁' } },
      /"decoder.replacement" must be a string of one character/,
    ],
    [
      'schemes that differ',
      { pre_tokenizer: { type: 'Metaspace', replacement: '▁', add_prefix_space: false } },
      /"pre_tokenizer.add_prefix_space"/,
    ],
    [
      'a normalizer that is unknown inside a sequence',
      { normalizer: { type: 'Sequence', normalizers: [{ type: 'NFE' }] } },
      /"normalizer.normalizers.0.type"/,
    ],
    [
      'a character map that is cut',
      { normalizer: { type: 'Precompiled', precompiled_charsmap: 'AAAB' } },
      /"normalizer.precompiled_charsmap" is not a/,
    ],
    ['an unknown decoder', { decoder: { type: 'Magic' } }, /"decoder.type" must be one of .*, got 'Magic'/],
    [
      'random merges',
      { model: { type: 'BPE', vocab: { a: 0 }, merges: [], dropout: 0.1 } },
      /"model.dropout" is 0.1: random merges are not supported/,
    ],
    [
      'ids that Python does not read',
      { added_tokens: [{ id: 7, content: '<x>' }] },
      /"added_tokens.0.id" is 7, but .* gives "<x>" the id 2/,
    ],
    [
      'a flag that is none',
      { added_tokens: [{ id: 2, content: '<x>', lstrip: 1 }] },
      /"added_tokens.0.lstrip" must be true or false/,
    ],
    ['another version', { version: '2.0' }, /"version" must be "1.0", got "2.0"/],
  ])('with %s is rejected, naming the field', async (_what, parts, message) => {
    const error = await refusal(() => new Tokenizer({ model: good, ...parts }, {}, 'some/tokenizer.json'))
    expect(error.message).toMatch(/some\/tokenizer\.json: field /)
    expect(error.message).toMatch(message)
  })

  it('with truncation or padding fails only where Python would change the tokens', async () => {
    const { json } = await saved(Tokenizer.bytes(), 'truncation')
    const encode = async (parts: object, text: string) => {
      const tokenizer = new Tokenizer({ ...json, ...parts }, {}, 'some/tokenizer.json')
      try {
        return tokenizer.encode(text).length
      } catch (error) {
        expect((error as LoopLMError).code).toBe('UNSUPPORTED')
        return (error as LoopLMError).message
      }
    }
    const truncation = { max_length: 3, stride: 0, strategy: 'LongestFirst', direction: 'Right' }
    expect(await encode({ truncation }, 'abc')).toBe(3)
    expect(await encode({ truncation }, 'abcd')).toMatch(/field "truncation" cuts this text of 4 tokens to 3 in Python/)
    const padding = {
      strategy: { Fixed: 4 },
      direction: 'Right',
      pad_to_multiple_of: null,
      pad_id: 0,
      pad_type_id: 0,
      pad_token: 'a',
    }
    expect(await encode({ padding }, 'abcd')).toBe(4)
    expect(await encode({ padding }, 'abc')).toMatch(/field "padding" fills this text of 3 tokens up to 4/)
    expect(await encode({ padding: { ...padding, strategy: 'BatchLongest' } }, 'abc')).toBe(3)
    expect(await encode({ padding: { ...padding, strategy: 'BatchLongest', pad_to_multiple_of: 8 } }, 'abc')).toMatch(/up to 8/)
  })

  it('is rejected for a configured token that the vocabulary lacks', async () => {
    const path = join(folder, 'lacking')
    await mkdir(path)
    await writeFile(join(path, 'tokenizer.json'), JSON.stringify({ model: good }))
    await writeFile(join(path, 'tokenizer_config.json'), JSON.stringify({ eos_token: '</s>' }))
    await expect(Tokenizer.fromPretrained(path)).rejects.toThrow(/eos_token "<\/s>".*not in the vocabulary/)
    await writeFile(join(path, 'tokenizer_config.json'), '[]')
    await expect(Tokenizer.fromPretrained(path)).rejects.toThrow(/tokenizer_config\.json must hold a JSON object/)
  })
})

describe('a wrong argument of a tokenizer', () => {
  const tokenizer = Tokenizer.bytes()
  const messages = [{ role: 'user', content: 'Hi' }]

  it.each<[what: string, value: unknown]>([
    ['an object', {}],
    ['nothing', undefined],
    ['null', null],
    ['a number', 12],
    ['a list of texts', ['a', 'b']],
    ['a conversation', messages],
    ['bytes', new Uint8Array(2)],
    ['a String object', Object('a')],
  ])('is rejected by encode: %s', async (_what, value) => {
    for (const encode of [() => tokenizer.encode(value as string), () => tokenizer.encodeAsync(value as string)]) {
      const error = await refusal(encode)
      expect(error.code).toBe('INVALID_ARGUMENT')
      expect(error.message).toMatch(/^Tokenizer\.encode(Async)?: text must be a string, got /)
    }
  })

  it.each<[what: string, value: unknown, message: RegExp]>([
    ['text', '12', /ids must be an array of token ids, got '12'/],
    ['null', null, /ids must be an array of token ids, got null/],
    ['one id', 65, /ids must be an array of token ids, got 65/],
    ['an object', {}, /ids must be an array of token ids/],
    ['a set', new Set([65]), /ids must be an array of token ids/],
    ['texts', ['65'], /ids\[0\] must be a token id, got '65'/],
    ['lists of ids', [65, [66]], /ids\[1\] must be a token id, got /],
    ['64-bit integers', BigInt64Array.of(65n), /ids\[0\] must be a token id, got /],
    ['a hole', Array(1), /ids\[0\] must be a token id, got undefined/],
  ])('is rejected by decode: %s', async (_what, value, message) => {
    const error = await refusal(() => tokenizer.decode(value as number[]))
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(message)
  })

  it('is rejected among the options', async () => {
    const wrong: (() => unknown)[] = [
      () => tokenizer.encode('a', { addSpecialToken: false } as never),
      () => tokenizer.encode('a', { addSpecialTokens: 'no' } as never),
      () => tokenizer.decode([65], { skipSpecialTokens: 1 } as never),
      () => tokenizer.decode([65], true as never),
    ]
    for (const action of wrong) expect((await refusal(action)).code).toBe('INVALID_ARGUMENT')
  })

  it('is encoded as U+FFFD if it is half a surrogate pair', () => {
    expect(tokenizer.encode('a\ud83d')).toEqual([0x61, 0xef, 0xbf, 0xbd])
  })
})
