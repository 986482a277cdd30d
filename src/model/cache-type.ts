// What the cache keeps of keys and values.
import { type Architecture, cachePlanes } from '../native/architecture.js'
import type { ModelDType } from '../native/types.js'
import type { CacheType } from './types.js'

/** Words of {@link CacheType}. */
export const cacheTypes = ['model', 'int8', 'int4'] as const satisfies readonly CacheType[]

/** Bits of a code; 0: there are none. */
export const cacheBits: Readonly<Record<CacheType, 0 | 4 | 8>> = { model: 0, int8: 8, int4: 4 }

/** Bytes of one token's keys and values, as native/engine/generation/cache.cpp lays them out. */
export function cachePerToken(architecture: Architecture, loops: number, dtype: ModelDType, cacheType: CacheType): number {
  const { kvHeads, headDim } = architecture
  const bits = cacheBits[cacheType]
  const plain = headDim * { bfloat16: 2, float32: 4, float64: 8 }[dtype]
  const group = groupOf(headDim)
  const coded = (headDim / group) * (Math.ceil((group * bits) / 32) + 1) * 4 // with a scale and a minimum
  return 2 * cachePlanes(architecture, loops) * kvHeads * (bits === 0 ? plain : coded)
}

function groupOf(headDim: number): number {
  for (const group of [64, 32]) if (headDim % group === 0) return group
  for (let group = 63; group >= 16; group--) if (headDim % group === 0) return group
  return headDim
}
