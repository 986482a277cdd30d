// Batches with vectors in place of embedded tokens: their gradient by central differences, in every trainer that takes them.
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import {
  GRPOTrainer,
  type InputVectors,
  LoopLM,
  LoopRPTTrainer,
  ObjectiveTrainer,
  PretrainTrainer,
  RLTTTrainer,
} from '../../src/index.js'
import { generator } from '../gguf-file.js'
import { refusal } from '../refusal.js'

const root = join(import.meta.dirname, '..', 'fixtures', 'families')
const folders = [join(root, '..', 'base'), ...readdirSync(root).map((name) => join(root, name))]
const sequences = [
  [1, 7, 3, 9, 4],
  [1, 7, 3, 2, 8],
  [5, 6, 2, 4],
]
const promptLengths = [3, 3, 2]
const advantages = [1, 0, -0.5] // the second one has no gradient
const places = [[0, 1], [2], undefined]
const load = (folder: string) => LoopLM.fromPretrained(folder, { device: 'reference' })

function vectorsOf(model: LoopLM): (InputVectors | undefined)[] {
  const next = generator(3)
  const row = () => Array.from({ length: model.config.hidden_size }, () => next() - 0.5)
  return places.map((positions) => positions && { positions, values: positions.flatMap(row) })
}

const shared = { learningRate: 1e-3, initialState: 'zeros', maxGradNorm: 0 } as const
const makers = {
  pretrain: (model: LoopLM) => new PretrainTrainer(model, { ...shared, weights: 'uniform' }),
  rltt: (model: LoopLM) => new RLTTTrainer(model, { ...shared, weights: 'uniform' }),
  grpo: (model: LoopLM) => new GRPOTrainer(model, { ...shared, beta: 0.1 }),
}

describe.each(folders)('%s', (folder) => {
  it.each(['pretrain', 'rltt'] as const)('the gradient of input vectors in %s agrees with central differences', async (name) => {
    using model = await load(folder)
    using trainer = makers[name](model)
    const inputVectors = vectorsOf(model)
    const batch = (vectors: (InputVectors | undefined)[]) => ({
      ...{ sequences, promptLengths, inputVectors: vectors },
      ...(name === 'rltt' ? { advantages } : {}),
    })
    const { inputVectors: gradient } = await trainer.gradients(batch(inputVectors))
    expect(gradient.map(({ length }) => length)).toEqual(inputVectors.map((own) => own?.values.length ?? 0))
    if (name === 'rltt') expect([...gradient[1]!].every((value) => value === 0)).toBe(true)
    const step = 1e-5
    const lossAt = async (change: number, k: number) => {
      const own = inputVectors[0]!
      const moved = { ...own, values: Array.from(own.values, (value, at) => (at === k ? value + change : value)) }
      return (await trainer.gradients(batch([moved, ...inputVectors.slice(1)]))).loss
    }
    for (let k = 0; k < inputVectors[0]!.values.length; k += 9) {
      const difference = ((await lossAt(step, k)) - (await lossAt(-step, k))) / (2 * step)
      expect(Math.abs(gradient[0]![k]! - difference)).toBeLessThan(1e-8 + 1e-5 * Math.abs(difference))
    }
    const found: unknown[] = []
    await trainer.update(batch(inputVectors), { onInputVectors: (each) => found.push(each) })
    expect(found).toEqual([gradient])
    const failing = trainer.update(batch(inputVectors), { onInputVectors: async () => Promise.reject(new Error('no idea')) })
    await expect(failing).rejects.toThrow('no idea')
  })

  it('the reference model sees the input vectors too, so the KL is 0', async () => {
    using model = await load(folder)
    using trainer = makers.grpo(model)
    const metrics = await trainer.update({ sequences, promptLengths, advantages, inputVectors: vectorsOf(model) })
    expect(metrics.kl).toBe(0)
  })
})

it('an objective function gets the same gradient of input vectors as the equivalent term', async () => {
  using model = await load(folders[0]!)
  using term = makers.rltt(model)
  using own = new ObjectiveTrainer(model, {
    ...shared,
    objective: ({ sequences: rows, promptLengths: prompts, advantages: A, lengthNormalizers, scores }) => ({
      loss: 0,
      coefficients: scores.logprobs.map((logprobs, i) =>
        logprobs.map((_, k) =>
          k % (rows[i]!.length - 1) < prompts[i]! - 1 ? 0 : (-A[i]! * lengthNormalizers[i]!) / scores.loops,
        ),
      ),
    }),
  })
  const batch = { sequences, promptLengths, advantages, inputVectors: vectorsOf(model) }
  const [want, got] = [await term.gradients(batch), await own.gradients(batch)]
  for (const [i, row] of want.inputVectors.entries())
    for (const [k, value] of row.entries()) expect(got.inputVectors[i]![k]).toBeCloseTo(value, 12)
})

it('changing input vectors after the call has no effect', async () => {
  using model = await load(folders[0]!)
  using trainer = makers.rltt(model)
  const vectors = vectorsOf(model).map((own) => own && { ...own, values: Float64Array.from(own.values) })
  const batch = { sequences, promptLengths, advantages, inputVectors: vectors }
  const want = await trainer.gradients(batch)
  const running = trainer.gradients(batch)
  vectors[0]!.values.fill(9)
  expect(await running).toEqual(want)
})

it.each([
  [1, 'RLTTTrainer.update: onInputVectors must be a function, got 1'],
  [() => Promise.reject(new Error('full')), 'onInputVectors: full'],
])('an onInputVectors that fails is named: %s', async (onInputVectors, message) => {
  using model = await load(folders[0]!)
  using trainer = makers.rltt(model)
  const given = { sequences, promptLengths, advantages, inputVectors: vectorsOf(model) }
  expect((await refusal(() => trainer.update(given, { onInputVectors: onInputVectors as never }))).message).toBe(message)
})

it('trainers and objectives that do not read input vectors reject them', async () => {
  using model = await load(folders[0]!)
  const batch = { sequences, promptLengths, advantages, rewards: [1, 0, 1], inputVectors: vectorsOf(model) }
  using looprpt = new LoopRPTTrainer(model, {})
  expect((await refusal(() => looprpt.gradients(batch as never))).message).toMatch(/inputVectors: unknown field/)
  using gate = new PretrainTrainer(model, { stage: 2 })
  expect((await refusal(() => gate.gradients(batch as never))).message).toMatch(/inputVectors: Stage II trains the exit gate/)
  const states = { sequences, promptLengths, initialStates: sequences.map(() => [0]) }
  expect((await refusal(() => gate.gradients(states))).message).toMatch(/initialStates: Stage II trains .*; omit initialStates$/)
  using prerl = new ObjectiveTrainer(model, { objective: 'prerl' })
  expect((await refusal(() => prerl.gradients(batch))).message).toMatch(/inputVectors: terms in the marginal space/)
  using rltt = makers.rltt(model)
  expect((await refusal(() => rltt.gradients({ ...batch, inputVectors: [] }))).message).toMatch(/inputVectors/)
  expect((await refusal(() => rltt.update(batch, { inputVectors: 1 } as never))).message).toMatch(/unknown option/)
})
