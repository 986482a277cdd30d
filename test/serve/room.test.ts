// The server's room for tokens is that of the model's device.
import { expect, it } from 'vitest'
import { createServer, deviceMemory, LoopLM, Tokenizer } from '../../src/index.js'
import { roomForTokens } from '../../src/serve/options.js'

const config = {
  ...{ vocab_size: 300, hidden_size: 256, intermediate_size: 48, num_hidden_layers: 3, num_attention_heads: 4 },
  ...{ num_key_value_heads: 2, total_ut_steps: 4, max_position_embeddings: 2 ** 24 },
}

it.each([
  ['cpu', 'float32', 'per-loop', 4 * 4],
  ['cpu', 'bfloat16', 'per-loop', 4 * 2],
  ['cpu', 'float32', 'shared', 4],
  ['reference', 'float64', 'per-loop', 4 * 8],
] as const)('reserves half the free memory for the cache on %s in %s with kv %s', async (device, dtype, kv, bytes) => {
  using model = await LoopLM.create(config, { device, dtype })
  model.tokenizer = Tokenizer.bytes()
  const { settings } = createServer(model, { kv })
  const perToken = 2 * 3 * 2 * 64 * bytes // keys and values of 3 layers, each 2 heads of 64 numbers
  expect(roomForTokens(model, settings, 1e9)).toBe(Math.floor(5e8 / perToken))
  expect(roomForTokens(model, settings, 1e15)).toBe(2 ** 24)
  // what is free changes between two looks
  const expected = Math.min(2 ** 24, deviceMemory(device).free / 2 / perToken)
  expect(settings.maxCachedTokens / expected).toBeGreaterThan(0.8)
  expect(settings.maxCachedTokens / expected).toBeLessThan(1.25)
  expect(createServer(model, { kv, maxCachedTokens: 7 }).settings.maxCachedTokens).toBe(7)
})
