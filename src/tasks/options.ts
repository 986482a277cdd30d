import type { z } from 'zod'
import { configError } from '../errors.js'

/**
 * Checks a task's options and fills in their defaults.
 *
 * @throws LoopLMError INVALID_CONFIG naming the task and every refused option
 */
export function parseOptions<Schema extends z.ZodType>(task: string, schema: Schema, options: unknown): z.output<Schema> {
  const result = schema.safeParse(options)
  if (!result.success) throw configError(`task ${task}`, result.error)
  return result.data
}
