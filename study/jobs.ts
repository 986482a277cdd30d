// Runs of a study as separate processes. Missing runs are made, their results are stored, and they can be repeated.
import { execFile } from 'node:child_process'
import { isDeepStrictEqual, promisify } from 'node:util'
import { readResults, type Stored, storeResult } from './store.js'

/** A study: which runs are due, the program that makes them, and the folder of its results. */
export interface Study<Spec extends { id: string }, Result extends Stored> {
  /** Folder of the stored results. */
  results: string
  /** Folder of trained bases. */
  bases: string
  /** The program. It gets a spec as JSON and the folder of the bases, and prints the result as JSON. */
  program: string
  /** The runs that can start, given the results so far. */
  due(results: ReadonlyMap<string, Result>): Spec[]
  /** The instruction set of the kernels. Defaults to the CPU's best. */
  instructionSet?: string
  /** A summary line for the terminal. */
  summary(result: Result): string
}

type Say = (text: string) => void

/** Starts due runs, `jobs` at a time, until none is left. */
export async function runAll<Spec extends { id: string }, Result extends Stored>(
  study: Study<Spec, Result>,
  jobs: number,
  wanted: RegExp,
  say: Say,
): Promise<void> {
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

/**
 * Makes one run in a separate process.
 *
 * @throws Error if the run fails, for example on a CPU without the study's instruction set
 */
export async function carryOut<Spec extends { id: string }, Result extends Stored>(
  { program, bases, instructionSet }: Study<Spec, Result>,
  spec: Spec,
): Promise<Result> {
  const { stdout } = await promisify(execFile)(process.execPath, [program, JSON.stringify(spec), bases], {
    ...{ maxBuffer: 2 ** 26 },
    env: { ...process.env, ...(instructionSet !== undefined && { LOOPLM_CPU_ISA: instructionSet }) },
  })
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as Result
}

/**
 * Repeats a stored run.
 *
 * @returns whether its metrics, except the seconds and the CPU's name, equal the stored ones
 * @throws Error if there is no such result, or if the plan has no such run
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
