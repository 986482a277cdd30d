// What a step of many GPUs takes, from the sizes of the model, the bytes that the engine sends and the rates that the page states. It measures
// nothing: `npm run simulate` writes docs/parallel-simulation.md, and a test compares the page with what this file makes.
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { runsAsHook } from './npm-hook.mjs'

/** Sizes of Ouro-1.4B. */
const model = { vocabulary: 49152, hidden: 2048, intermediate: 5632, layers: 24, loops: 4 }
const blocks = model.layers * (4 * model.hidden ** 2 + 3 * model.hidden * model.intermediate)
const table = model.vocabulary * model.hidden // the embedding, and as much again the head
export const parameters = blocks + 2 * table

/** Rates that nobody has measured with looplm; each is a published figure of the hardware times a share that is assumed. */
export const assumed = {
  compute: 0.35 * 989e12, // FLOP/s of bfloat16 products
  memory: 0.8 * 3.35e12, // bytes/s
  link: 0.7 * 450e9, // bytes/s between GPUs of one machine, each way
  network: 0.8 * 50e9, // bytes/s of a GPU's own 400 Gb/s adapter
  message: 8e-6, // seconds that a message costs its sender
  imbalance: 1.03, // tokens of the busiest GPU over the mean
  machine: 8, // GPUs
  microBatch: 8192, // tokens
}

// Partition of native/engine/data_parallel.cpp: elements of a bucket.
const bucket = (gpus) => Math.max(2 ** 20, 2 ** 16 * gpus)

/** Seconds in which every GPU sends `bytes`, a share to each of the others, and what its messages cost. */
function exchange(bytes, gpus, elements, a) {
  const near = (bytes * (Math.min(gpus, a.machine) - 1)) / gpus
  const far = (bytes * Math.max(0, gpus - a.machine)) / gpus
  const messages = Math.ceil(elements / bucket(gpus)) * (gpus - 1)
  return Math.max(near / a.link, far / a.network) + messages * a.message
}

/**
 * One update, without sampling.
 *
 * @param tokens of one GPU
 * @returns seconds by part
 */
export function step(gpus, tokens, a = assumed) {
  const work = 6 * (blocks + table) * model.loops * tokens
  const compute = (work * (gpus > 1 ? a.imbalance : 1)) / a.compute
  const gradients = gpus > 1 ? exchange(4 * parameters, gpus, parameters, a) : 0
  // The way back through the first loop of the last micro-batch: two thirds of its work. The embedding's share is final behind it.
  const window = ((compute * Math.min(1, a.microBatch / tokens)) / model.loops) * (2 / 3)
  const hidden = Math.min(window, gradients * (1 - table / parameters))
  const gather = gpus > 1 ? exchange(2 * parameters, gpus, parameters, a) : 0
  // Sums in the order of the ranks read two numbers and write one; AdamW reads gradient, moments and master, and writes all but the first.
  const sums = (12 * parameters * (gpus - 1)) / gpus / a.memory
  const optimizer = (30 * parameters) / gpus / a.memory
  const total = compute + gradients - hidden + gather + sums + optimizer
  return { compute, gradients, hidden, gather, sums, optimizer, total }
}

const seconds = (s) => (s >= 10 ? s.toFixed(1) : s.toFixed(3))
const thousands = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(2)} M` : `${Math.round(n / 1e3)} k`)
function rows(sizes, tokensOf, a) {
  const one = step(1, tokensOf(1), a)
  return sizes.map((gpus) => {
    const tokens = tokensOf(gpus)
    const s = step(gpus, tokens, a)
    const rate = (gpus * tokens) / s.total
    const efficiency = rate / gpus / (tokensOf(1) / one.total)
    const cells = [s.compute, s.gradients, s.hidden, s.gather, s.sums + s.optimizer, s.total].map(seconds)
    return `| ${[gpus, ...cells, thousands(rate), `${Math.round(100 * efficiency)} %`].join(' | ')} |`
  })
}
const head = `| GPUs | compute | gradients | hidden | parameters | AdamW | step | tokens/s | of ideal |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |`
const sizes = [1, 8, 64, 512]
const slow = { ...assumed, network: (0.8 * 12.5e9) / 8 }

export function page() {
  const giga = (bytes) => (bytes / 1e9).toFixed(1)
  return `# What many GPUs would take: a simulation

\`\`\`text
npm run simulate
\`\`\`

**Nothing on this page was measured on a GPU.** It is arithmetic from the sizes of Ouro-1.4B (${(parameters / 1e9).toFixed(2)} G parameters), the
bytes that looplm sends, and assumed rates. \`npm run simulate\` writes the page. To change a rate, edit
[tools/simulate-parallel.mjs](../tools/simulate-parallel.mjs) and run it again.

## Assumptions

| what | value |
| --- | --- |
| GPU | 989 TFLOP/s in bfloat16 (products reach 35 %), 3.35 TB/s of memory (kernels reach 80 %) |
| machine | ${assumed.machine} GPUs, 450 GB/s between them in each direction (messages reach 70 %) |
| network | 400 Gb/s per GPU (messages reach 80 %), no congestion |
| a message | ${assumed.message * 1e6} µs of its sender's time, for any size |
| tokens | the busiest GPU has ${Math.round(100 * (assumed.imbalance - 1))} % more than the mean; a micro-batch has ${assumed.microBatch} |
| work | 6 operations per token, weight and loop; the products inside attention and recomputation are not counted |
| step | one update, without sampling, evaluation and checkpoints |
| overlap | gradients travel during the backward pass of the first loop in the last micro-batch |

A step takes compute + gradients − hidden gradients + parameters + AdamW. "AdamW" includes adding up the gradients.
Times are in seconds. Each GPU sends (N − 1) / N of ${giga(4 * parameters)} GB of gradients and ${giga(2 * parameters)} GB of parameters. Buckets
hold at least 1 Mi elements and 64 Ki per rank. At 512 GPUs a step sends ${Math.ceil(parameters / bucket(512))} · 511 messages, twice.

## The same work per GPU

32,768 tokens per GPU: more GPUs mean a larger batch.

${head}
${rows(sizes, () => 32768, assumed).join('\n')}

## The same batch for all

262,144 tokens in all: more GPUs mean less work per GPU.

${head}
${rows(sizes, (gpus) => 262144 / gpus, assumed).join('\n')}

With little work per GPU the exchange dominates. Use larger batches, or adapters: then only the adapter's gradients
travel.

## A slow network

Like the first table, with 100 Gb/s per machine, which is 12.5 per GPU.

${head}
${rows(sizes, () => 32768, slow).join('\n')}

## What would prove it wrong

Measure the parts on your machines:

* \`npm run bench -- --device cuda --steps\` measures compute.
* \`AdamW.exchanged\` has the time of the exchange, and how long computation waited for it.
* \`npm run bench:parallel\` compares processes with threads on one processor.
`
}

if (process.argv[1] === fileURLToPath(import.meta.url) && !runsAsHook()) {
  const file = join(dirname(fileURLToPath(import.meta.url)), '..', 'docs', 'parallel-simulation.md')
  const before = readFileSync(file, { encoding: 'utf8', flag: 'a+' })
  const made = page()
  if (made !== before) writeFileSync(file, made)
  console.log(made === before ? 'docs/parallel-simulation.md is up to date' : 'docs/parallel-simulation.md was written')
}
