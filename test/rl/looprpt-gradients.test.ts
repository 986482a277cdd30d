// LoopRPT against central differences of an independent implementation: every term, every option, the engine's own draws.
import { describe, expect, it } from 'vitest'
import { LoopLM, type LoopRPTOptions, LoopRPTTrainer } from '../../src/index.js'
import { expectDerivative } from '../central-differences.js'
import { relativeError } from '../golden-files.js'
import {
  cleanWeights,
  entropyOf,
  exitLogPdf,
  exitUniform,
  forward,
  k3,
  type LoopRptCase,
  latentNoise,
  loopRptLoss,
  ouro,
  prediction,
  representationLoss,
  rewards,
} from '../looped-model.js'
import { parametersOf, tinyConfig } from '../tiny.js'

const T = tinyConfig.total_ut_steps
const D = tinyConfig.hidden_size
const sequences = [
  [1, 10, 2, 11, 0, 3],
  [7, 8, 11, 5],
]
const promptLengths = [2, 1]
const seed = 11
const sigma = 0.2
const rollouts = 4
const defaults = { policyCoefficient: 1, representationCoefficient: 1, entropyCoefficient: 0.01, klCoefficient: 1e-4 }

/** The noise that the engine draws for rollout g of sequence i. */
const drawn = (i: number, g: number, antithetic: boolean) => {
  const stream = i * rollouts + (antithetic ? g - (g % 2) : g)
  const scale = antithetic && g % 2 === 1 ? -sigma : sigma
  return Array.from({ length: T }, (_, t) =>
    sequences[i]!.map((_, j) => Array.from({ length: D }, (_, k) => scale * latentNoise(seed, stream, j, t, k))),
  )
}

async function compare(options: LoopRPTOptions, mask?: number[][]) {
  const model = await LoopLM.create(tinyConfig, { device: 'reference', seed: 1 })
  const teacher = await LoopLM.create(tinyConfig, { device: 'reference', seed: 2 })
  const trainer = new LoopRPTTrainer(model, { teacher, rho: 0.6, rollouts, sigma, seed, ...defaults, ...options })
  const { config } = trainer
  const { loss, gradients } = await trainer.gradients({ sequences, promptLengths, ...(mask && { mask }) })
  const of: LoopRptCase = {
    sequences,
    promptLengths,
    mask,
    rollouts,
    rho: 0.6,
    site: config.noiseSite,
    rewardFrom: config.rewardFrom,
    klReduction: config.klReduction,
    coefficients: {
      policy: config.policyCoefficient,
      representation: config.representationCoefficient,
      entropy: config.entropyCoefficient,
      kl: config.klCoefficient,
    },
    noise: (i, g) => drawn(i, g, config.antithetic),
    exit: (i, g, j, pdf) => {
      const u = exitUniform(seed, i * rollouts + g, j)
      let cdf = 0
      const left = pdf.findIndex((p) => {
        cdf += p
        return u < cdf
      })
      return left < 0 ? T - 1 : left
    },
  }
  const own = await parametersOf(model)
  const want = loopRptLoss(ouro(tinyConfig), of, await parametersOf(teacher), own)
  expect(loss).toBeCloseTo(want(own), 12)
  expect([...gradients.keys()]).toEqual([...own.keys()])
  expectDerivative(gradients, own, want)
  return { loss, gradients }
}

describe('the independent model', () => {
  it('scores as the engine does', async () => {
    const model = await LoopLM.create(tinyConfig, { device: 'reference', seed: 1 })
    const p = await parametersOf(model)
    const scores = await model.score(sequences)
    for (const [i, ids] of sequences.entries()) {
      const run = forward(tinyConfig, p, ids)
      const rows = ids.slice(1).map((_, j) => prediction(tinyConfig, p, run, ids, j))
      const table = Array.from({ length: T }, (_, t) => rows.map((row) => row.logprobs[t]!)).flat()
      expect(relativeError(scores.logprobs[i]!, table)).toBeLessThan(1e-12)
      expect(relativeError(scores.gateLogits[i]!, run.gates.flat())).toBeLessThan(1e-12)
    }
  })

  it('has the worked numbers of math.md §5', () => {
    const close = (got: number[], want: number[]) => got.forEach((v, i) => void expect(v).toBeCloseTo(want[i]!, 6))
    const teacher = { logPdf: exitLogPdf([-2, -0.5, 0.3, 0]), logprobs: [-4, -3.2, -2.9, -2.7], entropy: 3.5 }
    const logPdf = exitLogPdf([-1.5, -0.2, 0.6, 9])
    const logprobs = [-3.8, -3, -2.6, -2.65]
    const { reference, lambda, R } = rewards(49152, teacher, logprobs)
    expect(reference).toBe(2)
    expect(lambda).toBeCloseTo(0.02676006, 8)
    close(logPdf.map(Math.exp), [0.182426, 0.368044, 0.290242, 0.159288])
    close(R, [-0.84648, -0.07324, 0.3, 0.22324])
    const w = cleanWeights(logPdf, R)
    close(w, [0.182426, 0.386236, 0.511488, 0.257358])
    expect(representationLoss(w, logprobs)).toBeCloseTo(3.863793, 6)
    expect(entropyOf(logPdf)).toBeCloseTo(1.32992, 6)
    expect(k3(teacher.logprobs, logprobs).reduce((a, b) => a + b)).toBeCloseTo(0.079509, 6)
  })
})

describe('LoopRPT on `reference`', () => {
  it.each<[string, LoopRPTOptions]>([
    ['with the defaults', {}],
    ['the exit channel alone', { representationCoefficient: 0, entropyCoefficient: 0, klCoefficient: 0 }],
    ['the representation alone', { policyCoefficient: 0, entropyCoefficient: 0, klCoefficient: 0 }],
    ['the exit entropy alone', { policyCoefficient: 0, representationCoefficient: 0, entropyCoefficient: 1, klCoefficient: 0 }],
    ['the KL alone', { policyCoefficient: 0, representationCoefficient: 0, entropyCoefficient: 0, klCoefficient: 1 }],
    ['KL by the exit distribution', { policyCoefficient: 0, klReduction: 'weighted', klCoefficient: 1 }],
    ['KL at the last loop', { policyCoefficient: 0, klReduction: 'last', klCoefficient: 1 }],
    ['noise before the norm', { noiseSite: 'residual', klCoefficient: 0.5 }],
    ['noise on the embedding', { noiseSite: 'embedding', klCoefficient: 0.5 }],
    ['rewards of the clean pass', { rewardFrom: 'clean' }],
    ['antithetic noise', { antithetic: true, klCoefficient: 0.5 }],
    [
      'everything else at once, rollout by rollout',
      {
        noiseSite: 'residual',
        antithetic: true,
        rewardFrom: 'clean',
        klReduction: 'weighted',
        klCoefficient: 1,
        tokensPerMicroBatch: 1,
      },
    ],
    ['recomputed, rollout by rollout', { recompute: 'layer', tokensPerMicroBatch: 1 }],
  ])('computes the derivative of its loss: %s', async (_, options) => {
    await compare(options)
    await compare(options, [
      [1, 1, 0, 1, 0],
      [0, 1, 1],
    ])
  })

  it('rejects an odd number of antithetic rollouts', async () => {
    const model = await LoopLM.create(tinyConfig)
    expect(() => new LoopRPTTrainer(model, { antithetic: true, rollouts: 3 })).toThrow(/pairs/)
  })
})
