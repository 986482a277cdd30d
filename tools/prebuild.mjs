// Builds the addon and puts it, stripped, where node-gyp-build looks for it in an installed package: prebuilds/<platform>-<arch>/.
// Refuses an addon that would not run where README says that it does, and says what it asks of the system: the oldest glibc and the libraries.
// For a package that stays here: `--any-glibc` takes an addon that runs on systems as new as this one alone, `--this-processor` builds
// only the kernels that run on this machine.
// `--arch arm64` on Linux x64 compiles for that processor (apt-get install g++-aarch64-linux-gnu).
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, renameSync, rmSync, statSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { crossBuild } from './cross-build.mjs'
import { isNewer, oldestGlibc } from './glibc.mjs'
import { runsAsHook } from './npm-hook.mjs'

if (runsAsHook()) process.exit() // npm run build asks for no package

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const linux = process.platform === 'linux'
const asked = process.argv.indexOf('--arch')
const arch = asked === -1 ? process.arch : process.argv[asked + 1]
const cross = arch !== process.arch
if (cross && !(linux && arch === 'arm64')) stop(`an addon for ${process.platform}-${arch} is built on that system, not here`)
// The tag keeps node-gyp-build from loading it on Alpine, where it then says "no native build" instead of an error of the linker.
const libc = !linux ? '' : process.report.getReport().header.glibcVersionRuntime ? '.glibc' : '.musl'
const name = `looplm${libc}.node`
const system = linux ? /^(lib(c|m|pthread|dl|rt)\.so\.\d+|libc\.musl-.*|ld-.*\.so\.\d+)$/ : /^\/usr\/lib\/lib(System|c\+\+)\./
const entries = /^_?(napi_register_module_v\d+|node_api_module_get_api_version_v\d+)$/

function stop(message) {
  console.error(`looplm: ${message}`)
  process.exit(1)
}

/** Standard output of a program of binutils, or of Apple's. */
function output(program, ...args) {
  const { status, error, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 2 ** 28 })
  if (status !== 0) stop(`${program} ${args.join(' ')} failed: ${error?.message ?? stderr}`)
  return stdout
}

/** What the dynamic linker will do with the addon. */
function inspect(addon) {
  const all = (text, pattern) => [...text.matchAll(pattern)].map((match) => match[1])
  if (!linux)
    return {
      libraries: all(output('otool', '-L', addon), /^\t(.*?) \(/gm).filter((path) => !path.endsWith('looplm.node')),
      exported: [],
    }
  const versions = all(output('readelf', '-V', '-W', addon), /Name: GLIBC_([\d.]+)/g)
  return {
    libraries: all(output('readelf', '-d', '-W', addon), /\(NEEDED\).*\[(.*)\]/g),
    exported: all(output('readelf', '--dyn-syms', '-W', addon), /(?:GLOBAL|WEAK|UNIQUE) +DEFAULT +\d+ (\S+)/g),
    glibc: versions.reduce((newest, version) => (newest === undefined || isNewer(version, newest) ? version : newest), undefined),
  }
}

let built = join(root, 'build', 'Release', 'looplm.node')
if (cross) built = join(crossBuild(['looplm', 'looplm_mpis']), 'looplm.node')
else {
  const kernels = process.argv.includes('--this-processor') ? [] : ['--all']
  const { status } = spawnSync(process.execPath, [join(root, 'tools', 'build-native.mjs'), ...kernels], { stdio: 'inherit' })
  if (status !== 0) process.exit(status ?? 1)
}

/** Ends without leaving anything that a package would take along. */
function refuse(message) {
  for (const path of [unfinished, unfinishedCuda]) rmSync(path, { force: true })
  stop(message)
}

function requireOldGlibc(what, glibc) {
  if (glibc === undefined || !isNewer(glibc, oldestGlibc) || process.argv.includes('--any-glibc')) return
  refuse(`${what} needs glibc ${glibc}, and a release runs with ${oldestGlibc}: build it on an older system, or say --any-glibc`)
}

const folder = join(root, 'prebuilds', `${process.platform}-${arch}`)
const addon = join(folder, name)
const packedCuda = join(folder, 'looplm_cuda.so')
const [unfinished, unfinishedCuda] = [addon, packedCuda].map((path) => `${path}.tmp`)
mkdirSync(folder, { recursive: true })
copyFileSync(built, unfinished)
output(cross ? 'aarch64-linux-gnu-strip' : 'strip', ...(linux ? [] : ['-x']), unfinished)
const { libraries, exported, glibc } = inspect(unfinished)
const foreign = libraries.filter((library) => !system.test(library))
if (foreign.length > 0) refuse(`the addon needs ${foreign.join(', ')}, which a user may not have`)
// A symbol of a static libstdc++ that is visible is bound to the libstdc++ of the Node that loads the addon, whichever that is.
const leaked = exported.filter((symbol) => !entries.test(symbol))
if (leaked.length > 0)
  refuse(`the addon exports ${leaked.length} symbols that are its own affair, ${leaked.slice(0, 3).join(', ')} …`)
requireOldGlibc('the addon', glibc)
renameSync(unfinished, addon) // a process that has mapped the old one keeps it

// The CUDA library travels beside the addon when npm run build:cuda made it for this platform; otherwise none of an older version does.
const cuda = join(root, 'build', 'Release', 'looplm_cuda.so')
rmSync(packedCuda, { force: true })
if (existsSync(cuda) && !cross) {
  copyFileSync(cuda, unfinishedCuda)
  output('strip', unfinishedCuda)
  requireOldGlibc('the CUDA library', inspect(unfinishedCuda).glibc)
  renameSync(unfinishedCuda, packedCuda)
}

// The libraries for MPI, where the headers of an MPI were here (CMakeLists.txt).
for (const mpi of ['openmpi', 'mpich']) {
  const name = `looplm_${mpi}.so`
  const packed = join(folder, name)
  const source = join(root, 'build', ...(cross ? [arch] : []), 'Release', name)
  rmSync(packed, { force: true })
  if (!existsSync(source)) continue
  const unfinishedMpi = `${packed}.tmp`
  copyFileSync(source, unfinishedMpi)
  output(cross ? 'aarch64-linux-gnu-strip' : 'strip', unfinishedMpi)
  const needs = inspect(unfinishedMpi)
  const wrong = [
    ...needs.libraries.filter((library) => !system.test(library)),
    ...needs.exported.filter((s) => s !== 'looplm_comm'),
  ]
  if (wrong.length > 0) {
    rmSync(unfinishedMpi)
    refuse(`${name} needs or exports ${wrong.slice(0, 3).join(', ')}, and must need libmpi alone, which it finds open`)
  }
  requireOldGlibc(name, needs.glibc)
  renameSync(unfinishedMpi, packed)
}

const megabytes = (statSync(addon).size / 1e6).toFixed(1)
console.log(
  `looplm: ${relative(root, addon)}, ${megabytes} MB, needs ${libraries.join(', ')}${glibc ? `, glibc >= ${glibc}` : ''}`,
)
