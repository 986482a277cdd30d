// Evaluations that one would publish: samples, pass@k, intervals, the answers themselves.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  bootstrapInterval,
  type Dataset,
  type Environment,
  type EvaluateOptions,
  evaluate,
  evaluateSequences,
  type GenerateOptions,
  type GRPOOptions,
  GRPOTrainer,
  LoopLM,
  type Metrics,
  ObjectiveTrainer,
  type ObjectiveTrainerOptions,
  PretrainTrainer,
  passAtK,
  type RolloutFunction,
  Tokenizer,
  wilsonInterval,
} from '../../src/index.js'
import { refusal } from '../refusal.js'
import { tinyModel, tinyTask } from '../tiny.js'

const tokenizer = Tokenizer.characters('ab:', { special: { eos: '<eos>' } })
const dataset: Dataset = Array.from({ length: 12 }, (_, i) => ({ prompt: `${'ab'[i % 2]}:`, answer: 'a' }))
const first = (_prompt: string, completion: string) => (completion.startsWith('a') ? 1 : 0)
let model: LoopLM
beforeAll(async () => {
  const sizes = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 }
  model = await LoopLM.create({ vocab_size: tokenizer.vocabSize, eos_token_id: tokenizer.eosTokenId!, ...sizes }, { seed: 3 })
})
afterAll(() => model.dispose())

describe('an evaluation', () => {
  const options = { dataset, tokenizer, reward: first, loops: [2], maxNewTokens: 3 }

  it('reports a Wilson interval for 0/1 rewards, and every answer with its reward', async () => {
    const [result] = await evaluate(model, options)
    const right = result!.rewards.filter((reward) => reward === 1).length
    expect(result!.interval).toEqual(wilsonInterval(right, 12))
    expect(result!.passAt).toBeUndefined()
    expect(result!.answers.map(([answer]) => answer!.reward)).toEqual(result!.rewards)
    expect(result!.answers.map(([answer]) => first('', answer!.completion))).toEqual(result!.rewards)
  })

  it('reports mean reward and pass@k over several samples per problem', async () => {
    const [result] = await evaluate(model, { ...options, samples: 6 })
    const { answers, rewards, reward, interval, passAt } = result!
    expect(answers.map(({ length }) => length)).toEqual(Array(12).fill(6))
    const right = answers.map((own) => own.filter((answer) => answer.reward === 1).length)
    expect(rewards).toEqual(right.map((count) => count / 6))
    expect(reward).toBeCloseTo(right.reduce((sum, count) => sum + count, 0) / 72, 12)
    expect(Object.keys(passAt!)).toEqual(['1', '2', '4', '6'])
    for (const k of [1, 2, 4, 6]) {
      expect(passAt![k]).toBeCloseTo(right.reduce((sum, count) => sum + passAtK(count, 6, k), 0) / 12, 12)
    }
    expect(passAt![1]).toBeCloseTo(reward, 12)
    expect(interval.low).toBeLessThan(reward)
    expect(interval.high).toBeGreaterThan(reward)
    expect(new Set(answers[0]!.map(({ completion }) => completion)).size).toBeGreaterThan(1)
  })

  it('draws the same answers for the same seed, and others for another', async () => {
    const drawn = async (seed: number) => (await evaluate(model, { ...options, samples: 4, seed }))[0]!.answers
    expect(await drawn(1)).toEqual(await drawn(1))
    expect(await drawn(1)).not.toEqual(await drawn(2))
  })

  it('draws samples independently when they need several calls of generate', async () => {
    const seen: number[] = []
    const onProgress = ({ answered, of }: { answered: number; of: number }) => seen.push(answered, of)
    const [result] = await evaluate(model, { ...options, maxNewTokens: 8, temperature: 2, samples: 100, onProgress })
    expect(seen).toEqual([1024, 1200, 1200, 1200])
    const texts = result!.answers.flat().map(({ completion }) => completion)
    expect(texts.slice(1024)).not.toEqual(texts.slice(0, 176))
  })

  it('has an interval but no pass@k for fractional rewards, and skips null rewards', async () => {
    const reward = (_prompt: string, completion: string, { prompt }: Record<string, unknown>) =>
      prompt === 'b:' ? null : completion.length / 3
    const [result] = await evaluate(model, { ...options, reward, samples: 4 })
    expect(result!.passAt).toBeUndefined()
    expect(result!.rewards.filter((value) => value === null)).toHaveLength(6)
    expect(result!.interval.low).toBeLessThan(result!.reward)
    expect(result!.interval.high).toBeGreaterThan(result!.reward)
    const [none] = await evaluate(model, { ...options, reward: () => null })
    expect(none).toMatchObject({ reward: 0, interval: { low: 0, high: 0 } })
  })

  it.each([
    [{ samples: 0 }, /samples/],
    [{ samples: 2, temperature: 0 }, /2 greedy answers are all the same; give a temperature above 0/],
    [{ temperature: -1 }, /temperature/],
    [{ seed: 0.5 }, /seed/],
    [{ problems: 0 }, /problems must be an integer of at least 1/],
    [{ loops: [] }, /loops must be a list of at least one number of loops, such as \[1, 2, 4\], got Array of length 0/],
    [{ loops: 2 as never }, /loops must be a list of .*, got 2/],
    [{ loops: [1, 1.5] }, /loops\[1\] must be an integer of at least 1 and at most .*, got 1\.5/],
    [{ loops: [0, 2] }, /loops\[0\] must be an integer of at least 1/],
  ])('rejects %j', async (wrong, message) => {
    using own = await model.clone()
    using trainer = new PretrainTrainer(own, { dataset, evalDataset: dataset, tokenizer, reward: first })
    const { seed, ...asked } = wrong as EvaluateOptions
    const refused = [() => evaluate(model, { ...options, ...wrong }), ...(seed ? [] : [() => trainer.evaluate(asked)])]
    if (asked.loops !== undefined)
      refused.push(() => evaluateSequences(model, [{ tokens: [0, 1], promptLength: 1 }], asked) as never)
    for (const call of refused) {
      const error = await refusal(call)
      expect([error.code, error.message]).toEqual(['INVALID_ARGUMENT', expect.stringMatching(message)])
    }
  })

  it.each([
    [{ onProgress: 5 as never }, /^evaluate: onProgress must be a function, got 5$/],
    [{ environment: 5 as never }, /^evaluate: environment must be a function, got 5$/],
    [{ environment: () => ({ prompt: 'a' }), tools: [{}] as never }, /^evaluate: tools must be a list of tools, as defineTool/],
    [{ maxTurns: 3 }, /^evaluate: maxTurns: needs an environment; set it, or omit maxTurns$/],
    [{ task: tinyTask, dataset: undefined }, /^evaluate: tokenizer: needs a dataset or a corpus .*; set it, or omit tokenizer$/],
    [{ task: tinyTask, dataset: undefined, tokenizer: undefined, chatTemplate: {} }, /^evaluate: chatTemplate: needs a dataset;/],
    [{ task: tinyTask, tokenizr: 1 }, /^evaluate: tokenizr: unknown option; did you mean tokenizer\?$/],
  ])('rejects options that it cannot use: %o', async (wrong, message) => {
    const error = await refusal(() => evaluate(model, { ...options, ...wrong }))
    expect([error.code, error.message]).toEqual(['INVALID_ARGUMENT', expect.stringMatching(message)])
  })
})

describe('the evaluations of a run', () => {
  const evaluationsOf = async (trainer: PretrainTrainer) => {
    const found: Record<number, Metrics> = {}
    for await (const { type, step, metrics } of trainer.run()) if (type === 'eval') found[step] = metrics
    return found
  }
  const shared = { tokenizer, batchSize: 4, steps: 2, evalEvery: 2, evalLoops: [2], evalMaxNewTokens: 3, learningRate: 1e-12 }

  it('report rewards, intervals and pass@k beside the accuracy in fine-tuning, from step 0 on', async () => {
    using own = await model.clone()
    const options = { ...shared, dataset, evalDataset: dataset, reward: first, evalSamples: 4, seed: 5 }
    using trainer = new PretrainTrainer(own, options)
    const found = await evaluationsOf(trainer)
    expect(Object.keys(found)).toEqual(['0', '2'])
    const [direct] = await evaluate(model, {
      dataset,
      tokenizer,
      reward: first,
      loops: [2],
      maxNewTokens: 3,
      samples: 4,
      seed: 5,
    })
    expect(found[0]).toMatchObject({
      'eval/loop_2/reward': direct!.reward,
      'eval/loop_2/reward_low': direct!.interval.low,
      'eval/loop_2/reward_high': direct!.interval.high,
      'eval/loop_2/pass_at_1': direct!.passAt![1],
      'eval/loop_2/pass_at_4': direct!.passAt![4],
    })
    const { 'eval/loop_2/accuracy': accuracy, 'eval/loop_2/accuracy_low': low, 'eval/loop_2/accuracy_high': high } = found[0]!
    expect(low).toBeLessThanOrEqual(accuracy!)
    expect(high).toBeGreaterThanOrEqual(accuracy!)
    const [greedy] = await trainer.evaluate({ problems: 4, samples: 1 })
    expect([greedy!.problems, greedy!.samples, greedy!.passAt]).toEqual([4, 1, undefined])
  })

  it('answer with evalTemperature and evalSamples unless the call says otherwise', async () => {
    using own = await model.clone()
    const options = { ...shared, dataset, evalDataset: dataset, reward: first, evalTemperature: 1e-3 }
    using trainer = new PretrainTrainer(own, { ...options, evalSamples: 3 })
    const distinct = async (asked: Parameters<typeof trainer.evaluate>[0]) =>
      (await trainer.evaluate(asked))[0]!.answers.map((own) => new Set(own.map(({ completion }) => completion)).size)
    expect(await distinct({ samples: 4 })).toEqual(await distinct({ samples: 4, temperature: 1e-3 }))
    expect(await distinct({ samples: 4 })).not.toEqual(await distinct({ samples: 4, temperature: 1 }))
    expect((await refusal(() => trainer.evaluate({ temperature: 0 }))).message).toMatch(
      /^PretrainTrainer\.evaluate: samples: 3 greedy answers are all the same; give a temperature above 0, or ask for one/,
    )
  })

  it.each<[GRPOOptions, number]>([
    [{ exit: { rule: 'gate', threshold: 0.01 } }, 6],
    [{ logitBias: { 0: 50 }, frequencyPenalty: 3 }, 6],
    [{ evalMaxNewTokens: 2 }, 2],
    [{ stop: [1, 'a:'] }, 6],
    [{ bannedTokens: [1], minP: 0.9 }, 6],
  ])('answer alike in single turns, by episodes and by rollout functions: %j', async (change, maxNewTokens) => {
    using own = await LoopLM.create({ ...model.config, total_ut_steps: 3, initializer_range: 0.3 }, { seed: 5 })
    own.tokenizer = tokenizer
    const options = { dataset, evalDataset: dataset, tokenizer, maxNewTokens: 6, steps: 1, ...change }
    const asked = { problems: 6, loops: [1, 3] }
    using plain = new GRPOTrainer(own, { ...options, reward: first })
    const single = await plain.evaluate(asked)
    expect(single[0]!.answers).not.toEqual(single[1]!.answers)

    const environment: Environment = ({ prompt }) => ({
      prompt: prompt as string,
      step: ({ text }) => ({ reward: first('', text) }),
    })
    using episodic = new GRPOTrainer(own, { ...options, environment })
    expect(await episodic.evaluate(asked)).toEqual(single)

    const seen: GenerateOptions[] = []
    const rollout: RolloutFunction = async (problems, { generation }) => {
      seen.push(generation)
      return problems.map((columns) => ({
        ...{ tokens: Int32Array.of(1, 2), promptLength: 1, reward: 0, truncated: false, text: 'x', columns },
      }))
    }
    using written = new GRPOTrainer(own, { ...options, rollout })
    await written.evaluate(asked)
    const stop = change.stop ?? [tokenizer.eosTokenId]
    for (const [i, loops] of asked.loops.entries()) {
      const same = { maxNewTokens, stop, exit: { rule: 'fixed' }, temperature: 0, loops, initialState: 'drawn', stateSeed: 0 }
      expect(seen[i]).toEqual({ ...same, seed: expect.any(Number), signal: expect.any(AbortSignal) })
    }
  })

  const alone: Environment = ({ prompt }) => ({ prompt: prompt as string })
  const forced = { weights: 'uniform', advantage: { loops: { belief: 'forced-exit', value: 'probability' } } } as const
  it.each<[string, ObjectiveTrainerOptions]>([
    ['single turns', { evalEvery: 1 }],
    ['episodes', { evalEvery: 1, environment: alone }],
    ['beliefs in training', { objective: { terms: [forced] } }],
  ])('limit the calls of rewards as rollouts do: %s', async (_, options) => {
    let [running, most] = [0, 0]
    const reward = async () => {
      most = Math.max(most, ++running)
      await new Promise((resolve) => setTimeout(resolve, 20))
      return running--
    }
    const all = { ...options, task: tinyTask, reward, promptsPerStep: 4, groupSize: 2, steps: 1, evalProblems: 4 }
    using own = await tinyModel()
    using trainer = new ObjectiveTrainer(own, { ...all, rewardConcurrency: 2 })
    for await (const _ of trainer.run());
    expect(most).toBe(2)
    using hasty = new ObjectiveTrainer(own, { ...all, rewardTimeout: 1e-3 })
    expect((await refusal(() => hasty.evaluate({ loops: [1] }))).message).toMatch(/no answer within rewardTimeout = 0.001 s/)
  })

  it('use a conversation without its last message as the prompt', async () => {
    using own = await model.clone()
    const chat = tokenizer.withChatTemplate('{% for m in messages %}{{ m.content }}{% endfor %}')
    const rows = ['a:', 'b:'].map((content) => ({
      messages: [
        { role: 'user', content },
        { role: 'assistant', content: 'ab' },
      ],
    })) as unknown as Dataset
    const asked: unknown[] = []
    const reward = (prompt: string, _completion: string, { answer }: Record<string, unknown>) => asked.push([prompt, answer])
    await evaluationsOf(new PretrainTrainer(own, { ...shared, tokenizer: chat, dataset: rows, evalDataset: rows, reward }))
    expect(asked.slice(0, 2)).toEqual([
      ['a:', 'ab'],
      ['b:', 'ab'],
    ])
  })

  it('are rejected for several greedy samples or for rows without a prompt', async () => {
    using own = await model.clone()
    const wrong = () => new PretrainTrainer(own, { evalSamples: 2, evalTemperature: 0 })
    expect((await refusal(wrong)).message).toMatch(/evalTemperature: 2 greedy answers are all the same/)
    const rows = [{ text: 'ab' }] as unknown as Dataset
    const trainer = new PretrainTrainer(own, { ...shared, dataset, evalDataset: rows, reward: first })
    expect((await refusal(() => evaluationsOf(trainer))).message).toMatch(/evalDataset\[0\] field "prompt" is missing: .*text/)
  })
})

it.each([
  ['no list', 5, /sequences must be a non-empty array of \{ tokens, promptLength \}, got 5/],
  ['an empty list', [], /sequences must be a non-empty array/],
  ['tokens alone', [[0, 1, 2]], /sequences\[0\] must be an object with fields such as tokens, got Array of length 3/],
  [
    'a foreign field',
    [{ tokens: [0, 1], prompt: 1 }],
    /sequences\[0\]\.prompt: unknown option; the options are tokens, promptLength, mask/,
  ],
  ['a foreign token', [{ tokens: [0, 99] }], /sequences\[0\]\[1\] .*99/],
  ['a long prompt', [{ tokens: [0, 1, 2], promptLength: 5 }], /promptLengths\[0\] must be an integer from 1 to the 3 tokens/],
  ['a short mask', [{ tokens: [0, 1, 2], mask: [1] }], /mask\[0\] must have length - 1 = 2 entries/],
  ['a mask of weights', [{ tokens: [0, 1, 2], mask: [1, 0.5] }], /mask\[0\]\[1\] must be 0 or 1, got 0.5/],
  ['prompts alone', [{ tokens: [0, 1], promptLength: 2 }], /nothing to predict: pass sequences with tokens after their prompt/],
  ['a mask of zeros', [{ tokens: [0, 1, 2], mask: [0, 0] }], /nothing to predict: .* a mask that counts some of them/],
])('evaluateSequences rejects %s', async (_, sequences, message) => {
  expect((await refusal(() => evaluateSequences(model, sequences as never))).message).toMatch(message)
})

it('evaluateSequences reads masks as arrays of any kind, and prompts of one token by default', async () => {
  const tokens = [0, 1, 2, 1]
  const [want] = await evaluateSequences(model, [{ tokens, promptLength: 1, mask: Uint8Array.of(0, 1, 1) }], { loops: [2] })
  expect(want!.tokens).toBe(2)
  for (const mask of [[0, 1, 1], [false, true, true] as never]) {
    expect(await evaluateSequences(model, [{ tokens, mask }], { loops: [2] })).toEqual([want])
    const cached = await evaluateSequences(model, [{ tokens, mask }], { loops: [2], cacheType: 'model' })
    expect(cached[0]!.loss).toBeCloseTo(want!.loss, 5)
  }
})

it('evaluateSequences reports accuracy with a bootstrap interval weighted by sequence length', async () => {
  const sequences = [
    { tokens: [0, 1, 2, 1, 0, 1], promptLength: 1 },
    { tokens: [1, 0], promptLength: 1 },
    { tokens: [2, 2, 1, 0], promptLength: 2 },
  ]
  const [result] = await evaluateSequences(model, sequences, { loops: [2] })
  const shares = await Promise.all(sequences.map(async (one) => (await evaluateSequences(model, [one], { loops: [2] }))[0]!))
  const weights = [5, 1, 2]
  expect(shares.map(({ tokens }) => tokens)).toEqual(weights)
  const values = shares.map(({ accuracy }) => accuracy)
  expect(result!.accuracy).toBeCloseTo(values.reduce((sum, value, i) => sum + value * weights[i]!, 0) / 8, 12)
  expect(result!.interval).toEqual(await bootstrapInterval(values, { weights }))
  expect(result!.interval).not.toEqual(await bootstrapInterval(values))
  expect(await bootstrapInterval([0, 1, 1], { weights: [1, 1, 1] })).toEqual(await bootstrapInterval([0, 1, 1]))
  expect((await refusal(() => bootstrapInterval([0, 1], { weights: [1] }))).code).toBe('INVALID_SHAPE')
})
