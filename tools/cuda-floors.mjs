// The least that each CUDA kernel of a training step must do at the shape of Ouro-1.4B, and how many threads of it a multiprocessor of compute
// capability 9.0 holds by the registers and the shared memory that ptxas reported. Plain arithmetic: nothing here was measured.
const [N, D, F, V, S, H] = [16384, 2048, 5632, 49152, 4096, 16]
const parameters = 1_434_652_673
const roofs = { flops: 795e12, bytes: 4.3e12 } // H200: the best published product, a published copy

const product = (m, n, k, outBytes = 2) => ({ flops: 2 * m * n * k, bytes: 2 * (m * k + k * n) + outBytes * m * n })
const gemm = (shape, kernel = 'tensor_kernel<Shape<false, true, true, 128, 256, 32, 2, 4, 4>>') => ({
  kernel,
  threads: 256,
  dynamic: 4 * 2 * 32 * (128 + 256),
  ...shape,
})

/** One row per kernel of a step on N tokens: bytes each input read once and each output written once. */
const steps = [
  {
    what: 'RMSNorm + residual + next norm',
    kernel: 'residual_norm_kernel<bf16, 8>',
    threads: 256,
    flops: 10 * N * D,
    bytes: 8 * N * D,
  },
  {
    what: 'its backward',
    kernel: 'norm_backward_kernel<bf16, 8>',
    threads: 256,
    dynamic: 8 * D,
    flops: 20 * N * D,
    bytes: 16 * N * D,
  },
  { what: 'RoPE on q and k', kernel: 'rope_kernel<bf16, 8>', threads: 256, flops: 6 * N * D, bytes: 8 * N * D },
  { what: 'SwiGLU', kernel: 'swiglu_kernel<bf16, 8>', threads: 256, flops: 6 * N * F, bytes: 6 * N * F },
  { what: 'its backward', kernel: 'swiglu_backward_kernel<bf16, 8>', threads: 256, flops: 12 * N * F, bytes: 12 * N * F },
  { what: 'exit gate', kernel: 'gate_kernel<bf16, 8>', threads: 256, flops: 2 * N * D, bytes: 2 * N * D },
  {
    what: 'its backward',
    kernel: 'gate_backward_kernel<bf16, 8>',
    threads: 256,
    dynamic: 4 * D,
    flops: 4 * N * D,
    bytes: 10 * N * D,
  },
  { what: 'embedding backward', kernel: 'embed_backward_kernel<4>', threads: 256, flops: N * D, bytes: 12 * N * D },
  { what: 'q, k, v product', ...gemm(product(N, 3 * D, D)) },
  { what: 'output product', ...gemm(product(N, D, D)) },
  { what: 'gate and up product', ...gemm(product(N, 2 * F, D)) },
  { what: 'down product', ...gemm(product(N, D, F)) },
  { what: 'head: logits', ...gemm(product(N, V, D, 4)) },
  { what: 'head: rows with gradient', kernel: 'head_rows_kernel<bf16, 4>', threads: 512, flops: 12 * N * V, bytes: 6 * N * V },
  {
    what: 'sum of squares, all parameters',
    kernel: 'sum_squares_kernel<4>',
    threads: 256,
    flops: 2 * parameters,
    bytes: 4 * parameters,
  },
  {
    what: 'AdamW, all parameters',
    kernel: 'adamw_kernel<bf16, 4>',
    threads: 256,
    flops: 15 * parameters,
    bytes: 30 * parameters,
  },
]

/** Threads of a kernel that a multiprocessor holds at once: 2048, 64 Ki registers in units of 8 per thread, 227 KiB of shared memory. */
function occupancy({ registers, shared }, threads, dynamic = 0) {
  const byRegisters = Math.floor(65536 / (Math.ceil(registers / 8) * 8 * threads))
  const byShared = Math.floor(232448 / (shared + dynamic + 1024)) // 1 KiB of every block is the system's
  return threads * Math.min(Math.floor(2048 / threads), byRegisters, byShared)
}

/** The table as Markdown, from the rows that build-cuda.mjs read. */
export function floorsTable(resources) {
  const lines = steps.map(({ what, kernel, threads, dynamic, flops, bytes }) => {
    const found = resources.find((row) => row.kernel === kernel && row.arch === 'sm_90a')
    if (!found) throw new Error(`no kernel ${kernel} in the report of ptxas`)
    const [compute, memory] = [flops / roofs.flops, bytes / roofs.bytes]
    const limit = compute > memory ? 'arithmetic' : 'memory'
    const cells = [what, `\`${kernel.replace(/<Shape.*/, '')}\``, (bytes / 1e6).toFixed(0), (flops / 1e9).toFixed(1)]
    return `| ${[...cells, `${(1e3 * Math.max(compute, memory)).toFixed(3)} (${limit})`, occupancy(found, threads, dynamic)].join(' | ')} |`
  })
  return `## The floors of a training step

By arithmetic, not by measurement: bfloat16, ${N} tokens of Ouro-1.4B (D ${D}, F ${F}, V ${V}, ${H} heads, sequences of ${S}), on a chip with
${roofs.flops / 1e12} TFLOP/s and ${roofs.bytes / 1e12} TB/s. Bytes count each input read once and each output written once. Threads: how many of 2048 a
multiprocessor of compute capability 9.0 holds, by registers and shared memory.

| what | kernel | MB | GFLOP | floor, ms | threads |
|---|---|---:|---:|---:|---:|
${lines.join('\n')}
`
}

// ---- a decoded token, one row ----

const [L, T, context] = [24, 4, 192] // 64 tokens of prompt and half of 256 new ones
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
  const both = [Math.max(memory, latency), memory + latency].map((seconds) => (1 / seconds).toFixed(0))
  const ring = 8 * 11 * 8 * 272 // warps, stages, rows, bytes of a piece with its padding
  const shared = ring + 2 * D + 2 * F + 2 * 8 * 130 * 4
  return `## The floors of a decoded token

By arithmetic: one row of Ouro-1.4B in bfloat16 (L ${L}, T ${T}), ${context} tokens in the cache, decoded by \`token_kernel<bf16, 11>\`, ${chip.processors} blocks of
${chip.threadsPerBlock} threads. It has ${kernel.registers} registers a thread and ${(shared / 1024).toFixed(0)} KiB of shared memory, so one block fits a multiprocessor, as it must; ${((chip.processors * ring) / 1e6).toFixed(1)} MB of weights are on
their way at any time, the memory's work of ${((1e6 * chip.processors * ring) / roofs.bytes).toFixed(1)} µs, through barriers and norms. Assumed: ${assumed.mma} cycles between dependent mma at ${chip.clock / 1e9} GHz,
${1e6 * assumed.barrier} µs for a barrier of the grid, ${1e6 * assumed.read} µs to read what another multiprocessor wrote.

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

The two overlap, because weights arrive while warps wait: between ${both[1]} (nothing overlaps) and ${both[0]} (everything does) tokens a second; memory alone
would allow ${(1 / memory).toFixed(0)}. Several rows take a graph of ${11 * L + 1} kernels for each loop.
`
}
