// Comparisons of the stored runs of Study II: pairs of arms on the same bases, the tests of the primary outcomes, and their
// verdicts.
import { pValue, signedRange } from '../cells.js'
import { corrected, equivalent, holm, mean, type Outcome } from '../statistics.js'
import { area, arms, basesOf, rateOf, settings, studyTasks, type TaskName, taskOf, trainingId } from './plan.js'
import type { Point, Result, TrainingResult } from './results.js'

export type Results = ReadonlyMap<string, Result>

export const loopCounts = Array.from({ length: settings.loops }, (_, i) => i + 1)
export const mainTasks = ['chain', 'addition', 'parity'] as const satisfies readonly TaskName[]
export const taskNames = Object.keys(studyTasks) as TaskName[]
export const label = (arm: string) => arms[arm]!.label
export const short = (task: TaskName) => taskOf(task).label.split(':')[0]!
/** A paired test on two bases is useless. */
export const fewestBases = 3
/** Half of the usual level, because the tests were read with six bases and again with all. */
export const significance = 0.025

/** The runs of an arm at its chosen rate, by base, as far as they exist. */
export function runsOf(results: Results, task: TaskName, arm: string): Map<number, TrainingResult> {
  const rate = arms[arm]!.tasks.includes(task) ? rateOf(results, task, arm) : undefined
  const runs = new Map<number, TrainingResult>()
  if (rate === undefined) return runs
  for (const base of basesOf(task, arm)) {
    const run = results.get(trainingId(task, arm, base, rate)) as TrainingResult | undefined
    if (run !== undefined) runs.set(base, run)
  }
  return runs
}

/** Pairs of runs of two arms on the bases that both have trained. */
export function pairsOf(results: Results, task: TaskName, arm: string, reference: string): [TrainingResult, TrainingResult][] {
  const [own, others] = [runsOf(results, task, arm), runsOf(results, task, reference)]
  return [...own].flatMap(([base, run]) => {
    const other = others.get(base)
    return other === undefined ? [] : [[run, other] satisfies [TrainingResult, TrainingResult]]
  })
}

/** Accuracy with this many loops at the end: the mean of the last points. */
export const endAccuracy = (run: TrainingResult, loops: number): number =>
  mean(run.course.slice(-settings.finalPoints).map(({ accuracy }) => accuracy[loops - 1]!))

const full = (point: Point) => point.accuracy.at(-1)!

/**
 * Mean tokens of right answers at full depth when the accuracy first reaches a level, interpolated between two points.
 * undefined if it never does.
 */
function lengthAt({ course }: TrainingResult, level: number): number | undefined {
  const at = course.findIndex((point) => full(point) >= level)
  const [before, after] = [course[Math.max(0, at - 1)], course[at]]
  const [from, to] = [before?.rightLength.at(-1), after?.rightLength.at(-1)]
  if (from == null || to == null) return undefined
  const rise = full(after!) - full(before!)
  return rise <= 0 ? to : from + ((to - from) * (level - full(before!))) / rise
}

/** Lengths of right answers of two runs at the highest accuracy that both reach. */
export function matchedLengths(own: TrainingResult, other: TrainingResult): [number, number] | undefined {
  const level = Math.min(...[own, other].map(({ course }) => Math.max(...course.map(full))))
  const [a, b] = [lengthAt(own, level), lengthAt(other, level)]
  return a === undefined || b === undefined ? undefined : [a, b]
}

/** A comparison of two arms on the same bases. */
export interface Question {
  task: TaskName
  arm: string
  reference: string
  /** The measured quantity, as worded in sentences. */
  what: string
  /** Whether values are fractions, which are shown in percentage points; otherwise they are tokens. */
  share: boolean
  own: number[]
  others: number[]
}

/** A comparison and its result. */
export interface Verdict extends Question, Outcome {
  /** p of the equivalence test after Holm's correction. undefined if no margin is set. */
  equal: number | undefined
  kind: 'ahead' | 'behind' | 'equal' | 'open'
}

/** Results of one family of comparisons, with Holm's correction over its differences and over its tests of equivalence. */
export function verdictsOf(questions: readonly Question[]): Verdict[] {
  const asked = questions.filter(({ own }) => own.length >= fewestBases)
  const outcomes = corrected(asked)
  const shares = asked.filter(({ share }) => share)
  const equal = holm(shares.map(({ own, others }) => equivalent(own, others, settings.margin).p))
  return asked.map((question, i) => {
    const outcome = outcomes[i]!
    const same = question.share ? equal[shares.indexOf(question)] : undefined
    const different = outcome.adjusted < significance
    const decided = outcome.test.mean > 0 ? 'ahead' : 'behind'
    const kind = different ? decided : same !== undefined && same < significance ? 'equal' : 'open'
    return { ...question, ...outcome, equal: same, kind }
  })
}

/** A comparison over all pairs. Bases with a missing value are excluded. */
export function question(
  results: Results,
  about: Pick<Question, 'task' | 'arm' | 'reference' | 'what' | 'share'>,
  of: (own: TrainingResult, other: TrainingResult) => readonly [number, number] | undefined,
): Question {
  const pairs = pairsOf(results, about.task, about.arm, about.reference)
  const values = pairs.map(([own, other]) => of(own, other)).filter((pair) => pair !== undefined)
  return { ...about, own: values.map(([own]) => own), others: values.map(([, other]) => other) }
}

const each = (value: (run: TrainingResult) => number) => (own: TrainingResult, other: TrainingResult) =>
  [value(own), value(other)] as const

/** The primary outcomes of the plan, all tasks together. Answers of task A all have the same length. */
export function primaryVerdicts(results: Results): Verdict[] {
  const questions = mainTasks.flatMap((task) => {
    const about = { task, arm: 'rltt', reference: 'grpo' }
    const asked = [
      question(results, { ...about, what: 'area under full-depth accuracy', share: true }, each(area)),
      question(
        results,
        { ...about, what: 'final accuracy at two loops', share: true },
        each((run) => endAccuracy(run, 2)),
      ),
    ]
    const lengths = question(
      results,
      { ...about, what: 'length of right answers at matched accuracy', share: false },
      matchedLengths,
    )
    return taskOf(task).budgets.length > 1 ? [...asked, lengths] : asked
  })
  return verdictsOf(questions)
}

/** Final accuracy of one arm against another at every loop count, as one family over the tasks. */
export function loopVerdicts(results: Results, arm: string, reference: string, loops: readonly number[] = loopCounts): Verdict[] {
  return verdictsOf(
    mainTasks.flatMap((task) =>
      loops.map((count) => {
        const what = `final accuracy at ${count} ${count === 1 ? 'loop' : 'loops'}`
        return question(
          results,
          { task, arm, reference, what, share: true },
          each((run) => endAccuracy(run, count)),
        )
      }),
    ),
  )
}

/** Formats a verdict's difference, in points or tokens. */
export function difference({ share, test }: Verdict): string {
  if (share) return `${signedRange(test)} points`
  return `${test.mean < 0 ? '−' : '+'}${Math.abs(test.mean).toFixed(2)} ± ${(test.high - test.mean).toFixed(2)} tokens`
}

/** Formats a verdict as a sentence, with its test. */
export function sentence(verdict: Verdict): string {
  const { task, arm, reference, what, share, test, adjusted, equal, kind } = verdict
  const range = difference(verdict)
  const paired = `paired t-test on ${test.count} bases, p (Holm) ${pValue(adjusted)}`
  const subject = `${short(task)}, ${what}: ${label(arm)}`
  if (kind === 'equal')
    return `${subject} and ${label(reference)} are equal within ${100 * settings.margin} points (${range}; TOST, p (Holm) ${pValue(equal!)}).`
  if (kind === 'open') return `${subject} against ${label(reference)} is not decided (${range}; ${paired}).`
  const words = share ? (kind === 'ahead' ? 'is ahead of' : 'is behind') : kind === 'ahead' ? 'is longer than' : 'is shorter than'
  return `${subject} ${words} ${label(reference)} (${range}; ${paired}).`
}
