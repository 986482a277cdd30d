import type { LoopLM } from '../model/model.js'
import { type ObjectiveTrainerConfig, type ObjectiveTrainerOptions, objectiveTrainerOptions } from './config.js'
import { surrogateOf } from './objective/compile.js'
import { type Phase, phasesOf } from './objective/recipes.js'
import { type Objective, objectiveSchema } from './objective/schema.js'
import { type ObjectiveAt, PolicyGradientTrainer } from './policy-gradient.js'
import { checkOptions, refuseOptions } from './validate.js'

/**
 * Policy-gradient training with any objective of the algebra (docs/objectives.md): a recipe by name, an objective of your own
 * making, several of them one after the other, or a function that returns coefficients.
 *
 * @example
 * ```ts
 * const trainer = new ObjectiveTrainer(model, {
 *   task: addition({ digits: 3 }),
 *   learningRate: 2e-4,
 *   objective: { terms: [{ credit: 'exit-pdf', advantage: { strata: { by: 'exit-loop' } } }], entropy: { exit: 0.01 } },
 * })
 * for await (const event of trainer.run()) if (event.type === 'step') console.log(event.step, event.metrics.reward)
 * ```
 */
export class ObjectiveTrainer extends PolicyGradientTrainer<ObjectiveTrainerConfig> {
  /**
   * @param model trained in place
   * @param options see {@link ObjectiveTrainerOptions}; `looplm options objective` lists them
   * @throws LoopLMError INVALID_CONFIG naming every refused option
   */
  constructor(model: LoopLM, options: ObjectiveTrainerOptions = {}) {
    const config = checkOptions('ObjectiveTrainer', objectiveTrainerOptions, options)
    const { at, ema } = schedule(config.objective)
    super('objective', model, config, at, ema)
  }
}

function schedule(option: ObjectiveTrainerConfig['objective']): { at: ObjectiveAt; ema: boolean } {
  if (typeof option === 'function') return { at: () => option, ema: false }
  const phases = phasesOf(option as Parameters<typeof phasesOf>[0]).flatMap(({ until, objective }) => {
    const inner = typeof objective === 'string' ? phasesOf(objective) : [{ objective } as Phase]
    return inner.map((phase) => ({ until: phase.until ?? until, objective: objectiveSchema.parse(phase.objective) }))
  })
  for (const [i, { until }] of phases.entries()) {
    const last = i === phases.length - 1
    if (last ? until !== undefined : until === undefined || until <= (phases[i - 1]?.until ?? 0)) {
      throw refuseOptions('ObjectiveTrainer', 'objective: phases need a growing `until`, and the last one none')
    }
  }
  const references = phases.flatMap(({ objective }) => referencesOf(objective))
  if (new Set(references).size > 1) {
    throw refuseOptions('ObjectiveTrainer', 'objective: kl, lazy and beliefs must share one reference, all frozen or all ema')
  }
  for (const { objective } of phases) checkCombinations(objective)
  const at = (step: number) => phases.find(({ until }) => until === undefined || step < until)!.objective
  return { at, ema: references.includes('ema') }
}

function referencesOf({ kl, lazy, terms }: Objective): ('frozen' | 'ema')[] {
  const teacher = terms.some(({ advantage }) => advantage.loops?.base === 'teacher')
  const own = [...(kl === undefined ? [] : [kl.reference]), ...(lazy?.old === 'ema' ? (['ema'] as const) : [])]
  return teacher && own.length === 0 ? ['frozen'] : own
}

function checkCombinations({ terms, lazy }: Objective): void {
  const refuse = (i: number, problem: string) => refuseOptions('ObjectiveTrainer', `objective.terms.${i}: ${problem}`)
  for (const [i, term] of terms.entries()) {
    const { channel, space, combine, credit, advantage } = term
    const { kind } = surrogateOf(term)
    const attached = typeof credit === 'object' && credit.kind === 'exit-pdf' && !credit.detach
    if (channel === 'exit' && kind !== 'reinforce') throw refuse(i, 'the exit channel knows the surrogate reinforce alone')
    if (space === 'marginal' && (channel === 'exit' || advantage.loops?.belief === 'token'))
      throw refuse(i, 'the marginal space has tokens alone, without exits or beliefs in them')
    if (attached && (kind !== 'reinforce' || combine === 'inner' || credit.temperature !== 1))
      throw refuse(i, 'attached weights (detach: false) want the surrogate reinforce and temperature 1')
    if (kind === 'k15' && advantage.loops !== undefined)
      throw refuse(i, 'k15 compares whole responses and takes no rewards of loops')
    if (advantage.loops?.belief === 'token' && (advantage.loops.base === 'group' || advantage.loops.normalize === 'group'))
      throw refuse(i, 'beliefs in tokens have no group: responses differ from token to token')
    if (advantage.loops !== undefined && advantage.loops.belief !== 'token' && advantage.loops.base === 'teacher')
      throw refuse(i, 'base teacher belongs to the belief "token"')
  }
  if (lazy !== undefined && terms.every(({ space }) => space === 'marginal'))
    throw refuseOptions('ObjectiveTrainer', 'objective.lazy: needs a term in the conditional space')
}
