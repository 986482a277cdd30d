// The built program: as a separate process, or after other commands in one process, which takes a tenth of the time.
import { type ChildProcess, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'

export const program = join(import.meta.dirname, '..', '..', 'dist', 'src', 'cli', 'main.js')

export interface Outcome {
  code: number | null
  stdout: string
  stderr: string
}

/**
 * Starts `looplm` as a separate process, for what only a process shows: signals, pipes, the start itself. Its input has an end
 * unless somebody watches it.
 */
export function startLooplm(
  cwd: string,
  args: readonly string[],
  watch?: (process: ChildProcess, stdout: string) => void,
  input?: string,
): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [program, ...args], { cwd })
    if (input !== undefined) child.stdin.write(input)
    if (watch === undefined) child.stdin.end()
    let stdout = ''
    let stderr = ''
    child.stdout.on('data', (text) => {
      stdout += text
      watch?.(child, stdout)
    })
    child.stderr.on('data', (text) => {
      stderr += text
    })
    child.on('close', (code) => resolve({ code, stdout, stderr }))
  })
}

/** One process that carries out commands in turn, as one-process.mjs says. */
export class OneProcess implements AsyncDisposable {
  readonly #child: ChildProcess
  #last: Promise<unknown> = Promise.resolve()

  constructor() {
    this.#child = fork(join(import.meta.dirname, 'one-process.mjs'), { execArgv: [] })
    this.#child.setMaxListeners(0)
  }

  /** What `looplm` says to a command in a folder, whose standard input is `input`. */
  looplm(cwd: string, args: readonly string[], input?: string): Promise<Outcome> {
    const run = () =>
      new Promise<Outcome>((resolve, reject) => {
        const ended = (code: number | null) => reject(new Error(`looplm ${args.join(' ')} ended the process: ${code}`))
        this.#child.once('exit', ended)
        this.#child.once('message', (outcome) => {
          this.#child.off('exit', ended)
          resolve(outcome as Outcome)
        })
        this.#child.send({ args, cwd, input })
      })
    const outcome = this.#last.then(run)
    this.#last = outcome.catch(() => {})
    return outcome
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#child, 'exit')
    this.#child.disconnect()
    await ended
  }
}
