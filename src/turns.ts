/** How long work on the event loop goes on before other work of the process gets its turn, in milliseconds. */
const longestTurn = 5

let began = 0

/**
 * Whether the event loop should turn before work goes on. All work shares one clock, so that many short pieces count as well as a long one.
 *
 * @example
 * ```ts
 * for (const row of dataset) {
 *   if (turnIsOver()) await nextTurn()
 *   tokenizer.encode(row.prompt as string)
 * }
 * ```
 */
export function turnIsOver(): boolean {
  return performance.now() - began > longestTurn
}

/** Resolves when the other work of the process has had its turn. */
export async function nextTurn(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
  began = performance.now()
}
