// npm run bench at the sizes of a CPU. test/bench.test.ts has the same rows at tiny sizes.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { expect, it } from 'vitest'

it('measures kernels, their roofs and a whole step', () => {
  const program = join(import.meta.dirname, '..', '..', 'dist', 'bench', 'main.js')
  const words = ['--json', '--dtype', 'float32', '--filter', '^gate$|reduction$|^sampling 64']
  const { stdout, stderr, status } = spawnSync(process.execPath, [program, ...words], { encoding: 'utf8' })
  expect(stderr).toBe('')
  expect(status).toBe(0)
  const { roofs, kernels, steps } = JSON.parse(stdout)
  expect(kernels.map(({ kernel, shape }: Record<string, string>) => `${kernel} ${shape}`)).toEqual([
    'gate N 2048, D 512, F 1408, V 8192, S 512',
    'gate N 4096, D 128, F 352, V 128, S 64',
    'policyGradientReduction T 4, N 32768',
  ])
  for (const { gbps, share } of kernels) expect(share).toBeGreaterThan((0.99 * gbps) / roofs.float32.gbps)
  expect(steps.map(({ step }: { step: string }) => step)).toEqual(['sampling 64 prompts × 8, 16 + 24 tokens'])
})
