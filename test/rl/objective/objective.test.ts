// Every term of the objective algebra through the engine: coefficients against independent formulas, gradients against central
// differences, the invariants of docs/objectives.md.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { LoopLM } from '../../../src/model/model.js'
import type { LossBatch, LossObjective, LossTerm } from '../../../src/model/types.js'
import { GRPOTrainer } from '../../../src/rl/grpo.js'
import { LoopRPTTrainer } from '../../../src/rl/looprpt.js'
import { type RecipeName, recipes } from '../../../src/rl/objective/recipes.js'
import { ObjectiveTrainer } from '../../../src/rl/objective-trainer.js'
import type { ObjectiveTrainerOptions } from '../../../src/rl/options.js'
import { RLTTTrainer } from '../../../src/rl/rltt.js'
import { refusal } from '../../refusal.js'
import { difference, parametersOf, tinyBatch, tinyConfig, tinyModel, tinyTask, variedReward } from '../../tiny.js'

const loops = tinyConfig.total_ut_steps
const { sequences, promptLengths } = tinyBatch
const width = (i: number) => sequences[i]!.length - 1
const lengths = sequences.map((sequence, i) => sequence.length - promptLengths[i]!)
const lengthNormalizers = lengths.map((length) => 1 / (sequences.length * length))
const advantages = [1.2, -0.7, 0.4, -0.9, 0, 0.3, -0.2, 0.8]

let model: LoopLM
let logprobs: number[][]
let pdf: number[][] // T × (len-1)
let old: number[][]
let reference: number[][]

/** A number in (-1, 1) that only depends on its place. */
const wave = (i: number, k: number, shift: number) => Math.sin(12.9898 * (i + 1) + 78.233 * (k + 1) + shift)

beforeAll(async () => {
  model = await tinyModel()
  const scores = await model.score(sequences)
  logprobs = scores.logprobs.map((row) => [...row])
  pdf = scores.exitPdf.map((row, i) =>
    Array.from({ length: loops * width(i) }, (_, k) => row[Math.floor(k / width(i)) * (width(i) + 1) + (k % width(i))]!),
  )
  old = logprobs.map((row, i) => row.map((l, k) => l + 0.12 * wave(i, k, 0)))
  reference = logprobs.map((row, i) => row.map((l, k) => l + 0.3 * wave(i, k, 5)))
})
afterAll(() => model.dispose())

const isResponse = (i: number, j: number) => j >= promptLengths[i]! - 1
const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0)

type Weights = NonNullable<LossTerm['weights']>
const weightings: Record<string, Weights> = {
  'exit-pdf': { kind: 'exit-pdf' },
  tempered: { kind: 'exit-pdf', temperature: 0.5 },
  uniform: { kind: 'uniform' },
  progressive: { kind: 'progressive', alpha: 2 },
  'one-hot 2': { kind: 'one-hot', loop: 2 },
  last: { kind: 'one-hot' },
}

/** w of a token at every loop, as the specification says it. */
function weightsOf(weights: Weights, i: number, j: number): number[] {
  const p = Array.from({ length: loops }, (_, t) => pdf[i]![t * width(i) + j]!)
  const raw = p.map((x, t) => {
    if (weights.kind === 'uniform') return 1
    if (weights.kind === 'progressive') return (t + 1) ** weights.alpha!
    if (weights.kind === 'one-hot') return Number(t + 1 === (weights.loop ?? loops))
    return x ** (1 / (weights.temperature ?? 1))
  })
  return raw.map((x) => x / sum(raw))
}

/** c[i][t·width + j] of one token term with respect to ℓ, and its loss, by the formulas of math.md §2. */
function plainTerm(term: LossTerm, old: number[][]): { coefficients: number[][]; loss: number } {
  const weights = term.weights!
  const { epsilonLow = 0.2, epsilonHigh = 0.2, dualClip = 0, cap = 5, tau = 0 } = term
  let loss = 0
  const coefficients = sequences.map((_, i) => {
    const A = advantages[i]!
    const w = Array.from({ length: width(i) }, (_, j) => weightsOf(weights, i, j))
    const rho = (t: number, j: number) => logprobs[i]![t * width(i) + j]! - old[i]![t * width(i) + j]!
    const positions = Array.from({ length: width(i) }, (_, j) => j).filter((j) => isResponse(i, j))
    const mixed = positions.map((j) => sum(w[j]!.map((x, t) => x * rho(t, j))))
    const S = sum(mixed)
    return Array.from({ length: loops * width(i) }, (_, k) => {
      const [t, j] = [Math.floor(k / width(i)), k % width(i)]
      if (!isResponse(i, j)) return 0
      const n = lengthNormalizers[i]! * w[j]![t]!
      if (term.surrogate === 'k15') {
        loss -= t === 0 && j === positions[0] ? lengthNormalizers[i]! * (A * S - (tau / 2) * S * S) : 0
        return -n * (A - tau * S)
      }
      if (n === 0) return 0
      const logRatio = term.surrogate === 'gspo' ? S / positions.length : term.inner ? mixed[positions.indexOf(j)]! : rho(t, j)
      const r = term.surrogate === 'reinforce' || term.surrogate === undefined ? 1 : Math.exp(logRatio)
      if (term.surrogate === 'cispo') {
        loss -= n * A * Math.min(r, cap) * logprobs[i]![k]!
        return -n * A * Math.min(r, cap)
      }
      if (term.surrogate === 'ppo' || term.surrogate === 'gspo') {
        let objective = Math.min(r * A, Math.min(Math.max(r, 1 - epsilonLow), 1 + epsilonHigh) * A)
        if (A < 0 && dualClip > 0) objective = Math.max(objective, dualClip * A)
        loss -= n * objective
        return objective === r * A ? -n * A * r : 0
      }
      loss -= n * A * logprobs[i]![k]!
      return -n * A
    })
  })
  return { coefficients, loss }
}

const batchOf = (terms: readonly LossTerm[], more: Partial<LossBatch> = {}): LossBatch => ({
  ...{ sequences, promptLengths, lengthNormalizers, oldLogprobs: old, referenceLogprobs: reference },
  terms: terms.map(() => ({ advantages, lengthNormalizers })),
  ...more,
})

async function engine(objective: LossObjective, more: Partial<LossBatch> = {}, m = model) {
  await m.zeroGradients()
  const { loss } = await m.accumulateLoss(batchOf(objective.terms, more), objective)
  const gradients = await m.gradients()
  await m.zeroGradients()
  return { loss, gradients }
}

async function fromCoefficients(coefficients: number[][], gateCoefficients?: number[][]) {
  await model.zeroGradients()
  await model.backward(sequences, coefficients, gateCoefficients === undefined ? {} : { gateCoefficients })
  const gradients = await model.gradients()
  await model.zeroGradients()
  return gradients
}

/** The derivative of L(θ + x·v) by central differences of fourth order against ⟨∇L, v⟩, along a fixed direction. */
async function expectDerivative(objective: LossObjective, more: Partial<LossBatch> = {}) {
  const { gradients } = await engine(objective, more)
  const before = await parametersOf(model)
  const h = 1e-5 // small enough that no clip or gate changes sides
  const direction = (k: number, index: number) => wave(index, k, 1.7)
  let slope = 0
  const at = async (steps: number) => {
    for (const [index, [name, values]] of [...before].entries())
      await model.setParameter(
        name,
        values.map((x, k) => x + steps * h * direction(k, index)),
      )
    return (await engine(objective, more)).loss
  }
  const near = (await at(1)) - (await at(-1))
  const difference = (8 * near - ((await at(2)) - (await at(-2)))) / (12 * h)
  for (const [index, [name, values]] of [...before].entries()) {
    await model.setParameter(name, values)
    for (const [k, g] of gradients.get(name)!.entries()) slope += g * direction(k, index)
  }
  expect(Math.abs(slope)).toBeGreaterThan(1e-6)
  expect(Math.abs(difference - slope) / Math.abs(slope)).toBeLessThan(1e-6)
}

const surrogates: Record<string, Partial<LossTerm>> = {
  reinforce: {},
  ppo: { surrogate: 'ppo', epsilonLow: 0.05, epsilonHigh: 0.08 },
  'ppo, dual clip': { surrogate: 'ppo', epsilonLow: 0.05, epsilonHigh: 0.08, dualClip: 1.05 },
  cispo: { surrogate: 'cispo', cap: 1.03 },
  gspo: { surrogate: 'gspo', epsilonLow: 0.01, epsilonHigh: 0.02 },
  'k1.5': { surrogate: 'k15', tau: 0.7 },
  'inner ppo': { surrogate: 'ppo', inner: true, epsilonLow: 0.03, epsilonHigh: 0.04 },
  'inner cispo': { surrogate: 'cispo', inner: true, cap: 1.01 },
}

describe.each(Object.entries(surrogates))('%s', (_, surrogate) => {
  it.each(Object.entries(weightings))('has the coefficients of its formula with weights %s', async (_, weights) => {
    const term = { ...surrogate, weights }
    const plain = plainTerm(term, old)
    const got = await engine({ terms: [term] })
    expect(got.loss).toBeCloseTo(plain.loss, 11)
    expect(difference(await fromCoefficients(plain.coefficients), got.gradients)).toBeLessThan(1e-11)
  })
})

describe('several terms', () => {
  it('add up, whatever their surrogates', async () => {
    const terms = [
      { weights: weightings.last!, surrogate: 'ppo' } as const,
      { weights: weightings.uniform! },
      { weights: weightings['exit-pdf']!, surrogate: 'gspo' } as const,
    ]
    const plain = terms.map((term) => plainTerm(term, old))
    const got = await engine({ terms })
    expect(got.loss).toBeCloseTo(sum(plain.map(({ loss }) => loss)), 11)
    const total = plain[0]!.coefficients.map((row, i) => row.map((_, k) => sum(plain.map((p) => p.coefficients[i]![k]!))))
    expect(difference(await fromCoefficients(total), got.gradients)).toBeLessThan(1e-11)
  })

  it('do not depend on micro-batches', async () => {
    const objective: LossObjective = {
      terms: [{ weights: weightings.uniform!, surrogate: 'gspo' }, { channel: 'exit' }],
      ...{ beta: 0.1, betaLoops: 'uniform', tokenEntropy: 0.02, exitEntropy: 0.03, lazy: { gate: 'loop', loops: 'uniform' } },
    }
    const more = {
      exits: sequences.map((_, i) => Array.from({ length: width(i) }, (_, j) => (i + j) % loops)),
      lazyNormalizers: lengthNormalizers,
    }
    const whole = await engine(objective, more)
    const cut = await engine({ ...objective, tokensPerMicroBatch: 1 }, more)
    expect(cut.loss).toBeCloseTo(whole.loss, 11)
    expect(difference(whole.gradients, cut.gradients)).toBeLessThan(1e-11)
  })
})

describe('central differences', () => {
  const exits = sequences.map((sequence, i) => Array.from({ length: sequence.length - 1 }, (_, j) => (i + j) % loops))
  const cases: Record<string, [LossObjective, Partial<LossBatch>?]> = {
    reinforce: [{ terms: [{ weights: weightings.uniform! }] }],
    'attached weights': [{ terms: [{ weights: { kind: 'exit-pdf', detach: false } }] }],
    'attached weights in two passes': [
      { terms: [{ weights: { kind: 'exit-pdf', detach: false } }], lazy: { gate: 'token', loops: 'uniform' } },
      { lazyNormalizers: lengthNormalizers },
    ],
    ppo: [{ terms: [{ weights: weightings.uniform!, surrogate: 'ppo' }] }],
    gspo: [{ terms: [{ weights: weightings.uniform!, surrogate: 'gspo' }] }],
    'k1.5': [{ terms: [{ weights: weightings.progressive!, surrogate: 'k15', tau: 0.5 }] }],
    'inner ppo': [{ terms: [{ weights: weightings.uniform!, surrogate: 'ppo', inner: true }] }],
    'the exit channel': [{ terms: [{ channel: 'exit' }] }, { exits }],
    'k3, last loop': [{ terms: [{ weights: weightings.last! }], beta: 0.4 }],
    'k3, all loops': [{ terms: [{ weights: weightings.last! }], beta: 0.4, betaLoops: 'uniform' }],
    'k3 by weights': [{ terms: [{ weights: weightings.progressive! }], beta: 0.4, betaLoops: 'weights' }],
    'token entropy': [{ terms: [{ weights: weightings.uniform! }], tokenEntropy: 0.3 }],
    'exit entropy': [{ terms: [{ weights: weightings.uniform! }], exitEntropy: 0.3 }],
    'LLDS by token': [
      { terms: [{ weights: weightings.uniform! }], lazy: { gate: 'token', loops: 'uniform' } },
      { lazyNormalizers: lengthNormalizers },
    ],
    'LLDS by response': [
      { terms: [{ weights: weightings.uniform! }], lazy: { gate: 'response', loops: 'last' } },
      { lazyNormalizers: lengthNormalizers },
    ],
    'LLDS by loop': [
      { terms: [{ weights: weightings.uniform! }], lazy: { gate: 'loop', loops: 'weights' } },
      { lazyNormalizers: lengthNormalizers },
    ],
  }
  it.each(Object.entries(cases))('agree with the gradient: %s', async (_, [objective, more]) => expectDerivative(objective, more))

  const mask = sequences.map((_, i) => Array.from({ length: width(i) }, (_, j) => Number(j % 3 !== 1)))
  it.each(Object.entries(cases))('agree with the gradient behind a mask: %s', async (_, [objective, more]) =>
    expectDerivative(objective, { ...more, mask }),
  )

  it.each(['reinforce', 'attached weights', 'ppo', 'inner ppo', 'the exit channel'])(
    'agree with the gradient with token advantages: %s',
    async (name) => {
      const [objective, more] = cases[name]!
      const tokenAdvantages = sequences.map((_, i) => Array.from({ length: width(i) }, (_, j) => wave(i, j, 2)))
      await expectDerivative(objective, { ...more, terms: [{ advantages, tokenAdvantages, lengthNormalizers }] })
    },
  )
})

describe('the exit channel', () => {
  it('trains the log-probability of the exits that were taken', async () => {
    const exits = sequences.map((_, i) => Array.from({ length: width(i) }, (_, j) => (2 * i + j) % loops))
    const got = await engine({ terms: [{ channel: 'exit' }] }, { exits })
    let loss = 0
    const { gateLogits } = await model.score(sequences)
    // ∂ log p_e / ∂ a_t = -λ_t before the exit, 1 - λ_t at it, and the last gate is never used
    const gates = gateLogits.map((row, i) =>
      [...row].map((a, k) => {
        const [t, j] = [Math.floor(k / (width(i) + 1)), k % (width(i) + 1)]
        if (j === width(i) || !isResponse(i, j)) return 0
        const exit = exits[i]![j]!
        const lambda = 1 / (1 + Math.exp(-a))
        if (t === 0) loss -= lengthNormalizers[i]! * advantages[i]! * Math.log(pdf[i]![exit * width(i) + j]!)
        if (t === loops - 1 || t > exit) return 0
        return -lengthNormalizers[i]! * advantages[i]! * (t === exit ? 1 - lambda : -lambda)
      }),
    )
    expect(got.loss).toBeCloseTo(loss, 11)
    const zero = logprobs.map((row) => row.map(() => 0))
    expect(difference(await fromCoefficients(zero, gates), got.gradients)).toBeLessThan(1e-11)
  })

  it('draws exits from the exit distribution when the batch has none', async () => {
    const got = await engine({ terms: [{ channel: 'exit', draws: 400, seed: 3 }] })
    // E[∇ log p] = 0, so the loss is the entropy, and the gradient vanishes with the number of draws
    let expected = 0
    for (const [i, row] of pdf.entries())
      for (const [k, p] of row.entries())
        if (isResponse(i, k % width(i))) expected -= lengthNormalizers[i]! * advantages[i]! * p * Math.log(p)
    expect(Math.abs(got.loss - expected)).toBeLessThan(0.02)
  })

  it.each(['reference', 'cpu'] as const)('trains a gate whose exit is all but impossible on %s', async (device) => {
    using model = await LoopLM.create(tinyConfig, { device, seed: 1 })
    const bias = model.parameters().find(({ name }) => name.includes('gate') && name.endsWith('bias'))!.name
    const advantages = [1]
    const lengthNormalizers = [1]
    const exits = [Int32Array.from([0, 0, 0])]
    const batch = {
      sequences: [[1, 2, 3, 4]],
      promptLengths: [1],
      lengthNormalizers,
      exits,
      terms: [{ advantages, lengthNormalizers }],
    }
    for (const value of [-60, -80, -1000]) {
      await model.setParameter(bias, [value])
      await model.zeroGradients()
      await model.accumulateLoss(batch, { terms: [{ channel: 'exit', surrogate: 'reinforce', draws: 0 }] })
      expect((await model.gradient(bias))[0]).toBeCloseTo(-3, 5) // three tokens, each with ∂(-log λ)/∂a = λ - 1
    }
  })
})

describe('beliefs in tokens', () => {
  it('add the discounted gain of each loop to its advantage', async () => {
    const belief = {
      value: 'log',
      attempts: 4,
      base: 'previous',
      cost: 0.1,
      clip: undefined,
      delta: false,
      discount: 0.5,
    } as const
    const term = {
      weights: weightings.uniform!,
      belief: { ...belief, normalize: 'none', scale: 0.3, threshold: 0.5, costScale: 0 },
    } as const
    const got = await engine({ terms: [term] })
    const coefficients = sequences.map((_, i) =>
      logprobs[i]!.map((_, k) => {
        const [t, j] = [Math.floor(k / width(i)), k % width(i)]
        if (!isResponse(i, j)) return 0
        const curve = [-Math.log(12), ...Array.from({ length: loops }, (_, s) => logprobs[i]![s * width(i) + j]!)]
        let gain = 0
        for (let s = t; s < loops; s++) gain += 0.5 ** (s - t) * (curve[s + 1]! - curve[s]! - 0.1 * s)
        return (-lengthNormalizers[i]! / loops) * (advantages[i]! + 0.3 * gain)
      }),
    )
    expect(difference(await fromCoefficients(coefficients), got.gradients)).toBeLessThan(1e-11)
  })

  it('reward the loop of the exit if exits are given', async () => {
    const belief = {
      value: 'probability',
      attempts: 4,
      base: 'none',
      cost: 0,
      clip: undefined,
      delta: false,
      discount: 0,
    } as const
    const term = { channel: 'exit', belief: { ...belief, normalize: 'none', scale: 2, threshold: 0.5, costScale: 0 } } as const
    const exits = sequences.map((_, i) => Array.from({ length: width(i) }, (_, j) => (i + 2 * j) % loops))
    const got = await engine({ terms: [term] }, { exits })
    let loss = 0
    for (const [i, row] of exits.entries())
      for (const [j, exit] of row.entries())
        if (isResponse(i, j)) {
          const at = exit * width(i) + j
          loss -= lengthNormalizers[i]! * (advantages[i]! + 2 * Math.exp(logprobs[i]![at]!)) * Math.log(pdf[i]![at]!)
        }
    expect(got.loss).toBeCloseTo(loss, 11)
  })
})

describe('LLDS', () => {
  const rho = [
    [-0.1, 0.05, -0.2],
    [0.3, -0.1, 0.1],
    [-0.4, -0.4, 0.1],
  ]
  const three = [
    [1, 2, 3, 4],
    [1, 3, 2, 5],
    [1, 4, 4, 6],
  ]
  const run = async (gate: 'token' | 'segment' | 'response' | 'loop', tokens: number, more: Partial<LossBatch> = {}) => {
    const scores = await model.score(three)
    const shifted = scores.logprobs.map((row, i) => row.map((l, k) => l - rho[i]![k % 3]!))
    const { lazyLoss } = await model.accumulateLoss(
      {
        sequences: three,
        terms: [{ advantages: [1, 0, -1], lengthNormalizers: [0, 0, 0] }],
        ...{ lengthNormalizers: [0, 0, 0], oldLogprobs: shifted, lazyNormalizers: [1 / tokens, 1 / tokens, 0] },
        ...more,
      },
      { terms: [{ weights: { kind: 'one-hot' } }], lazy: { gate, loops: 'last' } },
    )
    await model.zeroGradients()
    return lazyLoss
  }

  it('gives the loss of the worked numbers', async () => {
    expect(await run('token', 9)).toBeCloseTo(0.4 / 9, 10)
    expect(await run('response', 9)).toBeCloseTo(0.3 / 9, 10)
    expect(await run('response', 6)).toBeCloseTo(0.3 / 6, 10)
    expect(await run('loop', 9)).toBeCloseTo(0.3 / 9, 10)
  })

  it('gates each action (run of equal segment ids) separately', async () => {
    const segments = [
      [0, 0, 1],
      [0, 1, 1],
      [0, 0, 0],
    ]
    // Σρ per action: -.05, -.2 | .3, 0 | …: the first response is held in both actions, the second in none
    expect(await run('segment', 9, { segments })).toBeCloseTo(0.3 / 9, 10)
    const other = [
      [0, 1, 1],
      [0, 1, 2],
      [0, 0, 0],
    ]
    expect(await run('segment', 9, { segments: other })).toBeCloseTo((0.1 + 0.2 + 0.1) / 9, 10)
  })

  it('compares with lazyLogprobs if they are given', async () => {
    const scores = await model.score(three)
    expect(await run('response', 9, { lazyLogprobs: scores.logprobs })).toBe(0)
  })
})

describe('invariants', () => {
  const batch = { ...tinyBatch, rewards: [1, 0, 0.5, 0, 0, 1, 1, 0] }
  const gradients = async (options: ObjectiveTrainerOptions, given: object = batch, m = model) => {
    using trainer = new ObjectiveTrainer(m, { groupSize: 4, ...options })
    return trainer.gradients({ ...batch, ...given })
  }

  it('the recipes grpo and rltt equal GRPOTrainer and RLTTTrainer bit for bit', async () => {
    using grpo = new GRPOTrainer(model, { groupSize: 4 })
    using rltt = new RLTTTrainer(model, { groupSize: 4 })
    for (const oldLogprobs of [undefined, old]) {
      const given = oldLogprobs === undefined ? {} : { oldLogprobs }
      expect(await gradients({ objective: 'grpo' }, given)).toEqual(await grpo.gradients({ ...batch, ...given }))
    }
    expect(await gradients({ objective: 'rltt' })).toEqual(await rltt.gradients(batch))
  })

  it('all weights give the same loss if the loops agree', async () => {
    using still = await tinyModel()
    for (const { name, shape } of still.parameters())
      if (/o_proj|down_proj/.test(name)) await still.setParameter(name, new Float64Array(shape.reduce((a, b) => a * b)))
    const losses: number[] = []
    for (const weights of ['last', 'uniform', 'progressive', 'exit-pdf', { kind: 'exit-pdf', temperature: 0.3 }] as const)
      losses.push(
        (await gradients({ objective: { terms: [{ weights, surrogate: 'ppo' }] } }, { oldLogprobs: undefined }, still)).loss,
      )
    for (const loss of losses) expect(loss).toBeCloseTo(losses[0]!, 6)
  })

  it('combine inner and combine outer are the same for reinforce', async () => {
    const of = (combine: 'inner' | 'outer') => gradients({ objective: { terms: [{ weights: 'uniform', combine }] } })
    const [inner, outer] = [await of('inner'), await of('outer')]
    expect(inner.loss).toBeCloseTo(outer.loss, 12)
    expect(difference(inner.gradients, outer.gradients)).toBeLessThan(1e-12)
  })

  it('on policy, LLDS is 0, and ppo, gspo and cispo have the gradient of reinforce', async () => {
    const oldLogprobs = logprobs
    const plain = await gradients({ objective: { terms: [{ weights: 'uniform' }] } })
    const lazy = await gradients({ objective: { terms: [{ weights: 'uniform' }], lazy: { gate: 'token' } } }, { oldLogprobs })
    expect(lazy.loss).toBeCloseTo(plain.loss, 12)
    for (const surrogate of ['ppo', 'gspo', 'cispo'] as const) {
      const got = await gradients({ objective: { terms: [{ weights: 'uniform', surrogate }] } }, { oldLogprobs })
      expect(difference(plain.gradients, got.gradients), surrogate).toBeLessThan(1e-10)
    }
  })

  it('the order of the groups and of the members of a group does not matter', async () => {
    const order = [6, 4, 7, 5, 1, 0, 3, 2]
    const pick = <T>(values: readonly T[]) => order.map((i) => values[i]!)
    const shuffled = {
      ...{ sequences: pick(sequences), promptLengths, rewards: pick(batch.rewards) },
      ...{ oldLogprobs: pick(old), referenceLogprobs: pick(reference) },
    }
    const objective = {
      terms: [{ weights: 'uniform', surrogate: 'gspo', advantage: { strata: { by: 'length' } } }],
      kl: { beta: 0.1, loops: 'uniform' },
      lazy: { gate: 'response' },
      entropy: { token: 0.01, exit: 0.01 },
    } as const
    const given = { oldLogprobs: old, referenceLogprobs: reference }
    const [a, b] = [await gradients({ objective }, given), await gradients({ objective }, shuffled)]
    expect(b.loss).toBeCloseTo(a.loss, 11)
    expect(difference(a.gradients, b.gradients)).toBeLessThan(1e-10)
  })

  it('masking the first response token equals a longer prompt', async () => {
    const mask = sequences.map((_, i) => Array.from({ length: width(i) }, (_, j) => Number(j !== promptLengths[i]! - 1)))
    const masked = await gradients({ objective: 'rltt' }, { mask })
    const later = await gradients({ objective: 'rltt' }, { promptLengths: promptLengths.map((p) => p + 1) })
    expect(masked.loss).toBeCloseTo(later.loss, 12)
    expect(difference(masked.gradients, later.gradients)).toBeLessThan(1e-12)
  })

  it('weights of an early loop give the gate no gradient', async () => {
    const early = await gradients({ objective: { terms: [{ weights: { kind: 'one-hot', loop: 2 }, surrogate: 'ppo' }] } })
    const got = await engine({ terms: [{ weights: weightings['one-hot 2']! }] })
    const gate = early.gradients.get('model.early_exit_gate.weight')!
    expect(gate.every((g) => g === 0)).toBe(true)
    expect(got.gradients.size).toBe(early.gradients.size)
  })

  it('the marginal space scores responses without their prompts', async () => {
    const objective = { terms: [{ weights: 'last', space: 'marginal', surrogate: 'ppo' }] } as const
    const got = await gradients({ objective, marginalToken: 3 })
    using plain = new GRPOTrainer(model, { groupSize: 4 })
    const alone = sequences.map((sequence, i) => [3, ...sequence.slice(promptLengths[i]!)])
    expect(got).toEqual(await plain.gradients({ sequences: alone, promptLengths: alone.map(() => 1), rewards: batch.rewards }))
  })
})

describe('LoopRPT without noise', () => {
  it('equals its recipe: the token term with exit entropy and KL', async () => {
    using teacher = await tinyModel('reference', 2)
    const coefficients = { policyCoefficient: 0, entropyCoefficient: 0.01, klCoefficient: 0.2 }
    using looprpt = new LoopRPTTrainer(model, { teacher, rho: 1, sigma: 0, rollouts: 2, ...coefficients })
    const want = await looprpt.gradients({ sequences, promptLengths })
    const scores = await teacher.score(sequences)
    const [, tokenTerm] = recipes.looprpt.terms
    const objective = {
      terms: [
        {
          weights: { kind: 'exit-pdf' } as const,
          belief: beliefOf(tokenTerm!.advantage!.loops as { cost: number; costScale: number }),
        },
      ],
      beta: 0.2,
      betaLoops: 'uniform',
      exitEntropy: 0.01,
    } as const
    const tokens = sum(lengths)
    const each = lengths.map(() => 1 / tokens)
    const got = await engine(objective, {
      ...{
        terms: [{ advantages: lengths.map(() => 1), lengthNormalizers: each }],
        lengthNormalizers: each,
        oldLogprobs: undefined,
      },
      referenceLogprobs: scores.logprobs,
      referenceEntropy: scores.entropy.map((row, i) => row.slice((loops - 1) * width(i))),
      referenceExitPdf: scores.exitPdf.map((row, i) =>
        Array.from({ length: loops * width(i) }, (_, k) => row[Math.floor(k / width(i)) * (width(i) + 1) + (k % width(i))]!),
      ),
    })
    expect(got.loss).toBeCloseTo(want.loss, 10)
    expect(difference(want.gradients, got.gradients)).toBeLessThan(1e-9)
  })

  const beliefOf = (spec: { cost: number; costScale: number }): NonNullable<LossTerm['belief']> => ({
    ...({ value: 'log', attempts: 4, base: 'teacher', clip: undefined, delta: false, discount: 0 } as const),
    ...({ cost: spec.cost, costScale: spec.costScale, normalize: 'gain', scale: 1, threshold: 0.5 } as const),
  })
})

describe('an objective function', () => {
  it('gives the gradients of its coefficients', async () => {
    using rltt = new RLTTTrainer(model, { groupSize: 4, weights: 'uniform' })
    const want = await rltt.gradients(tinyBatch)
    using trainer = new ObjectiveTrainer(model, {
      groupSize: 4,
      objective: ({ sequences, promptLengths, advantages, lengthNormalizers, scores }) => {
        let loss = 0
        const coefficients = scores.logprobs.map((row, i) =>
          [...row].map((l, k) => {
            const c =
              k % (sequences[i]!.length - 1) < promptLengths[i]! - 1
                ? 0
                : (-lengthNormalizers[i]! * advantages[i]!) / scores.loops
            loss += c * l
            return c
          }),
        )
        return { loss, coefficients }
      },
    })
    const got = await trainer.gradients(tinyBatch)
    expect(got.loss).toBeCloseTo(want.loss, 12)
    expect(difference(want.gradients, got.gradients)).toBeLessThan(1e-12)
  })
})

describe('recipes on a task', () => {
  const runs = async (objective: ObjectiveTrainerOptions['objective'], more: ObjectiveTrainerOptions = {}) => {
    using small = await LoopLM.create(tinyConfig, { seed: 4, threads: 1 })
    const before = await parametersOf(small)
    using trainer = new ObjectiveTrainer(small, {
      ...{ objective, task: tinyTask, reward: variedReward, steps: 3, promptsPerStep: 2, groupSize: 4, learningRate: 1e-3 },
      onWarning: () => {},
      ...more,
    })
    const losses: number[] = []
    for await (const event of trainer.run()) if (event.type === 'step') losses.push(event.metrics.loss!)
    return { losses, moved: difference(await parametersOf(small), before) }
  }

  it.each(Object.keys(recipes) as RecipeName[])('%s runs and moves the model', async (name) => {
    const { losses, moved } = await runs(name, { updatesPerRollout: 2 })
    expect(losses).toHaveLength(3)
    expect(losses.every(Number.isFinite)).toBe(true)
    expect(moved).toBeGreaterThan(0)
  })

  it('phases take over at their step', async () => {
    const flat = { terms: [{ advantage: { source: 'zero' } }] } as const
    const { losses } = await runs([{ until: 2, objective: flat }, { objective: 'rltt' }])
    expect(losses.slice(0, 2)).toEqual([0, 0])
    expect(losses[2]).not.toBe(0)
  })

  it('exit terms train the model if rollouts exit early', async () => {
    const { losses, moved } = await runs({ terms: [{ channel: 'exit' }] }, { exitThreshold: 0.5 })
    expect(losses.some((loss) => loss !== 0)).toBe(true)
    expect(moved).toBeGreaterThan(0)
  })

  it('dynamic sampling fills a step with groups that have spread', async () => {
    using small = await LoopLM.create(tinyConfig, { seed: 4 })
    let calls = 0
    // every second prompt earns nothing
    const reward = (prompt: string, completion: string) => (prompt.charCodeAt(0) % 2 === 0 ? 0 : completion.charCodeAt(0) % 7)
    using trainer = new ObjectiveTrainer(small, {
      ...{ task: tinyTask, reward, steps: 1, promptsPerStep: 4, groupSize: 4, learningRate: 1e-4, onWarning: () => {} },
      objective: { ...recipes.dapo, filter: { resample: 8 } },
    })
    for await (const event of trainer.run())
      if (event.type === 'step') {
        expect(event.metrics.frac_reward_zero_std).toBe(0)
        calls = event.metrics['sampling/rounds']!
      }
    expect(calls).toBeGreaterThan(1)
  })
})

describe('an invalid objective', () => {
  it('is rejected for attached weights with a ratio, naming option and field', async () => {
    const weights = { kind: 'exit-pdf', detach: false } as const
    const { message } = await refusal(() => engine({ terms: [{ weights, surrogate: 'ppo' }] }))
    expect(message).toMatch(/detachWeights: false of a trainer, detach: false of a term.*reinforce surrogate/)
  })

  const cases: [ObjectiveTrainerOptions['objective'], RegExp][] = [
    [{ terms: [] }, /objective/],
    ['nonsense' as 'rltt', /objective/],
    [{ terms: [{ channel: 'exit', surrogate: 'ppo' }] }, /terms\.0: surrogate: the exit channel/],
    [{ terms: [{ weights: { kind: 'exit-pdf', detach: false }, surrogate: 'ppo' }] }, /terms\.0: weights: detach: false needs/],
    [
      { terms: [{ advantage: { loops: { belief: 'token', base: 'group' } } }] },
      /terms\.0: advantage\.loops: the belief 'token' has no group/,
    ],
    [{ terms: [{}], kl: { beta: 1, reference: 'frozen' }, lazy: { old: 'ema' } }, /share one reference/],
    [[{ objective: 'rltt' }, { objective: 'grpo' }], /increasing values of `until`/],
    [[{ until: 5, objective: 'rltt' }], /increasing values of `until`/],
    [{ terms: [{ space: 'marginal' }], lazy: {} }, /objective\.lazy/],
  ]
  it.each(cases)('is rejected by name: %j', async (objective, message) => {
    const error = await refusal(() => new ObjectiveTrainer(model, { objective }))
    expect(error.code).toBe('INVALID_CONFIG')
    expect(error.message).toMatch(message)
  })
})

describe('a mistake in an objective', () => {
  it.each([
    ['grop', /^ObjectiveTrainer: objective: .*got "grop"; did you mean grpo\?$/],
    [5, /objective: must be the name of a recipe, an objective of the algebra, a list of .*, or a function, got 5$/],
    [{ terms: [{}], klo: {} }, /objective\.klo: unknown option; did you mean kl\?$/],
    [{ terms: [{ credit: 'last' }] }, /objective\.terms\.0\.credit: unknown option; did you mean weights\?$/],
    [{ terms: [{ aggregate: 'constant' }] }, /terms\.0\.aggregate: unknown option; did you mean normalizer\?$/],
    [{ terms: [{ surrogate: { kind: 'ppo', low: 0.1 } }] }, /surrogate\.low: unknown option; did you mean epsilonLow\?$/],
    [{ terms: [{ surrogate: { kind: 'gspo', high: 0.1 } }] }, /surrogate\.high: unknown option; did you mean epsilonHigh\?$/],
    [{ terms: [{ surrogate: { kind: 'ppo', dual: 3 } }] }, /surrogate\.dual: unknown option; did you mean dualClip\?$/],
    [{ terms: [{ surrogate: { kind: 'cispo', low: 0.1 } }] }, /surrogate\.low: unknown option; the options are kind, cap$/],
    [{ terms: [{}], lazy: { norm: 'all' } }, /objective\.lazy\.norm: unknown option; did you mean normalizer\?$/],
    [[{ until: 1, objective: { terms: [{ credit: 'last' }] } }], /credit: unknown option; did you mean weights\?$/],
    [{ terms: [{}], kl: { beta: 1, loops: 'credit' } }, /objective\.kl\.loops: .*weights.*got "credit"/],
    [{ terms: [{ weights: { kind: 'one-hot', loop: 0 } }] }, /objective\.terms\.0\.weights\.loop: .*got 0$/],
    [
      { terms: [{ weights: { kind: 'one-hit', loop: 1 } }] },
      /weights\.kind: must be one of progressive, one-hot.*did you mean one-hot\?$/,
    ],
    [{ terms: [{ weight: { from: 0, to: 1 } }] }, /objective\.terms\.0\.weight\.steps: /],
    [
      [{ until: 1, objective: 'grpo' }, { objective: { terms: [{ channel: 'exits' }] } }],
      /objective\.1\.objective\.terms\.0\.channel: /,
    ],
    [[{ objective: 'rlt' }], /objective\.0\.objective: .*did you mean rltt\?$/],
  ])('is rejected with its path: %j', async (objective, message) => {
    const error = await refusal(() => new ObjectiveTrainer(model, { task: tinyTask, steps: 1, objective: objective as 'grpo' }))
    expect(error.code).toBe('INVALID_CONFIG')
    expect(error.message).toMatch(message)
  })
})

describe('a run with a moving average', () => {
  it('resumes bit for bit, reference included', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'looplm-objective-'))
    const options = (runDir: string): ObjectiveTrainerOptions => ({
      ...{ objective: 'llds', task: tinyTask, reward: variedReward, promptsPerStep: 2, groupSize: 4, learningRate: 1e-2 },
      ...{ steps: 4, saveEvery: 2, runDir, onWarning: () => {} },
    })
    const train = async (runDir: string, more: ObjectiveTrainerOptions = {}) => {
      using small = await LoopLM.create(tinyConfig, { seed: 4, threads: 1 })
      using trainer = new ObjectiveTrainer(small, { ...options(join(folder, runDir)), ...more })
      const losses: number[] = []
      for await (const event of trainer.run()) if (event.type === 'step') losses.push(event.metrics.lazy_loss!)
      return { losses, parameters: await parametersOf(small) }
    }
    const whole = await train('whole')
    const begun = await train('cut', { steps: 2 })
    const resumed = await train('cut', { resume: true })
    expect([...begun.losses, ...resumed.losses]).toEqual(whole.losses)
    expect(whole.losses.at(-1)).toBeGreaterThan(0) // the average lags behind, so there is something to hold
    expect(resumed.parameters).toEqual(whole.parameters)
    rmSync(folder, { recursive: true })
  })
})
