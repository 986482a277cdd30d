// The processes that make a run together: the one place where trainers and evaluations know of them.
import { deserialize, serialize } from 'node:v8'
import { type ErrorCode, LoopLMError, toLoopLMError } from '../errors.js'
import { largest } from '../extremes.js'
import type { RealArray } from '../model/types.js'
import { type World, worldOfLauncher } from '../parallel.js'

/** What a rank tells the others: what it is at, and what came of it. */
interface Outcome {
  operation: string
  value?: unknown
  failed?: { code: ErrorCode; message: string }
}

const failures = new WeakMap<object, number>() // errors that every process throws, and the rank that they come from

/** The rank that an error comes from which every process throws; undefined: this process alone does. */
export function originOf(error: unknown): number | undefined {
  for (let cause = error; typeof cause === 'object' && cause !== null; cause = (cause as { cause?: unknown }).cause) {
    const rank = failures.get(cause)
    if (rank !== undefined) return rank
  }
  return undefined
}

/**
 * This process among those that share a run. All of them call the same methods in the same order; alone, nothing is sent and nothing is
 * copied.
 */
export class Ranks {
  /** undefined: this process is alone. */
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
   * @param operation names the caller in an error
   */
  static found(operation: string): Ranks {
    return new Ranks(worldOfLauncher(operation))
  }

  /** Whether this process writes folders, reports and warnings. */
  get leads(): boolean {
    return this.rank === 0
  }

  /** Seconds that this process has spent on waiting for others and on telling them. */
  get waited(): number {
    return this.#waited
  }

  /** Adds seconds that this process has waited elsewhere. */
  waitedFor(seconds: number): void {
    this.#waited += seconds
  }

  /**
   * Runs an action in every process.
   *
   * @param operation what all of them are at
   * @param action what it returns must be data: no functions, no instances of classes
   * @returns what each process has, by rank
   * @throws LoopLMError in every process alike where one of them fails; PARALLEL where processes are at different operations
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
      const { code, message } = toLoopLMError(cause, operation)
      told = serialize({ operation, failed: { code, message } } satisfies Outcome)
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
      const { code, message } = outcomes[failed]!.failed!
      const thrown = failed === this.rank ? error : new LoopLMError(code, `rank ${failed}: ${message}`, { operation })
      if (typeof thrown === 'object' && thrown !== null) failures.set(thrown, failed)
      throw thrown
    }
    return outcomes.map((outcome, rank) => (rank === this.rank ? value : outcome.value) as Value)
  }

  /** What an action returns here, once it has been carried out in every process. @throws LoopLMError in every process alike */
  async each<Value>(operation: string, action: () => Value | Promise<Value>): Promise<Value> {
    let value: Value | undefined
    await this.all(operation, async () => {
      value = await action()
    })
    return value as Value
  }

  /** Runs an action in the first process, and then in the others. @throws LoopLMError in every process alike */
  async leaderFirst(operation: string, action: () => Promise<void>): Promise<void> {
    await this.each(operation, async () => (this.leads ? action() : undefined))
    await this.each(operation, async () => (this.leads ? undefined : action()))
  }

  /** Refuses processes whose facts differ. @throws LoopLMError PARALLEL in every process, naming the fact and the ranks */
  async agree(facts: () => Readonly<Record<string, string>> | Promise<Readonly<Record<string, string>>>, operation: string) {
    if (this.world !== undefined) await this.world.agree(await facts(), operation)
  }

  /** What an action returns that the first process alone runs. @throws LoopLMError in every process alike */
  async first<Value>(operation: string, action: () => Value | Promise<Value>): Promise<Value> {
    const values = await this.all(operation, async () => (this.leads ? await action() : undefined))
    return values[0] as Value
  }

  /** Whether something is true in any of the processes. */
  async any(operation: string, is: boolean): Promise<boolean> {
    return (await this.all(operation, () => is)).includes(true)
  }

  /** The largest value of each name. */
  async most<Values extends Record<string, number>>(operation: string, own: Values): Promise<Values> {
    const all = await this.all(operation, () => own)
    return Object.fromEntries(Object.keys(own).map((name) => [name, largest(all.map((one) => one[name]!))])) as Values
  }

  /**
   * Values of rows that are shared out.
   *
   * @param shares the rows of each process; every row belongs to one of them
   * @param action returns a value for each of this process's rows; not called where it has none
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

  /** The sums of arrays of numbers over the processes, added in the order of the ranks. */
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

  /** Every size-th of so many rows, for each process. */
  strided(count: number): number[][] {
    return Array.from({ length: this.size }, (_, rank) => {
      const own: number[] = []
      for (let row = rank; row < count; row += this.size) own.push(row)
      return own
    })
  }
}

/** The rank whose error is everybody's: the lowest one, of those that were not merely aborted where there are others. */
function firstFailure(outcomes: readonly Outcome[]): number | undefined {
  const failed = [...outcomes.keys()].filter((rank) => outcomes[rank]!.failed !== undefined)
  return failed.find((rank) => outcomes[rank]!.failed!.code !== 'ABORTED') ?? failed[0]
}
