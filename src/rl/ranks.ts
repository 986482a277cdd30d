// The processes that share a run. Trainers and evaluations only know of them through this file.
import { deserialize, serialize } from 'node:v8'
import { type ErrorCode, LoopLMError, toLoopLMError } from '../errors.js'
import { largest } from '../extremes.js'
import type { RealArray } from '../model/types.js'
import { type World, worldOfLauncher } from '../parallel.js'

/** What a rank sends to the others: its current operation, and the result or error. */
interface Outcome {
  operation: string
  value?: unknown
  /** `reason`: why a signal aborted the operation, for example SIGINT. */
  failed?: { code: ErrorCode; message: string; reason: string | undefined }
}

const failures = new WeakMap<object, number>() // errors that every process throws, and the rank where they occurred

/** The rank where an error occurred that every process throws. undefined if only this process throws it. */
export function originOf(error: unknown): number | undefined {
  for (let cause = error; typeof cause === 'object' && cause !== null; cause = (cause as { cause?: unknown }).cause) {
    const rank = failures.get(cause)
    if (rank !== undefined) return rank
  }
  return undefined
}

/**
 * This process among those that share a run. All of them call the same methods in the same order. A single process sends and
 * copies nothing.
 */
export class Ranks {
  /** undefined: this is the only process. */
  readonly world: World | undefined
  readonly rank: number
  readonly size: number
  #waited = 0

  constructor(world: World | undefined) {
    this.world = world
    this.rank = world?.rank ?? 0
    this.size = world?.size ?? 1
  }

  /**
   * The processes that a launcher started together with this one.
   *
   * @param operation names the caller in errors
   */
  static found(operation: string): Ranks {
    return new Ranks(worldOfLauncher(operation))
  }

  /** Whether this process writes folders, reports and warnings. */
  get leads(): boolean {
    return this.rank === 0
  }

  /** Seconds that this process has spent on waiting for the others and on communication. */
  get waited(): number {
    return this.#waited
  }

  /** Adds seconds that this process has waited elsewhere. */
  waitedFor(seconds: number): void {
    this.#waited += seconds
  }

  /**
   * Runs an action in every process and exchanges the results.
   *
   * @param operation the operation that all processes must be at
   * @param action its result must be plain data: no functions, no class instances
   * @returns the result of each process, by rank
   * @throws LoopLMError the same in every process if one of them fails; PARALLEL if the processes are at different operations
   */
  async all<Value>(operation: string, action: () => Value | Promise<Value>): Promise<Value[]> {
    const { world } = this
    if (world === undefined) return [await action()]
    let value: Value | undefined
    let error: unknown
    let told: Uint8Array
    try {
      value = await action()
      told = serialize({ operation, value } satisfies Outcome)
    } catch (cause) {
      error = cause
      const failed = toLoopLMError(cause, operation)
      const { code, message } = failed
      const reason = typeof failed.cause === 'string' ? failed.cause : undefined
      told = serialize({ operation, failed: { code, message, reason } } satisfies Outcome)
    }
    const begun = performance.now()
    const outcomes = (await world.gatherBytes(told)).map((bytes) => deserialize(bytes) as Outcome)
    this.#waited += (performance.now() - begun) / 1000
    const astray = outcomes.findIndex((outcome) => outcome.operation !== operation)
    if (astray !== -1) {
      const message = `rank ${this.rank} is at ${operation}, rank ${astray} at ${outcomes[astray]!.operation}`
      throw new LoopLMError('PARALLEL', `${message}: every process must make the same calls in the same order`, { operation })
    }
    const failed = firstFailure(outcomes)
    if (failed !== undefined) {
      const { code, message, reason: cause } = outcomes[failed]!.failed!
      const thrown = failed === this.rank ? error : new LoopLMError(code, `rank ${failed}: ${message}`, { operation, cause })
      if (typeof thrown === 'object' && thrown !== null) failures.set(thrown, failed)
      throw thrown
    }
    return outcomes.map((outcome, rank) => (rank === this.rank ? value : outcome.value) as Value)
  }

  /**
   * Runs an action in every process. Returns this process's result once all have finished.
   * @throws LoopLMError the same in every process
   */
  async each<Value>(operation: string, action: () => Value | Promise<Value>): Promise<Value> {
    let value: Value | undefined
    await this.all(operation, async () => {
      value = await action()
    })
    return value as Value
  }

  /**
   * Runs an action in the first process, and then in the others.
   * @throws LoopLMError the same in every process
   */
  async leaderFirst(operation: string, action: () => Promise<void>): Promise<void> {
    await this.each(operation, async () => (this.leads ? action() : undefined))
    await this.each(operation, async () => (this.leads ? undefined : action()))
  }

  /**
   * Checks that facts are equal in all processes.
   * @throws LoopLMError PARALLEL in every process, naming the fact and the ranks
   */
  async agree(facts: () => Readonly<Record<string, string>> | Promise<Readonly<Record<string, string>>>, operation: string) {
    if (this.world !== undefined) await this.world.agree(await facts(), operation)
  }

  /**
   * Runs an action in the first process only, and returns its result in all of them.
   * @throws LoopLMError the same in every process
   */
  async first<Value>(operation: string, action: () => Value | Promise<Value>): Promise<Value> {
    const values = await this.all(operation, async () => (this.leads ? await action() : undefined))
    return values[0] as Value
  }

  /** Whether a condition is true in any process. */
  async any(operation: string, is: boolean): Promise<boolean> {
    return (await this.all(operation, () => is)).includes(true)
  }

  /** The largest value over the processes, for each name. */
  async most<Values extends Record<string, number>>(operation: string, own: Values): Promise<Values> {
    const all = await this.all(operation, () => own)
    return Object.fromEntries(Object.keys(own).map((name) => [name, largest(all.map((one) => one[name]!))])) as Values
  }

  /**
   * Distributes rows over the processes and collects a value for each.
   *
   * @param shares the rows of each process; every row belongs to exactly one
   * @param action returns a value for each of this process's rows; not called if it has none
   * @returns a value for each row, in the order of the rows
   */
  async rows<Value>(
    operation: string,
    shares: readonly (readonly number[])[],
    action: (own: readonly number[]) => Value[] | Promise<Value[]>,
  ): Promise<Value[]> {
    const own = shares[this.rank]!
    if (this.world === undefined) return own.length === 0 ? [] : action(own)
    const values = await this.all(operation, async () => (own.length === 0 ? [] : await action(own)))
    const ordered: Value[] = []
    for (const [rank, share] of shares.entries()) for (const [k, row] of share.entries()) ordered[row] = values[rank]![k]!
    return ordered
  }

  /** Sums arrays over the processes, in the order of the ranks. */
  async sumOfArrays(operation: string, own: ReadonlyMap<string, RealArray>): Promise<Map<string, RealArray>> {
    const sums = new Map(own)
    if (this.world === undefined) return sums
    for (const [name, values] of own) {
      const [sum, ...more] = await this.all(`${operation} ${name}`, () => values.slice())
      for (const part of more) for (let i = 0; i < sum!.length; i++) sum![i]! += part[i]!
      sums.set(name, sum!)
    }
    return sums
  }

  /** The rows of each process: rank r gets rows r, r + size, r + 2 · size and so on. */
  strided(count: number): number[][] {
    return Array.from({ length: this.size }, (_, rank) => {
      const own: number[] = []
      for (let row = rank; row < count; row += this.size) own.push(row)
      return own
    })
  }
}

/** The rank whose error all processes throw: the lowest one that failed, preferring errors other than ABORTED. */
function firstFailure(outcomes: readonly Outcome[]): number | undefined {
  const failed = [...outcomes.keys()].filter((rank) => outcomes[rank]!.failed !== undefined)
  return failed.find((rank) => outcomes[rank]!.failed!.code !== 'ABORTED') ?? failed[0]
}
