// What `npm pack` and `npm publish` need: TypeScript and the addon, built if they are not, and nothing in dist/src whose source is gone.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')

function run(tool) {
  const { status } = spawnSync(process.execPath, [join(root, 'tools', tool)], { stdio: 'inherit' })
  if (status !== 0) process.exit(status ?? 1)
}

run('ensure-built.mjs')
const compiled = join(root, 'dist', 'src')
for (const name of readdirSync(compiled, { recursive: true })) {
  const source = name.replace(/(\.d\.ts|\.js)$/, '.ts') // a folder keeps its name
  if (!existsSync(join(root, 'src', source))) rmSync(join(compiled, name), { recursive: true, force: true })
}
run('prebuild.mjs')
