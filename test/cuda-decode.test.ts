// Decoding on device cuda: whichever way the loops of a token are computed (LOOPLM_CUDA_DECODE), the results are the same bits.
import { beforeAll, describe, expect, it } from 'vitest'
import { generateBy, total } from './decode-ways.js'
import { buildEmulated } from './emulated.js'

beforeAll(buildEmulated, 900_000)

describe.each(['float32', 'bfloat16'])('a decoded token in %s', (dtype) => {
  it('has the same bits by launches and by graph', { timeout: 600_000 }, () => {
    const launches = generateBy('launches', 'cuda-emulated', dtype, 'short')
    const graph = generateBy('graph', 'cuda-emulated', dtype, 'short')
    for (const [i, { made }] of launches.entries()) expect(graph[i]!.made).toEqual(made)
    expect(total(launches, 'replayedPasses')).toBe(0)
    expect(total(graph, 'replayedPasses')).toBeGreaterThan(0.7 * total(graph, 'passes'))
  })
})
