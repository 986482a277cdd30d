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

/** What an action makes of each item, one after the other, with turns for other work between them. */
export async function inTurns<Item, Result>(
  items: readonly Item[],
  action: (item: Item) => Result | Promise<Result>,
): Promise<Result[]> {
  const made: Result[] = []
  for (const item of items) {
    if (turnIsOver()) await nextTurn()
    made.push(await action(item))
  }
  return made
}
