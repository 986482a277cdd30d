// Decoding on device cuda: whichever way the loops of a token are computed (LOOPLM_CUDA_DECODE), the results are the same bits.
import { beforeAll, describe, expect, it } from 'vitest'
import { type Generated, generateBy, total, ways } from '../decode-ways.js'
import { buildEmulated, triesAll } from '../emulated.js'

const device = process.env.LOOPLM_TEST_DEVICE ?? 'cuda-emulated' // npm run test:gpu has a real one
beforeAll(() => {
  if (device === 'cuda-emulated') buildEmulated()
})

// In bfloat16 the emulator has the kernel tests of decode_token here, and this in test/long/cuda-decode.test.ts.
describe.each(triesAll(device) ? ['float32', 'bfloat16'] : ['float32'])('a decoded token in %s', (dtype) => {
  it('has the same bits by separate launches, a graph, or one kernel', () => {
    const [launches, graph, token] = ways.map((way) => generateBy(way, device, dtype, 'short')) as [
      Generated[],
      Generated[],
      Generated[],
    ]
    for (const [i, { made }] of launches.entries()) {
      expect(graph[i]!.made).toEqual(made)
      expect(token[i]!.made).toEqual(made)
    }
    expect([total(launches, 'replayedPasses'), total(launches, 'wholeTokens'), total(graph, 'wholeTokens')]).toEqual([0, 0, 0])
    expect(total(graph, 'replayedPasses')).toBeGreaterThan(0.7 * total(graph, 'passes'))
    for (const { from, rows, options, wholeTokens, made } of token) {
      if ('again' in options) continue
      const fits = typeof from === 'string' || (from as { head_dim: number }).head_dim % 8 === 0 // one model has heads of 10
      if (rows === 1) expect(wholeTokens).toBe(fits ? made.tokens[0]!.length - 1 : 0)
      else if (rows === 2 && fits) expect(wholeTokens).toBeGreaterThan(0) // when the other has ended
    }
  })
})
