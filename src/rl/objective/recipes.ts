import type { ObjectiveInput } from './schema.js'

/** An objective for some steps, up to step `until` (exclusive). The last phase has no end. */
export interface Phase {
  /** The first step after the phase. Absent: to the end of the run. */
  until?: number | undefined
  /** The objective of these steps. */
  objective: ObjectiveInput
}

/** Recipes by name: published methods, methods carried over to loops, and our own. */
export interface Recipes {
  /** The last loop, with clipped ratios and advantages within the group (arXiv 2402.03300). */
  readonly grpo: ObjectiveInput
  /** GRPO without the standard deviation, and with a constant length (arXiv 2503.20783). */
  readonly 'dr-grpo': ObjectiveInput
  /** GRPO with a higher upper clip, a mean over tokens, and dynamic sampling (arXiv 2503.14476). */
  readonly dapo: ObjectiveInput
  /** Capped ratios as weights (arXiv 2506.13585). */
  readonly cispo: ObjectiveInput
  /** One ratio per response (arXiv 2507.18071). */
  readonly gspo: ObjectiveInput
  /** GSPO with advantages that are z-scores over the batch. */
  readonly 'bn-gspo': ObjectiveInput
  /** Kimi k1.5: squared regression on log ratios, with a reward for short answers (arXiv 2501.12599). */
  readonly 'k1.5': ObjectiveInput
  /** Reward over the latent trajectory, by exit probabilities (arXiv 2602.10520). */
  readonly rltt: ObjectiveInput
  /** A policy that exits early: the gate draws loops, and training replays them. */
  readonly 'exit-sampled': ObjectiveInput
  /** 100 steps of RLTT, then the last loop. */
  readonly 'anneal-to-last': readonly [Phase, Phase]
  /** 100 steps of the last loop, then RLTT. */
  readonly 'anneal-to-rltt': readonly [Phase, Phase]
  /** GRPO on the last loop. In addition every loop imitates right samples, with their rewards as weights. */
  readonly imitation: ObjectiveInput
  /** The terms of LoopRPT on sampled responses. `LoopRPTTrainer` is the whole method (arXiv 2603.19714). */
  readonly looprpt: ObjectiveInput
  /** RLTT on negative advantages alone (arXiv 2604.14142). */
  readonly nsr: ObjectiveInput
  /** Negative advantages of responses without their prompt (arXiv 2604.14142). */
  readonly prerl: ObjectiveInput
  /** 20 steps of `prerl`, then `grpo` (arXiv 2604.14142). */
  readonly dsrl: readonly Phase[]
  /** 20 steps on loop 2, then `rltt` (after arXiv 2512.19673). */
  readonly 'bupo-loop': readonly Phase[]
  /** RLTT that preserves good responses at every loop (after arXiv 2512.04220). */
  readonly llds: ObjectiveInput
  /** RLTT with strata of the mean exit loop (after arXiv 2510.06214). */
  readonly san: ObjectiveInput
  /** RLTT, and an exit term with a cost per loop. Use it with `exitThreshold` (after arXiv 2603.28610). */
  readonly 'capo-loop': ObjectiveInput
  /** Rewards of loops: the gain of each loop in the probability of the gold answer (after arXiv 2510.14967). */
  readonly 'igpo-loop': ObjectiveInput
  /** Advantages of turns, with z-scores within the group. */
  readonly 'turn-grpo': ObjectiveInput
  /** Advantages of turns, with the gain in the probability of the gold answer (arXiv 2510.14967). */
  readonly igpo: ObjectiveInput
  /** Rewards of loops: the gain of each loop in the reward of a forced answer (after arXiv 2503.07572). */
  readonly mrt: ObjectiveInput
  /** Rewards of loops: the gain of each loop in the best of four forced answers (after arXiv 2410.08146). */
  readonly pav: ObjectiveInput
  /** Rewards of loops from the probability of the token, clipped, as differences (after arXiv 2410.15115). */
  readonly 'clip-delta': ObjectiveInput
  /** Label-free: the most frequent answer of a group counts as right. */
  readonly ttrl: ObjectiveInput
  /** Label-free: the majority is right, and novelty earns more (arXiv 2509.15194). */
  readonly 'evol-rl': ObjectiveInput
}

/** A recipe's name. */
export type RecipeName = keyof Recipes

const group = { baseline: 'group', scale: 'group' } as const
const meanOnly = { baseline: 'group', scale: 'none' } as const
const clipHigher = { kind: 'ppo', epsilonLow: 0.2, epsilonHigh: 0.28 } as const

const grpo: ObjectiveInput = { terms: [{ weights: 'last', surrogate: 'ppo', advantage: group }] }
const rlttTerm = { weights: 'exit-pdf', surrogate: 'reinforce', advantage: group } as const
const rltt: ObjectiveInput = { terms: [rlttTerm] }
const lastTerm = { weights: 'last', surrogate: 'reinforce', advantage: group } as const
const lastLoop: ObjectiveInput = { terms: [lastTerm] }
const prerl: ObjectiveInput = {
  terms: [
    {
      weights: 'last',
      space: 'marginal',
      surrogate: { kind: 'ppo', epsilonLow: 0.2, epsilonHigh: 0.2, dualClip: 10 },
      advantage: { ...meanOnly, sign: 'negative' },
      normalizer: 'token-mean',
    },
  ],
}
const gainOverTeacher = { belief: 'token', value: 'log', base: 'teacher', cost: 0.02, costScale: 0.5 } as const

/** Recipes as values of the algebra. Their papers and settings: docs/objectives.md. */
export const recipes: Recipes = {
  grpo,
  'dr-grpo': { terms: [{ weights: 'last', surrogate: 'ppo', advantage: meanOnly, normalizer: 'constant' }] },
  dapo: {
    filter: { resample: 3 },
    terms: [{ weights: 'last', surrogate: clipHigher, advantage: group, normalizer: 'token-mean' }],
  },
  cispo: { terms: [{ weights: 'last', surrogate: { kind: 'cispo', cap: 5 }, advantage: group, normalizer: 'token-mean' }] },
  gspo: { terms: [{ weights: 'last', surrogate: { kind: 'gspo', epsilonLow: 3e-4, epsilonHigh: 4e-4 }, advantage: group }] },
  'bn-gspo': {
    terms: [
      { weights: 'last', surrogate: { kind: 'gspo', epsilonLow: 0.2, epsilonHigh: 0.28 }, advantage: { ...group, batch: true } },
    ],
    kl: { beta: 1e-4 },
  },
  'k1.5': {
    rewards: [{ kind: 'length' }],
    terms: [{ weights: 'last', surrogate: 'k15', advantage: meanOnly, normalizer: 'constant' }],
  },
  rltt,
  'exit-sampled': {
    exits: 'sampled',
    terms: [
      { weights: 'exit-loop', surrogate: 'reinforce', advantage: group },
      { channel: 'exit', advantage: group },
    ],
  },
  'anneal-to-last': [{ until: 100, objective: rltt }, { objective: lastLoop }],
  'anneal-to-rltt': [{ until: 100, objective: lastLoop }, { objective: rltt }],
  imitation: {
    terms: [
      lastTerm,
      // The reward itself is the advantage: right samples have weight 1, wrong ones 0.
      { weights: 'uniform', surrogate: 'reinforce', advantage: { baseline: 'none' }, weight: 0.1 },
    ],
  },
  looprpt: {
    terms: [
      { channel: 'exit', advantage: { source: 'zero', loops: gainOverTeacher }, draws: 8 },
      { weights: 'exit-pdf', advantage: { source: 'one', loops: { ...gainOverTeacher, normalize: 'gain' } } },
    ],
    entropy: { exit: 0.01 },
    kl: { beta: 1e-4, loops: 'uniform', reference: 'ema' },
  },
  nsr: { terms: [{ ...rlttTerm, advantage: { ...meanOnly, sign: 'negative' } }] },
  prerl,
  dsrl: [{ until: 20, objective: prerl }, { objective: grpo }],
  'bupo-loop': [
    { until: 20, objective: { terms: [{ ...rlttTerm, weights: { kind: 'one-hot', loop: 2 } }] } },
    { objective: rltt },
  ],
  llds: { terms: [rlttTerm], lazy: { weight: 0.2, gate: 'loop', old: 'ema' } },
  san: { terms: [{ ...rlttTerm, advantage: { ...group, strata: { by: 'exit-loop', blend: 0.5 } } }] },
  'capo-loop': {
    terms: [
      rlttTerm,
      { channel: 'exit', advantage: { ...group, scale: 'population', cost: { by: 'exit-loop' } }, draws: 1, weight: 0.1 },
    ],
  },
  'igpo-loop': {
    terms: [
      { weights: 'uniform', advantage: { ...group, loops: { belief: 'gold-answer', value: 'log', discount: 0, scale: 0.1 } } },
    ],
  },
  'turn-grpo': { terms: [{ weights: 'last', surrogate: 'ppo', advantage: { source: 'turn', scale: 'group' } }] },
  igpo: {
    terms: [{ weights: 'last', surrogate: 'ppo', advantage: { source: 'turn', scale: 'none', gain: {} } }],
    kl: { beta: 1e-3 },
  },
  mrt: {
    terms: [
      {
        weights: 'uniform',
        advantage: { ...group, loops: { belief: 'forced-exit', value: 'probability', discount: 0, scale: 0.1 } },
      },
    ],
  },
  pav: {
    terms: [
      { weights: 'uniform', advantage: { ...group, loops: { belief: 'forced-exit', value: 'best-of', attempts: 4, scale: 3 } } },
    ],
    kl: { beta: 1e-3 },
  },
  'clip-delta': {
    terms: [
      {
        weights: 'uniform',
        advantage: {
          ...group,
          loops: { belief: 'token', value: 'probability', base: 'none', clip: 0.5, delta: true, discount: 1, scale: 0.1 },
        },
      },
    ],
  },
  ttrl: {
    rewards: [{ kind: 'majority' }],
    filter: { keepPerGroup: 32 },
    terms: [{ weights: 'last', surrogate: 'ppo', advantage: group }],
  },
  'evol-rl': {
    rewards: [{ kind: 'novelty' }],
    terms: [{ weights: 'last', surrogate: clipHigher, advantage: group, normalizer: 'token-mean' }],
    entropy: { token: 0.003 },
    kl: { beta: 1e-3 },
  },
}

/** The phases of an objective option, which is a name, an objective, or a list of phases. */
export function phasesOf(option: RecipeName | ObjectiveInput | readonly Phase[]): readonly Phase[] {
  if (typeof option === 'string') return phasesOf(recipes[option])
  return Array.isArray(option) ? (option as readonly Phase[]) : [{ objective: option as ObjectiveInput }]
}
