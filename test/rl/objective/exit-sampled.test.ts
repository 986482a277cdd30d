// The policy that leaves early: what sampling and training say of it, and its gradient on a problem whose every outcome can be listed.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { LoopLM } from '../../../src/model/model.js'
import { ObjectiveTrainer } from '../../../src/rl/objective-trainer.js'
import { RLTTTrainer } from '../../../src/rl/rltt.js'
import { expectDerivative } from '../../central-differences.js'
import { familiesFolder } from '../../family-fixtures.js'
import { norm } from '../../golden-files.js'
import { adaptivePolicy, type Parameters } from '../../looped-model.js'
import { refusal } from '../../refusal.js'
import { difference, parametersOf, tinyConfig, tinyTask, variedReward } from '../../tiny.js'

const gate = { weight: 'model.early_exit_gate.weight', bias: 'model.early_exit_gate.bias' }

/** A model whose tokens leave at every loop. */
async function gatedModel(config: typeof tinyConfig, device: 'reference' | 'cpu', seed = 3): Promise<LoopLM> {
  const model = await LoopLM.create(config, { device, seed, threads: 1 })
  const weight = Array.from({ length: config.hidden_size }, (_, i) => 0.4 * Math.sin(i + seed))
  await model.setParameter(gate.weight, weight)
  await model.setParameter(gate.bias, [-0.3])
  return model
}

const deep = { ...tinyConfig, num_hidden_layers: 2, total_ut_steps: 4 }
const prompts = Array.from({ length: 24 }, (_, i) => [i % 10, 10, (3 * i) % 10, 11])
const sampling = { maxNewTokens: 6, stop: [], seed: 5, exit: { rule: 'sampled' } } as const

async function sampled(model: LoopLM) {
  const results = await model.generate(prompts, sampling)
  const sequences = results.map(({ tokens }, i) => [...prompts[i]!, ...tokens])
  const exits = results.map(({ loops }) => [...Array<number>(3).fill(0), ...loops.map((loop) => loop - 1)])
  return { results, sequences, exits, promptLengths: prompts.map((prompt) => prompt.length) }
}
/** Of `score`: log P of the response's tokens at their exits. */
const atExits = (logprobs: readonly ArrayLike<number>[], exits: readonly (readonly number[])[]) =>
  exits.map((row, i) => row.map((t, j) => logprobs[i]![t * row.length + j]!).slice(3))

describe('exit rule sampled', () => {
  it.each(['reference', 'cpu'] as const)('gives sampling and score the same log-probabilities on %s', async (device) => {
    using model = await gatedModel(deep, device)
    const { results, sequences, exits, promptLengths } = await sampled(model)
    const bound = device === 'cpu' ? 1e-5 : 1e-12
    const { logprobs } = await model.score(sequences, { promptLengths, exits })
    const { logprobs: atFullDepth } = await model.score(sequences, { promptLengths })
    const gap = (scored: readonly ArrayLike<number>[]) =>
      Math.max(...atExits(scored, exits).flatMap((row, i) => row.map((value, j) => Math.abs(value - results[i]!.logprobs[j]!))))
    expect(gap(logprobs)).toBeLessThan(bound)
    expect(gap(atFullDepth)).toBeGreaterThan(1e-3) // without the replay later tokens see what nobody sampled from
  })

  it('draws every loop as often as the exit distribution says', async () => {
    using model = await gatedModel(deep, 'cpu')
    const { sequences, exits, promptLengths } = await sampled(model)
    const { exitPdf } = await model.score(sequences, { promptLengths, exits })
    const T = deep.total_ut_steps
    const rows = exits.flatMap((row, i) =>
      row.slice(3).map((t, j) => ({ t, pdf: Array.from({ length: T }, (_, s) => exitPdf[i]![s * (row.length + 1) + 3 + j]!) })),
    )
    for (let t = 0; t < T; t++) {
      const expected = rows.reduce((sum, { pdf }) => sum + pdf[t]!, 0)
      const variance = rows.reduce((sum, { pdf }) => sum + pdf[t]! * (1 - pdf[t]!), 0)
      const count = rows.filter((row) => row.t === t).length
      expect(Math.abs(count - expected) / Math.sqrt(variance), `loop ${t + 1}`).toBeLessThan(3.5)
    }
  })

  it('draws the same exits for a sequence in any batch', async () => {
    using model = await gatedModel(deep, 'cpu')
    const together = await model.generate(prompts, sampling)
    for (const i of [0, 7, 23]) {
      const [alone] = await model.generate([prompts[i]!], { ...sampling, sequenceNumbers: [i] })
      expect(alone).toEqual(together[i])
    }
    const greedy = { ...sampling, temperature: 0 }
    expect((await model.generate(prompts, greedy))[3]!.loops[0]).toBe(together[3]!.loops[0]) // of the first token, whose state is the same
  })

  it('agrees with the formulas in plain TypeScript', async () => {
    using model = await gatedModel(deep, 'reference')
    const { sequences, exits, promptLengths } = await sampled(model)
    const own = await parametersOf(model)
    const { logprobs, exitPdf } = await model.score(sequences, { promptLengths, exits })
    for (const i of [0, 5, 11]) {
      const left = exits[i]!.slice(3)
      const { tokenLogprobs, exitLogprobs } = adaptivePolicy(deep, own, prompts[i]!, sequences[i]!.slice(4), left)
      for (const [j, t] of left.entries()) {
        expect(atExits(logprobs, exits)[i]![j]).toBeCloseTo(tokenLogprobs[j]!, 10)
        expect(Math.log(exitPdf[i]![t * sequences[i]!.length + 3 + j]!)).toBeCloseTo(exitLogprobs[j]!, 10)
      }
    }
  })
})

/** All sequences of `length` numbers below `base`. */
const all = (base: number, length: number): number[][] =>
  length === 0 ? [[]] : all(base, length - 1).flatMap((head) => Array.from({ length: base }, (_, k) => [...head, k]))

describe('the gradient of exit-sampled on a problem with enumerable outcomes', () => {
  const config = { ...tinyConfig, vocab_size: 2, hidden_size: 8, intermediate_size: 12, num_hidden_layers: 1, total_ut_steps: 3 }
  const prompt = [1, 0, 1]
  const length = 3 // the third token sees keys and values of one that may have left early
  const outcomes = all(2, length).flatMap((tokens) => all(3, length).map((exits) => ({ tokens, exits })))
  const rewardOf = (tokens: readonly number[]) => [0.2, 1, -0.4, 0.7, 0, 0.5, -1, 0.3][parseInt(tokens.join(''), 2)]!
  const probability = (p: Parameters, tokens: readonly number[], exits: readonly number[]) => {
    const { exitLogprobs, tokenLogprobs } = adaptivePolicy(config, p, prompt, tokens, exits)
    return Math.exp([...exitLogprobs, ...tokenLogprobs].reduce((sum, value) => sum + value, 0))
  }
  const expectedReward = (p: Parameters) =>
    outcomes.reduce((sum, { tokens, exits }) => sum + probability(p, tokens, exits) * rewardOf(tokens), 0)
  /** Every outcome with its probability times its reward as advantage: the mean of what sampling would give. */
  const batchOf = (p: Parameters) => ({
    sequences: outcomes.map(({ tokens }) => [...prompt, ...tokens]),
    promptLengths: outcomes.map(() => prompt.length),
    exits: outcomes.map(({ exits }) => [0, 0, ...exits]),
    advantages: outcomes.map(({ tokens, exits }) => outcomes.length * rewardOf(tokens) * probability(p, tokens, exits)),
  })
  const mean = { normalizer: 'constant', constantNormalizerLength: 1 } as const

  async function gradients(model: LoopLM, options: ConstructorParameters<typeof ObjectiveTrainer>[1] = {}) {
    const own = await parametersOf(model)
    using trainer = new ObjectiveTrainer(model, { objective: exitSampled, constantNormalizerLength: 1, ...options })
    return (await trainer.gradients(batchOf(own))).gradients
  }
  const exitSampled = {
    exits: 'sampled',
    terms: [
      { weights: 'exit-loop', surrogate: 'reinforce', normalizer: 'constant' },
      { channel: 'exit', normalizer: 'constant' },
    ],
  } as const

  it('is the derivative of the expected reward with early exits; that of RLTT is not', async () => {
    using model = await gatedModel(config, 'reference')
    const own = await parametersOf(model)
    expect(outcomes.reduce((sum, { tokens, exits }) => sum + probability(own, tokens, exits), 0)).toBeCloseTo(1, 12)
    const exact = await gradients(model)
    expect([...exact.keys()]).toEqual([...own.keys()])
    const largest = expectDerivative(exact, own, (p) => -expectedReward(p), 1e-6)

    using trainer = new RLTTTrainer(model, { ...mean, weights: 'exit-pdf' })
    const { sequences, promptLengths, advantages } = batchOf(own)
    const rltt = (await trainer.gradients({ sequences, promptLengths, advantages })).gradients
    const flat = (values: ReadonlyMap<string, ArrayLike<number>>) => [...values.values()].flatMap((row) => Array.from(row))
    const [wanted, got] = [flat(exact), flat(rltt)]
    const error = norm(wanted.map((value, i) => value - got[i]!)) / norm(wanted)
    const cosine = wanted.reduce((sum, value, i) => sum + value * got[i]!, 0) / (norm(wanted) * norm(got))
    console.log(`exit-sampled: largest relative error ${largest.toExponential(0)}`)
    console.log(`RLTT: relative error ${error.toFixed(3)}, cosine ${cosine.toFixed(3)}`)
    expect(error).toBeGreaterThan(0.05)
  })

  it('is the same for every recompute option and micro-batch size', async () => {
    using model = await gatedModel(config, 'reference')
    const whole = await gradients(model)
    for (const options of [{ recompute: 'loop' }, { recompute: 'layer' }, { tokensPerMicroBatch: 16 }] as const)
      expect(difference(await gradients(model, options), whole), JSON.stringify(options)).toBeLessThan(1e-12)
  })

  it('is the same in float32 within 1e-4', async () => {
    using exact = await gatedModel(config, 'reference')
    using model = await gatedModel(config, 'cpu')
    expect(difference(await gradients(model), await gradients(exact))).toBeLessThan(1e-4)
  })
})

describe('recipe exit-sampled', () => {
  const options = { task: tinyTask, reward: variedReward, promptsPerStep: 4, groupSize: 4, steps: 3, seed: 2 } as const

  it('trains head and gate, and is reproducible', async () => {
    const run = async () => {
      using model = await gatedModel(tinyConfig, 'cpu')
      const before = await parametersOf(model)
      using trainer = new ObjectiveTrainer(model, { ...options, learningRate: 1e-2, objective: 'exit-sampled' })
      for await (const { type, metrics } of trainer.run()) if (type === 'step') expect(Number.isFinite(metrics.loss)).toBe(true)
      const after = await parametersOf(model)
      for (const name of [gate.weight, 'lm_head.weight']) expect(after.get(name), name).not.toEqual(before.get(name))
      return after
    }
    expect(await run()).toEqual(await run())
  })

  it('rejects options and batches that it cannot replay, by name', async () => {
    using model = await gatedModel(tinyConfig, 'cpu')
    const trainer = (more: object, objective: unknown = 'exit-sampled') =>
      refusal(() => new ObjectiveTrainer(model, { ...options, objective, ...more } as never))
    expect((await trainer({ exit: { rule: 'fixed' } })).message).toMatch(/exit: /)
    expect((await trainer({ exitThreshold: 0.5 })).message).toMatch(/exitThreshold: /)
    const terms = [{ weights: 'exit-loop', surrogate: 'reinforce' }]
    expect((await trainer({}, { terms })).message).toMatch(/terms.0.weights: 'exit-loop'/)
    expect((await trainer({}, { exits: 'sampled', terms: [{ weights: 'last' }] })).message).toMatch(/terms.0: /)
    expect((await trainer({}, { exits: 'sampled', terms, kl: { beta: 1e-3 } })).message).toMatch(/objective.kl: /)
    const phases = [{ until: 2, objective: { exits: 'sampled', terms } }, { objective: 'rltt' }]
    expect((await trainer({}, phases)).message).toMatch(/all phases/)
    using own = new ObjectiveTrainer(model, { objective: 'exit-sampled' })
    const batch = { sequences: [[1, 2, 3]], promptLengths: [1], advantages: [1] }
    expect((await refusal(() => own.update(batch))).message).toMatch(/^.*exits: missing, and the objective replays them/)
    const masked = { ...batch, exits: [[0, 1]], mask: [[1, 0]] }
    expect((await refusal(() => own.update(masked))).message).toMatch(/mask: /)
    expect((await refusal(() => model.score([[1, 2, 3]], { exits: [[0, 1]] }))).message).toMatch(/promptLengths/)
  })

  it('rejects families with layers after the loops', async () => {
    const config = JSON.parse(readFileSync(join(familiesFolder, 'huginn', 'config.json'), 'utf8'))
    using model = await LoopLM.create(config, { exitGate: true, seed: 1 })
    using trainer = new ObjectiveTrainer(model, { objective: 'exit-sampled' })
    const batch = { sequences: [[1, 2, 3]], promptLengths: [1], advantages: [1], exits: [[0, 1]] }
    expect((await refusal(() => trainer.update(batch))).message).toMatch(/layers after its loops/)
  })
})
