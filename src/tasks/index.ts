import { LoopLMError } from '../errors.js'
import { addition } from './addition.js'
import { chain } from './chain.js'
import { mano } from './mano.js'
import { parity } from './parity.js'
import { pointerChasing } from './pointer-chasing.js'
import { sorting } from './sorting.js'
import type { Task } from './task.js'

export { type AdditionOptions, addition } from './addition.js'
export { type ChainOptions, chain } from './chain.js'
export { type ManoOptions, mano } from './mano.js'
export { type ParityOptions, parity } from './parity.js'
export { type PointerChasingOptions, pointerChasing } from './pointer-chasing.js'
export { type SortingOptions, sorting } from './sorting.js'
export { defineTask, type Problem, type Split, type Task, type TaskDefinition } from './task.js'

/** The functions of {@link tasks}. */
export interface Tasks {
  /** Sums of two numbers. */
  readonly addition: typeof addition
  /** Modular arithmetic on prefix expressions. */
  readonly mano: typeof mano
  /** Lists to sort. */
  readonly sorting: typeof sorting
  /** Pointers to follow. */
  readonly pointerChasing: typeof pointerChasing
  /** Whether a string of bits has an odd number of ones. */
  readonly parity: typeof parity
  /** Chains of assignments modulo a number. */
  readonly chain: typeof chain
}

/** The built-in tasks by name. */
export const tasks: Tasks = { addition, mano, sorting, pointerChasing, parity, chain }

/** Name of a built-in task. */
export type TaskName = keyof Tasks

/** A built-in task by name, together with its options, as in a configuration file. */
export type TaskConfig = {
  [Name in TaskName]: {
    /** The name of the task. */
    name: Name
  } & Parameters<Tasks[Name]>[0]
}[TaskName]

/**
 * Creates a built-in task from a configuration, for example from YAML.
 *
 * @param config the task's name together with its options
 * @throws LoopLMError NOT_FOUND for an unknown name, INVALID_CONFIG naming the rejected options
 *
 * @example
 * ```ts
 * const task = createTask({ name: 'addition', digits: 5 })
 * ```
 */
export function createTask(config: TaskConfig): Task {
  if (typeof config !== 'object' || config === null) {
    throw new LoopLMError('INVALID_CONFIG', 'a task is an object such as { name: "addition" }', { operation: 'createTask' })
  }
  const { name, ...options } = config
  if (!Object.hasOwn(tasks, name)) {
    const message = `no task ${JSON.stringify(name)}; the tasks are ${Object.keys(tasks).join(', ')}`
    throw new LoopLMError('NOT_FOUND', message, { operation: 'createTask' })
  }
  return (tasks[name] as (options: object) => Task)(options)
}
