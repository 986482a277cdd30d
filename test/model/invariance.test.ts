// What a result may not depend on: the batch, its order, its cutting into micro-batches, shared prompts, the way to recompute.
import { describe, expect, it } from 'vitest'
import { GRPOTrainer, LoopLM, RLTTTrainer } from '../../src/index.js'
import { relativeError } from '../golden-files.js'
import { expectScores, yardstick } from '../rounding.js'

const config = {
  vocab_size: 61,
  hidden_size: 48,
  intermediate_size: 104,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  total_ut_steps: 3,
  initializer_range: 0.3,
}
const model = await LoopLM.create(config, { seed: 3 })
const tokens = (length: number, seed: number) => Array.from({ length }, (_, j) => (seed * 31 + j * 17 + ((j * j) % 13)) % 61)
const prompt = tokens(9, 1)
// groups of two that share a prompt, and loners; lengths that cross the tiles of the kernels
const sequences = [[...prompt, ...tokens(5, 2)], [...prompt, ...tokens(3, 3)], tokens(70, 4), tokens(2, 5), tokens(33, 6)]
const promptLengths = [9, 9, 4, 1, 30]
const advantages = [1, -0.5, 0.75, -1, 0.25]
const batch = { sequences, promptLengths, advantages }
type Result = { loss: number; gradients: Map<string, ArrayLike<number>> }

/**
 * `bound` is 0 where the same sums are made in the same order. In another order the sum of 400 terms (positions × loops) differs by
 * 2 √400 · 2^-24 = 2.4e-6 of their size, for roundings have random signs: 1e-5 leaves room for terms that cancel.
 */
function expectSame(a: Result, b: Result, bound: number): void {
  expect(Math.abs(a.loss - b.loss)).toBeLessThanOrEqual(bound * Math.max(1, Math.abs(a.loss)))
  const whole = Math.sqrt([...a.gradients.values()].reduce((s, g) => s + Array.from(g).reduce((q, x) => q + x * x, 0), 0))
  expect(whole).toBeGreaterThan(0)
  for (const [name, gradient] of a.gradients)
    expect(relativeError(b.gradients.get(name)!, gradient, 1e-2 * whole), name).toBeLessThanOrEqual(bound)
}

describe('a float32 score', () => {
  it('has the same bits alone and in any batch', async () => {
    const together = await model.score(sequences)
    const reversed = await model.score([...sequences].reverse())
    for (const [i, sequence] of sequences.entries()) {
      const alone = await model.score([sequence])
      for (const field of ['logprobs', 'entropy', 'gateLogits', 'exitPdf'] as const) {
        expect(together[field][i], `${field} ${i}`).toEqual(alone[field][0])
        expect(reversed[field][sequences.length - 1 - i], `${field} ${i} reversed`).toEqual(alone[field][0])
      }
    }
  })

  it('does not depend on later tokens', async () => {
    const whole = await model.score([sequences[2]!])
    const part = await model.score([sequences[2]!.slice(0, 40)])
    for (let t = 0; t < 3; t++)
      expect(part.logprobs[0]!.slice(t * 39, (t + 1) * 39)).toEqual(whole.logprobs[0]!.slice(t * 69, t * 69 + 39))
  })
})

describe('a bfloat16 score', () => {
  it('agrees alone and in a batch within its own rounding', async () => {
    const half = await LoopLM.create(config, { seed: 3, dtype: 'bfloat16' })
    expectScores(await half.score(sequences), await yardstick(half, config, sequences))
    for (const sequence of sequences) expectScores(await half.score([sequence]), await yardstick(half, config, [sequence]))
  })
})

describe('loss and gradients', () => {
  const gradients = (options: object, m = model) =>
    new RLTTTrainer(m, { weights: 'exit-pdf', detachWeights: false, ...options }).gradients(batch)

  it('do not depend on micro-batches', async () => {
    expectSame(await gradients({}), await gradients({ tokensPerMicroBatch: 1 }), 1e-5)
  })

  it('do not depend on the way to recompute', async () => {
    const plain = await gradients({})
    expectSame(plain, await gradients({ recompute: 'loop' }), 0)
    expectSame(plain, await gradients({ recompute: 'layer' }), 0)
  })

  it('do not depend on whether a prompt is shared', async () => {
    const lengthNormalizers = sequences.map((s, i) => 1 / (5 * (s.length - promptLengths[i]!)))
    const run = async (sharePrompts: boolean): Promise<Result> => {
      await model.zeroGradients()
      const { loss } = await model.accumulateLoss(
        { sequences, promptLengths, terms: [{ advantages, lengthNormalizers }], lengthNormalizers },
        { terms: [{ weights: { kind: 'uniform' } }], sharePrompts },
      )
      const out = { loss, gradients: await model.gradients() }
      await model.zeroGradients()
      return out
    }
    expectSame(await run(true), await run(false), 1e-5)
  })

  it('are the same bits when run again', async () => {
    expectSame(await gradients({}), await gradients({}), 0)
  })

  it.each(['response-mean', 'token-mean', 'constant'] as const)(
    'do not depend on the order of the sequences (%s)',
    async (normalizer) => {
      const options = { normalizer, ...(normalizer === 'constant' && { constantNormalizerLength: 64 }) }
      const order = [4, 2, 0, 3, 1]
      const shuffled = {
        sequences: order.map((i) => sequences[i]!),
        promptLengths: order.map((i) => promptLengths[i]!),
        advantages: order.map((i) => advantages[i]!),
      }
      expectSame(
        await gradients(options),
        await new RLTTTrainer(model, { weights: 'exit-pdf', detachWeights: false, ...options }).gradients(shuffled),
        1e-5,
      )
    },
  )
})

describe('GRPO', () => {
  it('equals RLTT with its weight on the last loop, bit for bit', async () => {
    const rltt = await new RLTTTrainer(model, { weights: 'last' }).gradients(batch)
    const grpo = await new GRPOTrainer(model, { surrogate: 'reinforce' }).gradients(batch)
    expectSame(rltt, grpo, 0)
  })

  it('equals RLTT of one loop with any weights, bit for bit', async () => {
    const single = await LoopLM.create({ ...config, total_ut_steps: 1 }, { seed: 3 })
    const grpo = await new GRPOTrainer(single, { surrogate: 'reinforce' }).gradients(batch)
    for (const weights of ['exit-pdf', 'uniform', 'progressive', 'last'] as const)
      expectSame(await new RLTTTrainer(single, { weights }).gradients(batch), grpo, 0)
  })

  it.each(['ppo', 'cispo'] as const)(
    'with %s and without oldLogprobs computes the log-probabilities that score returns',
    async (surrogate) => {
      const { logprobs } = await model.score(sequences, { lastLoop: true, promptLengths })
      const own = await new GRPOTrainer(model, { surrogate }).gradients(batch)
      const scored = await new GRPOTrainer(model, { surrogate }).gradients({ ...batch, oldLogprobs: logprobs })
      expectSame(own, scored, 1e-6)
      const { gradients } = await new GRPOTrainer(model, { surrogate }).gradients({
        ...batch,
        oldLogprobs: logprobs.map((l) => l.map((x) => x - 0.1)),
      })
      expect(gradients).not.toEqual(own.gradients)
    },
  )

  it('with on-policy ppo has the gradient of reinforce', async () => {
    const ppo = await new GRPOTrainer(model, { surrogate: 'ppo' }).gradients(batch)
    const reinforce = await new GRPOTrainer(model, { surrogate: 'reinforce' }).gradients(batch)
    for (const [name, gradient] of reinforce.gradients)
      expect(relativeError(ppo.gradients.get(name)!, gradient, 1e-3), name).toBeLessThan(1e-5)
  })
})
