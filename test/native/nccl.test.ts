// The link between GPUs: NCCL by a stand-in over files (native/test/nccl_double.cpp), which ends the process where a rule of NCCL's manual is
// broken, and on a machine with a GPU and NCCL the library itself.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { buildEmulated, emulatedKernelTests, emulatedLibrary } from '../emulated.js'
import { installed, launch } from '../mpi.js'
import { build, buildTargets, runTests } from '../native-tests.js'

const double = join(build, 'Release', 'looplm_nccl_double.so')
const tests = 'Release/looplm_data_parallel_tests'
const folder = mkdtempSync(join(tmpdir(), 'looplm-nccl-'))
const through = { LOOPLM_NCCL: double, LOOPLM_NCCL_DOUBLE: folder }

beforeAll(() => {
  buildEmulated()
  buildTargets('looplm_data_parallel_tests', 'looplm_nccl_double')
})
afterAll(() => rmSync(folder, { recursive: true }))

// Some wait four seconds for what never comes: the others compute meanwhile.
describe.concurrent('gradients and parameters on emulated devices', () => {
  it('sent by NCCL give the bits of one rank, also during the backward pass', async () => {
    const log = join(folder, 'log')
    const { failures, passed, status, stdout } = await runTests(tests, ['cuda-emulated', 'some'], {
      ...through,
      LOOPLM_NCCL_DOUBLE_LOG: log,
    })
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(70)
    expect(status).toBe(0)
    expect(stdout).toMatch('# gradients go over NCCL 2.23.4')
    expect(readFileSync(log, 'utf8').split('\n').length).toBeGreaterThan(200)
  })

  it.each([
    ['lost', 3, /exchange: rank \d of 3 waited 4 s for other ranks; look for their errors, or raise the time limit/],
    ['version', 3, /LOOPLM_NCCL names a library that cannot be used: .* is NCCL 2\.4\.8: 2\.7 or later is needed/],
    ['init@1', 3, /rank \d could not open the link between the GPUs: NCCL: unhandled system error; .*LOOPLM_NCCL=off/],
    ['duplicate', 3, /rank 0 could not open the link between the GPUs: NCCL: invalid usage; NCCL_DEBUG=WARN says more/],
    ['send@1', 1, /exchange: rank 1 of 3: NCCL: unhandled cuda error/],
    ['remote@2', 1, /exchange: rank 2 of 3: NCCL: remote process exited .*; look for the error of the rank that failed/],
  ])('fail with the reason when NCCL fails: %s', async (fault, ranks, reason) => {
    const env = { ...through, LOOPLM_NCCL_DOUBLE_FAULT: fault }
    const { failures, passed, stdout } = await runTests(tests, ['cuda-emulated', 'fault'], env)
    expect(failures).toEqual([])
    expect(passed).toBe(3)
    expect(stdout.split('\n').filter((line) => reason.test(line)).length, stdout).toBe(ranks)
  })

  it('go through host memory without NCCL', async () => {
    const { failures, status, stdout } = await runTests(tests, ['cuda-emulated', 'some'], { LOOPLM_NCCL: 'off' })
    expect(failures).toEqual([])
    expect(status).toBe(0)
    expect(stdout).toMatch("# gradients go over threads of one process, through the host's memory (rank 0: LOOPLM_NCCL=off)")
  })

  it('two ranks on one GPU fail with a message that names the GPU', async () => {
    const env = { ...through, LOOPLM_EMULATOR_PLACE: '0000:1b:00.0' }
    const { stdout } = await runTests(tests, ['cuda-emulated', 'fault'], env)
    expect(stdout).toMatch(
      /rank 0 and rank 1 use the same GPU, 0000:1b:00\.0 of .*: start as many processes on a machine as it has GPUs/,
    )
  })

  it.each([
    [{ LOOPLM_NCCL: '/nowhere/libnccl.so' }, /rank 0: LOOPLM_NCCL names a library .*\/nowhere\/libnccl\.so: cannot open/],
    [{ LOOPLM_NCCL: emulatedLibrary }, /LOOPLM_NCCL names a library .*emulated\.so has no function nccl/],
  ])('a LOOPLM_NCCL library that cannot be used is an error: %o', async (env, reason) => {
    expect((await runTests(tests, ['cuda-emulated', 'fault'], env)).stdout).toMatch(reason)
  })
})

it.each([
  [{ LOOPLM_NCCL: double }, /nccl +NCCL 2\.23\.4 \(.*looplm_nccl_double\.so\)/],
  [{ LOOPLM_NCCL: double, LOOPLM_NCCL_DOUBLE_FAULT: 'version' }, /nccl .*NCCL 2\.4\.8 .*: 2\.7 or later is needed/],
  [{ LOOPLM_NCCL: 'off' }, /nccl .*LOOPLM_NCCL=off/],
  [{ LOOPLM_NCCL: '/nowhere/libnccl.so' }, /nccl .*\/nowhere\/libnccl\.so: cannot open .*nvidia-nccl/],
])('looplm info says which NCCL would be used: %o', async (env, reason) => {
  const main = join(build, '..', 'dist', 'src', 'cli', 'main.js')
  expect((await runTests(process.execPath, [main, 'info'], env)).stdout).toMatch(reason)
})

it('a world of one sends to itself', async () => {
  const { failures, passed, status } = await emulatedKernelTests(['link:'], through)
  expect(failures).toEqual([])
  expect(passed).toBeGreaterThan(3)
  expect(status).toBe(0)
})

const advised = /^gradients go over .*through the host's memory \(rank 0: .*LOOPLM_NCCL\.$/
describe.each(installed)('processes under %s, each with an emulated device', (mpi) => {
  describe.each([
    { way: 'NCCL', env: through, over: /^NCCL 2\.23\.4$/, warnings: [] },
    { way: 'the memory of the host', env: {}, over: /^(Open MPI|MPICH) .*through the host's memory/, warnings: [advised] },
  ])('over $way', ({ env, over, warnings }) => {
    let ranks: { trained: Record<string, object>; over: string; warnings: string[] }[]
    beforeAll(async () => {
      const written = mkdtempSync(join(folder, 'ranks-'))
      const fixture = join(import.meta.dirname, '..', 'parallel-rank.mjs')
      const variables = {
        LOOPLM_RANK_FOLDER: written,
        LOOPLM_RANK_DEVICE: 'cuda-emulated',
        LOOPLM_RANK_KINDS: 'float32 overlap',
        ...env,
      }
      const scenarios = mpi === installed[0] ? ['train', 'advice'] : ['train']
      const { status, stderr } = await launch(mpi, 2, process.execPath, [fixture, ...scenarios], variables)
      expect(status, stderr).toBe(0)
      ranks = ['0', '1'].map((rank) => JSON.parse(readFileSync(join(written, `${rank}.json`), 'utf8')))
    })

    it('train one model', () => {
      const [one, other] = ranks
      expect(one!.trained).toEqual(other!.trained)
      expect(one!.trained.overlap).toEqual(one!.trained.float32)
      expect(one!.over).toMatch(over)
    })

    it.runIf(mpi === installed[0])('warn once, and only of gradients that go through the host', () => {
      const [leader, other] = ranks
      expect(leader!.warnings).toEqual(warnings.map((pattern) => expect.stringMatching(pattern)))
      expect(other!.warnings).toEqual([])
    })
  })
})

const real = join(build, 'Release', 'looplm_cuda.so')
it.runIf(process.env.LOOPLM_TEST_DEVICE === 'cuda' && existsSync(real))('real NCCL works in a world of one', async ({ skip }) => {
  const { failures, passed, status, stdout } = await runTests('looplm_kernel_tests', ['--backend', real, 'link:'])
  expect(failures).toEqual([])
  expect(status).toBe(0)
  const without = /^# no link: (.*)/m.exec(stdout)
  skip(without !== null, without?.[1])
  expect(stdout).toMatch(/^# link: /m)
  expect(passed).toBeGreaterThan(3)
})
