/**
 * Looks up the rank and the result of merging two tokens: an open-addressed hash table, smaller and faster than a Map of pairs.
 */
export class MergeTable {
  readonly #mask: number
  readonly #left: Int32Array
  readonly #right: Int32Array
  readonly #rank: Int32Array
  /** The result of each merge. */
  readonly made: Int32Array

  /** @param merges number of merges; ranks must be smaller */
  constructor(merges: number) {
    const size = 2 ** Math.ceil(Math.log2(2 * merges + 2)) // at most half full
    this.#mask = size - 1
    this.#left = new Int32Array(size).fill(-1)
    this.#right = new Int32Array(size)
    this.#rank = new Int32Array(size)
    this.made = new Int32Array(merges)
  }

  #slot(left: number, right: number): number {
    let slot = (Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)) >>> 0
    slot = (slot ^ (slot >>> 15)) & this.#mask
    while (this.#left[slot] !== -1 && (this.#left[slot] !== left || this.#right[slot] !== right)) slot = (slot + 1) & this.#mask
    return slot
  }

  /** Sets a merge. If a pair is set twice, the later rank counts. */
  set(left: number, right: number, rank: number, made: number): void {
    const slot = this.#slot(left, right)
    this.#left[slot] = left
    this.#right[slot] = right
    this.#rank[slot] = rank
    this.made[rank] = made
  }

  /** The rank of a pair's merge, or -1. */
  rank(left: number, right: number): number {
    const slot = this.#slot(left, right)
    return this.#left[slot] === -1 ? -1 : this.#rank[slot]!
  }
}

/** The number of positions that a key of the queue can hold, next to 2²⁴ ranks in the 53 bits of a number. */
const positions = 2 ** 29

/** How many merges run between two pauses. */
const slice = 2 ** 13

/**
 * Merges symbols until no pair can be merged: always the pair with the lowest rank, the leftmost first. A priority queue makes
 * this n log n. It pauses now and then.
 *
 * @returns the remaining symbols
 */
export function* merged(symbols: readonly number[], table: MergeTable): Generator<void, number[]> {
  const count = symbols.length
  if (count < 2) return [...symbols]
  const tokens = new Int32Array(symbols)
  const next = new Int32Array(count)
  const previous = new Int32Array(count)
  for (let i = 0; i < count; i++) {
    next[i] = i + 1
    previous[i] = i - 1
  }
  next[count - 1] = -1
  const queue = new Queue(count)
  const offer = (position: number) => {
    const after = next[position]!
    const rank = after === -1 ? -1 : table.rank(tokens[position]!, tokens[after]!)
    if (rank !== -1) queue.push(rank * positions + position)
  }
  for (let i = 0; i + 1 < count; i++) {
    offer(i)
    if (i % slice === slice - 1) yield
  }
  for (let turn = 1; queue.size > 0; turn++) {
    if (turn % slice === 0) yield
    const key = queue.pop()
    const position = key % positions
    const rank = (key - position) / positions
    const right = next[position]!
    // Already merged into another symbol, the last symbol, or changed since the entry was made
    if (tokens[position] === -1 || right === -1 || table.rank(tokens[position]!, tokens[right]!) !== rank) continue
    tokens[position] = table.made[rank]!
    tokens[right] = -1
    const after = next[right]!
    next[position] = after
    if (after !== -1) previous[after] = position
    if (previous[position] !== -1) offer(previous[position]!)
    offer(position)
  }
  const left: number[] = []
  for (let i = 0; i !== -1; i = next[i]!) left.push(tokens[i]!)
  return left
}

/** A binary heap of numbers with the smallest first. */
class Queue {
  size = 0
  #keys: Float64Array

  constructor(room: number) {
    this.#keys = new Float64Array(room)
  }

  push(key: number): void {
    if (this.size === this.#keys.length) {
      const keys = new Float64Array(2 * this.size)
      keys.set(this.#keys)
      this.#keys = keys
    }
    const keys = this.#keys
    let at = this.size++
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (keys[parent]! <= key) break
      keys[at] = keys[parent]!
      at = parent
    }
    keys[at] = key
  }

  pop(): number {
    const keys = this.#keys
    const top = keys[0]!
    const key = keys[--this.size]!
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= this.size) break
      if (child + 1 < this.size && keys[child + 1]! < keys[child]!) child++
      if (keys[child]! >= key) break
      keys[at] = keys[child]!
      at = child
    }
    keys[at] = key
    return top
  }
}
