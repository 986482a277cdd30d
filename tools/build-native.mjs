// Compiles the engine and the addon to build/Release/looplm.node. Output is shown when something fails, or with --verbose.
// The CPU kernels are those that can run on this machine; with --all those of every processor.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const verbose = process.argv.includes('--verbose')
const allIsas = process.argv.includes('--all') ? 'ON' : 'OFF'

const works = (program) => spawnSync(program, ['--version'], { stdio: 'ignore' }).status === 0

const missing = []
if (!works('cmake')) missing.push(['cmake', 'cmake'])
if (![process.env.CXX, 'c++', 'g++', 'clang++'].some((compiler) => compiler && works(compiler)))
  missing.push(['a C++20 compiler', 'g++'])
if (!works('ninja') && !works('make')) missing.push(['ninja or make', 'ninja-build'])
if (missing.length > 0) {
  const packages = missing.map(([, name]) => name).join(' ')
  console.error(`looplm: cannot build the native engine without ${missing.map(([what]) => what).join(', ')}.`)
  console.error(`On Debian and Ubuntu: apt-get install -y ${packages}`)
  process.exit(1)
}

function run(...command) {
  const stdio = verbose ? 'inherit' : 'pipe'
  const result = spawnSync(command[0], command.slice(1), { cwd: root, stdio, encoding: 'utf8', maxBuffer: 2 ** 28 })
  if (result.status === 0) return
  if (!verbose) process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`)
  console.error(`looplm: the native build failed${result.error ? `: ${result.error.message}` : ''}; the first error is above.`)
  process.exit(1)
}

let configured = ''
try {
  configured = readFileSync(join(root, 'build', 'CMakeCache.txt'), 'utf8')
} catch {} // the first build
if (configured !== '' && !configured.includes(`LOOPLM_ALL_ISAS:BOOL=${allIsas}\n`))
  run('cmake', `-DLOOPLM_ALL_ISAS:BOOL=${allIsas}`, 'build')

const cmakeJs = join(root, 'node_modules', 'cmake-js', 'bin', 'cmake-js')
const parallel = process.env.LOOPLM_BUILD_JOBS ?? String(availableParallelism())
// cmake-js takes ninja when it is there. `build` keeps what is up to date; `compile` would start over after a compiler error.
run(process.execPath, cmakeJs, 'build', `--CDLOOPLM_ALL_ISAS:BOOL=${allIsas}`, '--parallel', parallel)
