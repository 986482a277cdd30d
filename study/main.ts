// npm run study: carries out what is missing, two runs at a time, and writes the report.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { isDeepStrictEqual, parseArgs, promisify } from 'node:util'
import { dueRuns, dueTimings, type RunSpec } from './plan.js'
import { type Result, readResults, storeResult } from './results.js'

const usage = `npm run study -- [--report] [--jobs N] [--only REGEX] [--timing] [--verify ID]
  (nothing)   carries out every run whose result is missing, then the timings, then writes the report
  --report    only writes the tables and figures of docs/study.md from the stored metrics
  --jobs N    runs at a time, each with one thread; default 2
  --only R    only runs whose id matches; no timings, no report
  --timing    measures time and memory per step again, one method after the other; wants a quiet machine
  --verify ID carries out a stored run again and compares its metrics, all but the seconds`

const root = fileURLToPath(new URL('../..', import.meta.url))
const results = join(root, 'study', 'results')
const bases = join(root, 'study', '.bases')
const program = fileURLToPath(new URL('./run.js', import.meta.url))

const { values: flags } = parseArgs({
  options: {
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

if (flags.help) console.log(usage)
else if (flags.verify !== undefined) await verify(flags.verify)
else if (flags.report) await report()
else {
  if (!flags.timing) await runAll(Number(flags.jobs), new RegExp(flags.only ?? ''))
  if (flags.only === undefined) {
    await time(flags.timing)
    await report()
  }
}

/** Starts runs as they become possible, `jobs` at a time, until none is due. */
async function runAll(jobs: number, wanted: RegExp): Promise<void> {
  const running = new Map<string, Promise<void>>()
  const failed = new Set<string>()
  for (;;) {
    const due = dueRuns(readResults(results)).filter(({ id }) => wanted.test(id) && !running.has(id) && !failed.has(id))
    while (running.size < jobs && due.length > 0) {
      const spec = due.shift()!
      const finished = carryOut(spec).then(
        (result) => {
          storeResult(results, result)
          say(`${spec.id}  ${summary(result)}  (${due.length} more can start)`)
        },
        (error: Error) => {
          failed.add(spec.id)
          process.exitCode = 1
          say(`${spec.id} failed: ${error.message}`)
        },
      )
      running.set(
        spec.id,
        finished.finally(() => running.delete(spec.id)),
      )
    }
    if (running.size === 0) return
    await Promise.race(running.values())
  }
}

/** Times every method's steps, one after the other. */
async function time(again: boolean): Promise<void> {
  const known = again ? new Map([...readResults(results)].filter(([, { kind }]) => kind !== 'timing')) : readResults(results)
  for (const spec of dueTimings(known)) {
    const result = await carryOut(spec)
    storeResult(results, result)
    say(`${spec.id}  ${summary(result)}`)
  }
}

async function carryOut(spec: RunSpec): Promise<Result> {
  const { stdout } = await promisify(execFile)(process.execPath, [program, JSON.stringify(spec), bases])
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as Result
}

async function verify(id: string): Promise<void> {
  const stored = readResults(results).get(id)
  if (stored === undefined) throw new Error(`no stored run ${id}`)
  const others = new Map([...readResults(results)].filter(([other]) => other !== id))
  const spec = dueRuns(others).find((due) => due.id === id)
  if (spec === undefined) throw new Error(`${id} is not a run of the plan that can be repeated`)
  const same = isDeepStrictEqual(withoutSeconds(await carryOut(spec)), withoutSeconds(stored))
  say(`${id}: ${same ? 'the same metrics' : 'OTHER METRICS'}`)
  if (!same) process.exitCode = 1
}

function withoutSeconds(result: Result): unknown {
  return JSON.parse(JSON.stringify(result, (key, value: unknown) => (key === 'seconds' ? undefined : value)))
}

function summary(result: Result): string {
  if (result.kind === 'timing') return `${(1000 * result.cpuSeconds).toFixed(1)} ms of CPU time per step`
  return `accuracy by loop ${result.final.accuracy.map((value) => value.toFixed(3)).join(' ')}`
}

async function report(): Promise<void> {
  const { writeReport } = await import('./report.js')
  for (const path of writeReport(root, readResults(results))) say(`wrote ${path}`)
}
