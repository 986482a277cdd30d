// What batches and options of trainers may hold: fields that are not read, arrays that change afterwards, mistakes by name.
import { describe, expect, expectTypeOf, it } from 'vitest'
import { LoopLM } from '../../src/model/model.js'
import type { UpdateMetrics } from '../../src/rl/events.js'
import { GRPOTrainer } from '../../src/rl/grpo.js'
import { LoopRPTTrainer } from '../../src/rl/looprpt.js'
import { lossMetrics } from '../../src/rl/loss-metrics.js'
import { ObjectiveTrainer } from '../../src/rl/objective-trainer.js'
import type { ObjectiveTrainerOptions } from '../../src/rl/options.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { RLTTTrainer } from '../../src/rl/rltt.js'
import { refusal } from '../refusal.js'
import { difference, parametersOf, tinyBatch, tinyConfig, tinyModel } from '../tiny.js'

const batch = { ...tinyBatch, rewards: [1, 0, 0, 0, 1, 1, 0, 0] }
const { sequences } = batch
const loops = tinyConfig.total_ut_steps
const base = { groupSize: 4, learningRate: 1e-2 } as const
const rows = (length: (tokens: number) => number, value = 0) => sequences.map((s) => Array<number>(length(s.length)).fill(value))

describe('batch fields that the objective does not read', () => {
  const unread: Record<string, object> = {
    'exits and noise of LoopRPT': { exits: rows((n) => 2 * (n - 1)), noise: rows((n) => n) },
    'oldLogprobs of any content': { oldLogprobs: rows((n) => n - 1, Number.NaN) },
    'oldLogprobs of responses alone': { oldLogprobs: rows(() => 1) },
    'oldLogprobs for nothing': { oldLogprobs: [] },
    'referenceLogprobs of another shape': { referenceLogprobs: rows(() => 1) },
    nulls: { oldLogprobs: null, referenceLogprobs: null, mask: null, exits: null, advantages: null, strata: null, costs: null },
    'values of other kinds': {
      costs: 3,
      strata: 'x',
      answers: 'x',
      embeddings: {},
      exitLoops: true,
      beliefs: 1,
      segments: [null],
    },
  }
  it.each(Object.entries(unread))('have no effect: %s', async (_, extra) => {
    using model = await tinyModel()
    for (const Trainer of [RLTTTrainer, GRPOTrainer]) {
      using trainer = new Trainer(model, { ...base, surrogate: 'reinforce' })
      expect(await trainer.gradients({ ...batch, ...extra })).toEqual(await trainer.gradients(batch))
    }
    using pretrain = new PretrainTrainer(model)
    expect(await pretrain.gradients({ ...batch, ...extra })).toEqual(await pretrain.gradients(batch))
  })

  it('have no effect: rewards beside advantages', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, base)
    const advantages = [1, -1, 1, -1, 0, 0, 0, 0]
    const { rewards: _, ...rest } = batch
    expect(await trainer.gradients({ ...rest, advantages, rewards: [1] })).toEqual(
      await trainer.gradients({ ...rest, advantages }),
    )
  })

  it('have no effect in LoopRPT, where null counts as omitted', async () => {
    using model = await tinyModel()
    using trainer = new LoopRPTTrainer(model, { rollouts: 2, rho: 1 })
    const extra = { noise: null, exits: null, promptLengths: null, oldLogprobs: [1], rewards: 'x', mask: null }
    const given = { ...batch, ...extra } as unknown as typeof batch
    expect(await trainer.gradients(given)).toEqual(await trainer.gradients({ sequences }))
  })

  it('are checked and rejected by an objective that reads them', async () => {
    using model = await tinyModel()
    const refused = async (trainer: RLTTTrainer | GRPOTrainer | ObjectiveTrainer, extra: object) =>
      (await refusal(() => trainer.gradients({ ...batch, ...extra }))).message
    expect(await refused(new GRPOTrainer(model, base), { oldLogprobs: [] })).toMatch(/oldLogprobs has 0 entries for 8 sequences/)
    const kl = new RLTTTrainer(model, { ...base, beta: 0.1 })
    expect(await refused(kl, { referenceLogprobs: 3 })).toMatch(/referenceLogprobs must be an array with one entry.*got 3/)
    const of = (objective: ObjectiveTrainerOptions['objective']) => new ObjectiveTrainer(model, { ...base, objective })
    const strata = of({ terms: [{ advantage: { strata: { by: 'given' } } }] })
    expect(await refused(strata, { strata: [0, 0, 0, 0, 1, 1, 1, -1] })).toMatch(/strata\[7\] is -1; strata are integers/)
    const costs = of({ terms: [{ advantage: { cost: { by: 'given' } } }] })
    expect(await refused(costs, { costs: Array(8).fill(null) })).toMatch(/costs\[0\] is null/)
    expect(await refused(costs, { costs: Array(8).fill(1.5) })).toMatch(/costs\[0\] is 1\.5; costs are numbers from 0 to 1/)
    const ttrl = of('ttrl')
    expect(await refused(ttrl, { answers: [...Array(7).fill(null), undefined] })).toMatch(
      /answers\[7\] is undefined; answers are/,
    )
    expect(await refused(ttrl, { answers: Array(8).fill(7) })).toMatch(/answers\[0\] is 7; answers are strings, or null/)
    const cut = of({ terms: [{}], filter: { dropTruncated: true } })
    expect(await refused(cut, { truncated: Array(8).fill(1) })).toMatch(/truncated\[0\] is 1; truncated are true or false/)
    const belief = of({ terms: [{ advantage: { loops: { belief: 'gold-answer' } } }] })
    expect(await refused(belief, { beliefs: Array(8).fill(null) })).toMatch(/beliefs\[0\] must have loops \+ 1 = 4 entries.*null/)
    expect(await refused(of({ terms: [{ channel: 'exit' }] }), { exits: rows((n) => 2 * (n - 1)) })).toMatch(/exits\[0\]/)
  })
})

describe('an unknown field of a batch', () => {
  const refused: [string, object, RegExp][] = [
    ['masks', { masks: rows((n) => n - 1, 1) }, /update: masks: unknown field; did you mean mask\?$/],
    ['reward', { reward: batch.rewards }, /reward: unknown field; did you mean rewards\?$/],
    ['prompt_lengths', { prompt_lengths: batch.promptLengths }, /prompt_lengths: unknown field; did you mean promptLengths\?$/],
    ['old_logprobs', { old_logprobs: [] }, /old_logprobs: unknown field; did you mean oldLogprobs\?$/],
    ['a column of the data set', { source: 'a' }, /source: unknown field; the fields are sequences, .*, columns$/],
    ['an unknown name that is null', { weights: null }, /weights: unknown field/],
  ]
  it.each(refused)('is rejected by name: %s', async (_, extra, message) => {
    using model = await tinyModel()
    const before = await parametersOf(model)
    for (const Trainer of [RLTTTrainer, GRPOTrainer, ObjectiveTrainer]) {
      using trainer = new Trainer(model, base)
      const error = await refusal(() => trainer.update({ ...batch, ...extra }))
      expect([error.code, trainer.step]).toEqual(['INVALID_ARGUMENT', 0])
      expect(error.message).toMatch(message)
      await expect(trainer.gradients({ ...batch, ...extra })).rejects.toThrow('unknown field')
    }
    expect(await parametersOf(model)).toEqual(before)
  })

  it.each([
    ['labels', { labels: sequences }, /labels: unknown field; the fields are sequences, promptLengths/],
    ['attention_mask', { attention_mask: [] }, /attention_mask: unknown field/],
    ['promptLength', { promptLength: 4 }, /promptLength: unknown field; did you mean promptLengths\?$/],
  ])('is rejected by pre-training and LoopRPT: %s', async (_, extra, message) => {
    using model = await tinyModel()
    for (const trainer of [new PretrainTrainer(model), new LoopRPTTrainer(model)])
      expect((await refusal(() => trainer.update({ sequences, ...extra }))).message).toMatch(message)
  })
})

describe('a mask', () => {
  const mask = sequences.map((s, i) => Array.from({ length: s.length - 1 }, (_, j) => Number(j !== batch.promptLengths[i] - 1)))
  const later = { sequences, promptLengths: batch.promptLengths.map((n) => n + 1) }

  it('excludes predictions from Stage I as if they were part of the prompt', async () => {
    using model = await tinyModel()
    using trainer = new PretrainTrainer(model)
    const masked = await trainer.gradients({ ...batch, mask })
    const want = await trainer.gradients(later)
    expect(masked.loss).toBeCloseTo(want.loss, 12)
    expect(difference(masked.gradients, want.gradients)).toBeLessThan(1e-12)
    expect(masked.loss).not.toBeCloseTo((await trainer.gradients(batch)).loss, 3)
    const nothing = { ...batch, mask: rows((n) => n - 1) }
    expect((await refusal(() => trainer.gradients(nothing))).message).toMatch(/no sequence has a token .* that the mask keeps/)
    expect((await refusal(() => trainer.gradients({ ...batch, mask: [[1]] }))).message).toMatch(/mask has 1 entries for 8/)
  })

  it('is passed to an objective function', async () => {
    using model = await tinyModel()
    const seen: unknown[] = []
    using trainer = new ObjectiveTrainer(model, {
      ...base,
      objective: (context) => {
        seen.push(context.mask, context.lengthNormalizers)
        return { loss: 0, coefficients: context.scores.logprobs.map((row) => row.map(() => 0)) }
      },
    })
    await trainer.gradients({ ...batch, mask })
    const counted = mask.map((row, i) => row.slice(batch.promptLengths[i] - 1).reduce((a, b) => a + b))
    const used = [...counted.keys()].filter((i) => counted[i]! > 0)
    expect(seen).toEqual([used.map((i) => mask[i]), used.map((i) => 1 / (used.length * counted[i]!))])
  })

  it('splits the Stage II loss by tokens, and cuts a masked tail off in LoopRPT', async () => {
    using model = await tinyModel()
    using gate = new PretrainTrainer(model, { stage: 2 })
    const { sequences, promptLengths } = batch
    const rest = mask.map((row) => row.map((kept) => 1 - kept))
    const part = async (of?: number[][]) => {
      const { loss, gradients } = await gate.gradients({ sequences, promptLengths, ...(of && { mask: of }) })
      const kept = (of ?? mask.map((row) => row.map(() => 1))).flatMap((row, i) => row.slice(promptLengths[i]! - 1))
      const tokens = kept.reduce((sum, one) => sum + one, 0)
      return [loss, ...[...gradients.values()].flatMap((values) => Array.from(values))].map((x) => x * tokens)
    }
    const [whole, one, other] = [await part(), await part(mask), await part(rest)]
    expect(one[0]).toBeGreaterThan(0)
    expect(other[0]).toBeGreaterThan(0)
    for (const [i, x] of whole.entries()) expect(Math.abs(x - one[i]! - other[i]!)).toBeLessThan(1e-12)

    using looprpt = new LoopRPTTrainer(model, { rollouts: 2, rho: 0.7 })
    const cut = sequences.map((tokens, i) => [...tokens].slice(0, Math.max(promptLengths[i]! + 1, tokens.length - 1)))
    const tail = sequences.map((tokens, i) => Array.from({ length: tokens.length - 1 }, (_, j) => Number(j < cut[i]!.length - 1)))
    expect(tail.flat()).toContain(0)
    const masked = await looprpt.gradients({ sequences, promptLengths, mask: tail })
    expect(masked).toEqual(await looprpt.gradients({ sequences: cut, promptLengths }))
    const nothing = { sequences, promptLengths, mask: sequences.map((tokens) => new Array<number>(tokens.length - 1).fill(0)) }
    expect((await refusal(() => gate.gradients(nothing))).message).toMatch(/no sequence has a token .* that the mask keeps/)
    expect((await refusal(() => looprpt.gradients({ ...nothing, mask: [[1]] }))).message).toMatch(/mask has 1 entries/)
  })
})

describe('columns of a batch', () => {
  it('are passed to an objective function', async () => {
    using model = await tinyModel()
    const seen: unknown[] = []
    using trainer = new ObjectiveTrainer(model, {
      ...base,
      objective: ({ scores, columns }) => {
        seen.push(columns)
        return { loss: 0, coefficients: scores.logprobs.map((row) => row.map(() => 0)) }
      },
    })
    const columns = sequences.map((_, id) => ({ id, source: 'a' }))
    await trainer.gradients({ ...batch, columns })
    expect(seen).toEqual([columns])
    await trainer.gradients({ ...batch, rewards: [null, ...batch.rewards.slice(1)], columns })
    expect(seen[1]).toEqual(columns.slice(1)) // those of the sequences that count
    await trainer.gradients(batch)
    expect(seen[2]).toBeUndefined()
    expect((await refusal(() => trainer.gradients({ ...batch, columns: columns.slice(1) }))).message).toMatch(/columns has 7/)
  })
})

describe('a batch', () => {
  it('can be changed by the caller as soon as the call returns', async () => {
    using model = await tinyModel()
    using rltt = new RLTTTrainer(model, base)
    using grpo = new GRPOTrainer(model, base)
    using pretrain = new PretrainTrainer(model)
    using looprpt = new LoopRPTTrainer(model, { rollouts: 2, rho: 1 })
    const fresh = () => ({
      sequences: sequences.map((s) => Int32Array.from(s)),
      promptLengths: Int32Array.from(batch.promptLengths),
      rewards: [...batch.rewards],
      oldLogprobs: rows((n) => n - 1, -2),
      mask: rows((n) => n - 1, 1),
    })
    for (const trainer of [rltt, grpo, pretrain, looprpt]) {
      const want = await trainer.gradients(fresh())
      const given = fresh()
      const pending = trainer.gradients(given)
      for (const row of [...given.sequences, ...given.oldLogprobs, ...given.mask]) row.fill(0)
      given.promptLengths.fill(99)
      given.rewards.fill(Number.NaN)
      given.sequences.length = 0
      expect(await pending).toEqual(want)
    }
  })

  it('can have its turns changed as soon as the call returns', async () => {
    using model = await tinyModel()
    using trainer = new ObjectiveTrainer(model, { groupSize: 4, objective: { terms: [{ advantage: { source: 'turn' } }] } })
    const fresh = () => ({ ...batch, turns: sequences.map(({ length }, i) => [{ begin: 4, end: length, reward: i % 3 }]) })
    const want = await trainer.gradients(fresh())
    const given = fresh()
    const pending = trainer.gradients(given)
    for (const turn of given.turns.flat()) turn.reward = 1
    expect(await pending).toEqual(want)
  })

  it.each([
    [[1, 0, 1, 0], 'a row with a gradient'],
    [[1, 1, 1, 0], 'a row of a flat group'],
    [[null, null, 1, 0], 'a row without a reward'],
  ])('is rejected for an invalid token id: rewards %j, %s', async (rewards) => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { groupSize: 2 })
    const given = { sequences: [[1, -2, 3, 99], ...sequences.slice(1, 4)], promptLengths: [2, 4, 4, 4], rewards }
    const { code, message } = await refusal(() => trainer.gradients(given))
    expect([code, message]).toEqual([
      'INVALID_ARGUMENT',
      'RLTTTrainer.gradients: sequences[0][1] is -2; token ids are integers from 0 to 11',
    ])
  })

  it('has its token ids checked in prompts without a response', async () => {
    using model = await tinyModel()
    const given = {
      sequences: [
        [1, 99],
        [1, 2],
      ],
      promptLengths: [2, 1],
    }
    for (const trainer of [new PretrainTrainer(model), new LoopRPTTrainer(model)])
      expect((await refusal(() => trainer.gradients(given))).message).toMatch(/sequences\[0\]\[1\] is 99/)
  })

  const mistakes: [string, unknown, RegExp][] = [
    ['nothing', undefined, /update: a batch must be an object with sequences.*got undefined/],
    ['null', null, /a batch must be an object.*got null/],
    ['a list', [], /a batch must be an object.*got Array of length 0/],
    ['no sequences', {}, /sequences must be a non-empty array of token id arrays, got undefined/],
    ['sequences [null]', { ...batch, sequences: [null] }, /sequences\[0\] must be number\[\] or Int32Array, got null/],
    ['no promptLengths', { ...batch, promptLengths: null }, /promptLengths is missing/],
    ['promptLengths 4', { ...batch, promptLengths: 4 }, /promptLengths must be an array with one entry.*got 4/],
    ['promptLengths [null, …]', { ...batch, promptLengths: Array(8).fill(null) }, /promptLengths\[0\] must be.*got null/],
    ["promptLengths ['4', …]", { ...batch, promptLengths: Array(8).fill('4') }, /promptLengths\[0\] must be.*got '4'/],
    ['rewards null', { ...batch, rewards: null }, /a batch needs rewards or advantages/],
    ['rewards text', { ...batch, rewards: 'aabbccdd' }, /rewards must be an array.*got 'aabbccdd'/],
    ["rewards ['1', …]", { ...batch, rewards: Array(8).fill('1') }, /reward 0 is '1'; rewards are finite numbers, or null/],
    [
      "advantages ['1', …]",
      { ...batch, advantages: Array(8).fill('1') },
      /advantages\[0\] is '1'; advantages are finite numbers/,
    ],
    ['mask [null, …]', { ...batch, mask: Array(8).fill(null) }, /mask\[0\] must have length - 1 = 5 entries, got null/],
    [
      'mask [[null, …], …]',
      { ...batch, mask: rows((n) => n - 1).map((row) => row.map(() => null)) },
      /mask\[0\]\[0\] must be 0 or 1, got null/,
    ],
  ]
  it.each(mistakes)('is rejected by name: %s', async (_, given, message) => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, base)
    const error = await refusal(() => trainer.update(given as typeof batch))
    expect(['INVALID_ARGUMENT', 'INVALID_SHAPE']).toContain(error.code)
    expect(error.message).toMatch(message)
    expect(error.message).toMatch(/^RLTTTrainer\.update: /)
  })

  it.each([
    ['nothing', undefined, /a batch must be an object/],
    ['sequences [null]', { sequences: [null] }, /sequences\[0\] must be number\[\] or Int32Array, got null/],
    ['sequences text', { sequences: 'x' }, /sequences must be a non-empty array of token id arrays, got 'x'/],
  ])('is rejected by name in pre-training and LoopRPT: %s', async (_, given, message) => {
    using model = await tinyModel()
    for (const trainer of [new PretrainTrainer(model), new LoopRPTTrainer(model)])
      expect((await refusal(() => trainer.update(given as unknown as typeof batch))).message).toMatch(message)
  })
})

describe('draws for LoopRPT', () => {
  // two rollouts each of a sequence of two tokens and of one of three
  const pair = { sequences: [Int32Array.of(1, 2), Int32Array.of(3, 4, 5)] }
  const exits = (...first: number[]) => [first, Int32Array.of(0, 1, 2, 0)]
  const wrong: [string, object, RegExp][] = [
    ['a loop and a half', { exits: exits(0, 1.5) }, /exits \(entry 1 of all\) must be an integer.*at most 2, got 1\.5/],
    ['loop 2 ** 32', { exits: exits(0, 2 ** 32) }, /exits.*got 4294967296/],
    ['a loop after the last', { exits: exits(0, 3) }, /exits.*got 3/],
    ['exits of a third sequence', { exits: [...exits(0, 1), [0]] }, /exits has 3 entries for 2 sequences/],
    ['exits that are no array', { exits: 1 }, /exits must be an array/],
    [
      'noise of a third sequence',
      { noise: [192, 288, 3].map((n) => new Float64Array(n)) },
      /noise has 3 entries for 2 sequences/,
    ],
  ]
  it.each(wrong)('are rejected if invalid: %s', async (_, draws, message) => {
    using model = await tinyModel()
    using trainer = new LoopRPTTrainer(model, { rollouts: 2 })
    expect((await refusal(() => trainer.gradients({ ...pair, ...draws }))).message).toMatch(message)
    await expect(trainer.gradients({ ...pair, exits: exits(0, 2) })).resolves.toHaveProperty('loss')
  })
})

describe('oldLogprobs', () => {
  it('are needed only for the one loop that has importance ratios', async () => {
    using model = await tinyModel()
    const reference = (await model.score(sequences)).logprobs.map((row) => row.map((l) => l - 0.3))
    const whole = reference.map((row) => row.map((l, k) => l + 0.1 * Math.sin(k)))
    const last = whole.map((row) => row.slice(row.length - row.length / loops))
    const objective = { terms: [{ weights: 'last', surrogate: 'ppo' }], kl: { beta: 0.1, loops: 'uniform' } } as const
    using trainer = new ObjectiveTrainer(model, { ...base, objective })
    const given = { ...batch, referenceLogprobs: reference }
    const want = await trainer.gradients({ ...given, oldLogprobs: whole })
    const got = await trainer.gradients({ ...given, oldLogprobs: last })
    expect(got.loss).toBeCloseTo(want.loss, 12)
    expect(difference(got.gradients, want.gradients)).toBeLessThan(1e-12)
    using early = new ObjectiveTrainer(model, {
      ...base,
      objective: { ...objective, terms: [{ weights: { kind: 'one-hot', loop: 2 }, surrogate: 'ppo' }] },
    })
    const second = whole.map((row) => row.slice(row.length / loops, (2 * row.length) / loops))
    expect((await early.gradients({ ...given, oldLogprobs: second })).loss).toBeCloseTo(
      (await early.gradients({ ...given, oldLogprobs: whole })).loss,
      12,
    )
    using rltt = new RLTTTrainer(model, { ...base, weights: 'last', surrogate: 'ppo', beta: 0.1 })
    await expect(rltt.gradients({ ...batch, oldLogprobs: last })).resolves.toHaveProperty('loss')
  })

  it('are rejected with advice if they cover one loop of several with ratios', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...base, surrogate: 'ppo' })
    const { code, message } = await refusal(() => trainer.update({ ...batch, oldLogprobs: rows((n) => n - 1, -1) }))
    expect(code).toBe('INVALID_SHAPE')
    expect(message).toMatch(
      /oldLogprobs\[0\] has length - 1 = 5 entries.*Pass loops × \(length - 1\) = 15 entries.*omit oldLogprobs/,
    )
    const oldLogprobs = (await model.score(sequences)).logprobs
    const fresh = await trainer.gradients(batch)
    expect(difference((await trainer.gradients({ ...batch, oldLogprobs })).gradients, fresh.gradients)).toBeLessThan(1e-12)
  })
})

describe('options', () => {
  it('the normalizer "constant" defaults to the length of the longest response', async () => {
    using model = await tinyModel()
    const lossOf = async (options: object) => {
      using trainer = new RLTTTrainer(model, { ...base, normalizer: 'constant', ...options })
      return (await trainer.gradients(batch)).loss
    }
    const longest = Math.max(...sequences.map((s, i) => s.length - batch.promptLengths[i]))
    expect(longest).toBe(3)
    expect(await lossOf({})).toBe(await lossOf({ constantNormalizerLength: longest }))
    expect(await lossOf({})).toBeCloseTo(await lossOf({ tokensPerMicroBatch: 8 }), 12)
    expect(await lossOf({ maxNewTokens: 6 })).toBeCloseTo((await lossOf({})) / 2, 12)
  })

  it.each(['ppo', 'cispo'] as const)('detachWeights: false is rejected with the surrogate %s', async (surrogate) => {
    using model = await tinyModel()
    const options = { ...base, detachWeights: false, surrogate }
    const { code, message } = await refusal(() => new RLTTTrainer(model, options))
    expect(code).toBe('INVALID_CONFIG')
    expect(message).toMatch(/detachWeights: false.*surrogate 'reinforce'.*omit detachWeights/)
    const unread = await refusal(() => new RLTTTrainer(model, { ...options, weights: 'uniform' }))
    expect(unread.message).toMatch(/detachWeights: needs the weights 'exit-pdf'; set it, or omit detachWeights/)
  })

  it('a value that has no JSON form is rejected by the name of its option', async () => {
    using model = await tinyModel()
    const weights: Record<string, unknown> = {}
    weights.self = weights
    const { message } = await refusal(() => new RLTTTrainer(model, { weights: weights as unknown as 'last' }))
    expect(message).toMatch(/weights: .*got an object/)
  })

  it('attached weights of a term are rejected at a temperature other than 1', async () => {
    using model = await tinyModel()
    const weights = { kind: 'exit-pdf', detach: false, temperature: 2 } as const
    const { message } = await refusal(() => new ObjectiveTrainer(model, { objective: { terms: [{ weights }] } }))
    expect(message).toMatch(/terms\.0: weights: detach: false needs.*temperature 1/)
  })

  const kinds = { RLTTTrainer, GRPOTrainer, ObjectiveTrainer, PretrainTrainer, LoopRPTTrainer }
  it.each(Object.entries(kinds))('%s rejects a model that is not a LoopLM', async (name, Kind) => {
    for (const [model, shown] of [
      [undefined, 'undefined'],
      [{}, 'an object'],
      [null, 'null'],
    ] as const) {
      const { code, message } = await refusal(() => new Kind(model as unknown as LoopLM))
      expect([code, message]).toEqual([
        'INVALID_ARGUMENT',
        `${name}: model must be a LoopLM, as LoopLM.create and LoopLM.fromPretrained resolve to, got ${shown}`,
      ])
    }
  })

  it('LoopRPT rejects a teacher that is not a LoopLM', async () => {
    using model = await tinyModel()
    const teacher = { score() {} } as unknown as LoopLM
    const { code, message } = await refusal(() => new LoopRPTTrainer(model, { teacher }))
    expect([code, message]).toEqual(['INVALID_CONFIG', 'LoopRPTTrainer: teacher: must be a LoopLM'])
    using other = await LoopLM.create(tinyConfig, { device: 'reference', seed: 2 })
    using trainer = new LoopRPTTrainer(model, { teacher: other, rollouts: 2 })
    await expect(trainer.update(batch)).resolves.toHaveProperty('loss')
  })
})

describe('types', () => {
  interface Rollouts {
    sequences: number[][]
    promptLengths: number[]
    rewards: number[]
  }

  it('update returns loss and grad_norm, and the compiler checks the fields of a batch', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, base)
    const metrics = await trainer.update(batch)
    const loss: number = metrics.loss
    const norm: number = metrics.grad_norm
    expect([loss, norm].every(Number.isFinite)).toBe(true)
    expectTypeOf(metrics).toEqualTypeOf<UpdateMetrics>()
    expectTypeOf(metrics.kl).toEqualTypeOf<number | undefined>()
    const literal: Parameters<RLTTTrainer['update']>[0] = { ...batch, segments: [] }
    const rollouts: Rollouts = batch // an interface has no index signature
    using pretrain = new PretrainTrainer(model)
    using looprpt = new LoopRPTTrainer(model, { rollouts: 2 })
    for (const given of [literal, rollouts]) {
      for (const each of [trainer, pretrain, looprpt]) expect((await each.gradients(given)).loss).toBeTypeOf('number')
    }
    // @ts-expect-error: a field that there is not
    await expect(trainer.update({ ...batch, masks: rows((n) => n - 1, 1) })).rejects.toThrow(/masks/)
    // @ts-expect-error: a field that there is not
    await expect(pretrain.update({ sequences, labels: sequences })).rejects.toThrow(/labels/)
    // @ts-expect-error: a field that is read keeps its type
    await expect(trainer.update({ ...batch, rewards: 'x' })).rejects.toThrow(/rewards/)
  })

  it('a loss of NaN stays in the metrics', () => {
    const measured = { loss: Number.NaN, policyLoss: 0, kl: 0, lazyLoss: 0, entropy: 1, ratio: 1, clipLow: 0, clipHigh: 0 }
    const more = {
      responseTokens: 1,
      exitLoop: 1,
      exitEntropy: 0,
      loops: [1],
      loopLogprob: [Number.NaN],
      loopWeight: [1],
      inputVectors: [],
      loopExit: [1],
    }
    const metrics = lossMetrics({ ...measured, ...more }, { ratio: false, kl: false })
    expect(metrics.loss).toBeNaN()
    expect(metrics).not.toHaveProperty('loop_1/logprob')
  })
})
