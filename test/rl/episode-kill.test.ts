// A process that is killed while episodes are under way, and what a resumed run makes of it.
import { spawn } from 'node:child_process'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { outcomeOf } from '../kills.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-episode-kill-'))
  expect((await play('straight')).code).toBe(0)
})
afterAll(() => rm(root, { recursive: true }))

/** Ends with all that the process has said; one that hangs is killed. */
function play(name: string, { hang, resume = false }: { hang?: number; resume?: boolean } = {}) {
  return new Promise<{ stdout: string; signal: NodeJS.Signals | null; code: number | null }>((resolve, reject) => {
    const program = join(import.meta.dirname, '..', 'episode-run.mjs')
    const args = [program, join(root, name), ...(resume ? ['resume'] : [])]
    const env = { ...process.env, ...(hang === undefined ? {} : { LOOPLM_HANG: String(hang) }) }
    const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'inherit'] })
    let stdout = ''
    child.stdout.on('data', (text) => {
      stdout += text
      if (stdout.includes('hangs')) child.kill('SIGKILL')
    })
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ stdout, signal, code }))
  })
}

const callsOfStep = 3 * 4 * 3 // problems × episodes × turns
const steps = 4

it('SIGKILL in the first, the third and the last step: the resumed run is bit-identical to an undisturbed run', async () => {
  const name = 'killed'
  let saved = 0
  // Calls after a start, which repeats the step that was under way: the first turn of the first step, the second turns of the third step,
  // the last turn of the last step.
  for (const [hang, whole] of [
    [1, 0],
    [2 * callsOfStep + 15, 2],
    [2 * callsOfStep, 3],
  ] as const) {
    const killed = await play(name, { hang, resume: true })
    expect(killed.signal).toBe('SIGKILL')
    expect(killed.stdout.match(/^step/gm) ?? []).toHaveLength(whole - saved)
    const entries = await readdir(join(root, name, 'checkpoints')).catch(() => [])
    expect(entries.filter((entry) => entry.startsWith('step-'))).toHaveLength(whole)
    saved = whole
  }
  const resumed = await play(name, { resume: true })
  expect(resumed.code).toBe(0)
  expect(resumed.stdout.match(/^step/gm)).toHaveLength(steps - saved)
  expect(await outcomeOf(root, name, steps)).toEqual(await outcomeOf(root, 'straight', steps))
})
