/** The processes that train one model together: who started them, which MPI connects them, and their end. */
import { isMainThread } from 'node:worker_threads'
import { errorMessage, LoopLMError, toLoopLMError } from './errors.js'
import { call, type NativeWorld, native } from './native.js'
import { checkNumber, checkOptions, checkWord, describe } from './validation/arguments.js'

/** What started this process. */
export interface Launcher {
  name: string
  /** Processes that it started; undefined where it does not say. */
  size: number | undefined
  rank: number | undefined
  /** MPI libraries that work with this launcher, in the order in which they are tried. */
  libraries: readonly string[]
}

type Environment = Readonly<Record<string, string | undefined>>

/**
 * The launcher of a process.
 *
 * @param environment what it gave to the process, as `process.env`
 * @returns undefined where nothing was launched
 */
export function detectLauncher(environment: Environment): Launcher | undefined {
  const number = (name: string) => {
    const text = environment[name]
    return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined
  }
  const openMpi = number('OMPI_COMM_WORLD_SIZE')
  if (openMpi !== undefined)
    return { name: 'mpirun of Open MPI', size: openMpi, rank: number('OMPI_COMM_WORLD_RANK'), libraries: ['openmpi'] }
  // srun sets these for its steps alone; in the script of a job there are SLURM_NTASKS and SLURM_PROCID too, and one process
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

/** This process's number among those of its machine; 0 where no launcher says so. */
export function localRank(environment: Environment = process.env): number {
  if (joined !== undefined) return joined.world.localRank
  const names = ['OMPI_COMM_WORLD_LOCAL_RANK', 'MPI_LOCALRANKID', 'SLURM_LOCALID', 'PMIX_LOCAL_RANK']
  const found = detectLauncher(environment) && names.map((name) => environment[name]).find((text) => /^\d+$/.test(text ?? ''))
  return Number(found ?? 0)
}

/** Options of {@link parallel.init}. */
export interface ParallelOptions {
  /** `auto` (default): MPI where a launcher started more than one process. `mpi`: fails without it. `off`: this process alone. */
  backend?: 'auto' | 'mpi' | 'off' | undefined
  /** Seconds that an operation waits for other processes before it fails; default 600. */
  timeout?: number | undefined
}

/** An MPI or NCCL that looplm knows, and what became of it on this machine. */
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

/** Which of the libraries a launcher's processes use; undefined: none of them is there. */
export function chooseLibrary(launcher: Launcher, found: readonly ParallelLibrary[]): string | undefined {
  return launcher.libraries.find((name) => found.some((library) => library.name === name && library.available))
}

/**
 * The processes that run together, and this one's place among them. All of them make the same calls in the same order; a call
 * returns when every process has made it. {@link parallel.init} makes one.
 */
export class World {
  /** Of this process, from 0. */
  readonly rank: number
  /** How many processes there are. */
  readonly size: number
  /** Of this process among those of its machine. */
  readonly localRank: number
  /** `off`: this process is alone. */
  readonly backend: 'mpi' | 'off'
  /** Name and version of the MPI; undefined where this process is alone. */
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

  /** Bytes that this process has sent to others so far. */
  get bytesSent(): number {
    return native().parallelBytes(this.#native)
  }

  /**
   * Sums over all processes, added in the order of their ranks: the same bits everywhere and in every run.
   *
   * @param values of this process; as many in each
   * @throws LoopLMError PARALLEL naming operation, rank and cause
   */
  async sum(values: readonly number[]): Promise<number[]> {
    return this.#reduce('sum', values)
  }

  /** The largest of all processes, value by value. @throws LoopLMError PARALLEL */
  async max(values: readonly number[]): Promise<number[]> {
    return this.#reduce('max', values)
  }

  async #reduce(operation: 'sum' | 'max', values: readonly number[]): Promise<number[]> {
    const reduced = await call(`World.${operation}`, () =>
      native().parallelReduce(this.#native, operation, Float64Array.from(values)),
    )
    return Array.from(reduced)
  }

  /** What every process has, by rank. `value` is sent as JSON. @throws LoopLMError PARALLEL */
  async gather<Value>(value: Value): Promise<Value[]> {
    const parts = await this.gatherBytes(encode(value))
    return parts.map((part) => decode<Value>(part))
  }

  /** The bytes that every process has, by rank; as many as each of them likes. @throws LoopLMError PARALLEL */
  async gatherBytes(bytes: Uint8Array): Promise<Uint8Array[]> {
    return call('World.gather', () => native().parallelGather(this.#native, bytes))
  }

  /**
   * What one process has. `value` is sent as JSON.
   *
   * @param value the others' play no part
   * @param root the process that has it; default 0
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
   * @returns what each rank had for this one
   * @throws LoopLMError PARALLEL, INVALID_ARGUMENT
   */
  async exchange(parts: readonly Uint8Array[]): Promise<Uint8Array[]> {
    return call('World.exchange', () => native().parallelExchange(this.#native, parts))
  }

  /** Waits for all processes. @throws LoopLMError PARALLEL */
  async barrier(): Promise<void> {
    await call('World.barrier', () => native().parallelBarrier(this.#native))
  }

  /**
   * Refuses processes that do not run the same thing.
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

/** What `init` was called with, and its outcome. */
let joined: { backend: string; timeout: number; world: World } | undefined

/**
 * Joins the processes that a launcher started together with this one. A process joins once; later calls return the same world.
 *
 * Call it early: JavaScript stands still until all processes have come. When they do not come within `timeout`, the process ends with a
 * message on standard error. When this process ends, MPI ends with it. When it fails (an uncaught error, or an exit code other than 0), all processes end with
 * that exit code, so that none waits for ever.
 *
 * @returns a world of one where no launcher started several processes; no MPI is loaded then
 * @throws LoopLMError NATIVE_LOAD when there is no MPI for the launcher, with what was tried; PARALLEL when launcher and
 *   MPI disagree; INVALID_ARGUMENT naming the option; UNSUPPORTED in a worker thread
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

/** The processes that this one has joined; undefined: it is alone. */
export function joinedWorld(): World | undefined {
  return joined !== undefined && joined.world.size > 1 ? joined.world : undefined
}

/**
 * The world of a trainer or an evaluation: what this process has joined, or joins now where a launcher started it.
 *
 * @returns undefined where this process is alone, or chose backend `off`
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

/** An MPI that does not speak the launcher's protocol makes a world of one in every process. */
function checkPlace({ name, size }: Launcher, world: World, operation: string): void {
  if (size === undefined || size === world.size) return
  const found = `${name} started ${size} processes, but for ${world.library} there are ${world.size}`
  const remedy = 'use the mpirun or mpiexec of that MPI; under Slurm try srun --mpi=pmix or --mpi=pmi2 (srun --mpi=list)'
  throw new LoopLMError('PARALLEL', `${found}: ${remedy}`, { operation })
}

let inOrder = false

/** Every process ends now, by an error that all of them know or by an interruption: none has to end the others, whatever the exit code. */
export function endInOrder(): void {
  inOrder = true
}

/** From now on this process ends together with the others. */
function endTogether(world: NativeWorld): void {
  let failure: string | undefined
  process.on('uncaughtExceptionMonitor', (error: unknown) => {
    failure = (error as Error | undefined)?.stack ?? errorMessage(error)
  })
  process.on('exit', (code) => {
    // What is under way would wait for a process that has gone.
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
