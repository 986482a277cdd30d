// What `npm pack` and `npm publish` need: TypeScript and the addon, built if they are not, and nothing in dist/src whose source is gone.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')

function run(tool, ...args) {
  const { status } = spawnSync(process.execPath, [join(root, 'tools', tool), ...args], { stdio: 'inherit' })
  if (status !== 0) process.exit(status ?? 1)
}

run('ensure-built.mjs')
const compiled = join(root, 'dist', 'src')
for (const name of readdirSync(compiled, { recursive: true })) {
  const sources = ['.ts', '.js'].map((end) => join(root, 'src', name.replace(/(\.d\.ts(\.map)?|\.js)$/, end))) // a folder keeps its name
  if (!sources.some(existsSync)) rmSync(join(compiled, name), { recursive: true, force: true })
}
// What is published runs on the systems that README names; what `npm pack` makes, on this one.
run('prebuild.mjs', ...(process.env.npm_command === 'publish' ? [] : ['--any-glibc', '--this-processor']))
