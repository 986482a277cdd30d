// Setup of vitest.device.config.ts: what a test asks of device `cpu`, or of none, goes to LOOPLM_TEST_DEVICE; where it does not say how
// many threads, LOOPLM_TEST_THREADS does.
import { vi } from 'vitest'

vi.mock('../src/tensor/devices.js', async (original) => {
  const module = await original<typeof import('../src/tensor/devices.js')>()
  const checkDevice: typeof module.checkDevice = (device, operation) =>
    module.checkDevice((device ?? 'cpu') === 'cpu' ? process.env.LOOPLM_TEST_DEVICE : device, operation)
  return { ...module, checkDevice }
})

vi.mock('../src/native.js', async (original) => {
  const module = await original<typeof import('../src/native.js')>()
  const threads = Number(process.env.LOOPLM_TEST_THREADS ?? 0)
  const context: typeof module.context = (device, given, operation) =>
    module.context(device, given === 0 && device === 'cpu' ? threads : given, operation)
  return { ...module, context }
})

// Without this every test would pass on the CPU where the modules above are not those that the tests use.
const { zeros } = await import('../src/index.js')
using one = zeros([1])
const { LOOPLM_TEST_DEVICE = 'cpu' } = process.env
if (one.device !== LOOPLM_TEST_DEVICE) throw new Error(`tests of device ${LOOPLM_TEST_DEVICE} use ${one.device}`)
