// The memory of the head beyond the model and its activations, at the vocabulary of Ouro: the logits of a chunk, for any number of loops.
// Products use the stand-in for cuBLASLt, which is quicker than emulated tensor cores.
import { beforeAll, expect, it } from 'vitest'
import { LoopLM, memory, PretrainTrainer, resetPeakMemory } from '../../src/index.js'
import { buildEmulated, cublasLtDouble } from '../emulated.js'
import { heldBytes } from '../garbage.js'

process.env.LOOPLM_CUDA_GEMM = 'library'
process.env.LOOPLM_CUBLASLT = cublasLtDouble
beforeAll(buildEmulated, 900_000)

const device = 'cuda-emulated' as 'cuda'
const config = { vocab_size: 49_152, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1 }
const mib = 2 ** 20

it.each([1, 4, 8])('a score and a training step stay below 512 MiB with %i loops', async (loops) => {
  using model = await LoopLM.create({ ...config, total_ut_steps: loops }, { device, seed: 3 })
  const sequences = [Array.from({ length: 513 }, (_, i) => (i * 97) % 49_152)] // 512 rows of a loop; a chunk has 2048
  const extra = async (run: () => Promise<unknown>) => {
    const before = await heldBytes()
    resetPeakMemory()
    await run()
    return (memory().peak - before) / mib
  }
  const scored = await extra(() => model.score(sequences))
  using trainer = new PretrainTrainer(model, { stage: 1, learningRate: 1e-3 })
  const state = (4 * 4 * 2 * 49_152 * 8) / mib // gradient, two moments and room for one more, of embedding and head
  const trained = await extra(() => trainer.update({ sequences }))
  const word = loops === 1 ? 'loop' : 'loops'
  console.log(`${loops} ${word}: score ${scored.toFixed(0)} MiB, a training step ${trained.toFixed(0)} MiB`)
  expect(scored).toBeLessThan(512)
  expect(scored + trained - state).toBeLessThan(512)
  expect(scored).toBeGreaterThan((Math.min(loops * 512, 2048) * 49_152 * 4) / mib) // the chunk itself is counted
})
