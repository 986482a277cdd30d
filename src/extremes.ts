/*
 * Math.max(...values) passes every value as an argument. A call takes at most about 120,000 arguments, and a batch may have
 * more sequences.
 */

/** The largest value. -Infinity or `atLeast` if there are none. */
export function largest(values: Iterable<number>, atLeast = Number.NEGATIVE_INFINITY): number {
  let most = atLeast
  for (const value of values) most = Math.max(most, value)
  return most
}

/** The smallest value. Infinity if there are none. */
export function smallest(values: Iterable<number>): number {
  let least = Number.POSITIVE_INFINITY
  for (const value of values) least = Math.min(least, value)
  return least
}
