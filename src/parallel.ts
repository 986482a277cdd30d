/** The processes that train one model together: their launcher, the MPI that connects them, and how they end. */
import { isMainThread } from 'node:worker_threads'
import { errorMessage, LoopLMError, toLoopLMError } from './errors.js'
import { call, type NativeWorld, native } from './native.js'
import { checkNumber, checkOptions, checkWord, describe } from './validation/arguments.js'

/** The launcher of this process. */
export interface Launcher {
  name: string
  /** Number of processes that it started. undefined if it does not tell. */
  size: number | undefined
  rank: number | undefined
  /** MPI libraries that work with this launcher, in the order in which they are tried. */
  libraries: readonly string[]
}

type Environment = Readonly<Record<string, string | undefined>>

/**
 * Detects the launcher of a process.
 *
 * @param environment the process's environment, as `process.env`
 * @returns undefined if no launcher is found
 */
export function detectLauncher(environment: Environment): Launcher | undefined {
  const number = (name: string) => {
    const text = environment[name]
    return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined
  }
  const openMpi = number('OMPI_COMM_WORLD_SIZE')
  if (openMpi !== undefined)
    return { name: 'mpirun of Open MPI', size: openMpi, rank: number('OMPI_COMM_WORLD_RANK'), libraries: ['openmpi'] }
  // srun only sets these for its steps; the script of a job has SLURM_NTASKS and SLURM_PROCID too, although it is one process
  const slurm = number('SLURM_STEP_NUM_TASKS')
  const pmi = number('PMI_SIZE')
  if (pmi !== undefined)
    return {
      name: slurm === undefined ? 'mpiexec of MPICH' : 'srun --mpi=pmi2',
      size: pmi,
      rank: number('PMI_RANK'),
      libraries: ['mpich', 'openmpi'],
    }
  const rank = number('PMIX_RANK')
  if (rank !== undefined)
    return { name: slurm === undefined ? 'prterun' : 'srun --mpi=pmix', size: slurm, rank, libraries: ['openmpi', 'mpich'] }
  if (slurm !== undefined) return { name: 'srun', size: slurm, rank: number('SLURM_PROCID'), libraries: ['openmpi', 'mpich'] }
  return undefined
}

/** This process's number among those of its machine. 0 if no launcher tells. */
export function localRank(environment?: Environment): number {
  if (environment === undefined) return joined?.world.localRank ?? localRank(process.env)
  const names = ['OMPI_COMM_WORLD_LOCAL_RANK', 'MPI_LOCALRANKID', 'SLURM_LOCALID', 'PMIX_LOCAL_RANK']
  const found = detectLauncher(environment) && names.map((name) => environment[name]).find((text) => /^\d+$/.test(text ?? ''))
  return Number(found ?? 0)
}

/** Options of {@link parallel.init}. */
export interface ParallelOptions {
  /** `auto` (default): MPI if a launcher started more than one process. `mpi`: fails without MPI. `off`: only this process. */
  backend?: 'auto' | 'mpi' | 'off' | undefined
  /** Seconds that an operation waits for other processes before it fails. Defaults to 600. */
  timeout?: number | undefined
}

/** An MPI or NCCL that looplm supports, and whether it is available on this machine. */
export interface ParallelLibrary {
  name: string
  available: boolean
  /** Version and file, or what is missing. */
  description: string
}

/** The MPI libraries of this machine. */
export function parallelLibraries(): ParallelLibrary[] {
  return native().parallelLibraries()
}

/** The library that a launcher's processes use. undefined if none is available. */
export function chooseLibrary(launcher: Launcher, found: readonly ParallelLibrary[]): string | undefined {
  return launcher.libraries.find((name) => found.some((library) => library.name === name && library.available))
}

/**
 * A group of processes that run together. All of them must make the same calls in the same order. A call returns when every
 * process has made it. {@link parallel.init} creates a world.
 */
export class World {
  /** Number of this process, counted from 0. */
  readonly rank: number
  /** How many processes there are. */
  readonly size: number
  /** Number of this process among those of its machine. */
  readonly localRank: number
  /** `off`: this is the only process. */
  readonly backend: 'mpi' | 'off'
  /** Name and version of the MPI. undefined if this is the only process. */
  readonly library: string | undefined
  readonly #native: NativeWorld

  /** @internal */
  constructor(handle: NativeWorld, backend: 'mpi' | 'off') {
    const { rank, size, localRank, description } = native().parallelPlace(handle)
    this.#native = handle
    this.rank = rank
    this.size = size
    this.localRank = localRank
    this.backend = backend
    this.library = backend === 'off' ? undefined : description
  }

  /** @internal */
  get handle(): NativeWorld {
    return this.#native
  }

  /** Number of bytes that this process has sent to others so far. */
  get bytesSent(): number {
    return native().parallelBytes(this.#native)
  }

  /**
   * Sums over all processes, in the order of their ranks. The result is bitwise equal everywhere and in every run.
   *
   * @param values of this process; every process must pass the same number of values
   * @throws LoopLMError PARALLEL naming operation, rank and cause
   */
  async sum(values: readonly number[]): Promise<number[]> {
    return this.#reduce('sum', values)
  }

  /**
   * The largest value over all processes, for each position.
   * @throws LoopLMError PARALLEL
   */
  async max(values: readonly number[]): Promise<number[]> {
    return this.#reduce('max', values)
  }

  async #reduce(operation: 'sum' | 'max', values: readonly number[]): Promise<number[]> {
    const reduced = await call(`World.${operation}`, () =>
      native().parallelReduce(this.#native, operation, Float64Array.from(values)),
    )
    return Array.from(reduced)
  }

  /**
   * The values of all processes, by rank. `value` is sent as JSON.
   * @throws LoopLMError PARALLEL
   */
  async gather<Value>(value: Value): Promise<Value[]> {
    const parts = await this.gatherBytes(encode(value))
    return parts.map((part) => decode<Value>(part))
  }

  /**
   * The bytes of all processes, by rank. Their lengths may differ.
   * @throws LoopLMError PARALLEL
   */
  async gatherBytes(bytes: Uint8Array): Promise<Uint8Array[]> {
    return call('World.gather', () => native().parallelGather(this.#native, bytes))
  }

  /**
   * The value of one process, in all processes. `value` is sent as JSON.
   *
   * @param value ignored in the other processes
   * @param root the process that sends; defaults to 0
   * @throws LoopLMError PARALLEL, INVALID_ARGUMENT
   */
  async broadcast<Value>(value: Value, root = 0): Promise<Value> {
    checkNumber(root, 'root', { min: 0, max: this.size - 1, integer: true }, 'World.broadcast')
    const own = this.rank === root ? encode(value) : new Uint8Array()
    return decode<Value>(await call('World.broadcast', () => native().parallelBroadcast(this.#native, root, own)))
  }

  /**
   * Sends bytes from every process to every other.
   *
   * @param parts an entry for each rank
   * @returns what each rank sent to this one
   * @throws LoopLMError PARALLEL, INVALID_ARGUMENT
   */
  async exchange(parts: readonly Uint8Array[]): Promise<Uint8Array[]> {
    return call('World.exchange', () => native().parallelExchange(this.#native, parts))
  }

  /**
   * Waits for all processes.
   * @throws LoopLMError PARALLEL
   */
  async barrier(): Promise<void> {
    await call('World.barrier', () => native().parallelBarrier(this.#native))
  }

  /**
   * Checks that all processes run the same thing.
   *
   * @param facts by name, for example a configuration's checksum
   * @throws LoopLMError PARALLEL, in every process, naming the fact and the processes that differ
   */
  async agree(facts: Readonly<Record<string, string>>, operation: string): Promise<void> {
    const all = await this.gather(facts)
    for (const name of new Set(all.flatMap((one) => Object.keys(one)))) {
      const first = all[0]![name]
      const other = all.findIndex((one) => one[name] !== first)
      if (other === -1) continue
      const shown = (value: string | undefined) => (value === undefined ? 'missing' : describe(value))
      const differ = `${name} is ${shown(first)} on rank 0 and ${shown(all[other]![name])} on rank ${other}`
      throw new LoopLMError('PARALLEL', `${differ}: start every process with the same program, options and files`, { operation })
    }
  }
}

const encode = (value: unknown) => new TextEncoder().encode(JSON.stringify(value ?? null))
const decode = <Value>(bytes: Uint8Array) => JSON.parse(new TextDecoder().decode(bytes)) as Value

/** The options of `init` and its result. */
let joined: { backend: string; timeout: number; world: World } | undefined

/**
 * Joins the processes that a launcher started together with this one. A process joins once; later calls return the same world.
 *
 * Call it early, because it blocks JavaScript until all processes have joined. If they do not join within `timeout`, the
 * process ends with a message on standard error. MPI ends together with this process. If this process fails (an uncaught error,
 * or an exit code other than 0), all processes end with that exit code, so that none waits forever.
 *
 * @returns a world of one process if no launcher started several; MPI is not loaded then
 * @throws LoopLMError NATIVE_LOAD if there is no MPI for the launcher, with what was tried; PARALLEL if launcher and MPI
 *   disagree; INVALID_ARGUMENT naming the option; UNSUPPORTED in a worker thread
 *
 * @example
 * ```ts
 * const world = await parallel.init({ timeout: 600 })
 * console.log(`rank ${world.rank} of ${world.size}`)
 * ```
 */
async function init(options: ParallelOptions = {}): Promise<World> {
  return enter(options, 'parallel.init')
}

function enter(options: ParallelOptions, operation: string): World {
  checkOptions(options, { backend: true, timeout: true }, operation)
  const backend = checkWord(options.backend ?? 'auto', 'backend', ['auto', 'mpi', 'off'], operation)
  const timeout = checkNumber(options.timeout ?? 600, 'timeout', { above: 0, max: 1e6 }, operation)
  if (joined !== undefined) {
    if (joined.backend === backend && joined.timeout === timeout) return joined.world
    const before = `backend '${joined.backend}' and timeout ${joined.timeout}`
    throw new LoopLMError('INVALID_ARGUMENT', `this process already joined its world with ${before}; pass the same values`, {
      operation,
    })
  }
  if (!isMainThread)
    throw new LoopLMError('UNSUPPORTED', 'call parallel.init in the main thread: MPI starts once in a process', { operation })
  const world = join(backend, timeout, operation)
  joined = { backend, timeout, world }
  return world
}

/** The processes that this one has joined. undefined: it is the only one. */
export function joinedWorld(): World | undefined {
  return joined !== undefined && joined.world.size > 1 ? joined.world : undefined
}

/**
 * The world of a trainer or an evaluation: the one that this process has joined, or joins now if a launcher started it.
 *
 * @returns undefined if this is the only process, or if it chose backend `off`
 * @throws LoopLMError as {@link parallel.init}
 */
export function worldOfLauncher(operation: string): World | undefined {
  if (joined === undefined) {
    const launcher = detectLauncher(process.env)
    if (launcher === undefined || launcher.size === 1) return undefined
    enter({}, operation)
  }
  return joinedWorld()
}

function join(backend: 'auto' | 'mpi' | 'off', timeout: number, operation: string): World {
  const launcher = backend === 'off' ? undefined : detectLauncher(process.env)
  if (backend === 'mpi' && launcher === undefined) {
    const remedy = "start the program with mpirun, mpiexec or srun, or choose backend 'auto'"
    throw new LoopLMError('INVALID_ARGUMENT', `backend 'mpi' needs a launcher, and none started this process: ${remedy}`, {
      operation,
    })
  }
  if (launcher === undefined || (backend === 'auto' && launcher.size === 1)) return open('solo', timeout, 'off', operation)
  const found = parallelLibraries()
  const library = chooseLibrary(launcher, found)
  if (library === undefined) {
    const tried = launcher.libraries.map((name) => `${name}: ${found.find((one) => one.name === name)?.description}`).join('\n  ')
    const remedy = "Install that MPI, load its module, or choose backend 'off'."
    throw new LoopLMError(
      'NATIVE_LOAD',
      `${launcher.name} started this process, but there is no MPI for it.\n  ${tried}\n  ${remedy}`,
      {
        operation,
      },
    )
  }
  const who = `rank ${launcher.rank ?? '?'} of ${launcher.size ?? '?'}`
  const late = `${operation}: ${who} waited ${timeout} s for the other processes of ${launcher.name}; look for their errors`
  const world = open(library, timeout, 'mpi', operation, late)
  endTogether(world.handle)
  checkPlace(launcher, world, operation)
  return world
}

function open(library: string, timeout: number, backend: 'mpi' | 'off', operation: string, late = ''): World {
  try {
    return new World(native().parallelOpen(library, { timeout, messageBytes: 0, late }), backend)
  } catch (error) {
    throw toLoopLMError(error, operation)
  }
}

/** Checks that the MPI understands the launcher's protocol. If it does not, every process is in a world of its one process. */
function checkPlace({ name, size }: Launcher, world: World, operation: string): void {
  if (size === undefined || size === world.size) return
  const found = `${name} started ${size} processes, but for ${world.library} there are ${world.size}`
  const remedy = 'use the mpirun or mpiexec of that MPI; under Slurm try srun --mpi=pmix or --mpi=pmi2 (srun --mpi=list)'
  throw new LoopLMError('PARALLEL', `${found}: ${remedy}`, { operation })
}

let inOrder = false

/**
 * Tells that all processes end now, because of an error that all have or an interruption. Then no process must end the others,
 * whatever the exit code.
 */
export function endInOrder(): void {
  inOrder = true
}

/** Makes this process end together with the others. */
function endTogether(world: NativeWorld): void {
  let failure: string | undefined
  process.on('uncaughtExceptionMonitor', (error: unknown) => {
    failure = (error as Error | undefined)?.stack ?? errorMessage(error)
  })
  process.on('exit', (code) => {
    // A running operation would wait for a process that has ended.
    if ((code === 0 || inOrder) && native().parallelIdle(world)) native().parallelClose(world)
    else native().parallelAbort(world, failure ?? `the process ended with exit code ${code}`, code === 0 ? 1 : code & 255)
  })
}

/**
 * Training by many processes: `mpirun -n 4 node train.js`.
 *
 * @example
 * ```ts
 * const world = await parallel.init()
 * const [tokens] = await world.sum([1000])
 * if (world.rank === 0) console.log(`${tokens} tokens on ${world.size} processes`)
 * ```
 */
export const parallel: {
  /** Joins the processes that a launcher started together with this one. */
  readonly init: typeof init
} = { init }
