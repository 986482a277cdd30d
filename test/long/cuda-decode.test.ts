// The three ways of decoding on device cuda give the same bits, for many models, batches, exit rules and KV policies. Their greedy tokens
// are those of the reference.
import { beforeAll, describe, expect, it } from 'vitest'
import { generateBy, total, ways } from '../decode-ways.js'
import { buildEmulated } from '../emulated.js'

beforeAll(buildEmulated, 900_000)

describe.each(['float32', 'bfloat16'])('decoding in %s', (dtype) => {
  it('gives the same bits by separate launches, a graph, or one kernel', { timeout: 3_600_000 }, () => {
    const [launches, graph, token] = ways.map((way) => generateBy(way, 'cuda-emulated', dtype, 'long'))
    for (const [i, { from, rows, options, made }] of launches!.entries())
      for (const other of [graph!, token!])
        expect({ from, rows, options, made: other[i]!.made }).toEqual({ from, rows, options, made })
    expect(total(graph!, 'replayedPasses')).toBeGreaterThan(0.5 * total(graph!, 'passes'))
    expect(total(token!, 'wholeTokens')).toBeGreaterThan(500)
  })
})

it('greedy tokens and their loops match the reference', { timeout: 3_600_000 }, () => {
  const [cuda, reference] = [
    generateBy('token', 'cuda-emulated', 'float32', 'long'),
    generateBy('token', 'reference', 'float64', 'long'),
  ]
  for (const [i, { from, rows, options, made }] of reference.entries()) {
    if ('temperature' in options) continue
    const { tokens, loops } = cuda[i]!.made
    expect({ from, rows, options, tokens, loops }).toEqual({ from, rows, options, tokens: made.tokens, loops: made.loops })
  }
})
