// Bank conflicts of the CUDA kernels by the emulator's count (cuda/emulator/banks.h): node tools/cuda-banks.mjs [--dtype bf16] [FILTER]
// with the options of looplm_kernel_tests.
// Cycles over phases is 1 where no two lanes of a phase want different words of one bank.
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { shortName } from './kernel-name.mjs'

const build = join(dirname(fileURLToPath(import.meta.url)), '..', 'build')
const library = join(build, 'Release', 'looplm_cuda_emulated.so')
const folder = mkdtempSync(join(tmpdir(), 'looplm-banks-'))
const file = join(folder, 'banks')
const tests = spawnSync(join(build, 'looplm_kernel_tests'), ['--backend', library, ...process.argv.slice(2)], {
  encoding: 'utf8',
  maxBuffer: 1 << 26,
  env: { ...process.env, LOOPLM_EMULATOR_BANKS: file },
})
if (tests.status !== 0)
  console.error(
    tests.stdout
      .split('\n')
      .filter((line) => line.startsWith('not ok'))
      .join('\n'),
  )
const symbols = new Map()
for (const line of execFileSync('nm', ['-C', library], { encoding: 'utf8', maxBuffer: 1 << 26 }).split('\n')) {
  const found = /^(\w+) [tTW] (.*)$/.exec(line)
  if (found) symbols.set(Number.parseInt(found[1], 16), found[2])
}
const rows = readFileSync(file, 'utf8')
  .trimEnd()
  .split('\n')
  .map((line) => line.split(' '))
  .map(([offset, phases, cycles]) => ({
    kernel: shortName(symbols.get(Number.parseInt(offset, 16)) ?? offset),
    phases: Number(phases),
    cycles: Number(cycles),
  }))
rmSync(folder, { recursive: true })
for (const { kernel, phases, cycles } of rows.sort((a, b) => (a.kernel < b.kernel ? -1 : 1)))
  console.log(`${(cycles / phases).toFixed(2).padStart(6)}  ${String(phases).padStart(9)} phases  ${kernel}`)
