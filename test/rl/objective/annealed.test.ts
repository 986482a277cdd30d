// Recipes that move credit between loops, and one in which every loop imitates right samples.
import { describe, expect, it } from 'vitest'
import { recipes } from '../../../src/rl/objective/recipes.js'
import type { ObjectiveInput } from '../../../src/rl/objective/schema.js'
import { ObjectiveTrainer } from '../../../src/rl/objective-trainer.js'
import { difference, tinyBatch, tinyModel } from '../../tiny.js'

const rewards = [1, 0, 0.5, 0, 0, 1, 1, 0]
const lastLoop: ObjectiveInput = { terms: [{ weights: 'last', surrogate: 'reinforce' }] }
type Objective = ConstructorParameters<typeof ObjectiveTrainer>[1] extends { objective?: infer O } | undefined ? O : never

/** The gradient of an objective after some steps of it that leave the model as it is. */
async function gradient(objective: Objective, steps = 0) {
  using model = await tinyModel('cpu')
  using trainer = new ObjectiveTrainer(model, { objective, groupSize: 4, learningRate: 1e-30, onWarning: () => {} })
  for (let step = 0; step < steps; step++) await trainer.update({ ...tinyBatch, rewards })
  return (await trainer.gradients({ ...tinyBatch, rewards })).gradients
}

describe('annealed credit', () => {
  it.each([
    ['anneal-to-last', recipes.rltt, lastLoop],
    ['anneal-to-rltt', lastLoop, recipes.rltt],
  ] as const)('%s switches its objective after the given steps, not before', async (name, first, then) => {
    const until = recipes[name][0].until!
    const [early, late] = [await gradient(first), await gradient(then)]
    expect(difference(early, late)).toBeGreaterThan(0.01)
    expect(difference(await gradient(name), early)).toBeLessThan(1e-6)
    expect(difference(await gradient(name, until - 1), early)).toBeLessThan(1e-6)
    expect(difference(await gradient(name, until), late)).toBeLessThan(1e-6)
  })
})

describe('imitation', () => {
  it('adds a tenth of the likelihood of right samples to the last-loop gradient', async () => {
    const [whole, last] = [await gradient('imitation'), await gradient(lastLoop)]
    const likelihood: ObjectiveInput = {
      terms: [{ weights: 'uniform', surrogate: 'reinforce', advantage: { baseline: 'none' } }],
    }
    const imitated = await gradient(likelihood)
    const sum = new Map(
      [...last].map(([name, values]) => [name, Float64Array.from(values, (value, i) => value + 0.1 * imitated.get(name)![i]!)]),
    )
    expect(difference(whole, sum)).toBeLessThan(1e-5)
    expect(difference(whole, last)).toBeGreaterThan(0.01)
  })
})
