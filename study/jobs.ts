// Runs of a study as processes: what is missing is carried out, stored, and can be repeated.
import { execFile } from 'node:child_process'
import { isDeepStrictEqual, promisify } from 'node:util'
import { processor } from './processor.js'
import { readResults, type Stored, storeResult } from './store.js'

/** A study: which runs are due, the program that carries one out, and where its results lie. */
export interface Study<Spec extends { id: string }, Result extends Stored> {
  /** Folder of the stored results. */
  results: string
  /** Folder of trained bases, which are made again when it is gone. */
  bases: string
  /** Gets a spec as JSON and the folder of the bases, and prints the result as JSON. */
  program: string
  /** The runs that can start now, given the results so far. */
  due(results: ReadonlyMap<string, Result>): Spec[]
  /** The processor of a run; undefined where results do not say it. */
  processor?(result: Result): string
  /** A line for the terminal. */
  summary(result: Result): string
}

type Say = (text: string) => void

/** Starts runs as they become possible, `jobs` at a time, until none is due. */
export async function runAll<Spec extends { id: string }, Result extends Stored>(
  study: Study<Spec, Result>,
  jobs: number,
  wanted: RegExp,
  say: Say,
): Promise<void> {
  checkProcessor(study)
  const running = new Map<string, Promise<void>>()
  const failed = new Set<string>()
  for (;;) {
    const due = study.due(readResults(study.results)).filter(({ id }) => wanted.test(id) && !running.has(id) && !failed.has(id))
    while (running.size < jobs && due.length > 0) {
      const spec = due.shift()!
      const finished = carryOut(study, spec).then(
        (result) => {
          storeResult(study.results, result)
          say(`${spec.id}  ${study.summary(result)}  (${due.length} more can start)`)
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

/** @throws Error where stored runs had another processor than this machine: their seconds and last digits would not compare */
function checkProcessor<Spec extends { id: string }, Result extends Stored>({
  results,
  processor: of,
}: Study<Spec, Result>): void {
  const here = processor()
  const other = of && [...readResults<Result>(results).values()].map(of).find((name) => name !== here)
  if (other === undefined) return
  throw new Error(`${results} has runs of another processor (${other}; here: ${here}). Go on there, or move these results away.`)
}

/** One run in a separate process. */
export async function carryOut<Spec extends { id: string }, Result extends Stored>(
  { program, bases }: Study<Spec, Result>,
  spec: Spec,
): Promise<Result> {
  const { stdout } = await promisify(execFile)(process.execPath, [program, JSON.stringify(spec), bases], {
    maxBuffer: 2 ** 26,
  })
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as Result
}

/**
 * Carries out a stored run again.
 *
 * @returns whether its metrics, all but the seconds and the processor's name, are the stored ones
 * @throws Error when there is no such result, or the plan has no such run
 */
export async function verify<Spec extends { id: string }, Result extends Stored>(
  study: Study<Spec, Result>,
  id: string,
): Promise<boolean> {
  const results = readResults<Result>(study.results)
  const stored = results.get(id)
  if (stored === undefined) throw new Error(`no stored run ${id}`)
  results.delete(id)
  const spec = study.due(results).find((due) => due.id === id)
  if (spec === undefined) throw new Error(`${id} is not a run of the plan that can be repeated`)
  return isDeepStrictEqual(metricsOf(await carryOut(study, spec)), metricsOf(stored))
}

function metricsOf(result: unknown): unknown {
  const machines = ['seconds', 'processor']
  return JSON.parse(JSON.stringify(result, (key, value: unknown) => (machines.includes(key) ? undefined : value)))
}
