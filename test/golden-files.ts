// Reads the golden files of the oracle (float64 safetensors) and compares as the project's bars are stated.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

export interface GoldenTensor {
  shape: number[]
  data: Float64Array
}

/** All tensors of one golden.safetensors file by name. */
export function readGolden(folder: string): Map<string, GoldenTensor> {
  const bytes = readFileSync(join(folder, 'golden.safetensors'))
  const headerLength = Number(bytes.readBigUInt64LE(0))
  const header = JSON.parse(bytes.subarray(8, 8 + headerLength).toString()) as Record<
    string,
    { shape: number[]; data_offsets: [number, number] }
  >
  const out = new Map<string, GoldenTensor>()
  for (const [name, entry] of Object.entries(header)) {
    const [begin, end] = entry.data_offsets
    const data = new Float64Array((end - begin) / 8)
    Buffer.from(data.buffer).set(bytes.subarray(8 + headerLength + begin, 8 + headerLength + end))
    out.set(name, { shape: entry.shape, data })
  }
  return out
}

export const norm = (x: ArrayLike<number>): number => Math.sqrt(Array.from(x).reduce((s, v) => s + v * v, 0))

/** ‖x - ref‖ / max(‖ref‖, floor). */
export function relativeError(x: ArrayLike<number>, ref: ArrayLike<number>, floor = 1e-30): number {
  if (x.length !== ref.length) throw new Error(`lengths differ: ${x.length} and ${ref.length}`)
  let sum = 0
  for (let i = 0; i < x.length; i++) sum += (x[i]! - ref[i]!) ** 2
  return Math.sqrt(sum) / Math.max(norm(ref), floor)
}
