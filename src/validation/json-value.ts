import { type ErrorCode, LoopLMError } from '../errors.js'
import { describe } from './arguments.js'

/** The deepest accepted nesting of JSON from a file. Functions that save or hash it are recursive. */
export const maxJsonDepth = 256

/** Assigning to this key sets an object's prototype, and the value is silently lost. */
export const prototypeKey = '__proto__'

/**
 * Rejects a value that JSON cannot represent exactly. Otherwise saving it would fail after all the work. Fields that are
 * undefined are absent.
 *
 * @param path the value's name in errors; its fields follow a dot
 * @throws LoopLMError naming the field: a number that is not finite, a BigInt, a function, a symbol, a circular reference,
 *   nesting of more than 256 levels, or a key `__proto__`
 */
export function checkJson(value: unknown, path: string, operation: string, code: ErrorCode = 'INVALID_CONFIG'): void {
  const above = new Set<object>()
  const done = new Set<object>() // objects that were already checked at another position
  const refuse = (where: string, problem: string) =>
    new LoopLMError(code, `${where === '' ? 'config' : where}: ${problem}`, { operation })
  const visit = (inner: unknown, where: string): void => {
    if (inner === undefined || inner === null || typeof inner === 'string' || typeof inner === 'boolean') return
    if (typeof inner === 'number') {
      if (Number.isFinite(inner)) return
      throw refuse(where, `must be a finite number to be saved as JSON, got ${inner}`)
    }
    if (typeof inner !== 'object') throw refuse(where, `cannot be saved as JSON, got ${describe(inner)}`)
    if (above.has(inner)) throw refuse(where, 'is an object within itself, which cannot be saved as JSON')
    if (above.size >= maxJsonDepth) throw refuse(where, `is nested more than ${maxJsonDepth} deep`)
    if (done.has(inner)) return
    above.add(inner)
    for (const [key, field] of Object.entries(inner)) {
      if (key === prototypeKey) throw refuse(where, `${prototypeKey} cannot be a key`)
      visit(field, where === '' ? key : `${where}.${key}`)
    }
    above.delete(inner)
    done.add(inner)
  }
  visit(value, path)
}

/** Whether a value is nested more than `depth` levels. */
export function isDeeper(value: unknown, depth: number): boolean {
  if (typeof value !== 'object' || value === null) return false
  if (depth === 0) return true
  for (const inner of Array.isArray(value) ? value : Object.values(value)) if (isDeeper(inner, depth - 1)) return true
  return false
}
