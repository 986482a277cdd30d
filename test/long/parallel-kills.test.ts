// A rank that is killed at a random moment, 30 times for each of four trainers, with a checkpoint at every step. The result equals that of
// an undisturbed run.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { configurations, killAndResume, outcomeOf, runStraight } from '../kills.js'
import { installed, launcherOf } from '../mpi.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-parallel-kills-'))
})
afterAll(() => rm(root, { recursive: true }))

const kills = 30
const steps = 300
const limit = 60 // seconds

const cases = (['pretrain', 'looprpt', 'objective', 'lora'] as const).map((name, i) => {
  const mpi = installed[i % Math.max(1, installed.length)]
  return { name, mpi, ranks: 2 + (i % 2) }
})

it.runIf(installed.length > 0).each(cases)('$name, $ranks ranks under $mpi', async ({ name, mpi, ranks }) => {
  const launcher = launcherOf(mpi!, ranks, root)
  const config = configurations[name]
  await runStraight(root, `${name}-whole`, config, steps, launcher)
  const options = { kills, steps, seed: 12, milliseconds: 150, launcher, limit }
  const report = await killAndResume(root, `${name}-killed`, config, options)
  console.log(
    `${name}, ${ranks} ranks under ${mpi}: ${report.kills} kills, ${report.whileSaving} while a folder was half-written, ` +
      `${report.whileStarting} before the first step after a start, ${report.lives} starts that made a step; ` +
      `all ranks had ended ${report.slowestEnd.toFixed(1)} s after a kill at the latest`,
  )
  expect(report.kills).toBe(kills)
  expect(await outcomeOf(root, `${name}-killed`, steps)).toEqual(await outcomeOf(root, `${name}-whole`, steps))
})
