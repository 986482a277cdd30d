// Calls of functions in what a model writes, in the form of the templates of Qwen and Hermes:
//   <tool_call>
//   {"name": "add", "arguments": {"a": 1, "b": 2}}
//   </tool_call>
import { randomUUID } from 'node:crypto'

/** A call as OpenAI's clients read it. */
export interface ToolCall {
  id: string
  type: 'function'
  function: {
    name: string
    /** A JSON object as text. */
    arguments: string
  }
}

export const toolCallEnd = '</tool_call>'
const begin = '<tool_call>'

/**
 * Takes the calls out of a text that grows. White space before a call belongs to it. What turns out not to be a call (no JSON, no name,
 * arguments that are no object) stays text, with its marks.
 */
export class ToolCallStream {
  readonly #most: number
  #made = 0
  #held = '' // what may become, or is, the inside of a call
  #inside = false
  #gap = '' // white space in front of the call that is inside
  #fresh = false // nothing but white space has followed the last call

  /** @param most calls after which everything else is dropped */
  constructor(most = Number.POSITIVE_INFINITY) {
    this.#most = most
  }

  /** What the next piece of text makes certain. */
  push(piece: string): { text: string; calls: ToolCall[] } {
    return this.#take(piece, false)
  }

  /** What is left when no text follows; a call whose end is missing, but whose JSON is whole, counts. */
  flush(): { text: string; calls: ToolCall[] } {
    return this.#take('', true)
  }

  #take(piece: string, last: boolean): { text: string; calls: ToolCall[] } {
    this.#held += piece
    let text = ''
    const calls: ToolCall[] = []
    while (this.#held !== '') {
      const mark = this.#inside ? toolCallEnd : begin
      const at = this.#held.indexOf(mark)
      if (at === -1 && this.#inside && !last) break
      if (at === -1 && !this.#inside) {
        const end = last ? this.#held.length : this.#held.length - possibleBegin(this.#held)
        text += this.#outside(this.#held.slice(0, end))
        this.#held = this.#held.slice(end)
        break
      }
      const before = at === -1 ? this.#held : this.#held.slice(0, at)
      this.#held = at === -1 ? '' : this.#held.slice(at + mark.length)
      if (this.#inside) {
        const call = parseCall(before)
        if (call === undefined) text += this.#outside(this.#gap + begin + before + (at === -1 ? '' : mark))
        else {
          if (this.#made++ < this.#most) calls.push(call)
          this.#fresh = true
        }
      } else {
        const end = before.trimEnd()
        this.#gap = before.slice(end.length)
        text += this.#outside(end)
      }
      this.#inside = !this.#inside
    }
    return { text, calls }
  }

  #outside(text: string): string {
    if (this.#made >= this.#most) return ''
    if (!this.#fresh) return text
    const rest = text.trimStart()
    this.#fresh = rest === ''
    return rest
  }
}

/** Length of the end of the text, white space in front included, that a call may begin with. */
function possibleBegin(text: string): number {
  let mark = Math.min(begin.length - 1, text.length)
  while (mark > 0 && !begin.startsWith(text.slice(-mark))) mark--
  return text.length - text.slice(0, text.length - mark).trimEnd().length
}

function parseCall(text: string): ToolCall | undefined {
  let call: { name?: unknown; arguments?: unknown } | null
  try {
    call = JSON.parse(text)
  } catch {
    return undefined
  }
  const given = call?.arguments ?? {}
  if (typeof call?.name !== 'string' || typeof given !== 'object' || Array.isArray(given)) return undefined
  const id = `call_${randomUUID().replaceAll('-', '')}`
  return { id, type: 'function', function: { name: call.name, arguments: JSON.stringify(given) } }
}
