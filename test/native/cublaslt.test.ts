// The way through cuBLASLt without NVIDIA's library: a stand-in (native/test/cublaslt_double.cpp) that checks every descriptor against the
// manual, ends the process where one breaks a rule, and computes the products plainly.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { buildEmulated, cublasLtDouble, emulatedKernelTests, emulatedLibrary } from '../emulated.js'
import { runTests } from '../native-tests.js'

const root = join(import.meta.dirname, '..', '..')
const folder = mkdtempSync(join(tmpdir(), 'looplm-cublaslt-'))
beforeAll(buildEmulated)
afterAll(() => rmSync(folder, { recursive: true }))

/** The environment of a run through the stand-in, and the products that it then did: "m n k type-of-A type-of-C transpositions". */
function through(name: string, more: NodeJS.ProcessEnv = {}) {
  const log = join(folder, name)
  const env: NodeJS.ProcessEnv = { LOOPLM_CUBLASLT: cublasLtDouble, LOOPLM_CUBLASLT_DOUBLE_LOG: log, ...more }
  return { env, products: () => readFileSync(log, 'utf8').trimEnd().split('\n') }
}

describe.concurrent('products by cuBLASLt', () => {
  it('agree with the reference in every dtype and transposition', async () => {
    const { env, products } = through('all', { LOOPLM_CUDA_GEMM: 'library' })
    const { failures, status, description } = await emulatedKernelTests(['--skip', 'many tiles', 'gemm'], env)
    expect(failures).toEqual([])
    expect(status).toBe(0)
    expect(description).toMatch(/f32: .*cuBLASLt 130000 from .*looplm_cublaslt_double\.so$/m)
    const kinds = new Set(products().map((line) => line.split(' ').slice(3).join(' ')))
    const transpositions = ['NN', 'TN', 'NT', 'TT']
    for (const types of ['f32 f32', 'bf16 bf16', 'bf16 f32']) {
      for (const t of transpositions) expect(kinds).toContain(`${types} ${t}`)
    }
  })

  it('are used only for weight gradients and for many rows', async () => {
    const { env, products } = through('chosen')
    expect((await emulatedKernelTests(['--dtype', 'bf16', '--skip', 'many tiles', 'gemm'], env)).status).toBe(0)
    const [trial, ...lines] = products() // one product for each device that is opened, to see whether the library works
    expect(trial).toBe('64 4096 32 bf16 f32 TN')
    const others = lines.filter((l) => l !== trial).map((line) => line.split(' '))
    const gradients = others.filter(([, , , , , transposed]) => transposed!.endsWith('T'))
    expect(gradients.length).toBeGreaterThan(10)
    expect(others.filter((product) => !gradients.includes(product) && Number(product[1]) < 1024)).toEqual([])
  })

  it('give the same bits in a recording and outside of it', async () => {
    const { env, products } = through('recorded', { LOOPLM_CUDA_GEMM: 'library' })
    expect(await emulatedKernelTests(['record:'], env)).toMatchObject({ failures: [], status: 0 })
    expect(products().filter((line) => line.startsWith('24 3 40')).length).toBeGreaterThan(4)
  })

  it('use another algorithm when that of the weight does not support their rows', async () => {
    const { env, products } = through('rows', { LOOPLM_CUDA_GEMM: 'library', LOOPLM_CUBLASLT_DOUBLE: 'rows' })
    const { failures, status, description } = await emulatedKernelTests(['--dtype', 'bf16', '--skip', 'many tiles', 'gemm'], env)
    expect(failures).toEqual([])
    expect(status).toBe(0)
    expect(description).toMatch(/cuBLASLt 130000 from/)
    expect(description).not.toMatch(/own GEMM/)
    expect(new Set(products()).size).toBeGreaterThan(50)
  })

  it.each([
    ['create', /own GEMM \(.*double\.so: cublasLtCreate failed with status 1\)/],
    ['heuristic', /own GEMM \(.*a trial product failed at the choice of an algorithm with status 15\)/],
    ['none', /own GEMM \(.*a trial product failed at the choice of an algorithm: none was found\)/],
    ['matmul', /own GEMM \(.*a trial product failed at the product with status 13\)/],
    ['wrong', /own GEMM \(.*a trial product came out wrong\)/],
    ['later', /cuBLASLt 130000 from .*; own GEMM for products that it refused, the first at the product with status 13/],
  ])('fall back to own kernels when the library fails: %s', async (fault, reason) => {
    const { env } = through(fault, { LOOPLM_CUDA_GEMM: 'library', LOOPLM_CUBLASLT_DOUBLE: fault })
    const { failures, status, description } = await emulatedKernelTests(['--dtype', 'bf16', 'gemm weight gradient'], env)
    expect(failures).toEqual([])
    expect(status).toBe(0)
    expect(description).toMatch(reason)
  })

  it.each([
    [
      { LOOPLM_CUBLASLT: '/nowhere/libcublasLt.so' },
      /own GEMM \(cuBLASLt was not found: \/nowhere\/libcublasLt\.so: cannot open/,
    ],
    [{ LOOPLM_CUBLASLT: emulatedLibrary }, /own GEMM \(.*emulated\.so has no function cublasLt/],
    [{ LOOPLM_CUBLASLT: cublasLtDouble, LOOPLM_CUDA_GEMM: 'own' }, /own GEMM \(LOOPLM_CUDA_GEMM=own\)/],
  ])('looplm info says why they are not used: %o', (env, reason) => {
    const { stdout } = spawnSync(process.execPath, [join(root, 'dist', 'src', 'cli', 'main.js'), 'info'], {
      encoding: 'utf8',
      env: { ...process.env, LOOPLM_CUDA_LIBRARY: emulatedLibrary, ...env },
    })
    expect(stdout).toMatch(reason)
  })

  it('reproduce a golden fixture: scores, gradients, steps and tokens', async () => {
    const { env, products } = through('golden', { LOOPLM_CUDA_GEMM: 'library' })
    const losses = ['stage1', 'looprpt', 'grpo_clip_kl', 'rltt_exit-pdf_attached']
    const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs')
    const { stdout, stderr, status } = await runTests(
      process.execPath,
      [
        vitest,
        'run',
        '--root',
        root,
        'test/model/golden.test.ts',
        '-t',
        `cuda-emulated.*fixture gqa.*(scores|of (${losses.join('|')})$|AdamW|decodes)`,
      ],
      { NO_COLOR: '1', ...env },
    )
    expect(status, `${stdout}${stderr}`).toBe(0)
    expect(stdout).toMatch(/Tests +7 passed/)
    expect(products().length).toBeGreaterThan(1000)
  })
})
