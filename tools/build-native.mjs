// Compiles the engine and the addon to build/Release/looplm.node. Output is shown when something fails, or with --verbose.
import { spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const verbose = process.argv.includes('--verbose')

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

const cmakeJs = join(root, 'node_modules', 'cmake-js', 'bin', 'cmake-js')
const parallel = process.env.LOOPLM_BUILD_JOBS ?? String(availableParallelism())
// cmake-js takes ninja when it is there. `build` keeps what is up to date; `compile` would start over after a compiler error.
const result = spawnSync(process.execPath, [cmakeJs, 'build', '--parallel', parallel], {
  cwd: root,
  stdio: verbose ? 'inherit' : 'pipe',
  encoding: 'utf8',
  maxBuffer: 2 ** 28,
})
if (result.status !== 0) {
  if (!verbose) process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`)
  console.error(`looplm: the native build failed${result.error ? `: ${result.error.message}` : ''}; the first error is above.`)
  process.exit(1)
}
