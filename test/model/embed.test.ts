// Vectors of whole sequences against the states that they are means of: the state of a token is the embedding of that token alone
// behind the tokens before it.
import { beforeAll, describe, expect, it } from 'vitest'
import { LoopLM } from '../../src/model/model.js'
import type { RealArray } from '../../src/model/types.js'
import { refusal } from '../refusal.js'
import { tinyBatch, tinyConfig } from '../tiny.js'

// Lengths change the order of sums, so two states may differ by the roundings of 3 loops of one layer: 16 units of the dtype at the
// size of the state. Whether a token is in the mean changes it by a state over the length, many times that.
const places = [
  { device: 'reference', dtype: 'float64', tolerance: 16 * 2 ** -53 },
  { device: 'cpu', dtype: 'float32', tolerance: 16 * 2 ** -24 },
  { device: 'cpu', dtype: 'bfloat16', tolerance: 16 * 2 ** -9 },
] as const
const { sequences } = tinyBatch

describe.each(places)('embed on $device in $dtype', ({ device, dtype, tolerance }) => {
  let model: LoopLM
  beforeAll(async () => {
    model = await LoopLM.create(tinyConfig, { device, dtype, seed: 3 })
  })

  /** The state of token j, from calls for one token each. */
  async function states(sequence: readonly number[], options: { loops?: number } = {}): Promise<RealArray[]> {
    const list = [(await model.embed([sequence.slice(0, 1)], options))[0]!]
    for (let j = 1; j < sequence.length; j++)
      list.push((await model.embed([sequence.slice(0, j + 1)], { ...options, promptLengths: [j] }))[0]!)
    return list
  }
  const expectMean = (vector: RealArray, of: readonly RealArray[]) => {
    expect(vector).toHaveLength(tinyConfig.hidden_size)
    const size = Math.max(...of.flatMap((state) => [...state]).map(Math.abs))
    const mean = Array.from(vector, (_, k) => of.reduce((sum, state) => sum + state[k]! / of.length, 0))
    expect(Math.max(...mean.map((value, k) => Math.abs(value - vector[k]!)))).toBeLessThanOrEqual(tolerance * size)
  }

  it('is the mean over all tokens without promptLengths, and over the response with them', async () => {
    for (const sequence of [sequences[0]!, sequences[3]!, [5]]) {
      const all = await states(sequence)
      expectMean((await model.embed([sequence]))[0]!, all)
      for (let prompt = 1; prompt < sequence.length; prompt++)
        expectMean((await model.embed([sequence], { promptLengths: [prompt] }))[0]!, all.slice(prompt))
    }
  })

  it('returns the state of the requested loop', async () => {
    const [first] = await model.embed([sequences[0]!], { loops: 1 })
    expectMean(first!, await states(sequences[0]!, { loops: 1 }))
    expect(first).not.toEqual((await model.embed([sequences[0]!]))[0])
  })

  it('does not depend on the rest of the batch', async () => {
    const together = await model.embed([...sequences, [3]])
    for (const [i, sequence] of [...sequences, [3]].entries()) expectMean(together[i]!, await model.embed([sequence]))
  })
})

it('embed and responseMeans reject sequences without a response', async () => {
  using model = await LoopLM.create(tinyConfig, { device: 'reference' })
  const cases: [() => unknown, RegExp][] = [
    [() => model.embed([[1, 2]], { promptLengths: [2] }), /promptLengths\[0\] .* at most 1, got 2/],
    [() => model.embed([[1]], { promptLengths: [1] }), /promptLengths\[0\]/],
    [() => model.embed([[]]), /sequences\[0\] has 0 tokens; at least 1/],
    [() => model.responseMeans([[1]]), /sequences\[0\] has 1 tokens; at least 2/],
  ]
  for (const [run, message] of cases) {
    const error = await refusal(run)
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(message)
  }
})
