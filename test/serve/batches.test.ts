// What the server computes for many requests at once.
import { expect, it } from 'vitest'
import { Batches } from '../../src/serve/batches.js'

const never = new AbortController().signal
const tokens = (count: number, first = 0) => [first, ...Array(count - 1).fill(1)]

/** Sums of sequences, and what was computed together. */
function sums(fails: (sequence: readonly number[]) => boolean = () => false) {
  const runs: { sizes: number[]; settings: unknown }[] = []
  let open = () => {}
  const gate = new Promise<void>((resolve) => {
    open = resolve
  })
  const batches = new Batches<{ loops?: number }, number>(2048, async (sequences, settings) => {
    runs.push({ sizes: sequences.map(({ length }) => length), settings })
    await gate
    if (sequences.some((sequence) => fails(Array.from(sequence)))) throw new Error('no luck')
    return sequences.map((sequence) => Array.from(sequence).reduce((sum, token) => sum + token, 0))
  })
  return { batches, runs, open }
}

it('waiting sequences run together up to a token limit, grouped by settings', async () => {
  const { batches, runs, open } = sums()
  open()
  const results = await Promise.all([
    ...[3, 4].map((count) => batches.add(tokens(count), {}, never)),
    batches.add(tokens(5), { loops: 2 }, never),
    ...[1000, 1000, 1000, 3000, 6].map((count) => batches.add(tokens(count), {}, never)),
  ])
  expect(results).toEqual([2, 3, 4, 999, 999, 999, 2999, 5])
  expect(runs).toEqual([
    { sizes: [3, 4, 1000, 1000], settings: {} },
    { sizes: [5], settings: { loops: 2 } },
    { sizes: [1000], settings: {} },
    { sizes: [3000], settings: {} },
    { sizes: [6], settings: {} },
  ])
})

it('a sequence that fails does not affect others', async () => {
  const { batches, open } = sums(([first]) => first === 13)
  open()
  const results = await Promise.allSettled([12, 13, 14].map((first) => batches.add(tokens(2, first), {}, never)))
  expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
})

it('an aborted request ends at once, whether waiting, running or not yet added', async () => {
  const { batches, runs, open } = sums()
  const controller = new AbortController()
  const running = batches.add(tokens(2), {}, controller.signal)
  await Promise.resolve()
  const waiting = batches.add(tokens(3), {}, controller.signal)
  const other = batches.add(tokens(4), {}, never)
  controller.abort(new Error('left'))
  const late = batches.add(tokens(5), {}, controller.signal)
  for (const gone of [running, waiting, late]) await expect(gone).rejects.toThrow('left')
  open()
  expect(await other).toBe(3)
  expect(runs.map(({ sizes }) => sizes)).toEqual([[2], [4]])
})
