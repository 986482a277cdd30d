import type { LoopLM } from '../src/index.js'

/** Scales what the blocks of an Ouro model add, so that loops after the first change a state by about this share of it. */
export async function settle(model: LoopLM, scale: number): Promise<void> {
  for (const { name, shape } of model.parameters())
    if (name.endsWith('layernorm_2.weight')) await model.setParameter(name, new Float64Array(shape[0]!).fill(scale))
}
