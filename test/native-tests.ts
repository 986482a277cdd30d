// Programs of native tests: lines "ok …" and "not ok …". They are run beside this process, so that tests of `describe.concurrent` share the cores.
import { execFile, execFileSync, spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { resolve } from 'node:path'

export const build = resolve(import.meta.dirname, '..', 'build')

// Two test files at once must not build in one folder (vitest.config.ts runs one at a time where there is no flock).
const lock = spawnSync('flock', ['--version'], { stdio: 'ignore' }).status === 0 ? ['flock', resolve(build, 'tests.lock')] : []

/** Builds programs and libraries of the tests, if they are missing or older than their sources. */
export function buildTargets(...targets: string[]): void {
  // more compilers than cores take a quarter longer in all: Ninja's own choice is two more
  const compilers = String(availableParallelism())
  const [program, ...args] = [...lock, 'cmake', '--build', build, '--parallel', compilers, '--target', ...targets]
  execFileSync(program!, args, { stdio: 'pipe' })
}

export interface Outcome {
  stdout: string
  stderr: string
  /** The exit status, or null when a signal ended the program. */
  status: number | null
  /** Lines "not ok …". */
  failures: string[]
  /** How many lines were ok. */
  passed: number
}

/** Runs a program of the build folder, or one named by its whole path, to its end, whatever its exit status. */
export function runTests(program: string, args: string[], env: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  const options = { maxBuffer: 1 << 26, env: { ...process.env, ...env } }
  return new Promise((done) => {
    const child = execFile(resolve(build, program), args, options, (_, stdout, stderr) => {
      const lines = `${stdout}${stderr}`.split('\n')
      done({
        stdout,
        stderr,
        status: child.exitCode,
        failures: lines.filter((l) => l.startsWith('not ok')),
        passed: lines.filter((l) => l.startsWith('ok')).length,
      })
    })
  })
}
