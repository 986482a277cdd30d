// What the trainers promise beyond the numbers of the golden files: equal paths, invariances, bookkeeping, refusals.
import { describe, expect, it, vi } from 'vitest'
import type { LoopLM } from '../../src/model/model.js'
import type { TrainerEvent } from '../../src/rl/events.js'
import { GRPOTrainer } from '../../src/rl/grpo.js'
import { ObjectiveTrainer } from '../../src/rl/objective-trainer.js'
import type { PretrainOptions, RLTTOptions } from '../../src/rl/options.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { RLTTTrainer } from '../../src/rl/rltt.js'
import { timeless } from '../timeless.js'
import { difference, parametersOf, tinyBatch, tinyModel, tinyTask, variedReward } from '../tiny.js'

const batch = { ...tinyBatch, rewards: [1, 0, 0, 0, 1, 1, 0, 0] }
const base = { groupSize: 4, learningRate: 1e-2 } as const
const runBase = { ...base, task: tinyTask, reward: variedReward, promptsPerStep: 4, steps: 2, logprobCheckEvery: 1 } as const

async function gradientsOf(options: RLTTOptions, given: Parameters<RLTTTrainer['gradients']>[0] = batch) {
  using model = await tinyModel()
  using trainer = new RLTTTrainer(model, { ...base, ...options })
  return await trainer.gradients(given)
}

async function collect(events: AsyncIterable<TrainerEvent>): Promise<TrainerEvent[]> {
  const list = []
  for await (const event of events) list.push(event)
  return list
}

describe('equal paths', () => {
  it('RLTT with weights "last" and GRPO with surrogate "reinforce" are the same numbers', async () => {
    using a = await tinyModel()
    using b = await tinyModel()
    using rltt = new RLTTTrainer(a, { ...base, weights: 'last', beta: 0.1 })
    using grpo = new GRPOTrainer(b, { ...base, surrogate: 'reinforce', beta: 0.1 })
    expect(await rltt.gradients(batch)).toEqual(await grpo.gradients(batch))
    for (let step = 0; step < 3; step++) {
      expect(timeless(await rltt.update(batch))).toEqual(timeless(await grpo.update(batch)))
    }
    expect(await parametersOf(a)).toEqual(await parametersOf(b))
  })

  it('rewards and the equivalent advantages give the same numbers', async () => {
    const third = Math.sqrt(1 / 3) // the standard deviation of 1, 1, 0, 0; that of 1, 0, 0, 0 is 1/2
    const first = [0.75, -0.25, -0.25, -0.25].map((deviation) => deviation / (0.5 + 1e-6))
    const second = [0.5, 0.5, -0.5, -0.5].map((deviation) => deviation / (third + 1e-6))
    const advantages = [...first, ...second]
    const rewarded = await gradientsOf({})
    const { rewards: _, ...rest } = batch
    const advantaged = await gradientsOf({}, { ...rest, advantages })
    expect(rewarded.loss).toBeCloseTo(advantaged.loss, 12)
    expect(difference(rewarded.gradients, advantaged.gradients)).toBeLessThan(1e-12)
  })

  it('the first step of PPO on its own rollouts is REINFORCE', async () => {
    const reinforce = await gradientsOf({ weights: 'uniform' })
    const ppo = await gradientsOf({ weights: 'uniform', surrogate: 'ppo' })
    expect(difference(reinforce.gradients, ppo.gradients)).toBeLessThan(1e-12)
    using model = await tinyModel()
    using trainer = new GRPOTrainer(model, base)
    const metrics = await trainer.update(batch)
    expect(metrics['ratio/mean']).toBeCloseTo(1, 12)
    expect(metrics['clip_ratio/region_mean']).toBe(0)
  })
})

describe('loss and gradients', () => {
  it.each(['response-mean', 'token-mean', 'constant'] as const)('do not depend on micro-batches: %s', async (normalizer) => {
    const options = { normalizer, ...(normalizer === 'constant' && { constantNormalizerLength: 7 }) }
    const whole = await gradientsOf({ ...options, tokensPerMicroBatch: 1000 })
    const cut = await gradientsOf({ ...options, tokensPerMicroBatch: 8 })
    expect(cut.loss).toBeCloseTo(whole.loss, 12)
    expect(difference(cut.gradients, whole.gradients)).toBeLessThan(1e-12)
  })

  it('do not depend on skipping flat groups', async () => {
    const skipped = await gradientsOf({}, tinyBatch)
    const kept = await gradientsOf({ skipFlatGroups: false }, tinyBatch)
    expect(skipped.loss).toBeCloseTo(kept.loss, 12)
    expect(difference(skipped.gradients, kept.gradients)).toBeLessThan(1e-12)
  })

  it('do not depend on skipping flat groups, which K1.5 pulls back to the policy of the rollouts', async () => {
    using model = await tinyModel()
    const { logprobs } = await model.score(tinyBatch.sequences, { lastLoop: true })
    const oldLogprobs = logprobs.map((row) => row.map((value) => value - 0.5))
    const objective = { terms: [{ weights: 'last', surrogate: { kind: 'k15', tau: 0.5 } }] } as const
    const losses = async (skipFlatGroups: boolean, given: object) => {
      using trainer = new ObjectiveTrainer(model, { groupSize: 4, skipFlatGroups, objective })
      return await trainer.gradients({ ...batch, rewards: [1, 0, 0, 0, 0, 0, 0, 0], ...given })
    }
    for (const given of [{ oldLogprobs }, {}]) {
      const [skipped, kept] = [await losses(true, given), await losses(false, given)]
      expect(skipped.loss).toBeCloseTo(kept.loss, 12)
      expect(difference(skipped.gradients, kept.gradients)).toBeLessThan(1e-12)
    }
  })

  it('have the baseline of the completions that keepPerGroup keeps', async () => {
    using model = await tinyModel()
    const gradients = async (filter: object, given: object) => {
      using trainer = new ObjectiveTrainer(model, {
        groupSize: 4,
        objective: { filter, terms: [{ weights: 'last', advantage: { scale: 'none' } }] },
      })
      return await trainer.gradients({ ...tinyBatch, ...given })
    }
    const kept = await gradients({ keepPerGroup: 2 }, { rewards: [1, 0, 0, 0, 0, 0, 1, 1] })
    const rows = [0, 1, 4, 5]
    const first = (values: readonly number[][]) => rows.map((i) => values[i]!)
    const alone = await gradients(
      {},
      { sequences: first(tinyBatch.sequences), promptLengths: [4, 4, 4, 4], rewards: undefined, advantages: [0.5, -0.5, 0, 0] },
    )
    expect(kept.loss).toBeCloseTo(alone.loss, 12)
    expect(difference(kept.gradients, alone.gradients)).toBeLessThan(1e-12)
  })

  it('do not depend on recomputing activations', async () => {
    const kept = await gradientsOf({})
    for (const recompute of ['loop', 'layer'] as const) {
      expect(difference((await gradientsOf({ recompute })).gradients, kept.gradients)).toBeLessThan(1e-12)
    }
  })

  it('change with an empty response only through the batch size', async () => {
    const [prompt] = tinyBatch.sequences
    const longer = {
      sequences: [...batch.sequences, prompt!.slice(0, 4)],
      promptLengths: Array(9).fill(4),
      advantages: [...Array(8).fill(1), 1],
    }
    const { loss } = await gradientsOf({}, longer)
    expect(loss).toBeCloseTo(
      ((
        await gradientsOf(
          {},
          { ...longer, sequences: batch.sequences, promptLengths: Array(8).fill(4), advantages: Array(8).fill(1) },
        )
      ).loss *
        8) /
        9,
      12,
    )
  })
})

describe('gradients', () => {
  it('name every parameter and change nothing', async () => {
    using model = await tinyModel()
    using other = await tinyModel()
    using trainer = new RLTTTrainer(model, base)
    const before = await parametersOf(model)
    const { loss, gradients } = await trainer.gradients(batch)
    expect(Number.isFinite(loss)).toBe(true)
    expect([...gradients.keys()]).toEqual(model.parameters().map(({ name }) => name))
    expect(await parametersOf(model)).toEqual(before)
    using fresh = new RLTTTrainer(other, base)
    await trainer.update(batch)
    await fresh.update(batch)
    expect(await parametersOf(model)).toEqual(await parametersOf(other))
  })

  it('reach the gate only through attached weights', async () => {
    const gate = 'model.early_exit_gate.weight'
    expect((await gradientsOf({})).gradients.get(gate)!.every((value) => value === 0)).toBe(true)
    expect((await gradientsOf({ detachWeights: false })).gradients.get(gate)!.some((value) => value !== 0)).toBe(true)
  })
})

describe('update', () => {
  it('raises the probability of what was rewarded', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, base)
    const logprob = async () =>
      Array.from((await model.score([batch.sequences[0]!], { lastLoop: true })).logprobs[0]!.slice(3)).reduce((a, b) => a + b)
    const before = await logprob()
    for (let step = 0; step < 5; step++) await trainer.update(tinyBatch)
    expect(await logprob()).toBeGreaterThan(before)
    expect(trainer.step).toBe(5)
  })

  it('reports metrics under the names of TRL', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...base, schedule: 'linear', steps: 4 })
    await trainer.update(batch)
    const metrics = await trainer.update(batch)
    expect(metrics).toMatchObject({
      reward: 3 / 8,
      frac_reward_zero_std: 0,
      learning_rate: 0.0075,
      num_tokens: 96,
      'completions/mean_length': 2,
    })
    for (const name of [
      'loss',
      'grad_norm',
      'entropy',
      'reward_std',
      'step_time',
      'exit_loop/mean',
      'loop_1/logprob',
      'loop_3/weight',
      'loop_2/exit_prob',
    ]) {
      expect(Number.isFinite(metrics[name]), name).toBe(true)
    }
  })

  it('with beta measures the divergence from the initial model', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...base, beta: 0.1 })
    expect((await trainer.update(batch)).kl).toBe(0)
    expect((await trainer.update(batch)).kl).toBeGreaterThan(0)
  })

  it('with beta uses the referenceLogprobs of the batch', async () => {
    using model = await tinyModel()
    const { logprobs } = await model.score(batch.sequences, { lastLoop: true })
    using other = await tinyModel()
    using brought = new RLTTTrainer(model, { ...base, beta: 0.1 })
    using kept = new RLTTTrainer(other, { ...base, beta: 0.1 })
    for (let step = 0; step < 2; step++) {
      const { loss } = await brought.update({ ...batch, referenceLogprobs: logprobs })
      expect(loss).toBeCloseTo((await kept.update(batch)).loss!, 12)
    }
    await expect(brought.update(batch)).rejects.toThrow(/referenceLogprobs/)
  })

  it('makes no step when every group is flat, and says why once', async () => {
    using model = await tinyModel()
    const onWarning = vi.fn()
    using trainer = new RLTTTrainer(model, { ...base, weightDecay: 0.1, onWarning })
    const before = await parametersOf(model)
    for (const skipped of [1, 2]) {
      const metrics = await trainer.update({ ...batch, rewards: Array(8).fill(1) })
      expect(metrics).toMatchObject({ loss: 0, grad_norm: 0, frac_reward_zero_std: 1, skipped_updates: skipped })
    }
    expect(await parametersOf(model)).toEqual(before)
    expect(onWarning).toHaveBeenCalledOnce()
    expect(onWarning.mock.calls[0]![0]).toMatch(/earned the same reward.*no update was made.*raise groupSize or temperature/)
  })

  it('leaves out sequences without a reward', async () => {
    const some = { sequences: batch.sequences.slice(0, 4), promptLengths: [4, 4, 4, 4], rewards: [1, 0, null, null] }
    const pair = { sequences: batch.sequences.slice(0, 2), promptLengths: [4, 4], rewards: [1, 0] }
    const [a, b] = [await gradientsOf({}, some), await gradientsOf({ groupSize: 2 }, pair)]
    expect(a.loss).toBeCloseTo(b.loss, 12)
    expect(difference(a.gradients, b.gradients)).toBeLessThan(1e-12)
  })

  it.each([
    [{ sequences: [] }, /sequences must be a non-empty array/],
    [{ promptLengths: [4] }, /promptLengths has 1 entries for 8 sequences/],
    [{ promptLengths: Array(8).fill(0) }, /promptLengths\[0\] must be an integer from 1 to the 6 tokens.*got 0/],
    [{ rewards: [1, 0] }, /rewards has 2 entries for 8 sequences/],
    [{ rewards: [Number.NaN, 0, 0, 0, 0, 0, 0, 0] }, /reward 0 is NaN/],
    [{ advantages: Array(8).fill(Number.POSITIVE_INFINITY) }, /advantages\[0\] is Infinity/],
    [{ rewards: undefined }, /needs rewards or advantages/],
    [{ mask: [] }, /mask has 0 entries/],
  ])('rejects %o', async (change, message) => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, base)
    await expect(trainer.update({ ...batch, ...change } as typeof batch)).rejects.toThrow(message)
    await expect(trainer.update(batch)).resolves.toHaveProperty('loss')
  })

  it('names the step of a loss that is not finite and leaves the parameters unchanged', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, base)
    await trainer.update(batch)
    const head = await model.getParameter('lm_head.weight')
    await model.setParameter(
      'lm_head.weight',
      head.map((value) => value * 1e308),
    )
    const before = await parametersOf(model)
    await expect(trainer.update(batch)).rejects.toMatchObject({ code: 'NON_FINITE', message: expect.stringMatching(/^step 2: /) })
    expect(await parametersOf(model)).toEqual(before)
  })
})

describe('run', () => {
  it('yields steps, evaluations and done, and depends only on the seed', async () => {
    const course = async (seed: number) => {
      using model = await tinyModel('cpu')
      using trainer = new RLTTTrainer(model, { ...runBase, seed, evalEvery: 2, evalProblems: 16, evalLoops: [1, 3] })
      return { events: await collect(trainer.run()), parameters: await parametersOf(model) }
    }
    const first = await course(5)
    expect(first.events.map(({ type, step }) => `${type} ${step}`)).toEqual(['eval 0', 'step 1', 'step 2', 'eval 2', 'done 2'])
    expect(Object.keys(first.events[3]!.metrics)).toEqual([
      'eval/loop_1/reward',
      'eval/loop_1/reward_low',
      'eval/loop_1/reward_high',
      'eval/loop_1/mean_length',
      'eval/loop_3/reward',
      'eval/loop_3/reward_low',
      'eval/loop_3/reward_high',
      'eval/loop_3/mean_length',
    ])
    expect((await course(5)).parameters).toEqual(first.parameters)
    expect((await course(6)).parameters).not.toEqual(first.parameters)
  })

  it('samples with the log-probabilities of training', async () => {
    using model = await tinyModel('cpu')
    using trainer = new RLTTTrainer(model, { ...runBase, steps: 1 })
    const [event] = await collect(trainer.run())
    // float32 leaves 1e-6 (test/rounding.ts); another temperature, position or key is seen in the second digit
    expect(event!.metrics['sampling/logprob_difference/max']).toBeLessThan(1e-4)
  })

  it('makes one optimizer step per pass and minibatch, and samples gradientAccumulation times', async () => {
    using model = await tinyModel()
    const seen: string[] = []
    const reward = (prompt: string) => seen.push(prompt) % 2
    using trainer = new GRPOTrainer(model, {
      ...runBase,
      reward,
      steps: 1,
      gradientAccumulation: 3,
      updatesPerRollout: 2,
      minibatches: 3,
      logprobCheckEvery: 0,
    })
    const [event] = await collect(trainer.run())
    expect(seen).toHaveLength(3 * 4 * 4)
    expect(new Set(seen).size).toBeGreaterThan(4)
    expect(trainer.optimizer.steps).toBe(6)
    expect(event!.metrics['ratio/mean']).not.toBe(1)
  })

  it('adds several rewards by weight and logs each under its name', async () => {
    using model = await tinyModel()
    const reward = [
      { name: 'first', reward: (_prompt: string, completion: string) => (completion.startsWith('0') ? 1 : 0) },
      { name: 'slow', weight: 2, reward: async () => Promise.resolve(0.5) },
      { name: 'silent', reward: () => null },
    ]
    using trainer = new RLTTTrainer(model, { ...runBase, reward, steps: 1 })
    const [event] = await collect(trainer.run())
    expect(event!.metrics['rewards/slow/mean']).toBe(0.5)
    expect(event!.metrics).not.toHaveProperty('rewards/silent/mean')
    expect(event!.metrics.reward).toBeCloseTo(event!.metrics['rewards/first/mean']! + 1, 12)
  })

  it('uses each row of a dataset once per epoch', async () => {
    using model = await tinyModel()
    const dataset = Array.from({ length: 8 }, (_, i) => ({ prompt: `${i}+1=`, answer: `0${i + 1}` }))
    const prompts: string[] = []
    const reward = (prompt: string, _completion: string, { answer }: Record<string, unknown>) => {
      prompts.push(prompt)
      return Number(answer) % 2
    }
    using trainer = new RLTTTrainer(model, {
      ...base,
      dataset,
      tokenizer: tinyTask.tokenizer,
      reward,
      promptsPerStep: 4,
      steps: 2,
      maxNewTokens: 2,
      onWarning() {},
    })
    await collect(trainer.run())
    expect(new Set(prompts).size).toBe(8)
  })

  it('draws anew in every step, also for the same prompt', async () => {
    using model = await tinyModel()
    const drawn: string[] = []
    const reward = (_prompt: string, completion: string) => {
      drawn.push(completion)
      return 0 // no update, so that only the draws can differ
    }
    const dataset = [{ prompt: '1+1=' }]
    const { tokenizer } = tinyTask
    using trainer = new RLTTTrainer(model, {
      ...base,
      dataset,
      tokenizer,
      reward,
      promptsPerStep: 4,
      steps: 2,
      maxNewTokens: 4,
      onWarning() {},
    })
    await collect(trainer.run())
    expect(drawn.slice(0, 16)).not.toEqual(drawn.slice(16))
    expect(drawn.slice(0, 4)).not.toEqual(drawn.slice(4, 8))
  })

  it('stops between steps when it is aborted', async () => {
    using model = await tinyModel()
    const controller = new AbortController()
    using trainer = new RLTTTrainer(model, {
      ...runBase,
      steps: 50,
      callbacks: { onStep: ({ step }) => (step === 2 ? controller.abort() : undefined) },
    })
    const events = await collect(trainer.run({ signal: controller.signal }))
    expect(events.at(-1)).toMatchObject({ type: 'done', step: 2, aborted: true })
  })

  it.each([
    [{}, /pass either a task or a dataset/],
    [{ dataset: [{ prompt: '1' }] }, /tokenizer: a dataset needs one/],
    [{ dataset: [{ prompt: '1' }], tokenizer: tinyTask.tokenizer }, /reward: a dataset needs a reward function/],
    [{ task: tinyTask, resume: true }, /resume: true needs runDir/],
    [{ task: tinyTask, reward: () => 'good' }, /reward reward must return a finite number or null, got 'good'/],
    [
      {
        task: tinyTask,
        reward: {
          broken: () => {
            throw new Error('no idea')
          },
        },
      },
      /reward broken: no idea/,
    ],
  ])('rejects %o', async (options, message) => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...base, ...options } as RLTTOptions)
    await expect(collect(trainer.run())).rejects.toThrow(message)
  })

  it('rejects unknown options of run()', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...base, task: tinyTask })
    expect(() => trainer.run({ sginal: undefined } as object)).toThrow(/run: sginal: unknown option; did you mean signal\?/)
  })
})

describe('PretrainTrainer', () => {
  const options: PretrainOptions = { task: tinyTask, batchSize: 16, steps: 30, learningRate: 1e-2 }

  it('learns the task it is shown', async () => {
    using model = await tinyModel('cpu')
    using trainer = new PretrainTrainer(model, options)
    const losses = (await collect(trainer.run())).filter(({ type }) => type === 'step').map(({ metrics }) => metrics.loss!)
    expect(losses.at(-1)).toBeLessThan(losses[0]! - 0.5)
  })

  it('trains all tokens but the first when no prompt lengths are given', async () => {
    using model = await tinyModel()
    using trainer = new PretrainTrainer(model)
    const { sequences } = tinyBatch
    const whole = await trainer.gradients({ sequences })
    expect(await trainer.gradients({ sequences, promptLengths: Array(8).fill(1) })).toEqual(whole)
    expect((await trainer.gradients({ sequences, promptLengths: Array(8).fill(4) })).loss).not.toBe(whole.loss)
  })

  it('answers the same test problems greedily with each loop count', async () => {
    using model: LoopLM = await tinyModel('cpu')
    using trainer = new PretrainTrainer(model, { task: tinyTask, batchSize: 64, steps: 150, learningRate: 1e-2 })
    await collect(trainer.run())
    const generate = vi.spyOn(model, 'generate')
    const results = await trainer.evaluate({ problems: 40 })
    expect(generate.mock.calls.map(([, options]) => [options!.loops, options!.temperature])).toEqual([1, 2, 3].map((t) => [t, 0]))
    const problems = Array.from({ length: 40 }, (_, i) => tinyTask.sample('test', i))
    expect(results.map(({ columns }) => columns)).toEqual(Array(3).fill(problems))
    expect(results.map(({ loops }) => loops)).toEqual([1, 2, 3])
    expect(results.map(({ problems, completionLength }) => [problems, completionLength])).toEqual(Array(3).fill([40, 2]))
    expect(await trainer.evaluate({ problems: 40 })).toEqual(results)
    expect(results[2]!.reward).toBeGreaterThan(0.1)
  })
})
