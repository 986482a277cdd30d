// npm run bench as a program: its rows and roofs, and what it refuses before it measures anything.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'

function bench(args: string[], sizes?: 'tiny') {
  const program = join(import.meta.dirname, '..', 'dist', 'bench', 'main.js')
  const env = { ...process.env, LOOPLM_BENCH_SIZES: sizes ?? '' }
  return spawnSync(process.execPath, [program, ...args], { encoding: 'utf8', env })
}

describe('npm run bench', () => {
  it('reports kernels together with the roofs measured in the same run', () => {
    const { stdout, stderr, status } = bench(
      ['--json', '--kernels', '--dtype', 'float32', '--filter', '^gate$|reduction$'],
      'tiny',
    )
    expect(stderr).toBe('')
    expect(status).toBe(0)
    const { roofs, kernels, steps } = JSON.parse(stdout)
    expect(Object.keys(roofs)).toEqual(['float32'])
    for (const rate of ['gflops', 'gbps', 'readGbps', 'int8Gops']) expect(roofs.float32[rate]).toBeGreaterThan(0)
    expect(kernels.map((row: { kernel: string }) => row.kernel)).toEqual(['gate', 'gate', 'policyGradientReduction'])
    for (const { seconds, gbps, share } of kernels) {
      expect(seconds).toBeGreaterThan(0)
      expect(share).toBeGreaterThan((0.99 * gbps) / roofs.float32.gbps)
    }
    expect(steps).toEqual([])
  })

  it('measures whole steps', () => {
    const { stdout, status } = bench(['--steps', '--filter', '^sampling'], 'tiny')
    expect(status).toBe(0)
    expect(stdout).toMatch(/^sampling 4 prompts × 2, 16 \+ 24 tokens +\d+\.\d+ s +\d+ +\d+ *$/m)
  })

  it.each([
    [['--filter', 'none of them'], /^no row matches --filter none of them; the rows are:\n {2}adamw\n[\s\S]*RLTT update D 512/],
    [['--filter', '('], /^Invalid regular expression/],
    [['--dtype', 'float32,float16'], /^--dtype takes float32, bfloat16 or both with a comma between, got float32,float16/],
    [['--seconds', 'ten'], /^--seconds takes a number above 0, got ten/],
    [['--device', 'gpu'], /^bench: unknown device "gpu": there are "cpu", "reference" and "cuda"/],
    [['--step'], /^Unknown option '--step'/],
  ])('rejects %s with a message that names the cause', (args, message) => {
    const { stderr, status } = bench(args)
    expect(stderr).toMatch(message)
    expect(status).toBe(2)
  })
})
