// Every kernel test on the emulated CUDA device, also those that draw many thousand samples, and products through the stand-in for cuBLASLt.
import { beforeAll, describe, expect, it } from 'vitest'
import { buildEmulated, cublasLtDouble, emulatedKernelTests } from '../emulated.js'

beforeAll(buildEmulated, 900_000)

describe.concurrent('all kernel tests on cuda-emulated', () => {
  it.each(['f32', 'bf16'])('in %s', async (dtype) => {
    const { failures, passed, status } = await emulatedKernelTests(['--dtype', dtype])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(1000)
    expect(status).toBe(0)
  })

  it('of products, by cuBLASLt', async () => {
    const env = { LOOPLM_CUDA_GEMM: 'library', LOOPLM_CUBLASLT: cublasLtDouble }
    const { failures, passed, status } = await emulatedKernelTests(['gemm'], env)
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(150)
    expect(status).toBe(0)
  })
})
