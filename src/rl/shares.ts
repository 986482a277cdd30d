// Who trains which sequences of a logical batch.
import { largest, smallest } from '../extremes.js'
import type { TokenSequence } from '../model/types.js'

/** A sequence that is to be trained on, as far as its cost goes. */
export interface CostedRow {
  /** Its number among all. */
  row: number
  prompt: number
  response: number
  /** Sequences of one group have one prompt, which a process computes once. */
  group: number
}

/** Who trains what. */
export interface Shares {
  /** The rows of each rank, in growing order. */
  rows: number[][]
  /** Tokens that the busiest rank trains, over the mean of all; 1: balanced. */
  imbalance: number
}

/** The shares of some sequences of a batch, and what is known of them as a whole. */
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
 * Shares sequences out so that every rank trains about the same number of tokens: whole groups, or where that balances better, groups that
 * are cut where one rank's share ends and the next one's begins.
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

/** What each part costs: responses, and each prompt once. */
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

/** The next largest group goes to whoever has the least so far (Graham, 1969). */
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

/** In their order, each rank as many as fit into the smallest room with which there is a place for all. */
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
