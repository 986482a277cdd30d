// Parameters go from one model to another only where both compute the same from them.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { computing, configDifference, type LoopLMConfig } from '../../src/model/config.js'
import { MovingAverage } from '../../src/model/looprpt.js'
import { LoopLM } from '../../src/model/model.js'
import { LoopRPTTrainer } from '../../src/rl/looprpt.js'
import { ObjectiveTrainer } from '../../src/rl/objective-trainer.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { refusal } from '../refusal.js'
import { parametersOf, tinyBatch, tinyConfig, tinyTask } from '../tiny.js'

const { sequences } = tinyBatch
const base = { ...tinyConfig, num_key_value_heads: 2, head_dim: 8, rope_theta: 10_000, rms_norm_eps: 1e-6 }
const of = (change: object = {}) => LoopLM.create({ ...base, ...change }, { seed: 1 })

// the first group leaves every shape as it is
const changes: [keyof LoopLMConfig, object][] = [
  ['rope_theta', { rope_theta: 1_000_000 }],
  ['rms_norm_eps', { rms_norm_eps: 1e-2 }],
  ['num_attention_heads', { num_attention_heads: 4, num_key_value_heads: 4, head_dim: 4 }],
  ['total_ut_steps', { total_ut_steps: 2 }],
  ['num_key_value_heads', { num_key_value_heads: 1 }],
  ['head_dim', { head_dim: 4 }],
  ['tie_word_embeddings', { tie_word_embeddings: true }],
  ['vocab_size', { vocab_size: 13 }],
  ['hidden_size', { hidden_size: 32 }],
  ['intermediate_size', { intermediate_size: 32 }],
  ['num_hidden_layers', { num_hidden_layers: 2 }],
]

let model: LoopLM
let folder: string
beforeAll(async () => {
  model = await of()
  folder = mkdtempSync(join(tmpdir(), 'looplm-configuration-'))
})
afterAll(() => {
  model.dispose()
  rmSync(folder, { recursive: true })
})

describe.each(changes)('another %s', (field, change) => {
  const words = new RegExp(`${field} is \\S+, but the model's is \\S+`)

  it('is reported by configDifference', async () => {
    using other = await of(change)
    expect(configDifference(model.config, other.config)).toMatch(words)
    expect(configDifference(model.config, model.config)).toBeUndefined()
  })

  it('is rejected in a teacher before training, also if the teacher is frozen', async () => {
    using teacher = await of(change)
    const before = await parametersOf(model)
    for (const teacherDecay of [0.9, 1]) {
      using trainer = new LoopRPTTrainer(model, { teacher, teacherDecay, rollouts: 2, task: tinyTask, steps: 1, batchSize: 2 })
      for (const run of [
        () => trainer.update({ sequences }),
        () => trainer.gradients({ sequences }),
        async () => {
          for await (const _ of trainer.run());
        },
      ]) {
        const error = await refusal(run)
        expect(error.code).toBe('INVALID_CONFIG')
        expect(error.message).toMatch(/LoopRPTTrainer: teacher: /)
        expect(error.message).toMatch(words)
      }
    }
    expect(await parametersOf(model)).toEqual(before)
  })

  it('is rejected in a moving average by the engine', async () => {
    using teacher = await of(change)
    const average = new MovingAverage(teacher, model)
    expect((await refusal(() => average.update(0.5))).message).toMatch(/the teacher must have the student's configuration/)
    average.dispose()
  })

  it('is rejected by copyParametersFrom', async () => {
    using other = await of(change)
    const error = await refusal(() => model.copyParametersFrom(other))
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(words)
  })

  it('is rejected in a checkpoint to resume from', async () => {
    const runDir = join(folder, String(field))
    const options = { task: tinyTask, batchSize: 2, steps: 1, onWarning: () => {} }
    {
      using other = await of(change)
      using trainer = new PretrainTrainer(other, { ...options, runDir })
      for await (const _ of trainer.run());
    }
    using trainer = new PretrainTrainer(model, { ...options, steps: 2, runDir, resume: true })
    const before = await parametersOf(model)
    const error = await refusal(async () => {
      for await (const _ of trainer.run());
    })
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toMatch(/config\.json: /)
    expect(error.message).toMatch(words)
    expect(await parametersOf(model)).toEqual(before)
  })
})

it('every field that the engine computes with is compared', () => {
  const names = new Set(changes.map(([field]) => field))
  expect([...names].sort()).toEqual([...computing].sort())
})

it('fields that do not matter to the computation may differ', async () => {
  using other = await of({ early_exit_threshold: 0.5, bos_token_id: 3, initializer_range: 0.1, max_position_embeddings: 99 })
  await model.copyParametersFrom(other)
  using trainer = new LoopRPTTrainer(model, { teacher: other, rollouts: 2 })
  await expect(trainer.update({ sequences })).resolves.toHaveProperty('loss')
})

it('a model is rejected as its own teacher', async () => {
  using trainer = new LoopRPTTrainer(model, { teacher: model, rollouts: 2 })
  const { code, message } = await refusal(() => trainer.update({ sequences }))
  expect([code, message]).toEqual(['INVALID_CONFIG', expect.stringMatching(/teacher: it is the model itself.*model\.clone\(\)/)])
  using teacher = await model.clone()
  using other = new LoopRPTTrainer(model, { teacher, rollouts: 2 })
  await expect(other.update({ sequences })).resolves.toHaveProperty('loss')
})

it('the reference of a run is rejected if another configuration wrote it', async () => {
  const runDir = join(folder, 'reference')
  const options = { ...{ task: tinyTask, groupSize: 2, promptsPerStep: 1, steps: 1, runDir, onWarning: () => {} } } as const
  const objective = { terms: [{}], kl: { beta: 0.1 } } as const
  using own = await of()
  {
    using trainer = new ObjectiveTrainer(own, { ...options, objective })
    for await (const _ of trainer.run());
  }
  const path = join(runDir, 'reference', 'config.json')
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), rope_theta: 500_000 }))
  using trainer = new ObjectiveTrainer(own, { ...options, objective, steps: 2, resume: true })
  const error = await refusal(async () => {
    for await (const _ of trainer.run());
  })
  expect(error.message).toMatch(/reference.*config\.json: rope_theta is 500000, but the model's is 10000/)
})
