// Update, generate and dispose, again and again, in a separate process: node --expose-gc leak-cycles.mjs CYCLES.
// Prints what the process and the engine hold as JSON: [cycle, resident bytes, engine's bytes, engine's buffers], ….
import { addition, GRPOTrainer, LoopLM, LoopRPTTrainer, memory, PretrainTrainer, RLTTTrainer, tensor } from '../dist/src/index.js'

const cycles = Number(process.argv[2])
const config = {
  vocab_size: 12,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  total_ut_steps: 3,
}
const sequences = [
  [1, 10, 2, 11, 0, 3],
  [1, 10, 2, 11, 0, 4],
  [7, 10, 8, 11, 1, 5],
  [7, 10, 8, 11, 9],
]
const promptLengths = [4, 4, 4, 4]
const task = addition({ digits: 1 })
const options = { learningRate: 1e-3, groupSize: 2, onWarning() {} }
const trainers = [
  (model) => new RLTTTrainer(model, { ...options, beta: 0.1 }),
  (model) => new GRPOTrainer(model, options),
  (model) => new LoopRPTTrainer(model, { learningRate: 1e-3, rollouts: 2 }),
  (model) => new PretrainTrainer(model, { learningRate: 1e-3 }),
]

async function cycle(i) {
  const model = await LoopLM.create(config, { threads: 1, seed: i % 7, dtype: i % 5 === 4 ? 'bfloat16' : 'float32' })
  const trainer = trainers[i % trainers.length](model)
  await trainer.update({ sequences, promptLengths, rewards: [1, 0, 0, 1] })
  await model.generate(sequences, { maxNewTokens: 3, seed: i })
  for await (const _ of model.stream([1, 2], { maxNewTokens: 5 })) if (i % 2) break
  await model.score(sequences)
  if (i % 3 === 0) await model.score(sequences, { signal: AbortSignal.abort() }).catch(() => {})
  if (i % 3 === 1) await model.score([[99]]).catch(() => {})
  if (i % 3 === 2) await trainer.evaluate({ problems: 2, loops: [1] }).catch(() => {})
  const a = tensor([1, 2, 3, 4], [2, 2])
  const b = await a.matmul(a)
  a.dispose()
  b.dispose()
  const pending = model.score(sequences) // still running when its model is disposed
  trainer.dispose()
  model.dispose()
  await pending
  task.sample('train', i)
}

const seen = []
for (let i = 0; i < cycles; i++) {
  await cycle(i)
  if ((i + 1) % Math.max(20, Math.floor(cycles / 100)) !== 0) continue
  for (let k = 0; k < 3; k++) {
    globalThis.gc()
    await new Promise((resolve) => setImmediate(resolve))
  }
  const { bytes, buffers } = memory()
  seen.push([i + 1, process.memoryUsage.rss(), bytes, buffers])
}
process.stdout.write(JSON.stringify(seen))
