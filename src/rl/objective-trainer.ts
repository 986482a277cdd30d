import type { LoopLM } from '../model/model.js'
import { parseOptions, refuseOptions } from '../validation/schema.js'
import { type Reader, unreadOptions } from './config-common.js'
import { objectiveTrainerOptions } from './config-rollouts.js'
import { needsReference, surrogateOf } from './objective/compile.js'
import { type Phase, phasesOf } from './objective/recipes.js'
import { beliefReward, type Objective, objectiveSchema } from './objective/schema.js'
import { isLabelFree } from './objective/shape-rewards.js'
import type { ObjectiveTrainerConfig, ObjectiveTrainerOptions } from './options.js'
import { type ObjectiveSchedule, PolicyGradientTrainer } from './policy-gradient.js'

/**
 * Policy-gradient training with any objective of the algebra (docs/objectives.md): a recipe by name, your own objective,
 * several of them in sequence, or a function that returns coefficients.
 *
 * @example
 * ```ts
 * const trainer = new ObjectiveTrainer(model, {
 *   task: addition({ digits: 3 }),
 *   learningRate: 2e-4,
 *   objective: { terms: [{ weights: 'exit-pdf', advantage: { strata: { by: 'exit-loop' } } }], entropy: { exit: 0.01 } },
 * })
 * for await (const event of trainer.run()) if (event.type === 'step') console.log(event.step, event.metrics.reward)
 * ```
 */
export class ObjectiveTrainer extends PolicyGradientTrainer<ObjectiveTrainerConfig> {
  /**
   * @param model the model to train, in place
   * @param options see {@link ObjectiveTrainerOptions}; `looplm options objective` lists them
   * @throws LoopLMError INVALID_CONFIG naming every rejected option
   */
  constructor(model: LoopLM, options: ObjectiveTrainerOptions = {}) {
    const config = parseOptions('ObjectiveTrainer', objectiveTrainerOptions, options)
    const steps = objectiveSchedule(config.objective)
    checkRead(config, steps.objectives)
    super('objective', model, withSampledExits(config, steps), steps)
  }
}

/** The configuration with the exit rule of its rollouts. An objective with sampled exits determines that rule. */
function withSampledExits(config: ObjectiveTrainerConfig, steps: Schedule): ObjectiveTrainerConfig {
  if (!steps.samplesExits) return config
  const { exit, exitThreshold, readLoops, rollout, environment } = config
  const given = Object.entries({ exit, exitThreshold, readLoops, rollout, environment }).find(([, value]) => value !== undefined)
  if (given === undefined) return { ...config, exit: { rule: 'sampled' } }
  const problem =
    "cannot be set, because the objective's exits 'sampled' already decide the exits of single-turn rollouts. Omit it."
  throw refuseOptions('ObjectiveTrainer', `${given[0]}: ${problem}`)
}

/** Refuses options that no objective of the run reads. */
function checkRead(config: ObjectiveTrainerConfig, objectives: readonly Objective[]): void {
  const terms = objectives.flatMap((objective) => objective.terms)
  const [unread] = unreadOptions({}, config, [
    [objectives.some(({ rewards }) => isLabelFree(rewards)), ['answerOf'], 'the reward majority or novelty in the objective'],
    [terms.some(({ space }) => space === 'marginal'), ['marginalToken'], "a term in the space 'marginal'"],
    [
      terms.some(({ normalizer }) => normalizer === 'constant'),
      ['constantNormalizerLength'],
      "a term with the normalizer 'constant'",
    ],
  ])
  if (unread !== undefined) throw refuseOptions('ObjectiveTrainer', `${unread.name}: ${unread.message}`)
}

interface Schedule extends ObjectiveSchedule {
  /** The objectives of all phases; none for a function. */
  objectives: readonly Objective[]
  samplesExits: boolean
}

/**
 * The objective of each step and the reference that it needs.
 * @throws LoopLMError INVALID_CONFIG naming options that contradict each other
 */
export function objectiveSchedule(option: ObjectiveTrainerConfig['objective']): Schedule {
  if (typeof option === 'function') return { at: () => option, reference: () => undefined, objectives: [], samplesExits: false }
  const phases = phasesOf(option as Parameters<typeof phasesOf>[0]).flatMap(({ until, objective }) => {
    const inner = typeof objective === 'string' ? phasesOf(objective) : [{ objective } as Phase]
    return inner.map((phase) => ({ until: phase.until ?? until, objective: objectiveSchema.parse(phase.objective) }))
  })
  for (const [i, { until }] of phases.entries()) {
    const last = i === phases.length - 1
    if (last ? until !== undefined : until === undefined || until <= (phases[i - 1]?.until ?? 0)) {
      throw refuseOptions(
        'ObjectiveTrainer',
        'objective: phases need increasing values of `until`, and the last phase must have none',
      )
    }
  }
  const references = phases.flatMap(({ objective }) => referencesOf(objective))
  if (new Set(references).size > 1) {
    throw refuseOptions('ObjectiveTrainer', 'objective: kl, lazy and beliefs must share one reference, all frozen or all ema')
  }
  for (const { objective } of phases) {
    checkCombinations(objective)
    checkSampledExits(objective)
  }
  const samplesExits = phases[0]!.objective.exits === 'sampled'
  if (phases.some(({ objective }) => (objective.exits === 'sampled') !== samplesExits))
    throw refuseOptions('ObjectiveTrainer', "objective: all phases sample exits, or none. Set exits: 'sampled' in each of them.")
  const from = (step: number) => phases.filter(({ until }) => until === undefined || step < until)
  return {
    at: (step) => from(step)[0]!.objective,
    reference: (step) => (from(step).some(({ objective }) => needsReference(objective)) ? references[0] : undefined),
    objectives: phases.map(({ objective }) => objective),
    samplesExits,
  }
}

function referencesOf({ kl, lazy, terms }: Objective): ('frozen' | 'ema')[] {
  const teacher = terms.some(({ advantage }) => advantage.loops?.base === 'teacher')
  const own = [...(kl === undefined ? [] : [kl.reference]), ...(lazy?.old === 'ema' ? (['ema'] as const) : [])]
  return teacher && own.length === 0 ? ['frozen'] : own
}

function checkCombinations({ terms, lazy, kl, entropy, filter, rewards }: Objective): void {
  const refuse = (i: number, problem: string) => refuseOptions('ObjectiveTrainer', `objective.terms.${i}: ${problem}`)
  for (const [i, term] of terms.entries()) {
    const { channel, space, combine, weights, advantage, draws } = term
    const { kind } = surrogateOf(term)
    const { loops, source, gain, baseline, scale, strata, cost, batch, sign, positiveWeight } = advantage
    const fromRewards = { strata, cost, scale, batch: batch || undefined, baseline: baseline === 'none' ? baseline : undefined }
    const byTurn = {
      strata,
      cost,
      batch: batch || undefined,
      baseline: fromRewards.baseline,
      population: scale === 'population' || undefined,
    }
    const shaped = {
      ...fromRewards,
      sign: sign === 'all' ? undefined : sign,
      positiveWeight: positiveWeight === 1 ? undefined : 1,
    }
    const unread = Object.entries(shaped).find(([, value]) => value !== undefined)
    const byReward = { ...byTurn, sign: shaped.sign, positiveWeight: shaped.positiveWeight }
    const ofSequences = Object.entries(byReward).find(([, value]) => value !== undefined)
    if (source === 'turn' && ofSequences !== undefined)
      throw refuse(i, `advantage.${ofSequences[0]} compares whole sequences, and the source is turn; omit one of them`)
    if (source === 'turn' && (kind === 'gspo' || kind === 'k15' || space === 'marginal'))
      throw refuse(
        i,
        `advantage.source: 'turn' gives every turn an advantage, but ${space === 'marginal' ? 'the marginal space' : kind} has one per sequence`,
      )
    if (source !== 'turn' && gain !== undefined) throw refuse(i, "advantage.gain: needs the source 'turn'")
    if (source !== 'turn' && advantage.discount !== 1)
      throw refuse(i, "advantage.discount: needs the source 'turn'; set it, or omit discount")
    if (source !== 'reward' && source !== 'turn' && unread !== undefined)
      throw refuse(i, `advantage.${unread[0]} is for advantages from rewards, and the source is ${source}; omit one of them`)
    if (baseline === 'none' && scale !== undefined && scale !== 'none')
      throw refuse(i, `advantage.scale: ${scale} needs the baseline 'group'; without a baseline rewards are taken as they are`)
    const attached = typeof weights === 'object' && weights.kind === 'exit-pdf' && !weights.detach
    if (channel === 'exit' && kind !== 'reinforce') throw refuse(i, "surrogate: the exit channel supports only 'reinforce'")
    if (space === 'marginal' && (channel === 'exit' || advantage.loops?.belief === 'token'))
      throw refuse(i, "space: 'marginal' supports only the token channel, without the belief 'token'")
    if (channel === 'exit' && combine === 'inner')
      throw refuse(i, 'combine: the exit channel has only one log-probability per token; omit combine')
    if (channel === 'exit' && weights !== 'exit-pdf')
      throw refuse(i, 'weights: the exit channel trains only the loop of the exit; omit weights')
    if (channel === 'exit' && loops?.belief === 'token' && loops.normalize !== 'none')
      throw refuse(i, 'advantage.loops.normalize: the exit channel compares the draws of a token; omit normalize')
    if (channel === 'token' && draws !== undefined) throw refuse(i, 'draws: only the exit channel draws exits')
    if (attached && (kind !== 'reinforce' || combine === 'inner' || weights.temperature !== 1))
      throw refuse(i, "weights: detach: false needs the surrogate 'reinforce', combine 'outer' and temperature 1")
    if (kind === 'k15' && advantage.loops !== undefined)
      throw refuse(i, "surrogate: 'k15' compares whole responses; omit advantage.loops")
    if (advantage.loops?.belief === 'token' && (advantage.loops.base === 'group' || advantage.loops.normalize === 'group'))
      throw refuse(
        i,
        "advantage.loops: the belief 'token' has no group, because the tokens of responses differ; choose another base or normalize",
      )
    if (loops !== undefined) {
      const readers: Reader[] = [
        [loops.value === 'best-of', ['attempts'], "the value 'best-of'"],
        [loops.base === 'teacher', ['costScale', 'threshold'], "the base 'teacher'"],
      ]
      const [unreadField] = unreadOptions(beliefReward.shape, loops, readers)
      if (unreadField !== undefined) throw refuse(i, `advantage.loops.${unreadField.name}: ${unreadField.message}`)
    }
    if (advantage.loops !== undefined && advantage.loops.belief !== 'token' && advantage.loops.base === 'teacher')
      throw refuse(i, "advantage.loops: the base 'teacher' needs the belief 'token'")
  }
  const needsConditional = { lazy, kl: kl?.beta || undefined, 'entropy.token': entropy.token || undefined }
  for (const [name, value] of Object.entries({ ...needsConditional, 'entropy.exit': entropy.exit || undefined }))
    if (value !== undefined && terms.every(({ space }) => space === 'marginal'))
      throw refuseOptions('ObjectiveTrainer', `objective.${name}: needs a term in the conditional space`)
  if (filter.resample > 0 && isLabelFree(rewards)) {
    const problem =
      'needs rewards that differ within a group, but the rewards majority and novelty are computed later; omit resample'
    throw refuseOptions('ObjectiveTrainer', `objective.filter.resample: ${problem}`)
  }
}

/** Checks an objective with sampled exits. It may only use the one policy that sampled. */
function checkSampledExits({ exits, terms, kl, lazy, entropy }: Objective): void {
  const refuse = (path: string, problem: string) => refuseOptions('ObjectiveTrainer', `objective.${path}: ${problem}`)
  for (const [i, { channel, weights, surrogate, space, advantage }] of terms.entries()) {
    const path = `terms.${i}`
    if (exits !== 'sampled') {
      if (weights === 'exit-loop')
        throw refuse(`${path}.weights`, "'exit-loop' needs the exits of rollouts. Set exits: 'sampled'.")
      continue
    }
    if (channel === 'token' && (weights !== 'exit-loop' || surrogate !== 'reinforce'))
      throw refuse(path, "exits 'sampled' need the weights 'exit-loop' and the surrogate 'reinforce'.")
    if (space === 'marginal') throw refuse(`${path}.space`, "without the prompt no exit was sampled. Use 'conditional'.")
    if (advantage.loops !== undefined)
      throw refuse(`${path}.advantage.loops`, 'a sampled exit has one loop, whose reward is that of the response. Omit loops.')
  }
  if (exits !== 'sampled') return
  const unread = Object.entries({ kl, lazy }).find(([, value]) => value !== undefined)
  if (unread !== undefined) throw refuse(unread[0], "exits 'sampled' are not replayed by the reference model. Omit it.")
  if (entropy.token !== 0)
    throw refuse('entropy.token', "must be 0, because with exits 'sampled' every token has only one loop. Omit it.")
}
