// Grammars: 1000 random JSON Schemas, each answered by a random model; every answer parses and validates.
import { expect, it } from 'vitest'
import { ajv, generator, mixedTokenizer, randomModel, randomSchema } from '../grammar/random-schemas.js'

it('answers of ten random models validate against 1000 random schemas', { timeout: 1_800_000 }, async () => {
  const random = generator(2026)
  const tokenizer = mixedTokenizer()
  for (let seed = 0; seed < 10; seed++) {
    using model = await randomModel(seed, tokenizer)
    for (let i = 0; i < 100; i++) {
      const schema = randomSchema(random)
      const grammar = { jsonSchema: schema }
      const [result] = await model.generate(['a'], { maxNewTokens: 4000, seed: i, grammar, temperature: 1 })
      const { text, finishReason } = result!
      expect(finishReason, JSON.stringify(schema)).toBe('stop')
      expect(ajv.compile(schema)(JSON.parse(text!)), `${text} of ${JSON.stringify(schema)}`).toBe(true)
    }
  }
})
