import { spawn } from 'node:child_process'
import { join } from 'node:path'

/** What a process that went through many cycles held. */
export interface LeakReport {
  /** Growth of resident memory per cycle after the warm-up, in bytes: the slope of a least-squares line. */
  slope: number
  /** Resident bytes at the end. */
  resident: number
  /** The engine's bytes and buffers at each measurement after the warm-up. */
  engine: { bytes: number[]; buffers: number[] }
  seconds: number
}

/**
 * Runs update/generate/dispose cycles in a separate process.
 *
 * @param cycles how many
 * @param warmUp share of them that is not measured
 */
export async function measureLeaks(cycles: number, warmUp: number): Promise<LeakReport> {
  const started = performance.now()
  const flags = ['--expose-gc', '--max-semi-space-size=1'] // V8 sizes its young generation by its mood, between 1 and 48 MB
  const child = spawn(process.execPath, [...flags, join(import.meta.dirname, 'leak-cycles.mjs'), String(cycles)])
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', (text) => {
    stdout += text
  })
  child.stderr.on('data', (text) => {
    stderr += text
  })
  const code = await new Promise((resolve) => child.on('close', resolve))
  if (code !== 0) throw new Error(`leak-cycles.mjs ended with ${code}: ${stderr}`)
  const all = JSON.parse(stdout) as [cycle: number, resident: number, bytes: number, buffers: number][]
  const measured = all.filter(([cycle]) => cycle > warmUp * cycles)
  const mean = (of: (row: (typeof measured)[number]) => number) =>
    measured.reduce((sum, row) => sum + of(row), 0) / measured.length
  const [x, y] = [mean(([cycle]) => cycle), mean(([, resident]) => resident)]
  const slope = mean(([cycle, resident]) => (cycle - x) * (resident - y)) / mean(([cycle]) => (cycle - x) ** 2)
  const engine = { bytes: measured.map(([, , bytes]) => bytes), buffers: measured.map(([, , , buffers]) => buffers) }
  return { slope, resident: measured.at(-1)![1], engine, seconds: (performance.now() - started) / 1000 }
}
