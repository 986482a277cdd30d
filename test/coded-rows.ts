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
  return Array.from({ length: row.length / group }, (_, g) => {
    const numbers = row.slice(g * group, (g + 1) * group).map(Math.fround)
    const minimum = bfloat16(Math.min(...numbers), false)
    const scale = bfloat16(Math.fround(Math.fround(Math.max(...numbers) - minimum) / most), true)
    if (scale === 0) return numbers.map(() => minimum)
    const inverse = Math.fround(1 / scale)
    return numbers.map((x) => minimum + scale * Math.min(most, roundEven(Math.fround(Math.fround(x - minimum) * inverse))))
  }).flat()
}
