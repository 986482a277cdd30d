// Faults planted in the CUDA kernels themselves, one at a time: a missing barrier, a wrong lane, an off-by-one edge. The kernel tests on the
// emulator must fail on each, by what the emulator finds or by the numbers. (Kernels written to be wrong: cuda/emulator/test.cu.)
import { execFile } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { buildEmulated } from '../emulated.js'

const root = join(import.meta.dirname, '..', '..')
const build = join(root, 'build')
const folder = mkdtempSync(join(tmpdir(), 'looplm-faults-'))
beforeAll(buildEmulated, 900_000)
afterAll(() => rmSync(folder, { recursive: true }))

interface Fault {
  what: string
  /** The file that is compiled again. */
  kernel: string
  /** Where the fault is, the kernel's own file when absent. */
  file?: string
  /** Text that occurs there, and what replaces its first occurrence. */
  right: string
  wrong: string
  dtype: 'f32' | 'bf16'
  /** The kernel tests that must notice. */
  tests: string
}

const faults: Fault[] = [
  {
    what: 'no barrier before the keys are read',
    kernel: 'attention.cu',
    right: '__syncthreads();  // the keys are there',
    wrong: '// the keys are there',
    dtype: 'bf16',
    tests: 'attention',
  },
  {
    what: 'no barrier before the values are read',
    kernel: 'attention.cu',
    right: '__syncthreads();  // the values are there',
    wrong: '// the values are there',
    dtype: 'bf16',
    tests: 'attention',
  },
  {
    what: 'a maximum over two of the four lanes of a row',
    kernel: 'attention.cu',
    right: 'warp_max<4>',
    wrong: 'warp_max<2>',
    dtype: 'bf16',
    tests: 'attention',
  },
  {
    what: 'a sum over two of the four lanes of a row',
    kernel: 'attention.cu',
    right: 'warp_sum<4>',
    wrong: 'warp_sum<2>',
    dtype: 'bf16',
    tests: 'attention',
  },
  {
    what: 'a diagonal that hides the own key',
    kernel: 'attention.cu',
    right: '- e / 2 * 8 > last)',
    wrong: '- e / 2 * 8 >= last)',
    dtype: 'bf16',
    tests: 'attention',
  },
  {
    what: 'no wait for the copies of a tile',
    kernel: 'attention_backward.cu',
    right: 'copy_async_wait<0>();',
    wrong: '',
    dtype: 'bf16',
    tests: 'attention',
  },
  {
    what: 'no barrier between two tiles of queries',
    kernel: 'attention_backward.cu',
    right: '__syncthreads();  // these queries are there',
    wrong: '// these queries are there',
    dtype: 'bf16',
    tests: 'attention',
  },
  {
    what: 'a last tile of queries left out',
    kernel: 'attention_backward.cu',
    right: 't.first < t.length) return t',
    wrong: 't.first + 1 < t.length) return t',
    dtype: 'bf16',
    tests: 'attention',
  },
  {
    what: 'a matrix read from the wrong lanes',
    kernel: 'attention.cu',
    file: 'attention_tile.h',
    right: '(row + lane_id() % 16)',
    wrong: '(row + lane_id() % 8)',
    dtype: 'bf16',
    tests: 'attention',
  },
  {
    what: 'weights exchanged without __syncwarp',
    kernel: 'attention_plain.cu',
    right: 'weights[i][j];\n  __syncwarp();',
    wrong: 'weights[i][j];',
    dtype: 'f32',
    tests: 'attention',
  },
  {
    what: 'pinned memory filled again before its copy was made',
    kernel: 'memory.cu',
    right: 'if (cudaError_t status = cudaEventSynchronize(s.copied[s.active])) return status;',
    wrong: '',
    dtype: 'f32',
    tests: 'memory',
  },
  {
    what: 'a copy to the host read before it was made',
    kernel: 'memory.cu',
    right: 'if (int status = check(c, cudaEventSynchronize(s.copied[half]), "copy_out")) return status;',
    wrong: '',
    dtype: 'f32',
    tests: 'memory',
  },
  {
    what: 'a column behind the edge written',
    kernel: 'gemm.cu',
    file: 'gemm_tile.h',
    right: 'column + 1 < g.n',
    wrong: 'column < g.n',
    dtype: 'bf16',
    tests: 'gemm',
  },
  {
    what: 'a stage of the ring overwritten while it is read',
    kernel: 'gemm.cu',
    right: 'fetch(t + S::STAGES - 1);',
    wrong: 'fetch(t + S::STAGES);',
    dtype: 'bf16',
    tests: 'gemm',
  },
  {
    what: 'codes read before they have come',
    kernel: 'quantized.cu',
    right: '__syncwarp();  // this round',
    wrong: '// this round',
    dtype: 'bf16',
    tests: 'quantized',
  },
  {
    what: 'sums of units overwritten while they are read',
    kernel: 'quantized.cu',
    right: '__syncthreads();  // and read',
    wrong: '// and read',
    dtype: 'bf16',
    tests: 'quantized',
  },
  {
    what: 'a unit of k left out',
    kernel: 'quantized.cu',
    right: 'u < count;',
    wrong: 'u < count - 1;',
    dtype: 'bf16',
    tests: 'quantized',
  },
  {
    what: 'one key too many',
    kernel: 'decode_attention.cu',
    file: 'decode_attention.h',
    right: 'inside[two] = key < end',
    wrong: 'inside[two] = key <= end',
    dtype: 'f32',
    tests: 'decode_attention',
  },
  {
    what: 'no barrier before the groups are put together',
    kernel: 'decode_attention.cu',
    right: '__syncthreads();',
    wrong: '',
    dtype: 'f32',
    tests: 'decode_attention',
  },
  {
    what: 'no barrier of the grid before attention',
    kernel: 'decode_token.cu',
    right: 'grid_barrier();',
    wrong: '',
    dtype: 'f32',
    tests: 'decode_token',
  },
  {
    what: 'a barrier of the grid that block 0 leaves out',
    kernel: 'decode_token.cu',
    right: 'if (parts.count > 1) {',
    wrong: 'if (parts.count > 1 && blockIdx.x > 0) {',
    dtype: 'f32',
    tests: 'decode_token',
  },
  {
    what: 'weights read before the other lanes have waited for theirs',
    kernel: 'decode_token.cu',
    right: '__syncwarp();',
    wrong: '',
    dtype: 'bf16',
    tests: 'decode_token',
  },
  {
    what: 'weights read a stage too early',
    kernel: 'decode_token.cu',
    right: 'copy_async_wait<stages - 2>',
    wrong: 'copy_async_wait<stages - 1>',
    dtype: 'bf16',
    tests: 'decode_token',
  },
  {
    what: 'a last tile that nobody multiplies',
    kernel: 'decode_token.cu',
    right: 'tile < p.tiles; tile += tile_step()) {',
    wrong: 'tile + 1 < p.tiles; tile += tile_step()) {',
    dtype: 'bf16',
    tests: 'decode_token',
  },
  {
    what: "the second row of a pair from the first one's lane",
    kernel: 'decode_token.cu',
    right: '2 * (lane % 4) + 1)',
    wrong: '2 * (lane % 4))',
    dtype: 'f32',
    tests: 'decode_token',
  },
  {
    what: 'an exit that only some blocks take',
    kernel: 'decode_token.cu',
    right: 'more = leaves[0] == 0;',
    wrong: 'more = leaves[0] == 0 || blockIdx.x == 1;',
    dtype: 'f32',
    tests: 'decode_token',
  },
  {
    what: 'a block sum whose scratch is used again too early',
    kernel: 'norm.cu',
    file: 'simt.h',
    right: 'sum += T(scratch[warp]);\n  __syncthreads();',
    wrong: 'sum += T(scratch[warp]);',
    dtype: 'f32',
    tests: 'norm',
  },
  {
    what: 'a warp sum that leaves half of the lanes out',
    kernel: 'norm.cu',
    file: 'simt.h',
    right: 'for (int distance = width / 2; distance > 0; distance /= 2) x += __shfl_xor_sync',
    wrong: 'for (int distance = width / 4; distance > 0; distance /= 2) x += __shfl_xor_sync',
    dtype: 'f32',
    tests: 'norm',
  },
  {
    what: 'a gradient written over logits that were not read',
    kernel: 'head.cu',
    right: 'if (sizeof(T) < sizeof(float) && !ring.keeps) __syncthreads();',
    wrong: '',
    dtype: 'bf16',
    tests: 'head_rows: long rows',
  },
  {
    what: 'logits read before their copies have come',
    kernel: 'head.cu',
    right: 'wait_for_all_but(newer);',
    wrong: 'wait_for_all_but(newer + 4);',
    dtype: 'f32',
    tests: 'head_rows: log-probability and entropy',
  },
  {
    what: "a pass's sums overwritten while the last pass's are read",
    kernel: 'sample.cu',
    right: "__syncthreads();  // the last pass's have been read",
    wrong: '',
    dtype: 'f32',
    tests: 'sample: a draw does not depend',
  },
  {
    what: 'the last weight at the edge of top-p left out',
    kernel: 'sample.cu',
    right: 'j + k > last',
    wrong: 'j + k >= last',
    dtype: 'f32',
    tests: 'sample: ties',
  },
  {
    what: 'no barrier between two steps of a sort',
    kernel: 'rows.cu',
    right: '__syncthreads();\n      const int low',
    wrong: 'const int low',
    dtype: 'f32',
    tests: 'embed_backward',
  },
  {
    what: 'an id that two blocks add up',
    kernel: 'rows.cu',
    right: 'if (first > 0 && id_of',
    wrong: 'if (first > begin && id_of',
    dtype: 'f32',
    tests: 'embed_backward',
  },
  {
    what: 'partial sums of a warp left out',
    kernel: 'columns.cu',
    right: 'w < warps; w++',
    wrong: 'w < warps - 1; w++',
    dtype: 'f32',
    tests: 'norm',
  },
]

const run = promisify(execFile)

/** The emulated library with one kernel file compiled from a changed copy of the sources. */
async function plant(fault: Fault): Promise<string> {
  const place = mkdtempSync(join(folder, 'fault-'))
  cpSync(join(root, 'cuda'), join(place, 'cuda'), { recursive: true })
  symlinkSync(join(root, 'native'), join(place, 'native'))
  const changed = join(place, 'cuda', fault.file ?? fault.kernel)
  const text = readFileSync(changed, 'utf8')
  expect(text, `${fault.file ?? fault.kernel} has changed: plant "${fault.what}" elsewhere`).toContain(fault.right)
  writeFileSync(
    changed,
    text.replace(fault.right, () => fault.wrong),
  )
  const compiler = process.env.CXX ?? 'g++'
  const object = join(place, 'fault.o')
  const options = ['-std=c++20', '-O2', '-fPIC', '-fvisibility=hidden', '-w', '-DLOOPLM_CUDA_NAME="cuda-emulated"']
  await run(compiler, [...options, '-x', 'c++', '-c', join(place, 'cuda', fault.kernel), '-o', object])
  const library = join(place, 'looplm_cuda_faulty.so')
  const objects = (path: string) => readdirSync(path, { recursive: true, encoding: 'utf8' }).map((name) => join(path, name))
  const rest = [
    ...objects(join(build, 'CMakeFiles', 'looplm_cuda_emulated.dir')),
    ...objects(join(build, 'cuda', 'emulator', 'CMakeFiles', 'cuda_emulator.dir')),
  ].filter((path) => path.endsWith('.o') && !path.endsWith(`/${fault.kernel}.o`))
  await run(compiler, ['-shared', object, ...rest, '-o', library, '-pthread', '-ldl'])
  return library
}

/** The kernel tests on a faulty library: what they print, and how they end (a signal: the page behind an array). */
async function notice(library: string, fault: Fault): Promise<{ stdout: string; code: number | null }> {
  const args = ['--backend', library, '--dtype', fault.dtype, fault.tests]
  const env = { ...process.env, LOOPLM_EMULATOR_THREADS: '1' } // faults run beside each other instead
  try {
    return { stdout: (await run(join(build, 'looplm_kernel_tests'), args, { maxBuffer: 1 << 26, env })).stdout, code: 0 }
  } catch (error) {
    const { stdout, code } = error as { stdout: string; code: number | null }
    return { stdout, code }
  }
}

// All of them at once, as many at a time as there are processors; each test then waits for its own.
const waiting = [...faults]
const outcomes = new Map<Fault, Promise<{ stdout: string; code: number | null }>>()
beforeAll(() => {
  const settle = new Map<Fault, (outcome: Promise<{ stdout: string; code: number | null }>) => void>()
  for (const fault of faults) outcomes.set(fault, new Promise((resolve) => settle.set(fault, resolve)))
  const worker = async () => {
    for (let fault = waiting.shift(); fault !== undefined; fault = waiting.shift()) {
      const outcome = plant(fault).then((library) => notice(library, fault))
      settle.get(fault)!(outcome)
      await outcome.catch(() => {})
    }
  }
  for (let i = 0; i < availableParallelism(); i++) void worker()
})

describe('a planted fault makes the kernel tests fail', () => {
  it.each(faults)('$kernel: $what', async (fault) => {
    const { stdout, code } = await outcomes.get(fault)!
    expect(stdout.includes('not ok') || code === null).toBe(true)
    expect(code).not.toBe(0)
  })
})
