// The CUDA backend without a GPU: the same .cu files, compiled by g++ against cuda/emulator. What a GPU does: npm run test:gpu.
import { beforeAll, describe, expect, it } from 'vitest'
import { devices, LoopLMError, tensor, zeros } from '../src/index.js'
import { buildEmulated, emulatedKernelTests } from './emulated.js'

const device = 'cuda-emulated' as 'cuda' // no name for users

beforeAll(buildEmulated, 900_000)

describe('kernels on cuda-emulated', () => {
  // Counting 20,000 draws takes minutes there: that is in npm run test:long.
  it.each(['f32', 'bf16'])('agree with the reference in %s', { timeout: 1_800_000 }, (dtype) => {
    const { failures, passed, status } = emulatedKernelTests(['--dtype', dtype, '--skip', 'sample: frequencies'])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(1000)
    expect(status).toBe(0)
  })
})

describe('the device', () => {
  it('computes on tensors', async () => {
    using x = tensor([[1, 2, 3]], undefined, { device })
    using y = await x.matmul(x, { transposeB: true })
    expect(Array.from(await y.data())).toEqual([14])
  })

  it('says what was asked and what is free when memory is out, and goes on', async () => {
    using huge = zeros([2 ** 20, 2 ** 26], { device })
    const error = await huge.data().catch((e) => e)
    expect(error).toBeInstanceOf(LoopLMError)
    expect(error.code).toBe('OUT_OF_MEMORY')
    expect(error.message).toMatch(/262144\.00 GiB were asked, \d+\.\d+ GiB of \d+\.\d+ GiB are free/)
    using x = tensor([1], undefined, { device })
    expect(Array.from(await x.data())).toEqual([1])
  })

  it('is listed with what was tried, and a device that is not there is refused by name', () => {
    const cuda = devices().find(({ name }) => name === 'cuda')!
    expect(cuda.description).toMatch(/looplm_cuda\.so: /)
    expect(() => zeros([1], { device: 'cuda:99' })).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED', message: expect.stringMatching(/cuda:99/) }),
    )
  })

  it('auto is cuda where that works and the CPU elsewhere', async () => {
    const works = devices().find(({ name }) => name === 'cuda')!.available
    using x = zeros([1], { device: 'auto' })
    expect(x.device).toBe(works ? 'cuda' : 'cpu')
  })
})
