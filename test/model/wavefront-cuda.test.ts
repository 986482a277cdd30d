// Wavefront decoding with the CUDA kernels, without a GPU. More requests, and the other readouts: test/long/emulated.test.ts.
import { beforeAll, describe } from 'vitest'
import type { DeviceName } from '../../src/index.js'
import { buildEmulated } from '../emulated.js'
import { decodesAlike } from '../wavefront-cases.js'

beforeAll(buildEmulated, 900_000)

describe('on cuda-emulated', () =>
  decodesAlike({ device: 'cuda-emulated' as DeviceName, dtype: 'float32' }, 18, {
    only: 'settle in the middle',
    maxNewTokens: 6,
  }))
