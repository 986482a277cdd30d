// Instructions of the ARM64 products per multiply-add, for docs/performance.md. A plugin counts what qemu executes. Says nothing about
// time. `npm run count:arm64`; needs what npm run test:arm64 needs, and a C compiler.
import { spawnSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { crossBuild } from './cross-build.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const folder = crossBuild(['looplm_count_products'])
const plugin = join(folder, 'count_instructions.so')

/** Standard output and error of a program, which must succeed. */
function output(program, args, env = {}) {
  const { status, error, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8', env: { ...process.env, ...env } })
  if (status === 0) return { stdout, stderr }
  console.error(`looplm: ${program} ${args.join(' ')} failed: ${error?.message ?? stderr}`)
  process.exit(1)
}

/** What a product of m rows costs once the program runs: twice the product less once. */
function instructions(isa, type, [m, n, k]) {
  const emulator = ['-L', '/usr/aarch64-linux-gnu', '-cpu', 'max', '-plugin', plugin]
  const [once, twice] = [1, 2].map((times) => {
    const args = [join(folder, 'looplm_count_products'), type, ...[m, n, k, times].map(String)]
    return output('qemu-aarch64', [...emulator, ...args], { LOOPLM_CPU_ISA: isa })
  })
  if (once.stdout.startsWith(`${isa},`)) return counted(twice) - counted(once)
  console.error(`looplm: ${isa} was asked for, and this ran: ${once.stdout}`)
  process.exit(1)
}
const counted = ({ stderr }) => Number(/^instructions (\d+)$/m.exec(stderr)?.[1])

output('cc', ['-shared', '-fPIC', '-O1', '-o', plugin, join(root, 'native', 'test', 'count_instructions.c')])
// The instruction that multiplies, and its multiply-adds.
const kernels = [
  ['float32', 'baseline', 'FMLA', 4],
  ['bfloat16', 'baseline', 'FMLA', 4],
  ['bfloat16', 'neon_bf16', 'BFMMLA', 16],
  ['int8', 'baseline', 'SMLAL', 8],
  ['int8', 'neon_dot', 'SDOT', 16],
  ['int8', 'neon_i8mm', 'SMMLA', 32],
  ['int4', 'baseline', 'SMLAL', 8],
  ['int4', 'neon_dot', 'SDOT', 16],
  ['int4', 'neon_i8mm', 'SMMLA', 32],
]
console.log('| weight | name | instruction | ideal | 96 rows | 6 rows | 1 row |\n|---|---|---|---|---|---|---|')
for (const [type, isa, instruction, products] of kernels) {
  const counts = [96, 6, 1].map((m) => (instructions(isa, type, [m, 1024, 512]) / (m * 1024 * 512)).toFixed(3))
  console.log(`| ${type} | \`${isa}\` | ${instruction} | ${(1 / products).toFixed(3)} | ${counts.join(' | ')} |`)
}
