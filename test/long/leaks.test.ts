// Ten thousand cycles of update, generate and dispose; eight worker threads that end with work pending.
import { Worker } from 'node:worker_threads'
import { expect, it } from 'vitest'
import { LoopLM, memory } from '../../src/index.js'
import { collectGarbage, heldBytes } from '../garbage.js'
import { measureLeaks } from '../leaks.js'
import { tinyBatch, tinyConfig } from '../tiny.js'

it('memory stays flat over ten thousand cycles of update, generate and dispose', async () => {
  const { slope, resident, engine, seconds } = await measureLeaks(10_000, 0.3)
  console.log(
    `10000 cycles in ${seconds.toFixed(0)} s: resident ${(resident / 2 ** 20).toFixed(1)} MiB at the end, slope ${slope.toFixed(0)} bytes per ` +
      `cycle after 3000; the engine holds ${Math.max(...engine.bytes)} bytes in ${Math.max(...engine.buffers)} buffers`,
  )
  expect(Math.max(...engine.bytes)).toBe(0)
  expect(slope).toBeLessThan(1000)
})

it('the engine keeps working after workers are terminated with work pending', async () => {
  const script = `
    const { parentPort, workerData } = require('node:worker_threads')
    import(workerData.index).then(async ({ LoopLM, RLTTTrainer }) => {
      const model = await LoopLM.create({ ...workerData.config, hidden_size: 128, intermediate_size: 256 }, { threads: 1 + (workerData.i % 2) })
      const trainer = new RLTTTrainer(model, { groupSize: 4 })
      parentPort.postMessage('started')
      const many = Array.from({ length: 64 }, (_, i) => Array.from({ length: 128 }, (_, j) => (i + j) % 12))
      for (;;) {
        await Promise.all([
          trainer.update(workerData.batch),
          model.generate(many.map((tokens) => tokens.slice(0, 8)), { maxNewTokens: 50 }),
          model.score(many),
        ])
      }
    })`
  const index = new URL('../../dist/src/index.js', import.meta.url).href
  await using(async (model) => {
    const wanted = await model.score(tinyBatch.sequences)
    const before = await heldBytes()
    const resident: number[] = []
    for (let round = 0; round < 20; round++) {
      const workers = Array.from(
        { length: 8 },
        (_, i) => new Worker(script, { eval: true, workerData: { index, config: tinyConfig, batch: tinyBatch, i } }),
      )
      await Promise.all(workers.map((worker) => new Promise((resolve) => worker.once('message', resolve))))
      await new Promise((resolve) => setTimeout(resolve, 20 * (round % 5)))
      await Promise.all(workers.map((worker) => worker.terminate()))
      expect(await model.score(tinyBatch.sequences)).toEqual(wanted)
      expect(memory().bytes).toBe(before)
      await collectGarbage()
      resident.push(process.memoryUsage.rss())
    }
    const [early, late] = [resident.slice(5, 10), resident.slice(15)].map((list) => Math.min(...list))
    console.log(
      `160 workers terminated; resident ${(early! / 2 ** 20).toFixed(0)} MiB after 5–10 rounds, ${(late! / 2 ** 20).toFixed(0)} after 15–20`,
    )
  })
})

async function using(run: (model: LoopLM) => Promise<void>): Promise<void> {
  const model = await LoopLM.create(tinyConfig, { threads: 2 })
  try {
    await run(model)
  } finally {
    model.dispose()
  }
}
