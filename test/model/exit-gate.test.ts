// An exit gate for families that have none: it is saved and loaded, and what needs exit probabilities has them.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { LoopLM, type LoopLMConfigInput, LoopRPTTrainer, PretrainTrainer, RLTTTrainer } from '../../src/index.js'
import { expectDerivative } from '../central-differences.js'
import { describedComputation } from '../described-model.js'
import { familiesFolder } from '../family-fixtures.js'
import { exitUniform, type LoopRptCase, latentNoise, loopRptLoss, type Parameters } from '../looped-model.js'
import { refusal } from '../refusal.js'
import { readTensors } from '../stored-tensors.js'
import { parametersOf, tinyConfig } from '../tiny.js'

const work = mkdtempSync(join(tmpdir(), 'looplm-gate-'))
afterAll(() => rmSync(work, { recursive: true }))
const configOf = (name: string) => JSON.parse(readFileSync(join(familiesFolder, name, 'config.json'), 'utf8'))
const gate = ['model.early_exit_gate.weight', 'model.early_exit_gate.bias']
const sequences = [
  [1, 10, 2, 11, 0, 3],
  [7, 8, 11, 5],
]

describe.each(['nanbeige', 'huginn', 'retrofit_olmo2', 'hrm_text'])('%s', (name) => {
  const folder = join(familiesFolder, name)

  it('scores the same with a new exit gate, which exits with probability 1/2 per loop', async () => {
    using plain = await LoopLM.fromPretrained(folder)
    using model = await LoopLM.fromPretrained(folder, { exitGate: true })
    const [want, scores] = [await plain.score(sequences), await model.score(sequences)]
    expect(scores.logprobs).toEqual(want.logprobs)
    const T = scores.loops
    expect(Array.from(scores.exitPdf[1]!)).toEqual(
      Array.from({ length: 4 * T }, (_, i) => 0.5 ** Math.min(1 + Math.floor(i / 4), T - 1)),
    )
    expect(model.parameters().slice(-2)).toEqual([
      { name: gate[0], shape: [1, 16] },
      { name: gate[1], shape: [1] },
    ])
  })

  it('saves the exit gate with the published tensors and loads it without an option', async () => {
    using model = await LoopLM.fromPretrained(folder, { exitGate: true })
    using trainer = new PretrainTrainer(model, { learningRate: 0.05 })
    await trainer.update({ sequences })
    const saved = join(work, name)
    await model.save(saved)
    const names = (path: string) => readTensors(join(path, 'model.safetensors')).map((tensor) => tensor.name)
    using plain = await LoopLM.fromPretrained(folder)
    expect(names(saved).sort()).toEqual([...plain.parameters().map((p) => p.name), ...gate].sort())
    expect(JSON.parse(readFileSync(join(saved, 'config.json'), 'utf8'))).toMatchObject({
      model_type: configOf(name).model_type,
      looplm_exit_gate: true,
    })
    for (const options of [{}, { exitGate: true }]) {
      using again = await LoopLM.fromPretrained(saved, options)
      expect(await again.score(sequences)).toEqual(await model.score(sequences))
    }
    expect(Array.from(await model.getParameter(gate[0]!)).some((v) => v !== 0)).toBe(true)
    await expect(plain.copyParametersFrom(model)).rejects.toThrow(/configuration describes another computation/)
  })

  it('can be created with an exit gate, which Stage II trains alone', async () => {
    using model = await LoopLM.create(configOf(name), { exitGate: true, seed: 1 })
    const before = await parametersOf(model)
    using trainer = new PretrainTrainer(model, { stage: 2, learningRate: 0.05 })
    await trainer.update({ sequences })
    for (const [parameter, values] of await parametersOf(model)) {
      if (gate.includes(parameter)) expect(values, parameter).not.toEqual(before.get(parameter))
      else expect(values, parameter).toEqual(before.get(parameter))
    }
  })
})

it('a model that has a gate keeps it', async () => {
  using plain = await LoopLM.create(tinyConfig, { seed: 1 })
  using model = await LoopLM.create(tinyConfig, { seed: 1, exitGate: true })
  expect(await parametersOf(model)).toEqual(await parametersOf(plain))
  expect(model.config).toEqual(plain.config)
})

it('features that need an exit gate fail with advice how to add one', async () => {
  const config = configOf('nanbeige')
  using model = await LoopLM.create(config)
  const remedy = /create or load the model with exitGate: true/
  using trainer = new RLTTTrainer(model, { weights: 'exit-pdf' })
  const update = () => trainer.update({ sequences, promptLengths: [1, 1], advantages: [1, -1] })
  expect((await refusal(update)).message).toMatch(remedy)
  expect((await refusal(() => model.generate([[1]], { exit: { rule: 'gate', threshold: 0.5 } }))).message).toMatch(remedy)
  expect((await refusal(() => LoopLM.create({ ...config, looplm_exit_gate: 'yes' }))).message).toMatch(
    /looplm_exit_gate: must be true or absent/,
  )
  expect((await refusal(() => LoopLM.create(config, { exitGate: 1 as never }))).message).toMatch(/exitGate/)
})

it('Nanbeige exits early by an added gate', async () => {
  using model = await LoopLM.create(configOf('nanbeige'), { exitGate: true, seed: 1 })
  const loops = async (bias: number) => {
    await model.setParameter(gate[1]!, [bias])
    const [out] = await model.generate([[1, 2]], { maxNewTokens: 4, stop: [], exit: { rule: 'gate', threshold: 0.9 } })
    return out!.loops
  }
  expect(await loops(5)).toEqual([1, 1, 1, 1])
  expect(await loops(-5)).toEqual([2, 2, 2, 2])
})

/** With states of zeros, so that the oracle need not draw them. */
const noStates = (name: string) => {
  const { init_values, ...config } = configOf(name)
  return { ...config, ...(name === 'huginn' ? { init_values: { ...init_values, embed_scale: 0 } } : {}) } as LoopLMConfigInput
}
/** A model whose gate says something. */
async function gated(name: string, seed: number): Promise<LoopLM> {
  const model = await LoopLM.create(noStates(name), { exitGate: true, device: 'reference', seed })
  await model.setParameter(
    gate[0]!,
    Float64Array.from({ length: 16 }, (_, i) => 0.3 * Math.sin(i + seed)),
  )
  await model.setParameter(gate[1]!, [-0.4])
  return model
}

describe.each(['nanbeige', 'nanbeige_flags', 'huginn'])('gradients of a %s model with an exit gate', (name) => {
  const promptLengths = [2, 1]

  it.each(['RLTT with exit-pdf weights', 'Stage I'] as const)('are the derivative of the loss: %s', async (which) => {
    using model = await gated(name, 1)
    const { architecture: a } = model
    const own = await parametersOf(model)
    const advantages = [1, -0.7]
    const run = describedComputation(a).run
    const predictions = (p: Parameters) =>
      sequences.flatMap((ids, i) => {
        const at = run(p, ids)
        const n = ids.length - promptLengths[i]!
        return Array.from({ length: n }, (_, k) => ({ i, n, ...at(promptLengths[i]! - 1 + k) }))
      })
    const fixed = predictions(own)
    const response = (p: Parameters) =>
      predictions(p).reduce(
        (sum, { i, n, logprobs }, k) =>
          sum - logprobs.reduce((s, l, t) => s + (advantages[i]! / (2 * n)) * Math.exp(fixed[k]!.logPdf[t]!) * l, 0),
        0,
      )
    const stage1 = (p: Parameters) => {
      const all = predictions(p)
      const loss = ({ logprobs, logPdf }: (typeof all)[number]) =>
        logprobs.reduce((s, l, t) => s + Math.exp(logPdf[t]!) * (0.1 * logPdf[t]! - l), 0)
      return all.reduce((sum, one) => sum + loss(one), 0) / all.length
    }
    const rltt = which !== 'Stage I'
    using trainer = rltt
      ? new RLTTTrainer(model, { weights: 'exit-pdf', normalizer: 'response-mean' })
      : new PretrainTrainer(model, { entropyCoefficient: 0.1 })
    const batch = rltt ? { sequences, promptLengths, advantages } : { sequences, promptLengths }
    const { loss, gradients } = await (trainer as RLTTTrainer).gradients(batch as never)
    const of = rltt ? response : stage1
    expect(loss).toBeCloseTo(of(own), 10)
    expectDerivative(gradients, own, of)
  })

  it.each([
    ['with the defaults', {}],
    ['rollout by rollout, recomputed', { tokensPerMicroBatch: 1, recompute: 'loop', antithetic: true }],
  ] as const)('are the derivative of the LoopRPT loss: %s', async (_, more) => {
    using model = await gated(name, 1)
    using teacher = await gated(name, 2)
    const { architecture: a } = model
    const [seed, sigma, rollouts] = [11, 0.2, 4]
    const settings = { klCoefficient: 0.5, entropyCoefficient: 0.01, rho: 0.6, rollouts, sigma, seed, ...more }
    using trainer = new LoopRPTTrainer(model, { teacher, ...settings })
    const { config } = trainer
    const { loss, gradients } = await trainer.gradients({ sequences, promptLengths })
    const of: LoopRptCase = {
      ...{ sequences, promptLengths, rollouts, rho: 0.6, site: 'state', rewardFrom: config.rewardFrom },
      klReduction: config.klReduction,
      coefficients: {
        ...{ policy: config.policyCoefficient, representation: config.representationCoefficient },
        ...{ entropy: config.entropyCoefficient, kl: config.klCoefficient },
      },
      noise: (i, g) => {
        const odd = config.antithetic && g % 2 === 1
        const stream = i * rollouts + (odd ? g - 1 : g)
        return Array.from({ length: a.loops }, (_, t) =>
          sequences[i]!.map((_, j) =>
            Array.from({ length: a.hidden }, (_, k) => (odd ? -sigma : sigma) * latentNoise(seed, stream, j, t, k)),
          ),
        )
      },
      exit: (i, g, j, pdf) => {
        const u = exitUniform(seed, i * rollouts + g, j)
        let cdf = 0
        const left = pdf.findIndex((p) => {
          cdf += p
          return u < cdf
        })
        return left < 0 ? a.loops - 1 : left
      },
    }
    const own = await parametersOf(model)
    const want = loopRptLoss(describedComputation(a), of, await parametersOf(teacher), own)
    expect(loss).toBeCloseTo(want(own), 10)
    expectDerivative(gradients, own, want)
  })
})

it('LoopRPT rejects noise before a norm that the loops do not have', async () => {
  using model = await gated('huginn', 1)
  using trainer = new LoopRPTTrainer(model, { noiseSite: 'residual', rollouts: 2 })
  expect((await refusal(() => trainer.update({ sequences }))).message).toMatch(/noiseSite residual is before the norm/)
})
