// The least that each kernel must do at the bench's shape (the figures of native/engine/kernel_bench.cpp, which `npm run bench` prints rates
// from), the time that takes at an H200's datasheet rates, and how many threads of the CUDA kernel a multiprocessor of compute capability
// 9.0 holds by the registers and the shared memory that ptxas reported. Plain arithmetic: nothing here was measured.
import { execFileSync, spawnSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { wrapText } from './wrap-text.mjs'

const item = (text) => wrapText(`* ${text}`, { indent: '  ' })
const build = join(dirname(fileURLToPath(import.meta.url)), '..', 'build')
const roofs = { flops: 989e12, bytes: 4.8e12 } // dense bfloat16 and HBM3e, by the datasheet

const pitch = 2 * (128 + 8) // bytes of a row of attention's tiles at head size 128
const tensor = (transposed) => ({
  kernel: `tensor_kernel<Shape<${transposed}, true, 128, 256, 32, 2, 4, 4>>`,
  threads: 256,
  dynamic: 4 * 2 * 32 * (128 + 256),
})
/** The CUDA kernel behind a row of the bench at its shape, with the threads of a block and the shared memory that its launch asks for. */
const behind = {
  adamw: { kernel: 'adamw_kernel<bf16, 4>', threads: 256 },
  attention: { kernel: 'attention_kernel<128, 2, 64>', threads: 128, dynamic: pitch * (128 + 2 * 64) },
  attention_backward: { kernel: 'keys_backward_kernel<128, 64>', threads: 128, dynamic: pitch * (128 + 4 * 64) + 1024 },
  embed_backward: { kernel: 'add_sorted_kernel<4>', threads: 256 },
  exit_pdf: { kernel: 'exit_pdf_kernel', threads: 256 },
  gate: { kernel: 'gate_kernel<bf16, 8>', threads: 256 },
  gate_backward: { kernel: 'gate_backward_kernel<bf16, 8>', threads: 256, dynamic: 4 * 2048 },
  gemm: tensor('false, true'),
  gemm_input_gradient: tensor('false, false'),
  gemm_weight_gradient: tensor('true, false'),
  gemm_one_row: {
    kernel: 'tensor_kernel<Shape<false, true, true, 16, 32, 128, 1, 2, 6>>',
    threads: 64,
    dynamic: 6 * 2 * 128 * (16 + 32),
  },
  gemm_int4_one_row: {
    kernel: 'few_rows_kernel<Few<4, 2, 4>>',
    threads: 256,
    dynamic: 8 * 4 * 4 * (16 * 16 + 32) + 4 * 8 * 4 * 16,
  },
  head: tensor('false, true'),
  head_rows: { kernel: 'head_rows_kernel<bf16, 4>', threads: 512, dynamic: 229376 },
  head_rows_gradient: { kernel: 'head_rows_kernel<bf16, 4>', threads: 512, dynamic: 229376 },
  residual_norm: { kernel: 'residual_norm_kernel<bf16, 8>', threads: 256 },
  residual_norm_backward: { kernel: 'norm_backward_kernel<bf16, 8>', threads: 256, dynamic: 8 * 2048 },
  rope: { kernel: 'rope_kernel<bf16, 8, 0>', threads: 256 },
  sample: { kernel: 'sample_kernel<true>', threads: 1024, dynamic: 196608 },
  swiglu: { kernel: 'swiglu_kernel<bf16, 8, 0>', threads: 256 },
  swiglu_backward: { kernel: 'swiglu_backward_kernel<bf16, 8, 0>', threads: 256 },
}

/** Threads of a kernel that a multiprocessor holds at once: 2048, 64 Ki registers in units of 8 per thread, 227 KiB of shared memory. */
function occupancy({ registers, shared }, threads, dynamic = 0) {
  const byRegisters = Math.floor(65536 / (Math.ceil(registers / 8) * 8 * threads))
  const byShared = Math.floor(233472 / (shared + dynamic + 1024)) // of 228 KiB; 1 KiB of every block is the system's
  return threads * Math.min(Math.floor(2048 / threads), byRegisters, byShared)
}

/** The table as Markdown, from the rows that build-cuda.mjs read. */
export function floorsTable(resources) {
  if (spawnSync('cmake', ['--build', build, '--target', 'looplm_kernel_bench'], { stdio: 'ignore' }).status !== 0)
    throw new Error('looplm_kernel_bench could not be built: run `npm run build` first')
  const work = JSON.parse(execFileSync(join(build, 'looplm_kernel_bench'), ['--floors', 'bf16'], { encoding: 'utf8' }))
  const lines = work.map(({ kernel, flops, bytes }) => {
    const [compute, memory] = [flops / roofs.flops, bytes / roofs.bytes]
    const floor = `${(1e3 * Math.max(compute, memory)).toPrecision(3)} ${compute > memory ? 'A' : 'M'}`
    const cuda = behind[kernel]
    const found = cuda && resources.find((row) => row.kernel === cuda.kernel && row.arch === 'sm_90a')
    if (cuda && !found) throw new Error(`no kernel ${cuda.kernel} in the report of ptxas`)
    const threads = found ? [`\`${cuda.kernel.replaceAll(', ', ',')}\``, occupancy(found, cuda.threads, cuda.dynamic)] : ['', '']
    return `| ${[kernel, (bytes / 1e6).toFixed(1), (flops / 1e9).toFixed(1), floor, ...threads].join(' | ')} |`
  })
  const loop = 24 * (4 * 2048 ** 2 + 3 * 2048 * 5632) // parameters of the blocks of Ouro-1.4B, used once a loop
  const decoded = 2 * (4 * loop + 2048 * 49152)
  const flopsPerToken = 6 * (4 * loop + 4 * 2048 * 49152) // and attention, which depends on the length
  const rate = (bytes) =>
    `${(bytes / 1e9).toFixed(2)} GB, ${((1e3 * bytes) / roofs.bytes).toFixed(2)} ms, at most ${Math.floor(roofs.bytes / bytes)} tokens/s`
  return `## Floors

${wrapText(`This is arithmetic. Nothing was measured. The shape is Ouro-1.4B's training in bfloat16: 16,384 tokens in sequences of 4096, D 2048, F 5632, V 49,152, 16 heads. The chip has ${roofs.flops / 1e12} TFLOP/s and ${roofs.bytes / 1e12} TB/s, an H200's datasheet.`)}

${item('MB and GFLOP are those of the bench. Bytes count each input read once and each output written once.')}
${item('M: limited by memory. A: limited by arithmetic.')}
${item('Own kernel: the one that does most of the work. Threads: how many of 2048 a multiprocessor of compute capability 9.0 holds of it, by registers and shared memory.')}
${item('`adamw` is for 33.6 M parameters, `decode_attention` for 64 rows with 4096 keys.')}

| kernel | MB | GFLOP | floor, ms | own kernel | threads |
|---|---:|---:|---:|---|---:|
${lines.join('\n')}

${item(`One decoded token of one sequence with four loops reads the weights of the blocks four times: ${rate(decoded)}.`)}
${item(`With \`quantize: 'int4'\` (groups of 128) it reads ${rate((decoded / 2) * (0.5 + 4 / 128))}.`)}
${item(`A trained token, with four loops, a loss on each and nothing recomputed, costs ${(flopsPerToken / 1e9).toFixed(1)} GFLOP without attention. 40 % of ${roofs.flops / 1e12} TFLOP/s are ${Math.round((0.4 * roofs.flops) / flopsPerToken).toLocaleString('en-US')} tokens/s.`)}

## Shared memory of the products

${wrapText('`node tools/cuda-banks.mjs gemm` counts on the emulator: no access of the bfloat16 products with many rows meets a bank twice.')}

${wrapText(`A step of 32 of k of a 128 × 256 tile reads 24 KiB from the L2 cache for ${((2 * 128 * 256 * 32) / 1e6).toFixed(1)} MFLOP. Its eight warps of 64 × 64 read 64 KiB of shared memory: 512 cycles at 128 bytes a cycle, for 512 products of 16 × 8 × 16 on four tensor cores. These also take 512 cycles at the datasheet's rate for wgmma. With warps of 64 × 32 the same products would read 96 KiB.`)}
`
}

// ---- a decoded token, one row ----

const [L, T, D, F, V, heads, context] = [24, 4, 2048, 5632, 49152, 16, 192] // 64 tokens of prompt and half of 256 new ones
const chip = { processors: 132, clock: 1.755e9, threadsPerBlock: 256 }
// Assumed from published measurements of the same processor, not measured here: cycles until a dependent mma may follow another, seconds of a
// barrier of the grid, and of reading what other multiprocessors have just written.
const assumed = { mma: 33, barrier: 1.3e-6, read: 0.3e-6 }
/** The products of a block: rows and columns of the matrix. */
const matrices = { 'q, k, v': [3 * D, D], output: [D, D], 'gate and up': [2 * F, D], down: [D, F] }

/** What the kernel of cuda/decode_token.cu must do for a token, and the launches of a graph, as Markdown. */
export function decodeTable(resources) {
  const kernel = resources.find((row) => row.kernel === 'token_kernel<bf16, 11>' && row.arch === 'sm_90a')
  if (!kernel) throw new Error('no kernel token_kernel<bf16, 11> in the report of ptxas')
  const ms = (seconds) => (1e3 * seconds).toFixed(2)
  const passes = T * L
  const bytes = { weights: 0, head: 2 * V * D, cache: passes * 2 * 2 * D * context }
  let steps = 0 // dependent mma of the longest chain of warps, of a block
  for (const [rows, columns] of Object.values(matrices)) {
    bytes.weights += 2 * passes * rows * columns
    const tilesOfBlock = Math.ceil(rows / 8 / chip.processors)
    steps += (Math.ceil(tilesOfBlock / (chip.threadsPerBlock / 32)) * columns) / 16
  }
  const total = bytes.weights + bytes.head + bytes.cache
  const barriers = passes * (context > 64 ? 6 : 5)
  const memory = total / roofs.bytes
  const chains = (passes * steps * assumed.mma) / chip.clock
  const meeting = barriers * assumed.barrier
  const reading = passes * 5 * assumed.read // two norms, two inputs of products, the keys' first
  const latency = chains + meeting + reading
  const fullChip = 4096 / (2 * heads) + 1 // decode_attention.cu: parts of a row in separate blocks while two of them fit 4096 blocks
  const both = [Math.max(memory, latency), memory + latency].map((seconds) => (1 / seconds).toFixed(0))
  const ring = 8 * 11 * 8 * 272 // warps, stages, rows, bytes of a piece with its padding
  const shared = ring + 2 * D + 2 * F + 2 * 8 * 130 * 4
  const inFlight = chip.processors * ring
  return `## The floors of a decoded token

${wrapText(`This is arithmetic for one row of Ouro-1.4B in bfloat16 (L ${L}, T ${T}) with ${context} tokens in the cache. It is decoded by \`token_kernel<bf16, 11>\`, ${chip.processors} blocks of ${chip.threadsPerBlock} threads.`)}

${item(`The kernel has ${kernel.registers} registers per thread and ${(shared / 1024).toFixed(0)} KiB of shared memory, so one block fits a multiprocessor, as it must.`)}
${item(`${(inFlight / 1e6).toFixed(1)} MB of weights are on their way at any time, also during barriers and norms. That is the memory's work of ${((1e6 * inFlight) / roofs.bytes).toFixed(1)} µs.`)}
${item(`Assumed: ${assumed.mma} cycles between dependent mma at ${chip.clock / 1e9} GHz, ${1e6 * assumed.barrier} µs for a barrier of the grid, ${1e6 * assumed.read} µs to read what another multiprocessor wrote.`)}

| what | of a token | ms |
|---|---:|---:|
| weights of the blocks, T times | ${(bytes.weights / 1e9).toFixed(2)} GB | ${ms(bytes.weights / roofs.bytes)} |
| head | ${(bytes.head / 1e9).toFixed(2)} GB | ${ms(bytes.head / roofs.bytes)} |
| keys and values | ${(bytes.cache / 1e9).toFixed(2)} GB | ${ms(bytes.cache / roofs.bytes)} |
| **all bytes at ${roofs.bytes / 1e12} TB/s** | ${(total / 1e9).toFixed(2)} GB | ${ms(memory)} |
| sums in order: dependent mma of one warp | ${passes * steps} | ${ms(chains)} |
| barriers of the grid | ${barriers} | ${ms(meeting)} |
| reads after barriers | ${passes * 5} | ${ms(reading)} |
| **all that waits in turn** | | ${ms(latency)} |

${wrapText(`The two overlap, because weights arrive while warps wait. The result is between ${both[1]} (nothing overlaps) and ${both[0]} (everything does) tokens per second. Memory alone would allow ${(1 / memory).toFixed(0)}.`)}

${wrapText(`Several rows take a graph of ${11 * L + 1} kernels per loop: eleven per block and the first norm. From ${fullChip} rows on it is one less per block. A block of threads then has all the keys of a row, and no parts need to be combined.`)}
`
}
