// Builds what is missing or older than its sources, with one line for each.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, statSync, utimesSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const modified = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0)

/** The latest change of a file, or of anything below a folder, its own entries included. */
function newest(path) {
  if (!existsSync(path)) return 0
  const found = statSync(path)
  if (!found.isDirectory()) return found.mtimeMs
  return Math.max(found.mtimeMs, ...readdirSync(path).map((name) => newest(join(path, name))))
}

/** Runs a Node program when the output is missing or older than one of the sources. */
function ensure(what, output, sources, program) {
  const built = modified(join(root, output))
  const changed = Math.max(...sources.map((source) => newest(join(root, source))))
  if (built >= changed) return
  console.log(
    built === 0 ? `looplm: building the ${what} (first time)` : `looplm: rebuilding the ${what}, its sources have changed`,
  )
  const { status } = spawnSync(process.execPath, program, { cwd: root, stdio: 'inherit' })
  if (status !== 0) process.exit(status ?? 1)
  utimesSync(join(root, output), new Date(), new Date()) // a build that had nothing to do leaves its output as it was
}

const native = readdirSync(join(root, 'native'))
  .filter((name) => name !== 'test')
  .map((name) => join('native', name))
ensure(
  'native engine',
  'build/Release/looplm.node',
  [...native, 'cuda', 'CMakeLists.txt'],
  [join(root, 'tools', 'build-native.mjs')],
)

const compile = (...args) => [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', ...args]
ensure(
  'TypeScript',
  'dist/src/index.js',
  ['src', 'bench', 'examples', 'study', 'tsconfig.json'],
  compile('tsconfig.json', '--noEmitOnError'),
)
ensure('page of reports', 'dist/src/monitor/page/page.js', ['src/monitor/page'], compile('src/monitor/page'))
