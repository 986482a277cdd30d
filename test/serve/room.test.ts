// The server's room for tokens is that of the model's device, which here says how much memory it has.
import { expect, it, vi } from 'vitest'
import { createServer, LoopLM, Tokenizer } from '../../src/index.js'
import { deviceMemory } from '../../src/tensor/devices.js'

vi.mock('../../src/tensor/devices.js', async (original) => ({
  ...(await original<typeof import('../../src/tensor/devices.js')>()),
  deviceMemory: vi.fn(() => ({ free: 1_000_000, total: 2_000_000 })),
}))

const config = {
  ...{ vocab_size: 300, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 3, num_attention_heads: 4 },
  ...{ num_key_value_heads: 2, total_ut_steps: 4 },
}

it.each([
  ['cpu', 'float32', 'per-loop', 4 * 4],
  ['cpu', 'bfloat16', 'per-loop', 4 * 2],
  ['cpu', 'float32', 'shared', 4],
  ['reference', 'float64', 'per-loop', 4 * 8],
] as const)('reserves half the free memory for the cache on %s in %s with kv %s', async (device, dtype, kv, bytes) => {
  using model = await LoopLM.create(config, { device, dtype })
  model.tokenizer = Tokenizer.bytes()
  const { maxCachedTokens } = createServer(model, { kv }).settings
  expect(deviceMemory).toHaveBeenLastCalledWith(device)
  // keys and values of 3 layers, each 2 heads of 8 numbers
  expect(maxCachedTokens).toBe(Math.floor(500_000 / (2 * 3 * 2 * 8 * bytes)))
  expect(createServer(model, { kv, maxCachedTokens: 7 }).settings.maxCachedTokens).toBe(7)
})
