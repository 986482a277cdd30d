import { describe, expect, it } from 'vitest'
import { Random } from '../../src/data/random.js'
import { localRank } from '../../src/parallel.js'
import { balancedShares, type CostedRow } from '../../src/rl/shares.js'
import { ownGpu } from '../../src/tensor/devices.js'

const rowsOf = (groups: readonly { prompt: number; responses: readonly number[] }[]): CostedRow[] => {
  let row = 0
  return groups.flatMap(({ prompt, responses }, group) => responses.map((response) => ({ row: row++, prompt, response, group })))
}

/** Tokens of each rank, a group's prompt once. */
const tokens = (shares: readonly (readonly number[])[], rows: readonly CostedRow[]) =>
  shares.map((own) => {
    const groups = new Set(own.map((row) => rows[row]!.group))
    const prompts = [...groups].map((group) => rows.find((row) => row.group === group)!.prompt)
    return [...own.map((row) => rows[row]!.response), ...prompts].reduce((sum, count) => sum + count, 0)
  })

describe('balancedShares', () => {
  it('gives one process all sequences in their order', () => {
    const rows = rowsOf([{ prompt: 3, responses: [1, 2] }])
    expect(balancedShares(1, rows)).toEqual({ rows: [[0, 1]], imbalance: 1 })
  })

  it('gives out whole groups if these balance', () => {
    const rows = rowsOf([
      { prompt: 10, responses: [5, 5] },
      { prompt: 4, responses: [2, 4] },
      { prompt: 6, responses: [2, 2] },
    ])
    expect(balancedShares(2, rows)).toEqual({
      rows: [
        [0, 1],
        [2, 3, 4, 5],
      ],
      imbalance: 1,
    })
  })

  it('splits groups if whole ones do not balance', () => {
    const rows = rowsOf(Array.from({ length: 5 }, () => ({ prompt: 4, responses: [2, 2, 2, 2] })))
    const { rows: shares, imbalance } = balancedShares(2, rows)
    expect(tokens(shares, rows)).toEqual([32, 32])
    expect(imbalance).toBe(1)
  })

  it('gives every sequence to one rank, with less than 3 % imbalance for many groups', () => {
    const random = new Random(3)
    for (const size of [2, 3, 4, 7]) {
      const groups = Array.from({ length: 40 }, () => ({
        prompt: 20 + random.integer(60),
        responses: Array.from({ length: 8 }, () => 1 + random.integer(200)),
      }))
      const rows = rowsOf(groups)
      const { rows: shares, imbalance } = balancedShares(size, rows)
      expect(shares.flat().sort((a, b) => a - b)).toEqual(rows.map(({ row }) => row))
      const counts = tokens(shares, rows)
      const mean = counts.reduce((sum, count) => sum + count, 0) / size
      expect(imbalance).toBeCloseTo(Math.max(...counts) / mean, 12)
      expect(imbalance).toBeLessThan(1.03)
    }
  })

  it('leaves ranks empty if there are fewer sequences than ranks', () => {
    const rows = rowsOf([{ prompt: 1, responses: [5] }])
    expect(balancedShares(3, rows)).toEqual({ rows: [[0], [], []], imbalance: 3 })
    expect(balancedShares(2, [])).toEqual({ rows: [[], []], imbalance: 1 })
  })
})

it('processes of one machine each get a GPU, shared if there are too few', () => {
  expect(localRank({ OMPI_COMM_WORLD_SIZE: '8', OMPI_COMM_WORLD_LOCAL_RANK: '3' })).toBe(3)
  expect(localRank({ PMI_SIZE: '8', PMI_RANK: '5', MPI_LOCALRANKID: '1' })).toBe(1)
  expect(localRank({ SLURM_LOCALID: '2' })).toBe(0) // no step of srun
  const gpus = (count: number) => () => [
    { name: 'cpu', available: true },
    ...Array.from({ length: count }, (_, i) => ({ name: i === 0 ? 'cuda' : `cuda:${i}`, available: true })),
  ]
  expect([0, 1, 2, 3, 4].map((rank) => ownGpu(rank, gpus(4)))).toEqual(['cuda', 'cuda:1', 'cuda:2', 'cuda:3', 'cuda'])
  expect([0, 1].map((rank) => ownGpu(rank, gpus(1)))).toEqual(['cuda', 'cuda']) // Slurm shows each process its own
  expect(ownGpu(1, gpus(0))).toBe('cuda') // whose error says why there is none
})
