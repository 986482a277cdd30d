// Checks JSON from outside: a deeply nested value would overflow the stack of recursive functions.

/** The deepest accepted nesting of arrays and objects. */
export const maxJsonDepth = 128

/** The error message for deeper nesting. */
export const tooDeep = `arrays and objects may be nested ${maxJsonDepth} deep at most`

/** Whether arrays and objects are nested too deeply. Takes time linear in the text, which need not be valid JSON. */
export function nestsTooDeep(text: string): boolean {
  let depth = 0
  let quoted = false
  for (let i = 0; i < text.length; i++) {
    const character = text[i]
    if (quoted) {
      if (character === '\\') i++
      else if (character === '"') quoted = false
    } else if (character === '"') quoted = true
    else if (character === '[' || character === '{') {
      if (++depth > maxJsonDepth) return true
    } else if (character === ']' || character === '}') depth--
  }
  return false
}
