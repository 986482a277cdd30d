// Every kernel test on the emulated CUDA device, also those that draw many thousand samples.
import { beforeAll, describe, expect, it } from 'vitest'
import { buildEmulated, emulatedKernelTests } from '../emulated.js'

beforeAll(buildEmulated, 900_000)

describe.concurrent('all kernel tests on cuda-emulated', () => {
  it.each(['f32', 'bf16'])('in %s', async (dtype) => {
    const { failures, passed, status } = await emulatedKernelTests(['--dtype', dtype])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(1000)
    expect(status).toBe(0)
  })
})
