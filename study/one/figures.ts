// The figures of docs/study.md.
import { lineChart, type Panel, type Series } from '../../src/monitor/chart.js'
import { across, differencePanel, figureWidth, loopAxis, means } from '../panels.js'
import { mean } from '../statistics.js'
import {
  arms,
  available,
  commonBases,
  drawnMethods,
  finalRuns,
  label,
  loopCounts,
  measurements,
  paired,
  partMethods,
  type Results,
} from './comparisons.js'
import { settings } from './plan.js'
import type { Tercile, TrainingResult } from './results.js'

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

/** Left: accuracy by loop count. Right: the paired differences from the reference. */
function claimFigure(results: Results, title: string, names: string[], reference: string, base: boolean): string {
  const shown = available(results, [reference, ...names])
  const others = shown.includes(reference) ? shown.filter((name) => name !== reference) : []
  const count = commonBases(results, shown)
  const byLoop = (name: string) => loopCounts.map((_, t) => measurements(results, name, count)!.map((m) => m.accuracy[t]!))
  const left = [...shown, ...(base ? available(results, ['base']) : [])]
  const tests = others.map((name) => loopCounts.map((_, t) => paired(results, name, reference, (m) => m.accuracy[t]!)))
  const panels: Panel[] = [
    {
      ...loopAxis(loopCounts),
      title: 'Accuracy by loop count',
      yRange: [0, 1],
      yLabel: `greedy accuracy, mean of ${count} bases with 95 % interval`,
      series: left.map((name, i) => means(label(name), loopCounts, byLoop(name), across(left.length, i, 0.2))),
    },
    differencePanel(`Difference to ${label(reference)}, paired by base`, others.map(label), tests, loopCounts),
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
    ...loopAxis(loopCounts),
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
        loopCounts,
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
