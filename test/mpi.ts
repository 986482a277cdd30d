// Programs under the launchers of Open MPI and MPICH.
import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** How a launcher starts `ranks` processes on this machine, whatever its cores and its user. */
const launchers = {
  openmpi: {
    program: 'mpirun.openmpi',
    options: ['--allow-run-as-root', '--oversubscribe', '--bind-to', 'none', '-n'],
    debian: 'openmpi-bin libopenmpi-dev',
  },
  mpich: { program: 'mpiexec.mpich', options: ['-n'], debian: 'mpich libmpich-dev' },
}

/**
 * The words that start a program as so many ranks; it comes behind them. Open MPI gets a session folder in `sessions`, because two starts
 * at the same time fail when both create the shared one.
 */
export function launcherOf(name: MpiName, ranks: number, sessions: string): string[] {
  const { program, options } = launchers[name]
  const session = name === 'mpich' ? [] : ['--mca', 'orte_tmpdir_base', mkdtempSync(join(sessions, 'ompi-'))]
  return [program, ...session, ...options, String(ranks)]
}

export type MpiName = keyof typeof launchers

/** The implementations that tests can use; a line says why one is not among them. */
export const installed = (Object.keys(launchers) as MpiName[]).filter((name) => {
  const { program, debian } = launchers[name]
  const found = process.platform === 'linux' && spawnSync(program, ['--version'], { stdio: 'ignore' }).status === 0
  if (!found)
    console.log(`parallel: tests under ${name} are left out, ${program} is not here (Debian: apt-get install ${debian})`)
  return found
})

export interface Ended {
  status: number | null
  stdout: string
  stderr: string
}

/** Runs a program as so many ranks to its end. Nothing of a launcher that started this process reaches it. */
export function launch(
  name: MpiName,
  ranks: number,
  program: string,
  args: string[],
  extra: NodeJS.ProcessEnv = {},
): Promise<Ended> {
  const inherited = Object.entries(process.env).filter(([key]) => !/^(OMPI_|PMI|SLURM_|VITEST|NODE_OPTIONS)/.test(key))
  const sessions = mkdtempSync(join(tmpdir(), 'looplm-launch-'))
  const [launcher, ...words] = launcherOf(name, ranks, sessions)
  const child = spawn(launcher!, [...words, program, ...args], {
    env: { ...Object.fromEntries(inherited), ...extra },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const ended: Ended = { status: null, stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    ended.stdout += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    ended.stderr += text
  })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (status) => {
      rmSync(sessions, { recursive: true, force: true })
      resolve({ ...ended, status })
    })
  })
}
