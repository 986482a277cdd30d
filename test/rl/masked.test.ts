// Episodes in batches: what the environment wrote carries nothing, and turns have their own advantages.
import { describe, expect, it } from 'vitest'
import { type ObjectiveInput, ObjectiveTrainer, PretrainTrainer, RLTTTrainer, type RolloutBatch } from '../../src/index.js'
import { turnAdvantages } from '../../src/rl/objective/turns.js'
import { expectDerivative } from '../central-differences.js'
import { forward, type Parameters, prediction } from '../looped-model.js'
import { refusal } from '../refusal.js'
import { difference, parametersOf, tinyConfig, tinyModel } from '../tiny.js'

const groupSize = 2
const config = { ...tinyConfig }
/** Prompts of two tokens; the model wrote two turns of two, the environment what is between. */
const sequences = [
  [1, 2, 3, 4, 5, 6, 7, 8],
  [1, 2, 4, 4, 9, 7, 1],
]
const masks = [
  [1, 1, 1, 0, 0, 1, 1],
  [1, 1, 1, 0, 1, 1],
]
const turns = [
  [
    { begin: 2, end: 4, reward: 0.5 },
    { begin: 6, end: 8, reward: null },
  ],
  [
    { begin: 2, end: 4, reward: 0 },
    { begin: 5, end: 7, reward: 0.25 },
  ],
]
const batch: RolloutBatch = { sequences, promptLengths: [2, 2], mask: masks, turns, rewards: [1.5, 0.25] }
const gamma = 0.9

/** Advantages of the turns by hand: the rest of the first reward, 1, belongs to its last turn. */
const returns = [
  [0.5 + gamma * 1, 1],
  [0 + gamma * 0.25, 0.25],
]
const handmade = returns.map((own, i) => own.map((G, k) => G - (G + returns[1 - i]![k]!) / 2))

describe('turn advantages', () => {
  it('compare the return with the group at the same turn', () => {
    const input = { rewards: [1.5, 0.25], turns, groupSize }
    for (const [i, own] of turnAdvantages({ discount: gamma, scale: 'none' }, input).entries())
      for (const [k, a] of own.entries()) expect(a).toBeCloseTo(handmade[i]![k]!, 12)
    const z = turnAdvantages({ discount: gamma, scale: 'group' }, input)
    for (const [i, own] of z.entries()) for (const a of own) expect(a).toBeCloseTo(i === 0 ? Math.SQRT1_2 : -Math.SQRT1_2, 5)
  })

  it('compare with all turns of the group if only one sequence has the turn', () => {
    const alone = [turns[0]!, [{ begin: 2, end: 4, reward: 0 }]]
    const [first, second] = turnAdvantages({ discount: 1, scale: 'none' }, { rewards: [1.5, 0], turns: alone, groupSize })
    expect([...first!, ...second!]).toEqual([0.75, 1 - 2.5 / 3, -0.75].map((x) => expect.closeTo(x, 12)))
  })

  it('equal sequence advantages without turn rewards and discount', async () => {
    const silent = turns.map((own) => own.map((turn) => ({ ...turn, reward: null })))
    const given = { ...batch, turns: silent, rewards: [1, 0] }
    using model = await tinyModel()
    const of = async (source: 'reward' | 'turn') => {
      using trainer = new RLTTTrainer(model, { groupSize, advantage: { source } })
      return trainer.gradients(given)
    }
    const [whole, byTurn] = [await of('reward'), await of('turn')]
    expect(difference(whole.gradients, byTurn.gradients)).toBeLessThan(1e-6) // ε beside deviations alone
    expect(byTurn.loss).toBeCloseTo(whole.loss, 6)
  })

  it.each([
    ['every loop', 'uniform', 0, 0],
    ['the last loop with KL and entropy', 'last', 0.3, 0.2],
  ] as const)('agree with central differences through masked episodes: %s', async (_, weights, beta, entropy) => {
    using model = await tinyModel()
    const own = (await parametersOf(model)) as Parameters
    const reference = sequences.map((ids, i) => ids.slice(1).map((_, j) => -2 + 0.3 * Math.sin(3 * i + j)))
    const objective: ObjectiveInput = {
      terms: [{ weights, advantage: { source: 'turn', discount: gamma, scale: 'none' } }],
      ...(beta === 0 ? {} : { kl: { beta } }),
      entropy: { token: entropy },
    }
    using trainer = new ObjectiveTrainer(model, { objective, groupSize })
    const { loss, gradients } = await trainer.gradients({ ...batch, ...(beta === 0 ? {} : { referenceLogprobs: reference }) })
    const last = config.total_ut_steps - 1
    const independent = (p: Parameters) => {
      let total = 0
      for (const [i, ids] of sequences.entries()) {
        const run = forward(config, p, ids)
        const n = 1 / (sequences.length * 4) // each response has four tokens of the model
        for (const [k, { begin, end }] of turns[i]!.entries()) {
          for (let j = begin - 1; j < end - 1; j++) {
            const { logprobs, entropy: H } = prediction(config, p, run, ids, j)
            const mean = weights === 'last' ? logprobs[last]! : logprobs.reduce((a, b) => a + b, 0) / logprobs.length
            total -= n * handmade[i]![k]! * mean
            const d = reference[i]![j]! - logprobs[last]!
            total += n * (beta * (Math.exp(d) - d - 1) - entropy * H)
          }
        }
      }
      return total
    }
    expect(loss).toBeCloseTo(independent(own), 10)
    expect([...gradients.keys()]).toEqual([...own.keys()])
    expectDerivative(gradients, own, independent)
  })
})

describe('a mask', () => {
  it('excludes tokens of the environment from the mean length', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { groupSize })
    const { turns: _, ...plain } = batch
    const metrics = await trainer.update(plain)
    expect(metrics['completions/mean_length']).toBe(4)
  })

  it('is rejected by name and by the compiler if misspelt', async () => {
    using model = await tinyModel()
    using policy = new RLTTTrainer(model, { groupSize })
    using pretrain = new PretrainTrainer(model, {})
    // @ts-expect-error there is no field masks
    const refused = [() => policy.update({ ...batch, masks: masks }), () => pretrain.update({ sequences, masks: masks })]
    for (const update of refused) expect((await refusal(update)).message).toMatch(/masks: unknown field; did you mean mask/)
  })

  it('is rejected by name if it does not fit, and so are turns', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { groupSize, advantage: { source: 'turn' } })
    const wrong = async (more: object) => (await refusal(() => trainer.update({ ...batch, ...more }))).message
    expect(await wrong({ mask: [masks[0], [1]] })).toMatch(/mask\[1\] must have length - 1 = 6 entries/)
    expect(await wrong({ turns: [turns[0], [{ begin: 1, end: 4, reward: 0 }]] })).toMatch(
      /turns\[1\]\[0\] must have begin and end from 2 to 7/,
    )
    expect(await wrong({ turns: [turns[0], [{ begin: 2, end: 4, reward: 'x' }]] })).toMatch(
      /turns\[1\]\[0\]\.reward must be a finite number/,
    )
    expect(await wrong({ turns: [turns[0]] })).toMatch(/turns has 1 entries for 2 sequences/)
  })
})
