// Rows of a cache in few bits, from the words of native/backend.h (LoopCacheCodes).

/** The neighbour of x in bfloat16, not above it or not below it. */
function bfloat16(x: number, upwards: boolean): number {
  const bits = new Uint32Array(Float32Array.of(x).buffer)
  const cut = Uint32Array.of(bits[0]! & 0xffff0000)
  const value = new Float32Array(cut.buffer)
  if (value[0] !== Math.fround(x) && x > 0 === upwards) cut[0]! += 0x10000
  return value[0]!
}

function roundEven(x: number): number {
  const down = Math.floor(x)
  if (x - down !== 0.5) return Math.round(x)
  return down % 2 === 0 ? down : down + 1
}

/** What a row's codes stand for, in groups of neighbours. */
export function codedRow(row: readonly number[], bits: 2 | 4 | 8, group: number): number[] {
  const most = 2 ** bits - 1
  return groupsOf(row, group, most, (numbers, code) => numbers.map((x) => Math.min(most, roundEven(code(x)))))
}

/** The same where half of the numbers of a group have codes, of 3 bits, and the others stand for the middle of their interval. */
export function prunedRow(row: readonly number[], group: number): number[] {
  const count = group - Math.floor(group / 2)
  return groupsOf(row, group, 14, (numbers, code) => {
    const order = [...numbers.keys()].sort((a, b) => numbers[a]! - numbers[b]! || a - b)
    const ends = (first: number) => [order[first]!, order[first + count - 1]!].map((i) => numbers[i]!) as [number, number]
    const lengths = Array.from({ length: group - count + 1 }, (_, first) => Math.fround(ends(first)[1] - ends(first)[0]))
    const first = lengths.indexOf(Math.min(...lengths))
    const pruned = new Set(order.slice(first, first + count))
    const middle = Math.fround(ends(first)[0] / 2 + ends(first)[1] / 2)
    return numbers.map((x, i) => (pruned.has(i) ? roundEven(code(middle)) : 2 * Math.min(7, roundEven(code(x) / 2))))
  })
}

/** minimum + scale · code, with the codes that `of` makes of a group's numbers. */
function groupsOf(
  row: readonly number[],
  group: number,
  most: number,
  of: (numbers: number[], code: (x: number) => number) => number[],
): number[] {
  return Array.from({ length: row.length / group }, (_, g) => {
    const numbers = row.slice(g * group, (g + 1) * group).map(Math.fround)
    const minimum = bfloat16(Math.min(...numbers), false)
    const scale = bfloat16(Math.fround(Math.fround(Math.max(...numbers) - minimum) / most), true)
    if (scale === 0) return numbers.map(() => minimum)
    const inverse = Math.fround(1 / scale)
    return of(numbers, (x) => Math.fround(Math.fround(x - minimum) * inverse)).map((code) => minimum + scale * code)
  }).flat()
}
