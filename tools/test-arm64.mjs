// Builds the native tests for ARM64 and runs them by qemu's emulation of that processor: the kernels against the reference, the readers
// against malformed files, the fuzzer's corpus. Slow, because every instruction is translated: an hour on two cores.
// `--kernels TEXT` runs only the kernels' tests with that in their names.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { crossBuild } from './cross-build.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
if (spawnSync('qemu-aarch64', ['--version'], { stdio: 'ignore' }).status !== 0) {
  console.error('looplm: qemu-aarch64 is missing. On Debian and Ubuntu: apt-get install -y qemu-user')
  process.exit(1)
}
const asked = process.argv.indexOf('--kernels')
const filter = asked === -1 ? undefined : process.argv[asked + 1]
const corpus = join(root, 'native', 'test', 'fuzz', 'corpus')
const others = [
  ['looplm_engine_tests'],
  ...readdirSync(corpus).map((target) => ['looplm_fuzz_replay', target, join(corpus, target)]),
  ['Release/looplm_comm_tests'],
  ['looplm_kernel_tests', '--backend', 'reference'],
]
const kernels = ['looplm_kernel_tests', '--backend', 'cpu']
const product = ['looplm_count_products', 'float32', '1', '1', '64', '1'] // prints the instruction set that it chose
const programs = filter ? [kernels, product] : [...others, kernels, product]
const folder = crossBuild([...new Set(programs.map(([program]) => basename(program)))])
let failed = 0

function run(cpu, isa, [program, ...args]) {
  const started = performance.now()
  const command = ['-L', '/usr/aarch64-linux-gnu', '-cpu', cpu, join(folder, program), ...args]
  const env = isa ? { ...process.env, LOOPLM_CPU_ISA: isa } : process.env
  const { status, signal, stdout } = spawnSync('qemu-aarch64', command, { encoding: 'utf8', maxBuffer: 2 ** 28, env })
  return { ended: signal ?? status, stdout, seconds: ((performance.now() - started) / 1000).toFixed(0) }
}

function report(passed, what) {
  if (!passed) failed++
  console.log(`${passed ? 'ok    ' : 'not ok'} ${what}`)
}

function check(cpu, isa, command) {
  const { ended, stdout, seconds } = run(cpu, isa, command)
  const lines = stdout.split('\n')
  const wrong = lines.filter((line) => line.startsWith('not ok'))
  const right = lines.filter((line) => line.startsWith('ok')).length
  const what = [cpu, isa, ...command].filter(Boolean).join(' ')
  report(ended === 0 && wrong.length === 0, `${what}: ${right} ok, ${wrong.length} not, ended with ${ended} (${seconds} s)`)
  for (const line of wrong) console.log(line)
}

// Processors with the instruction set that they choose. Between them are those that differ in products of bytes alone.
const processors = [
  ['max', 'neon_bf16', ['neon_i8mm', 'neon_dot']],
  ['cortex-a76', 'neon_dot', []],
  ['cortex-a72', 'baseline', []],
]
if (!filter) for (const command of others) check('max', undefined, command)
for (const [cpu, chosen, lesser] of processors) {
  const { stdout } = run(cpu, undefined, product)
  report(stdout.startsWith(`${chosen},`), `${cpu} chooses ${stdout.trim()}`)
  check(cpu, undefined, [...kernels, ...(filter ? [filter] : cpu === 'cortex-a76' ? ['int8'] : [])])
  for (const isa of lesser) check(cpu, isa, [...kernels, filter ?? 'int8'])
}
if (failed > 0) process.exit(1)
