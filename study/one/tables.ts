// The tables and verdicts of docs/study.md.
import { comparisonCells, comparisonHead, estimate, percent, signed, table } from '../cells.js'
import { atEqualLoops } from '../gates.js'
import { corrected, mean } from '../statistics.js'
import {
  arms,
  available,
  type Comparison,
  commonBases,
  finalRuns,
  label,
  loopComparisons,
  loopCounts,
  measurements,
  partMethods,
  type Results,
  terciles,
  tokenComparisons,
} from './comparisons.js'
import { baseId, chosenRate, methods, type Part, settings, timingId, trainingId, tuningScore } from './plan.js'
import type { BaseResult, Measurement, TimingResult, TrainingResult } from './results.js'

/** All tables by name. */
export function tables(results: Results): Record<string, string> {
  return {
    bases: basesTable(results),
    rates: ratesTable(results),
    'a-verdict': loopsVerdict(results),
    'a-loops': loopsTable(results, 'a', 'grpo'),
    'a-tests': testsTable(results, partMethods('a').slice(1), 'grpo'),
    'a-equal-loops': equalLoopsTable(results, partMethods('a').slice(1), 'grpo'),
    'a-lag': lagTable(results, partMethods('a').slice(1), 'grpo'),
    'a-cost': costTable(results, partMethods('a')),
    'b-verdict': tokensVerdict(results),
    'b-tokens': tokensTable(results),
    'b-tests': tokenTestsTable(results),
    'b-gates': gatesTable(results),
    'b-cost': costTable(results, partMethods('b')),
    'c-loops': loopsTable(results, 'c', 'rltt-exit-pdf'),
    'c-tests': testsTable(results, partMethods('c'), 'rltt-exit-pdf'),
    'c-grpo': testsTable(results, partMethods('c'), 'grpo', loopCounts.slice(-1)),
    'c-cost': costTable(results, ['rltt-exit-pdf', ...partMethods('c')]),
  }
}

function basesTable(results: Results): string {
  const all = [...settings.bases, ...settings.tuningBases]
  const rows = all.flatMap((base) => {
    const run = results.get(baseId(base)) as BaseResult | undefined
    if (run === undefined) return []
    const { steps, seconds, final } = run
    const name = settings.bases.some((seed) => seed === base) ? `${base}` : `${base} (tuning)`
    return [[name, `${steps}`, seconds.toFixed(0), ...final.accuracy.map(percent), gateLoops(final).toFixed(2)]]
  })
  return table(['seed', 'steps', 'CPU s', ...loopCounts.map((t) => `loop ${t}`), 'mean loops at threshold .5'], rows)
}

function gateLoops({ gates }: Measurement): number {
  return gates.find(({ threshold }) => threshold === 0.5)!.loops
}

function ratesTable(results: Results): string {
  const rows = Object.entries(methods).flatMap(([name, { label, learningRates, part }]) => {
    const chosen = chosenRate(name, results)
    if (chosen === undefined) return []
    const cells = learningRates.map((rate) => {
      const runs = settings.tuningBases.map((base) => results.get(trainingId(name, base, rate)) as TrainingResult)
      const score = percent(mean(runs.map((run) => tuningScore(name, run))))
      return `${rate}: ${rate === chosen ? `**${score}**` : score}`
    })
    return [[label, part === 'b' ? 'hard tokens, all loops' : 'full depth', ...cells]]
  })
  return table(['method', 'chosen by accuracy on', 'low', 'middle', 'high'], rows)
}

function loopsTable(results: Results, part: Part, reference: string): string {
  const names = available(results, ['base', ...(part === 'a' ? [] : [reference]), ...partMethods(part)])
  const count = commonBases(results, names)
  const rows = names.map((name) => {
    const all = measurements(results, name, count)!
    const length = mean(all.map((m) => m.length.at(-1)!)).toFixed(2)
    return [label(name), ...loopCounts.map((_, t) => estimate(all.map((m) => m.accuracy[t]!))), length]
  })
  return table([`means of ${count} bases`, ...loopCounts.map((t) => `loop ${t}`), 'tokens per answer'], rows)
}

function testsTable(
  results: Results,
  names: readonly string[],
  reference: string,
  loops: readonly number[] = loopCounts,
): string {
  const rows = loopComparisons(results, names, reference, loops).map((comparison) => {
    return [label(comparison.name), `${comparison.loop}`, ...comparisonCells(comparison)]
  })
  return table([`against ${label(reference)}`, 'loop', ...comparisonHead], rows)
}

/** Paired tests of the accuracy with gate exits, averaged over the mean loops that both models of a base reach. */
function equalLoopsTable(results: Results, names: readonly string[], reference: string): string {
  const references = measurements(results, reference)
  if (references === undefined) return 'No runs yet.'
  const shown = available(results, names)
  const pairs = shown.map((name) => {
    const means = measurements(results, name)!.flatMap((own, i) => {
      const both = atEqualLoops(own.gates, references[i]!.gates, loopCounts.length)
      return both === undefined ? [] : [both]
    })
    return { own: means.map(([own]) => own), others: means.map(([, other]) => other) }
  })
  const rows = corrected(pairs).map((outcome, i) => [label(shown[i]!), ...comparisonCells(outcome)])
  return table([`against ${label(reference)}, equal mean loops`, ...comparisonHead], rows)
}

/** The step at which the reference reached the full-depth accuracy that each method has at the end. */
function lagTable(results: Results, names: readonly string[], reference: string): string {
  const curve = (name: string) => {
    const runs = finalRuns(results, name)!.map(({ checkpoints }) => checkpoints)
    return runs[0]!.map(({ step }, i) => ({ step, accuracy: mean(runs.map((run) => run[i]!.accuracy.at(-1)!)) }))
  }
  if (measurements(results, reference) === undefined) return 'No runs yet.'
  const course = curve(reference)
  const rows = available(results, names).map((name) => {
    const { step: steps, accuracy } = curve(name).at(-1)!
    const next = course.findIndex((point) => point.accuracy >= accuracy)
    if (next < 1) return [label(name), percent(accuracy), 'never', '']
    const [before, after] = [course[next - 1]!, course[next]!]
    const share = (accuracy - before.accuracy) / (after.accuracy - before.accuracy)
    const step = before.step + share * (after.step - before.step)
    return [label(name), percent(accuracy), step.toFixed(0), `${((100 * (steps - step)) / steps).toFixed(0)} %`]
  })
  return table(['', 'accuracy at the end', `${label(reference)} is there at step`, 'of training behind'], rows)
}

/** Sentences about the loop counts at which a difference of accuracies stays significant after the correction. */
function loopsVerdict(results: Results): string {
  const comparisons = loopComparisons(results, partMethods('a').slice(1), 'grpo')
  return verdicts(comparisons, ({ name }) => `${label(name)} against GRPO`)
}

const significance = 0.05

/** A list item per subject: where it is ahead, where it is behind, and where its table shows neither. */
function verdicts(comparisons: readonly Comparison[], subject: (comparison: Comparison) => string): string {
  if (comparisons.length === 0) return 'No runs yet.'
  const subjects = [...new Set(comparisons.map(subject))]
  return subjects
    .map((name) => `* ${name}: ${inWords(comparisons.filter((comparison) => subject(comparison) === name))}`)
    .join('\n')
}

function inWords(comparisons: readonly Comparison[]): string {
  const list = (wanted: (comparison: Comparison) => boolean) =>
    comparisons.filter(wanted).map(({ loop, test }) => `${loop} (${signed(test.mean)})`)
  const better = list(({ adjusted, test }) => adjusted < significance && test.mean > 0)
  const worse = list(({ adjusted, test }) => adjusted < significance && test.mean < 0)
  const open = list(({ adjusted }) => adjusted >= significance)
  const parts = [
    ...(better.length > 0 ? [`ahead at loop ${better.join(', ')}`] : []),
    ...(worse.length > 0 ? [`behind at loop ${worse.join(', ')}`] : []),
    ...(open.length > 0 ? [`not decided at loop ${open.join(', ')}`] : []),
  ]
  return `${parts.join(';\n  ')}.`
}

function tokensVerdict(results: Results): string {
  const comparisons = tokenComparisons(results).filter(({ tokens }) => tokens === 'hard')
  return verdicts(comparisons, ({ reference }) => `LoopRPT against ${label(reference)}, hard tokens`)
}

function tokensTable(results: Results): string {
  const rows = terciles.flatMap((tercile) =>
    available(results, arms).map((name) => {
      const all = measurements(results, name)!
      return [tercile, label(name), ...loopCounts.map((_, t) => estimate(all.map((m) => m.tokens[tercile][t]!)))]
    }),
  )
  return table(['tokens', '', ...loopCounts.map((t) => `loop ${t}`)], rows)
}

function tokenTestsTable(results: Results): string {
  const rows = tokenComparisons(results).map((comparison) => {
    const { reference, tokens, loop } = comparison
    return [label(reference), tokens!, `${loop}`, ...comparisonCells(comparison)]
  })
  return table(['LoopRPT against', 'tokens', 'loop', ...comparisonHead], rows)
}

/** Mean loops and accuracy of each arm with gate exits. */
function gatesTable(results: Results): string {
  const names = available(results, arms)
  const rows = settings.thresholds.map((threshold, k) => [
    `${threshold}`,
    ...names.map((name) => {
      const points = measurements(results, name)!.map(({ gates }) => gates[k]!)
      return `${mean(points.map(({ loops }) => loops)).toFixed(2)}: ${estimate(points.map(({ accuracy }) => accuracy))}`
    }),
  ])
  return table(['threshold', ...names.map(label)], names.length > 0 ? rows : [])
}

/** The cost of a step. Memory is the peak of the engine beyond the weights, and that of the process. */
function costTable(results: Results, names: readonly string[]): string {
  const rows = names.flatMap((name) => {
    const timing = results.get(timingId(name)) as TimingResult | undefined
    if (timing === undefined) return []
    const { cpuSeconds, wallSeconds, engineBytes, residentBytes } = timing
    const run = finalRuns(results, name)
    const total = run === undefined ? '' : mean(run.map(({ curve }) => curve.seconds.at(-1)!)).toFixed(1)
    const mebibytes = (bytes: number) => (bytes / 2 ** 20).toFixed(1)
    const times = [(1000 * wallSeconds).toFixed(1), (1000 * cpuSeconds).toFixed(1)]
    return [[label(name), ...times, mebibytes(engineBytes), mebibytes(residentBytes), `${methods[name]!.steps}`, total]]
  })
  return table(['', 'ms per step', 'CPU ms per step', 'engine, MiB', 'resident, MiB', 'steps', 'CPU s of a run'], rows)
}
