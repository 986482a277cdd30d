// node bench/llama.mjs FOLDER: compares quantized decoding and prompts with llama.cpp on the CPU, in tokens per second of CPU
// time on one thread. Runs alternate. FOLDER is where `npm install --ignore-scripts node-llama-cpp` was run. llama.cpp has no
// loops, so it runs the 98 M model of bench/models.ts unrolled: 48 Llama blocks with random codes, which lack Ouro's second
// norms.
import { randomFillSync } from 'node:crypto'
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { d768 } from '../dist/bench/models.js'
import { LoopLM } from '../dist/src/index.js'

const [folder] = process.argv.slice(2)
if (folder === undefined) throw new Error('node bench/llama.mjs FOLDER, with node-llama-cpp in FOLDER/node_modules')
const { getLlama } = await import(pathToFileURL(join(resolve(folder), 'node_modules/node-llama-cpp/dist/index.js')).href)
const { hidden_size: D, intermediate_size: F, vocab_size: V, num_attention_heads: heads } = d768
const layers = d768.num_hidden_layers * d768.total_ut_steps

const u32 = (value) => Buffer.from(Uint32Array.of(value).buffer)
const u64 = (value) => Buffer.from(BigUint64Array.of(BigInt(value)).buffer)
const f32 = (...values) => Buffer.from(Float32Array.from(values).buffer)
const text = (value) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)])
const padding = (bytes) => Buffer.alloc((32 - (bytes % 32)) % 32)

function metadata() {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`)
  const tokens = ['<unk>', '<s>', '</s>', ...bytes]
  while (tokens.length < V) tokens.push(`t${tokens.length}`)
  const kind = (i) => (i === 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1)
  const list = (type, each) => [9, Buffer.concat([u32(type), u64(each.length), ...each])]
  const numbers = {
    'llama.context_length': 2048,
    'llama.embedding_length': D,
    'llama.block_count': layers,
    'llama.feed_forward_length': F,
    'llama.attention.head_count': heads,
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
  }
  return Object.entries({
    'general.architecture': [8, text('llama')],
    ...Object.fromEntries(Object.entries(numbers).map(([name, value]) => [name, [4, u32(value)]])),
    'llama.attention.layer_norm_rms_epsilon': [6, f32(1e-6)],
    'tokenizer.ggml.model': [8, text('llama')],
    'tokenizer.ggml.tokens': list(8, tokens.map(text)),
    'tokenizer.ggml.scores': list(
      6,
      tokens.map((_, i) => f32(-i)),
    ),
    'tokenizer.ggml.token_type': list(
      5,
      tokens.map((_, i) => u32(kind(i))),
    ),
  }).map(([name, [type, value]]) => Buffer.concat([text(name), u32(type), value]))
}

/** Writes the unrolled model, type 2 (q4_0) or 8 (q8_0). */
function writeModel(path, type) {
  const block = type === 2 ? 18 : 34
  const matrix = (name, out, width) => {
    const data = randomFillSync(Buffer.alloc(((out * width) / 32) * block))
    for (let i = 0; i < data.length; i += block) data.writeUInt16LE(type === 2 ? 0x1c00 : 0x0c00, i) // a small scale
    return { name: `${name}.weight`, shape: [width, out], type, data }
  }
  const norm = (name) => ({ name: `${name}.weight`, shape: [D], type: 0, data: f32(...Array(D).fill(1)) })
  const tensors = [matrix('token_embd', V, D), norm('output_norm'), matrix('output', V, D)]
  for (let l = 0; l < layers; l++) {
    tensors.push(norm(`blk.${l}.attn_norm`), norm(`blk.${l}.ffn_norm`))
    for (const part of ['q', 'k', 'v', 'output']) tensors.push(matrix(`blk.${l}.attn_${part}`, D, D))
    tensors.push(matrix(`blk.${l}.ffn_gate`, F, D), matrix(`blk.${l}.ffn_up`, F, D), matrix(`blk.${l}.ffn_down`, D, F))
  }
  const described = []
  let offset = 0
  for (const { name, shape, type, data } of tensors) {
    described.push(Buffer.concat([text(name), u32(shape.length), ...shape.map(u64), u32(type), u64(offset)]))
    offset += data.length + padding(data.length).length
  }
  const entries = metadata()
  const head = Buffer.concat([Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(entries.length), ...entries, ...described])
  const file = openSync(path, 'w')
  for (const data of [head, ...tensors.map((tensor) => tensor.data)]) {
    writeSync(file, data)
    writeSync(file, padding(data.length))
  }
  closeSync(file)
}

const seconds = () => process.cpuUsage().user / 1e6 + process.cpuUsage().system / 1e6
const middle = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]
const prompt = (length) => Array.from({ length }, (_, i) => 300 + ((i * 7919) % 7000))
const made = 24 // tokens after the first

/** Tokens per second of one round: for a prompt of 512 tokens, or for decoding. */
async function round(tokens, decoding) {
  let begin = seconds()
  let count = -1
  for await (const _ of tokens(prompt(decoding ? 8 : 512))) {
    if (!decoding) return 512 / (seconds() - begin)
    if (++count === 0) begin = seconds()
    if (count === made) break
  }
  return made / (seconds() - begin)
}

const llama = await getLlama({ gpu: false, build: 'never', logLevel: 'error', maxThreads: 1 })
const files = mkdtempSync(join(tmpdir(), 'looplm-llama-'))
try {
  for (const [name, type, quantize] of [
    ['q4_0', 2, 'int4'],
    ['q8_0', 8, 'int8'],
  ]) {
    const path = join(files, `${name}.gguf`)
    writeModel(path, type)
    const peer = await llama.loadModel({ modelPath: path, gpuLayers: 0 })
    const context = await peer.createContext({ contextSize: 1024, sequences: 1, threads: 1, batchSize: 512 })
    const model = await LoopLM.create(d768, { dtype: 'bfloat16', seed: 1, threads: 1, quantize })
    const options = { temperature: 0, stop: [], maxNewTokens: made + 1, exit: { rule: 'fixed' } }
    async function* ofPeer(tokens) {
      const sequence = context.getSequence()
      try {
        yield* sequence.evaluate(tokens, { temperature: 0, yieldEogToken: true })
      } finally {
        await sequence.clearHistory()
        sequence.dispose()
      }
    }
    for (const decoding of [true, false]) {
      const [own, other] = [[], []]
      for (let i = 0; i < (decoding ? 4 : 2); i++) {
        own.push(await round((tokens) => model.stream(tokens, options), decoding))
        other.push(await round(ofPeer, decoding))
      }
      const [looplm, llamaCpp] = [own, other].map((rates) => middle(rates.slice(1)))
      const row = decoding ? 'one sequence' : 'prompt of 512'
      console.log(`${row}: ${quantize} ${looplm.toFixed(1)}, ${name} ${llamaCpp.toFixed(1)}, ${(looplm / llamaCpp).toFixed(2)} ×`)
    }
    model.dispose()
    await context.dispose()
    await peer.dispose()
  }
} finally {
  rmSync(files, { recursive: true })
}
process.exit(0)
