// The native engine for Linux on ARM64, compiled on another processor, in build/arm64.
import { spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const compiler = 'aarch64-linux-gnu-g++'

/**
 * Builds targets of CMakeLists.txt, or ends the process with what is missing.
 *
 * @returns the folder where they are
 */
export function crossBuild(targets) {
  if (spawnSync(compiler, ['--version'], { stdio: 'ignore' }).status !== 0) {
    console.error(`looplm: ${compiler} is missing. On Debian and Ubuntu: apt-get install -y g++-aarch64-linux-gnu`)
    process.exit(1)
  }
  const folder = join(root, 'build', 'arm64')
  const ninja = spawnSync('ninja', ['--version'], { stdio: 'ignore' }).status === 0 ? ['-G', 'Ninja'] : []
  const system = ['-DCMAKE_SYSTEM_NAME=Linux', '-DCMAKE_SYSTEM_PROCESSOR=aarch64', `-DCMAKE_CXX_COMPILER=${compiler}`]
  const headers = ['node-api-headers/include', 'node-addon-api'].map((path) => join(root, 'node_modules', path))
  const configure = [
    '-S',
    root,
    '-B',
    folder,
    ...ninja,
    '-DCMAKE_BUILD_TYPE=Release',
    ...system,
    `-DCMAKE_JS_INC=${headers.join(';')}`,
  ]
  const jobs = process.env.LOOPLM_BUILD_JOBS ?? String(availableParallelism())
  for (const args of [configure, ['--build', folder, '--parallel', jobs, '--target', ...targets]]) {
    const { status, error, stdout, stderr } = spawnSync('cmake', args, { encoding: 'utf8', maxBuffer: 2 ** 28 })
    if (status === 0) continue
    console.error(`looplm: cmake ${args.join(' ')} failed: ${error?.message ?? ''}\n${stdout}${stderr}`)
    process.exit(1)
  }
  return folder
}
