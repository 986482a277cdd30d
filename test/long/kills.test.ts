// Kills at random moments, 25 for each configuration of the trainers, with a checkpoint at every step. The result equals that of an
// undisturbed run.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { configurations, killAndResume, outcomeOf, runStraight } from '../kills.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-kills-'))
})
afterAll(() => rm(root, { recursive: true }))

const kills = 25
const steps = 300

it.each(Object.entries(configurations))(
  '%s: a run that is killed 25 times ends with the results of an undisturbed one',
  async (name, config) => {
    await runStraight(root, `${name}-whole`, config, steps)
    const report = await killAndResume(root, `${name}-killed`, config, { kills, steps, seed: 11 })
    console.log(
      `${name}: ${report.kills} kills, ${report.whileSaving} while a folder was half-written, ` +
        `${report.whileStarting} before the first step after a start, ${report.lives} starts that made a step`,
    )
    expect(report.kills).toBe(kills)
    expect(await outcomeOf(root, `${name}-killed`, steps)).toEqual(await outcomeOf(root, `${name}-whole`, steps))
  },
)
