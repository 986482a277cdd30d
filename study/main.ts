// npm run study: makes the missing runs, two at a time, and writes the reports.
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { carryOut, runAll, type Study, verify } from './jobs.js'
import * as one from './one/plan.js'
import { writeReport as writeReportOne } from './one/report.js'
import type { Result as ResultOne } from './one/results.js'
import { readResults, storeResult } from './store.js'
import * as text from './text/plan.js'
import type { Result as ResultText } from './text/results.js'
import * as two from './two/plan.js'
import { writeReport as writeReportTwo } from './two/report.js'
import type { Result as ResultTwo } from './two/results.js'

const usage = `npm run study -- [--study 1|2|text] [--report] [--jobs N] [--only REGEX] [--timing] [--verify ID]
  (nothing)   carries out every run whose result is missing, then the timings, then writes the reports
  --study N   only Study I or Study II, or of Study II only LoopRPT on text
  --report    only writes the tables and figures of docs/study.md and docs/study-2.md from the stored metrics
  --jobs N    runs at a time, each with one thread; default 2
  --only R    only runs whose id matches; no timings, no report
  --timing    measures time and memory per step of Study I again, one method after the other; wants a quiet machine
  --verify ID carries out a stored run again and compares its metrics, all but the seconds.
              Study I repeats on one kind of processor, Study II on every x86-64 processor with AVX2`

const root = fileURLToPath(new URL('../..', import.meta.url))
const place = (name: string) => ({
  results: join(root, 'study', name, 'results'),
  bases: join(root, 'study', '.bases', name),
  program: fileURLToPath(new URL(`./${name}/run.js`, import.meta.url)),
})
const accuracies = (values: readonly number[]) => values.map((value) => value.toFixed(3)).join(' ')
const studyOne: Study<one.RunSpec, ResultOne> = {
  ...place('one'),
  due: one.dueRuns,
  summary: (result) =>
    result.kind === 'timing'
      ? `${(1000 * result.cpuSeconds).toFixed(1)} ms of CPU time per step`
      : `accuracy by loop ${accuracies(result.final.accuracy)}`,
}
const studyTwo: Study<two.RunSpec, ResultTwo> = {
  ...place('two'),
  bases: join(root, 'study', 'two', 'bases'),
  due: two.dueRuns,
  instructionSet: 'avx2',
  summary: ({ final }) => `accuracy by loop ${accuracies(final.accuracy)}`,
}

const studyText: Study<text.RunSpec, ResultText> = {
  ...place('text'),
  bases: join(root, 'study', 'text', 'bases'),
  due: text.dueRuns,
  instructionSet: 'avx2',
  summary: ({ final }) => `accuracy by loop ${accuracies(final.accuracy)}`,
}

const { values: flags } = parseArgs({
  options: {
    study: { type: 'string' },
    report: { type: 'boolean', default: false },
    timing: { type: 'boolean', default: false },
    jobs: { type: 'string', default: '2' },
    only: { type: 'string' },
    verify: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
})
const start = performance.now()
const say = (text: string) => console.log(`${((performance.now() - start) / 1000).toFixed(0).padStart(5)} s  ${text}`)
const wanted = (number: string) => flags.study === undefined || flags.study === number

if (flags.help) console.log(usage)
else if (flags.verify !== undefined) await repeat(flags.verify)
else if (flags.report) report()
else {
  if (!flags.timing) {
    const only = new RegExp(flags.only ?? '')
    if (wanted('1')) await runAll(studyOne, Number(flags.jobs), only, say)
    if (wanted('2')) await runAll(studyTwo, Number(flags.jobs), only, say)
    if (wanted('2') || wanted('text')) await runAll(studyText, Number(flags.jobs), only, say)
  }
  if (flags.only === undefined) {
    if (wanted('1')) await time(flags.timing)
    report()
  }
}

/** Measures the time of every method's steps, one method after the other. */
async function time(again: boolean): Promise<void> {
  const stored = readResults<ResultOne>(studyOne.results)
  const known = again ? new Map([...stored].filter(([, { kind }]) => kind !== 'timing')) : stored
  for (const spec of one.dueTimings(known)) {
    const result = await carryOut(studyOne, spec)
    storeResult(studyOne.results, result)
    say(`${spec.id}  ${studyOne.summary(result)}`)
  }
}

async function repeat(id: string): Promise<void> {
  const own = (study: { results: string }) => readResults(study.results).has(id)
  const same = await (own(studyOne) ? verify(studyOne, id) : own(studyText) ? verify(studyText, id) : verify(studyTwo, id))
  say(`${id}: ${same ? 'the same metrics' : 'OTHER METRICS'}`)
  if (!same) process.exitCode = 1
}

function report(): void {
  const written = [
    ...(wanted('1') ? writeReportOne(root, readResults<ResultOne>(studyOne.results)) : []),
    ...(wanted('2') || wanted('text')
      ? writeReportTwo(root, readResults<ResultTwo>(studyTwo.results), readResults<ResultText>(studyText.results))
      : []),
  ]
  for (const path of written) say(`wrote ${path}`)
}
