// Objectives over the steps of a run: several updates, several terms, dynamic sampling, phases with references, limits.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { LoopLM } from '../../../src/model/model.js'
import type { Environment } from '../../../src/rl/environment.js'
import { evaluate } from '../../../src/rl/evaluate.js'
import { evaluateSequences } from '../../../src/rl/evaluate-sequences.js'
import type { Metrics, TrainerEvent } from '../../../src/rl/events.js'
import { GRPOTrainer } from '../../../src/rl/grpo.js'
import type { ObjectiveContext } from '../../../src/rl/objective/custom-objective.js'
import { type Phase, recipes } from '../../../src/rl/objective/recipes.js'
import type { ObjectiveInput } from '../../../src/rl/objective/schema.js'
import { ObjectiveTrainer } from '../../../src/rl/objective-trainer.js'
import type { ObjectiveTrainerOptions } from '../../../src/rl/options.js'
import { PretrainTrainer } from '../../../src/rl/pretrain.js'
import { RLTTTrainer } from '../../../src/rl/rltt.js'
import { refusal } from '../../refusal.js'
import { difference, parametersOf, tinyBatch, tinyConfig, tinyModel, tinyTask, variedReward } from '../../tiny.js'

type Options = ConstructorParameters<typeof ObjectiveTrainer>[1]
type Batch = Parameters<ObjectiveTrainer['gradients']>[0]
const loops = tinyConfig.total_ut_steps
const runOptions = {
  ...{ task: tinyTask, reward: variedReward, promptsPerStep: 4, groupSize: 4, learningRate: 1e-2, logprobCheckEvery: 0 },
  onWarning: () => {},
} as const
const batch = { ...tinyBatch, rewards: [1, 0, 0.5, 0, 0, 1, 1, 0] }

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'looplm-objectives-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

async function stepsOf(trainer: { run(): AsyncIterable<TrainerEvent> }): Promise<Metrics[]> {
  const steps: Metrics[] = []
  for await (const event of trainer.run()) if (event.type === 'step') steps.push(event.metrics)
  return steps
}

async function train(options: Options): Promise<{ steps: Metrics[]; parameters: Map<string, ArrayLike<number>> }> {
  using model = await tinyModel()
  using trainer = new ObjectiveTrainer(model, { ...runOptions, ...options })
  return { steps: await stepsOf(trainer), parameters: await parametersOf(model) }
}

/** The clipped surrogate of every loop alike, as a caller would write it. */
function ppo({ sequences, promptLengths, advantages, lengthNormalizers, scores, oldLogprobs }: ObjectiveContext) {
  let loss = 0
  const coefficients = scores.logprobs.map((row, i) => {
    const width = sequences[i]!.length - 1
    return Array.from(row, (l, k) => {
      if (k % width < promptLengths[i]! - 1) return 0
      const [A, weight] = [advantages[i]!, lengthNormalizers[i]! / scores.loops]
      const ratio = Math.exp(l - (oldLogprobs === undefined ? l : oldLogprobs[i]![k]!))
      const clipped = Math.min(Math.max(ratio, 0.8), 1.2)
      loss -= weight * Math.min(ratio * A, clipped * A)
      return ratio * A <= clipped * A ? -weight * ratio * A : 0
    })
  })
  return { loss, coefficients }
}

describe('an objective function', () => {
  it.each([
    { updatesPerRollout: 1, minibatches: 1 },
    { updatesPerRollout: 3, minibatches: 1 },
    { updatesPerRollout: 1, minibatches: 2 },
    { updatesPerRollout: 2, minibatches: 4 },
  ])('makes the same updates as the equivalent term: %o', async (several) => {
    const shared = { ...several, steps: 2, skipFlatGroups: false } // a function sees flat groups too
    const own = await train({ ...shared, objective: ppo })
    const term = await train({ ...shared, objective: { terms: [{ weights: 'uniform', surrogate: 'ppo' }] } })
    expect(difference(own.parameters, term.parameters)).toBeLessThan(1e-12)
    for (const [i, { loss }] of own.steps.entries()) expect(loss).toBeCloseTo(term.steps[i]!.loss!, 12)
  })

  it('receives the dataset rows of its sequences', async () => {
    const dataset = [
      { prompt: '1+2=', answer: '3', source: 'first' },
      { prompt: '7+8=', answer: '5', source: 'second' },
    ]
    const seen: unknown[] = []
    await train({
      ...{
        task: undefined,
        dataset,
        tokenizer: tinyTask.tokenizer,
        maxNewTokens: 3,
        steps: 1,
        promptsPerStep: 2,
        minibatches: 2,
      },
      skipFlatGroups: false,
      objective: (context) => {
        seen.push(...context.columns!)
        expect(context.columns).toHaveLength(context.sequences.length)
        for (const [i, { prompt }] of context.columns!.entries())
          expect(Array.from(context.sequences[i]!).slice(0, context.promptLengths[i])).toEqual(
            tinyTask.tokenizer.encode(prompt as string),
          )
        return { loss: 0, coefficients: context.scores.logprobs.map((row) => row.map(() => 0)) }
      },
    })
    expect(new Set(seen)).toEqual(new Set(dataset))
    expect(seen).toHaveLength(8)
  })
})

describe('the return value of an objective function', () => {
  const zeros = ({ scores }: ObjectiveContext) => scores.logprobs.map((row) => Array.from(row, () => 0))
  const cases: [string, (context: ObjectiveContext) => unknown, RegExp][] = [
    ['nothing', () => undefined, /objective: it must return \{ loss, coefficients, gateCoefficients\? \}, got undefined/],
    ['a list', () => [], /it must return .* got Array of length 0/],
    ['a misspelt field', (c) => ({ loss: 0, coefficients: zeros(c), gateCoeficients: [] }), /did you mean gateCoefficients\?/],
    ['no loss', (c) => ({ coefficients: zeros(c) }), /objective: loss must be a number, got undefined/],
    ['no coefficients', () => ({ loss: 0 }), /objective: coefficients must be an array .* got undefined/],
    ['coefficients of another shape', () => ({ loss: 0, coefficients: [[1]] }), /coefficients must be an array with one entry/],
  ]
  it.each(cases)('is rejected by name: %s', async (_, objective, message) => {
    using model = await tinyModel()
    const before = await parametersOf(model)
    using trainer = new ObjectiveTrainer(model, { groupSize: 4, objective: objective as typeof ppo })
    expect((await refusal(() => trainer.update(batch))).message).toMatch(message)
    expect(await parametersOf(model)).toEqual(before)
  })
})

describe('an unknown option', () => {
  it('is rejected by evaluate, evaluateSequences, trainer.evaluate and reward entries', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...runOptions, steps: 1 })
    const cases: [() => unknown, RegExp][] = [
      [() => evaluate(model, { task: tinyTask, maxTokens: 2 } as never), /^evaluate: maxTokens: unknown option/],
      [() => evaluate(model, { task: tinyTask, loop: [1] } as never), /loop: unknown option; did you mean loops\?/],
      [() => evaluateSequences(model, [], { loop: [1] } as never), /^evaluateSequences: loop: unknown option/],
      [
        () => trainer.evaluate({ problem: 1 } as never),
        /^RLTTTrainer\.evaluate: problem: unknown option; did you mean problems\?/,
      ],
      [
        () => new RLTTTrainer(model, { reward: [{ name: 'a', reward: () => 0, weigth: 2 }] as never }),
        /entry 0\.weigth: unknown option; did you mean entry 0\.weight\?/,
      ],
    ]
    for (const [run, message] of cases) expect((await refusal(run)).message).toMatch(message)
  })
})

describe('several terms', () => {
  const gradients = async (terms: ObjectiveInput['terms'], given: Batch) => {
    using model = await tinyModel()
    using trainer = new ObjectiveTrainer(model, { groupSize: 4, objective: { terms } })
    return await trainer.gradients(given)
  }
  const strata = (by: 'given' | 'truncated' | 'length' | 'exit-loop') => ({ advantage: { strata: { by, blend: 1 } } }) as const
  const cost = (by: 'given' | 'exit-loop' | 'length') => ({ advantage: { cost: { by, price: 1 } } }) as const
  const given = {
    ...batch,
    strata: [0, 1, 0, 1, 2, 2, 0, 0],
    truncated: [true, true, false, false, false, true, false, true],
    costs: [0.1, 0.9, 0.3, 0.2, 1, 0, 0.5, 0.5],
    exitLoops: [1, 3, 2.6, 1.2, 2, 2, 3, 1],
  }
  const pairs: [string, ObjectiveInput['terms'][number], ObjectiveInput['terms'][number]][] = [
    ['strata given and by truncation', strata('given'), strata('truncated')],
    ['strata by length and by exit loop', strata('length'), strata('exit-loop')],
    ['costs given and by length', cost('given'), cost('length')],
    ['costs by exit loop and given', cost('exit-loop'), cost('given')],
    ['strata and costs', strata('given'), cost('length')],
    ['strata, and none', strata('truncated'), {}],
    ['another baseline', { advantage: { baseline: 'none' } }, { advantage: { scale: 'none', sign: 'negative' } }],
  ]
  it.each(pairs)('each have their own advantages: %s', async (_, a, b) => {
    const [first, second, both] = [await gradients([a], given), await gradients([b], given), await gradients([a, b], given)]
    expect(both.loss).toBeCloseTo(first.loss + second.loss, 12)
    const sum = new Map(
      [...first.gradients].map(([name, values]) => [name, values.map((x, i) => x + second.gradients.get(name)![i]!)] as const),
    )
    expect(difference(sum, both.gradients)).toBeLessThan(1e-12)
    expect(difference(first.gradients, second.gradients)).toBeGreaterThan(1e-3) // else there is nothing to mix up
  })

  it('each have their own beliefs', async () => {
    const loss = async (terms: ObjectiveInput['terms']) => (await train({ objective: { terms }, steps: 1 })).steps[0]!.loss!
    const term = (belief: 'gold-answer' | 'forced-exit') =>
      ({ weights: 'uniform', advantage: { loops: { belief, value: 'probability' } } }) as const
    const [gold, forced] = [await loss([term('gold-answer')]), await loss([term('forced-exit')])]
    expect(gold).not.toBeCloseTo(forced, 6)
    expect(await loss([term('gold-answer'), term('forced-exit')])).toBeCloseTo(gold + forced, 11)
    expect(await loss([term('forced-exit'), term('gold-answer')])).toBeCloseTo(gold + forced, 11)
    using model = await tinyModel()
    const objective = { terms: [term('gold-answer'), term('forced-exit')] }
    using trainer = new ObjectiveTrainer(model, { groupSize: 4, objective })
    const beliefs = batch.sequences.map(() => [0.1, 0.2, 0.3, 0.4])
    expect((await refusal(() => trainer.update({ ...batch, beliefs }))).message).toMatch(/beliefs: .*gold-answer and forced-exit/)
  })
})

describe('dynamic sampling', () => {
  // every second prompt earns nothing, so that rounds are needed and groups are discarded
  const reward = (prompt: string, completion: string) => (prompt.charCodeAt(0) % 2 === 0 ? 0 : completion.charCodeAt(0) % 7)
  const objective = { ...recipes.dapo, filter: { resample: 6 } } as const

  it('reports rewards of the trained completions, but tokens of all rounds', async () => {
    using model = await LoopLM.create(tinyConfig, { seed: 4 })
    const generate = vi.spyOn(model, 'generate')
    const runDir = join(folder, 'resample')
    using trainer = new ObjectiveTrainer(model, {
      ...{ ...runOptions, reward, objective, steps: 2, runDir, logCompletions: 1e6, maxNewTokens: 1 },
    })
    const steps = await stepsOf(trainer)
    const lines = readFileSync(join(runDir, 'completions.jsonl'), 'utf8').trim().split('\n')
    const trained = lines.map((line) => JSON.parse(line) as { step: number; reward: number; completion: string; prompt: string })
    let call = 0
    let tokens = 0
    for (const [i, metrics] of steps.entries()) {
      const rounds = metrics['sampling/rounds']!
      expect(rounds).toBeGreaterThan(1)
      let completions = 0
      for (let round = 0; round < rounds; round++, call++) {
        const prompts = generate.mock.calls[call]![0]
        const results = await (generate.mock.results[call]!.value as ReturnType<LoopLM['generate']>)
        completions += prompts.length
        tokens += prompts.reduce((sum, prompt) => sum + prompt.length, 0)
        tokens += results.reduce((sum, result) => sum + result.tokens.length, 0)
      }
      expect(metrics.num_tokens).toBe(tokens)
      const own = trained.filter(({ step }) => step === i + 1)
      expect(metrics['sampling/frac_discarded']).toBeCloseTo(1 - own.length / completions, 12)
      const mean = own.reduce((sum, { reward }) => sum + reward / own.length, 0)
      expect(metrics.reward).toBeCloseTo(mean, 12)
      expect(metrics['rewards/reward/mean']).toBeCloseTo(mean, 12)
      const cut = own.filter(({ completion }) => completion !== '').length // of one token, each that is not the end was cut
      expect(metrics['completions/clipped_ratio']).toBeCloseTo(cut / own.length, 12)
    }
    expect(generate).toHaveBeenCalledTimes(call)
  })

  it('adds up the sampling time of its rounds', async () => {
    using model = await LoopLM.create(tinyConfig, { seed: 4 })
    const now = vi.spyOn(performance, 'now')
    const generate = model.generate.bind(model)
    let clock = 0
    now.mockImplementation(() => clock)
    vi.spyOn(model, 'generate').mockImplementation(async (...given) => {
      clock += 1000
      return generate(...given)
    })
    try {
      using trainer = new ObjectiveTrainer(model, { ...runOptions, reward, objective, steps: 1 })
      const [metrics] = await stepsOf(trainer)
      expect(metrics!['sampling/rounds']).toBeGreaterThan(1)
      expect(metrics!.sampling_time).toBe(metrics!['sampling/rounds'])
    } finally {
      now.mockRestore()
    }
  })

  it('has the metrics of episodes over all rounds', async () => {
    const environment: Environment = ({ prompt }) => ({
      prompt: String(prompt),
      step: ({ index }) => (index === 0 ? { reply: '1' } : { reward: 0 }), // no group has spread
    })
    const sampled = async (resample: number) => {
      using model = await tinyModel()
      const { reward: _, ...rest } = runOptions
      const dataset = ['1+1=', '2+3=', '4+2=', '0+5='].map((prompt) => ({ prompt }))
      const data = { task: undefined, tokenizer: tinyTask.tokenizer, dataset, environment, stop: ['+'] }
      const options = { ...rest, ...data, objective: { ...recipes.dapo, filter: { resample } }, steps: 1, maxNewTokens: 2 }
      using trainer = new ObjectiveTrainer(model, options as Options)
      return (await stepsOf(trainer))[0]!
    }
    const [one, three] = [await sampled(0), await sampled(2)]
    expect(three['sampling/rounds']).toBe(3)
    expect(three).toMatchObject({ 'episodes/turns': one['episodes/turns'], 'tools/call_frequency': 0 })
    expect(three['sampling/prefilled_tokens']).toBeGreaterThan(2 * one['sampling/prefilled_tokens']!)
  })

  it('counts all sampled tokens even if no group has spread', async () => {
    const flat = { ...runOptions, reward: () => 1, steps: 1, maxNewTokens: 1 }
    const one = await train({ ...flat, objective: { ...objective, filter: {} } })
    const all = await train({ ...flat, objective })
    expect(all.steps[0]!['sampling/rounds']).toBe(7)
    expect(all.steps[0]!.num_tokens).toBe(7 * one.steps[0]!.num_tokens!) // prompts of the task have one length
    expect(all.steps[0]!.reward).toBe(1)
  })

  it('judges the spread of a group after the filter', async () => {
    // the first two of each group spread, the others do not, and only the last two are kept or the other way round
    let calls = 0
    const first = () => (calls++ % 4 === 3 ? 1 : 0)
    const kept = { ...objective, filter: { resample: 2, keepPerGroup: 2 } }
    const { steps } = await train({ reward: first, objective: kept, steps: 1 })
    expect(steps[0]!['sampling/rounds']).toBe(3) // the first two of every group earn 0, so no group has spread
    const { steps: spread } = await train({ reward: () => calls++ % 4, objective: kept, steps: 1 })
    expect(spread[0]!['sampling/rounds']).toBe(1)
  })

  it('is rejected with majority and novelty rewards', async () => {
    using model = await tinyModel()
    for (const kind of ['majority', 'novelty'] as const) {
      const options = { objective: { ...objective, rewards: [{ kind }] } } as Options
      expect((await refusal(() => new ObjectiveTrainer(model, options))).message).toMatch(/objective\.filter\.resample: /)
    }
  })
})

describe('the warning about several updates without an importance ratio', () => {
  const warnings = async (Trainer: typeof RLTTTrainer | typeof GRPOTrainer | typeof ObjectiveTrainer, options: Options) => {
    using model = await tinyModel()
    const list: string[] = []
    const onWarning = (message: string) => list.push(message)
    using trainer = new Trainer(model, { ...runOptions, steps: 2, ...(options as object), onWarning })
    await stepsOf(trainer)
    return list.filter((message) => message.includes('importance ratio'))
  }

  it.each([
    ['RLTT, two passes', RLTTTrainer, { updatesPerRollout: 2 }, /^step 1: 2 updates .*'reinforce' has no importance ratio/],
    ['RLTT, minibatches', RLTTTrainer, { minibatches: 4 }, /^step 1: 4 updates .*minibatches 4.*Use the surrogate 'ppo'/],
    ['GRPO', GRPOTrainer, { surrogate: 'reinforce', updatesPerRollout: 3, minibatches: 2 }, /^step 1: 6 updates/],
    ['a recipe', ObjectiveTrainer, { objective: 'llds', updatesPerRollout: 2 }, /'reinforce'/],
    [
      'an exit term beside ppo',
      ObjectiveTrainer,
      { updatesPerRollout: 2, objective: { terms: [{ surrogate: 'ppo' }, { channel: 'exit' }] } },
      /the exit channel has no importance ratio/,
    ],
    [
      'a later phase',
      ObjectiveTrainer,
      { updatesPerRollout: 2, objective: [{ until: 1, objective: 'grpo' }, { objective: 'rltt' }] },
      /^step 2: /,
    ],
  ] as const)('is given once: %s', async (_, Trainer, options, message) => {
    const list = await warnings(Trainer, options as Options)
    expect(list).toHaveLength(1)
    expect(list[0]).toMatch(message)
  })

  it.each([
    ['one update', RLTTTrainer, {}],
    ['ppo', RLTTTrainer, { surrogate: 'ppo', updatesPerRollout: 2 }],
    ['cispo', GRPOTrainer, { surrogate: 'cispo', minibatches: 2 }],
    ['gspo', ObjectiveTrainer, { objective: 'gspo', minibatches: 2 }],
    ['imitation', ObjectiveTrainer, { objective: { terms: [{ advantage: { source: 'one' } }] }, minibatches: 2 }],
    ['a function', ObjectiveTrainer, { objective: ppo, updatesPerRollout: 2 }],
  ] as const)('is not given for %s', async (_, Trainer, options) => {
    expect(await warnings(Trainer, options as Options)).toEqual([])
  })
})

describe('maxNewTokens', () => {
  const longest = async (options: object) => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...runOptions, ...options })
    const generate = vi.spyOn(model, 'generate')
    const [metrics] = await stepsOf(trainer)
    await trainer.evaluate({ problems: 4, loops: [1] })
    const limits = new Set(generate.mock.calls.map(([, given]) => given?.maxNewTokens))
    expect(limits.size).toBe(1)
    expect(metrics!['completions/max_length']).toBeLessThanOrEqual([...limits][0]!)
    return [...limits][0]
  }

  it('limits completions of rollouts and evaluations', async () => {
    expect(await longest({ steps: 1 })).toBe(tinyTask.maxCompletionLength)
    expect(await longest({ steps: 1, maxNewTokens: 1 })).toBe(1)
    expect(await longest({ steps: 1, maxNewTokens: 9 })).toBe(9)
    expect(await longest({ steps: 1, maxNewTokens: 2, constantNormalizerLength: 9, normalizer: 'constant' })).toBe(2)
    const rows = {
      task: undefined,
      dataset: [{ prompt: '1+1=' }],
      evalDataset: [{ prompt: '1+1=' }],
      tokenizer: tinyTask.tokenizer,
    }
    expect(await longest({ ...rows, steps: 1, maxNewTokens: 5 })).toBe(5)
  })

  it('limits the trials of forced exits', async () => {
    using model = await tinyModel()
    const generate = vi.spyOn(model, 'generate')
    using trainer = new ObjectiveTrainer(model, { ...runOptions, objective: 'mrt', steps: 1, maxNewTokens: 1 })
    await stepsOf(trainer)
    expect(generate.mock.calls).toHaveLength(1 + loops)
    for (const [, given] of generate.mock.calls) expect(given!.maxNewTokens).toBe(1)
  })

  it('is not an option of trainers that do not sample', async () => {
    using model = await tinyModel()
    const { message } = await refusal(() => new PretrainTrainer(model, { maxNewTokens: 9 } as object))
    expect(message).toMatch(/maxNewTokens: unknown option/)
  })

  it('is passed on by evaluate for a task', async () => {
    using model = await tinyModel()
    const generate = vi.spyOn(model, 'generate')
    await evaluate(model, { task: tinyTask, problems: 2, loops: [1], maxNewTokens: 2 })
    expect(generate.mock.calls[0]![1]!.maxNewTokens).toBe(2)
  })
})

describe('phases that need a reference model', () => {
  const plain: ObjectiveInput = { terms: [{ weights: 'last' }] }
  const frozen: ObjectiveInput = { ...plain, kl: { beta: 0.5 } }
  const ema: ObjectiveInput = { ...plain, kl: { beta: 0.5, reference: 'ema' }, emaDecay: 0.5 }
  const lazy: ObjectiveInput = { terms: [{ weights: 'uniform' }], lazy: { old: 'ema', gate: 'token' } }
  const teacher: ObjectiveInput = { terms: [{ weights: 'uniform', advantage: { loops: { belief: 'token', base: 'teacher' } } }] }
  const phases: Record<string, Phase[]> = {
    'a frozen KL': [{ until: 2, objective: plain }, { objective: frozen }],
    'a KL to the average': [{ until: 2, objective: { ...plain, emaDecay: 0.5 } }, { objective: ema }],
    'LLDS by the average': [{ until: 2, objective: 'rltt' as never }, { objective: lazy }],
    'beliefs of a teacher': [{ until: 2, objective: plain }, { objective: teacher }],
    'a KL in the middle': [{ until: 1, objective: plain }, { until: 3, objective: frozen }, { objective: plain }],
    'an average in the middle': [{ until: 1, objective: plain }, { until: 3, objective: ema }, { objective: plain }],
    'a KL first': [{ until: 2, objective: frozen }, { objective: plain }],
  }

  it.each(Object.entries(phases))('run and resume with the same numbers: %s', async (name, objective) => {
    const options = { objective, promptsPerStep: 2, steps: 4, saveEvery: 1, keepCheckpoints: 9 }
    const whole = await train({ ...options, runDir: join(folder, `${name} whole`) })
    expect(whole.steps.every(({ loss }) => Number.isFinite(loss))).toBe(true)
    const numbers = (steps: Metrics[]) => steps.map(({ loss, kl, lazy_loss }) => [loss, kl, lazy_loss])
    const expectWhole = (parts: { steps: Metrics[]; parameters: unknown }, from: number) => {
      expect(numbers(parts.steps)).toEqual(numbers(whole.steps).slice(from))
      expect(parts.parameters).toEqual(whole.parameters)
    }
    for (const step of [1, 3]) {
      const resume = join(folder, `${name} whole`, 'checkpoints', `step-${step}`)
      expectWhole(await train({ ...options, runDir: join(folder, `${name} from ${step}`), resume }), step)
    }
    const runDir = join(folder, `${name} cut`)
    const begun = await train({ ...options, steps: 2, runDir })
    const resumed = await train({ ...options, runDir, resume: true })
    expectWhole({ ...resumed, steps: [...begun.steps, ...resumed.steps] }, 0)
  })

  /** The k3 estimate at the last loop, over the response tokens. */
  async function klOf(model: LoopLM, reference: LoopLM): Promise<number> {
    const [own, other] = [await model.score(batch.sequences), await reference.score(batch.sequences)]
    const values = batch.sequences.flatMap((sequence, i) => {
      const width = sequence.length - 1
      return Array.from({ length: width }, (_, j) => j)
        .filter((j) => j >= batch.promptLengths[i] - 1)
        .map((j) => other.logprobs[i]![(loops - 1) * width + j]! - own.logprobs[i]![(loops - 1) * width + j]!)
        .map((d) => Math.exp(d) - d - 1)
    })
    return values.reduce((sum, value) => sum + value / values.length, 0)
  }

  it.each([
    ['the model as it was at the start', 'a frozen KL', 0],
    ['the average of the model since the start', 'a KL to the average', 0.5],
  ] as const)('measure the KL to %s', async (_, name, follow) => {
    using model = await tinyModel()
    using reference = await model.clone()
    using trainer = new ObjectiveTrainer(model, {
      groupSize: 4,
      learningRate: 1e-2,
      skipFlatGroups: false,
      objective: phases[name]!,
    })
    for (let step = 0; step < 2; step++) {
      expect(await trainer.update(batch)).not.toHaveProperty('kl')
      for (const [parameter, values] of await parametersOf(reference)) {
        const now = await model.getParameter(parameter)
        await reference.setParameter(
          parameter,
          values.map((x, i) => x + follow * (now[i]! - x)),
        )
      }
    }
    const want = await klOf(model, reference)
    expect(want).toBeGreaterThan(1e-4)
    expect((await trainer.update(batch)).kl).toBeCloseTo(want, 10)
  })

  it.each(Object.keys(phases))('work with plain calls of update: %s', async (name) => {
    using model = await tinyModel()
    using trainer = new ObjectiveTrainer(model, { groupSize: 4, learningRate: 1e-2, objective: phases[name]! })
    for (let step = 0; step < 4; step++) {
      const metrics = await trainer.update(batch)
      const { objective } = phases[name]!.find(({ until = 4 }) => step < until)!
      const found = ['kl', 'lazy_loss'].filter((metric) => Number.isFinite(metrics[metric]))
      expect(found).toEqual([...(objective.kl ? ['kl'] : []), ...(objective.lazy ? ['lazy_loss'] : [])])
      expect(Number.isFinite(metrics.loss)).toBe(true)
    }
  })

  it('keep no copy of the model if none is needed', async () => {
    using model = await tinyModel()
    const clone = vi.spyOn(model, 'clone')
    using trainer = new ObjectiveTrainer(model, { ...runOptions, objective: 'dsrl', steps: 1 })
    await stepsOf(trainer)
    await trainer.update(batch)
    expect(clone).not.toHaveBeenCalled()
  })
})

describe('an empty response beside others', () => {
  const given = { ...batch, sequences: batch.sequences.map((s, i) => (i === 2 ? s.slice(0, 4) : s)), answers: [...'ababcccd'] }
  it.each([
    ['novelty', { terms: [{ weights: 'uniform' }], rewards: [{ kind: 'novelty' }] }],
    ['a price of loops', { terms: [{ weights: 'uniform', advantage: { cost: {} } }], rewards: [{ kind: 'frugal' }] }],
    ['strata of loops', { terms: [{ weights: 'uniform', advantage: { strata: { by: 'exit-loop' } } }] }],
  ] as [string, ObjectiveInput][])('counts as a zero embedding and one loop: %s', async (_, objective) => {
    using model = await tinyModel()
    using trainer = new ObjectiveTrainer(model, { groupSize: 4, objective })
    const own = await trainer.gradients(given)
    const rows = [...given.sequences.keys()].filter((i) => i !== 2)
    const of = { promptLengths: rows.map(() => 4) }
    const [vectors, means] = [
      await model.embed(
        rows.map((i) => given.sequences[i]!),
        of,
      ),
      await model.responseMeans(
        rows.map((i) => given.sequences[i]!),
        of,
      ),
    ]
    const whole = <T>(values: readonly T[], empty: T) =>
      given.sequences.map((_, i) => (i === 2 ? empty : values[rows.indexOf(i)]!))
    const extra = { embeddings: whole<ArrayLike<number>>(vectors, new Float64Array(16)), exitLoops: whole(means.exitLoop, 1) }
    expect(own).toEqual(await trainer.gradients({ ...given, ...extra }))
  })
})

describe('mistakes in objectives and batches', () => {
  const cases: [ObjectiveInput, RegExp][] = [
    [{ terms: [{ advantage: { source: 'one', strata: { by: 'length' } } }] }, /terms\.0: advantage\.strata .*source is one/],
    [{ terms: [{ advantage: { source: 'zero', sign: 'negative' } }] }, /advantage\.sign/],
    [{ terms: [{ advantage: { source: 'one', scale: 'none' } }] }, /advantage\.scale/],
    [{ terms: [{ advantage: { source: 'one', positiveWeight: 2 } }] }, /advantage\.positiveWeight/],
    [{ terms: [{ advantage: { baseline: 'none', scale: 'group' } }] }, /advantage\.scale: group needs the baseline 'group'/],
    [{ terms: [{ advantage: { baseline: 'none', scale: 'population' } }] }, /advantage\.scale: population/],
    [{ terms: [{ channel: 'exit', combine: 'inner' }] }, /terms\.0: combine/],
    [{ terms: [{ channel: 'exit', weights: 'last' }] }, /terms\.0: weights/],
    [{ terms: [{ channel: 'exit', advantage: { loops: { belief: 'token', normalize: 'gain' } } }] }, /loops\.normalize/],
    [{ terms: [{ draws: 4 }] }, /terms\.0: draws/],
    [{ terms: [{ advantage: { discount: 0.5 } }] }, /terms\.0: advantage\.discount: needs the source 'turn'/],
    [{ terms: [{ advantage: { loops: { belief: 'token', attempts: 3 } } }] }, /loops\.attempts: needs the value 'best-of'/],
    [{ terms: [{ advantage: { loops: { belief: 'token', costScale: 1 } } }] }, /loops\.costScale: needs the base 'teacher'/],
    [{ terms: [{ advantage: { loops: { belief: 'token', threshold: 1 } } }] }, /loops\.threshold: needs the base 'teacher'/],
    [{ terms: [{ space: 'marginal' }], kl: { beta: 0.1 } }, /objective\.kl: needs a term in the conditional space/],
    [{ terms: [{ space: 'marginal' }], entropy: { token: 0.1 } }, /objective\.entropy\.token: needs/],
    [{ terms: [{ space: 'marginal' }], entropy: { exit: 0.1 } }, /objective\.entropy\.exit: needs/],
  ]
  it.each(cases)('reject an objective field that would not be read: %j', async (objective, message) => {
    using model = await tinyModel()
    const error = await refusal(() => new ObjectiveTrainer(model, { objective }))
    expect(error.code).toBe('INVALID_CONFIG')
    expect(error.message).toMatch(message)
  })

  it.each(['ttrl', 'evol-rl'] as const)('need no reward for rows without answers: %s', async (objective) => {
    const run = async (extra: Options) => {
      using model = await tinyModel()
      const dataset = ['1+2=', '3+4='].map((prompt) => ({ prompt }))
      const { task: _task, reward: _reward, ...rest } = runOptions
      const own = { dataset, tokenizer: tinyTask.tokenizer, steps: 1, objective, answerOf: (text: string) => text.slice(0, 1) }
      using trainer = new ObjectiveTrainer(model, { ...rest, ...own, ...extra, onWarning: () => {} })
      const [metrics] = await stepsOf(trainer)
      expect(metrics!.grad_norm).toBeGreaterThan(0)
      return await parametersOf(model)
    }
    expect(await run({})).toEqual(await run({ reward: () => null }))
  })

  it('read undefined of answerOf as no answer', async () => {
    const run = async (none: null | undefined) => {
      using model = await tinyModel('cpu')
      let k = 0
      const answerOf = () => (k++ % 4 === 0 ? '7' : none) as string | null
      using trainer = new ObjectiveTrainer(model, { ...runOptions, steps: 1, objective: 'ttrl', answerOf })
      for await (const _ of trainer.run());
      return await parametersOf(model)
    }
    expect(await run(undefined)).toEqual(await run(null))
  })

  it.each([
    [() => 7, /^answerOf: must return a string, or null if there is no answer, got 7$/],
    [async () => '7', /^answerOf: must return a string, .*, got an object of class Promise; it must not be asynchronous$/],
    [
      () => {
        throw new Error('no match')
      },
      /^answerOf: no match$/,
    ],
  ])('name an answerOf that fails: %s', async (answerOf, message) => {
    using model = await tinyModel('cpu')
    const options = { ...runOptions, steps: 1, objective: 'ttrl', answerOf: answerOf as never } as const
    using trainer = new ObjectiveTrainer(model, options)
    expect((await refusal(() => trainer.run().next())).message).toMatch(message)
  })

  const answerOf = (text: string) => text
  const inLoop: ObjectiveTrainerOptions['objective'] = () => ({ loss: 0, coefficients: [] })
  it.each<[ObjectiveTrainerOptions, RegExp | undefined]>([
    [
      { objective: 'rltt', answerOf },
      /answerOf: needs the reward majority or novelty in the objective; set it, or omit answerOf$/,
    ],
    [{ objective: 'grpo', marginalToken: 1 }, /marginalToken: needs a term in the space 'marginal'; set it, or omit/],
    [{ objective: 'grpo', constantNormalizerLength: 9 }, /constantNormalizerLength: needs a term with the normalizer 'constant'/],
    [{ objective: inLoop, constantNormalizerLength: 9 }, /constantNormalizerLength: needs a term with the normalizer/],
    [{ objective: 'ttrl', answerOf }, undefined],
    [{ objective: 'dsrl', marginalToken: 1 }, undefined], // its first phase reads it
    [{ objective: [{ until: 1, objective: 'rltt' }, { objective: 'dr-grpo' }], constantNormalizerLength: 9 }, undefined],
  ])('reject an option that no objective of the run reads: %o', async (options, message) => {
    using model = await tinyModel()
    const create = () => new ObjectiveTrainer(model, options).dispose()
    if (message === undefined) return create()
    const error = await refusal(create)
    expect(error.code).toBe('INVALID_CONFIG')
    expect(error.message).toMatch(message)
  })

  it.each([
    [{ terms: [{}], filter: { dropTruncated: true } }, /truncated: the filter dropTruncated needs one per sequence/],
    [{ terms: [{ weights: 'uniform' }], lazy: { gate: 'segment' } }, /segments: missing. The gate 'segment'/],
  ] as [ObjectiveInput, RegExp][])('reject a batch without a field that the objective needs: %j', async (objective, message) => {
    using model = await tinyModel()
    using trainer = new ObjectiveTrainer(model, { groupSize: 4, objective })
    expect((await refusal(() => trainer.update(batch))).message).toMatch(message)
  })
})
