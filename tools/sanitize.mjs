// Builds the native tests and the replay of the fuzzer's corpus with the sanitizers of the compiler and runs them: address and undefined behaviour together, then data races.
// Every finding is printed with its file and line; there is no place for known ones. Arguments pick one of the builds: address, thread.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { basename, dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { cmakeBuild } from './cmake.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
// Memory that cannot be allocated is asked for on purpose: the answer must be an error of ours.
const builds = {
  address: {
    flags: '-fsanitize=address,undefined -fsanitize-recover=address', // go on after a finding: one run shows them all
    // Stack use after return is not looked for: g++ 12 puts 64-byte vectors at odd multiples of 32 in the frames that this needs, and faults.
    env: { ASAN_OPTIONS: 'halt_on_error=0:allocator_may_return_null=1', UBSAN_OPTIONS: 'print_stacktrace=1' },
  },
  thread: {
    flags: '-fsanitize=thread',
    env: { TSAN_OPTIONS: 'second_deadlock_stack=1:history_size=4:allocator_may_return_null=1' },
  },
}
const corpus = join(root, 'native', 'test', 'fuzz', 'corpus')
const programs = [
  { name: 'looplm_engine_tests', args: [], isas: [undefined] },
  { name: 'looplm_fault_tests', args: [], isas: [undefined] },
  { name: 'Release/looplm_comm_tests', args: [], isas: [undefined] },
  { name: 'Release/looplm_data_parallel_tests', args: [], isas: [undefined] },
  ...readdirSync(corpus).map((target) => ({
    name: 'looplm_fuzz_replay',
    args: [target, join(corpus, target)],
    isas: [undefined],
  })),
  { name: 'looplm_kernel_tests', args: ['--backend', 'reference'], isas: [undefined] },
  { name: 'looplm_kernel_tests', args: ['--backend', 'cpu'], isas: ['avx512_bf16', 'avx512', 'avx2', 'baseline'] },
]
const finding = /runtime error: |ERROR: (Address|Leak|Thread)Sanitizer|WARNING: ThreadSanitizer|SUMMARY: \w+Sanitizer/

function stop(message) {
  console.error(`looplm: ${message}`)
  process.exit(1)
}

function build(kind) {
  const flags = `-O1 -g1 -fno-omit-frame-pointer ${builds[kind].flags}` // -g1: line numbers
  const targets = [...new Set(programs.map(({ name }) => basename(name)))]
  return cmakeBuild(`sanitize-${kind}`, { CMAKE_BUILD_TYPE: 'Sanitize', LOOPLM_UNITY: 'OFF', CMAKE_CXX_FLAGS: flags }, targets)
}

/** An argument as it is printed: a path from the checkout on. */
const shown = (argument) => (argument.startsWith(root) ? relative(root, argument) : argument)

/** Whether one run ended well and without a finding. */
function run(folder, kind, { name, args }, isa) {
  const env = { ...process.env, ...builds[kind].env, ...(isa && { LOOPLM_CPU_ISA: isa }) }
  // ThreadSanitizer's fixed map of the address space does not fit where the kernel randomises it widely
  const command = process.platform === 'linux' && kind === 'thread' ? ['setarch', '-R'] : []
  const [program, ...rest] = [...command, join(folder, name), ...args]
  const started = performance.now()
  const { status, signal, error, stdout, stderr } = spawnSync(program, rest, { env, encoding: 'utf8', maxBuffer: 2 ** 30 })
  const output = `${stderr ?? ''}${(stdout ?? '').replaceAll(/^ok .*\n/gm, '')}`
  const found = output.split('\n').filter((line) => finding.test(line))
  const clean = status === 0 && found.length === 0
  const seconds = ((performance.now() - started) / 1000).toFixed(0)
  const how = clean ? 'clean' : `${found.length} lines of findings, ended with ${error?.message ?? signal ?? status}`
  console.log(
    `${clean ? 'ok    ' : 'not ok'} ${kind}: ${name} ${args.map(shown).join(' ')}${isa ? `, at most ${isa}` : ''}: ${how} (${seconds} s)`,
  )
  if (!clean) console.log(output)
  return clean
}

const asked = process.argv.slice(2)
const unknown = asked.find((kind) => !(kind in builds))
if (unknown !== undefined) stop(`${unknown} is not one of ${Object.keys(builds).join(', ')}`)
let failed = 0
for (const kind of asked.length > 0 ? asked : Object.keys(builds)) {
  console.log(`looplm: building the native tests, sanitizer ${kind}`)
  const folder = build(kind)
  for (const program of programs) for (const isa of program.isas) if (!run(folder, kind, program, isa)) failed++
}
if (failed > 0) stop(`${failed} runs with findings`)
