// What the cache keeps of keys and values.
import { type Architecture, cachePlanes } from '../native/architecture.js'
import type { ModelDType } from '../native/types.js'
import type { CacheType } from './types.js'

/** Words of {@link CacheType}. */
export const cacheTypes = ['model', 'int8', 'int4', 'residual', 'spark'] as const satisfies readonly CacheType[]

/** Bits of a code, and of the residuals of earlier loops; 0: there are none. prunedKeys: half of the channels of keys have codes. */
export const cacheBits: Readonly<Record<CacheType, { cacheBits: 0 | 4 | 8; residualBits: 0 | 2; prunedKeys: boolean }>> = {
  model: { cacheBits: 0, residualBits: 0, prunedKeys: false },
  int8: { cacheBits: 8, residualBits: 0, prunedKeys: false },
  int4: { cacheBits: 4, residualBits: 0, prunedKeys: false },
  residual: { cacheBits: 4, residualBits: 2, prunedKeys: false },
  spark: { cacheBits: 4, residualBits: 0, prunedKeys: true },
}

/** Bytes of one token's keys and values, as native/engine/generation/cache.cpp lays them out. */
export function cachePerToken(architecture: Architecture, loops: number, dtype: ModelDType, cacheType: CacheType): number {
  const { kvHeads, headDim } = architecture
  const { cacheBits: bits, residualBits, prunedKeys } = cacheBits[cacheType]
  const planes = cachePlanes(architecture, loops)
  const group = groupOf(headDim)
  const groups = (kvHeads * headDim) / group
  const words = (codeBits: number) => Math.ceil((group * codeBits) / 32)
  const record = (codeBits: number) => groups * (words(codeBits) + 1) * 4 // with a scale and a minimum
  const kept = Math.ceil((Math.floor(group / 2) * 3) / 32) // words; then a byte of each word without them, and one of the group
  const pruned = (groups * (kept + Math.ceil(words(bits) / 4) + 1) + Math.ceil(groups / 4)) * 4
  if (bits === 0) return 2 * planes * kvHeads * headDim * { bfloat16: 2, float32: 4, float64: 8 }[dtype]
  const residuals = residualBits > 0 && loops > 1 ? planes - cachePlanes(architecture, 1) : 0
  const keys = prunedKeys ? pruned : record(bits)
  return (planes - residuals) * (keys + record(bits)) + 2 * residuals * record(residualBits)
}

function groupOf(headDim: number): number {
  for (const group of [64, 32]) if (headDim % group === 0) return group
  for (let group = 63; group >= 16; group--) if (headDim % group === 0) return group
  return headDim
}
