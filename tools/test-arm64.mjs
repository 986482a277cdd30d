// Builds the native tests for ARM64 and runs them by qemu's emulation of that processor: the kernels against the reference, the readers
// against malformed files, the fuzzer's corpus. Slow, because every instruction is translated: half an hour on two cores.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { crossBuild } from './cross-build.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const emulator = ['qemu-aarch64', '-L', '/usr/aarch64-linux-gnu']
if (spawnSync(emulator[0], ['--version'], { stdio: 'ignore' }).status !== 0) {
  console.error('looplm: qemu-aarch64 is missing. On Debian and Ubuntu: apt-get install -y qemu-user')
  process.exit(1)
}
const corpus = join(root, 'native', 'test', 'fuzz', 'corpus')
const runs = [
  ['looplm_engine_tests'],
  ...readdirSync(corpus).map((target) => ['looplm_fuzz_replay', target, join(corpus, target)]),
  ['Release/looplm_comm_tests'],
  ['looplm_kernel_tests', '--backend', 'reference'],
  ['looplm_kernel_tests', '--backend', 'cpu'],
]
const folder = crossBuild([...new Set(runs.map(([program]) => basename(program)))])
let failed = 0
for (const [program, ...args] of runs) {
  const started = performance.now()
  const command = [...emulator.slice(1), join(folder, program), ...args]
  const { status, signal, stdout } = spawnSync(emulator[0], command, { encoding: 'utf8', maxBuffer: 2 ** 28 })
  const lines = stdout.split('\n')
  const wrong = lines.filter((line) => line.startsWith('not ok'))
  const seconds = ((performance.now() - started) / 1000).toFixed(0)
  const passed = status === 0 && wrong.length === 0
  if (!passed) failed++
  const what = `${program} ${args.join(' ')}: ${lines.filter((line) => line.startsWith('ok')).length} ok, ${wrong.length} not`
  console.log(`${passed ? 'ok    ' : 'not ok'} ${what}, ended with ${signal ?? status} (${seconds} s)`)
  for (const line of wrong) console.log(line)
}
if (failed > 0) process.exit(1)
