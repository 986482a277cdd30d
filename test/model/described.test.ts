// A looped model is one description: a family that nobody has published scores, learns, is saved and loaded.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { LoopLM, type LoopLMConfigInput, RLTTTrainer } from '../../src/index.js'
import { registerFamily } from '../../src/model/architectures/families.js'
import { expectDerivative } from '../central-differences.js'
import { describedConfig, describedLogSoftmax, describedStates } from '../described-model.js'
import { twoRegisters } from '../fixtures/two-registers.js'
import { relativeError } from '../golden-files.js'
import type { Parameters } from '../looped-model.js'
import { parametersOf } from '../tiny.js'

const folder = mkdtempSync(join(tmpdir(), 'looplm-described-'))
afterAll(() => rmSync(folder, { recursive: true }))
beforeAll(() => registerFamily('two_registers', twoRegisters))

const config: LoopLMConfigInput = { ...describedConfig, num_attention_heads: 4, num_key_value_heads: 2 }
const sequences = [
  [1, 10, 2, 11, 0, 3],
  [7, 8, 11, 5],
]
const initialStates = sequences.map((ids, i) => Float64Array.from({ length: 16 * ids.length }, (_, k) => Math.sin(k + 5 * i)))
const coefficients = sequences.map((ids, i) => Float64Array.from({ length: 3 * (ids.length - 1) }, (_, k) => Math.cos(k + i)))

/** T × (length - 1) log-probabilities of a sequence. */
function logprobs(model: LoopLM, p: Parameters, i: number): number[] {
  const ids = sequences[i]!
  const states = describedStates(model.architecture, p, ids, { initialStates: initialStates[i]! })
  return states.flatMap((rows) =>
    rows.slice(0, -1).map((row, j) => describedLogSoftmax(model.architecture, p, row)[ids[j + 1]!]!),
  )
}

it.each([
  ['reference', 1e-12],
  ['cpu', 1e-5],
] as const)('a registered family scores as its description says (%s)', async (device, bound) => {
  using model = await LoopLM.create(config, { device, seed: 1 })
  expect(model.family).toBe('two_registers')
  const scores = await model.score(sequences, { initialStates })
  const p = await parametersOf(model)
  for (const i of sequences.keys()) expect(relativeError(scores.logprobs[i]!, logprobs(model, p, i))).toBeLessThan(bound)
})

it.each(['none', 'loop', 'layer'] as const)(
  'a registered family has the gradient of its loss by central differences, recompute %s',
  async (recompute) => {
    using model = await LoopLM.create(config, { device: 'reference', seed: 1 })
    await model.backward(sequences, coefficients, { initialStates, recompute })
    const own = await parametersOf(model)
    const gradients = await model.gradients()
    expect([...gradients.keys()]).toEqual([...own.keys()])
    expectDerivative(gradients, own, (p) =>
      sequences.reduce((sum, _, i) => logprobs(model, p, i).reduce((s, l, k) => s + coefficients[i]![k]! * l, sum), 0),
    )
  },
)

it('a registered family learns', async () => {
  using model = await LoopLM.create(config, { seed: 1 })
  const batch = { sequences, promptLengths: [1, 1], advantages: [1, 1] }
  const mean = async () => {
    const scored = (await model.score(sequences, { lastLoop: true })).logprobs
    return scored.flatMap((row) => Array.from(row)).reduce((sum, l) => sum - l, 0)
  }
  const before = await mean()
  using trainer = new RLTTTrainer(model, { weights: 'uniform', learningRate: 1e-2 })
  for (let step = 0; step < 20; step++) await trainer.update(batch)
  expect(await mean()).toBeLessThan(0.5 * before)
})

it('a registered family is saved and loaded bit for bit', async () => {
  using model = await LoopLM.create(config, { seed: 1 })
  await model.save(folder)
  using again = await LoopLM.fromPretrained(folder)
  expect(again.family).toBe('two_registers')
  expect(again.architecture).toEqual(model.architecture)
  expect(await again.score(sequences)).toEqual(await model.score(sequences))
})
