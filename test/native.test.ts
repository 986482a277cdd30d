// The native test programs: every kernel of every table against the float64 reference, central differences of every backward, and the
// reader of safetensors against malformed files, and the emulator against kernels with planted faults.
import { execFileSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { build, runTests } from './native-tests.js'

const programs = [
  'looplm_kernel_tests',
  'looplm_safetensors_tests',
  'looplm_emulator_tests',
  'looplm_fault_tests',
  'looplm_fuzz_replay',
]

beforeAll(() => {
  execFileSync('cmake', ['--build', build, '--target', ...programs], { stdio: 'pipe' })
}, 600_000)

describe.concurrent('native tests', () => {
  it('the reference: formulas, gradients by central differences, worked numbers', async () => {
    const { failures, passed, status } = await runTests(programs[0]!, ['--backend', 'reference'])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(50)
    expect(status).toBe(0)
  })

  it.each(['avx512_bf16', 'avx512', 'avx2', 'baseline'])(
    'the CPU kernels against the reference, at most %s',
    { timeout: 240_000 },
    async (isa) => {
      const env = { LOOPLM_CPU_ISA: isa }
      const { failures, passed, status } = await runTests(programs[0]!, ['--backend', 'cpu'], env)
      expect(failures).toEqual([])
      expect(passed).toBeGreaterThan(50)
      expect(status).toBe(0)
    },
  )

  it('safetensors: malformed files, round trips, conversions', async () => {
    const { failures, passed, status } = await runTests(programs[1]!, [])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(100)
    expect(status).toBe(0)
  })

  it('memory that cannot be had and calls that are aborted, wherever the engine is', { timeout: 600_000 }, async () => {
    const { failures, passed, status } = await runTests(programs[3]!, [])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(60)
    expect(status).toBe(0)
  })

  it('the emulator: shared memory, barriers, shuffles, mma, and every planted fault found', async () => {
    const { failures, passed, status } = await runTests(programs[2]!, [])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(30)
    expect(status).toBe(0)
  })

  const corpus = join(import.meta.dirname, '..', 'native', 'test', 'fuzz', 'corpus')
  it.each(readdirSync(corpus))('the corpus of the fuzzer, target %s', async (target) => {
    const inputs = readdirSync(join(corpus, target)).sort()
    const { stdout, status } = await runTests('looplm_fuzz_replay', [target, join(corpus, target)])
    expect(stdout.trimEnd().split('\n')).toEqual(inputs)
    expect(status, `the last of ${stdout.slice(-100)}`).toBe(0)
  })
})
