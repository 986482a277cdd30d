/** How long work may occupy the event loop before other work of the process runs, in milliseconds. */
const longestTurn = 5

let began = 0

/**
 * Whether work should yield to the event loop now. All work shares one clock, so that many short pieces count like a long one.
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

/** Yields to the event loop. Resolves after other work has run. */
export async function nextTurn(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
  began = performance.now()
}

/** Applies an action to each item in order, and yields to the event loop in between. */
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
