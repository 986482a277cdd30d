// Setup of vitest.device.config.ts: what a test asks of device `cpu`, or of none, goes to LOOPLM_TEST_DEVICE.
import { vi } from 'vitest'

vi.mock('../src/tensor/devices.js', async (original) => {
  const module = await original<typeof import('../src/tensor/devices.js')>()
  const checkDevice: typeof module.checkDevice = (device, operation) =>
    module.checkDevice((device ?? 'cpu') === 'cpu' ? process.env.LOOPLM_TEST_DEVICE : device, operation)
  return { ...module, checkDevice }
})
