// The cost of a grammar: CPU time per token of 8 concurrent sequences with a vocabulary of 49152, alternating with and without
// a grammar. npm install --no-save gpt-tokenizer && node bench/grammar.mjs [hidden] [layers]. It measures the process's user
// and system time, so that other programs do not count.
import { LoopLM, Tokenizer } from '../dist/src/index.js'

const vocabulary = 49152
const [hidden = 512, layers = 6] = process.argv.slice(2).map(Number)

/** The bytes, then the tokens of a vocabulary that was learned from text: GPT-2's, from a package that contains it. */
async function tokenizer() {
  const json = JSON.parse(Tokenizer.bytes({ special: { eos: '<eos>' } }).files()[0][1])
  const spelling = Object.fromEntries(Object.entries(json.model.vocab).map(([token, id]) => [id, token]))
  const { default: learnt } = await import(process.env.GPT2_RANKS ?? 'gpt-tokenizer/bpeRanks/r50k_base')
  let next = 257
  for (const piece of learnt) {
    const bytes = typeof piece === 'string' ? new TextEncoder().encode(piece) : Uint8Array.from(piece ?? [])
    const token = Array.from(bytes, (byte) => spelling[byte]).join('')
    if (bytes.length > 0 && next < vocabulary && !Object.hasOwn(json.model.vocab, token)) json.model.vocab[token] = next++
  }
  return new Tokenizer(json, { eos_token: '<eos>' })
}

const config = { vocab_size: vocabulary, hidden_size: hidden, intermediate_size: hidden * 3, num_hidden_layers: layers }
const model = await LoopLM.create(
  { ...config, num_attention_heads: 8, total_ut_steps: 4, eos_token_id: 256 },
  { dtype: 'bfloat16' },
)
model.tokenizer = await tokenizer()
const prompts = Array(8).fill('Answer: ')
const item = {
  type: 'object',
  properties: { name: { type: 'string', minLength: 3, maxLength: 12 }, n: { type: 'integer' } },
  required: ['name', 'n'],
}
const grammars = {
  'a JSON Schema': { jsonSchema: { type: 'array', items: item, minItems: 40 } },
  'a regular expression': { regex: '[a-z ]{400}' },
}

/** Milliseconds of CPU per token. */
async function cost(grammar) {
  const before = process.cpuUsage()
  const options = { maxNewTokens: 48, seed: 1, exit: { rule: 'fixed' }, stop: [], ...(grammar ? { grammar } : {}) }
  const results = await model.generate(prompts, options)
  const { user, system } = process.cpuUsage(before)
  return (user + system) / 1000 / results.reduce((sum, { tokens }) => sum + tokens.length, 0)
}

for (const [name, grammar] of Object.entries(grammars)) {
  await cost(grammar) // compiles the grammar
  const pairs = []
  for (let i = 0; i < 5; i++) pairs.push([await cost(undefined), await cost(grammar)])
  const median = (all) => all.sort((a, b) => a - b)[Math.floor(all.length / 2)]
  const [plain, bound] = [0, 1].map((k) => median(pairs.map((pair) => pair[k])))
  const ratio = median(pairs.map(([a, b]) => b / a))
  console.log(
    `${name}: ${plain.toFixed(2)} ms of CPU per token without, ${bound.toFixed(2)} with, ${((ratio - 1) * 100).toFixed(1)} % more (median of 5 pairs)`,
  )
}
