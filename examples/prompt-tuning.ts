// Prompt tuning: a frozen model learns another task through one vector in place of a token (score and backward with inputVectors).
import { AdamW, LoopLM } from 'looplm'

const [colon, copy, reverse, soft] = [10, 11, 12, 13]
const config = { vocab_size: 14, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4 }
using model = await LoopLM.create({ ...config, total_ut_steps: 2, initializer_range: 0.1 }, { seed: 1 })

let state = 1
const digit = () => {
  state = (state * 48271) % 2147483647
  return state % 10
}
/** "TASK 1 2 3 : 1 2 3" or the digits in reverse. */
function examples(task: number, first: number, count: number): number[][] {
  return Array.from({ length: count }, () => {
    const digits = [digit(), digit(), digit()]
    return [first, ...digits, colon!, ...(task === reverse ? digits.toReversed() : digits)]
  })
}
const answerFrom = 4 // the prediction of the first digit of the answer, of 7

/** Loss and share of right digits of the last loop, and the way back to gradients. */
async function answers(sequences: number[][], vector?: Float32Array) {
  const inputVectors = vector && sequences.map(() => ({ positions: [0], values: vector }))
  const options = { predictions: true, ...(inputVectors && { inputVectors }) }
  const scored = await model.score(sequences, options)
  const { loops, logprobs, predicted } = scored
  const isAnswer = (j: number) => j >= 7 * (loops - 1) + answerFrom
  const count = 3 * sequences.length
  let loss = 0
  let right = 0
  for (const [i, rows] of logprobs.entries())
    for (const [j, logprob] of rows.entries()) {
      if (!isAnswer(j)) continue
      loss -= logprob / count
      if (predicted![i]![j] === sequences[i]![(j % 7) + 1]) right += 1 / count
    }
  const coefficients = logprobs.map((rows) => rows.map((_, j) => (isAnswer(j) ? -1 / count : 0)))
  return { loss, right, backward: () => scored.backward(coefficients) }
}

// The model learns to copy and to reverse, each after its own token.
using optimizer = new AdamW(model, { learningRate: 3e-3, maxGradNorm: 1 })
for (let step = 0; step <= 300; step++) {
  const { loss, right, backward } = await answers([...examples(copy!, copy!, 32), ...examples(reverse!, reverse!, 32)])
  if (step % 100 === 0) console.log(`model, step ${step}: loss ${loss.toFixed(3)}, right ${(100 * right).toFixed(0)} %`)
  await backward()
  await optimizer.step()
}

// A vector that begins as the token "copy" learns to stand for "reverse". Nothing else changes.
const table = await model.getParameter('model.embed_tokens.weight')
const vector = Float32Array.from(table.subarray(copy! * 64, (copy! + 1) * 64))
const [mean, square] = [new Float64Array(64), new Float64Array(64)] // Adam's averages
for (let step = 1; step <= 101; step++) {
  const { loss, right, backward } = await answers(examples(reverse!, soft!, 64), vector)
  if (step % 20 === 1) console.log(`vector, step ${step - 1}: loss ${loss.toFixed(3)}, right ${(100 * right).toFixed(0)} %`)
  const { inputVectors } = await backward()
  await model.zeroGradients()
  for (let d = 0; d < 64; d++) {
    const gradient = inputVectors.reduce((sum, own) => sum + own[d]!, 0)
    mean[d] = 0.9 * mean[d]! + 0.1 * gradient
    square[d] = 0.99 * square[d]! + 0.01 * gradient ** 2
    vector[d]! -= (0.02 * (mean[d]! / (1 - 0.9 ** step))) / (Math.sqrt(square[d]! / (1 - 0.99 ** step)) + 1e-8)
  }
}
