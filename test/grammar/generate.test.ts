// Generated texts that follow a grammar: JSON of a schema, regular expressions, rules.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { regexToEbnf } from '../../src/grammar/regex.js'
import { type GenerateOptions, type Grammar, LoopLM, Tokenizer } from '../../src/index.js'
import { refusal } from '../refusal.js'
import { ajv, generator, mixedTokenizer, randomModel, randomSchema } from './random-schemas.js'

let model: LoopLM
beforeAll(async () => {
  model = await randomModel(1, mixedTokenizer())
})
afterAll(() => model.dispose())

const one = async (options: GenerateOptions) => (await model.generate(['a'], { maxNewTokens: 600, ...options }))[0]!

describe('an answer', () => {
  it('parses and validates against its schema, for 50 random schemas and two models', async () => {
    using other = await randomModel(2, model.tokenizer!)
    const random = generator(77)
    for (let i = 0; i < 50; i++) {
      const schema = randomSchema(random)
      const check = ajv.compile(schema)
      const results = await [model, other][i % 2]!.generate(['a', 'b'], {
        maxNewTokens: 2000,
        seed: i,
        grammar: { jsonSchema: schema },
      })
      for (const { text, finishReason, tokens } of results) {
        expect(finishReason, JSON.stringify(schema)).toBe('stop')
        expect(tokens.at(-1)).toBe(256)
        expect(check(JSON.parse(text!)), `${text} of ${JSON.stringify(schema)}`).toBe(true)
      }
    }
  })

  it.each([
    '\\d{3}-[a-f]+x',
    '(yes|no)',
    '[é😀ß]{3}',
    '[^a-z]{4}',
    '.{2,5}',
    '(?:ab|c(?<name>d|e))+?f',
    '\\u{1F600}\\s\\S\\w\\W\\d\\D',
    '^(a|b)$|^z?$',
  ])('matches the regular expression %s', async (regex) => {
    for (let seed = 0; seed < 8; seed++) {
      const { text, finishReason } = await one({ seed, grammar: { regex } })
      expect(finishReason).toBe('stop')
      expect(text).toMatch(new RegExp(`^(?:${regex})$`, 'us'))
      expect(text).not.toContain('\ufffd')
    }
  })

  it('follows EBNF rules', async () => {
    const ebnf = 'root ::= "(" sum ")"\nsum ::= number ("+" number){1,3}\nnumber ::= [1-9] [0-9]{0,2}'
    for (let seed = 0; seed < 8; seed++)
      expect((await one({ seed, grammar: { ebnf } })).text).toMatch(/^\([1-9]\d{0,2}(?:\+[1-9]\d{0,2}){1,3}\)$/)
  })

  it.each([
    ['without stop strings', []],
    ['with a stop string that holds text back', ['bbc']],
    ['with a stop string at its end', ['zz', 'bbb']],
  ])('ends where the grammar does, when there is no end token, %s', async (_, stop) => {
    const options = { stop, maxNewTokens: 600, grammar: { regex: 'ab{3}' } }
    const { text, finishReason, tokens } = await one(options)
    expect([text, finishReason]).toEqual([stop.includes('bbb') ? 'a' : 'abbb', 'stop'])
    expect(tokens).not.toContain(256)
    const [pieces, reasons]: [unknown[], unknown[]] = [[], []]
    for await (const chunk of model.stream('a', options)) {
      pieces.push(chunk.text)
      reasons.push(chunk.finishReason)
    }
    expect(pieces.join('')).toBe(text)
    expect(reasons).toEqual([...tokens.slice(1).map(() => undefined), 'stop'])
  })

  it('is cut by maxNewTokens with finish reason length', async () => {
    const { finishReason, tokens } = await one({ maxNewTokens: 4, grammar: { regex: '[a-z]{40}' } })
    expect([finishReason, tokens.length]).toEqual(['length', 4])
  })

  it('does not stop at an end token before the grammar ends', async () => {
    const ends = model.tokenizer!.encode('x')
    for (let seed = 0; seed < 8; seed++)
      expect((await one({ seed, stop: ends, grammar: { regex: '[wxyz]{3}x?' } })).text).toMatch(/^[wyz]{3}x?$/)
    const needed = model.generate(['a'], { stop: ends, grammar: { regex: 'axb' } })
    expect((await refusal(() => needed)).message).toMatch(/after 1 tokens: .* or bannedTokens or stop excludes them/)
  })

  it.each(['b', 'ba'])('ends at the stop string %j inside the grammar, whether it is one token or several', async (stop) => {
    const { text, finishReason } = await one({ stop: [stop], grammar: { regex: 'x{3}bax' } })
    expect([text, finishReason]).toEqual(['xxx', 'stop'])
  })

  it('is the same alone and beside others, in a scheduler, with early exits, and streamed', async () => {
    const grammars: (Grammar | undefined)[] = [
      { regex: '[a-z]{5}\\d' },
      undefined,
      { jsonSchema: true },
      { ebnf: 'root ::= "x" [yz]+ "!"' },
    ]
    const options = (grammar: Grammar | undefined, i: number): GenerateOptions => ({
      ...{ maxNewTokens: 30, seed: i, temperature: 0.9, topP: 0.95, logprobs: 2, repetitionPenalty: 1.1 },
      ...{ exit: i % 2 === 0 ? { rule: 'fixed' } : { rule: 'entropy', threshold: 5 } },
      ...(grammar === undefined ? {} : { grammar }),
    })
    const exits = new Set<number>()
    using scheduler = model.scheduler({ maxRows: 3 })
    const requests = grammars.map((grammar, i) => scheduler.add('a', options(grammar, i)))
    for (const [i, grammar] of grammars.entries()) {
      const alone = await one(options(grammar, i))
      expect(await requests[i]!.result()).toEqual(alone)
      if (grammar !== undefined && i % 2 === 1) for (const loop of alone.loops) exits.add(loop)
      let text = ''
      for await (const chunk of model.stream('a', options(grammar, i))) text += chunk.text
      expect(text).toBe(alone.text)
    }
    expect(exits).toEqual(new Set([1, 2]))
    expect(scheduler.stats()).toMatchObject({ rows: 0, waiting: 0, cachedTokens: 0 })
  })
})

describe('a grammar', () => {
  const message = async (options: object) => (await refusal(() => one(options as GenerateOptions))).message
  it.each([
    [{}, /grammar must have one of jsonSchema, regex and ebnf, got 0/],
    [{ regex: 'a', ebnf: 'b' }, /got 2 of them/],
    [{ regexp: 'a' }, /grammar\.regexp: unknown option; did you mean/],
    [{ regex: '' }, /grammar\.regex must be a string that is not empty/],
    [{ regex: 'a(?=b)' }, /look-around or a flag at character 4/],
    [{ regex: '(' }, /"\(" without its "\)"/],
    [{ ebnf: 'root ::= b' }, /Rule "b" is not defined/],
    [{ ebnf: 'start ::= "b"' }, /root/],
    [{ jsonSchema: { not: {} } }, /jsonSchema: #\/not: this keyword is not supported in grammars/],
    [{ jsonSchema: { type: 'array', items: { multipleOf: 3 } } }, /#\/items\/multipleOf/],
    [{ jsonSchema: { $ref: '#/$defs/no' } }, /#\/\$ref: #\/\$defs\/no is not there/],
    [{ jsonSchema: { $ref: '#', type: 'object' } }, /#\/type: cannot be combined with \$ref/],
    [{ jsonSchema: { oneOf: [{ type: 'integer' }, { type: 'number' }] } }, /may allow the same value.*use anyOf/],
    [{ jsonSchema: { type: 'number', minimum: 2, maximum: 1 } }, /no number .* lies between its bounds/],
    [{ jsonSchema: { type: 'text' } }, /#\/type: must be of null, boolean.*got "text"/],
    [{ jsonSchema: false }, /allows no value/],
  ])('is rejected as %j', async (grammar, words) => {
    expect(await message({ grammar })).toMatch(words)
  })

  it.each(['a{0}', 'a{0,0}', 'a{00}', '(ab){0}?', '(a{0})(b{0})', '()*()', '(|)(|)'])(
    'writes what is always empty as one empty text, since the library reads outside its memory otherwise: %s',
    (regex) => {
      expect(regexToEbnf(regex)).toBe('""')
    },
  )

  it('is rejected with logitsProcessor, with speculate and without a tokenizer', async () => {
    const grammar = { regex: 'a' }
    expect(await message({ grammar, logitsProcessor: () => {} })).toMatch(/grammar cannot be combined with logitsProcessor/)
    expect(await message({ grammar, speculate: { loops: 1 }, exit: { rule: 'fixed' } })).toMatch(
      /speculate does not work with grammar/,
    )
    using bare = await model.clone()
    bare.tokenizer = undefined
    expect((await refusal(() => bare.generate([[1]], { grammar }))).message).toMatch(/grammar: the model has no tokenizer/)
  })

  it('fails only its own request when the vocabulary cannot write it', async () => {
    using letters = await LoopLM.create({ ...model.config, vocab_size: 30, eos_token_id: 8 }, { seed: 1 })
    letters.tokenizer = Tokenizer.characters('abcdefgh', { special: { eos: '.' } })
    using scheduler = letters.scheduler()
    const fine = scheduler.add('a', { stop: [], grammar: { regex: 'abc' } })
    const stuck = scheduler.add('a', { stop: [], grammar: { regex: 'ab[0-9]' } })
    expect((await refusal(() => stuck.result())).message).toMatch(/no allowed token can follow after 2 tokens/)
    expect((await fine.result()).text).toBe('abc')
    const banned = scheduler.add('a', { stop: [], bannedTokens: [1], grammar: { regex: 'a[bc]d' } })
    expect((await banned.result()).text).toBe('acd')
  })

  it('may be cancelled or aborted while it is compiled', async () => {
    using scheduler = model.scheduler()
    const grammar = { regex: '[a-z]{1,9}-new' }
    const cancelled = scheduler.add('a', { grammar })
    cancelled.cancel()
    expect(await cancelled.result()).toMatchObject({ tokens: [], finishReason: 'cancelled' })
    const signal = AbortSignal.timeout(1)
    expect((await refusal(() => model.generate(['a'], { grammar, maxNewTokens: 5000, signal }))).message).toMatch(/aborted/)
    expect((await scheduler.add('a', { grammar: { regex: 'k' } }).result()).text).toBe('k')
  })
})
