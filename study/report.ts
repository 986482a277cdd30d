// Tables and figures of docs/study.md, from the stored metrics alone.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { lineChart, type Panel, type Series } from '../src/monitor/chart.js'
import { baseId, basesOf, chosenRate, methods, type Part, settings, timingId, trainingId, tuningScore } from './plan.js'
import type { BaseResult, Measurement, Result, Tercile, TimingResult, TrainingResult } from './results.js'
import { holm, interval, mean, type PairedTest, pairedTest } from './statistics.js'

type Results = ReadonlyMap<string, Result>

const loopCounts = Array.from({ length: settings.model.total_ut_steps }, (_, i) => i + 1)
const fewestBases = 3 // a paired test on two has no use
const terciles = ['easy', 'medium', 'hard'] as const
/** What part b compares, the method first. */
const arms = ['looprpt', 'base', 'stage1', 'stage1-equal-data']

/** Writes docs/study.md's tables between their marks and its figures beside it; returns the paths written, relative to `root`. */
export function writeReport(root: string, results: Results): string[] {
  const document = join('docs', 'study.md')
  const drawn = figures(results)
  mkdirSync(join(root, 'docs', 'study'), { recursive: true })
  for (const [name, svg] of Object.entries(drawn)) writeFileSync(join(root, 'docs', 'study', `${name}.svg`), svg)
  const text = readFileSync(join(root, document), 'utf8')
  writeFileSync(join(root, document), fillTables(text, tables(results)))
  return [document, ...Object.keys(drawn).map((name) => join('docs', 'study', `${name}.svg`))]
}

/**
 * Replaces what stands between `<!-- table NAME -->` and `<!-- end -->`.
 *
 * @throws Error for a name without a table, or a table without a place
 */
export function fillTables(text: string, content: Readonly<Record<string, string>>): string {
  const placed = new Set<string>()
  const filled = text.replace(/<!-- table ([\w-]+) -->\n[\s\S]*?<!-- end -->/g, (_, name: string) => {
    if (content[name] === undefined) throw new Error(`docs/study.md has a place for table ${name}, which does not exist`)
    placed.add(name)
    return `<!-- table ${name} -->\n${content[name]}\n<!-- end -->`
  })
  const missing = Object.keys(content).filter((name) => !placed.has(name))
  if (missing.length > 0) throw new Error(`docs/study.md has no place for table ${missing.join(', ')}`)
  return filled
}

/** All tables by name. */
export function tables(results: Results): Record<string, string> {
  return {
    bases: basesTable(results),
    rates: ratesTable(results),
    'a-verdict': loopsVerdict(results),
    'a-loops': loopsTable(results, 'a', 'grpo'),
    'a-tests': testsTable(results, partMethods('a').slice(1), 'grpo'),
    'a-cost': costTable(results, partMethods('a')),
    'b-verdict': tokensVerdict(results),
    'b-tokens': tokensTable(results),
    'b-tests': tokenTestsTable(results),
    'b-gates': gatesTable(results),
    'b-cost': costTable(results, partMethods('b')),
    'c-loops': loopsTable(results, 'c', 'rltt-exit-pdf'),
    'c-tests': testsTable(results, partMethods('c'), 'rltt-exit-pdf'),
    'c-cost': costTable(results, ['rltt-exit-pdf', ...partMethods('c')]),
  }
}

/** All figures by name, as SVG. */
export function figures(results: Results): Record<string, string> {
  return {
    'a-claim': claimFigure(results, 'RLTT against GRPO by loop count', partMethods('a').slice(1), 'grpo', true),
    'a-reward': rewardFigure(results),
    'a-gates': gatesFigure(results, 'Accuracy and mean loops under gate exits', partMethods('a')),
    'b-claim': tokensFigure(results),
    'b-tokens': easierTokensFigure(results),
    'b-compute': computeFigure(results),
    'c-claim': claimFigure(results, 'Options of the algebra against RLTT exit-pdf', drawnMethods('c'), 'rltt-exit-pdf', false),
  }
}

// What was measured

function partMethods(part: Part): string[] {
  return Object.keys(methods).filter((name) => methods[name]!.part === part)
}

const drawnMethods = (part: Part) => partMethods(part).filter((name) => methods[name]!.drawn !== false)

/** The final runs of a method on the first bases of its part, as far as they are there; undefined with fewer than three. */
function finalRuns(results: Results, method: string): TrainingResult[] | undefined {
  const rate = chosenRate(method, results)
  if (rate === undefined) return undefined
  const runs: TrainingResult[] = []
  for (const base of basesOf(methods[method]!.part)) {
    const run = results.get(trainingId(method, base, rate)) as TrainingResult | undefined
    if (run === undefined) break
    runs.push(run)
  }
  return runs.length < fewestBases ? undefined : runs
}

/** What the bases, or the models that a method made of them, do: one per base, of the first `bases` at most. */
function measurements(results: Results, method: string, bases: number = settings.bases.length): Measurement[] | undefined {
  if (method !== 'base')
    return finalRuns(results, method)
      ?.slice(0, bases)
      .map(({ final }) => final)
  const runs = settings.bases.slice(0, bases).map((base) => results.get(baseId(base)) as BaseResult | undefined)
  return runs.includes(undefined) ? undefined : runs.map((run) => run!.final)
}

const available = (results: Results, names: readonly string[]) =>
  names.filter((name) => measurements(results, name) !== undefined)
const label = (method: string) => (method === 'base' ? 'base' : methods[method]!.label)

function paired(results: Results, method: string, reference: string, of: (m: Measurement) => number): PairedTest {
  const own = measurements(results, method)!
  return pairedTest(own.map(of), measurements(results, reference, own.length)!.map(of))
}

// Tables

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return 'No runs yet.'
  return [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n')
}

const percent = (value: number) => (100 * value).toFixed(1)
const signed = (value: number) => `${value < 0 ? '−' : '+'}${Math.abs(100 * value).toFixed(1)}`
const pValue = (p: number) => (p < 0.0001 ? '<.0001' : p.toFixed(4).replace(/^0/, ''))

/** `68.2 [65.0, 71.4]`, in percent. */
function estimate(values: readonly number[]): string {
  const { mean, low, high } = interval(values)
  return `${percent(mean)} [${percent(low)}, ${percent(high)}]`
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

/** How many of the first bases all these methods have been run on. */
function commonBases(results: Results, names: readonly string[]): number {
  return Math.min(...names.map((name) => measurements(results, name)!.length))
}

function testsTable(results: Results, names: readonly string[], reference: string): string {
  if (measurements(results, reference) === undefined) return 'No runs yet.'
  const tests = available(results, names).flatMap((name) =>
    loopCounts.map((loop, t) => ({ name, loop, test: paired(results, name, reference, (m) => m.accuracy[t]!) })),
  )
  const adjusted = holm(tests.map(({ test }) => test.p))
  const rows = tests.map(({ name, loop, test }, i) => {
    const wins = countWins(results, name, reference, (m) => m.accuracy[loop - 1]!)
    const range = `${signed(test.mean)} [${signed(test.low)}, ${signed(test.high)}]`
    return [label(name), `${loop}`, range, wins, test.t.toFixed(2), pValue(test.p), pValue(adjusted[i]!)]
  })
  return table([`against ${label(reference)}`, 'loop', 'difference in points', 'bases ahead', 't', 'p', 'p (Holm)'], rows)
}

function countWins(results: Results, method: string, reference: string, of: (m: Measurement) => number): string {
  const others = measurements(results, reference)!.map(of)
  const own = measurements(results, method)!.map(of)
  return `${own.filter((value, i) => value > others[i]!).length}/${own.length}`
}

/** In words: at which loop counts a difference of accuracies is significant. */
function loopsVerdict(results: Results): string {
  const names = available(results, partMethods('a').slice(1))
  if (measurements(results, 'grpo') === undefined || names.length === 0) return 'No runs yet.'
  return names
    .map((name) => {
      const tests = loopCounts.map((_, t) => paired(results, name, 'grpo', (m) => m.accuracy[t]!))
      return `* ${label(name)} against GRPO: ${inWords(tests)}`
    })
    .join('\n')
}

function inWords(tests: readonly PairedTest[]): string {
  const list = (wanted: (test: PairedTest) => boolean) =>
    loopCounts.filter((_, t) => wanted(tests[t]!)).map((t) => `${t} (${signed(tests[t - 1]!.mean)})`)
  const better = list(({ low }) => low > 0)
  const worse = list(({ high }) => high < 0)
  const open = list(({ low, high }) => low <= 0 && high >= 0)
  const parts = [
    ...(better.length > 0 ? [`better at loop ${better.join(', ')}`] : []),
    ...(worse.length > 0 ? [`worse at loop ${worse.join(', ')}`] : []),
    ...(open.length > 0 ? [`no difference shown at loop ${open.join(', ')}`] : []),
  ]
  const claim = better.length === tests.length ? 'The claim holds here' : 'The claim does not hold here at every loop count'
  return `${parts.join('; ')}. ${claim}.`
}

function tokensVerdict(results: Results): string {
  const references = available(results, arms.slice(1))
  if (measurements(results, 'looprpt') === undefined) return 'No runs yet.'
  return references
    .map((reference) => {
      const tests = loopCounts.map((_, t) => paired(results, 'looprpt', reference, (m) => m.tokens.hard[t]!))
      return `* LoopRPT against ${label(reference)}, hard tokens: ${inWords(tests)}`
    })
    .join('\n')
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
  if (measurements(results, 'looprpt') === undefined) return 'No runs yet.'
  const [, base, ...others] = arms
  const families = [
    ...terciles.map((tercile) => ({ tercile, reference: base! })),
    ...others.map((reference) => ({ tercile: 'hard' as const, reference })),
  ].filter(({ reference }) => measurements(results, reference) !== undefined)
  const tests = families.flatMap(({ tercile, reference }) =>
    loopCounts.map((loop, t) => {
      const of = (m: Measurement) => m.tokens[tercile][t]!
      return { tercile, reference, loop, of, test: paired(results, 'looprpt', reference, of) }
    }),
  )
  const adjusted = holm(tests.map(({ test }) => test.p))
  const rows = tests.map(({ tercile, reference, loop, of, test }, i) => [
    label(reference),
    tercile,
    `${loop}`,
    `${signed(test.mean)} [${signed(test.low)}, ${signed(test.high)}]`,
    countWins(results, 'looprpt', reference, of),
    test.t.toFixed(2),
    pValue(test.p),
    pValue(adjusted[i]!),
  ])
  return table(['LoopRPT against', 'tokens', 'loop', 'difference in points', 'bases ahead', 't', 'p', 'p (Holm)'], rows)
}

function gatesTable(results: Results): string {
  const names = available(results, arms)
  const rows = settings.thresholds.map((threshold, k) => [
    `${threshold}`,
    ...names.flatMap((name) => {
      const points = measurements(results, name)!.map(({ gates }) => gates[k]!)
      return [mean(points.map(({ loops }) => loops)).toFixed(2), estimate(points.map(({ accuracy }) => accuracy))]
    }),
  ])
  return table(['threshold', ...names.flatMap((name) => [`${label(name)}: loops`, 'accuracy'])], names.length > 0 ? rows : [])
}

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
  const head = [
    '',
    'ms per step',
    'CPU ms per step',
    'engine peak beyond the weights, MiB',
    'resident peak, MiB',
    'steps of a run',
    'CPU s of a run',
  ]
  return table(head, rows)
}

// Figures

const figureWidth = 560

/** A series of mean accuracies with intervals, cut at 0 and 1; neighbours are moved apart by `shift`. */
function means(name: string, xs: readonly number[], values: readonly (readonly number[])[], shift = 0): Series {
  const estimates = values.map(interval)
  return {
    name,
    points: estimates.map(({ mean }, i) => [xs[i]! + shift, mean]),
    intervals: estimates.map(({ low, high }) => [Math.max(low, 0), Math.min(high, 1)]),
  }
}

const across = (count: number, i: number, width: number) => (count < 2 ? 0 : (i / (count - 1) - 0.5) * width)

const loopAxis = { xLabel: 'loops', xTicks: loopCounts, xPadding: 0.2 }

/** Paired differences by loop, so that a claim is read off the zero line. */
function differencePanel(title: string, names: readonly string[], tests: readonly (readonly PairedTest[])[]): Panel {
  const zero: Series = { name: 'zero', points: [loopCounts[0]!, loopCounts.at(-1)!].map((t) => [t, 0]) }
  const series = tests.map((list, i): Series => {
    const shift = across(tests.length, i, 0.24)
    return {
      name: names[i]!,
      points: list.map(({ mean }, t) => [loopCounts[t]! + shift, 100 * mean]),
      intervals: list.map(({ low, high }) => [100 * low, 100 * high]),
    }
  })
  const ends = tests.flat().flatMap(({ low, high }) => [100 * low, 100 * high])
  const yRange: [number, number] = [Math.min(-1, ...ends) - 0.5, Math.max(1, ...ends) + 0.5]
  return {
    ...loopAxis,
    title,
    yLabel: 'points, mean with 95 % interval; above zero is better',
    yRange,
    series: [zero, ...series],
  }
}

/** Left: accuracy by loop count. Right: the paired differences to the reference. */
function claimFigure(results: Results, title: string, names: string[], reference: string, base: boolean): string {
  const shown = available(results, [reference, ...names])
  const others = shown.includes(reference) ? shown.filter((name) => name !== reference) : []
  const count = commonBases(results, shown)
  const byLoop = (name: string) => loopCounts.map((_, t) => measurements(results, name, count)!.map((m) => m.accuracy[t]!))
  const left = [...shown, ...(base ? available(results, ['base']) : [])]
  const tests = others.map((name) => loopCounts.map((_, t) => paired(results, name, reference, (m) => m.accuracy[t]!)))
  const panels: Panel[] = [
    {
      ...loopAxis,
      title: 'Accuracy by loop count',
      yRange: [0, 1],
      yLabel: `greedy accuracy, mean of ${count} bases with 95 % interval`,
      series: left.map((name, i) => means(label(name), loopCounts, byLoop(name), across(left.length, i, 0.2))),
    },
    differencePanel(`Difference to ${label(reference)}, paired by base`, others.map(label), tests),
  ]
  const says = others.map((name, i) => {
    const text = tests[i]!.map((test, t) => `${(100 * test.mean).toFixed(1)} at loop ${t + 1}`).join(', ')
    return `${label(name)} minus ${label(reference)}: ${text} points.`
  })
  return lineChart({ title, description: says.join(' '), panels, panelWidth: figureWidth })
}

/** Mean training reward over steps and over CPU seconds. */
function rewardFigure(results: Results): string {
  const names = available(results, partMethods('a'))
  const series = (x: 'step' | 'seconds') =>
    names.map((name): Series => {
      const curves = finalRuns(results, name)!.map(({ curve }) => curve)
      const at = (values: (curve: TrainingResult['curve']) => number[], i: number) => mean(curves.map((c) => values(c)[i]!))
      return {
        name: label(name),
        points: curves[0]!.step.map((_, i) => [at((c) => c[x], i), at((c) => c.reward, i)]),
      }
    })
  const yLabel = `mean reward of the samples, ${settings.partBases.a} bases`
  const panels: Panel[] = [
    { title: 'Reward by step', xLabel: 'step', yLabel, series: series('step') },
    { title: 'Reward by time', xLabel: 'CPU seconds of training, one thread', yLabel, series: series('seconds') },
  ]
  const description = names.map((name, i) => `${label(name)} ends at ${panels[0]!.series[i]!.points.at(-1)![1].toFixed(3)}.`)
  return lineChart({ title: 'Training reward', description: description.join(' '), panels, panelWidth: figureWidth })
}

/** Accuracy against mean loops, one point per threshold of the gate. */
function gateSeries(results: Results, names: readonly string[]): Series[] {
  return names.map((name) => {
    const all = measurements(results, name)!
    const points = settings.thresholds.map((_, k) => all.map(({ gates }) => gates[k]!))
    const loops = points.map((list) => mean(list.map((point) => point.loops)))
    return means(
      label(name),
      loops,
      points.map((list) => list.map(({ accuracy }) => accuracy)),
    )
  })
}

function gatePanel(series: Series[]): Panel {
  return {
    title: `Gate exits, thresholds ${settings.thresholds[0]} to 1`,
    xLabel: 'mean loops per token',
    yLabel: 'greedy accuracy of whole answers, mean with 95 % interval',
    yRange: [0, 1],
    series,
  }
}

function gatesFigure(results: Results, title: string, names: readonly string[]): string {
  const series = gateSeries(results, available(results, [...names, 'base']))
  const ends = series.map(
    ({ name, points }) => `${name}: ${points.at(-1)![1].toFixed(3)} at ${points.at(-1)![0].toFixed(2)} loops.`,
  )
  return lineChart({ title, description: ends.join(' '), panels: [gatePanel(series)], panelWidth: 760 })
}

/** Next-token accuracy by loop of one tercile. */
function tercilePanel(results: Results, names: readonly string[], tercile: Tercile): Panel {
  return {
    ...loopAxis,
    title: `${tercile[0]!.toUpperCase()}${tercile.slice(1)} tokens`,
    yLabel: `next-token accuracy, mean of ${settings.partBases.b} bases with 95 % interval`,
    yRange: [0, 1],
    series: names.map((name, i) => {
      const values = loopCounts.map((_, t) => measurements(results, name)!.map((m) => m.tokens[tercile][t]!))
      return means(label(name), loopCounts, values, across(names.length, i, 0.2))
    }),
  }
}

/** Hard tokens by loop, LoopRPT's differences on them, and whole answers under gate exits. */
function tokensFigure(results: Results): string {
  const names = available(results, arms)
  const references = names.includes('looprpt') ? names.filter((name) => name !== 'looprpt') : []
  const tests = references.map((reference) =>
    loopCounts.map((_, t) => paired(results, 'looprpt', reference, (m) => m.tokens.hard[t]!)),
  )
  const hard = references.map((reference, i) => {
    return `LoopRPT minus ${label(reference)}: ${tests[i]!.map((test) => (100 * test.mean).toFixed(1)).join(', ')} points.`
  })
  return lineChart({
    title: 'LoopRPT by loop on hard tokens, and under gate exits',
    description: `Next-token accuracy on hard tokens at loops 1 to 4. ${hard.join(' ')}`,
    panels: [
      tercilePanel(results, names, 'hard'),
      differencePanel(
        'LoopRPT on hard tokens, paired by base',
        references.map((reference) => `minus ${label(reference)}`),
        tests,
      ),
      gatePanel(gateSeries(results, names)),
    ],
    panelWidth: figureWidth,
  })
}

function easierTokensFigure(results: Results): string {
  const names = available(results, arms)
  const panels = (['medium', 'easy'] as const).map((tercile) => tercilePanel(results, names, tercile))
  const says = panels.flatMap(({ title, series }) =>
    series.map(({ name, points }) => `${title}, ${name}: ${points.map(([, y]) => y.toFixed(3)).join(', ')}.`),
  )
  return lineChart({
    title: 'Next-token accuracy by loop on medium and easy tokens',
    description: says.join(' '),
    panels,
    panelWidth: figureWidth,
  })
}

/** Accuracy of whole answers at full depth over CPU seconds of further training. */
function computeFigure(results: Results): string {
  const trained = available(results, partMethods('b'))
  const names = trained.length > 0 ? available(results, arms) : []
  const seconds = (name: string) => finalRuns(results, name)!.map(({ curve }) => curve.seconds.at(-1)!)
  const longest = Math.max(0, ...trained.map((name) => mean(seconds(name))))
  const series = names.map((name): Series => {
    const runs = finalRuns(results, name === 'base' ? trained[0]! : name)!
    const points = runs[0]!.checkpoints.map((_, i) => runs.map(({ checkpoints }) => checkpoints[i]!))
    const full = points.map((list) => list.map(({ accuracy }) => accuracy.at(-1)!))
    if (name === 'base') return means(label(name), [0, longest], [full[0]!, full[0]!])
    const times = points.map((list) => mean(list.map((point) => point.seconds)))
    return means(label(name), times, full)
  })
  const panel: Panel = {
    title: 'Training a base further on written-out answers',
    xLabel: 'CPU seconds of training, one thread',
    yLabel: `greedy accuracy at full depth, mean of ${settings.partBases.b} bases with 95 % interval`,
    yRange: [0, 1],
    series,
  }
  const ends = series.map(({ name, points }) => `${name} ends at ${points.at(-1)![1].toFixed(3)}.`)
  return lineChart({ title: 'Accuracy by compute', description: ends.join(' '), panels: [panel], panelWidth: 760 })
}
