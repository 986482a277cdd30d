// LoopRPT on text in docs/study-2.md.
import { comparisonCells, comparisonHead, estimate, percent, pValue, signedRange, table } from '../cells.js'
import { atEqualLoops } from '../gates.js'
import { corrected, equivalent, holm, mean, type Outcome } from '../statistics.js'
import { arms, rates, runId, settings } from './plan.js'
import type { Measurement, Result } from './results.js'

export type Results = ReadonlyMap<string, Result>

const fewestBases = 3 // a paired test on two has no use
const significance = 0.05
const label = (arm: string) => (arm === 'base' ? 'base' : arms[arm]!.label)
const all = ['base', ...Object.keys(arms)]

function runsOf(results: Results, arm: string): Result[] {
  return settings.bases.flatMap((base) => results.get(runId(arm, base)) ?? [])
}

interface Comparison extends Outcome {
  own: string
  reference: string
  exits: 'gate' | 'entropy'
  /** p of both one-sided tests, after Holm's correction. */
  equal: number
}

/** An arm at the best of its rates: the highest accuracy, as a mean over loop counts and bases. */
function atBestRate(results: Results, arm: string): string {
  const score = (name: string) => mean(runsOf(results, name).map(({ final }) => mean(final.accuracy)))
  const tried = (rates[arm] ?? [arm]).filter((name) => runsOf(results, name).length >= fewestBases)
  return tried.reduce((best, name) => (score(name) > score(best) ? name : best), tried[0] ?? arm)
}

/** The arms that LoopRPT is compared with at the best of their rates. */
const references = ['base', 'stage1', 'stage1-equal-data', 'stage1-hard', 'stage2']

/** LoopRPT against other arms at equal mean loops, on the bases that both have been trained from; its parts at their own rate. */
function comparisons(results: Results): Comparison[] {
  const [least, most] = settings.range
  const best = (arm: string) => atBestRate(results, arm)
  const asked = [
    ...references.map((reference) => [best('looprpt'), best(reference)] as const),
    ...['representation', 'policy'].map((reference) => ['looprpt', reference] as const),
    ...['representation', 'policy', 'looprpt-no-noise', 'looprpt-more-noise'].map(
      (reference) => ['looprpt-1e-4', `${reference}-1e-4`] as const,
    ),
  ]
    .flatMap(([own, reference]) =>
      (['gate', 'entropy'] as const).map((exits) => {
        const pairs = runsOf(results, own).flatMap((run) => {
          const other = results.get(runId(reference, run.base))
          if (other === undefined || other.text !== run.text) return []
          const both = atEqualLoops(run.final[exits], other.final[exits], most, least)
          return both === undefined ? [] : [both]
        })
        return { arm: own, reference, exits, own: pairs.map(([first]) => first), others: pairs.map(([, other]) => other) }
      }),
    )
    .filter(({ own }) => own.length >= fewestBases)
  const outcomes = corrected(asked)
  const equal = holm(asked.map(({ own, others }) => equivalent(own, others, settings.margin).p))
  return asked.map(({ arm, reference, exits }, i) => ({ ...outcomes[i]!, own: arm, reference, exits, equal: equal[i]! }))
}

/** LoopRPT and the arms beside it at the best of their rates, all of which are trained on tokens. */
const onTokens = (results: Results) =>
  ['looprpt', ...references.filter((arm) => arm !== 'stage2')].map((arm) => atBestRate(results, arm))

/** Accuracy of the bytes that are hard by the k-th threshold, with some loops, per base. The base stands in every run from it. */
function hardAccuracy(results: Results, arm: string, k: number, loops: number): ReadonlyMap<number, number> {
  const runs = runsOf(results, arm === 'base' ? atBestRate(results, 'looprpt') : arm)
  return new Map(
    runs.flatMap(({ base, hard }) => {
      const value = hard?.[k]?.[arm === 'base' ? 'base' : 'trained'][loops - 1]
      return value === undefined ? [] : [[base, value] as const]
    }),
  )
}

/** LoopRPT against other arms on bytes with an entropy above 1 nat, at two loops and at full depth. */
function hardComparisons(results: Results) {
  const [own, ...others] = onTokens(results)
  const asked = others
    .flatMap((reference) =>
      [2, settings.model.total_ut_steps].map((loops) => {
        const of = (arm: string) => hardAccuracy(results, arm, settings.hardAbove.indexOf(1), loops)
        const bases = [...of(own!).keys()].filter((base) => of(reference).has(base))
        const values = (arm: string) => bases.map((base) => of(arm).get(base)!)
        return { reference, loops, own: values(own!), others: values(reference) }
      }),
    )
    .filter((each) => each.own.length >= fewestBases)
  const outcomes = corrected(asked)
  return asked.map(({ reference, loops }, i) => ({ ...outcomes[i]!, own: own!, reference, loops }))
}

/** The tables by name. */
export function tables(results: Results): Record<string, string> {
  const rows = all.flatMap((arm) => {
    const runs = runsOf(results, arm)
    const of = (value: (m: Measurement) => number) => estimate(runs.map(({ final }) => value(final)))
    const perLoop = Array.from({ length: settings.model.total_ut_steps }, (_, t) => of(({ accuracy }) => accuracy[t]!))
    return runs.length === 0 ? [] : [[label(arm), `${runs.length}`, ...perLoop]]
  })
  const loops = Array.from({ length: settings.model.total_ut_steps }, (_, t) => `loop ${t + 1}`)
  const bases = runsOf(results, 'base').map(({ base, steps, seconds, fell, final }) => [
    ...[`${base}`, `${steps}`, `${Math.round(seconds)}`, final.loss.at(-1)!.toFixed(3), percent(fell!)],
  ])
  const tests = comparisons(results).map((each) => [
    ...[label(each.own), label(each.reference), each.exits],
    ...comparisonCells(each),
    pValue(each.equal),
  ])
  const hardTests = hardComparisons(results).map((each) => [
    ...[label(each.own), label(each.reference), `${each.loops}`],
    ...comparisonCells(each),
  ])
  const levels = onTokens(results).flatMap((arm) => {
    const cells = settings.hardAbove.map((_, k) => [...hardAccuracy(results, arm, k, settings.model.total_ut_steps).values()])
    return cells.some((values) => values.length === 0) ? [] : [[label(arm), ...cells.map(estimate)]]
  })
  const share = (k: number) =>
    percent(mean(Object.keys(arms).flatMap((arm) => runsOf(results, arm).flatMap(({ hard }) => hard?.[k]?.share ?? []))))
  const noise = Object.keys(arms).flatMap((arm) => {
    const stored = runsOf(results, arm).flatMap((run) => run.noise ?? [])
    return stored.length === 0 ? [] : [[label(arm), `${arms[arm]!.options.sigma ?? 0.1}`, mean(stored).toFixed(3)]]
  })
  return {
    'text-hard': table(['on bytes above 1 nat', 'against', 'loops', ...comparisonHead], hardTests),
    'text-hard-levels': table(
      ['at full depth', ...settings.hardAbove.map((above, k) => `above ${above} nats (${share(k)} % of all)`)],
      levels,
    ),
    'text-noise': table(['arm', 'σ', 'noise by state, norms'], noise),
    'text-bases': table(['base', 'steps', 'CPU s', 'held-out loss, nats', 'fell over the last quarter, %'], bases),
    text: table(['next bytes', 'bases', ...loops], rows),
    'text-tests': table(['at equal mean loops', 'against', 'exits by', ...comparisonHead, 'TOST p (Holm)'], tests),
  }
}

/** Whether LoopRPT is better per loop: against its base and against as much Stage I, by the gate. */
export function claim(results: Results): string {
  const asked = comparisons(results).filter(({ reference, exits }) => exits === 'gate' && /^base$|^stage1/.test(reference))
  if (asked.length === 0) return 'no run on text yet; [Study I](study.md) has sums'
  const list = (wanted: (each: Comparison) => boolean) =>
    asked
      .filter(wanted)
      .map((each) => `${label(each.reference)} (${signedRange(each.test)})`)
      .join(', ')
  const ahead = list(({ adjusted, test }) => adjusted < significance && test.mean > 0)
  const behind = list(({ adjusted, test }) => adjusted < significance && test.mean < 0)
  const same = list(({ adjusted, equal }) => adjusted >= significance && equal < significance)
  const open = list(({ adjusted, equal }) => adjusted >= significance && equal >= significance)
  const parts = [
    ahead && `ahead of ${ahead}`,
    behind && `behind ${behind}`,
    same && `equal to ${same}`,
    open && `not decided against ${open}`,
  ]
  const verdict = behind || same ? 'does not hold' : open ? 'not decided' : 'holds'
  return `${verdict}: ${label(asked[0]!.own)} is ${parts.filter(Boolean).join('; ')}`
}
