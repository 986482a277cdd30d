// Every trainer under a launcher: the run of one process, shared out.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { installed, launch, type MpiName } from '../mpi.js'
import { timeless } from '../timeless.js'

const program = join(import.meta.dirname, '..', 'trainer-rank.mjs')
const scenarios = ['pretrain', 'lora', 'looprpt', 'objective']

interface Found {
  rank: number
  /** Checksum of the first rollouts. */
  first?: string
  events: { type: string; step: number; metrics: Record<string, number> }[]
  /** Checksum of the trained parameters. */
  hash: string
  values: number[]
}

/** What each rank found, by scenario. */
async function run(mpi: MpiName | undefined, ranks: number, names: readonly string[], env: Record<string, string> = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'looplm-trainers-'))
  const extra = { LOOPLM_RANK_FOLDER: folder, ...env }
  const args = [program, names.join()]
  if (mpi === undefined) execFileSync(process.execPath, args, { env: { ...process.env, ...extra } })
  else {
    const { status, stderr } = await launch(mpi, ranks, process.execPath, args, extra)
    expect(status, stderr).toBe(0)
  }
  const found = readdirSync(folder).map((file) => JSON.parse(readFileSync(join(folder, file), 'utf8')) as Record<string, Found>)
  rmSync(folder, { recursive: true })
  expect(found.length).toBe(ranks)
  return (name: string) => found.map((one) => one[name]!).sort((a, b) => a.rank - b.rank)
}

const distance = (found: readonly number[], expected: readonly number[]) =>
  Math.hypot(...found.map((value, i) => value - expected[i]!)) / Math.hypot(...expected)
const metricsOf = ({ events }: Found) => events.map(({ metrics, ...event }) => ({ ...event, metrics: timeless(metrics) }))

describe.runIf(installed.length > 0)('trainers under a launcher', () => {
  it.each([
    ['reference', 1e-12],
    ['cpu', 1e-5],
  ] as const)('train on %s as one process does: tokens, metrics, parameters', async (device, bound) => {
    const env = { LOOPLM_DEVICE: device, LOOPLM_STEPS: device === 'cpu' ? '10' : '3' }
    const alone = await run(undefined, 1, scenarios, env)
    const together = await run(installed.at(device === 'cpu' ? 0 : -1)!, device === 'cpu' ? 3 : 2, scenarios, env)
    for (const name of scenarios) {
      const [one] = alone(name)
      const ranks = together(name)
      for (const rank of ranks) {
        expect(rank.first, name).toBe(one!.first) // the first rollouts, bit for bit
        expect(rank.hash, name).toBe(ranks[0]!.hash)
        expect(metricsOf(rank), name).toEqual(metricsOf(ranks[0]!))
      }
      expect(distance(ranks[0]!.values, one!.values), name).toBeLessThan(bound)
      for (const [i, { type, step, metrics }] of one!.events.entries()) {
        const other = ranks[0]!.events[i]!
        expect([other.type, other.step], name).toEqual([type, step])
        for (const [metric, value] of Object.entries(metrics))
          if (!/time|per_second|memory/.test(metric)) expect(other.metrics[metric], `${name} ${metric}`).toBeCloseTo(value, 4)
      }
    }
  })
})
