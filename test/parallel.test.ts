// Many processes: the communication table and the sharded optimizer on threads, then processes under Open MPI and MPICH.
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { Worker } from 'node:worker_threads'
import { beforeAll, describe, expect, it } from 'vitest'
import { AdamW } from '../src/model/optimizer.js'
import { chooseLibrary, detectLauncher, parallel, parallelLibraries } from '../src/parallel.js'
import { OneProcess, program } from './cli/program.js'
import { installed, launch, type MpiName } from './mpi.js'
import { build, buildTargets, runTests } from './native-tests.js'
import { refusal } from './refusal.js'
import { tinyModel } from './tiny.js'

const said = async (run: () => unknown) => {
  const { code, message } = await refusal(run)
  return `${code} ${message}`
}

const programs = ['Release/looplm_comm_tests', 'Release/looplm_data_parallel_tests']
const root = join(import.meta.dirname, '..')
const fixture = join(import.meta.dirname, 'parallel-rank.mjs')

beforeAll(() => {
  buildTargets('looplm_comm_tests', 'looplm_data_parallel_tests')
  waited = Object.fromEntries(installed.map((mpi) => [mpi, inTurn(mpi)])) as typeof waited
})

describe('ranks as threads', () => {
  it('communication operations work with 1 to 5 ranks, also with failing and missing ranks', async () => {
    const { failures, passed, status } = await runTests(programs[0]!, [])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(600)
    expect(status).toBe(0)
  })

  it('the sharded optimizer matches that of one rank, with 1/N of its state', async () => {
    const { failures, passed, status } = await runTests(programs[1]!, [])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(500)
    expect(status).toBe(0)
  })
})

describe('the launcher of a process', () => {
  it.each([
    [{}, undefined],
    [{ OMPI_COMM_WORLD_SIZE: '4', OMPI_COMM_WORLD_RANK: '2', PMIX_RANK: '2' }, ['mpirun of Open MPI', 4, 2, 'openmpi']],
    [{ PMI_SIZE: '3', PMI_RANK: '0' }, ['mpiexec of MPICH', 3, 0, 'mpich']],
    [{ PMI_SIZE: '8', PMI_RANK: '7', SLURM_STEP_NUM_TASKS: '8' }, ['srun --mpi=pmi2', 8, 7, 'mpich']],
    [{ PMIX_RANK: '5', SLURM_STEP_NUM_TASKS: '8' }, ['srun --mpi=pmix', 8, 5, 'openmpi']],
    [{ PMIX_RANK: '1' }, ['prterun', undefined, 1, 'openmpi']],
    [{ SLURM_STEP_NUM_TASKS: '8', SLURM_PROCID: '1' }, ['srun', 8, 1, 'openmpi']],
    // the script of a job, which srun did not start
    [{ SLURM_NTASKS: '8', SLURM_PROCID: '0', SLURM_JOB_ID: '77' }, undefined],
    [{ OMPI_COMM_WORLD_SIZE: '' }, undefined],
  ])('is detected from the environment %j', (environment, expected) => {
    const found = detectLauncher(environment)
    expect(found && [found.name, found.size, found.rank, found.libraries[0]]).toEqual(expected)
  })

  it('decides which MPI library is used, or the next best if that is missing', () => {
    const found = (names: string[]) =>
      ['openmpi', 'mpich'].map((name) => ({ name, available: names.includes(name), description: '' }))
    const slurm = detectLauncher({ PMI_SIZE: '2', PMI_RANK: '0' })!
    expect(chooseLibrary(slurm, found(['openmpi', 'mpich']))).toBe('mpich')
    expect(chooseLibrary(slurm, found(['openmpi']))).toBe('openmpi')
    expect(chooseLibrary(detectLauncher({ OMPI_COMM_WORLD_SIZE: '2' })!, found(['mpich']))).toBeUndefined()
  })
})

/** A process that says it was launched, which it was not. */
function alone(scenario: string, env: Record<string, string>) {
  return spawnSync(process.execPath, [fixture, scenario], { env: { ...process.env, ...env }, encoding: 'utf8' })
}

describe('a process alone', () => {
  it('is a world of one, and loads no MPI', async () => {
    const world = await parallel.init()
    expect(world).toMatchObject({ rank: 0, size: 1, localRank: 0, backend: 'off', library: undefined })
    expect(await world.sum([1, 2])).toEqual([1, 2])
    expect(await world.max([-3])).toEqual([-3])
    expect(await world.gather({ a: 'ü' })).toEqual([{ a: 'ü' }])
    expect(await world.broadcast('x')).toBe('x')
    expect(await world.exchange([Uint8Array.of(1, 2)])).toEqual([Uint8Array.of(1, 2)])
    await world.barrier()
    expect(world.bytesSent).toBe(0)
    const loaded = (process.report.getReport() as { sharedObjects: string[] }).sharedObjects
    expect(loaded.filter((path) => /mpi/.test(path))).toEqual([])
    expect(await parallel.init()).toBe(world)
    expect(await said(() => parallel.init({ timeout: 5 }))).toMatch(
      /INVALID_ARGUMENT parallel.init: .* backend 'auto' and timeout 600/,
    )
  })

  it('rejects wrong options by name', async () => {
    expect(await said(() => parallel.init({ backend: 'nccl' as 'mpi' }))).toMatch(/backend must be one of 'auto', 'mpi', 'off'/)
    expect(await said(() => parallel.init({ timeout: 0 }))).toMatch(/timeout must be a finite number greater than 0/)
    expect(await said(() => parallel.init({ time: 1 } as object))).toMatch(/unknown option/)
    const world = await parallel.init()
    expect(await said(() => world.broadcast(1, 1))).toMatch(/root must be an integer/)
    expect(await said(() => world.exchange([]))).toMatch(/parts must have one entry per rank/)
    using model = await tinyModel()
    expect(await said(() => new AdamW(model, { world: {} as never }))).toMatch(
      /world must be a World, as parallel.init resolves to/,
    )
    using optimizer = new AdamW(model, { world })
    expect(await said(() => optimizer.step({ world } as object))).toMatch(/world: unknown option/)
  })

  it.runIf(installed.length > 0)('fails with backend mpi when no launcher started it', () => {
    const { status, stderr } = alone('force', {})
    expect(stderr).toMatch(
      "backend 'mpi' needs a launcher, and none started this process: start the program with mpirun, mpiexec or srun",
    )
    expect(status).toBe(1)
  })

  it('fails under a launcher without an MPI library, with the cause and a remedy', () => {
    const { status, stderr } = alone('place', { OMPI_COMM_WORLD_SIZE: '2', LOOPLM_MPI_LIBRARY: '/nowhere/libmpi.so' })
    expect(stderr).toMatch(/NATIVE_LOAD/)
    expect(stderr).toMatch('mpirun of Open MPI started this process, but there is no MPI for it')
    expect(stderr).toMatch(/openmpi: \/nowhere\/libmpi.so: .*No such file/)
    expect(stderr).toMatch("Install that MPI, load its module, or choose backend 'off'")
    expect(status).toBe(1)
  })

  it.runIf(installed.includes('mpich'))('fails when MPI sees fewer processes than the launcher started', () => {
    const { status, stderr } = alone('place', { PMI_SIZE: '2', PMI_RANK: '0' })
    expect(stderr).toMatch(/mpiexec of MPICH started 2 processes, but for MPICH [\d.]+ there are 1/)
    expect(status).toBe(1)
  })

  it('rejects a library that is not MPI', () => {
    const loaded = (process.report.getReport() as { sharedObjects: string[] }).sharedObjects
    const libc = loaded.find((path) => /\/(libc\.so\.6|ld-musl-\w+\.so\.1|libSystem\.B\.dylib)$/.test(path))! // of any system
    const code = `import { parallelLibraries } from ${JSON.stringify(join(build, '..', 'dist', 'src', 'parallel.js'))}
      console.log(JSON.stringify(parallelLibraries()))`
    const env = { ...process.env, LOOPLM_MPI_LIBRARY: libc }
    const found = JSON.parse(execFileSync(process.execPath, ['--input-type=module', '-e', code], { env, encoding: 'utf8' }))
    expect(found[0]).toEqual({ name: 'openmpi', available: false, description: `${libc} is not an MPI library` })
  })

  it('gets the MPI libraries and the one it would use from looplm info', async () => {
    await using looplm = new OneProcess()
    const facts = JSON.parse((await looplm.looplm(root, ['info', '--json'])).stdout).parallel
    expect(facts.libraries.map(({ name }: { name: string }) => name)).toEqual(['openmpi', 'mpich', 'nccl'])
    expect(facts.libraries).toEqual(parallelLibraries())
    expect(facts.launcher).toBeUndefined()
    expect((await looplm.looplm(root, ['info'])).stdout).toMatch('none, no launcher (mpirun, mpiexec, srun) started this one')
    const info = (env: Record<string, string>) =>
      execFileSync(process.execPath, [program, 'info', '--json'], { env: { ...process.env, ...env }, encoding: 'utf8' })
    for (const name of installed) {
      const launched: Record<MpiName, Record<string, string>> = {
        openmpi: { OMPI_COMM_WORLD_SIZE: '2' },
        mpich: { PMI_SIZE: '2' },
      }
      expect(JSON.parse(info(launched[name])).parallel.used).toBe(name)
      expect(facts.libraries.find((one: { name: string }) => one.name === name).available).toBe(true)
    }
  })
})

it('docs/parallel-simulation.md matches the output of tools/simulate-parallel.mjs', async () => {
  const { page, parameters, step } = await import(pathToFileURL(join(root, 'tools', 'simulate-parallel.mjs')).href)
  expect(readFileSync(join(root, 'docs', 'parallel-simulation.md'), 'utf8')).toBe(page())
  const alone = step(1, 4096)
  expect(alone.total).toBe(alone.compute + alone.optimizer) // nothing to exchange
  for (const gpus of [8, 64, 512]) {
    const parts = step(gpus, 4096)
    expect(parts.gradients).toBeGreaterThan(((4 * parameters) / gpus / 450e9) * (Math.min(gpus, 8) - 1)) // the links' own rate
    expect(parts.hidden).toBeLessThanOrEqual(parts.gradients)
    expect(parts.total).toBeGreaterThan(parts.compute)
  }
})

it.runIf(installed.length > 0)('parallel.init fails in a worker thread', async () => {
  const code = `const { parentPort } = require('node:worker_threads')
    import(${JSON.stringify(join(build, '..', 'dist', 'src', 'parallel.js'))}).then(({ parallel }) => parallel.init())
      .then(() => 'joined', ({ code, message }) => code + ' ' + message).then((said) => parentPort.postMessage(said))`
  const worker = new Worker(code, { eval: true })
  const answer = await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
  expect(answer).toMatch(/UNSUPPORTED parallel.init: call parallel.init in the main thread/)
})

const folder = () => mkdtempSync(join(tmpdir(), 'looplm-ranks-'))
/** What the ranks wrote into a folder, which is removed. */
const ranksOf = (written: string) => {
  const said = readdirSync(written).map((name) => JSON.parse(readFileSync(join(written, name), 'utf8')))
  rmSync(written, { recursive: true })
  return said.sort((a, b) => a.rank - b.rank)
}
const run = async (mpi: MpiName, ranks: number, scenarios: string[], env: Record<string, string> = {}) => {
  const began = performance.now()
  const written = folder()
  const ended = await launch(mpi, ranks, process.execPath, [fixture, ...scenarios], { LOOPLM_RANK_FOLDER: written, ...env })
  return { ...ended, said: ranksOf(written), seconds: (performance.now() - began) / 1000 }
}

/** Ranks that wait for others until the time limit: they do so beside the other tests. */
const waits = { hang: 2, leave: 2, absent: 2, late: 2 }
let waited: Record<MpiName, Record<keyof typeof waits, ReturnType<typeof run>>>
const inTurn = (mpi: MpiName) => {
  let last: Promise<unknown> = Promise.resolve()
  const begin = (scenario: string, ranks: number) => {
    const ended = last.then(() => run(mpi, ranks, [scenario]))
    last = ended.catch(() => {}) // its own test says so
    return ended
  }
  return Object.fromEntries(Object.entries(waits).map(([scenario, ranks]) => [scenario, begin(scenario, ranks)]))
}

describe('processes', () => {
  let alone: { trained: Record<string, { values: number[] }> }
  const threeRanks: object[] = [] // what they have trained, once under each MPI
  beforeAll(() => {
    const written = folder()
    execFileSync(process.execPath, [fixture, 'train'], { env: { ...process.env, LOOPLM_RANK_FOLDER: written } })
    ;[alone] = ranksOf(written)
  })

  describe.each(installed)('under %s', (mpi) => {
    const succeed = async (ranks: number, scenarios: string[], env: Record<string, string> = {}) => {
      const { status, stderr, said } = await run(mpi, ranks, scenarios, env)
      expect(status, stderr).toBe(0)
      expect(said.map(({ rank }) => rank)).toEqual(Array.from({ length: ranks }, (_, i) => i))
      return said
    }
    const fail = async (ranks: number, scenario: string) => {
      const ended = await run(mpi, ranks, [scenario])
      expect(ended.status, ended.stdout).not.toBe(0)
      return ended
    }

    it.each([2, 3])('every communication operation works on %i ranks', async (ranks) => {
      for (const args of [[mpi], [mpi, '9973']]) {
        // messages in one piece and in many
        const { status, stdout, stderr } = await launch(mpi, ranks, join(build, programs[0]!), args)
        const lines = stdout.split('\n')
        expect(lines.filter((line) => line.startsWith('not ok'))).toEqual([])
        expect(lines.filter((line) => line.startsWith('ok')).length).toBeGreaterThan(30 * ranks)
        expect(status, stderr).toBe(0)
      }
    })

    describe.each(mpi === installed[0] ? [2, 3] : [3])('%i ranks', (ranks) => {
      let found: { place: object; operations: object; trained: Record<string, { values: number[] }> }[]
      beforeAll(async () => {
        found = await succeed(ranks, ['place', 'operations', 'train'])
        if (ranks === 3) threeRanks.push(found[0]!.trained)
      })

      it('each rank knows its place', () => {
        for (const [i, { place }] of found.entries())
          expect(place).toEqual({
            ...{ size: ranks, localRank: i, backend: 'mpi' },
            library: expect.stringMatching({ openmpi: /^Open MPI v[\d.]+$/, mpich: /^MPICH [\d.]+$/ }[mpi]),
          })
      })

      it('values are summed in the order of the ranks, gathered, broadcast and exchanged', () => {
        const all = Array.from({ length: ranks }, (_, rank) => rank)
        for (const [i, { operations }] of found.entries())
          expect(operations).toEqual({
            same: true,
            sum: [ranks === 2 ? 1e17 : 0, ranks],
            max: [ranks - 1, 0],
            gathered: all.map((rank) => ({ rank, text: 'ä'.repeat(rank) })),
            told: { from: ranks - 1 },
            exchanged: all.map((rank) => Array(i).fill(10 * rank + i)),
          })
      })

      it('a model trained on all ranks matches that of one process', () => {
        for (const { trained } of found) {
          expect(trained).toEqual(found[0]!.trained) // the same bits on every rank
          expect(trained.overlap).toEqual(trained.float32) // and when gradients travel during the backward pass
          for (const [kind, bound] of [
            ['float32', 1e-5],
            ['adapter', 1e-5],
            ['bfloat16', 1e-2],
          ] as const) {
            const [values, expected] = [trained[kind]!.values, alone.trained[kind]!.values]
            const distance = Math.hypot(...values.map((value, i) => value - expected[i]!)) / Math.hypot(...expected)
            expect(distance, kind).toBeLessThan(bound)
          }
        }
      })
    })

    it('a rank that throws ends all ranks with its error', async () => {
      const { stdout, stderr } = await fail(3, 'fail')
      expect(stderr).toMatch('looplm: rank 1 of 3 ends all ranks: Error: the disk is on fire')
      expect(stdout).not.toMatch('nobody came this far')
    })

    it('a rank that exits ends all ranks with its exit code', async () => {
      const { status, stderr } = await fail(2, 'exit')
      expect(stderr).toMatch('looplm: rank 1 of 2 ends all ranks: the process ended with exit code 7')
      expect(status).toBe(7)
    })

    it('a rank that is killed ends all ranks', async () => {
      const { stdout, seconds } = await fail(3, 'kill')
      expect(stdout).not.toMatch('nobody came this far')
      expect(seconds).toBeLessThan(300) // the limit of the operation that the others wait in is 600
    })

    it('a rank that hangs makes the others fail, naming operation, rank and time limit', async () => {
      const { status, stderr } = await waited[mpi].hang
      expect(stderr).toMatch(
        /looplm: rank 0 of 2 ends all ranks: LoopLMError: World.sum: all_gather_v: rank 0 of 2 waited 6 s for other ranks; .* raise the time limit/,
      )
      expect(status).not.toBe(0)
    })

    it('a rank that has left makes the others fail after the time limit', async () => {
      const { status, stderr } = await waited[mpi].leave
      expect(stderr).toMatch(/looplm: rank 0 of 2 ends all ranks: LoopLMError: World.barrier: barrier: rank 0 of 2 waited 6 s/)
      expect(status).not.toBe(0)
    })

    it('a rank that never starts makes the others fail after the time limit', async () => {
      const { status, stderr } = await waited[mpi].absent
      expect(stderr).toMatch(/looplm: parallel.init: rank 0 of 2 waited 2 s for the other processes of mpi/)
      expect(status).not.toBe(0)
    })

    it('ranks with different settings fail, naming the setting', async () => {
      const { stderr } = await fail(2, 'disagree')
      expect(stderr).toMatch("test: seed is 'false' on rank 0 and 'true' on rank 1: start every process with the same program")
    })

    it('ranks that have ended wait for a busy one beyond the time limit', async () => {
      const { status, stderr, said } = await waited[mpi].late
      expect(status, stderr).toBe(0)
      expect(said).toEqual([{ rank: 0 }, { rank: 1 }])
    })
  })

  it.runIf(installed.length > 0)('training gives the same bits in every run, and under every MPI', async () => {
    if (installed.length === 1) threeRanks.push((await run(installed[0]!, 3, ['train'])).said[0].trained)
    expect(threeRanks.length).toBe(2)
    expect(threeRanks[1]).toEqual(threeRanks[0])
  })
})
