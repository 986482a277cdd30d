// Which loops are read, which carry gradient, and which states they begin with, in every family: against the golden files' states, exact
// identities between models, and central differences.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it, vi } from 'vitest'
import {
  type Environment,
  evaluateSequences,
  type GenerateOptions,
  GRPOTrainer,
  LoopLM,
  memory,
  type ObjectiveInput,
  ObjectiveTrainer,
  type ObjectiveTrainerOptions,
  PretrainTrainer,
  RLTTTrainer,
  type RolloutFunction,
  resetPeakMemory,
  Tokenizer,
} from '../../src/index.js'
import { heldBytes } from '../garbage.js'
import { norm, readGolden, relativeError } from '../golden-files.js'
import { refusal } from '../refusal.js'
import { tinyModel, tinyTask, variedReward } from '../tiny.js'

const root = join(import.meta.dirname, '..', 'fixtures', 'families')
const families = readdirSync(root)
const load = (name: string, device: 'reference' | 'cpu' = 'reference') =>
  LoopLM.fromPretrained(join(root, name), { device, dtype: device === 'cpu' ? 'float32' : 'float64' })

const sequences = [
  [1, 7, 3, 9, 4, 11],
  [1, 7, 3, 2, 8],
  [1, 7, 3, 10, 6, 5, 2],
  [1, 7, 3, 9, 9],
]
const promptLengths = [3, 3, 3, 3]
const rewards = [1, 0, 0.5, 0]

/** Coefficients of every row, none of them alike. */
const coefficientsOf = (loops: number, of = sequences) =>
  of.map((sequence, i) => Array.from({ length: loops * (sequence.length - 1) }, (_, k) => Math.sin(3 * i + k + 1)))

async function gradientsOf(model: LoopLM, ...given: Parameters<LoopLM['backward']>) {
  await model.zeroGradients()
  await model.backward(...(given as Parameters<LoopLM['backward']>))
  return new Map<string, ArrayLike<number>>(await model.gradients())
}

function expectEqual(got: ReadonlyMap<string, ArrayLike<number>>, want: ReadonlyMap<string, ArrayLike<number>>, bound = 1e-12) {
  const total = Math.sqrt([...want.values()].reduce((sum, values) => sum + norm(values) ** 2, 0))
  for (const [name, values] of want) expect(relativeError(got.get(name)!, values, 1e-3 * total), name).toBeLessThan(bound)
}

describe('the option readLoops', () => {
  it.each(families)('returns the same rows as reading all loops: %s', async (name) => {
    using model = await load(name)
    const options = model.architecture.prefixSeesItself ? { promptLengths } : {}
    const all = await model.score(sequences, options)
    const readLoops = all.loops === 2 ? [2] : [1, 3]
    const some = await model.score(sequences, { ...options, readLoops })
    expect(some.loops).toBe(all.loops)
    expect(some.readLoops).toEqual(readLoops)
    for (const field of ['logprobs', 'entropy'] as const)
      for (const [i, row] of some[field].entries()) {
        const width = sequences[i]!.length - 1
        const want = readLoops.flatMap((loop) => [...all[field][i]!.subarray((loop - 1) * width, loop * width)])
        expect([...row]).toEqual(want)
      }
    const first = await model.score(sequences, { ...options, readLoops: [1] })
    expect(first.loops).toBe(1)
    expect([...first.logprobs[0]!]).toEqual([...all.logprobs[0]!.subarray(0, sequences[0]!.length - 1)])
  })

  it.each(families)('gives the gradient of zero coefficients at all other loops: %s', async (name) => {
    using model = await load(name)
    const loops = model.architecture.loops
    const coefficients = coefficientsOf(1)
    const inAll = coefficients.map((row) => [...new Array(row.length * (loops - 1)).fill(0), ...row])
    const want = await gradientsOf(model, sequences, inAll)
    for (const recompute of ['none', 'loop', 'layer'] as const)
      expectEqual(await gradientsOf(model, sequences, coefficients, { readLoops: [loops], recompute }), want)
  })

  it('spreads the exit distribution over the loops that are read', async () => {
    using model = await tinyModel()
    const all = await model.score(sequences)
    const some = await model.score(sequences, { readLoops: [1, 3] })
    const length = sequences[0]!.length
    for (let j = 0; j < length; j++) {
      const leave = 1 / (1 + Math.exp(-all.gateLogits[0]![j]!))
      expect(some.exitPdf[0]![j]).toBeCloseTo(leave, 12)
      expect(some.exitPdf[0]![length + j]).toBeCloseTo(1 - leave, 12)
    }
  })

  it.each([
    [[], /readLoops must be a list/],
    [[2, 2], /readLoops\[1\] is 2, after 2/],
    [[4], /readLoops\[0\]/],
    [3, /readLoops must be a list/],
  ])('rejects values that are not an ascending list of loops: %j', async (readLoops, message) => {
    using model = await tinyModel()
    const error = await refusal(() => model.score(sequences, { readLoops: readLoops as number[] }))
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(message)
  })
})

describe('a truncated backward pass', () => {
  const recomputes = ['none', 'loop', 'layer'] as const

  // The last k loops from a constant state are k loops that begin with it.
  it.each(families.filter((name) => /huginn|retrofit/.test(name)))('equals one through the last loops: %s', async (name) => {
    using model = await load(name)
    const gold = readGolden(join(root, name))
    const { data, shape } = gold.get('states')!
    const [, rows, width, hidden] = shape as [number, number, number, number]
    const lengths = Array.from(gold.get('lengths')!.data)
    const ids = gold.get('ids')!.data
    const given = lengths.map((length, b) => Array.from(ids.subarray(b * width, b * width + length)))
    const statesAfter = (loops: number) =>
      lengths.map((length, b) => {
        const from = ((loops - 1) * rows + b) * width * hidden
        return data.subarray(from, from + length * hidden)
      })
    const bytes = readFileSync(join(root, name, 'initial_state.safetensors'))
    const header = 8 + Number(bytes.readBigUInt64LE(0))
    const initial = new Float32Array(new Uint8Array(bytes.subarray(header, header + rows * width * hidden * 4)).buffer)
    const begin = lengths.map((length, b) => initial.subarray(b * width * hidden, (b * width + length) * hidden))
    for (const kept of [1, 2]) {
      const options = { loops: kept, initialStates: statesAfter(3 - kept) }
      const coefficients = coefficientsOf(kept, given)
      const want = await gradientsOf(model, given, coefficients, options)
      const readLoops = kept === 1 ? [3] : [2, 3]
      for (const recompute of recomputes)
        expectEqual(
          await gradientsOf(model, given, coefficients, { readLoops, recompute, backwardLoops: kept, initialStates: begin }),
          want,
          1e-9,
        )
    }
  })

  // With the norm at the readout alone, loops are layers one after the other.
  it('equals the last layers of a deeper model: Nanbeige', async () => {
    const config = JSON.parse(readFileSync(join(root, 'nanbeige_flags', 'config.json'), 'utf8'))
    using model = await LoopLM.create({ ...config, tie_word_embeddings: false }, { device: 'reference', seed: 3 })
    const { loops } = model.architecture
    const deep = { ...config, tie_word_embeddings: false, loop_loss_weights: [], num_loops: 1, num_hidden_layers: loops }
    using unrolled = await LoopLM.create(deep, { device: 'reference' })
    for (const { name } of unrolled.parameters())
      await unrolled.setParameter(name, await model.getParameter(name.replace(/layers\.\d/, 'layers.0')))
    const coefficients = coefficientsOf(1)
    const parts = await gradientsOf(unrolled, sequences, coefficients)
    for (const backwardLoops of [1, 2, 3]) {
      const want = new Map<string, number[]>()
      for (const [name, values] of parts) {
        const layer = Number(/layers\.(\d)/.exec(name)?.[1] ?? loops - 1)
        const own = name.replace(/layers\.\d/, 'layers.0')
        const sum = want.get(own) ?? new Array<number>(values.length).fill(0)
        const kept = layer >= loops - backwardLoops && (backwardLoops === loops || !name.includes('embed_tokens'))
        if (kept) for (let i = 0; i < sum.length; i++) sum[i]! += values[i]!
        want.set(own, sum)
      }
      for (const recompute of recomputes)
        expectEqual(await gradientsOf(model, sequences, coefficients, { readLoops: [loops], backwardLoops, recompute }), want)
    }
  })

  // Nothing of a coda changes the states that it reads.
  it('trains coda and norm, but not the core, for a readout before the truncation', async () => {
    using model = await load('huginn')
    const coefficients = coefficientsOf(1).map((row) => [...row, ...row.map(() => 0)])
    const loss = async () => {
      const { logprobs } = await model.score(sequences, { readLoops: [1, 3] })
      return logprobs.reduce((sum, row, i) => sum + Array.from(row).reduce((s, l, k) => s + l * coefficients[i]![k]!, 0), 0)
    }
    for (const recompute of recomputes) {
      const gradients = await gradientsOf(model, sequences, coefficients, { readLoops: [1, 3], backwardLoops: 1, recompute })
      const before = [...gradients].filter(([name]) => /core_block|adapter|prelude/.test(name))
      for (const part of ['core_block', 'adapter', 'prelude'])
        expect(
          before.some(([name]) => name.includes(part)),
          part,
        ).toBe(true)
      for (const [name, values] of before) expect(norm(values), name).toBe(0)
      for (const name of ['transformer.coda.0.mlp.fc.weight', 'transformer.coda.0.norm_4.weight', 'transformer.ln_f.weight']) {
        const values = Float64Array.from(await model.getParameter(name))
        const at = values.length >> 1
        const step = 1e-5
        const moved = async (by: number) => {
          await model.setParameter(
            name,
            values.map((x, i) => (i === at ? x + by : x)),
          )
          return loss()
        }
        const difference = ((await moved(step)) - (await moved(-step))) / (2 * step)
        await model.setParameter(name, values)
        expect(Math.abs(gradients.get(name)![at]! - difference), name).toBeLessThan(1e-6 * Math.max(1, Math.abs(difference)))
      }
    }
  })

  it('over all loops equals the full backward pass', async () => {
    using model = await load('hrm_text')
    const coefficients = coefficientsOf(2)
    const want = await gradientsOf(model, sequences, coefficients)
    expectEqual(await gradientsOf(model, sequences, coefficients, { backwardLoops: 2 }), want)
    const parts = await gradientsOf(model, sequences, coefficients, { backwardLoops: 'published' })
    expect(
      relativeError(
        parts.get('model.L_module.layers.0.mlp.down_proj.weight')!,
        want.get('model.L_module.layers.0.mlp.down_proj.weight')!,
      ),
    ).toBeGreaterThan(1e-3)
  })

  it.each([
    ['huginn', { mean_recurrence: 24, mean_backprop_depth: 3 }, 0.4],
    ['hrm_text', { L_cycles: 8, L_bp_cycles: [0, 1] }, 0.5],
  ])('uses a fraction of the memory: %s', async (name, change, share) => {
    const config = JSON.parse(readFileSync(join(root, name, 'config.json'), 'utf8'))
    const wide = { intermediate_size: 512, ...change }
    const long = [Array.from({ length: 200 }, (_, i) => (7 * i) % 30)]
    const peak = async (backwardLoops: number | 'published') => {
      using model = await LoopLM.create({ ...config, ...wide, max_position_embeddings: 256, block_size: 256 }, { seed: 1 })
      const loops = model.architecture.loops
      await model.backward([[1, 2]], coefficientsOf(1, [[1, 2]]), { readLoops: [loops] }) // takes the memory of gradients
      const before = await heldBytes()
      resetPeakMemory()
      await model.backward(long, coefficientsOf(1, long), { readLoops: [loops], backwardLoops })
      return memory().peak - before
    }
    const [whole, truncated] = [await peak(64), await peak('published')]
    expect(truncated).toBeLessThan(share * whole)
  })
})

describe('initial states in training', () => {
  const hidden = 16
  const states = (shift: number) =>
    sequences.map((sequence) => Float64Array.from({ length: sequence.length * hidden }, (_, k) => Math.sin(k + shift)))

  it('are taken from the batch, also if prompts are equal', async () => {
    using model = await load('huginn')
    const settings = { weights: 'uniform', loops: 4 } as const
    using trainer = new RLTTTrainer(model, settings)
    const initialStates = [states(0)[0]!, states(1)[1]!, states(2)[2]!, states(3)[3]!]
    const advantages = [1, -1, 0.5, 2]
    const together = await trainer.gradients({ sequences, promptLengths, advantages, initialStates })
    const scores = await model.score(sequences, { initialStates, loops: 4, promptLengths })
    const want = scores.logprobs.reduce((sum, row, i) => {
      const width = sequences[i]!.length - 1
      return sum - Array.from(row).reduce((s, l) => s + l, 0) * (advantages[i]! / (4 * 4 * (width - promptLengths[i]! + 1)))
    }, 0)
    expect(together.loss).toBeCloseTo(want, 12)
    const other = await trainer.gradients({ sequences, promptLengths, advantages })
    expect(other.loss).not.toBeCloseTo(want, 3)
  })

  it.each(['stateSeed', 'initialState'] as const)('follow the option %s', async (option) => {
    using model = await load('huginn')
    const change = option === 'stateSeed' ? { stateSeed: 5 } : ({ initialState: 'zeros' } as const)
    const advantages = [1, -1, 0.5, 2]
    for (const [Trainer, more] of [
      [RLTTTrainer, { weights: 'last' }],
      [GRPOTrainer, { surrogate: 'reinforce' }],
      [ObjectiveTrainer, { objective: { terms: [{ weights: 'last' }] } }],
    ] as const) {
      const make = Trainer as unknown as new (model: LoopLM, options: object) => RLTTTrainer
      using changed = new make(model, { ...more, ...change })
      using plain = new make(model, more)
      const { loss } = await changed.gradients({ sequences, promptLengths, advantages })
      const { logprobs } = await model.score(sequences, { ...change, lastLoop: true, promptLengths })
      const want = logprobs.reduce(
        (sum, row, i) =>
          sum - (advantages[i]! * Array.from(row).reduce((s, l) => s + l, 0)) / (4 * (sequences[i]!.length - promptLengths[i]!)),
        0,
      )
      expect(loss).toBeCloseTo(want, 12)
      expect((await plain.gradients({ sequences, promptLengths, advantages })).loss).not.toBeCloseTo(want, 3)
    }
    using changed = new PretrainTrainer(model, change)
    using plain = new PretrainTrainer(model, {})
    expect((await changed.gradients({ sequences })).loss).not.toBeCloseTo((await plain.gradients({ sequences })).loss, 3)
  })

  const rows = ['abcabc', 'bcdbcd', 'aabbcc'].map((text) => ({ prompt: text.slice(0, 3), answer: text.slice(3) }))
  const data = { dataset: rows, evalDataset: rows, tokenizer: Tokenizer.characters('abcdefghijklmnopqrstuvwxyz') }
  const textOf = (tokens: readonly number[]) => data.tokenizer.decode(tokens, { skipUnknownTokens: true })
  const choices = [{}, { stateSeed: 5 }, { initialState: 'zeros' }] as const

  it('are the same in evaluations of predictions: the loss of the next step', async () => {
    const losses = []
    for (const choice of choices) {
      using model = await load('huginn')
      const options = { ...data, ...choice, steps: 1, evalEvery: 1, evalLoops: [3], batchSize: 3, weights: 'last' as const }
      using trainer = new PretrainTrainer(model, options)
      const seen: Record<string, number> = {}
      for await (const { type, step, metrics } of trainer.run())
        if (type === 'step' || (type === 'eval' && step === 0)) Object.assign(seen, metrics)
      expect(seen['eval/loop_3/loss']).toBeCloseTo(seen.loss!, 12)
      losses.push(seen.loss)
    }
    expect(new Set(losses).size).toBe(choices.length)
  })

  it.each(['single turns', 'episodes', 'rollout functions'])('are the same in evaluations of answers: %s', async (kind) => {
    const texts = []
    for (const choice of choices) {
      using model = await load('huginn')
      model.tokenizer = data.tokenizer
      const generate = (prompts: readonly string[], options: GenerateOptions) =>
        model.generate(
          prompts.map((prompt) => data.tokenizer.encode(prompt)),
          options,
        )
      const environment: Environment = ({ prompt }) => ({ prompt: prompt as string })
      const rollout: RolloutFunction = async (problems, { generation }) => {
        const results = await generate(
          problems.map(({ prompt }) => prompt as string),
          generation,
        )
        return results.map(({ tokens }, i) => ({
          tokens: Int32Array.of(1, ...tokens),
          ...{ promptLength: 1, reward: 0, truncated: true, text: textOf(tokens), columns: problems[i]! },
        }))
      }
      const how = { 'single turns': {}, episodes: { environment }, 'rollout functions': { rollout } }[kind]
      using trainer = new GRPOTrainer(model, { ...data, ...choice, ...how, reward: () => 0, maxNewTokens: 5 })
      const [answered] = await trainer.evaluate({ loops: [3] })
      const options = { ...choice, maxNewTokens: 5, temperature: 0 }
      const wanted = await generate(
        rows.map(({ prompt }) => prompt),
        options,
      )
      const answers = answered!.answers.map(([answer]) => answer!.completion)
      expect(answers).toEqual(wanted.map(({ tokens }) => textOf(tokens)))
      texts.push(answers.join())
    }
    expect(new Set(texts).size).toBe(choices.length)
  })

  it.each<[string, ObjectiveTrainerOptions]>([
    ['novelty', { objective: { rewards: [{ kind: 'novelty' }], terms: [{ weights: 'last' }] } }],
    ['frugal', { objective: { rewards: [{ kind: 'frugal' }], terms: [{ weights: 'last' }] } }],
    [
      'frugal in episodes',
      { objective: { rewards: [{ kind: 'frugal' }], terms: [{ weights: 'last' }] }, environment: () => ({ prompt: 'ab' }) },
    ],
    ['gold answers', { objective: { terms: [{ weights: 'uniform', advantage: { loops: { belief: 'gold-answer' } } }] } }],
    ['forced exits', { objective: { terms: [{ weights: 'uniform', advantage: { loops: { belief: 'forced-exit' } } }] } }],
    [
      'gains of turns',
      {
        objective: 'igpo',
        environment: () => ({ prompt: 'ab', step: ({ index }) => (index === 0 ? { reply: 'c' } : {}) }),
      },
    ],
  ])('are the same wherever a step asks the model: %s', async (name, options) => {
    using model = await LoopLM.fromPretrained(join(root, 'huginn'), { device: 'reference', dtype: 'float64', exitGate: true })
    const asked: object[] = []
    for (const method of ['generate', 'score', 'responseMeans', 'embed', 'accumulateLoss'] as const) {
      const call = model[method].bind(model) as (first: never, options: object) => unknown
      vi.spyOn(model, method as 'score').mockImplementation(((first: never, options: object) => {
        asked.push(options)
        return call(first, options)
      }) as never)
    }
    const choice = { initialState: 'zeros', stateSeed: 5 } as const
    const sizes = { promptsPerStep: 2, groupSize: 2, maxNewTokens: 3, steps: 1, logprobCheckEvery: 0 }
    let rewarded = 0
    const reward = () => rewarded++ % 2
    using trainer = new ObjectiveTrainer(model, { ...data, ...sizes, ...choice, reward, ...options })
    for await (const _ of trainer.run());
    expect(asked.length, name).toBeGreaterThan(options.environment === undefined ? 2 : 1)
    for (const options of asked) expect(options).toMatchObject(choice)
  })

  it('of a batch are those of its embeddings and exit loops', async () => {
    using model = await LoopLM.fromPretrained(join(root, 'huginn'), { device: 'reference', dtype: 'float64', exitGate: true })
    const objective: ObjectiveInput = { rewards: [{ kind: 'novelty' }, { kind: 'frugal' }], terms: [{ weights: 'last' }] }
    const initialStates = sequences.map(({ length }) => new Float64Array(length * hidden))
    using zeros = new ObjectiveTrainer(model, { groupSize: 4, objective, initialState: 'zeros' })
    using drawn = new ObjectiveTrainer(model, { groupSize: 4, objective })
    const batch = { sequences, promptLengths, rewards, answers: ['a', 'b', 'c', 'd'] }
    const { loss } = await zeros.gradients(batch)
    expect((await drawn.gradients({ ...batch, initialStates })).loss).toBe(loss)
    expect((await drawn.gradients(batch)).loss).not.toBeCloseTo(loss, 3)
  })

  it('are the same with and without a cache in evaluateSequences', async () => {
    using model = await load('huginn')
    const given = sequences.map((tokens) => ({ tokens }))
    const losses = []
    for (const choice of choices) {
      const [plain] = await evaluateSequences(model, given, { ...choice, loops: [3] })
      const [cached] = await evaluateSequences(model, given, { ...choice, loops: [3], cacheType: 'model' })
      expect(cached!.loss).toBeCloseTo(plain!.loss, 10)
      losses.push(plain!.loss)
    }
    expect(new Set(losses).size).toBe(choices.length)
  })

  it('change what responseMeans and embed return, as they change scores', async () => {
    using model = await load('huginn')
    const embedded = []
    for (const choice of choices) {
      const { logprobs } = await model.responseMeans(sequences, { promptLengths, ...choice })
      const scores = await model.score(sequences, { promptLengths, ...choice })
      for (const [i, { length }] of sequences.entries())
        for (let t = 0; t < 3; t++) {
          const row = Array.from(scores.logprobs[i]!.subarray(t * (length - 1) + 2, (t + 1) * (length - 1)))
          expect(logprobs[i]![t]).toBeCloseTo(row.reduce((sum, l) => sum + l, 0) / row.length, 12)
        }
      embedded.push((await model.embed(sequences, choice))[0]!.join())
    }
    expect(new Set(embedded).size).toBe(choices.length)
    const zeros = { initialStates: sequences.map(({ length }) => new Float64Array(length * hidden)) }
    expect((await model.embed(sequences, zeros))[0]!.join()).toBe(embedded[2])
  })
})

describe('trainers of every family', () => {
  it.each(families)('%s: importance ratios start at 1, and pre-training lowers the loss', async (name) => {
    using model = await load(name, 'cpu')
    const options = { learningRate: 1e-3, groupSize: 4 }
    const batch = { sequences, promptLengths, rewards }
    using grpo = new GRPOTrainer(model, options)
    const last = (await model.score(sequences, { promptLengths, lastLoop: true })).logprobs
    const first = await grpo.update({ ...batch, oldLogprobs: last })
    expect(first['ratio/mean']).toBe(1)
    expect(first['clip_ratio/region_mean']).toBe(0)
    expect((await grpo.update({ ...batch, oldLogprobs: last }))['ratio/mean']).not.toBe(1)
    using rltt = new RLTTTrainer(model, { ...options, weights: 'uniform', surrogate: 'ppo' })
    const all = (await model.score(sequences, { promptLengths })).logprobs
    expect((await rltt.update({ ...batch, oldLogprobs: all }))['ratio/mean']).toBe(1)
    using objective = new ObjectiveTrainer(model, {
      ...options,
      objective: { terms: [{ weights: 'uniform', surrogate: 'gspo' }, { weights: 'last' }], kl: { beta: 0.1 } },
    })
    using pretrain = new PretrainTrainer(model, { learningRate: 1e-3 })
    for (const trainer of [grpo, rltt, objective]) expect((await trainer.update(batch)).loss).toBeTypeOf('number')
    const before = (await pretrain.update({ sequences, promptLengths })).loss!
    let after = before
    for (let step = 0; step < 5; step++) after = (await pretrain.update({ sequences, promptLengths })).loss!
    expect(after).toBeLessThan(before)
  })

  it.each([{ stateSeed: 7 }, { initialState: 'zeros' }, { loops: 5 }] as const)('sample what they train: %j', async (change) => {
    const sizes = { vocab_size: tinyTask.tokenizer.vocabSize, hidden_size: 16, intermediate_size: 24, num_attention_heads: 2 }
    const layers = { num_hidden_layers: 3, n_layers_in_prelude: 1, n_layers_in_recurrent_block: 1, n_layers_in_coda: 1 }
    const config = { model_type: 'huginn_raven', ...sizes, ...layers, mean_recurrence: 3 }
    using model = await LoopLM.create(config, { device: 'reference', seed: 1 })
    const run = { task: tinyTask, steps: 1, promptsPerStep: 2, groupSize: 4, maxNewTokens: 4, logprobCheckEvery: 1, ...change }
    using trainer = new GRPOTrainer(model, { ...run, reward: variedReward, onWarning: () => {} })
    const steps: Record<string, number>[] = []
    for await (const { type, metrics } of trainer.run()) if (type === 'step') steps.push(metrics)
    expect(steps[0]!['sampling/logprob_difference/max']).toBeLessThan(1e-9)
    expect(steps[0]!['ratio/mean']).toBeCloseTo(1, 9)
  })

  it('read some loops with given weights', async () => {
    using model = await load('retrofit_llama')
    using trainer = new RLTTTrainer(model, { loops: 5, readLoops: [2, 5], weights: [1, 3], backwardLoops: 2 })
    const advantages = [1, -1, 0.5, 2]
    const { logprobs } = await model.score(sequences, { loops: 5, readLoops: [2, 5], promptLengths })
    const want = logprobs.reduce((sum, row, i) => {
      const width = sequences[i]!.length - 1
      const weighted = Array.from(row).reduce((s, l, k) => s + (k < width ? 0.25 : 0.75) * l, 0)
      return sum - (advantages[i]! * weighted) / (4 * (sequences[i]!.length - promptLengths[i]!))
    }, 0)
    const metrics = await trainer.update({ sequences, promptLengths, advantages })
    expect(metrics.loss).toBeCloseTo(want, 12)
    expect(metrics['loop_2/weight']).toBeCloseTo(0.25, 12)
    expect(metrics['loop_5/weight']).toBeCloseTo(0.75, 12)
    expect(metrics).not.toHaveProperty('loop_1/weight')
  })

  it('reject more loops than a fixed family has, and weights for another loop count', async () => {
    using model = await load('nanbeige')
    const error = await refusal(() => new RLTTTrainer(model, { loops: 3, weights: 'uniform' }))
    expect(error.code).toBe('INVALID_CONFIG')
    expect(error.message).toMatch(/loops: 3 is more than the 2 loops of the model, and family nanbeige has a fixed number/)
    using trainer = new RLTTTrainer(model, { weights: [1, 2, 3] })
    const update = () => trainer.update({ sequences, promptLengths, advantages: [1, 1, 1, 1] })
    expect((await refusal(update)).message).toMatch(/weights must have one entry for each of the \d loops that are read, got 3$/)
  })
})
