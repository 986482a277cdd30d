// Numbers that are too large: batches of more sequences than a call has arguments, and counts with a zero too many.
import { getHeapStatistics } from 'node:v8'
import { describe, expect, it } from 'vitest'
import { checkDraw } from '../../src/data/sampler.js'
import { largest, smallest } from '../../src/extremes.js'
import { evaluate, GRPOTrainer, LoopLM, LoopRPTTrainer, ObjectiveTrainer, PretrainTrainer, RLTTTrainer } from '../../src/index.js'
import { rateBatch } from '../../src/rl/batch.js'
import { advantagesOf, groupAdvantages } from '../../src/rl/objective/advantages.js'
import { lengthNormalizers } from '../../src/rl/objective/normalizer.js'
import { phasesOf } from '../../src/rl/objective/recipes.js'
import { objectiveSchema } from '../../src/rl/objective/schema.js'
import { shapeRewards } from '../../src/rl/objective/shape-rewards.js'
import { refusal } from '../refusal.js'
import { tinyModel, tinyTask } from '../tiny.js'

const many = 130_000 // sequences; a call takes about 120,000 arguments
const sequences = Array.from({ length: many }, (_, i) => [1, 10, i % 10])
const promptLengths = Array<number>(many).fill(2)
const rewards = sequences.map((_, i) => i % 2)
const settings = { groupSize: 1000, step: 0, maxLength: undefined, loops: 2 }

/** Claims one advantage per sequence: positive for a reward of 1, negative for 0. */
function expectSigns(advantages: readonly unknown[]): void {
  expect(advantages).toHaveLength(many)
  expect(advantages.findIndex((value, i) => Math.sign(value as number) !== (rewards[i] === 1 ? 1 : -1))).toBe(-1)
}

describe('a batch of 130,000 short sequences', () => {
  it('does not overflow the helpers largest and smallest', () => {
    const values = Array.from({ length: many }, (_, i) => i)
    expect(() => Math.max(...values)).toThrow(RangeError) // as long as this holds, the rest of this file tests something
    expect([largest(values), smallest(values)]).toEqual([many - 1, 0])
    expect([largest([]), smallest([]), largest([-2], 1), largest([3, Number.NaN])]).toEqual([-Infinity, Infinity, 1, Number.NaN])
  })

  it.each(['rltt', 'san', 'bn-gspo'] as const)('gets advantages from the recipe %s', (recipe) => {
    const objective = objectiveSchema.parse(phasesOf(recipe)[0]!.objective)
    const batch = { sequences, promptLengths, rewards, exitLoops: rewards, truncated: rewards.map(Boolean) }
    const { advantages, metrics } = rateBatch('test', batch, objective, settings)
    expectSigns(advantages[0]!)
    expect(metrics).toMatchObject({ reward: 0.5, 'completions/max_length': 1 })
  })

  it.each(['length', 'given', 'truncated'] as const)('gets advantages in strata by %s', (by) => {
    const objective = objectiveSchema.parse({ terms: [{ advantage: { strata: { by }, cost: { by: 'length' } } }] })
    const batch = { sequences, promptLengths, rewards, strata: rewards, truncated: rewards.map(Boolean) }
    expectSigns(rateBatch('test', batch, objective, settings).advantages[0]!)
  })

  it('gets advantages, length normalizers and shaped rewards as one group', () => {
    const lengths = promptLengths
    expectSigns(groupAdvantages(rewards, many).advantages)
    expect(new Set(lengthNormalizers(lengths, 'constant'))).toEqual(new Set([1 / (2 * many)]))
    const spec = objectiveSchema.parse({ terms: [{ advantage: { strata: { by: 'given' } } }] }).terms[0]!.advantage
    expectSigns(advantagesOf(spec, { rewards, groupSize: many, strata: rewards }))
    const shapers = objectiveSchema.parse({ rewards: [{ kind: 'length' }], terms: [{}] }).rewards
    expect(shapeRewards(shapers, { rewards, groupSize: many, lengths }, 0)).toEqual(rewards) // all are of one length
  })

  it('trains in one step', async () => {
    using model = await LoopLM.create(
      { vocab_size: 12, hidden_size: 2, intermediate_size: 2, num_hidden_layers: 1, num_attention_heads: 1, total_ut_steps: 1 },
      { seed: 0 },
    )
    using pretrain = new PretrainTrainer(model, { learningRate: 1e-3 })
    expect((await pretrain.update({ sequences })).num_tokens).toBe(3 * many)
    using grpo = new GRPOTrainer(model, { learningRate: 1e-3, groupSize: 1000, normalizer: 'constant', onWarning() {} })
    expect((await grpo.update({ sequences, promptLengths, rewards })).reward).toBe(0.5)
  })
})

describe('a count that is far too large', () => {
  type Make = (model: LoopLM) => unknown
  const policy = { task: tinyTask }
  it.each<[option: string, make: Make]>([
    ['groupSize', (model) => new RLTTTrainer(model, { ...policy, groupSize: 1e9 })],
    ['groupSize', (model) => new GRPOTrainer(model, { ...policy, groupSize: 2 ** 17 })],
    ['groupSize', (model) => new ObjectiveTrainer(model, { ...policy, groupSize: Number.MAX_SAFE_INTEGER })],
    ['promptsPerStep', (model) => new RLTTTrainer(model, { ...policy, promptsPerStep: 1e9 })],
    ['promptsPerStep', (model) => new GRPOTrainer(model, { ...policy, promptsPerStep: 2 ** 10, groupSize: 2 ** 11 })],
    ['gradientAccumulation', (model) => new GRPOTrainer(model, { ...policy, gradientAccumulation: 1e6 })],
    ['updatesPerRollout', (model) => new GRPOTrainer(model, { ...policy, updatesPerRollout: 1e9 })],
    ['minibatches', (model) => new GRPOTrainer(model, { ...policy, minibatches: 1e9 })],
    ['evalProblems', (model) => new PretrainTrainer(model, { ...policy, evalProblems: 1e9 })],
    ['evalLoops', (model) => new PretrainTrainer(model, { ...policy, evalLoops: [1e9] })],
    ['evalLoops', (model) => new PretrainTrainer(model, { ...policy, evalLoops: Array(1e5).fill(1) })],
    ['steps', (model) => new PretrainTrainer(model, { ...policy, steps: 2 ** 40 })],
    ['rollouts', (model) => new LoopRPTTrainer(model, { ...policy, rollouts: 1e9 })],
    ['rewardTimeout', (model) => new RLTTTrainer(model, { ...policy, rewardTimeout: 1e9 })],
  ])('is rejected by name: %s', async (option, make) => {
    using model = await tinyModel('cpu')
    const error = await refusal(async () => make(model))
    expect(error.code).toBe('INVALID_CONFIG')
    expect(error.message).toMatch(new RegExp(`^\\w+: ${option}`))
  })

  it('is rejected by name: problems of evaluate and rank of an adapter', async () => {
    using model = await tinyModel('cpu')
    expect((await refusal(() => evaluate(model, { task: tinyTask, problems: 1e9 }))).message).toMatch(
      /^evaluate: problems must be/,
    )
    expect((await refusal(() => model.addAdapter({ rank: 1e9 }))).message).toMatch(/rank must be an integer/)
  })

  const rows = Math.ceil(getHeapStatistics().heap_size_limit / 512)
  it.skipIf(rows > 2 ** 24)('is rejected if the heap has too little memory: batchSize', async () => {
    const error = await refusal(async () => checkDraw(rows, 'test'))
    expect(error.code).toBe('OUT_OF_MEMORY')
    expect(error.message).toMatch(
      new RegExp(`^test: ${rows} rows or problems take at least \\d+ MiB, the heap has \\d+ MiB left; lower`),
    )
  })

  it('is rejected above 2^24 rows or problems, whatever the heap has', async () => {
    expect(() => checkDraw(2 ** 16, 'test')).not.toThrow()
    expect((await refusal(async () => checkDraw(2 ** 24 + 1, 'test'))).code).toBe('INVALID_ARGUMENT')
  })
})

describe('sequences beyond max_position_embeddings', () => {
  it.each(['update', 'gradients'] as const)('are rejected by %s with their index and length', async (method) => {
    const sizes = { vocab_size: 12, hidden_size: 4, intermediate_size: 4, num_hidden_layers: 1, num_attention_heads: 1 }
    using model = await LoopLM.create({ ...sizes, total_ut_steps: 1, max_position_embeddings: 4 }, { seed: 0 })
    using trainer = new PretrainTrainer(model, {})
    const long = {
      sequences: [
        [1, 2],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
      ],
    }
    const error = await refusal(() => trainer[method](long))
    expect(error.message).toBe(
      `PretrainTrainer.${method}: sequences[2] has 5 tokens; the model has 4 positions (max_position_embeddings of its configuration). Shorten the sequence`,
    )
    await trainer[method]({ sequences: long.sequences.slice(0, 2) })
  })
})
