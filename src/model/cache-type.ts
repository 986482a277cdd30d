// What the cache keeps of keys and values.
import { type Architecture, cachePlanes } from '../native/architecture.js'
import type { ModelDType } from '../native/types.js'
import type { CacheType } from './types.js'

/** Words of {@link CacheType}. */
export const cacheTypes = ['model', 'int8', 'int4', 'residual'] as const satisfies readonly CacheType[]

/** Bits of a code, and of the residuals of earlier loops; 0: there are none. */
export const cacheBits: Readonly<Record<CacheType, { cacheBits: 0 | 4 | 8; residualBits: 0 | 2 }>> = {
  model: { cacheBits: 0, residualBits: 0 },
  int8: { cacheBits: 8, residualBits: 0 },
  int4: { cacheBits: 4, residualBits: 0 },
  residual: { cacheBits: 4, residualBits: 2 },
}

/** Bytes of one token's keys and values, as native/engine/generation/cache.cpp lays them out. */
export function cachePerToken(architecture: Architecture, loops: number, dtype: ModelDType, cacheType: CacheType): number {
  const { kvHeads, headDim } = architecture
  const { cacheBits: bits, residualBits } = cacheBits[cacheType]
  const planes = cachePlanes(architecture, loops)
  const group = groupOf(headDim)
  const record = (codeBits: number) => (headDim / group) * (Math.ceil((group * codeBits) / 32) + 1) * 4 // with a scale and a minimum
  if (bits === 0) return 2 * planes * kvHeads * headDim * { bfloat16: 2, float32: 4, float64: 8 }[dtype]
  const residuals = residualBits > 0 && loops > 1 ? planes - cachePlanes(architecture, 1) : 0
  return 2 * kvHeads * ((planes - residuals) * record(bits) + residuals * record(residualBits))
}

function groupOf(headDim: number): number {
  for (const group of [64, 32]) if (headDim % group === 0) return group
  for (let group = 63; group >= 16; group--) if (headDim % group === 0) return group
  return headDim
}
