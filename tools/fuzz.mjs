// Fuzzes the native readers with libFuzzer under ASan and UBSan: `npm run fuzz -- --minutes 30 [TARGET…]`, the minutes shared by the
// targets. Starts from the corpus in native/test/fuzz/corpus and keeps what it learns in build/fuzz; `--merge` then brings the
// smallest set of inputs with the same coverage into the repository's corpus. Ends with 1 after a finding, whose input it names.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { cmakeBuild } from './cmake.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const corpus = (target) => join(root, 'native', 'test', 'fuzz', 'corpus', target)
const all = ['safetensors', 'json', 'checkpoint']
const longest = { safetensors: 512, json: 256, checkpoint: 48 } // bytes of an input

function stop(message) {
  console.error(`looplm: ${message}`)
  process.exit(1)
}

const args = process.argv.slice(2)
const minutes = args.includes('--minutes') ? Number(args.splice(args.indexOf('--minutes'), 2)[1]) : 3
const merge = args.includes('--merge') && args.splice(args.indexOf('--merge'), 1).length > 0
const targets = args.length > 0 ? args : all
const unknown = targets.find((target) => !all.includes(target))
if (unknown !== undefined) stop(`${unknown} is not one of ${all.join(', ')}, --minutes N, --merge`)
if (!(minutes > 0)) stop('--minutes wants a number above 0')
const compiler = process.env.CXX ?? 'clang++'
if (spawnSync(compiler, ['--version'], { stdio: 'ignore' }).status !== 0)
  stop('clang is needed for libFuzzer. On Debian and Ubuntu: apt-get install -y clang libclang-rt-14-dev')

console.log('looplm: building the targets')
const flags = '-O1 -g1 -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined'
const folder = cmakeBuild(
  'fuzz',
  { LOOPLM_FUZZ: 'ON', CMAKE_BUILD_TYPE: 'Fuzz', CMAKE_CXX_FLAGS: flags, CMAKE_CXX_COMPILER: compiler },
  targets.map((target) => `looplm_fuzz_${target}`),
)

let findings = 0
for (const target of targets) {
  const program = join(folder, `looplm_fuzz_${target}`)
  const learned = join(folder, 'corpus', target)
  for (const path of [learned, corpus(target)]) mkdirSync(path, { recursive: true })
  const seconds = Math.ceil((minutes * 60) / targets.length)
  const options = [`-max_total_time=${seconds}`, `-max_len=${longest[target]}`, `-artifact_prefix=${folder}/${target}-`]
  const limits = ['-timeout=150', '-rss_limit_mb=1024', '-print_final_stats=1', '-verbosity=0'] // seconds by the clock: a machine that pauses is no finding
  const { status, stderr } = spawnSync(program, [...options, ...limits, learned, corpus(target)], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    env: { ...process.env, ...(existsSync('/dev/shm') && { TMPDIR: '/dev/shm' }) }, // checkpoints are files
  })
  const executed = /number_of_executed_units: (\d+)/.exec(stderr)?.[1] ?? '0'
  if (stderr.includes('run interrupted')) stop(`${target}: interrupted after ${executed} inputs`)
  const how = status === 0 ? 'no finding' : `a finding (${relative(root, folder)}/${target}-*)`
  console.log(`${status === 0 ? 'ok    ' : 'not ok'} ${target}: ${executed} inputs in ${seconds} s, ${how}`)
  if (status !== 0) {
    findings++
    console.log(stderr.slice(-6000))
  } else if (merge) {
    const smallest = join(folder, `merged-${target}`)
    rmSync(smallest, { recursive: true, force: true })
    mkdirSync(smallest)
    const result = spawnSync(program, ['-set_cover_merge=1', smallest, corpus(target), learned], {
      encoding: 'utf8',
      maxBuffer: 2 ** 28,
    })
    if (result.status !== 0) stop(`merging failed\n${result.stderr}`)
    rmSync(corpus(target), { recursive: true })
    renameSync(smallest, corpus(target))
    console.log(`       corpus: ${readdirSync(corpus(target)).length} inputs`)
  }
}
if (findings > 0) process.exit(1)
