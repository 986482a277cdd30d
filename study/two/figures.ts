// The figures of docs/study-2.md.
import { lineChart, type Panel, type Series } from '../../src/monitor/chart.js'
import { across, differencePanel, figureWidth, loopAxis, means } from '../panels.js'
import { mean, pairedTest } from '../statistics.js'
import { endAccuracy, fewestBases, label, loopCounts, mainTasks, pairsOf, type Results, runsOf } from './comparisons.js'
import { arms, rateScore, rateSearch, type TaskName, taskOf } from './plan.js'

/** All figures by name, as SVG. Only for tasks with runs. */
export function figures(results: Results): Record<string, string> {
  const shown = mainTasks.filter((task) => runsOf(results, task, 'grpo').size > 0)
  if (shown.length === 0) return {}
  return {
    'two-course': courseFigure(results, shown),
    'two-loops': loopsFigure(results, shown),
    'two-rates': ratesFigure(results, shown),
  }
}

/** The drawn arms with runs on a task: the first two and the exit-sampled gradient. */
const drawn = (results: Results, task: TaskName) =>
  ['grpo', 'rltt', 'exit-sampled'].filter((arm) => arm in arms && runsOf(results, task, arm).size > 0)

function courseFigure(results: Results, shown: readonly TaskName[]): string {
  const panels = shown.map((task): Panel => {
    const series = drawn(results, task).map((arm) => {
      const courses = [...runsOf(results, task, arm).values()].map(({ course }) => course)
      const points = courses[0]!.map((_, k) => courses.map((course) => course[k]!))
      const tokens = points.map((list) => mean(list.map((point) => point.tokens / 1000)))
      return means(
        label(arm),
        tokens,
        points.map((list) => list.map(({ accuracy }) => accuracy.at(-1)!)),
      )
    })
    const yLabel = 'greedy accuracy at full depth, mean with 95 % interval'
    return { title: taskOf(task).label, xLabel: 'thousand sampled tokens', yLabel, yRange: [0, 1], series }
  })
  const says = panels.flatMap(({ title, series }) =>
    series.map(({ name, points }) => `${title}, ${name} ends at ${points.at(-1)![1].toFixed(3)}.`),
  )
  return lineChart({ title: 'Accuracy by sampled tokens', description: says.join(' '), panels, panelWidth: figureWidth })
}

/** Accuracy by loop count, and RLTT's paired differences from GRPO. */
function loopsFigure(results: Results, shown: readonly TaskName[]): string {
  const panels = shown.map((task): Panel => {
    const names = drawn(results, task)
    const series = names.map((arm, i) => {
      const runs = [...runsOf(results, task, arm).values()]
      const values = loopCounts.map((t) => runs.map((run) => endAccuracy(run, t)))
      return means(label(arm), loopCounts, values, across(names.length, i, 0.2))
    })
    return {
      ...loopAxis(loopCounts),
      title: taskOf(task).label,
      yLabel: 'greedy accuracy at the end, 95 % interval',
      yRange: [0, 1],
      series,
    }
  })
  const tested = shown.filter((task) => pairsOf(results, task, 'rltt', 'grpo').length >= fewestBases)
  const tests = tested.map((task) => {
    const pairs = pairsOf(results, task, 'rltt', 'grpo')
    return loopCounts.map((t) =>
      pairedTest(
        pairs.map(([own]) => endAccuracy(own, t)),
        pairs.map(([, other]) => endAccuracy(other, t)),
      ),
    )
  })
  const says = tests.map((list, i) => {
    const points = list.map((test, t) => `${(100 * test.mean).toFixed(1)} at ${t + 1} loops`).join(', ')
    return `${taskOf(tested[i]!).label}, RLTT minus GRPO: ${points}.`
  })
  const difference = differencePanel(
    'RLTT minus GRPO, paired by base',
    tested.map((task) => taskOf(task).label),
    tests,
    loopCounts,
  )
  const all = tests.length > 0 ? [...panels, difference] : panels
  return lineChart({ title: 'Accuracy by loop count', description: says.join(' '), panels: all, panelWidth: figureWidth })
}

/** Score by learning rate on the tuning bases. x counts factors of 2 from 1e-4. */
function ratesFigure(results: Results, shown: readonly TaskName[]): string {
  const panels = shown.map((task): Panel => {
    const series = drawn(results, task)
      .filter((arm) => arms[arm]!.ratesOf === undefined)
      .map((arm): Series => {
        const points = rateSearch(results, task, arm).grid.flatMap((rate): [number, number][] => {
          const score = rateScore(results, task, arm, rate)
          return score === undefined ? [] : [[Math.log2(rate / 1e-4), score]]
        })
        return { name: label(arm), points }
      })
    const yLabel = 'area under full-depth accuracy, tuning bases'
    return { title: taskOf(task).label, xLabel: 'log2(rate / 1e-4)', yLabel, yRange: [0, 1], series }
  })
  const says = panels.flatMap(({ title, series }) =>
    series.map(
      ({ name, points }) => `${title}, ${name}: ${points.map(([x, y]) => `${y.toFixed(3)} at 1e-4 × ${2 ** x}`).join(', ')}.`,
    ),
  )
  return lineChart({ title: 'Score against learning rate', description: says.join(' '), panels, panelWidth: figureWidth })
}
