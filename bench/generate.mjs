// node bench/generate.mjs PYTHON: compares the row "sampling 512 prompts" with Hugging Face's generate, in tokens per second of
// CPU time on one thread. Runs alternate. PYTHON must have torch and transformers. There the looped model is unrolled to T · L
// Llama blocks, which lack Ouro's second norms. For AVX2 only, set LOOPLM_CPU_ISA=avx2 ATEN_CPU_CAPABILITY=avx2
// ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2.
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { d128 } from '../dist/bench/models.js'
import { LoopLM } from '../dist/src/index.js'

const [python] = process.argv.slice(2)
if (python === undefined) throw new Error('node bench/generate.mjs PYTHON, a Python with torch and transformers')
const peer = fileURLToPath(new URL('./generate.py', import.meta.url))
const model = await LoopLM.create(d128, { seed: 1, threads: 1 })
const prompts = Array.from({ length: 512 }, (_, i) => Array.from({ length: 16 }, (_, j) => (i * 31 + j * 17 + i * j) % 128))
const seconds = () => process.cpuUsage().user / 1e6 + process.cpuUsage().system / 1e6
async function rate(seed) {
  const begin = seconds()
  await model.generate(prompts, { maxNewTokens: 24, temperature: 1, seed, stop: [] })
  return (512 * 24) / (seconds() - begin)
}
await rate(0)
const middle = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]
const [own, other, products] = [[], [], []]
for (let round = 1; round <= 3; round++) {
  for (let i = 0; i < 3; i++) own.push(await rate(3 * round + i))
  const { tokens, gflops } = JSON.parse(execFileSync(python, [peer], { encoding: 'utf8' }))
  other.push(tokens)
  products.push(gflops)
}
const [looplm, huggingFace] = [own, other].map(middle)
console.log(`looplm ${looplm.toFixed(0)}, generate ${huggingFace.toFixed(0)} tokens/s, ${(looplm / huggingFace).toFixed(2)} ×`)
console.log(`torch's product of 2048 × 2048: ${middle(products).toFixed(0)} GFLOP/s`)
