import { LoopLMError } from '../errors.js'
import { describe } from '../validation/arguments.js'

/**
 * The content of the last `\boxed{…}` whose braces balance, or undefined. An unclosed box does not count. `\{` and `\}` are
 * characters, not braces.
 *
 * @example
 * ```ts
 * lastBoxed('so \\boxed{\\frac{1}{2}}.') // '\\frac{1}{2}'
 * ```
 */
export function lastBoxed(text: string): string | undefined {
  if (typeof text !== 'string') {
    throw new LoopLMError('INVALID_ARGUMENT', `text must be a string, got ${describe(text)}`, { operation: 'lastBoxed' })
  }
  const open: number[] = [] // for each unclosed brace: where a box's content starts, or -1
  let start = -1
  let content: string | undefined
  for (const match of text.matchAll(/\\boxed\s*\{|[{}]|\\[{}]|\\\\(?!boxed)/g)) {
    const [token] = match
    if (token === '{') open.push(-1)
    else if (token.startsWith('\\boxed')) open.push(match.index + token.length)
    else if (token === '}') {
      const closed = open.pop() ?? -1
      if (closed > start) {
        start = closed
        content = text.slice(start, match.index)
      }
    }
  }
  return content
}
