// The tables and verdicts of docs/study-2.md.
import { comparisonCells, comparisonHead, entry, estimate, percent, pValue, signedRange, table, wrapped } from '../cells.js'
import { atEqualLoops } from '../gates.js'
import { corrected, mean } from '../statistics.js'
import * as text from '../text/tables.js'
import {
  difference,
  endAccuracy,
  fewestBases,
  label,
  loopCounts,
  loopVerdicts,
  mainTasks,
  matchedLengths,
  pairsOf,
  primaryVerdicts,
  question,
  type Results,
  runsOf,
  sentence,
  short,
  taskNames,
  type Verdict,
  verdictsOf,
} from './comparisons.js'
import { figures } from './figures.js'
import { area, arms, baseId, basesOf, dueRuns, rateOf, rateScore, rateSearch, settings, type TaskName, taskOf } from './plan.js'
import type { BaseResult, Point, TrainingResult } from './results.js'

/** All tables by name. */
export function tables(results: Results, ofText: text.Results = new Map()): Record<string, string> {
  return {
    ...text.tables(ofText),
    status: status(results),
    users: usersTable(results),
    verdicts: verdicts(results),
    claims: claims(results, ofText),
    bases: basesTable(results),
    rates: ratesTable(results),
    primary: primaryTable(results),
    loops: loopsTable(results),
    'loop-tests': loopTestsTable(results),
    'equal-loops': equalLoopsTable(results),
    budgets: budgetsTable(results),
    milestones: milestonesTable(results),
    objectives: objectivesTable(results),
    deeper: deeperTable(results),
    course: courseTable(results),
    cosines: cosinesTable(results),
    figures: figureLinks(results),
  }
}

const none = 'No runs yet.'

/** Where the page shows its figures; none before there are runs. */
function figureLinks(results: Results): string {
  const captions = {
    'two-course': 'Accuracy by sampled tokens',
    'two-loops': 'Accuracy by loop count',
    'two-rates': 'Score against learning rate',
  }
  const there = Object.keys(figures(results)) as (keyof typeof captions)[]
  return there.length === 0 ? none : there.map((name) => `![${captions[name]}](study/${name}.svg)`).join('\n\n')
}

/** Tasks with the arms that have runs on them. */
function ran(results: Results): [TaskName, string][] {
  return taskNames.flatMap((task) =>
    Object.keys(arms)
      .filter((arm) => runsOf(results, task, arm).size > 0)
      .map((arm): [TaskName, string] => [task, arm]),
  )
}

const seeds = (runs: ReadonlyMap<number, TrainingResult>) => [...runs.values()]
const counted = (count: number, what: string) => `${count} ${what}${count === 1 ? '' : 's'}`

/** Whose seconds the page has. */
function processorsOf(results: Results): string {
  const names = [...new Set([...results.values()].map(({ processor }) => processor))].sort()
  if (names.length === 1) return `Processor: ${names[0]}.`
  return `Processors, whose seconds do not compare: ${names.join('; ')}.`
}

/** On which processor, on how many bases, and what is missing. */
function status(results: Results): string {
  if (results.size === 0) return 'No run has been made yet.'
  const all = [...results.values()].filter(({ kind }) => kind === 'training').length
  const lines = mainTasks.map((task) => {
    const pairs = pairsOf(results, task, 'rltt', 'grpo').length
    const wanted = settings.bases.length
    const missing = pairs < wanted ? `, ${wanted - pairs} missing` : ''
    const tuned = ['grpo', 'rltt'].every((arm) => rateOf(results, task, arm) !== undefined)
    return entry(
      `${taskOf(task).label}: GRPO and RLTT compared on ${pairs} of ${wanted} bases${missing}${tuned ? '' : '; rates not chosen yet'}.`,
    )
  })
  const open = Object.entries(arms).flatMap(([arm, { tasks }]) => {
    const unfinished = tasks.filter((task) => runsOf(results, task, arm).size < basesOf(task, arm).length)
    return unfinished.length === 0 ? [] : [`${label(arm)} (${unfinished.map(short).join(', ')})`]
  })
  const missing = `Without all of their runs: ${open.join('; ')}. ${counted(dueRuns(results).length, 'run')} can start now.`
  return [
    wrapped(`${counted(all, 'training run')} on ${counted(results.size - all, 'base')}. ${processorsOf(results)}`),
    '',
    ...lines,
    ...(open.length > 0 ? ['', wrapped(missing)] : []),
  ].join('\n')
}

/** Accuracy of an arm for each budget of inference, with the verdict of RLTT against GRPO. */
function usersTable(results: Results): string {
  const shown = ['grpo', 'rltt', 'exit-sampled'].filter((arm) => arm in arms)
  const tests = verdictsOf(mainTasks.flatMap((task) => budgetQuestions(results, task)))
  const rows = tests.map((verdict) => {
    const { task, what, test } = verdict
    const of = (arm: string) => {
      const runs = seeds(runsOf(results, task, arm))
      return runs.length === 0 ? '–' : estimate(runs.map(budgets(what)))
    }
    const winner = { ahead: '**RLTT**', behind: '**GRPO**', equal: 'either', open: 'not decided' }[verdict.kind]
    return [short(task), what, ...shown.map(of), signedRange(test), pValue(verdict.adjusted), winner]
  })
  const head = ['task', 'what you can spend', ...shown.map(label), 'RLTT − GRPO', 'p (Holm)', 'use']
  return rows.length === 0 ? `${none} A row needs ${fewestBases} bases.` : table(head, rows)
}

const loopBudget = (loops: number) => `${loops} ${loops === 1 ? 'loop' : 'loops'} per token`
const halfGate = 'the gate at threshold 0.5'

function budgets(what: string): (run: TrainingResult) => number {
  const loops = loopCounts.find((count) => loopBudget(count) === what)
  if (loops !== undefined) return (run) => endAccuracy(run, loops)
  return ({ calibrated }) => calibrated.find(({ threshold }) => threshold === 0.5)!.accuracy
}

function budgetQuestions(results: Results, task: TaskName) {
  return [...loopCounts.toReversed().map(loopBudget), halfGate].map((what) => {
    const of = budgets(what)
    return question(results, { task, arm: 'rltt', reference: 'grpo', what, share: true }, (own, other) => [of(own), of(other)])
  })
}

function verdicts(results: Results): string {
  const lines = [...primaryVerdicts(results), ...newObjectives(results)].map((verdict) => entry(sentence(verdict)))
  return lines.length === 0 ? `${none} A verdict needs ${fewestBases} bases.` : lines.join('\n')
}

/** The exit-sampled gradient against both, by accuracy at equal mean loops. */
function newObjectives(results: Results): Verdict[] {
  if (!('exit-sampled' in arms)) return []
  const questions = mainTasks.flatMap((task) =>
    ['grpo', 'rltt'].map((reference) => equalLoopQuestion(results, task, 'exit-sampled', reference)),
  )
  return verdictsOf(questions)
}

function equalLoopQuestion(results: Results, task: TaskName, arm: string, reference: string) {
  const about = { task, arm, reference, what: 'accuracy at equal mean loops', share: true }
  return question(results, about, (own, other) => atEqualLoops(own.calibrated, other.calibrated, settings.loops))
}

/** A claim holds where it holds on every task that was asked, and does not where it fails on one. */
function holds(asked: readonly Verdict[], wanted: Verdict['kind']): string {
  if (asked.length === 0) return 'cannot be tested here yet: runs are missing'
  const list = (kind: Verdict['kind']) =>
    asked.filter((verdict) => verdict.kind === kind).map((verdict) => `${short(verdict.task)} (${difference(verdict)})`)
  const others = (['ahead', 'behind', 'equal', 'open'] as const).filter((kind) => kind !== wanted && list(kind).length > 0)
  if (others.length === 0) return `holds: ${list(wanted).join(', ')}`
  const open = others.every((kind) => kind === 'open')
  const words = { ahead: 'ahead', behind: 'behind', equal: 'equal', open: open ? 'open' : 'not decided' }
  const against = others.map((kind) => `${words[kind]} on ${list(kind).join(', ')}`).join('; ')
  return `${open ? 'not decided' : 'does not hold'}: ${against}${list(wanted).length > 0 ? `; ${words[wanted]} on ${list(wanted).join(', ')}` : ''}`
}

/** What the papers claim, and what came out here. */
function claims(results: Results, ofText: text.Results): string {
  const atLoops = loopVerdicts(results, 'rltt', 'grpo')
  const lengths = verdictsOf(
    mainTasks
      .filter((task) => taskOf(task).budgets.length > 1)
      .map((task) => question(results, { task, arm: 'rltt', reference: 'grpo', what: 'length', share: false }, matchedLengths)),
  )
  const deepest = loopVerdicts(results, 'rltt', 'grpo', [settings.loops])
  return [
    ['RLTT beats GRPO at full depth', '+14.4 points on MATH-500, 2602.10520', holds(deepest, 'ahead')],
    ['RLTT beats GRPO at every loop count', '+5 to +15 points, 2602.10520', everyLoop(atLoops)],
    ['RLTT gives shorter answers', 'stated, 2602.10520', holds(lengths, 'behind')],
    ['LoopRPT dominates in accuracy per loop', 'stated, 2603.19714', text.claim(ofText)],
  ]
    .map(([claim, published, here]) => entry(`**${claim}** (${published}): ${here}.`))
    .join('\n')
}

function everyLoop(asked: readonly Verdict[]): string {
  if (asked.length === 0) return holds(asked, 'ahead')
  const ahead = asked.filter(({ kind }) => kind === 'ahead')
  if (ahead.length === asked.length) return `holds: ahead in all ${asked.length} tests`
  const failed = asked.filter(({ kind }) => kind === 'behind' || kind === 'equal')
  if (ahead.length + failed.length === 0) return `not decided: open in all ${asked.length} tests`
  const where = (list: readonly Verdict[]) => list.map(({ task, what }) => `${short(task)} ${what.slice(18)}`).join(', ')
  const parts = [
    ...(ahead.length > 0 ? [`ahead on ${where(ahead)}`] : []),
    ...(failed.length > 0 ? [`behind or equal on ${where(failed)}`] : []),
    ...(ahead.length + failed.length < asked.length ? ['the rest is not decided'] : []),
  ]
  return `${failed.length > 0 ? 'does not hold' : 'not decided'}: ${parts.join('; ')}`
}

function basesTable(results: Results): string {
  const rows = taskNames.flatMap((task) =>
    [...settings.bases, ...settings.tuningBases].flatMap((base) => {
      const run = results.get(baseId(task, base)) as BaseResult | undefined
      if (run === undefined) return []
      const { steps, seconds, final } = run
      const cells = [...final.accuracy, final.passAt8].map(percent)
      return [[short(task), `${base}`, `${steps}`, seconds.toFixed(0), ...cells]]
    }),
  )
  return table(['task', 'base', 'steps', 'CPU s', ...loopCounts.map((t) => `loop ${t}`), 'pass@8'], rows)
}

/** Score against rate: the area on the tuning bases. */
function ratesTable(results: Results): string {
  const rows = taskNames.flatMap((task) =>
    Object.keys(arms).flatMap((arm) => {
      if (arms[arm]!.ratesOf !== undefined || taskOf(task).ratesOf !== undefined || !arms[arm]!.tasks.includes(task)) return []
      const { grid, chosen } = rateSearch(results, task, arm)
      const scores = grid.map((rate) => rateScore(results, task, arm, rate))
      if (scores.every((score) => score === undefined)) return []
      const cells = grid.map((rate, i) => {
        const score = scores[i] === undefined ? '…' : percent(scores[i])
        return `${rate}: ${rate === chosen ? `**${score}**` : score}`
      })
      return [[short(task), label(arm), cells.join(', ')]]
    }),
  )
  return table(['task', 'arm', 'rate: area under full-depth accuracy'], rows)
}

function primaryTable(results: Results): string {
  const rows = primaryVerdicts(results).map((verdict) => {
    const { task, what, share, test, ahead, adjusted, equal } = verdict
    const shown = share
      ? comparisonCells(verdict)
      : [difference(verdict), `${ahead}/${test.count}`, test.t.toFixed(2), pValue(test.p), pValue(adjusted)]
    return [short(task), what, ...shown, equal === undefined ? '–' : pValue(equal)]
  })
  return table(['task', 'RLTT against GRPO', ...comparisonHead, 'TOST p (Holm)'], rows)
}

function loopsTable(results: Results): string {
  const rows = ran(results).map(([task, arm]) => {
    const runs = seeds(runsOf(results, task, arm))
    const cells = loopCounts.map((t) => estimate(runs.map((run) => endAccuracy(run, t))))
    return [short(task), label(arm), `${runs.length}`, estimate(runs.map(area)), ...cells]
  })
  return table(['task', 'arm', 'bases', 'area', ...loopCounts.map((t) => `loop ${t}`)], rows)
}

function loopTestsTable(results: Results): string {
  const rows = loopVerdicts(results, 'rltt', 'grpo').map((verdict) => {
    return [
      short(verdict.task),
      verdict.what,
      ...comparisonCells(verdict),
      verdict.equal === undefined ? '–' : pValue(verdict.equal),
    ]
  })
  return table(['task', 'RLTT against GRPO', ...comparisonHead, 'TOST p (Holm)'], rows)
}

/** All arms at equal mean loops, after Stage II in every arm. */
function equalLoopsTable(results: Results): string {
  const questions = ran(results)
    .filter(([, arm]) => arm !== 'grpo')
    .map(([task, arm]) => equalLoopQuestion(results, task, arm, 'grpo'))
  const rows = verdictsOf(questions).map((verdict) => [short(verdict.task), label(verdict.arm), ...comparisonCells(verdict)])
  return table(['task', 'at equal mean loops, against GRPO', ...comparisonHead], rows)
}

/** 4 loop counts by the budgets of tokens. */
function budgetsTable(results: Results): string {
  const rows = ran(results)
    .filter(([, arm]) => ['grpo', 'rltt', 'exit-sampled'].includes(arm))
    .flatMap(([task, arm]) => {
      const runs = seeds(runsOf(results, task, arm))
      return taskOf(task).budgets.map((tokens, k) => {
        const cells = loopCounts.map((_, t) => percent(mean(runs.map(({ final }) => final.budgets[k]!.accuracy[t]!))))
        return [short(task), label(arm), `${tokens}`, ...cells]
      })
    })
  return table(['task', 'arm', 'tokens at most', ...loopCounts.map((t) => `loop ${t}`)], rows)
}

/** Sampled tokens, tokens × loops and CPU seconds until full-depth accuracy reaches a level. */
function milestonesTable(results: Results): string {
  const rows = ran(results).map(([task, arm]) => {
    const runs = seeds(runsOf(results, task, arm))
    const cells = [0.5, 0.7].flatMap((level) => {
      const reached = runs
        .map(({ course }) => course.find(({ accuracy }) => accuracy.at(-1)! >= level))
        .filter((p) => p !== undefined)
      if (reached.length === 0) return ['never', '–', '–']
      const thousands = mean(reached.map(({ tokens }) => tokens)) / 1000
      const seconds = mean(reached.map((point: Point) => point.seconds)).toFixed(0)
      return [`${thousands.toFixed(0)} (${reached.length} of ${runs.length})`, (thousands * settings.loops).toFixed(0), seconds]
    })
    return [short(task), label(arm), ...cells]
  })
  const head = [50, 70].flatMap((level) => [`thousand tokens to ${level} %`, '× loops', 'CPU s'])
  return table(['task', 'arm', ...head], rows)
}

/** Every other arm against GRPO and RLTT: full depth and two loops, with what a run costs. */
function objectivesTable(results: Results): string {
  const own = ran(results).filter(([, arm]) => arm !== 'grpo' && arm !== 'rltt')
  const asked = own.flatMap(([task, arm]) =>
    (['grpo', 'rltt'] as const).flatMap((reference) =>
      [settings.loops, 2].map((loops) => ({
        ...{ task, arm, reference, what: `${loops}`, share: true },
        ...question(results, { task, arm, reference, what: `${loops} loops`, share: true }, (a, b) => [
          endAccuracy(a, loops),
          endAccuracy(b, loops),
        ]),
      })),
    ),
  )
  const rows = verdictsOf(asked).map((verdict) => {
    const { task, arm, reference, what } = verdict
    const pairs = pairsOf(results, task, arm, reference).filter(([own, other]) => own.processor === other.processor)
    const seconds = (side: 0 | 1) => mean(pairs.map((pair) => pair[side].course.at(-1)!.seconds))
    const cost = pairs.length === 0 ? '–' : (seconds(0) / seconds(1)).toFixed(2)
    return [short(task), label(arm), label(reference), what, ...comparisonCells(verdict), cost]
  })
  return table(['task', 'arm', 'against', 'at', ...comparisonHead, 'CPU time of a run, ratio'], rows)
}

/** Trained at 4 loops, run at more: the difference to 4 loops of the same model. */
function deeperTable(results: Results): string {
  const all = ran(results)
  const tests = all.flatMap(([task, arm]) =>
    settings.deeper.map((loops, k) => {
      const runs = seeds(runsOf(results, task, arm))
      return {
        task,
        arm,
        loops,
        own: runs.map(({ final }) => final.deeper[k]!.accuracy),
        others: runs.map(({ final }) => final.accuracy.at(-1)!),
      }
    }),
  )
  const enough = tests.filter(({ own }) => own.length >= fewestBases)
  const outcomes = corrected(enough)
  const rows = enough.map(({ task, arm, loops }, i) => [short(task), label(arm), `${loops}`, ...comparisonCells(outcomes[i]!)])
  return table(['task', 'arm', `loops, against ${settings.loops}`, ...comparisonHead], rows)
}

/** What the samples of a run looked like at its end. */
function courseTable(results: Results): string {
  const rows = ran(results).map(([task, arm]) => {
    const runs = seeds(runsOf(results, task, arm))
    const end = (of: (point: Point) => number) => mean(runs.map(({ course }) => of(course.at(-1)!)))
    const entropy = end((p) => p.entropy) // 0 stands for none: a function as objective reports no entropy
    const cells = [end((p) => p.reward), end((p) => p.length), entropy || undefined, end((p) => p.flat), end((p) => p.gradNorm)]
    const pass = percent(mean(runs.map(({ final }) => final.passAt8)))
    const seconds = end((p) => p.seconds).toFixed(0)
    return [short(task), label(arm), ...cells.map((value) => value?.toFixed(2) ?? '–'), pass, seconds]
  })
  return table(
    ['task', 'arm', 'reward', 'tokens', 'entropy, nats', 'flat groups', 'gradient norm', 'pass@8', 'CPU s of training'],
    rows,
  )
}

/** Gradients of single loops beside that of the last one. */
function cosinesTable(results: Results): string {
  const when = ['start', 'middle', 'end']
  const rows = ran(results).flatMap(([task, arm]) => {
    const runs = seeds(runsOf(results, task, arm)).filter(({ gradients }) => gradients !== undefined)
    if (runs.length === 0) return []
    return when.map((name, k) => {
      const cells = loopCounts.slice(0, -1).map((_, t) => {
        const cosine = mean(runs.map(({ gradients }) => gradients![k]!.cosine[t]!))
        const norm = mean(runs.map(({ gradients }) => gradients![k]!.norm[t]!))
        return `${cosine.toFixed(2)}, ${norm.toFixed(2)}`
      })
      return [short(task), label(arm), name, ...cells]
    })
  })
  return table(['task', 'arm', 'when', ...loopCounts.slice(0, -1).map((t) => `loop ${t}: cosine, norm ratio`)], rows)
}
