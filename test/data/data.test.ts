import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadDataset, readDataset } from '../../src/data/dataset.js'
import { philox, Random } from '../../src/data/random.js'
import { DatasetSampler } from '../../src/data/sampler.js'
import { LoopLMError, toLoopLMError } from '../../src/errors.js'
import { taskProblems } from '../../src/rl/problems.js'
import { refusal } from '../refusal.js'
import { tinyTask } from '../tiny.js'

describe('Philox4x32-10', () => {
  // the known answers that its authors publish (Random123, kat_vectors)
  const cases: [counter: number[], key: [number, number], words: number[]][] = [
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ]
  it.each(cases)('maps counter %j and key %j to %j', (counter, key, expected) => {
    const words = Uint32Array.from(counter)
    philox(words, ...key)
    expect([...words]).toEqual(expected)
  })

  it('equals the definition in 64-bit integers for arbitrary counters and keys', () => {
    const mask = 0xffffffffn
    const random = new Random(1)
    for (let trial = 0; trial < 50; trial++) {
      const [c0, c1, c2, c3, k0, k1] = Array.from({ length: 6 }, () => random.word()) as [
        number,
        number,
        number,
        number,
        number,
        number,
      ]
      let x = [c0, c1, c2, c3].map(BigInt) as [bigint, bigint, bigint, bigint]
      for (let round = 0n; round < 10n; round++) {
        const a = 0xd2511f53n * x[0]
        const b = 0xcd9e8d57n * x[2]
        const keyA = (BigInt(k0) + round * 0x9e3779b9n) & mask
        const keyB = (BigInt(k1) + round * 0xbb67ae85n) & mask
        x = [(b >> 32n) ^ x[1] ^ keyA, b & mask, (a >> 32n) ^ x[3] ^ keyB, a & mask]
      }
      const words = Uint32Array.of(c0, c1, c2, c3)
      philox(words, k0, k1)
      expect([...words].map(BigInt)).toEqual(x)
    }
  })
})

describe('Random', () => {
  const draws = (...address: [number, number?, number?]): number[] => {
    const random = new Random(...address)
    return Array.from({ length: 6 }, () => random.word())
  }

  it('repeats for the same address and differs for any other', () => {
    expect(draws(5, 6, 7)).toEqual(draws(5, 6, 7))
    const addresses: [number, number, number][] = [
      [0, 0, 0],
      [1, 0, 0],
      [0, 1, 0],
      [0, 0, 1],
      [2 ** 32, 0, 0],
      [0, 2 ** 32, 0],
    ]
    expect(new Set(addresses.map((address) => draws(...address).join())).size).toBe(addresses.length)
  })

  it('draws integers uniformly, also where 2^32 is not a multiple of the range', () => {
    const random = new Random(3)
    const counts = [0, 0, 0, 0, 0, 0, 0]
    for (let i = 0; i < 70_000; i++) counts[random.integer(7)]!++
    // chi-square with 6 degrees of freedom: above 22.5 with probability 0.001
    expect(counts.reduce((sum, count) => sum + (count - 10_000) ** 2 / 10_000, 0)).toBeLessThan(22.5)
    // with a plain remainder two thirds of the draws below 3·2^30 would fall into the lower half
    const range = 3 * 2 ** 30
    const low = Array.from({ length: 4000 }, () => random.integer(range)).filter((value) => value < range / 2).length
    expect(Math.abs(low - 2000)).toBeLessThan(4 * Math.sqrt(1000))
  })

  it('draws integers above 2^32 and uniform numbers in [0, 1)', () => {
    const random = new Random(4)
    const large = Array.from({ length: 2000 }, () => random.integer(10 ** 15))
    expect(large.every((value) => Number.isInteger(value) && value >= 0 && value < 10 ** 15)).toBe(true)
    expect(Math.abs(large.reduce((sum, value) => sum + value, 0) / 2000 / 10 ** 15 - 0.5)).toBeLessThan(0.03)
    const uniform = Array.from({ length: 2000 }, () => random.uniform())
    expect(Math.min(...uniform)).toBeGreaterThanOrEqual(0)
    expect(Math.max(...uniform)).toBeLessThan(1)
    expect(Math.abs(uniform.reduce((sum, value) => sum + value, 0) / 2000 - 0.5)).toBeLessThan(0.03)
  })

  it('shuffles into each order equally often', () => {
    const counts = new Map<string, number>()
    for (let i = 0; i < 6000; i++) {
      const order = new Random(9, i).shuffle(['a', 'b', 'c']).join('')
      counts.set(order, (counts.get(order) ?? 0) + 1)
    }
    expect(counts.size).toBe(6)
    // chi-square with 5 degrees of freedom: above 20.5 with probability 0.001
    expect([...counts.values()].reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0)).toBeLessThan(20.5)
  })

  it('rejects seeds and ranges that are not natural numbers', () => {
    for (const seed of [-1, 0.5, Number.NaN, 2 ** 53]) expect(() => new Random(seed)).toThrow(/seed must be an integer/)
    for (const count of [0, -1, 1.5, Number.NaN, 2 ** 54]) expect(() => new Random(0).integer(count)).toThrow(/count must be/)
  })
})

describe('DatasetSampler', () => {
  const rows = Array.from({ length: 10 }, (_, i) => i)

  it('visits every row once per epoch, in another order each time', () => {
    const sampler = new DatasetSampler(rows, { seed: 1 })
    const [first, second] = [sampler.take(10), sampler.take(10)]
    expect(first.toSorted((a, b) => a - b)).toEqual(rows)
    expect(second.toSorted((a, b) => a - b)).toEqual(rows)
    expect(second).not.toEqual(first)
    expect(new DatasetSampler(rows, { seed: 2 }).take(10)).not.toEqual(first)
    expect(sampler.epoch).toBe(2)
  })

  it('continues exactly where a saved state stopped', () => {
    const whole = new DatasetSampler(rows, { seed: 7 }).take(35)
    for (const split of [0, 1, 9, 10, 11, 25]) {
      const before = new DatasetSampler(rows, { seed: 7 })
      const head = before.take(split)
      const after = new DatasetSampler(rows, JSON.parse(JSON.stringify(before.state)))
      expect([...head, ...after.take(35 - split)]).toEqual(whole)
    }
  })

  it('rejects drawing more rows than a list can hold', async () => {
    const sampler = new DatasetSampler([1, 2], { seed: 1 })
    expect((await refusal(() => sampler.take(1e12))).message).toMatch(
      /at most 16777216 rows .*not 1000000000000; lower .*batchSize/,
    )
    const source = taskProblems(tinyTask, tinyTask.tokenizer)
    expect((await refusal(() => source.take(0, 1e12))).message).toMatch(/not 1000000000000/)
    expect((await refusal(() => source.heldOut(2 ** 53 - 1))).code).toBe('INVALID_ARGUMENT')
  })

  it('rejects an empty dataset and a bad state', () => {
    expect(() => new DatasetSampler([], { seed: 1 })).toThrow(/no rows/)
    expect(() => new DatasetSampler(rows, { seed: -1 })).toThrow(/seed/)
    expect(() => new DatasetSampler(rows, { seed: 1, index: -1 })).toThrow(/index/)
  })
})

describe('JSON Lines', () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'looplm-data-'))
  })
  afterAll(() => rm(folder, { recursive: true }))

  let files = 0
  const write = async (content: string | Uint8Array): Promise<string> => {
    const path = join(folder, `${files++}.jsonl`)
    await writeFile(path, content)
    return path
  }

  it('reads prompts, answers and further columns in order', async () => {
    const path = await write('{"prompt":"2+2=","answer":"4","level":1}\n{"prompt":"é漢😀"}\n')
    expect(await loadDataset(path)).toEqual([{ prompt: '2+2=', answer: '4', level: 1 }, { prompt: 'é漢😀' }])
  })

  it('skips blank lines and a byte order mark, and needs no newline at the end', async () => {
    const path = await write('\ufeff\n{"prompt":"a"}\r\n\n  \n{"prompt":"b"}')
    expect(await loadDataset(path)).toEqual([{ prompt: 'a' }, { prompt: 'b' }])
  })

  it('reads lines that span the chunks of the stream', async () => {
    const prompts = [100_000, 3, 65_536, 65_535, 200_000].map((length, i) => String(i).repeat(length) + 'é'.repeat(length))
    const path = await write(prompts.map((prompt) => `${JSON.stringify({ prompt })}\n`).join(''))
    expect((await loadDataset(path)).map(({ prompt }) => prompt)).toEqual(prompts)
  })

  it('streams: yields the first rows before it fails on a bad one', async () => {
    const rows = readDataset(await write('{"prompt":"a"}\n{"prompt":1}\n'))
    expect((await rows.next()).value).toEqual({ prompt: 'a' })
    await expect(rows.next()).rejects.toThrow(/line 2/)
  })

  const bad: [what: string, content: string | Uint8Array, message: RegExp][] = [
    ['broken JSON', '{"prompt":"a"}\n\n{"prompt":', /line 3 is not JSON/],
    ['an array', '[1]', /line 1 must be a JSON object, got an array/],
    ['a null', 'null', /line 1 must be a JSON object, got null/],
    ['no prompt', '{"answer":"4"}', /line 1 field "prompt" must be a string or an array of messages, got nothing/],
    [
      'a number as prompt',
      '{"prompt":5}',
      /line 1 field "prompt" must be a string or an array of messages, got a value of type number/,
    ],
    ['a list as prompt', '{"prompt":[]}', /line 1 field "prompt" is empty; give at least one message/],
    ['a number as answer', '{"prompt":"a"}\n{"prompt":"b","answer":4}', /line 2 field "answer" must be a string when present/],
    ['a null as answer', '{"prompt":"a","answer":null}', /line 1 field "answer" must be a string when present, got null/],
    ['bytes that are not UTF-8', Uint8Array.of(0x7b, 0xff, 0x7d), /line 1 is not valid UTF-8/],
    ['two objects in a line', '{"prompt":"a"}{"prompt":"b"}', /line 1 is not JSON/],
    ['no rows', '\n\n', /has no rows/],
  ]
  it.each(bad)('with %s is rejected, naming file, line and field', async (_what, content, message) => {
    const path = await write(content)
    const error = await loadDataset(path).catch((error) => error)
    expect(error).toBeInstanceOf(LoopLMError)
    expect(error).toMatchObject({ code: 'INVALID_FILE', message: expect.stringContaining(path) })
    expect(error.message).toMatch(message)
  })

  it('rejects a line that is too long, and a file that is too large', async () => {
    const path = await write(`{"prompt":"a"}\n{"prompt":"${'x'.repeat(300_000)}"}`)
    await expect(loadDataset(path, { maxRowBytes: 1000 })).rejects.toThrow(/line 2 is longer than maxRowBytes = 1000/)
    await expect(loadDataset(path, { maxFileBytes: 1000 })).rejects.toThrow(/more than maxFileBytes = 1000/)
    await expect(loadDataset(path, { maxRowBytes: 300_013 })).resolves.toHaveLength(2)
    await expect(loadDataset(path, { maxRowBytes: 300_012 })).rejects.toThrow(/line 2/)
  })

  it('fails with NOT_FOUND for a missing file, with INVALID_FILE for a folder', async () => {
    await expect(loadDataset(join(folder, 'none.jsonl'))).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(readDataset(join(folder, 'none.jsonl')).next()).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(loadDataset(folder)).rejects.toMatchObject({ code: 'INVALID_FILE' })
  })
})

describe('LoopLMError', () => {
  it('puts the operation in front of the message and keeps code, shapes and cause', () => {
    const cause = new Error('below')
    const error = new LoopLMError('INVALID_SHAPE', 'rows differ', { operation: 'matmul', shapes: { a: [2, 3] }, cause })
    expect(error).toMatchObject({ name: 'LoopLMError', code: 'INVALID_SHAPE', message: 'matmul: rows differ', cause })
    expect(error.shapes).toEqual({ a: [2, 3] })
  })

  it('keeps a known code of a foreign error and maps any other to INTERNAL', () => {
    const native = Object.assign(new Error('no memory'), { code: 'OUT_OF_MEMORY' })
    expect(toLoopLMError(native, 'model.score')).toMatchObject({
      code: 'OUT_OF_MEMORY',
      message: 'model.score: no memory',
      cause: native,
    })
    expect(toLoopLMError(Object.assign(new Error('x'), { code: 'ENOENT' })).code).toBe('INTERNAL')
    expect(toLoopLMError(null)).toMatchObject({ code: 'INTERNAL', message: 'null' })
    const own = new LoopLMError('ABORTED', 'stopped')
    expect(toLoopLMError(own)).toBe(own)
  })
})
