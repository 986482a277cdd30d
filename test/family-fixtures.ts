// Tiny checkpoints of every family in the published form, with golden tensors of an independent PyTorch implementation.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { GoldenTensor } from './golden-files.js'

export const familiesFolder = process.env.LOOPLM_FAMILY_FIXTURES ?? join(import.meta.dirname, 'fixtures', 'families')

export interface Notes {
  family: string
  loops: number
  prefix_mask: boolean
  frozen: string[]
  /** Of the published training: loops that carry gradient, or L steps of each cycle. */
  truncate: number | number[] | null
}

/** The batch of the golden files, as sequences. */
export function batchOf(gold: Map<string, GoldenTensor>, folder: string) {
  const ids = gold.get('ids')!
  const [rows, width] = ids.shape as [number, number]
  const lengths = Array.from(gold.get('lengths')!.data)
  const promptLengths = Array.from(gold.get('prompt_lengths')!.data)
  const sequences = lengths.map((length, b) => Array.from(ids.data.subarray(b * width, b * width + length)))
  const states = initialStates(folder)
  const hidden = gold.get('hidden')!.shape[3]!
  const initial = states && lengths.map((length, b) => states.subarray(b * width * hidden, (b * width + length) * hidden))
  /** [T, B, width - 1] as one array per sequence, T × (length - 1). */
  const perSequence = (name: string, from: (b: number) => number) => {
    const { data, shape } = gold.get(name)!
    const loops = shape[0]!
    return lengths.map((length, b) =>
      Array.from({ length: loops }, (_, t) => {
        const row = (t * rows + b) * (width - 1)
        return Array.from(data.subarray(row + from(b), row + length - 1))
      }).flat(),
    )
  }
  return {
    sequences,
    promptLengths,
    lengths,
    width,
    perSequence,
    options: initial === undefined ? {} : { initialStates: initial },
  }
}

function initialStates(folder: string): Float32Array | undefined {
  if (!readdirSync(folder).includes('initial_state.safetensors')) return undefined
  const bytes = readFileSync(join(folder, 'initial_state.safetensors'))
  const header = Number(bytes.readBigUInt64LE(0))
  const [begin, end] = JSON.parse(bytes.subarray(8, 8 + header).toString()).initial_state.data_offsets
  return new Float32Array(new Uint8Array(bytes.subarray(8 + header + begin, 8 + header + end)).buffer)
}

/** The rows behind `from` of T × width arrays. */
export const behind = (values: ArrayLike<number>, width: number, from: number) =>
  Array.from(values).filter((_, i) => i % width >= from)
