// Adapters in plain arithmetic, and ones that do something.
import type { LoopLM } from '../src/index.js'
import type { Parameters } from './looped-model.js'

/** B begins as zeros: fills it, so that the adapter changes the model. */
export async function fillAdapter(model: LoopLM): Promise<void> {
  for (const [i, { name, shape }] of model.adapter!.parameters.entries()) {
    if (!name.includes('.lora_B.')) continue
    const values = Float64Array.from({ length: shape[0]! * shape[1]! }, (_, j) => 0.2 * Math.sin(i + 3 * j))
    await model.setParameter(name, values)
  }
}

/** The adapter's parameters by name. */
export async function adapterOf(model: LoopLM): Promise<Map<string, ArrayLike<number>>> {
  const values = new Map<string, ArrayLike<number>>()
  for (const { name } of model.adapter!.parameters) values.set(name, await model.getParameter(name))
  return values
}

/**
 * W + scale · B A of every adapted matrix, the other parameters as they are.
 *
 * @param loop counted from 0, where loops have their own adapters; -1: of steps outside the loops
 */
export function mergedBy(base: Parameters, adapter: Parameters, scale: number, loop = -1): Map<string, ArrayLike<number>> {
  const out = new Map(base)
  for (const [name, a] of adapter) {
    const [, module, of] = /^(.*)\.lora_A(?:\.loop_(\d+))?\.weight$/.exec(name) ?? []
    if (module === undefined || (of !== undefined && Number(of) !== loop + 1)) continue
    const b = adapter.get(name.replace('.lora_A.', '.lora_B.'))!
    const target = `${module}.weight`
    const w = base.get(target)!
    const rank = Math.round(Math.sqrt((a.length * b.length) / w.length))
    const width = a.length / rank
    const merged = Float64Array.from(w)
    for (let i = 0; i < merged.length / width; i++)
      for (let j = 0; j < width; j++) {
        let sum = 0
        for (let k = 0; k < rank; k++) sum += b[i * rank + k]! * a[k * width + j]!
        merged[i * width + j]! += scale * sum
      }
    out.set(target, merged)
  }
  return out
}
