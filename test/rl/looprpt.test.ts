// LoopRPT and Stage II beyond the golden files: what an update changes, what the draws depend on, the teacher, resuming.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { addition, LoopLM, LoopRPTTrainer, memory, PretrainTrainer, resetPeakMemory } from '../../src/index.js'
import { collectGarbage } from '../garbage.js'
import { relativeError } from '../golden-files.js'
import { refusal } from '../refusal.js'
import { unitRoundoff } from '../rounding.js'

const scratch = mkdtempSync(join(tmpdir(), 'looplm-looprpt-'))
afterAll(() => rmSync(scratch, { recursive: true }))

const config = {
  vocab_size: 12,
  hidden_size: 24,
  intermediate_size: 40,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  total_ut_steps: 3,
  initializer_range: 0.2,
}
const sequences = [
  [1, 2, 3, 4, 5, 6, 7],
  [8, 9, 10, 11, 0],
  [3, 1, 4, 1, 5, 9, 2, 6],
]
const batch = { sequences, promptLengths: [2, 1, 3] }

async function parameters(model: LoopLM): Promise<Map<string, number[]>> {
  const out = new Map<string, number[]>()
  for (const { name } of model.parameters()) out.set(name, Array.from(await model.getParameter(name)))
  return out
}

describe('Stage II', () => {
  it('updates only the gate, even with weight decay', async () => {
    const model = await LoopLM.create(config, { seed: 1 })
    const before = await parameters(model)
    await new PretrainTrainer(model, { stage: 2, learningRate: 0.1, weightDecay: 0.5 }).update(batch)
    const after = await parameters(model)
    const moved = [...after.keys()].filter((name) => String(after.get(name)) !== String(before.get(name)))
    expect(moved.sort()).toEqual(['model.early_exit_gate.bias', 'model.early_exit_gate.weight'])
  })
})

describe('LoopRPT', () => {
  const gradients = async (options: object, model?: LoopLM) => {
    const own = model ?? (await LoopLM.create(config, { seed: 1 }))
    return new LoopRPTTrainer(own, { rollouts: 3, rho: 0.6, seed: 4, ...options }).gradients(batch)
  }

  it('draws the same noise and exits whatever the micro-batches are', async () => {
    const whole = await gradients({})
    const parts = await gradients({ tokensPerMicroBatch: 1 })
    const norm = Math.hypot(...[...whole.gradients.values()].flatMap((g) => Array.from(g)))
    expect(norm).toBeGreaterThan(0)
    for (const [name, gradient] of whole.gradients)
      expect(relativeError(parts.gradients.get(name)!, gradient, 1e-2 * norm), name).toBeLessThan(1e-5)
  })

  it('gives the same bits when repeated, and another loss with another seed', async () => {
    const first = await gradients({})
    expect(await gradients({})).toEqual(first)
    expect((await gradients({ seed: 5 })).loss).not.toBe(first.loss)
  })

  it.each(['loop', 'layer'] as const)('has the same bits with recompute %s: the noise is drawn again', async (recompute) => {
    expect(await gradients({ recompute })).toEqual(await gradients({}))
  })

  it('has different rewards by exits alone if sigma is 0', async () => {
    const model = await LoopLM.create(config, { seed: 1, device: 'reference' })
    const exits = sequences.map((s) => [0, 1, 2].flatMap((loop) => Array<number>(s.length - 1).fill(loop)))
    const trainer = new LoopRPTTrainer(model, { rollouts: 3, rho: 1, sigma: 0, teacherDecay: 1 })
    const metrics = await trainer.update({ ...batch, exits })
    expect(metrics['sampled_exit_loop/mean']).toBeCloseTo(2, 12)
    expect(metrics.kl).toBeCloseTo(0, 12) // the teacher is a copy of the model
    expect(metrics.reward_std).toBeGreaterThan(0)
  })

  it.each(['float32', 'bfloat16'] as const)('updates the teacher as a moving average in float32 (%s)', async (dtype) => {
    const model = await LoopLM.create(config, { seed: 1, dtype })
    const before = await parameters(model)
    const trainer = new LoopRPTTrainer(model, { rollouts: 2, learningRate: 0.05, teacherDecay: 0.9 })
    await trainer.update(batch)
    const after = await parameters(model)
    const teacher = await parameters(trainer.teacher!)
    const want = [...before].flatMap(([name, values]) => values.map((v, i) => 0.9 * v + 0.1 * after.get(name)![i]!))
    const got = [...before.keys()].flatMap((name) => teacher.get(name)!)
    // of float32 the decay, two products and a sum are rounded; of bfloat16 what is stored
    expect(relativeError(got, want)).toBeLessThan((dtype === 'float32' ? 8 : 1) * unitRoundoff[dtype])
    expect(got).not.toEqual([...before.values()].flat())
  })

  it.each(['float32', 'bfloat16'] as const)('resumes bit for bit, teacher included (%s)', async (dtype) => {
    const task = addition({ digits: 1 })
    const options = { task, steps: 4, batchSize: 6, rollouts: 2, learningRate: 1e-2 }
    const fresh = () => LoopLM.create(config, { seed: 2, dtype })
    const straight = await fresh()
    const whole = new LoopRPTTrainer(straight, options)
    for await (const _ of whole.run());
    const runDir = join(scratch, dtype)
    const half = new LoopRPTTrainer(await fresh(), { ...options, steps: 2, runDir })
    for await (const _ of half.run());
    const resumed = await fresh()
    const rest = new LoopRPTTrainer(resumed, { ...options, runDir, resume: true, onWarning: () => {} })
    for await (const _ of rest.run());
    expect(await parameters(resumed)).toEqual(await parameters(straight))
    expect(await parameters(rest.teacher!)).toEqual(await parameters(whole.teacher!))
  })

  it.each([2, 8, 32])('needs at most 1.5 × the memory of an equal Stage I step with %i rollouts', async (rollouts) => {
    const wide = { ...config, hidden_size: 64, intermediate_size: 176, num_hidden_layers: 2, total_ut_steps: 4 }
    const long = [...'ab'].map((_, i) => Array.from({ length: 129 }, (_, j) => (5 * i + 7 * j) % 12))
    const options = { tokensPerMicroBatch: 256 }
    const peak = async (make: (model: LoopLM) => LoopRPTTrainer | PretrainTrainer) => {
      await collectGarbage()
      resetPeakMemory()
      const before = memory().bytes
      using model = await LoopLM.create(wide, { seed: 1 })
      using trainer = make(model)
      await trainer.update({ sequences: long })
      return memory().peak - before
    }
    const stage1 = await peak((model) => new PretrainTrainer(model, options))
    const looprpt = await peak((model) => new LoopRPTTrainer(model, { ...options, rollouts }))
    expect(looprpt / stage1).toBeLessThan(1.5)
    expect(looprpt / stage1).toBeGreaterThan(0.5)
  })

  it('rejects a model of one loop, a teacher of another shape and invalid draws', async () => {
    const single = await LoopLM.create({ ...config, total_ut_steps: 1 })
    await expect(new LoopRPTTrainer(single).update(batch)).rejects.toThrow(/at least two/)
    const model = await LoopLM.create(config)
    const teacher = await LoopLM.create({ ...config, hidden_size: 32 })
    await expect(new LoopRPTTrainer(model, { teacher }).update(batch)).rejects.toThrow(
      /teacher: hidden_size is 32, but the model's is 24/,
    )
    const { code, message } = await refusal(() =>
      new LoopRPTTrainer(model, { rollouts: 2 }).update({ ...batch, exits: sequences.map(() => [0]) }),
    )
    expect(code).toBe('INVALID_SHAPE')
    expect(message).toMatch(/exits\[0\] must have rollouts × \(length - 1\) = 12 entries.*got 1$/)
  })
})
