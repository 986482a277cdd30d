import type { InputVectors, LossBatch, LossObjective, LossTerm, Recompute, TokenSequence } from '../../model/types.js'
import type { TrainedLoops } from './loops.js'
import { lengthNormalizers } from './normalizer.js'
import type { BeliefSpec, Objective, ObjectiveTerm } from './schema.js'
import { valueAt } from './schema.js'

/** The arguments of one call of the engine's loss core. */
export interface EnginePass {
  /** The sequences of the pass. */
  batch: LossBatch
  /** Its loss. */
  objective: LossObjective
}

/** Rollouts with everything that the terms of an objective need. */
export interface RatedRollouts {
  sequences: readonly TokenSequence[]
  initialStates?: readonly ArrayLike<number>[] | undefined
  inputVectors?: readonly (InputVectors | undefined)[] | undefined
  promptLengths: ArrayLike<number>
  /** Number of response tokens that count. */
  lengths: readonly number[]
  /** Per sequence: false if its reward was null. */
  counted: readonly boolean[]
  /** Per sequence: whether it has a gradient. */
  active: readonly boolean[]
  /** Per term: advantages, one or T per sequence. */
  advantages: readonly (readonly (readonly number[])[])[]
  /** Per term: advantages of tokens, len-1 per sequence, if the term has them. [] for sequences that do not count. */
  tokenAdvantages?: readonly (readonly (readonly number[])[] | undefined)[] | undefined
  oldLogprobs?: readonly ArrayLike<number>[] | undefined
  referenceLogprobs?: readonly ArrayLike<number>[] | undefined
  referenceEntropy?: readonly ArrayLike<number>[] | undefined
  referenceExitPdf?: readonly ArrayLike<number>[] | undefined
  lazyLogprobs?: readonly ArrayLike<number>[] | undefined
  exits?: readonly ArrayLike<number>[] | undefined
  segments?: readonly ArrayLike<number>[] | undefined
  mask?: readonly ArrayLike<number>[] | undefined
  /** The responses after a start token instead of their prompts, for terms in the marginal space. */
  marginal?:
    | {
        sequences: readonly TokenSequence[]
        mask?: readonly ArrayLike<number>[] | undefined
        oldLogprobs?: readonly ArrayLike<number>[] | undefined
      }
    | undefined
}

/** Settings of the engine that do not depend on the objective. */
export interface EngineSettings {
  temperature: number
  recompute: Recompute
  tokensPerMicroBatch: number
  /** Divisor of the normalizer `constant`. */
  constantLength: number | undefined
  loops: TrainedLoops
  /** Seed of draws in the exit channel. */
  seed: number
  /**
   * The sequences whose gradients this call computes. Defaults to all. Length normalizers always refer to the whole logical
   * batch.
   */
  own?: ReadonlySet<number> | undefined
}

const defaultDraws = 8
const ratioSurrogates = ['ppo', 'cispo', 'gspo', 'k15']

/** The surrogate by name, with its settings. */
export function surrogateOf(term: ObjectiveTerm): {
  kind: string
  epsilonLow?: number
  epsilonHigh?: number
  dualClip?: number
  cap?: number
  tau?: number
} {
  return typeof term.surrogate === 'string' ? { kind: term.surrogate } : (term.surrogate as { kind: string })
}

/**
 * Whether the objective needs the log-probabilities of the policy that made the rollouts, if more than one update is made on
 * them.
 */
export function usesRatio(objective: Objective, space: ObjectiveTerm['space']): boolean {
  const lazy = space === 'conditional' && objective.lazy?.old === 'rollout'
  return lazy || tokenTerms(objective, space).some((term) => ratioSurrogates.includes(surrogateOf(term).kind))
}

/** Whether the objective compares with log-probabilities of the reference model, apart from LLDS. */
export function usesReference(objective: Objective): boolean {
  return (objective.kl !== undefined && objective.kl.beta > 0) || usesTeacher(objective)
}

/** Whether a step with this objective runs the reference model, if its batch has no `referenceLogprobs`. */
export function needsReference(objective: Objective): boolean {
  return usesReference(objective) || objective.lazy?.old === 'ema'
}

/**
 * Names the part of the objective that no importance ratio corrects if several updates are made on the same rollouts. undefined
 * if there is none.
 */
export function uncorrected({ terms }: Objective): string | undefined {
  const biased = terms.filter((term) => surrogateOf(term).kind === 'reinforce' && term.advantage.source !== 'one')
  if (biased.length === 0) return undefined
  return biased.some(({ channel }) => channel === 'token') ? "the surrogate 'reinforce'" : 'the exit channel'
}

/** Whether a term compares with the reference model at its reference loop. */
export function usesTeacher(objective: Objective): boolean {
  return objective.terms.some(({ advantage }) => advantage.loops?.base === 'teacher')
}

/**
 * The number of loops that a pass must run. It is less than the model's only if every term and regularizer uses one early loop.
 */
export function loopsNeeded(objective: Objective, loops: number): number {
  const { terms, kl, lazy, entropy } = objective
  if (terms.length === 0) return loops // a function's own coefficients cover every loop
  const early = terms.map(({ channel, weights, advantage }) =>
    channel === 'token' && advantage.loops === undefined && typeof weights === 'object' && weights.kind === 'one-hot'
      ? weights.loop
      : loops,
  )
  const regularised = (kl !== undefined && kl.loops !== 'weights') || (lazy !== undefined && lazy.loops !== 'weights')
  return regularised || entropy.exit !== 0 ? loops : Math.min(loops, Math.max(...early))
}

/** The number of loops to run. It is less than the trainer's if the objective needs no more and `readLoops` is not set. */
export function loopsToRun(objective: Objective, { run, scoring }: TrainedLoops): number {
  return scoring.readLoops === undefined ? loopsNeeded(objective, run) : run
}

/** Whether the token terms of a space only use the last loop that runs. */
export function onlyLastLoop(objective: Objective, space: ObjectiveTerm['space'], loops: number): boolean {
  return (
    (objective.lazy === undefined || objective.lazy.loops !== 'uniform') &&
    tokenTerms(objective, space).every(
      ({ weights, advantage }) =>
        advantage.loops?.belief !== 'token' &&
        (weights === 'last' || (typeof weights === 'object' && weights.kind === 'one-hot' && weights.loop === loops)),
    )
  )
}

/**
 * The loop, counted from 1, whose log-probabilities are compared with those of the policy that made the rollouts. undefined if
 * several loops are compared.
 *
 * @param loops number of loops that run
 */
export function ratioLoop(objective: Objective, loops: number): number | undefined {
  const terms = tokenTerms(objective, 'conditional')
  const compared = terms.filter((term) => ratioSurrogates.includes(surrogateOf(term).kind)).map(({ weights }) => weights)
  const { lazy } = objective
  if (lazy?.old === 'rollout') compared.push(lazy.loops === 'weights' ? (terms[0]?.weights ?? 'last') : lazy.loops)
  const found = new Set(
    compared.map((weights) => {
      if (weights === 'last') return loops
      return typeof weights === 'object' && weights.kind === 'one-hot' ? weights.loop : undefined
    }),
  )
  return found.size === 1 ? [...found][0] : undefined
}

/**
 * Expands log-probabilities of one loop, len-1 per sequence, to the shape of all loops. The values of the other loops are not
 * used, but the engine needs them if it scores several loops, for example for a KL divergence at each.
 */
function atEveryLoop(logprobs: readonly ArrayLike<number>[], rows: readonly TokenSequence[], loops: number): ArrayLike<number>[] {
  return logprobs.map((values, i) => {
    const width = rows[i]!.length - 1
    if (values?.length !== width) return values
    const all = new Float64Array(loops * width)
    for (let t = 0; t < loops; t++) all.set(values, t * width)
    return all
  })
}

function tokenTerms(objective: Objective, space: ObjectiveTerm['space']): ObjectiveTerm[] {
  return objective.terms.filter((term) => term.channel === 'token' && term.space === space)
}

/**
 * The engine calls of one optimizer step: one for the terms given the prompt and the regularizers, one for the marginal terms.
 * Length normalizers refer to the whole logical batch, so that skipping sequences without a gradient does not change the loss.
 *
 * @param part indices of the sequences that form the logical batch
 * @param step counted from 0
 */
export function enginePasses(
  objective: Objective,
  rated: RatedRollouts,
  part: readonly number[],
  step: number,
  settings: EngineSettings,
): EnginePass[] {
  const counted = part.filter((i) => rated.counted[i])
  const lengths = counted.map((i) => rated.lengths[i]!)
  const active = [...counted.keys()].filter((k) => rated.active[counted[k]!])
  const numbers = [...active.keys()].filter((n) => settings.own?.has(counted[active[n]!]!) ?? true)
  if (numbers.length === 0) return []
  const positions = numbers.map((n) => active[n]!)
  const rows = positions.map((k) => counted[k]!)
  const normalizersOf = (term: ObjectiveTerm | undefined) => {
    const all =
      term !== undefined && surrogateOf(term).kind === 'k15'
        ? lengths.map(() => 1 / lengths.length)
        : lengthNormalizers(lengths, (term ?? objective.terms[0]!).normalizer, settings.constantLength)
    return positions.map((k) => all[k]! * (term === undefined ? 1 : valueAt(term.weight, step)))
  }
  const pick = <T>(values: readonly T[] | undefined) => values && rows.map((i) => values[i]!)
  const loops = loopsToRun(objective, settings.loops)
  const reads = settings.loops.scoring.readLoops?.length ?? loops
  const shared = {
    temperature: settings.temperature,
    recompute: settings.recompute,
    tokensPerMicroBatch: settings.tokensPerMicroBatch,
    ...settings.loops.scoring,
    loops,
    backwardLoops: settings.loops.backwardLoops,
  }
  const termsOf = (space: ObjectiveTerm['space']) =>
    [...objective.terms.keys()].filter((k) => objective.terms[k]!.space === space)
  const valuesOf = (indices: readonly number[]) =>
    indices.map((k) => ({
      advantages: rows.flatMap((i) => rated.advantages[k]![i]!),
      tokenAdvantages: pick(rated.tokenAdvantages?.[k]),
      lengthNormalizers: normalizersOf(objective.terms[k]!),
    }))
  const passes: EnginePass[] = []
  const conditional = termsOf('conditional')
  const sequences = rows.map((i) => rated.sequences[i]!)
  const old = pick(rated.oldLogprobs)
  const oneLoop = ratioLoop(objective, loops) !== undefined
  const { kl, lazy, entropy } = objective
  if (conditional.length > 0) {
    passes.push({
      batch: {
        sequences,
        numbers,
        initialStates: pick(rated.initialStates),
        inputVectors: pick(rated.inputVectors),
        promptLengths: rows.map((i) => rated.promptLengths[i]!),
        terms: valuesOf(conditional),
        lengthNormalizers: normalizersOf(undefined),
        oldLogprobs: old && oneLoop ? atEveryLoop(old, sequences, reads) : old,
        referenceLogprobs: pick(rated.referenceLogprobs),
        referenceEntropy: pick(rated.referenceEntropy),
        referenceExitPdf: pick(rated.referenceExitPdf),
        lazyLogprobs: pick(rated.lazyLogprobs),
        lazyNormalizers: lazy && lazyNormalizers(objective, rated, counted, rows),
        exits: pick(rated.exits),
        segments: pick(rated.segments),
        mask: pick(rated.mask),
      },
      objective: {
        ...shared,
        terms: conditional.map((k) => engineTerm(objective.terms[k]!, settings)),
        beta: kl?.beta ?? 0,
        betaLoops: kl?.loops ?? 'last',
        tokenEntropy: valueAt(entropy.token, step),
        exitEntropy: valueAt(entropy.exit, step),
        lazy: lazy && { gate: lazy.gate, loops: lazy.loops },
        replayExits: objective.exits === 'sampled',
      },
    })
  }
  const marginal = termsOf('marginal')
  if (marginal.length > 0) {
    passes.push({
      batch: {
        sequences: pick(rated.marginal!.sequences)!,
        numbers,
        promptLengths: rows.map(() => 1),
        terms: valuesOf(marginal),
        lengthNormalizers: normalizersOf(objective.terms[marginal[0]!]),
        oldLogprobs: pick(rated.marginal!.oldLogprobs),
        mask: pick(rated.marginal!.mask),
      },
      objective: { ...shared, terms: marginal.map((k) => engineTerm(objective.terms[k]!, settings)) },
    })
  }
  return passes
}

/**
 * λ divided by the token count, for sequences that should stay likely: those without a negative advantage in the first
 * conditional term, averaged over its loops.
 */
function lazyNormalizers(
  objective: Objective,
  rated: RatedRollouts,
  counted: readonly number[],
  rows: readonly number[],
): number[] {
  const { weight, normalizer } = objective.lazy!
  const first = objective.terms.findIndex(({ space }) => space === 'conditional')
  const outcome = rated.advantages[first]!
  const ofTokens = rated.tokenAdvantages?.[first]
  const sum = (values: readonly number[] = []) => values.reduce((total, value) => total + value, 0)
  const kept = (i: number) => sum(outcome[i]) + sum(ofTokens?.[i]) >= 0
  const total = counted.filter((i) => normalizer === 'all' || kept(i)).reduce((sum, i) => sum + rated.lengths[i]!, 0)
  return rows.map((i) => (kept(i) && total > 0 ? weight / total : 0))
}

function engineTerm(term: ObjectiveTerm, settings: EngineSettings): LossTerm {
  const { kind, epsilonLow = 0.2, epsilonHigh = 0.2, dualClip = 0, cap = 5, tau = 0.1 } = surrogateOf(term)
  const loops = term.advantage.loops
  return {
    channel: term.channel,
    weights: engineWeights(term.weights),
    surrogate: kind as NonNullable<LossTerm['surrogate']>,
    inner: term.combine === 'inner',
    epsilonLow,
    epsilonHigh,
    dualClip,
    cap,
    tau,
    belief: loops?.belief === 'token' ? engineBelief(loops) : undefined,
    draws: term.draws ?? defaultDraws,
    seed: settings.seed,
  }
}

function engineWeights(weights: ObjectiveTerm['weights']): NonNullable<LossTerm['weights']> {
  if (weights === 'last') return { kind: 'one-hot' }
  return typeof weights === 'string' ? { kind: weights } : weights
}

function engineBelief(spec: BeliefSpec): NonNullable<LossTerm['belief']> {
  return {
    value: spec.value,
    attempts: spec.attempts,
    base: spec.base as 'previous' | 'teacher' | 'none',
    cost: spec.cost,
    clip: spec.clip,
    delta: spec.delta,
    discount: spec.discount,
    normalize: spec.normalize as 'none' | 'loops' | 'gain',
    scale: spec.scale,
    threshold: spec.threshold,
    costScale: spec.costScale,
  }
}
