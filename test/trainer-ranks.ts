// Runs test/trainer-rank.mjs as one process or as many, and reads what they found.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { launch, type MpiName } from './mpi.js'

const program = join(import.meta.dirname, 'trainer-rank.mjs')

export interface Found {
  rank: number
  /** Checksum of the first rollouts. */
  first?: string
  events: { type: string; step: number; metrics: Record<string, number> }[]
  /** Checksum of the trained parameters. */
  hash: string
  values: number[]
  /** Bytes on devices at the end. */
  memory: number
  /** Of a run that failed. */
  code?: string
  message?: string
}

/** What each rank found, by scenario. */
export async function runRanks(
  mpi: MpiName | undefined,
  ranks: number,
  names: readonly string[],
  env: Record<string, string> = {},
): Promise<(name: string) => Found[]> {
  const folder = mkdtempSync(join(tmpdir(), 'looplm-trainers-'))
  const extra = { LOOPLM_RANK_FOLDER: folder, ...env }
  const args = [program, names.join()]
  if (mpi === undefined) execFileSync(process.execPath, args, { env: { ...process.env, ...extra } })
  else {
    const { status, stderr } = await launch(mpi, ranks, process.execPath, args, extra)
    if (status !== 0) throw new Error(`exit code ${status}: ${stderr}`)
  }
  const found = readdirSync(folder).map((file) => JSON.parse(readFileSync(join(folder, file), 'utf8')) as Record<string, Found>)
  rmSync(folder, { recursive: true })
  if (found.length !== ranks) throw new Error(`${found.length} of ${ranks} ranks have ended well`)
  return (name) => found.map((one) => one[name]!).sort((a, b) => a.rank - b.rank)
}

/** Of two vectors, relative to the second. */
export function distance(found: readonly number[], expected: readonly number[]): number {
  let [square, norm] = [0, 0]
  for (const [i, value] of expected.entries()) {
    square += (found[i]! - value) ** 2
    norm += value ** 2
  }
  return Math.sqrt(square / norm)
}
