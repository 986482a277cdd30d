// Programs of native tests: lines "ok …" and "not ok …". They are run beside this process, so that tests of `describe.concurrent` share the cores.
import { execFile } from 'node:child_process'
import { resolve } from 'node:path'

export const build = resolve(import.meta.dirname, '..', 'build')

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
