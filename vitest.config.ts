import './tools/ensure-built.mjs'
import { dirname, join, relative, resolve } from 'node:path'
import { configDefaults, defineConfig, type Plugin } from 'vitest/config'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

/** Files that take long beside their size, which vitest goes by where it knows no times: one that started last would end the run alone. */
const long =
  /native\/(native|cuda|cublaslt|cuda-decode|nccl)|package|examples|parallel|cli\/cli|recovery|option-effects|wavefront-cuda|golden|bench|leaks/

class LongFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const sorted = await super.sort(files)
    return [...sorted.filter(({ moduleId }) => long.test(moduleId)), ...sorted.filter(({ moduleId }) => !long.test(moduleId))]
  }
}

const root = import.meta.dirname
const packageFile = join(root, 'src', 'index.ts')

/**
 * Tests import what tsc wrote to dist/, as programs do: Node loads it in a third of the time that Vite takes for src/ in each test
 * file. In watch mode and for coverage they import src/.
 */
const built: Plugin = {
  name: 'looplm:built',
  enforce: 'pre',
  resolveId(name, importer) {
    if (!importer?.startsWith(join(root, 'test'))) return
    if (name !== 'looplm' && !name.startsWith('.')) return
    const path = relative(root, name === 'looplm' ? packageFile : resolve(dirname(importer), name))
    if (/^(src|bench|examples|study)[\\/]/.test(path)) return join(root, 'dist', path.replace(/\.ts$/, '.js'))
  },
}
const sources = !process.argv.includes('run') || process.argv.some((word) => word.startsWith('--coverage'))

export default defineConfig({
  plugins: sources ? [] : [built],
  resolve: { alias: { looplm: packageFile } }, // examples import the package by name
  test: {
    pool: 'forks', // a native addon must not be unloaded between worker threads
    // Every engine has threads for all cores, but most files wait for timers and programs at some time. Builds of test programs lock
    // their folder with flock, which macOS lacks.
    maxWorkers: process.platform === 'linux' ? 2 : 1,
    // Test files of one worker share a process, where the package is loaded once. A test that changes its process changes it back.
    isolate: false,
    setupFiles: ['test/equality.ts'],
    maxConcurrency: 2, // tests of describe.concurrent, which wait for programs of their own
    include: ['test/**/*.test.ts'],
    exclude: [...configDefaults.exclude, 'test/long/**'], // npm run test:long
    server: { deps: { external: [/[\\/]dist[\\/]/] } }, // loaded by Node alone
    sequence: { sequencer: LongFirst },
    // These catch what hangs, nothing else: a busy or an emulated machine takes minutes for what others do in a second.
    testTimeout: 600_000,
    hookTimeout: 900_000,
    expect: { poll: { timeout: 300_000 } },
  },
})
