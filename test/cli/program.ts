// The built program: as a separate process, or after other commands in one process, which takes a tenth of the time.
import { type ChildProcess, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'

export const program = join(import.meta.dirname, '..', '..', 'dist', 'src', 'cli', 'main.js')

/** How a process ended, or a command in a process of others, and what it said. */
export interface Outcome {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

/**
 * Runs `looplm` as a separate process, for what only a process shows: signals, pipes, the start itself. `watch` sees it and all of its
 * standard output whenever there is more. Its input has an end unless somebody watches it. `shell` is what a shell puts in front of it, for
 * example `ulimit -f 4; exec`.
 */
export function runProgram(
  args: readonly string[],
  options: {
    cwd: string
    watch?: ((child: ChildProcess, stdout: string) => void) | undefined
    started?: (child: ChildProcess) => void
    shell?: string
    /** A launcher with its options, which starts the program as several ranks. */
    launcher?: readonly string[] | undefined
    /** Its standard input. */
    input?: string | undefined
  },
): Promise<Outcome> {
  const { cwd, watch, started, shell, launcher = [], input } = options
  const command = [...launcher, process.execPath, program, ...args]
  return new Promise((resolve, reject) => {
    const child =
      shell === undefined
        ? spawn(command[0]!, command.slice(1), { cwd })
        : spawn('sh', ['-c', `${shell} "$@"`, 'sh', ...command], { cwd })
    started?.(child)
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
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }))
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
