// Every trainer on 1 to 4 ranks under every MPI: the difference from one process, resuming with other numbers of ranks, and the bytes that
// are sent.
import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { installed } from '../mpi.js'
import { buildTargets, runTests } from '../native-tests.js'
import { distance, runRanks } from '../trainer-ranks.js'

const scenarios = ['pretrain', 'stage2', 'lora', 'looprpt', 'objective', 'updates', 'own']
const sizes = [1, 2, 3, 4]

it('the sharded optimizer matches that of one rank, a model in several buckets with every number of ranks', async () => {
  buildTargets('looplm_data_parallel_tests')
  const { failures, passed, status } = await runTests('Release/looplm_data_parallel_tests', ['', 'every'])
  expect(failures).toEqual([])
  expect(status).toBe(0)
  console.log(`sharded optimizer, threads as ranks: ${passed} claims`)
})

describe.each(installed)('under %s', (mpi) => {
  it('ranks agree, repeat, and match one process within 1e-5', async () => {
    const alone = await runRanks(undefined, 1, scenarios)
    for (const size of sizes) {
      const first = await runRanks(mpi, size, scenarios)
      const again = await runRanks(mpi, size, scenarios)
      let farthest = 0
      for (const name of scenarios) {
        const [one] = alone(name)
        const ranks = first(name)
        for (const rank of [...ranks, ...again(name)]) {
          expect(rank.first, `${name} on ${size}`).toBe(one!.first)
          expect(rank.hash, `${name} on ${size}`).toBe(ranks[0]!.hash)
        }
        const far = distance(ranks[0]!.values, one!.values)
        farthest = Math.max(farthest, far)
        expect(far, `${name} on ${size}`).toBeLessThan(size === 1 ? 1e-30 : 1e-5)
      }
      const word = size === 1 ? 'rank' : 'ranks'
      console.log(`${mpi}, ${size} ${word}: at most ${farthest.toExponential(1)} from one process after ten steps`)
    }
  })

  it('checkpoints resume on other numbers of ranks, and bit for bit on the same number', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'looplm-resumed-'))
    const at = (name: string) => ({ LOOPLM_RUN_DIR: join(folder, name) })
    for (const [from, others] of [
      [4, [4, 3, 2, 1]],
      [1, [1, 3]],
    ] as const) {
      const straight = await runRanks(mpi, from, scenarios)
      await runRanks(mpi, from, scenarios, { ...at(`of-${from}`), LOOPLM_STEPS: '6' })
      for (const size of others) {
        cpSync(join(folder, `of-${from}`), join(folder, `${from}-on-${size}`), { recursive: true })
        const resumed = await runRanks(mpi, size, scenarios, { ...at(`${from}-on-${size}`), LOOPLM_RESUME: '1' })
        let farthest = 0
        for (const name of scenarios) {
          const [expected] = straight(name)
          const far = distance(resumed(name)[0]!.values, expected!.values)
          farthest = Math.max(farthest, far)
          if (size === from) expect(resumed(name)[0]!.hash, `${name} ${from} on ${size}`).toBe(expected!.hash)
          expect(far, `${name} ${from} on ${size}`).toBeLessThan(1e-5)
        }
        console.log(
          `${mpi}: a run of ${from} resumed by ${size} is at most ${farthest.toExponential(1)} from an undisturbed one of ${from}`,
        )
      }
    }
    rmSync(folder, { recursive: true })
  })

  it('a step sends (N-1)/N of the trained gradients and parameters within 1 %', async () => {
    const names = ['pretrain', 'lora']
    const wide = { LOOPLM_WIDTH: '256', LOOPLM_STEPS: '3' }
    for (const size of sizes.slice(1)) {
      const together = await runRanks(mpi, size, names, wide)
      for (const name of names) {
        const found = together(name)
        const parameters = found[0]!.values.length
        const expected = ((size - 1) / size) * 8 * parameters // gradients and parameters in float32
        const sent = found[0]!.events.filter(({ type }) => type === 'step').map(({ metrics }) => metrics['parallel/bytes']!)
        console.log(`${mpi}, ${size} ranks, ${name}: ${parameters} parameters, ${(sent[1]! / expected).toFixed(4)} of the bytes`)
        expect(sent[1]! / expected, name).toBeGreaterThan(0.999)
        expect(sent[1]! / expected, name).toBeLessThan(1.01)
      }
    }
  })
})
