// node bench/quantized-error.mjs MODEL FILE…: the effect of quantization on a small byte-level model. For every form and
// group size, it prints the error of matrices and log-probabilities (root mean squares, relative to the model in bfloat16), and
// the perplexity per byte after one loop and after all. It reads 96 blocks of 256 bytes, spread over the files.
import { readFileSync } from 'node:fs'
import { LoopLM } from '../dist/src/index.js'

const [folder, ...files] = process.argv.slice(2)
if (files.length === 0) throw new Error('node bench/quantized-error.mjs MODEL FILE…')
const blocks = 96
const length = 256
const bytes = Buffer.concat(files.map((file) => readFileSync(file)))
if (bytes.length < blocks * length)
  throw new Error(`${blocks} blocks need ${blocks * length} bytes, the files have ${bytes.length}`)
const stride = Math.floor((bytes.length - length) / (blocks - 1))
const sequences = Array.from({ length: blocks }, (_, i) => Array.from(bytes.subarray(i * stride, i * stride + length)))

const rms = (values) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length)

/** Matrices of the model by name, and log-probabilities of the text after one loop and after all. */
async function measure(options) {
  const model = await LoopLM.fromPretrained(folder, { dtype: 'bfloat16', ...options })
  try {
    const names = model.parameters().flatMap(({ name }) => (name.includes('_proj') ? [name] : []))
    const matrices = new Map()
    for (const name of names) matrices.set(name, await model.getParameter(name))
    const loops = model.config.total_ut_steps
    const { logprobs } = await model.score(sequences)
    const ofLoop = (t) =>
      logprobs.flatMap((own) => Array.from(own).slice((t * own.length) / loops, ((t + 1) * own.length) / loops))
    return { matrices, first: ofLoop(0), last: ofLoop(loops - 1) }
  } finally {
    model.dispose()
  }
}

const perplexity = (logprobs) => Math.exp(-logprobs.reduce((sum, value) => sum + value, 0) / logprobs.length).toFixed(3)
const difference = (a, b) => rms(a.map((value, i) => value - b[i]))
const exact = await measure({})
const show = (...cells) => console.log(`| ${cells.join(' | ')} |`)
show('weights', 'groups', 'error of weights', 'log-probabilities, 1 loop', 'all loops', 'perplexity, 1 loop', 'all loops')
show('bfloat16', '', '', '', '', perplexity(exact.first), perplexity(exact.last))
const forms = [['int8', 64], ...['int4', 'int4-asymmetric'].flatMap((form) => [128, 64, 32].map((group) => [form, group]))]
for (const [quantize, groupSize] of forms) {
  const made = await measure({ quantize, groupSize })
  const [errors, weights] = [[], []]
  for (const [name, values] of exact.matrices) {
    const own = made.matrices.get(name)
    for (let i = 0; i < values.length; i++) {
      errors.push(own[i] - values[i])
      weights.push(values[i])
    }
  }
  const share = `${((100 * rms(errors)) / rms(weights)).toFixed(2)} %`
  const [one, all] = [difference(made.first, exact.first), difference(made.last, exact.last)]
  show(quantize, groupSize, share, one.toFixed(3), all.toFixed(3), perplexity(made.first), perplexity(made.last))
}
