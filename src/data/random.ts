import { LoopLMError } from '../errors.js'

/**
 * Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), §3. A
 * block of four random 32-bit words is a pure function of a 64-bit key and a 128-bit counter, so any position of any stream can
 * be computed directly, and the whole state of a generator is a number.
 */
const multiplier0 = 0xd2511f53
const multiplier1 = 0xcd9e8d57
const weyl0 = 0x9e3779b9
const weyl1 = 0xbb67ae85
const rounds = 10

/** The high 32 bits of the 64-bit product of two unsigned 32-bit numbers, by 16-bit halves. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff
  const aHigh = a >>> 16
  const bLow = b & 0xffff
  const bHigh = b >>> 16
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16) // < 2^32
  const carry = aLow * bHigh + (middle & 0xffff) // < 2^32
  return (aHigh * bHigh + (middle >>> 16) + (carry >>> 16)) >>> 0
}

/**
 * One Philox4x32-10 block, in place.
 *
 * @param words four unsigned 32-bit words: the counter on entry, the random words on return
 * @param key0 low word of the key
 * @param key1 high word of the key
 */
export function philox(words: Uint32Array, key0: number, key1: number): void {
  let x0 = words[0]!
  let x1 = words[1]!
  let x2 = words[2]!
  let x3 = words[3]!
  for (let round = 0; round < rounds; round++) {
    const high0 = multiplyHigh(multiplier0, x0)
    const high1 = multiplyHigh(multiplier1, x2)
    const low0 = Math.imul(multiplier0, x0) >>> 0
    const low1 = Math.imul(multiplier1, x2) >>> 0
    x0 = (high1 ^ x1 ^ key0) >>> 0
    x1 = low1
    x2 = (high0 ^ x3 ^ key1) >>> 0
    x3 = low0
    key0 = (key0 + weyl0) >>> 0
    key1 = (key1 + weyl1) >>> 0
  }
  words[0] = x0
  words[1] = x1
  words[2] = x2
  words[3] = x3
}

/**
 * A reproducible random stream, addressed by a seed and up to two stream numbers. Streams with different addresses are
 * independent; the same address gives the same numbers on every machine.
 *
 * @example
 * ```ts
 * const random = new Random(42, 7) // seed 42, stream 7
 * random.uniform() // in [0, 1)
 * random.integer(6) + 1 // a die
 * random.shuffle([1, 2, 3])
 * ```
 */
export class Random {
  readonly #key0: number
  readonly #key1: number
  readonly #stream: readonly [number, number, number]
  readonly #words = new Uint32Array(4)
  #block = 0
  #used = 4

  /**
   * @param seed integer in [0, 2^53)
   * @param stream integer in [0, 2^53), for example a problem's index
   * @param substream integer in [0, 2^32), for example the number of a split
   * @throws LoopLMError INVALID_ARGUMENT when one of them is not such an integer
   */
  constructor(seed: number, stream = 0, substream = 0) {
    checkNatural('seed', seed, 2 ** 53)
    checkNatural('stream', stream, 2 ** 53)
    checkNatural('substream', substream, 2 ** 32)
    this.#key0 = seed >>> 0
    this.#key1 = Math.floor(seed / 2 ** 32)
    this.#stream = [stream >>> 0, Math.floor(stream / 2 ** 32), substream]
  }

  /** The next 32 random bits, as an unsigned integer. A stream has 2^34 of them before it repeats. */
  word(): number {
    if (this.#used === 4) {
      this.#words[0] = this.#block++
      this.#words.set(this.#stream, 1)
      philox(this.#words, this.#key0, this.#key1)
      this.#used = 0
    }
    return this.#words[this.#used++]!
  }

  /** A number in [0, 1), a multiple of 2^-53. */
  uniform(): number {
    const high = this.word() >>> 5
    return (high * 2 ** 26 + (this.word() >>> 6)) / 2 ** 53
  }

  /**
   * A uniform integer in [0, count). Draws above the largest multiple of `count` are rejected.
   *
   * @param count integer in [1, 2^53]
   * @throws LoopLMError INVALID_ARGUMENT
   */
  integer(count: number): number {
    if (!Number.isInteger(count) || count < 1 || count > 2 ** 53) {
      const message = `count must be an integer in [1, 2^53], got ${count}`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'Random.integer' })
    }
    const range = count <= 2 ** 32 ? 2 ** 32 : 2 ** 53
    const limit = range - (range % count)
    for (;;) {
      const draw = range === 2 ** 32 ? this.word() : this.uniform() * 2 ** 53
      if (draw < limit) return draw % count
    }
  }

  /**
   * Permutes `items` in place, uniformly (Fisher–Yates).
   *
   * @returns the same object
   */
  shuffle<T extends unknown[] | Uint32Array>(items: T): T {
    for (let last = items.length - 1; last > 0; last--) {
      const other = this.integer(last + 1)
      const item = items[last]!
      items[last] = items[other]!
      items[other] = item
    }
    return items
  }
}

function checkNatural(name: string, value: number, end: number): void {
  if (Number.isInteger(value) && value >= 0 && value < end) return
  const message = `${name} must be an integer in [0, 2^${Math.log2(end)}), got ${value}`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'Random' })
}
