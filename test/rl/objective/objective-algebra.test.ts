// The worked numbers of the objective algebra (docs/objectives.md): advantages, rewards of groups, beliefs.
import { describe, expect, it } from 'vitest'
import { native } from '../../../src/native.js'
import { advantagesOf } from '../../../src/rl/objective/advantages.js'
import { beliefAdvantages } from '../../../src/rl/objective/belief.js'
import { enginePasses } from '../../../src/rl/objective/compile.js'
import { advantage, beliefReward, objectiveSchema, rewardShaper, valueAt } from '../../../src/rl/objective/schema.js'
import { shapeRewards } from '../../../src/rl/objective/shape-rewards.js'

const close = (got: readonly (number | null)[], want: readonly number[]) => {
  expect(got).toHaveLength(want.length)
  for (const [i, value] of want.entries()) expect(got[i], `entry ${i} of ${got}`).toBeCloseTo(value, 5)
}

describe('advantages', () => {
  const rewards = [1, 0, 0, 1, 0, 1, 0, 0]
  const of = (spec: object, more: object = {}) => advantagesOf(advantage.parse(spec), { rewards, groupSize: 8, ...more })
  const pattern = (right: number, wrong: number) => rewards.map((r) => (r === 1 ? right : wrong))

  it('have the worked values for every scale, sign, baseline and source', () => {
    close(of({}), pattern(1.207612, -0.724567))
    close(of({ scale: 'population' }), pattern(1.290992, -0.774595))
    close(of({ scale: 'none' }), pattern(0.625, -0.375))
    close(of({ scale: 'none', sign: 'negative' }), pattern(0, -0.375))
    close(of({ scale: 'none', sign: 'positive' }), pattern(0.625, 0))
    close(of({ scale: 'none', positiveWeight: 0.5 }), pattern(0.3125, -0.375))
    close(of({ baseline: 'none' }), rewards)
    close(of({ source: 'one' }), pattern(1, 1))
    close(of({ source: 'zero' }), pattern(0, 0))
  })

  it('SAN: z-scores inside strata, and blended', () => {
    const strata = [0, 0, 0, 1, 1, 1, 2, 2]
    const inside = [1.154699, -0.577349, -0.577349, 0.577349, -1.154699, 0.577349, 0, 0]
    close(of({ strata: { by: 'given', blend: 1 } }, { strata }), inside)
    const blended = [1.181155, -0.650958, -0.650958, 0.892481, -0.939633, 0.892481, -0.362284, -0.362284]
    close(of({ strata: { by: 'given', blend: 0.5 } }, { strata }), blended)
  })

  it('SAN with one stratum equals plain group advantages', () => {
    expect(of({ strata: { by: 'given', blend: 0.5 } }, { strata: rewards.map(() => 0) })).toEqual(of({}))
  })

  it('CAPO: subtract the cost of each response', () => {
    const costs = [0.2, 0.1, 0.9, 0.6, 0.5, 1, 0.3, 0]
    const want = [1.336567, -0.90869, -0.670238, 1.215047, -0.759796, 1.157198, -0.853639, -0.919042]
    close(of({ scale: 'population', cost: {} }, { costs }), want)
  })

  it('CAPO: stay positive for right answers at any cost', () => {
    const costs = rewards.map(() => 1)
    for (const price of [0.05, 5, 100]) {
      const got = of({ scale: 'population', cost: { price } }, { costs })
      for (const [i, reward] of rewards.entries()) if (reward === 1) expect(got[i]).toBeGreaterThanOrEqual(0.001)
    }
  })

  it('BN-GSPO: are normalized once more over the batch', () => {
    const spec = advantage.parse({ batch: true })
    const got = advantagesOf(spec, { rewards: [1, 0, 0, 0, 1, 1, 1, 0], groupSize: 4 })
    close(got, [1.620185, -0.540062, -0.540062, -0.540062, 0.540062, 0.540062, 0.540062, -1.620185])
  })

  it('name missing strata and costs in errors', () => {
    expect(() => of({ strata: { by: 'given' } })).toThrow(/strata/)
    expect(() => of({ cost: {} })).toThrow(/costs/)
  })
})

describe('rewards of groups', () => {
  const shape = (kind: object, input: object) =>
    shapeRewards([rewardShaper.parse(kind)], { rewards: [], groupSize: 4, lengths: [], ...input }, 0)

  it('EVOL-RL: novelty among the answers of a group', () => {
    const embeddings = [
      [1, 0, 0],
      [0.8, 0.6, 0],
      [0, 1, 0],
      [0, 0, 1],
      [0.6, 0, 0.8],
    ]
    const input = { rewards: [0, 0, 0, 0, 0], groupSize: 5, answers: ['4', '4', '4', '5', '5'], embeddings }
    close(shape({ kind: 'novelty' }, input), [0.75, 0.5, 1, -0.75, -0.75])
    const alone = { ...input, rewards: [0, 0], groupSize: 2, answers: ['4', null], embeddings: embeddings.slice(0, 2) }
    close(shape({ kind: 'novelty' }, alone), [1, -1])
    const lone = {
      ...input,
      rewards: [0, 0, 0],
      groupSize: 3,
      answers: ['4', '4', '5'],
      embeddings: [embeddings[0], embeddings[0], embeddings[3]],
    }
    close(shape({ kind: 'novelty' }, lone), [0.75, 0.75, -0.5])
  })

  it('TTRL: the majority answer wins, the earliest of ties, never a missing one', () => {
    close(shape({ kind: 'majority' }, { rewards: [0, 0, 0, 0], answers: ['7', '8', '8', null] }), [0, 1, 1, 0])
    close(shape({ kind: 'majority' }, { rewards: [1, 1, 1, 1], answers: ['7', '8', null, null] }), [1, 0, 0, 0])
    close(shape({ kind: 'majority' }, { rewards: [1, 1, 1, 1], answers: [null, null, null, null] }), [0, 0, 0, 0])
  })

  it('k1.5: shorter responses earn more', () => {
    const got = shape({ kind: 'length' }, { rewards: [1, 0, 1, 0], lengths: [100, 200, 300, 400] })
    close(got, [1 + 0.5, 0, 1 - 0.166667, -0.5])
    close(shape({ kind: 'length' }, { rewards: [1, 0, 1, 0], lengths: [5, 5, 5, 5] }), [1, 0, 1, 0])
  })

  it('DAPO: overlong responses earn less', () => {
    const got = shape({ kind: 'overlong', maxLength: 100, cache: 20 }, { rewards: [1, 1, 1, 1], lengths: [80, 90, 100, 500] })
    close(got, [1, 0.5, 0, 0])
  })

  it('IKEA: right answers with fewer loops earn more', () => {
    close(shape({ kind: 'frugal' }, { rewards: [1, 1, 1, 0], exitLoops: [1, 2.2, 4, 3] }), [1.6, 1.4, 1, 0.05])
  })

  it('weights can change with the step', () => {
    const weight = { from: 1, to: 0, steps: 10 }
    expect([0, 5, 10, 50].map((step) => valueAt(weight, step))).toEqual([1, 0.5, 0, 0])
    const shaper = rewardShaper.parse({ kind: 'length', weight })
    const input = { rewards: [1, 1], groupSize: 2, lengths: [1, 2] }
    close(shapeRewards([shaper], input, 5), [1.25, 0.75])
  })
})

describe('beliefs', () => {
  const curve = [0.1, 0.25, 0.2, 0.6, 0.7]
  const returns = (spec: object, b = curve) =>
    beliefAdvantages(beliefReward.parse({ belief: 'gold-answer', ...spec }), [b], 1)[0]!

  it('give the worked returns of a belief curve', () => {
    close(returns({ value: 'probability' }), [0.15, -0.05, 0.4, 0.1])
    close(returns({ value: 'probability', discount: 1 }), [0.6, 0.45, 0.5, 0.1])
    close(returns({ value: 'log' }), [0.916291, -0.223144, 1.098612, 0.154151])
    close(returns({ value: 'best-of' }), [0.339694, -0.093194, 0.384, 0.0175])
  })

  it('telescope at γ = 1: G_t = φ(b_T) - φ(b_{t-1})', () => {
    close(
      returns({ value: 'log', discount: 1 }),
      curve.slice(0, -1).map((b) => Math.log(0.7 / b)),
    )
  })

  it('apply clip before delta', () => {
    const raw = [0.5, 0.8, 0.3, 0.9, 0.5]
    const spec = { value: 'probability', base: 'none', clip: 0.6 }
    close(returns(spec, raw), [0, -0.3, 0, -0.1])
    close(returns({ ...spec, delta: true }, raw), [0.3, -0.3, 0, 0])
    close(returns({ ...spec, delta: true, discount: 1 }, raw), [0, -0.3, 0, 0])
  })

  it('support cost, normalize and scale', () => {
    close(returns({ value: 'probability', base: 'none', cost: 0.1 }), [0.25, 0.1, 0.4, 0.4])
    const z = returns({ value: 'probability', normalize: 'loops' })
    close(z, [0, -1.069045, 1.336306, -0.267261]) // of 0.15, -0.05, 0.4, 0.1: their deviation is √(0.105 / 3)
    expect(returns({ value: 'probability', normalize: 'gain' })).toEqual(z.map((x) => Math.max(0, x)))
    close(returns({ value: 'probability', scale: 2 }), [0.3, -0.1, 0.8, 0.2])
  })

  it('compare with the group at the same loop', () => {
    const spec = beliefReward.parse({ belief: 'forced-exit', value: 'probability', base: 'group' })
    const got = beliefAdvantages(
      spec,
      [
        [0, 0.2, 0.4],
        [0, 0.6, 0.4],
      ],
      2,
    )
    close(got.flat(), [-0.2, 0, 0.2, 0])
    const z = beliefAdvantages(
      { ...spec, base: 'none', normalize: 'group' },
      [
        [0, 0.2, 0.4],
        [0, 0.6, 0.4],
      ],
      2,
    )
    close(
      z.flat(),
      [-Math.SQRT1_2, 0, Math.SQRT1_2, 0].map((x) => x * (1 - 3.5e-6)),
    )
  })

  it('LoopRPT: gain over the teacher at its reference loop, minus the cost', () => {
    const rewards = {
      value: 'log',
      attempts: 1,
      base: 'teacher',
      cost: 0.02676006,
      clip: undefined,
      delta: false,
      discount: 0,
    } as const
    const log = Float64Array.from([0, -3.8, -3, -2.6, -2.65])
    close(native().beliefReturns(rewards, log, -2.9, 3), [-0.84648, -0.07324, 0.3, 0.22324])
  })
})

describe('LLDS', () => {
  it('keeps responses with a non-negative mean advantage in the first conditional term', () => {
    const objective = objectiveSchema.parse({
      terms: [{ space: 'marginal' }, {}],
      lazy: { weight: 0.2, normalizer: 'preserving' },
    })
    const all = [true, true, true]
    const rated = {
      ...{
        sequences: [
          [1, 2],
          [1, 3],
          [1, 4],
        ].map((row) => Int32Array.from(row)),
        promptLengths: [1, 1, 1],
        lengths: [1, 3, 2],
      },
      ...{ counted: all, active: all, marginal: { sequences: [] } },
      advantages: [
        [[-1], [-1], [1]],
        [
          [-0.5, 2],
          [0, 0],
          [1, -2],
        ],
      ],
    }
    const settings = {
      temperature: 1,
      recompute: 'none',
      tokensPerMicroBatch: 64,
      constantLength: undefined,
      loops: { run: 2, read: [1, 2], scoring: { loops: 2 } },
      seed: 1,
    } as const
    const [given] = enginePasses(objective, rated, [0, 1, 2], 0, settings)
    expect(given!.batch.lazyNormalizers).toEqual([0.2 / 4, 0.2 / 4, 0])
  })
})

describe('segment sums', () => {
  it('compute sum, mean, count and deviation per id', () => {
    const run = (op: 'sum' | 'mean' | 'count' | 'deviation') =>
      native().segmentReduce(op, Float64Array.from([1, 2, 3, 10, 99]), Int32Array.from([0, 0, 0, 2, -1]), 3)
    expect(run('sum')).toEqual([6, 0, 10])
    expect(run('mean')).toEqual([2, 0, 10])
    expect(run('count')).toEqual([3, 0, 1])
    expect(run('deviation')).toEqual([1, 0, 0])
  })
})
