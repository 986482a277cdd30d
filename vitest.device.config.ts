import { mergeConfig } from 'vitest/config'
import base from './vitest.config.js'

// The numerical tests with another device in the place of `cpu` (LOOPLM_TEST_DEVICE=cuda is npm run test:gpu), or on the CPU with a number
// of threads (LOOPLM_TEST_THREADS, in test/long/processors.test.ts), without what the emulator computes alone.
const numerical = ['nccl', 'golden', 'kernels', 'invariance', 'precision', 'model', 'generate', 'quantize', 'trainers', 'looprpt']
const onProcessor = ['rounding', 'tensor', 'scheduler', 'lora', 'looprpt-gradients', 'objective', 'batch', 'saved-folder', 'cuda']
const threads = process.env.LOOPLM_TEST_THREADS !== undefined
const names = [...numerical, ...(threads ? onProcessor : ['cuda-decode'])]
const device = mergeConfig(base, {
  test: {
    maxWorkers: 1, // they share the device
    isolate: true, // test/device.ts replaces modules
    setupFiles: ['test/device.ts'],
    ...(threads ? { testNamePattern: /^(?!kernels on cuda-emulated|products use|'cuda-emulated'|the programme for a GPU)/ } : {}),
  },
})
// test/device.ts replaces modules of src/, which it cannot do in dist/
export default { ...device, plugins: [], test: { ...device.test, include: names.map((name) => `test/**/${name}.test.ts`) } }
