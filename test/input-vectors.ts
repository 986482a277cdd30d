import type { LoopLM } from '../src/index.js'

/** What tokens are embedded as: scaled rows of the table. */
export async function embedded(model: LoopLM, ids: readonly number[]): Promise<number[]> {
  const { parameters, begin, hidden } = model.architecture
  const table = await model.getParameter(parameters.find(({ role }) => role === 'embedding')!.name)
  const step = begin.find(({ kind }) => kind === 'embed')
  const round = model.device === 'reference' ? (x: number) => x : Math.fround
  const scale = round((step?.kind === 'embed' ? step.scale : undefined) ?? 1)
  return ids.flatMap((id) => Array.from(table.subarray(id * hidden, (id + 1) * hidden), (value) => round(value * scale)))
}
