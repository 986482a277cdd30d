// The tests on other versions of Node: `node tools/test-node.mjs 20 22 24`, all of them; `-- test/cli/cli.test.ts` after the versions, those files.
// The binaries come from the npm registry (node-<platform>-<arch>, which runs no script at install) into a folder of the system's
// temporary one, which is removed at the end. Programs that the tests start are found on PATH: it begins with that Node.
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const separator = process.argv.indexOf('--')
const versions = process.argv.slice(2, separator === -1 ? undefined : separator)
const tests = separator === -1 ? [] : process.argv.slice(separator + 1)

function stop(message) {
  console.error(`looplm: ${message}`)
  process.exit(1)
}

if (versions.length === 0 || !versions.every((version) => /^\d+(\.\d+){0,2}$/.test(version)))
  stop('say which versions of Node, for example: node tools/test-node.mjs 20 22 24')

const { status: built } = spawnSync(process.execPath, [join(root, 'tools', 'ensure-built.mjs')], { stdio: 'inherit' })
if (built !== 0) process.exit(built ?? 1)

const folder = mkdtempSync(join(tmpdir(), 'looplm-node-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1))
writeFileSync(join(folder, 'package.json'), '{"private":true}')

/** The folder of a version's program. */
function install(version) {
  const name = `node-${process.platform === 'win32' ? 'win' : process.platform}-${process.arch}`
  const flags = ['--ignore-scripts', '--no-audit', '--no-fund', '--no-save', '--loglevel=error']
  const { status, error, stderr } = spawnSync('npm', ['install', ...flags, `${name}@${version}`], {
    cwd: folder,
    encoding: 'utf8',
  })
  if (status !== 0) stop(`npm install ${name}@${version} failed: ${error?.message ?? stderr}`)
  return join(folder, 'node_modules', name, 'bin')
}

const rows = []
for (const version of versions) {
  const bin = install(version)
  const node = join(bin, 'node')
  const env = { ...process.env, PATH: `${bin}${delimiter}${process.env.PATH}` }
  const report = join(folder, 'report.json')
  rmSync(report, { force: true })
  const vitest = [join(root, 'node_modules', 'vitest', 'vitest.mjs'), 'run', ...tests]
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`]
  const exact = spawnSync(node, ['--version'], { encoding: 'utf8' }).stdout.trim()
  console.log(`\nlooplm: tests on Node ${exact}`)
  const [status] = await once(spawn(node, [...vitest, ...reporters], { cwd: root, env, stdio: 'inherit' }), 'exit')
  rows.push({ exact, status, ...summary(report) })
}

/** What vitest's reporter counted; nothing when it did not get that far. */
function summary(report) {
  try {
    const { numPassedTests, numFailedTests, numPendingTests } = JSON.parse(readFileSync(report, 'utf8'))
    return { passed: numPassedTests, failed: numFailedTests, skipped: numPendingTests }
  } catch {
    return { passed: 0, failed: 0, skipped: 0 }
  }
}

console.log('')
for (const { exact, status, passed, failed, skipped } of rows)
  console.log(
    `Node ${exact}: ${passed} passed, ${failed} failed, ${skipped} skipped${status === 0 ? '' : ` (vitest ended with ${status})`}`,
  )
process.exitCode = rows.every(({ status }) => status === 0) ? 0 : 1
