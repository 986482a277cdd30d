import { z } from 'zod'
import { alsoCalled } from '../../validation/schema.js'
import type { Annealed, Normalizer, Objective, ObjectiveInput } from './input.js'

export type {
  AdvantageSpec,
  Annealed,
  BeliefSpec,
  Normalizer,
  Objective,
  ObjectiveInput,
  ObjectiveTerm,
  RewardShaper,
} from './input.js'

/*
 * The objective algebra: rewards → filter → advantage → loop weights → space → channel → surrogate → normalizer
 * → regularizers. Each part is a small value. Types, validation and documentation come from this file. Formulas:
 * docs/objectives.md.
 */

const nonNegative = z.number().min(0)
const positive = z.number().positive()
const share = z.number().min(0).max(1)
const positiveInt = z.int().min(1)

/** A number, or a value that changes linearly from `from` to `to` over the first `steps` steps and then stays. */
export const annealed = z.union([z.number(), z.strictObject({ from: z.number(), to: z.number(), steps: positiveInt })])

/** Changes to the rewards of a group before advantages are computed. They are applied in order. */
export const rewardShaper = z.discriminatedUnion('kind', [
  z
    .strictObject({ kind: z.literal('majority') })
    .describe('TTRL: the reward is 1 for the most frequent answer of the group, else 0.'),
  z
    .strictObject({ kind: z.literal('novelty') })
    .describe(
      'EVOL-RL: majority answers earn 0.5 to 1, the others -1 to -0.5. A response earns more the less it resembles the rest.',
    ),
  z
    .strictObject({ kind: z.literal('length'), weight: annealed.default(1) })
    .describe('Kimi k1.5: adds λ = 0.5 - (length - min) / (max - min) to right answers and min(λ, 0) to wrong ones.'),
  z
    .strictObject({ kind: z.literal('overlong'), maxLength: positiveInt, cache: positiveInt, weight: annealed.default(1) })
    .describe('DAPO: the penalty grows from 0 to 1 over the last `cache` tokens before `maxLength` and stays 1 beyond.'),
  z
    .strictObject({ kind: z.literal('frugal'), weight: annealed.default(1) })
    .describe(
      'IKEA: a right answer earns 0.6, 0.4, 0.2 or 0 more with 1, 2, 3 or more loops (mean exit, rounded). A wrong answer earns 0.05 more beyond one loop.',
    ),
])

export const filter = z.strictObject({
  minGroupStd: nonNegative.default(0).describe('Drop groups whose rewards have a smaller standard deviation.'),
  dropTruncated: z.boolean().default(false).describe('Drop completions that were cut off at the length limit from their group.'),
  keepPerGroup: positiveInt
    .optional()
    .describe(
      'Train only this many completions of each group, the first ones. All of them vote; the baseline is that of the kept ones.',
    ),
  resample: z
    .int()
    .min(0)
    .default(0)
    .describe(
      'DAPO dynamic sampling: sample at most this many more rounds of prompts, until a step has enough groups whose rewards differ.',
    ),
})

/** Rewards of single loops from a belief curve b_0..b_T, the probability of being right when stopping at loop t. */
export const beliefReward = z.strictObject({
  belief: z
    .enum(['token', 'gold-answer', 'forced-exit'])
    .describe(
      'Source of b_t. `token`: the probability of the token. `gold-answer`: the probability of the gold answer, the geometric mean over its tokens. `forced-exit`: the reward of a greedy answer with t loops.',
    ),
  value: z
    .enum(['probability', 'log', 'best-of'])
    .default('log')
    .describe('φ(b): `probability` is b, `log` is log b, `best-of` is 1 - (1 - b)^attempts.'),
  attempts: positiveInt.default(4).describe('`best-of`: number of attempts.'),
  base: z
    .enum(['previous', 'teacher', 'group', 'none'])
    .default('previous')
    .describe(
      'Baseline of φ(b_t). `previous`: the value at the loop before. `teacher`: the value of the reference model at its reference loop (belief `token` only). `group`: the mean of the group at the same loop. `none`: 0.',
    ),
  clip: z.number().optional().describe('η: r_t becomes min(r_t - η, 0).'),
  delta: z
    .boolean()
    .default(false)
    .describe('Use r_t - r_{t+1} instead of r_t. The last loop but one keeps its r_t, and the last loop gets 0.'),
  discount: share.default(0).describe('Discount γ of the return of loop t: G_t = Σ_{k>=t} γ^(k-t) r_k.'),
  cost: nonNegative
    .default(0)
    .describe('Cost of a loop: r_t falls by cost · (t - 1), or with base `teacher` by cost · (t - its reference loop).'),
  costScale: nonNegative.default(0).describe('Base `teacher`: how much more a loop costs where the reference is certain.'),
  threshold: share
    .default(0.5)
    .describe('Base `teacher`: the reference loop is the first one where the cumulative exit probability reaches this.'),
  normalize: z
    .enum(['none', 'loops', 'gain', 'group'])
    .default('none')
    .describe(
      'How G_t is normalized. `none`: not at all. `loops`: z-score over the loops. `gain`: the same, with negative values set to 0. `group`: z-score over the group at each loop (not with belief `token`).',
    ),
  scale: z.number().default(1).describe('Factor α: the advantage of loop t grows by α times the normalized G_t.'),
})

export const advantage = z.strictObject({
  source: z
    .enum(['reward', 'turn', 'one', 'zero'])
    .default('reward')
    .describe(
      'Source of the advantage. `reward`: the reward of the sequence. `turn`: one advantage per turn of an episode, from the rewards of its turns. `one`: 1 for every sequence (imitation). `zero`: 0, so that only `loops` counts.',
    ),
  discount: share
    .default(1)
    .describe(
      'Source `turn`: discount γ of the return of turn k, G_k = Σ_{m>=k} γ^(m-k) r_m. The last turn also gets the reward that no turn earned.',
    ),
  gain: z
    .strictObject({
      weight: nonNegative.default(1).describe('Weight of the gain.'),
      value: z.enum(['probability', 'log']).default('probability').describe('φ(b): `probability` is b, `log` is log b.'),
      prefix: z.string().default('').describe('Text before the gold answer when its probability is measured.'),
    })
    .optional()
    .describe(
      'IGPO: adds the gain of a turn to its reward. The gain is the rise of φ(b) during the turn. b is the probability of the gold answer, the geometric mean over its tokens.',
    ),
  baseline: z.enum(['group', 'none']).default('group').describe('Whether the mean of the `group` is subtracted.'),
  scale: z
    .enum(['group', 'population', 'none'])
    .optional()
    .describe(
      'Divisor of the advantages. `group`: the sample standard deviation of the group (default with baseline `group`). `population`: the population standard deviation. `none`: 1.',
    ),
  strata: z
    .strictObject({
      by: z
        .enum(['given', 'truncated', 'length', 'exit-loop'])
        .describe(
          'How responses are sorted into strata. `given`: by `strata` of the batch. `truncated`: cut off or finished. `length`: by eighths of the longest response. `exit-loop`: by the mean exit loop, rounded.',
        ),
      blend: share.default(0.5).describe('Share of the z-score of the stratum; the rest comes from the z-score of the group.'),
    })
    .optional()
    .describe('SAN: z-scores within strata of the group.'),
  cost: z
    .strictObject({
      by: z.enum(['given', 'exit-loop', 'length']).default('exit-loop').describe('Cost of a response, in [0, 1].'),
      shape: nonNegative.default(0.25).describe('Weight λ_e of the saving after the sigmoid.'),
      price: nonNegative.default(0.05).describe('Weight λ_g of the plain cost.'),
      pivot: share.default(0.4).describe('Expected cost c0.'),
      pivotShare: share.default(0.5).describe('Share α of the mean cost of the group in the pivot.'),
      temperature: positive.default(0.15).describe('Temperature τ of the sigmoid.'),
      rightAbove: share.default(0.35).describe('A reward above this counts as right.'),
    })
    .optional()
    .describe('CAPO: cheap right answers gain and expensive ones lose, but a right answer keeps at least .001.'),
  batch: z.boolean().default(false).describe('BN-GSPO: take the z-score over the batch as well.'),
  sign: z.enum(['all', 'negative', 'positive']).default('all').describe('Keep `all` advantages, or only those of one sign.'),
  positiveWeight: nonNegative.default(1).describe('Positive advantages are multiplied by this (weighted NSR).'),
  loops: beliefReward.optional().describe('Rewards of single loops. They are added to the advantage.'),
})

export const loopWeights = z.union([
  z.enum(['last', 'uniform', 'progressive', 'exit-pdf', 'exit-loop']),
  z.strictObject({ kind: z.literal('progressive'), alpha: z.number() }),
  z.strictObject({ kind: z.literal('one-hot'), loop: positiveInt }),
  z.strictObject({
    kind: z.literal('given'),
    weights: z
      .array(nonNegative)
      .min(1)
      .readonly()
      .refine((weights) => weights.some((weight) => weight > 0), { message: 'at least one weight must be above 0' }),
  }),
  z.strictObject({ kind: z.literal('exit-pdf'), detach: z.boolean().default(true), temperature: positive.default(1) }),
])

const clip = {
  epsilonLow: nonNegative.default(0.2).meta(alsoCalled('low')),
  epsilonHigh: nonNegative.default(0.2).meta(alsoCalled('high')),
}

export const surrogate = z.union([
  z.enum(['reinforce', 'ppo', 'cispo', 'gspo', 'k15']),
  z.strictObject({ kind: z.literal('ppo'), ...clip, dualClip: z.number().gt(1).optional().meta(alsoCalled('dual')) }),
  z.strictObject({ kind: z.literal('cispo'), cap: positive.default(5) }),
  z.strictObject({ kind: z.literal('gspo'), ...clip }),
  z.strictObject({ kind: z.literal('k15'), tau: nonNegative.default(0.1) }),
])

export const normalizer: z.ZodType<Normalizer, Normalizer> = z.enum(['response-mean', 'token-mean', 'constant'])

export const term = z.strictObject({
  channel: z
    .enum(['token', 'exit'])
    .default('token')
    .describe(
      'What is credited. `token`: the log-probability of the token at every loop. `exit`: the log-probability of the loop at which it exited.',
    ),
  space: z
    .enum(['conditional', 'marginal'])
    .default('conditional')
    .describe(
      'What the response is conditioned on. `conditional`: the prompt. `marginal`: only a start token in place of the prompt (PreRL).',
    ),
  advantage: advantage.prefault({}).describe('Advantages A.'),
  weights: loopWeights
    .default('exit-pdf')
    .describe('Weights of the loops in the loss of a token; they sum to 1.')
    .meta(alsoCalled('credit')),
  surrogate: surrogate.default('reinforce').describe('Loss of a token, from its log-probability, ratio and advantage.'),
  combine: z
    .enum(['outer', 'inner'])
    .default('outer')
    .describe(
      '`outer`: the weighted sum of the surrogates of the loops. `inner`: the surrogate of the weighted sum of their log ratios.',
    ),
  normalizer: normalizer
    .default('response-mean')
    .describe('How the losses of tokens are averaged.')
    .meta(alsoCalled('aggregate')),
  draws: positiveInt.optional().describe('Exit channel: exits to draw per token if the rollouts have none. Default: 8.'),
  weight: annealed.default(1).describe('Weight of the term.'),
})

const objective = z.strictObject({
  rewards: z.array(rewardShaper).readonly().default([]).describe('Changes to the rewards of a group, in this order.'),
  filter: filter.prefault({}).describe('Which rollouts to train on.'),
  exits: z
    .literal('sampled')
    .optional()
    .describe('Rollouts draw the loop of each token from its exit distribution, and training replays these exits.'),
  terms: z.array(term).min(1).readonly().describe('The policy gradient, a sum of terms.'),
  kl: z
    .strictObject({
      beta: nonNegative,
      loops: z.enum(['last', 'uniform', 'weights']).default('last'),
      reference: z.enum(['frozen', 'ema']).default('frozen'),
    })
    .optional()
    .describe('KL divergence (k3 estimate) to the starting model or to the moving average.'),
  lazy: z
    .strictObject({
      weight: nonNegative.default(0.2),
      gate: z.enum(['token', 'segment', 'response', 'loop']).default('response'),
      loops: z.enum(['last', 'uniform', 'weights']).default('weights'),
      normalizer: z.enum(['all', 'preserving']).default('all').meta(alsoCalled('norm')),
      old: z.enum(['rollout', 'ema']).default('rollout'),
    })
    .optional()
    .describe(
      'LLDS: penalty on responses with A >= 0 whose likelihood fell since the rollout, or is lower than under the moving average.',
    ),
  entropy: z
    .strictObject({ token: annealed.default(0), exit: annealed.default(0) })
    .prefault({})
    .describe('Weights of the entropy of the tokens and of the entropy of the exit distribution.'),
  emaDecay: share.default(0.995).describe('Decay of the moving average, if one is used.'),
})

/** Checks an {@link ObjectiveInput} and fills in its defaults. */
export const objectiveSchema: z.ZodType<Objective, ObjectiveInput> = objective
// the line above checks that the types of input.ts accept what the schema accepts and returns; these two check the reverse
true satisfies [ObjectiveInput] extends [z.input<typeof objective>] ? true : false
true satisfies [Objective] extends [z.output<typeof objective>] ? true : false

/** The value of an annealed number at a step, counted from 0. */
export function valueAt(value: Annealed, step: number): number {
  if (typeof value === 'number') return value
  return value.from + (value.to - value.from) * Math.min(step / value.steps, 1)
}
