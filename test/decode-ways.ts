// The same generations computed in the ways that device cuda has for a decoded token.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

export const ways = ['launches', 'graph', 'token'] as const
export type Way = (typeof ways)[number]

export interface Generated {
  from: unknown
  rows: number
  options: object
  made: { tokens: number[][]; loops: number[][]; logprobs: number[][] }
  passes: number
  replayedPasses: number
  wholeTokens: number
}

/** test/decode-ways.mjs in a separate process. */
export function generateBy(way: Way, device: string, dtype: string, sweep: 'short' | 'long'): Generated[] {
  const { stdout, stderr, status } = spawnSync(
    process.execPath,
    [join(import.meta.dirname, 'decode-ways.mjs'), device, dtype, sweep],
    {
      encoding: 'utf8',
      env: { ...process.env, LOOPLM_CUDA_DECODE: way },
      maxBuffer: 1 << 26,
    },
  )
  if (status !== 0) throw new Error(stderr)
  return JSON.parse(stdout)
}

export const total = (all: Generated[], count: 'passes' | 'replayedPasses' | 'wholeTokens'): number =>
  all.reduce((sum, one) => sum + one[count], 0)
