// node bench/cache-error.mjs MODEL FILE…: what a cache in fewer bits does to a model of bytes in bfloat16. The files are decoded byte by
// byte, in contexts of 512, through each type of cache. For one loop, two and all: the divergence of the next byte's distribution from
// what cache 'model' gives, Σ p log(p / q), and the perplexity per byte.
import { readFileSync } from 'node:fs'
import { LoopLM } from '../dist/src/index.js'
import { cacheTypes } from '../dist/src/model/cache-type.js'

const [folder, ...files] = process.argv.slice(2)
if (files.length === 0) throw new Error('node bench/cache-error.mjs MODEL FILE…')
const length = 512
const bytes = Buffer.concat(files.map((file) => readFileSync(file)))
const sequences = []
for (let i = 0; i + length <= bytes.length; i += length) sequences.push([...bytes.subarray(i, i + length)])
if (sequences.length === 0) throw new Error(`the files have ${bytes.length} bytes; a context has ${length}`)
const model = await LoopLM.fromPretrained(folder, { dtype: 'bfloat16' })
const V = model.config.vocab_size

/** Log-probabilities [sequence, position, V] of the text after each byte but the last. */
async function measure(loops, cacheType) {
  const all = sequences.map(() => new Float32Array((length - 1) * V))
  const force = (logits, { tokens, index }) => {
    const most = logits.reduce((a, b) => Math.max(a, b))
    const lse = most + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - most), 0))
    for (let v = 0; v < V; v++) all[index][tokens.length * V + v] = logits[v] - lse
    const next = sequences[index][tokens.length + 1]
    for (let v = 0; v < V; v++) if (v !== next) logits[v] = -Infinity
  }
  const options = { maxNewTokens: length - 1, temperature: 0, stop: [], exit: { rule: 'fixed' }, logitsProcessor: force }
  await model.generate(
    sequences.map(([first]) => [first]),
    { ...options, loops, cacheType },
  )
  return all
}

const columns = [...new Set([1, 2, model.config.total_ut_steps])]
const exact = []
console.log(`${sequences.length * (length - 1)} predictions; loops ${columns.join(', ')}`)
for (const type of cacheTypes) {
  const cells = [type]
  for (const [column, loops] of columns.entries()) {
    const made = await measure(loops, type)
    exact[column] ??= made
    let [divergence, loss, predictions] = [0, 0, 0]
    for (const [i, own] of made.entries())
      for (let j = 0; j + 1 < length; j++, predictions++) {
        loss -= own[j * V + sequences[i][j + 1]]
        for (let at = j * V; at < (j + 1) * V; at++) {
          const p = exact[column][i][at]
          divergence += Math.exp(p) * (p - own[at])
        }
      }
    cells.push((divergence / predictions).toExponential(2), Math.exp(loss / predictions).toFixed(3))
  }
  console.log(`| ${cells.join(' | ')} |`)
}
model.dispose()
