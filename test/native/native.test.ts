// The native test programs: every kernel of every table against the float64 reference, central differences of every backward, and the
// reader of safetensors against malformed files, and the emulator against kernels with planted faults.
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { build, buildTargets, runTests } from '../native-tests.js'
import { faults, sourceOf } from './planted-faults.js'

const isas = ['avx512_bf16', 'avx512_vnni', 'avx512', 'avx2_vnni', 'avx2', 'baseline']
/** A table's kernels, and its products of bytes, which other tables have too (native/cpu/cpu.cpp). */
const partsOf: Record<string, [table: string, bytes: string]> = {
  avx512_bf16: ['avx512_bf16', 'avx512_vnni'],
  avx512_vnni: ['avx512', 'avx512_vnni'],
  avx512: ['avx512', 'avx2'],
  avx2_vnni: ['avx2', 'avx2_vnni'],
}
const programs = [
  'looplm_kernel_tests',
  'looplm_engine_tests',
  'looplm_emulator_tests',
  'looplm_fault_tests',
  'looplm_fuzz_replay',
]

beforeAll(() => {
  buildTargets(...programs)
})

// A processor, or the machine that emulates one, may lack a single feature of a set: a table that uses it would end the process.
describe.runIf(process.arch === 'x64')('an instruction set is chosen', () => {
  const root = join(build, '..')
  const compiler = () => /^CMAKE_CXX_COMPILER:\w+=(.*)$/m.exec(readFileSync(join(build, 'CMakeCache.txt'), 'utf8'))![1]!
  const flags: Record<string, string[]> = {}
  for (const [, isa, words] of readFileSync(join(root, 'CMakeLists.txt'), 'utf8').matchAll(/set\(ISA_(avx\w+) (.*)\)/g))
    flags[isa!] = words!.split(' ').flatMap((word) => flags[/^\$\{ISA_(\w+)\}$/.exec(word)?.[1] ?? ''] ?? word)

  /** Names of features that the compiler may use, such as sse41. */
  const macros = (options: string[]) =>
    [
      ...execFileSync(compiler(), [...options, '-dM', '-E', '-x', 'c++', '/dev/null'], { encoding: 'utf8' }).matchAll(
        /__(\w+)__ 1$/gm,
      ),
    ]
      .map(([, name]) => name!.replaceAll('_', '').toLowerCase())
      .filter((name) => name !== 'biggestalignment')
  // crc32 belongs to sse4.2; without xsave the system keeps no registers of AVX, which the check of avx2 includes
  const implied = ['crc32', 'xsave']

  const source = readFileSync(join(root, 'native', 'cpu', 'cpu.cpp'), 'utf8')
  const names = (from: string) => {
    const text = source.slice(source.indexOf(from)).split(/;|\},/)[0]!
    const asked = [...text.matchAll(/__builtin_cpu_supports\("([^"]+)"\)|has_(\w+)\(\)/g)]
    return asked.map(([, known, own]) => (known ?? own)!.replaceAll('.', ''))
  }
  const avx2 = names('const bool has_avx2 =')
  const avx512 = [...avx2, ...names('const bool has_avx512 = has_avx2 &&')]

  it.each([
    ['avx2', avx2],
    ['avx512', avx512],
    ['avx512_bf16', [...avx512, ...names('{"avx512_bf16", &avx512_bf16::table, wide, has_avx512 &&')]],
    ['avx512_vnni', [...avx512, ...names('const bool has_avx512_vnni = has_avx512 &&')]],
    ['avx2_vnni', [...avx2, ...names('const bool has_avx2_vnni = has_avx2 &&')]],
  ])('%s only if the processor has every feature that the compiler may use for it', (isa, asked) => {
    const baseline = new Set(macros([]))
    const used = macros(flags[isa]!).filter((name) => !baseline.has(name))
    expect(used.length).toBeGreaterThan(5)
    expect(used.filter((name) => !asked.includes(name) && !implied.includes(name))).toEqual([])
  })
})

/** Kernel tests that make no claim where a table has no function for them: those are of CUDA or of its emulator alone. */
const ofCuda = [
  ...['decode_token', 'record: ', 'link: ', 'open: ', 'memory: a kernel without memory'],
  ...['attention: the gradient of heads too large', 'rows: CUDA reports'],
]
/** Names of kernel tests that a run should have made, and of which it has no line. */
async function silent(args: string[], stdout: string, env?: NodeJS.ProcessEnv): Promise<string[]> {
  const list = await runTests(programs[0]!, [...args, '--list'], env)
  const names = list.stdout.trimEnd().split('\n')
  expect(names.length).toBeGreaterThan(0)
  const made = stdout.split('\n')
  return names.filter((name) => !ofCuda.some((begin) => name.startsWith(begin)) && !made.some((l) => l.startsWith(`ok ${name}`)))
}

describe.concurrent('native tests', () => {
  it('the reference: formulas, gradients by central differences, worked numbers', async () => {
    const all = ['--backend', 'reference']
    const { failures, status, stdout } = await runTests(programs[0]!, all)
    expect(failures).toEqual([])
    expect(status).toBe(0)
    expect(await silent(all, stdout)).toEqual(['draw_normals f64']) // it draws no first values
  })

  const tested = new Set<string>()
  it.for(isas)('CPU kernels match the reference, with %s at most', async (isa, { skip }) => {
    const env = { LOOPLM_CPU_ISA: isa }
    // A processor without these instructions takes a lower table: each is tested once.
    const { stdout } = await runTests(programs[0]!, ['--backend', 'cpu', '--dtype', 'f32', 'swiglu'], env)
    const found = /^# cpu f32: (\w+), /m.exec(stdout)![1]!
    if (process.arch === 'x64') expect(isas.slice(isas.indexOf(isa))).toContain(found)
    const [table, bytes] = partsOf[found] ?? [found, found]
    const untested = (part: string) => !tested.has(part) && tested.add(part)
    const [newTable, newBytes] = [untested(table), untested(`products of bytes: ${bytes}`)]
    skip(!newTable && !newBytes, `this processor takes ${found}, which was tested`)
    // Of one source with other instructions, in one dtype: npm run test:long has the rest.
    const again: Record<string, string[]> = {
      avx512: tested.has('avx512_bf16') ? ['--dtype', 'bf16'] : [],
      baseline: tested.has('avx2') ? ['--dtype', 'f32'] : [],
    }
    const args = newTable ? (again[table] ?? []) : ['int8']
    const all = ['--backend', 'cpu', ...args]
    const run = await runTests(programs[0]!, all, env)
    expect(run.failures).toEqual([])
    expect(run.status).toBe(0)
    expect(await silent(all, run.stdout, env)).toEqual([])
  })

  it('safetensors: malformed files, round trips, conversions', async () => {
    const { failures, passed, status } = await runTests(programs[1]!, [])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(100)
    expect(status).toBe(0)
  })

  it('failed allocations and aborted calls throughout the engine', { timeout: 600_000 }, async () => {
    const { failures, passed, status } = await runTests(programs[3]!, [])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(60)
    expect(status).toBe(0)
  })

  it('the emulator: shared memory, barriers, shuffles, mma, and every planted fault found', async () => {
    const { failures, passed, status } = await runTests(programs[2]!, [])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(30)
    expect(status).toBe(0)
  })

  const corpus = join(import.meta.dirname, '..', '..', 'native', 'test', 'fuzz', 'corpus')
  it.each(readdirSync(corpus))('every input of the fuzzer corpus runs without a crash, target %s', async (target) => {
    const inputs = readdirSync(join(corpus, target)).sort()
    const { stdout, status } = await runTests('looplm_fuzz_replay', [target, join(corpus, target)])
    expect(stdout.trimEnd().split('\n')).toEqual(inputs)
    expect(status, `the last of ${stdout.slice(-100)}`).toBe(0)
  })
})

describe('the faults of test/long/planted-faults.test.ts', () => {
  it.each(faults)('have their place: $kernel, $what', (fault) => {
    const text = readFileSync(join(import.meta.dirname, '..', '..', 'cuda', sourceOf(fault)), 'utf8')
    expect(text, 'the source has changed: plant the fault elsewhere').toContain(fault.right)
  })
})
