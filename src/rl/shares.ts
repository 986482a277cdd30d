// Distributes the sequences of a logical batch over the processes.
import { largest, smallest } from '../extremes.js'
import type { TokenSequence } from '../model/types.js'

/** A sequence to train on, with its cost in tokens. */
export interface CostedRow {
  /** Its index in the batch. */
  row: number
  prompt: number
  response: number
  /** Sequences of a group share one prompt, which a process computes once. */
  group: number
}

/** The distribution of sequences over processes. */
export interface Shares {
  /** The rows of each rank, ascending. */
  rows: number[][]
  /** Tokens of the busiest rank divided by the mean. 1 means balanced. */
  imbalance: number
}

/** Distributes some sequences of a batch, and returns what is known about all of them. */
export function sharesOf(
  size: number,
  batch: { sequences: readonly TokenSequence[]; promptLengths: ArrayLike<number>; groupSize: number },
  rows: readonly number[],
) {
  const costs = rows.map((row): CostedRow => {
    const prompt = batch.promptLengths[row]!
    return { row, prompt, response: batch.sequences[row]!.length - prompt, group: Math.floor(row / batch.groupSize) }
  })
  const { rows: own, imbalance } = balancedShares(size, costs)
  const tokens = costs.reduce((sum, { prompt, response }) => sum + prompt + response, 0)
  return { rows: own, whole: { sequences: rows.length, tokens, imbalance } }
}

/**
 * Distributes sequences so that every rank trains about the same number of tokens. Groups stay whole, unless splitting groups
 * between two neighbouring ranks gives a better balance.
 */
export function balancedShares(size: number, rows: readonly CostedRow[]): Shares {
  if (size === 1) return { rows: [rows.map(({ row }) => row)], imbalance: 1 }
  const whole = longestFirst(size, rows)
  const cut = cutInOrder(size, rows)
  const best = largest(tokensOf(cut)) < largest(tokensOf(whole)) ? cut : whole
  const tokens = tokensOf(best)
  const mean = tokens.reduce((sum, count) => sum + count, 0) / size
  return {
    rows: best.map((own) => own.map(({ row }) => row).sort((a, b) => a - b)),
    imbalance: mean === 0 ? 1 : largest(tokens) / mean,
  }
}

type Parts = CostedRow[][]

/** The cost of each part in tokens: all responses, and each prompt once. */
function tokensOf(parts: Parts): number[] {
  return parts.map((part) => {
    const groups = new Set<number>()
    return part.reduce((sum, { response, prompt, group }) => {
      const known = groups.has(group)
      groups.add(group)
      return sum + response + (known ? 0 : prompt)
    }, 0)
  })
}

/** Gives the next largest group to the rank with the fewest tokens so far (Graham, 1969). */
function longestFirst(size: number, rows: readonly CostedRow[]): Parts {
  const byGroup = new Map<number, CostedRow[]>()
  for (const row of rows) {
    const group = byGroup.get(row.group)
    if (group === undefined) byGroup.set(row.group, [row])
    else group.push(row)
  }
  const groups = [...byGroup.values()]
  const costs = tokensOf(groups)
  const order = [...groups.keys()].sort((a, b) => costs[b]! - costs[a]! || a - b)
  const parts: Parts = Array.from({ length: size }, () => [])
  const tokens = Array<number>(size).fill(0)
  for (const k of order) {
    const least = tokens.indexOf(smallest(tokens))
    tokens[least]! += costs[k]!
    for (const row of groups[k]!) parts[least]!.push(row)
  }
  return parts
}

/** Fills the ranks in order, each up to the smallest capacity with which all rows fit (found by bisection). */
function cutInOrder(size: number, rows: readonly CostedRow[]): Parts {
  let [low, high] = [0, rows.reduce((sum, { prompt, response }) => sum + prompt + response, 0)]
  while (low < high) {
    const middle = Math.floor((low + high) / 2)
    if (filled(size, rows, middle) === undefined) low = middle + 1
    else high = middle
  }
  return filled(size, rows, high)!
}

function filled(size: number, rows: readonly CostedRow[], room: number): Parts | undefined {
  const parts: Parts = Array.from({ length: size }, () => [])
  let rank = 0
  let tokens = 0
  for (const row of rows) {
    const again = parts[rank]!.at(-1)?.group === row.group
    tokens += row.response + (again ? 0 : row.prompt)
    if (tokens > room) {
      rank++
      tokens = row.response + row.prompt
    }
    if (rank === size || tokens > room) return undefined
    parts[rank]!.push(row)
  }
  return parts
}
