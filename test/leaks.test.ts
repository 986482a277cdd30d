// What is disposed is gone, and models on one device do not disturb each other. The ten thousand cycles are in test/long.
import { describe, expect, it } from 'vitest'
import { memory, RLTTTrainer } from '../src/index.js'
import { LoopLM } from '../src/model/model.js'
import { heldBytes } from './garbage.js'
import { measureLeaks } from './leaks.js'
import { timeless } from './timeless.js'
import { parametersOf, tinyBatch, tinyConfig } from './tiny.js'

it('cycles of update, generate and dispose leak no memory', async () => {
  const { slope, engine } = await measureLeaks(400, 0.4)
  expect(new Set(engine.bytes)).toEqual(new Set([0]))
  expect(new Set(engine.buffers)).toEqual(new Set([0]))
  expect(slope).toBeLessThan(20_000) // one tiny model, forgotten in each cycle, would be more than 100 kB
})

describe('two models on one device', () => {
  const large = { ...tinyConfig, hidden_size: 48, num_hidden_layers: 2, total_ut_steps: 2 }

  /** Everything that a model does, and what comes out. */
  async function use(model: LoopLM, seed: number) {
    using trainer = new RLTTTrainer(model, { groupSize: 4, learningRate: 1e-2 })
    const results: unknown[] = []
    for (let round = 0; round < 4; round++) {
      results.push(timeless(await trainer.update(tinyBatch)))
      results.push(await model.generate(tinyBatch.sequences, { maxNewTokens: 6, seed }))
      results.push((await model.score(tinyBatch.sequences)).logprobs)
    }
    results.push(await parametersOf(model))
    return results
  }

  it('give the same bits when used together as alone', async () => {
    const make = async () => [
      await LoopLM.create(tinyConfig, { threads: 2, seed: 1 }),
      await LoopLM.create(large, { threads: 2, seed: 2 }),
      await LoopLM.create(large, { threads: 2, seed: 3, dtype: 'bfloat16' }),
    ]
    const alone = []
    for (const [i, model] of (await make()).entries()) {
      alone.push(await use(model, i))
      model.dispose()
    }
    const together = await make()
    expect(await Promise.all(together.map((model, i) => use(model, i)))).toEqual(alone)
    for (const model of together) model.dispose()
  })

  it('are freed by a collection of garbage if nobody disposed of them', async () => {
    const before = await heldBytes()
    const leave = async () => void (await LoopLM.create(large))
    await leave()
    expect(memory().bytes).toBeGreaterThan(before)
    expect(await heldBytes()).toBe(before)
  })

  it('stay independent when one is disposed while both compute, which frees exactly its memory', async () => {
    const before = await heldBytes()
    const kept = await LoopLM.create(large, { threads: 2, seed: 2 })
    const wanted = await kept.score(tinyBatch.sequences)
    const one = await heldBytes()
    const going = await LoopLM.create(large, { threads: 2, seed: 3 })
    const pending = [going.score(tinyBatch.sequences), kept.score(tinyBatch.sequences), going.score(tinyBatch.sequences)]
    going.dispose()
    await expect(going.score(tinyBatch.sequences)).rejects.toMatchObject({ code: 'DISPOSED' })
    const settled = await Promise.allSettled(pending)
    expect(settled[1]).toEqual({ status: 'fulfilled', value: wanted })
    await kept.score(tinyBatch.sequences) // the queue is empty behind it
    expect(memory().bytes).toBe(one)
    kept.dispose()
    expect(await heldBytes()).toBe(before)
  })
})
