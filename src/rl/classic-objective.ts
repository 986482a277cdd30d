import { needsReference } from './objective/compile.js'
import { type Objective, objectiveSchema } from './objective/schema.js'
import type { ClassicConfig } from './options.js'
import type { ObjectiveSchedule } from './policy-gradient.js'

/** The objective of every step, and whether it is compared with the starting model. */
export function classicSchedule(config: ClassicConfig): ObjectiveSchedule {
  const objective = classicObjective(config)
  return { at: () => objective, reference: () => (needsReference(objective) ? 'frozen' : undefined) }
}

const defaultCap = 5 // of CISPO, as in the public Ouro code

/** The objective that the options of RLTT and GRPO spell: one token term and perhaps a KL (math.md §2–§4). */
export function classicObjective(config: ClassicConfig): Objective {
  const { epsilon, epsilonHigh, dualClip, beta } = config
  const surrogates = {
    reinforce: 'reinforce',
    ppo: { kind: 'ppo', low: epsilon, high: epsilonHigh ?? epsilon, ...(dualClip === undefined ? {} : { dual: dualClip }) },
    cispo: { kind: 'cispo', cap: epsilonHigh ?? defaultCap },
  } as const
  const alpha = 'alpha' in config ? config.alpha : 1
  const detach = 'detachWeights' in config ? config.detachWeights : true
  const { weights } = config
  const credits = {
    'exit-pdf': { kind: 'exit-pdf', detach },
    progressive: { kind: 'progressive', alpha },
    uniform: 'uniform',
    last: 'last',
  } as const
  return objectiveSchema.parse({
    terms: [
      {
        credit: typeof weights === 'string' ? credits[weights] : { kind: 'given', weights },
        surrogate: surrogates[config.surrogate],
        advantage: { scale: config.scaleRewards },
        aggregate: config.normalizer,
      },
    ],
    ...(beta === 0 ? {} : { kl: { beta } }),
  })
}
