// Calls of trainers on one model: each gives what it gives alone, whatever else is under way, was left behind or went wrong.
import { describe, expect, it, vi } from 'vitest'
import type { LoopLM } from '../../src/model/model.js'
import { AdamW } from '../../src/model/optimizer.js'
import { GRPOTrainer } from '../../src/rl/grpo.js'
import { LoopRPTTrainer } from '../../src/rl/looprpt.js'
import type { OwnObjective } from '../../src/rl/objective/custom-objective.js'
import { ObjectiveTrainer } from '../../src/rl/objective-trainer.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { RLTTTrainer } from '../../src/rl/rltt.js'
import { refusal } from '../refusal.js'
import { timeless } from '../timeless.js'
import { parametersOf, tinyBatch, tinyConfig, tinyModel, tinyTask, variedReward } from '../tiny.js'

const batch = { ...tinyBatch, rewards: [1, 0, 0, 0, 1, 1, 0, 0] }
const other = { ...batch, rewards: [0, 1, 1, 0, 0, 0, 0, 1] }
const base = { groupSize: 4, learningRate: 1e-2 } as const

/** One trainer of each kind on a model. */
const trainersOf = (model: LoopLM) =>
  [
    new RLTTTrainer(model, { ...base, beta: 0.1 }),
    new PretrainTrainer(model, { learningRate: 1e-2 }),
    new GRPOTrainer(model, base),
    new LoopRPTTrainer(model, { rollouts: 2, rho: 1, learningRate: 1e-2 }),
  ] as const

/** Leaves a gradient on the model, as a program does that calls backward itself. */
const leaveGradient = (model: LoopLM) =>
  model.backward(
    batch.sequences,
    batch.sequences.map((s) => new Float64Array(tinyConfig.total_ut_steps * (s.length - 1)).fill(1)),
  )

describe('trainers that share a model', () => {
  it('give the same gradients in concurrent calls as alone', async () => {
    using model = await tinyModel()
    const trainers = trainersOf(model)
    const alone = []
    for (const trainer of trainers) alone.push(await trainer.gradients(batch))
    expect(await Promise.all(trainers.map((trainer) => trainer.gradients(batch)))).toEqual(alone)
  })

  it('make the same updates in concurrent calls as one after the other', async () => {
    using model = await tinyModel()
    using twin = await tinyModel()
    const [together, apart] = [trainersOf(model), trainersOf(twin)]
    const metrics = await Promise.all(together.map((trainer) => trainer.update(batch)))
    const want = []
    for (const trainer of apart) want.push(await trainer.update(batch))
    expect(metrics.map(timeless)).toEqual(want.map(timeless))
    expect(await parametersOf(model)).toEqual(await parametersOf(twin))
  })

  it('wait for each other when one of them runs', async () => {
    const course = async (together: boolean) => {
      using model = await tinyModel('cpu')
      const task = { task: tinyTask, reward: variedReward, promptsPerStep: 4, steps: 1, maxNewTokens: 2 }
      using runner = new RLTTTrainer(model, { ...base, ...task })
      using updater = new PretrainTrainer(model, { learningRate: 1e-2 })
      const events = runner.run()
      const step = together ? events.next() : undefined // opens its data first, so that the update is before its step
      await updater.update(batch)
      await (step ?? events.next())
      await events.return()
      return await parametersOf(model)
    }
    expect(await course(true)).toEqual(await course(false))
  })
})

describe('one trainer', () => {
  it('makes concurrent updates in the order of the calls', async () => {
    using model = await tinyModel()
    using twin = await tinyModel()
    using trainer = new RLTTTrainer(model, base)
    using patient = new RLTTTrainer(twin, base)
    const metrics = await Promise.all([batch, other, batch].map((given) => trainer.update(given)))
    const want = []
    for (const given of [batch, other, batch]) want.push(await patient.update(given))
    expect(metrics.map(timeless)).toEqual(want.map(timeless))
    expect(await parametersOf(model)).toEqual(await parametersOf(twin))
    expect(trainer.step).toBe(3)
  })

  it('continues after calls that failed or were aborted', async () => {
    using model = await tinyModel()
    using twin = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...base, task: tinyTask, reward: variedReward, promptsPerStep: 4 })
    using plain = new RLTTTrainer(twin, base)
    const controller = new AbortController()
    const run = trainer.run({ signal: controller.signal })
    const ended = run.next()
    controller.abort()
    const results = await Promise.allSettled([
      trainer.update({ ...batch, rewards: [1] }),
      trainer.gradients({ ...batch, advantages: Array(8).fill(Number.NaN) }),
      trainer.update(batch),
    ])
    expect(results.map(({ status }) => status)).toEqual(['rejected', 'rejected', 'fulfilled'])
    await plain.update(batch)
    expect(await parametersOf(model)).toEqual(await parametersOf(twin))
    expect((await ended).value).toMatchObject({ type: 'done', aborted: true })
  })

  it('rejects a call from inside a step of the same model', async () => {
    using model = await tinyModel()
    using inner = new PretrainTrainer(model)
    const objective: OwnObjective = async ({ scores }) => {
      await inner.gradients(batch)
      return { loss: 0, coefficients: scores.logprobs }
    }
    using trainer = new ObjectiveTrainer(model, { ...base, objective })
    const { code, message } = await refusal(() => trainer.update(batch))
    expect(code).toBe('INVALID_ARGUMENT')
    expect(message).toMatch(/PretrainTrainer\.gradients: .*inside a step of the same model.*clone/)
    await expect(inner.gradients(batch)).resolves.toHaveProperty('loss')
  })

  it('ignores gradients that backward left on the model', async () => {
    using model = await tinyModel()
    using twin = await tinyModel()
    await leaveGradient(model)
    using trainer = new RLTTTrainer(model, base)
    using plain = new RLTTTrainer(twin, base)
    expect(timeless(await trainer.update(batch))).toEqual(timeless(await plain.update(batch)))
    await leaveGradient(model)
    expect(await trainer.gradients(batch)).toEqual(await plain.gradients(batch))
    expect([...(await model.gradients()).values()].every((values) => values.every((value) => value === 0))).toBe(true)
  })

  it('with beta keeps its reference model through steps that change nothing', async () => {
    using model = await tinyModel()
    using twin = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...base, beta: 0.1, onWarning() {} })
    using plain = new RLTTTrainer(twin, { ...base, beta: 0.1 })
    await trainer.update({ ...batch, rewards: Array(8).fill(null) })
    for (let step = 0; step < 2; step++) {
      const { loss, kl } = await trainer.update(batch)
      expect([loss, kl]).toEqual(await plain.update(batch).then((metrics) => [metrics.loss, metrics.kl]))
    }
    expect(await parametersOf(model)).toEqual(await parametersOf(twin))
  })
})

describe('gradients', () => {
  it('rejects a loss that is not finite', async () => {
    using model = await tinyModel('cpu')
    using trainer = new GRPOTrainer(model, base)
    const oldLogprobs = batch.sequences.map((s) => new Float32Array(s.length - 1).fill(-1e4)) // every ratio overflows
    const { code, message } = await refusal(() => trainer.gradients({ ...batch, oldLogprobs }))
    expect(code).toBe('NON_FINITE')
    expect(message).toMatch(/^GRPOTrainer\.gradients: the loss is .*it comes from what the objective was given/)
    await expect(trainer.gradients(batch)).resolves.toHaveProperty('loss')
  })

  it('rejects values that are not finite and leaves no gradient on the model', async () => {
    using model = await tinyModel('cpu')
    using trainer = new GRPOTrainer(model, base)
    await model.setParameter('model.norm.weight', new Float32Array(tinyConfig.hidden_size).fill(3e38))
    const { code, message } = await refusal(() => trainer.gradients(batch))
    expect(code).toBe('NON_FINITE')
    expect(message).toMatch(/the loss is NaN|the gradient of \S+ holds (NaN|-?Infinity).*is not finite \(sequence 0/)
    expect([...(await model.gradients()).values()].every((values) => values.every((value) => value === 0))).toBe(true)
  })

  it('returns zeros and a loss of 0 for a batch without any gradient', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...base, onWarning: vi.fn() })
    const { loss, gradients } = await trainer.gradients({ ...batch, rewards: Array(8).fill(1) })
    expect(loss).toBe(0)
    expect([...gradients.keys()]).toEqual(model.parameters().map(({ name }) => name))
    expect([...gradients.values()].every((values) => values.every((value) => value === 0))).toBe(true)
    using optimizer = new AdamW(model)
    expect((await optimizer.step()).gradNorm).toBe(0)
  })
})
