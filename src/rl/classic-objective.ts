import { needsReference } from './objective/compile.js'
import { type Objective, objectiveSchema } from './objective/schema.js'
import type { ClassicConfig } from './options.js'
import type { ObjectiveSchedule } from './policy-gradient.js'

/** The same objective for every step, and the reference that it needs, if any. */
export function classicSchedule(config: ClassicConfig): ObjectiveSchedule {
  const objective = classicObjective(config)
  return { at: () => objective, reference: () => (needsReference(objective) ? 'frozen' : undefined) }
}

/** The objective that the options of RLTT and GRPO describe: one token term and optionally a KL term (math.md §2–§4). */
export function classicObjective(config: ClassicConfig): Objective {
  const { epsilon, epsilonHigh, dualClip, cap, beta } = config
  const surrogates = {
    reinforce: 'reinforce',
    ppo: {
      kind: 'ppo',
      epsilonLow: epsilon,
      epsilonHigh: epsilonHigh ?? epsilon,
      ...(dualClip === undefined ? {} : { dualClip }),
    },
    cispo: cap === undefined ? 'cispo' : { kind: 'cispo', cap },
  } as const
  const alpha = 'alpha' in config ? config.alpha : 1
  const detach = 'detachWeights' in config ? config.detachWeights : true
  const { weights } = config
  const byName = {
    'exit-pdf': { kind: 'exit-pdf', detach },
    progressive: { kind: 'progressive', alpha },
    uniform: 'uniform',
    last: 'last',
  } as const
  return objectiveSchema.parse({
    terms: [
      {
        weights: typeof weights === 'string' ? byName[weights] : { kind: 'given', weights },
        surrogate: surrogates[config.surrogate],
        advantage: { ...config.advantage, scale: config.scaleRewards },
        normalizer: config.normalizer,
      },
    ],
    ...(beta === 0 ? {} : { kl: { beta } }),
  })
}
