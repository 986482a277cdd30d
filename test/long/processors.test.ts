// The numerical tests with the kernels of every instruction set that the machine has, and with 1, 2 and 3 threads. No bound may hold on one
// processor only.
import { execFile, execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { beforeAll, expect, it } from 'vitest'
import { buildEmulated } from '../emulated.js'
import { runTests } from '../native-tests.js'

const root = join(import.meta.dirname, '..', '..')

/** Instruction sets that the kernels run with here: asked for a better one, the engine takes what there is. */
const sets = ['avx512_bf16', 'avx512', 'avx2', 'baseline'].filter((isa) => {
  const code = `import { devices } from '${join(root, 'dist', 'src', 'index.js')}'; console.log(devices()[0].description)`
  const env = { ...process.env, LOOPLM_CPU_ISA: isa }
  return execFileSync(process.execPath, ['--input-type=module', '-e', code], { env, encoding: 'utf8' }).startsWith(`${isa},`)
})
const places = sets.flatMap((isa) => [1, 2, 3].map((threads) => [isa, threads] as const))

/** The numerical tests of a place, as vitest's report in JSON. */
function numericalTests(env: Record<string, string>): Promise<{ numPassedTests: number; failures: string[] }> {
  const args = [
    join(root, 'node_modules', 'vitest', 'vitest.mjs'),
    'run',
    '--config',
    'vitest.device.config.ts',
    '--reporter',
    'json',
  ]
  return new Promise((resolve, reject) => {
    const options = { cwd: root, maxBuffer: 2 ** 28, env: { ...process.env, ...env } }
    execFile(process.execPath, args, options, (error, stdout) => {
      const at = stdout.indexOf('{"num')
      if (at < 0) return reject(error ?? new Error(stdout))
      const { numPassedTests, testResults } = JSON.parse(stdout.slice(at))
      const failures = testResults.flatMap(({ assertionResults }: { assertionResults: { status: string; fullName: string }[] }) =>
        assertionResults.filter(({ status }) => status === 'failed').map(({ fullName }) => fullName),
      )
      resolve({ numPassedTests, failures })
    })
  })
}

beforeAll(buildEmulated)

it('the machine runs at least the baseline instruction set', () => {
  expect(sets.at(-1)).toBe('baseline')
})

it.each(places)('%s with %i threads: the kernels', async (isa, threads) => {
  const args = ['--backend', 'cpu', '--threads', String(threads)]
  const { failures, passed, status, stdout } = await runTests('looplm_kernel_tests', args, { LOOPLM_CPU_ISA: isa })
  expect(failures).toEqual([])
  expect(stdout).toContain(`${isa}, ${threads} thread`)
  expect(passed).toBeGreaterThan(1000)
  expect(status).toBe(0)
})

it.each(places)('%s with %i threads: tensors, models, training', async (isa, threads) => {
  const { numPassedTests, failures } = await numericalTests({ LOOPLM_CPU_ISA: isa, LOOPLM_TEST_THREADS: String(threads) })
  expect(failures).toEqual([])
  expect(numPassedTests).toBeGreaterThan(500)
  if (threads === 3) console.log(`${isa}: ${numPassedTests} tests with 1, 2 and 3 threads each`)
})
