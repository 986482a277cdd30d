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
