// Checks the format of the C++ and CUDA sources, or with --write rewrites them.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const program = process.env.CLANG_FORMAT ?? 'clang-format'

if (spawnSync(program, ['--version'], { stdio: 'ignore' }).status !== 0) {
  console.log(
    `looplm: ${program} is not installed, so the C++ sources are not checked. On Debian and Ubuntu: apt-get install -y clang-format`,
  )
  process.exit(process.env.CI ? 1 : 0)
}

const sources = ['native', 'cuda']
  .filter((folder) => existsSync(join(root, folder)))
  .flatMap((folder) => readdirSync(join(root, folder), { recursive: true }).map((name) => join(folder, name)))
  .filter((name) => /\.(h|cpp|cu|cuh)$/.test(name))
  .sort()
if (sources.length === 0) process.exit(0)
const mode = process.argv.includes('--write') ? ['-i'] : ['--dry-run', '--Werror']
const result = spawnSync(program, [...mode, '--style=file', ...sources], { cwd: root, stdio: 'inherit' })
if (result.status !== 0) console.error('looplm: run `npm run format` to fix the format')
process.exit(result.status ?? 1)
