// Vectors in place of embedded tokens: what an embedded token would give, whatever id stands there, and gradients by central differences.
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { type DeviceName, type InputVectors, LoopLM } from '../../src/index.js'
import { generator } from '../gguf-file.js'
import { embedded } from '../input-vectors.js'
import { refusal } from '../refusal.js'
import { tinyModel } from '../tiny.js'

const families = join(import.meta.dirname, '../fixtures', 'families')
const models = [join(import.meta.dirname, '../fixtures', 'gqa'), ...readdirSync(families).map((name) => join(families, name))]
const sequences = [
  [3, 1, 4, 1, 5, 9, 2],
  [6, 5, 3, 5],
  [8, 9, 7, 9, 3],
]
const promptLengths = [3, 2, 2]
/** Of the first sequence a run and one alone, of the second none, of the third its first token. */
const places = [[0, 1, 4], undefined, [0]]
const states = { initialState: 'zeros' } as const // Huginn draws its state from the ids

function randomVectors(hidden: number, seed = 7, size = 1): (InputVectors | undefined)[] {
  const next = generator(seed)
  return places.map(
    (positions) =>
      positions && { positions, values: positions.flatMap(() => Array.from({ length: hidden }, () => (next() - 0.5) * size)) },
  )
}

/** A loss of every log-probability. */
const weightsOf = (logprobs: readonly ArrayLike<number>[]) => {
  const next = generator(3)
  return logprobs.map((rows) => Array.from(rows, (value) => (value === 0 ? 0 : next() - 0.5))) // 0: of a prompt
}
const dot = (a: readonly ArrayLike<number>[], b: readonly ArrayLike<number>[]) =>
  a.reduce((sum, rows, i) => sum + Array.from(rows).reduce((own, value, j) => own + value * b[i]![j]!, 0), 0)

describe.each(models)('%s', (folder) => {
  it.each(['reference', 'cpu'] as DeviceName[])(
    'input vectors equal to token embeddings give the same bits as the tokens on %s',
    async (device) => {
      using model = await LoopLM.fromPretrained(folder, { device })
      const given = await Promise.all(
        places.map(
          async (positions, i) =>
            positions && {
              positions,
              values: await embedded(
                model,
                positions.map((at) => sequences[i]![at]!),
              ),
            },
        ),
      )
      expect(await model.score(sequences, { ...states, inputVectors: given })).toEqual(await model.score(sequences, states))
      const other = await model.score(sequences, { ...states, inputVectors: randomVectors(model.config.hidden_size) })
      expect(other.logprobs[1]).toEqual((await model.score(sequences, states)).logprobs[1])
      expect(other.logprobs[0]).not.toEqual((await model.score(sequences, states)).logprobs[0])
    },
  )

  it('the ids under input vectors do not matter, nor does the rest of the batch', async () => {
    using model = await LoopLM.fromPretrained(folder, { device: 'reference' })
    const inputVectors = randomVectors(model.config.hidden_size)
    const { logprobs } = await model.score(sequences, { ...states, inputVectors })
    const others = sequences.map((ids, i) => ids.map((id, at) => (places[i]?.includes(at) ? (id + 11) % 30 : id)))
    const { logprobs: same } = await model.score(others, { ...states, inputVectors })
    for (const [i, rows] of logprobs.entries())
      for (const [j, value] of rows.entries()) {
        const target = (j % (sequences[i]!.length - 1)) + 1
        if (!places[i]?.includes(target)) expect(same[i]![j]).toBe(value)
      }
    for (const [i, rows] of logprobs.entries()) {
      const alone = await model.score([sequences[i]!], { ...states, inputVectors: [inputVectors[i]] })
      expect(alone.logprobs[0]).toEqual(rows)
    }
  })

  it('the gradient of input vectors agrees with central differences for every recompute option', async () => {
    using model = await LoopLM.fromPretrained(folder, { device: 'reference' })
    const hidden = model.config.hidden_size
    const inputVectors = randomVectors(hidden)
    const prompts = model.architecture.prefixSeesItself ? { promptLengths } : {}
    const scored = await model.score(sequences, { ...states, ...prompts, inputVectors })
    const weights = weightsOf(scored.logprobs)
    const lossAt = async (change: number, sequence: number, place: number) => {
      const moved = inputVectors.map((own, i) => {
        if (own === undefined || i !== sequence) return own
        return { ...own, values: Array.from(own.values, (value, k) => (k === place ? value + change : value)) }
      })
      return dot((await model.score(sequences, { ...states, ...prompts, inputVectors: moved })).logprobs, weights)
    }
    const gradient = (await scored.backward(weights)).inputVectors
    expect(gradient.map(({ length }) => length)).toEqual(places.map((positions) => (positions?.length ?? 0) * hidden))
    const step = 1e-5
    let largest = 0
    for (const [sequence, rows] of gradient.entries()) {
      for (let k = 0; k < rows.length; k += 5) {
        const difference = ((await lossAt(step, sequence, k)) - (await lossAt(-step, sequence, k))) / (2 * step)
        largest = Math.max(largest, Math.abs(difference))
        expect(Math.abs(rows[k]! - difference)).toBeLessThan(1e-7 + 1e-5 * Math.abs(difference))
      }
    }
    expect(largest).toBeGreaterThan(1e-4)
    const table = model.architecture.parameters.find(({ role }) => role === 'embedding')!.name
    for (const recompute of ['none', 'loop', 'layer'] as const) {
      await model.zeroGradients()
      await model.score(sequences, { ...states, ...prompts, inputVectors })
      expect((await model.backward(weights, { recompute })).inputVectors).toEqual(gradient)
    }
    if (model.architecture.tied) return
    const own = (await model.gradients()).get(table)!
    const embeds = (id: number) => sequences.some((ids, i) => ids.some((each, at) => each === id && !places[i]?.includes(at)))
    for (let id = 0; id < 10; id++) {
      const row = own.slice(id * hidden, (id + 1) * hidden)
      expect(
        row.some((value) => value !== 0),
        `id ${id}`,
      ).toBe(embeds(id) && lastUse(id))
    }
  })

  it('scores and gradients of input vectors on cpu agree with reference', async () => {
    using exact = await LoopLM.fromPretrained(folder, { device: 'reference' })
    using model = await LoopLM.fromPretrained(folder, { device: 'cpu', dtype: 'float32' })
    const inputVectors = randomVectors(model.config.hidden_size)
    const results: (Float32Array | Float64Array)[][] = []
    for (const each of [exact, model]) {
      const scored = await each.score(sequences, { ...states, inputVectors })
      const { inputVectors: gradient } = await scored.backward(weightsOf(scored.logprobs))
      results.push([...scored.logprobs, ...gradient])
    }
    for (const [i, want] of results[0]!.entries()) {
      const size = Math.hypot(...want)
      const far = Math.hypot(...Array.from(want, (value, j) => value - results[1]![i]![j]!))
      expect(far).toBeLessThanOrEqual(1e-4 * size)
    }
  })
})

/** Whether an embedded id has a prediction behind it: a sequence's last token has none. */
const lastUse = (id: number) =>
  sequences.some((ids, i) => ids.slice(0, -1).some((each, at) => each === id && !places[i]?.includes(at)))

it('input vectors that do not fit are rejected by name', async () => {
  using model = await tinyModel()
  const message = async (inputVectors: unknown) =>
    (await refusal(() => model.score([[1, 2, 3]], { inputVectors } as never))).message
  const values = Array.from({ length: 16 }, () => 0.5)
  expect(await message([])).toMatch(/inputVectors must be an array with one entry for each of the 1 sequences/)
  expect(await message([{ positions: [0], values: [1] }])).toMatch(
    /inputVectors\[0\]\.values must hold one of 16 numbers for each of its 1/,
  )
  expect(await message([{ positions: [3], values }])).toMatch(/positions\[0\] \(of 3 tokens, ascending\)/)
  expect(await message([{ positions: [1, 1], values: [...values, ...values] }])).toMatch(/positions\[1\]/)
  expect(await message([{ positions: [0.5], values }])).toMatch(/positions\[0\]/)
  expect(await message([{ positions: [0], values: values.map(() => Number.NaN) }])).toMatch(/inputVectors holds NaN/)
  expect(await message([{ positions: [0], values, vectors: [] }])).toMatch(/vectors/)
})
