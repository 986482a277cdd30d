import { mergeConfig } from 'vitest/config'
import base from './vitest.config.js'

// The numerical tests with another device in the place of `cpu`: LOOPLM_TEST_DEVICE=cuda is npm run test:gpu.
const numerical = [
  'golden',
  'kernels',
  'invariance',
  'precision',
  'model',
  'generate',
  'quantize',
  'trainers',
  'looprpt',
  'cuda-decode',
]
const device = mergeConfig(base, { test: { setupFiles: ['test/device.ts'], testTimeout: 600_000 } })
export default { ...device, test: { ...device.test, include: numerical.map((name) => `test/${name}.test.ts`) } }
