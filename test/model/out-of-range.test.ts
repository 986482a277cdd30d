// Steps that would leave the range of numbers: NON_FINITE, and nothing has changed.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { LoopLM } from '../../src/model/model.js'
import { AdamW, type AdamWOptions } from '../../src/model/optimizer.js'
import type { ModelDType } from '../../src/model/types.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { RLTTTrainer } from '../../src/rl/rltt.js'
import type { DeviceName } from '../../src/tensor/types.js'
import { refusal } from '../refusal.js'
import { parametersOf, tinyBatch, tinyConfig } from '../tiny.js'

const { sequences } = tinyBatch
const places: [DeviceName, ModelDType][] = [
  ['cpu', 'float32'],
  ['cpu', 'bfloat16'],
  ['reference', 'float64'],
]
const make = (device: DeviceName, dtype: ModelDType) => LoopLM.create(tinyConfig, { device, dtype, seed: 1 })

/** Gradients of a loss that is `size` times the mean negative log-probability. */
async function accumulate(model: LoopLM, size = 1) {
  const { logprobs } = await model.score(sequences)
  await model.backward(logprobs.map((row) => row.map(() => -size / row.length)))
}

const everyValue = async (model: LoopLM) => [...(await parametersOf(model)).values()].flatMap((values) => [...values])

describe.each(places)('on %s in %s', (device, dtype) => {
  const wide = dtype === 'float64'
  const cases: [string, AdamWOptions, number?][] = [
    ['learningRate 1e300', { learningRate: 1e300 }],
    ['learningRate 1e308', { learningRate: 1e308 }],
    ['learningRate times weightDecay', { learningRate: 1e20, weightDecay: wide ? 1e300 : 1e30 }],
    ['weightDecay 1e308', { weightDecay: 1e308, learningRate: 10 }],
    ['an eps that is 0 in the arithmetic', { eps: wide ? 1e-310 : 1e-50 }],
    ['an eps below what a processor keeps', { eps: wide ? Number.MIN_VALUE : 1e-39 }],
    ['gradients whose squares overflow', {}, wide ? 1e156 : 1e22],
    ['a maxGradNorm beyond the range', { maxGradNorm: 1e300 }, wide ? 1e156 : 1e22],
  ]
  it.each(cases)('a step with %s fails and changes nothing', async (_, options, size) => {
    using model = await make(device, dtype)
    using optimizer = new AdamW(model, { learningRate: 1e-3 })
    await accumulate(model)
    await optimizer.step()
    const before = await parametersOf(model)
    await accumulate(model, size)
    const error = await refusal(() => optimizer.step(options))
    expect(error.code).toBe('NON_FINITE')
    expect(error.message).toMatch(/nothing was changed/)
    expect(await parametersOf(model)).toEqual(before)
    expect(optimizer.steps).toBe(1)

    // the optimizer is what it was: the next step is that of one that never saw the refused options
    await model.zeroGradients()
    using twin = await make(device, dtype)
    using plain = new AdamW(twin, { learningRate: 1e-3 })
    await accumulate(twin)
    await plain.step()
    for (const [m, o] of [[model, optimizer] as const, [twin, plain] as const]) {
      await accumulate(m)
      await o.step()
    }
    expect(await parametersOf(model)).toEqual(await parametersOf(twin))
  })

  const harmless: [string, AdamWOptions][] = [
    ['betas of 0', { betas: [0, 0] }],
    ['betas next to 1', { betas: [1 - 2 ** -53, 1 - 2 ** -53] }],
    ['weightDecay 1e10', { weightDecay: 1e10 }],
    ['learningRate 1e10', { learningRate: 1e10 }],
    ['eps 1e-30', { eps: 1e-30 }],
    ['maxGradNorm 1e-300', { maxGradNorm: 1e-300 }],
    ['maxGradNorm 1e300', { maxGradNorm: 1e300 }],
  ]
  it.each(harmless)('steps with %s leave finite parameters', async (_, options) => {
    using model = await make(device, dtype)
    using optimizer = new AdamW(model, options)
    for (let step = 0; step < 3; step++) {
      await accumulate(model)
      const made = await optimizer.step().catch((error: unknown) => error)
      if (made instanceof Error) expect(made).toMatchObject({ code: 'NON_FINITE' })
      if (step === 0) expect(made).toHaveProperty('gradNorm')
    }
    expect((await everyValue(model)).every(Number.isFinite)).toBe(true)
  })

  it('a trainer names the failed step, and its model stays usable', async () => {
    using model = await make(device, dtype)
    const before = await parametersOf(model)
    using trainer = new PretrainTrainer(model, { learningRate: 1e300, schedule: 'linear', steps: 2 })
    const error = await refusal(() => trainer.update({ sequences }))
    expect(error.code).toBe('NON_FINITE')
    expect(error.message).toMatch(/^step 1: .*learningRate 1e\+300.*nothing was changed\. Lower learningRate/)
    expect(await parametersOf(model)).toEqual(before)
    using next = new PretrainTrainer(model, { learningRate: 1e-3 })
    await expect(next.update({ sequences })).resolves.toHaveProperty('loss')
  })

  it.each([1e300, -1e300, 1e39])('advantages of %f fail without a change or leave finite parameters', async (size) => {
    using model = await make(device, dtype)
    const before = await parametersOf(model)
    using trainer = new RLTTTrainer(model, { groupSize: 4, learningRate: 1e-3 })
    const { rewards: _, ...batch } = tinyBatch
    const made = await trainer.update({ ...batch, advantages: Array(8).fill(size) }).catch((error: unknown) => error)
    if (made instanceof Error) {
      expect(made).toMatchObject({ code: 'NON_FINITE' })
      expect(await parametersOf(model)).toEqual(before)
    }
    if (!wide) expect(made).toBeInstanceOf(Error)
    expect((await everyValue(model)).every(Number.isFinite)).toBe(true)
  })

  it('setParameter rejects a value outside the range of the dtype', async () => {
    using model = await make(device, dtype)
    const name = 'model.early_exit_gate.bias'
    const highest = { float32: 3.4028234663852886e38, bfloat16: 3.3895313892515355e38, float64: Number.MAX_VALUE }[dtype]
    await model.setParameter(name, [highest])
    expect([...(await model.getParameter(name))]).toEqual([highest])
    const error = await refusal(() => model.setParameter(name, [wide ? -Infinity : -1e39]))
    expect(error.code).toBe('NON_FINITE')
    if (!wide) expect(error.message).toMatch(/holds -1e\+39 \(entry 0 of all\); the largest value of \w+ is 3\.\d+e\+38/)
    expect([...(await model.getParameter(name))]).toEqual([highest])
  })
})

describe('the range check of a step', () => {
  it('uses parameters that were set', async () => {
    using model = await make('cpu', 'float32')
    using optimizer = new AdamW(model, { learningRate: 1e-3 })
    await accumulate(model)
    await optimizer.step()
    const norm = await model.getParameter('model.norm.weight')
    await model.setParameter(
      'model.norm.weight',
      norm.map(() => 2e38),
    )
    expect((await refusal(() => optimizer.step())).message).toMatch(/could leave the range of float32/)
    await model.setParameter('model.norm.weight', norm)
    await accumulate(model)
    await expect(optimizer.step()).resolves.toHaveProperty('gradNorm')
  })

  it('uses moments that were loaded', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'looplm-range-'))
    const path = join(folder, 'optimizer.safetensors')
    using model = await make('cpu', 'float32')
    using first = new AdamW(model, { learningRate: 0 })
    await accumulate(model, 1e17)
    await first.step()
    await first.save(path)
    const options = { learningRate: 1e15 } // times moments of 1e16 over an eps of 1e-8
    using fresh = new AdamW(model, options)
    await expect(fresh.step({ learningRate: 0 })).resolves.toEqual({ gradNorm: 0 })
    using loaded = new AdamW(model, options)
    await loaded.load(path)
    expect((await refusal(() => loaded.step())).message).toMatch(/could leave the range of float32/)
    await expect(loaded.step({ learningRate: 1e-3 })).resolves.toEqual({ gradNorm: 0 })
    await loaded.load(path) // after a step of its own too
    expect((await refusal(() => loaded.step())).message).toMatch(/could leave the range of float32/)
    rmSync(folder, { recursive: true })
  })
})
