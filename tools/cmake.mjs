// Builds of CMakeLists.txt beside that of the addon, which cmake-js makes.
import { spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')

/**
 * Configures build/<name> and builds targets there, or ends the process with what failed.
 *
 * @param definitions variables of CMake by name
 * @returns the folder
 */
export function cmakeBuild(name, definitions, targets) {
  const folder = join(root, 'build', name)
  const ninja = spawnSync('ninja', ['--version'], { stdio: 'ignore' }).status === 0 ? ['-G', 'Ninja'] : []
  const set = Object.entries(definitions).map(([variable, value]) => `-D${variable}=${value}`)
  const jobs = process.env.LOOPLM_BUILD_JOBS ?? String(availableParallelism())
  for (const args of [
    ['-S', root, '-B', folder, ...ninja, ...set],
    ['--build', folder, '--parallel', jobs, '--target', ...targets],
  ]) {
    const { status, error, stdout, stderr } = spawnSync('cmake', args, { encoding: 'utf8', maxBuffer: 2 ** 28 })
    if (status === 0) continue
    console.error(`looplm: cmake ${args.join(' ')} failed: ${error?.message ?? ''}\n${stdout}${stderr}`)
    process.exit(1)
  }
  return folder
}
