// Faults planted in the CUDA kernels themselves, one at a time: a missing barrier, a wrong lane, an off-by-one edge. The kernel tests on the
// emulator must fail on each, by what the emulator finds or by the numbers. (Kernels written to be wrong: cuda/emulator/test.cu.)
import { execFile } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { buildEmulated } from '../emulated.js'
import { type Fault, faults, sourceOf } from '../native/planted-faults.js'

const root = join(import.meta.dirname, '..', '..')
const build = join(root, 'build')
const folder = mkdtempSync(join(tmpdir(), 'looplm-faults-'))
beforeAll(buildEmulated, 900_000)
afterAll(() => rmSync(folder, { recursive: true }))

const run = promisify(execFile)

/** The emulated library with one kernel file compiled from a changed copy of the sources. */
async function plant(fault: Fault): Promise<string> {
  const place = mkdtempSync(join(folder, 'fault-'))
  cpSync(join(root, 'cuda'), join(place, 'cuda'), { recursive: true })
  symlinkSync(join(root, 'native'), join(place, 'native'))
  const changed = join(place, 'cuda', sourceOf(fault))
  const text = readFileSync(changed, 'utf8')
  writeFileSync(
    changed,
    text.replace(fault.right, () => fault.wrong),
  )
  const compiler = process.env.CXX ?? 'g++'
  const object = join(place, 'fault.o')
  const options = ['-std=c++20', '-O2', '-fPIC', '-fvisibility=hidden', '-w', '-DLOOPLM_CUDA_NAME="cuda-emulated"']
  await run(compiler, [...options, '-x', 'c++', '-c', join(place, 'cuda', fault.kernel), '-o', object])
  const library = join(place, 'looplm_cuda_faulty.so')
  const objects = (path: string) => readdirSync(path, { recursive: true, encoding: 'utf8' }).map((name) => join(path, name))
  const rest = [
    ...objects(join(build, 'CMakeFiles', 'looplm_cuda_emulated.dir')),
    ...objects(join(build, 'cuda', 'emulator', 'CMakeFiles', 'cuda_emulator.dir')),
  ].filter((path) => path.endsWith('.o') && !path.endsWith(`/${fault.kernel}.o`))
  await run(compiler, ['-shared', object, ...rest, '-o', library, '-pthread', '-ldl'])
  return library
}

/** The kernel tests on a faulty library: what they print, and how they end (a signal: the page behind an array). */
async function notice(library: string, fault: Fault): Promise<{ stdout: string; code: number | null }> {
  const args = ['--backend', library, '--dtype', fault.dtype, fault.tests]
  const env = { ...process.env, LOOPLM_EMULATOR_THREADS: '1' } // faults run beside each other instead
  try {
    return { stdout: (await run(join(build, 'looplm_kernel_tests'), args, { maxBuffer: 1 << 26, env })).stdout, code: 0 }
  } catch (error) {
    const { stdout, code } = error as { stdout: string; code: number | null }
    return { stdout, code }
  }
}

// All of them at once, as many at a time as there are processors; each test then waits for its own.
const waiting = [...faults]
const outcomes = new Map<Fault, Promise<{ stdout: string; code: number | null }>>()
beforeAll(() => {
  const settle = new Map<Fault, (outcome: Promise<{ stdout: string; code: number | null }>) => void>()
  for (const fault of faults) outcomes.set(fault, new Promise((resolve) => settle.set(fault, resolve)))
  const worker = async () => {
    for (let fault = waiting.shift(); fault !== undefined; fault = waiting.shift()) {
      const outcome = plant(fault).then((library) => notice(library, fault))
      settle.get(fault)!(outcome)
      await outcome.catch(() => {})
    }
  }
  for (let i = 0; i < availableParallelism(); i++) void worker()
})

describe('a planted fault makes the kernel tests fail', () => {
  it.each(faults)('$kernel: $what', async (fault) => {
    const { stdout, code } = await outcomes.get(fault)!
    expect(stdout.includes('not ok') || code === null).toBe(true)
    expect(code).not.toBe(0)
  })
})
