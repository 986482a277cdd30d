// JSON from outside: a deeply nested value would overflow the stack of the next recursive function.

/** Deepest nesting of arrays and objects that is accepted. */
export const maxJsonDepth = 128

/** How a refusal says it. */
export const tooDeep = `arrays and objects may be nested ${maxJsonDepth} deep at most`

/** Whether arrays and objects are nested deeper than is accepted. Takes time linear in the text, which need not be JSON. */
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
