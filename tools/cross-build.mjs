// The native engine for Linux on ARM64, compiled on another processor, in build/arm64.
import { spawnSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { cmakeBuild } from './cmake.mjs'

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
  const headers = ['node-api-headers/include', 'node-addon-api'].map((path) => join(root, 'node_modules', path))
  const definitions = {
    CMAKE_BUILD_TYPE: 'Release',
    CMAKE_SYSTEM_NAME: 'Linux',
    CMAKE_SYSTEM_PROCESSOR: 'aarch64',
    CMAKE_CXX_COMPILER: compiler,
    CMAKE_JS_INC: headers.join(';'),
  }
  return cmakeBuild('arm64', definitions, targets)
}
