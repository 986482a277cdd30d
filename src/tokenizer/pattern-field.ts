import type { Fields } from './fields.js'
import { onigurumaFinder } from './oniguruma.js'
import { type Finder, stringFinder } from './patterns.js'

/**
 * The field `pattern` of a Split or a Replace: `{ "String": … }` or `{ "Regex": … }`. The latter is an Oniguruma
 * expression.
 */
export function readPattern(fields: Fields): Finder {
  const pattern = fields.object('pattern')
  if (pattern.value('String') !== undefined) return stringFinder(pattern.string('String'))
  const expression = pattern.string('Regex')
  try {
    return onigurumaFinder(expression)
  } catch (cause) {
    const problem = `${JSON.stringify(expression)} cannot be carried out: ${(cause as Error).message}`
    throw fields.invalid('pattern.Regex', problem, cause)
  }
}
