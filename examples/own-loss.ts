// The engine inside your own training code: score, differentiate a loss of the log-probabilities, give its coefficients back.
import { AdamW, LoopLM } from 'looplm'

const config = { vocab_size: 16, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2 }
using model = await LoopLM.create(config, { seed: 1 })
using optimizer = new AdamW(model, { learningRate: 1e-2, maxGradNorm: 1 })

const sequences = [
  [1, 2, 3, 4, 5],
  [1, 3, 5, 7],
]

for (let step = 0; step < 20; step++) {
  const scored = await model.score(sequences)
  const { loops, logprobs } = scored
  // the loss: minus the mean log-probability over loops, tokens and sequences; its derivative is the same for each of them
  const all = logprobs.flatMap((rows) => Array.from(rows))
  const loss = -all.reduce((sum, logprob) => sum + logprob, 0) / all.length
  await scored.backward(logprobs.map((rows) => rows.map(() => -1 / all.length)))
  const { gradNorm } = await optimizer.step()
  if (step % 5 === 0)
    console.log(`step ${step}: loss ${loss.toFixed(4)} over ${loops} loops, gradient norm ${gradNorm.toFixed(3)}`)
}
