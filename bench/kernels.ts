// One row per kernel of the table and per named kernel: the time of a run next to the least time that the roofs allow.
import { Bench } from 'tinybench'
import { kernels, tensor } from '../src/index.js'
import type { ModelDType } from '../src/model/types.js'
import { call, context, native } from '../src/native.js'
import { ouro } from './models.js'

/** The least work of a kernel, and its time. */
export interface KernelRow {
  kernel: string
  dtype: ModelDType
  shape: string
  /** Median seconds of one run. */
  seconds: number
  /** Floating-point operations per second, in 1e9. */
  gflops: number
  /** Bytes per second that must be moved, in 1e9. */
  gbps: number
  /** The least time that both roofs allow, divided by the measured time. */
  share: number
}

/** Rates measured in this run. */
export interface Roofs {
  /** Rate of the product of two 2048 × 2048 matrices (8192 × 8192 on a GPU), in 1e9 operations per second. */
  gflops: number
  /** Bandwidth of reading (or copying, if that is faster) an array far larger than the caches, in 1e9 bytes per second. */
  gbps: number
  /**
   * Bandwidth of reading only: the faster of a sum over such an array and a product of one row with it. A copy moves bytes both
   * ways at once and is often faster.
   */
  readGbps: number
  /**
   * Rate of byte products in registers (VNNI, or maddubs with madd and an addition), in 1e9 operations per second. 0 if the
   * device has none.
   */
  int8Gops: number
}

interface Shape {
  label: string
  rows: number
  hidden: number
  intermediate: number
  vocabulary: number
  length: number
  heads: number
  kvHeads: number
}

const large: Shape = {
  label: 'N 2048, D 512, F 1408, V 8192, S 512',
  rows: 2048,
  hidden: 512,
  intermediate: 1408,
  vocabulary: 8192,
  length: 512,
  heads: 8,
  kvHeads: 8,
}
const small: Shape = {
  label: 'N 4096, D 128, F 352, V 128, S 64',
  rows: 4096,
  hidden: 128,
  intermediate: 352,
  vocabulary: 128,
  length: 64,
  heads: 4,
  kvHeads: 4,
}
/** For a GPU: the training shape of Ouro-1.4B, as in docs/cuda-resources.md. */
const gpu: Shape = {
  label: 'N 16384, D 2048, F 5632, V 49152, S 4096',
  rows: 16384,
  hidden: ouro.hidden_size,
  intermediate: ouro.intermediate_size,
  vocabulary: ouro.vocab_size,
  length: 4096,
  heads: ouro.num_attention_heads,
  kvHeads: ouro.num_attention_heads,
}
/** Only to see that the kernels run. */
const tiny: Shape = {
  label: 'N 64, D 64, F 96, V 128, S 32',
  rows: 64,
  hidden: 64,
  intermediate: 96,
  vocabulary: 128,
  length: 32,
  heads: 2,
  kvHeads: 2,
}
const tinier: Shape = { ...tiny, label: 'N 32, D 64, F 96, V 128, S 32', rows: 32 }

export const emulated = (device: string): boolean => device === 'cuda-emulated'
/** Whether sizes are those of the emulator, on any device if LOOPLM_BENCH_SIZES is tiny: only to see that a benchmark runs. */
export const tinySizes = (device: string): boolean => emulated(device) || process.env.LOOPLM_BENCH_SIZES === 'tiny'
export const onGpu = (device: string): boolean => device === 'auto' || device.startsWith('cuda')
const shapesFor = (device: string): Shape[] =>
  onGpu(device) ? [tinySizes(device) ? tiny : gpu] : tinySizes(device) ? [tiny, tinier] : [large, small]
/** The product whose rate is the roof. It is large enough for the device. */
const square = (device: string): Shape => {
  const n = tinySizes(device) ? 64 : onGpu(device) ? 8192 : 2048
  return { ...shapesFor(device)[0]!, rows: n, hidden: n, intermediate: n }
}

/** A product of one row with 256 MiB of weights (bfloat16). */
const longRow = (device: string): Shape => {
  const shape = shapesFor(device)[0]!
  return tinySizes(device) ? shape : { ...shape, hidden: 2048, intermediate: 32768 }
}

async function median(name: string, run: () => Promise<unknown>, milliseconds: number): Promise<number> {
  const bench = new Bench({ time: milliseconds, iterations: 5, warmupTime: milliseconds / 4, warmupIterations: 2 })
  bench.add(name, async () => {
    await run()
  })
  const [task] = await bench.run()
  const result = task!.result
  if (!('latency' in result)) throw new Error(`${name} could not be timed`)
  return result.latency.p50 / 1000
}

/** One kernel with its arrays. `time` runs it for a while and returns the median seconds of a run. */
interface KernelCase {
  flops: number
  bytes: number
  time(milliseconds: number): Promise<number>
  dispose(): void
}

async function prepare(device: string, dtype: ModelDType, kernel: string, shape: Shape): Promise<KernelCase> {
  const engine = native()
  const { label: _, ...numbers } = shape
  const { handle, flops, bytes } = await call('bench', () =>
    engine.benchCreate(context(device, 0, 'bench'), dtype, kernel, numbers),
  )
  return {
    flops,
    bytes,
    async time(milliseconds) {
      // A call runs the kernel several times, so that the overhead of the executor does not count.
      const once = await call('bench', () => engine.benchRun(handle, 1)).then(() => engine.benchRun(handle, 1))
      const repeats = Math.max(1, Math.ceil(0.002 / once))
      const bench = new Bench({ time: milliseconds, iterations: 5, warmupIterations: 1, warmupTime: 0 })
      const seconds: number[] = []
      bench.add(kernel, async () => {
        seconds.push((await engine.benchRun(handle, repeats)) / repeats)
      })
      await bench.run()
      seconds.sort((a, b) => a - b)
      return seconds[Math.floor(seconds.length / 2)]!
    },
    dispose: () => handle.dispose(),
  }
}

/** GEMM rate and memory bandwidth of the device, measured at each call of `measure`. */
export async function prepareRoofs(
  device: string,
  dtype: ModelDType,
): Promise<{ measure(milliseconds?: number): Promise<Roofs>; dispose(): void }> {
  const [shape] = shapesFor(device) as [Shape]
  const gemm = await prepare(device, dtype, 'gemm', square(device))
  const read = await prepare(device, dtype, 'read', shape)
  const copy = await prepare(device, dtype, 'copy', shape)
  const row = await prepare(device, dtype, 'gemm_one_row', longRow(device))
  const bytes = await prepare(device, dtype, 'byte_products', shape)
  return {
    async measure(milliseconds = tinySizes(device) ? 20 : 400) {
      const gflops = gemm.flops / (await gemm.time(milliseconds)) / 1e9
      const gbps = async (made: KernelCase) => made.bytes / (await made.time(milliseconds)) / 1e9
      const [reading, copying, product] = [await gbps(read), await gbps(copy), await gbps(row)]
      const int8Gops = bytes.flops === 0 ? 0 : bytes.flops / (await bytes.time(milliseconds)) / 1e9
      return { gflops, gbps: Math.max(reading, copying), readGbps: Math.max(reading, product), int8Gops }
    },
    dispose() {
      for (const made of [gemm, read, copy, row, bytes]) made.dispose()
    },
  }
}

/** The roofs of the device, measured once. */
export async function measureRoofs(device: string, dtype: ModelDType): Promise<Roofs> {
  const roofs = await prepareRoofs(device, dtype)
  const measured = await roofs.measure()
  roofs.dispose()
  return measured
}

/** The kernels of the table that are measured. Reading and copying are the roofs. */
const tableKernels = (): string[] =>
  native()
    .benchKernels()
    .filter((kernel) => !['read', 'copy', 'byte_products'].includes(kernel))

/** The names of all kernel rows of a device. */
export function kernelNames(device: string): string[] {
  const named = device === 'reference' ? [] : namedKernels(device, 'float32', shapesFor(device)[0]!)
  return [...tableKernels(), ...named.map(({ kernel }) => kernel)]
}

/** All kernels that match the filter, at a large and a small shape, or at one shape on a GPU. */
export async function* kernelRows(
  device: string,
  dtype: ModelDType,
  roofs: Roofs,
  filter: RegExp,
  milliseconds = tinySizes(device) ? 20 : 200,
): AsyncGenerator<KernelRow> {
  const row = (kernel: string, shape: string, seconds: number, flops: number, bytes: number): KernelRow => ({
    kernel,
    dtype,
    shape,
    seconds,
    gflops: flops / seconds / 1e9,
    gbps: bytes / seconds / 1e9,
    share: Math.max(flops / roofs.gflops, bytes / roofs.gbps) / 1e9 / seconds,
  })
  const shapes = shapesFor(device)
  for (const shape of shapes)
    for (const kernel of tableKernels()) {
      if (!filter.test(kernel)) continue
      const made = await prepare(device, dtype, kernel, shape)
      yield row(kernel, shape.label, await made.time(milliseconds), made.flops, made.bytes)
      made.dispose()
    }
  if (device === 'reference' || dtype === 'float64') return
  for (const named of namedKernels(device, dtype, shapes[0]!)) {
    if (!filter.test(named.kernel)) continue
    const made = await named.make()
    const seconds = await median(named.kernel, made.run, milliseconds)
    yield row(named.kernel, named.shape, seconds, named.flops, named.bytes)
    made.dispose()
  }
}

interface Named {
  kernel: string
  shape: string
  flops: number
  bytes: number
  make(): Promise<{ run(): Promise<void>; dispose(): void }>
}

/** The three named kernels of the project, as a program calls them on tensors. */
function namedKernels(device: string, dtype: 'float32' | 'bfloat16', shape: Shape): Named[] {
  const { rows: N, hidden: D, intermediate: F, vocabulary: V, length: S, heads: H } = shape
  const [T, L] = [4, 1]
  const size = dtype === 'float32' ? 4 : 2
  const on = device as 'cpu' | 'cuda'
  const noise = (count: number, scale = 0.05) => Float32Array.from({ length: count }, (_, i) => scale * Math.sin(1 + 12.9898 * i))
  const matrix = (rows: number, columns: number, scale?: number) =>
    tensor(noise(rows * columns, scale), [rows, columns], { dtype, device: on })
  const vector = (n: number, value: number) => tensor(new Float32Array(n).fill(value), [n], { dtype, device: on })
  return [
    {
      kernel: 'loopedBlockForward',
      shape: `N ${N}, D ${D}, F ${F}, L ${L}, T ${T}, S ${S}`,
      flops: T * L * (2 * N * (4 * D * D + 3 * D * F) + 2 * N * S * D),
      bytes: T * N * D * size * 2,
      async make() {
        const block = {
          qProj: matrix(D, D),
          kProj: matrix(D, D),
          vProj: matrix(D, D),
          oProj: matrix(D, D),
          gateProj: matrix(F, D),
          upProj: matrix(F, D),
          downProj: matrix(D, F),
          inputLayernorm: vector(D, 1),
          inputLayernorm2: vector(D, 1),
          postAttentionLayernorm: vector(D, 1),
          postAttentionLayernorm2: vector(D, 1),
        }
        const weights = {
          layers: [block],
          norm: vector(D, 1),
          gateWeight: vector(D, 0.01),
          gateBias: vector(1, 0),
          numAttentionHeads: H,
        }
        const hidden = matrix(N, D, 1)
        const options = { loops: T, offsets: Array.from({ length: N / S + 1 }, (_, i) => i * S), ropeTheta: 1e6, normEps: 1e-6 }
        return {
          async run() {
            const out = await kernels.loopedBlockForward(hidden, weights, options)
            out.hidden.dispose()
            out.gateLogits.dispose()
          },
          dispose() {
            for (const t of [hidden, weights.norm, weights.gateWeight, weights.gateBias, ...Object.values(block)]) t.dispose()
          },
        }
      },
    },
    {
      kernel: 'perLoopLogSoftmax',
      shape: `T ${T}, N ${N / 2}, D ${D}, V ${V}`,
      flops: T * N * D * V, // 2 · T · N/2 · D · V
      bytes: (T * N * D * size) / 2 + V * D * size,
      async make() {
        const hidden = tensor(noise((T * N * D) / 2, 1), [T, N / 2, D], { dtype, device: on })
        const head = matrix(V, D)
        const targets = tensor(
          Int32Array.from({ length: N / 2 }, (_, i) => (i * 7919) % V),
          undefined,
          { device: on },
        )
        return {
          async run() {
            const out = await kernels.perLoopLogSoftmax(hidden, head, targets, { temperature: 1 })
            out.logprobs.dispose()
            out.entropy.dispose()
          },
          dispose() {
            for (const t of [hidden, head, targets]) t.dispose()
          },
        }
      },
    },
    {
      kernel: 'policyGradientReduction',
      shape: `T ${T}, N ${16 * N}`,
      flops: T * 16 * N * 10,
      bytes: T * 16 * N * 4 * 5,
      async make() {
        const rows = 16 * N
        const real = (shape: number[], value: number) =>
          tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value), shape, { device: on })
        const logprobs = real([T, rows], -1)
        const inputs = {
          weights: real([T, rows], 1 / T),
          advantages: real([rows], 1),
          oldLogprobs: real([T, rows], -1.1),
          mask: real([rows], 1),
        }
        return {
          async run() {
            const out = await kernels.policyGradientReduction(logprobs, { ...inputs, objective: { surrogate: 'ppo' } })
            out.coefficients.dispose()
          },
          dispose() {
            for (const t of [logprobs, ...Object.values(inputs)]) t.dispose()
          },
        }
      },
    },
  ]
}
