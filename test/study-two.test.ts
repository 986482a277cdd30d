import { describe, expect, it } from 'vitest'
import { GRPOTrainer, LoopLM, ObjectiveTrainer, RLTTTrainer } from '../src/index.js'
import { equivalent } from '../study/statistics.js'
import { arms, baseId, dueRuns, rateSearch, settings, type TaskName, taskOf, trainingId } from '../study/two/plan.js'
import { released } from '../study/two/released.js'
import type { BaseResult, Result, TrainingResult } from '../study/two/results.js'
import { problems, train } from '../study/two/run.js'

const processor = 'a processor'
const final = { accuracy: [], rightLength: [], budgets: [], gates: [], deeper: [], passAt8: 0 }
const base = (task: TaskName, seed: number): BaseResult => {
  return { id: baseId(task, seed), kind: 'base', processor, task, base: seed, steps: 1, seconds: 1, final }
}
const point = {
  step: 0,
  tokens: 0,
  seconds: 0,
  reward: 0,
  length: 0,
  entropy: 0,
  gradNorm: 0,
  flat: 0,
  logprob: [],
  rightLength: [],
}
const trained = (arm: string, seed: number, learningRate: number, accuracy: number): TrainingResult => ({
  ...{ id: trainingId('addition', arm, seed, learningRate), kind: 'training', processor, task: 'addition', arm, base: seed },
  ...{ learningRate, course: [0, accuracy].map((value) => ({ ...point, accuracy: [value] })), final, calibrated: [] },
})
const byId = (results: Result[]) => new Map(results.map((result) => [result.id, result]))
/** Both tuning bases at these rates, with a score for each. */
const tuned = (arm: string, scores: Record<number, number>) =>
  Object.entries(scores).flatMap(([rate, score]) => settings.tuningBases.map((seed) => trained(arm, seed, Number(rate), score)))
const rising = Object.fromEntries(settings.rates.map((rate, i) => [rate, i / 10]))

describe('plan of Study II', () => {
  it('extends a grid of rates while its best value lies at an edge', () => {
    expect(rateSearch(byId(tuned('grpo', { ...rising, [settings.rates[1]]: 0.9 })), 'addition', 'grpo').chosen).toBe(4e-4)
    const wider = rateSearch(byId(tuned('grpo', rising)), 'addition', 'grpo')
    expect(wider).toEqual({ grid: [...settings.rates, 1.6e-3], chosen: undefined })
    expect(rateSearch(byId(tuned('grpo', { ...rising, 1.6e-3: 0.1 })), 'addition', 'grpo').chosen).toBe(8e-4)
    const falling = Object.fromEntries(settings.rates.map((rate, i) => [rate, 1 - i / 10]))
    expect(rateSearch(byId(tuned('grpo', falling)), 'addition', 'grpo').grid[0]).toBe(1e-4)
  })

  it('makes bases first, then chooses rates, then compares; arms that borrow a rate wait for it', () => {
    const due = (...results: Result[]) => dueRuns(byId(results)).map(({ id }) => id)
    expect(due()).toEqual(expect.arrayContaining([101, 102, 0].map((seed) => baseId('addition', seed))))
    expect(due().filter((id) => !id.startsWith('base/'))).toEqual([])
    const bases = [...settings.tuningBases, 0].map((seed) => base('addition', seed))
    expect(due(...bases)).toContain(trainingId('addition', 'grpo', 101, 4e-4))
    expect(due(...bases)).not.toContain(trainingId('addition', 'grpo', 0, 4e-4))
    const known = tuned('grpo', { ...rising, [settings.rates[1]]: 0.9 })
    expect(due(...bases, ...known)).toContain(trainingId('addition', 'grpo', 0, 4e-4))
    expect(due(...bases, ...known)).toContain(trainingId('addition', 'grpo-minibatches', 0, 4e-4))
    expect(due(...bases, ...known)).not.toContain(trainingId('addition', 'rltt-minibatches', 0, 4e-4))
  })

  it('begins with addition, and compares both arms on a base before the next base', () => {
    const results = new Map<string, Result>()
    const order: string[] = []
    for (let due = dueRuns(results); due.length > 0 && order.length < 60; due = dueRuns(results)) {
      const run = due[0]!
      order.push(run.id)
      if (run.kind === 'base') results.set(run.id, base(run.task, run.base))
      else results.set(run.id, { ...trained('', run.base, 0, run.learningRate === settings.rates[1] ? 0.9 : 0.1), ...run })
    }
    expect(order.slice(0, 2)).toEqual([baseId('addition', 101), baseId('addition', 102)])
    const tuning = order.slice(2, 2 + 2 * 2 * settings.rates.length)
    expect(tuning.every((id) => /^addition\/(grpo|rltt)\/10[12]@/.test(id))).toBe(true)
    const pair = (seed: number) => [
      baseId('addition', seed),
      ...['grpo', 'rltt'].map((arm) => trainingId('addition', arm, seed, settings.rates[1])),
    ]
    const compared = settings.bases.flatMap(pair)
    expect(order.slice(2 + tuning.length, 2 + tuning.length + compared.length)).toEqual(compared)
    expect(order[2 + tuning.length + compared.length]).toBe(baseId('parity', 101))
  })

  it('borrows rates from arms and tasks that tune them', () => {
    for (const [name, { tasks, ratesOf }] of Object.entries(arms))
      for (const task of tasks) {
        const source = arms[ratesOf ?? name]!
        expect(source.ratesOf, name).toBeUndefined()
        expect(source.tasks, name).toContain(taskOf(task).ratesOf ?? task)
      }
  })
})

describe('the released objectives', () => {
  it.each([
    ['last', GRPOTrainer, {}],
    ['exit-pdf', RLTTTrainer, { weights: 'exit-pdf' }],
  ] as const)(
    'with weights %s have the gradient of their method while the KL divergence is 0',
    async (weights, Trainer, options) => {
      const sequences = [
        [1, 2, 3, 4],
        [1, 2, 5, 6, 7],
        [1, 2, 3],
        [1, 2, 8, 9],
      ]
      const batch = { sequences, promptLengths: [2, 2, 2, 2], rewards: [1, 0, 0, 1] }
      const norm = async (trainer: { update(batch: object): Promise<Record<string, number>> }) =>
        (await trainer.update(batch)).grad_norm!
      using model = await LoopLM.create({ ...config, vocab_size: 12 }, { seed: 4, threads: 1 })
      using reference = await model.clone()
      using twin = await model.clone()
      const shared = { groupSize: 4, learningRate: 1e-3, surrogate: 'reinforce', onWarning: () => {} } as const
      using own = new ObjectiveTrainer(model, {
        ...{ groupSize: 4, learningRate: 1e-3, onWarning: () => {} },
        objective: released(reference, 4, 0, weights),
      })
      using method = new Trainer(twin, { ...shared, ...options } as object)
      const expected = await norm(method)
      expect(expected).toBeGreaterThan(0.01)
      expect(Math.abs((await norm(own)) / expected - 1)).toBeLessThan(1e-3) // the noise of the rewards
    },
  )
})

describe('equivalence', () => {
  it('needs both one-sided tests within the margin', () => {
    // Differences of mean 0 and deviation 1 in 10 pairs: t = (margin - 0) / (1 / √10), critical at 1.8331 for 9 degrees of freedom.
    const differences = [-1.5, -1, -1, -0.5, 0, 0, 0.5, 1, 1, 1.5]
    const scale = Math.sqrt(differences.reduce((sum, value) => sum + value * value, 0) / 9)
    const after = differences.map((value) => value / scale)
    const before = after.map(() => 0)
    const limit = 1.8331129 / Math.sqrt(10)
    expect(equivalent(after, before, limit * 1.001).p).toBeLessThan(0.05)
    expect(equivalent(after, before, limit * 0.999).p).toBeGreaterThan(0.05)
    expect(equivalent([0.5, 0.5], [0, 0], 0.4).p).toBe(1)
    expect(equivalent([0.3, 0.3], [0, 0], 0.4).p).toBe(0)
  })
})

const config = {
  ...{ hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2 },
  ...{ total_ut_steps: 4, max_position_embeddings: 64 },
}
const sizes = { pointProblems: 4, finalProblems: 4, gateProblems: 2, passProblems: 2, gateSteps: 1, points: 3 }

describe('a run of Study II', () => {
  // The arms whose code is their own; the others are options of trainers.
  it.each([
    ['grpo', 'chain'],
    ['grpo-released', 'parity'],
    ['rltt-released', 'chain'],
    ['imitation', 'addition'],
    ['rltt-then-last', 'addition'],
  ] as const)('of %s on %s gives the same metrics twice', async (arm, task) => {
    const vocab_size = problems[taskOf(task).name]().task.tokenizer.vocabSize
    const run = async () => {
      using model = await LoopLM.create({ ...config, vocab_size }, { seed: 3, threads: 1 })
      const id = trainingId(task, arm, 3, 1e-3)
      const study = { ...taskOf(task), tokens: 6000 }
      // What an untrained model earns by chance, so that there is a gradient.
      const reward = (_: string, completion: string) => completion.length % 2
      const own = { ...arms[arm]!, options: { ...arms[arm]!.options, reward } }
      const spec = { id, kind: 'training', task, arm, base: 3, learningRate: 1e-3 } as const
      const result = await train(spec, model, study, own, sizes)
      return JSON.parse(
        JSON.stringify(result, (key, value: unknown) => (key === 'seconds' ? undefined : value)),
      ) as TrainingResult
    }
    const result = await run()
    expect(await run()).toEqual(result)
    expect(result.course).toHaveLength(4)
    for (const [i, { tokens, logprob }] of result.course.entries()) {
      expect(tokens).toBeGreaterThanOrEqual(2000 * i)
      if (i > 0) expect(logprob).toHaveLength(4)
    }
    expect(result.calibrated).toHaveLength(settings.thresholds.length)
    expect(result.final.deeper.map(({ loops }) => loops)).toEqual([...settings.deeper])
    if (arm === 'grpo') {
      expect(result.gradients).toHaveLength(3)
      for (const { cosine, norm } of result.gradients!) expect([cosine.at(-1), norm.at(-1)]).toEqual([1, 1])
    }
  })
})
