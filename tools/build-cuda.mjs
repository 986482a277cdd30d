// Compiles the CUDA backend (cuda/build.sh) and reads what ptxas said of each kernel: registers, shared memory, spills. That goes to
// build/cuda/resources.json and, with --report, as a table to docs/cuda-resources.md.
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { decodeTable, floorsTable } from './cuda-floors.mjs'
import { shortName } from './kernel-name.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const objects = join(root, 'build', 'cuda')

const { status } = spawnSync('bash', [join(root, 'cuda', 'build.sh')], { stdio: 'inherit' })
if (status !== 0) process.exit(status ?? 1)

/** Every kernel of every chip: { file, kernel, arch, registers, shared, stack, spills }. */
function resources() {
  const found = []
  for (const file of readdirSync(join(root, 'cuda')).filter((name) => name.endsWith('.cu'))) {
    let current
    for (const line of readFileSync(join(objects, `${file}.o.txt`), 'utf8').split('\n')) {
      const entry = /Compiling entry function '(\S+)' for '(\S+)'/.exec(line)
      const frame = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line)
      const used = /Used (\d+) registers/.exec(line)
      if (entry) {
        current = { file, kernel: entry[1], arch: entry[2], registers: 0, shared: 0, stack: 0, spills: 0 }
        found.push(current)
      }
      if (frame) Object.assign(current, { stack: Number(frame[1]), spills: Number(frame[2]) + Number(frame[3]) })
      if (used) Object.assign(current, { registers: Number(used[1]), shared: Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0) })
    }
  }
  const names = spawnSync('c++filt', { input: found.map(({ kernel }) => kernel).join('\n'), encoding: 'utf8' })
  if (names.status === 0) for (const [i, name] of names.stdout.trimEnd().split('\n').entries()) found[i].kernel = shortName(name)
  const key = ({ file, kernel, arch }) => `${file} ${kernel} ${arch}`
  return found.sort((a, b) => (key(a) < key(b) ? -1 : 1))
}

/** One line for a kernel: its numbers on the two chips. */
function line(rows) {
  const on = (arch) => rows.find((row) => row.arch === arch)
  const cells = ['sm_80', 'sm_90a'].flatMap((arch) => [on(arch)?.registers ?? '–', on(arch)?.spills ?? '–'])
  return `| ${rows[0].file} | \`${rows[0].kernel}\` | ${rows[0].shared} | ${cells.join(' | ')} |`
}

const rows = resources()
writeFileSync(join(objects, 'resources.json'), `${JSON.stringify(rows, null, 1)}\n`)
if (process.argv.includes('--report')) {
  const compiler = spawnSync(process.env.NVCC ?? 'nvcc', ['--version'], { encoding: 'utf8' }).stdout
  const kernels = [...new Set(rows.map(({ file, kernel }) => `${file} ${kernel}`))]
  const text = `# What the CUDA kernels must do, and what they need

${floorsTable(rows)}
${decodeTable(rows)}
## What each kernel needs

Written by \`npm run build:cuda -- --report\` from the report of ptxas, nvcc ${/V([\d.]+)/.exec(compiler)?.[1] ?? 'unknown'}.

* Registers are per thread.
* Shared memory is in bytes per block, without what a launch requests.
* Spills are bytes of registers that did not fit and went to memory.

| file | kernel | shared | registers, sm_80 | spills | registers, sm_90a | spills |
|---|---|---:|---:|---:|---:|---:|
${kernels.map((name) => line(rows.filter(({ file, kernel }) => `${file} ${kernel}` === name))).join('\n')}
`
  writeFileSync(join(root, 'docs', 'cuda-resources.md'), text)
}
const slow = rows.filter(({ spills, stack }) => spills + stack > 0)
for (const { file, kernel, arch, stack, spills } of slow)
  console.log(`${file} ${kernel} ${arch}: ${stack} bytes of stack, ${spills} spilled`)
console.log(`looplm: ${rows.length} kernels for two chips, ${slow.length} that spill or have a stack`)
