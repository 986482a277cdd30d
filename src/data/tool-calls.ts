// The parts of a response in the format of Qwen's, Hermes' and DeepSeek's templates: thoughts, text, and function calls.
//   <think>
//   The sum is needed.
//   </think>
//   <tool_call>
//   {"name": "add", "arguments": {"a": 1, "b": 2}}
//   </tool_call>
import { randomUUID } from 'node:crypto'
import { nestsTooDeep } from '../validation/json-depth.js'
import { isJsonObject, parseExactJson, writeExactJson } from './exact-json.js'

/** A call in OpenAI's format. */
export interface ToolCall {
  /** Links the result of the tool to the call. */
  id: string
  /** As in OpenAI's API. */
  type: 'function'
  /** The called function. */
  function: {
    /** The name of the tool. */
    name: string
    /** A JSON object as a string, with numbers as the model wrote them. */
    arguments: string
  }
}

/** The parts of a response that are now certain. */
export interface AnswerParts {
  text: string
  /** The text between `<think>` and `</think>`. */
  reasoning: string
  calls: ToolCall[]
}

const beginCall = '<tool_call>'
const endCall = '</tool_call>'
const beginThought = '<think>'
const endThought = '</think>'

/** By state: the tags that end it, and a pattern that finds the first one. */
const places = {
  text: marks(beginCall, beginThought),
  prose: marks(beginThought), // text in which calls are ignored
  thought: marks(endThought),
  call: marks(endCall),
}

/** Whether a prompt ends inside a thought. Templates that make the model think write it so. */
export function opensThought(prompt: string): boolean {
  return prompt.trimEnd().endsWith(beginThought)
}

/**
 * Separates thoughts and calls from a growing text, in time linear in its length. White space around them is dropped, except
 * before them if text follows. An empty line separates thoughts. Invalid calls (no JSON, no name, arguments that are not an
 * object, nested too deeply) stay text, with their tags. Text inside a thought is never a call. A tag after a backtick is a
 * quotation and stays text. So is the end of a call inside a JSON string of it. Such a string ends at the latest with its line.
 */
export class ToolCallStream {
  readonly #most: number
  readonly #calls: 'take' | 'drop' | 'keep'
  readonly #leading: boolean
  #made = 0
  #place: keyof typeof places
  #tail = '' // possibly the beginning of a tag
  #last = '' // the character before #tail
  #inside: string[] = [] // text of the current call
  #string: '' | '"' | '\\' = '' // in a call: nothing, inside a JSON string, or behind a backslash of it
  #written = false // whether there was text
  readonly #text = new HeldSpace()
  #thought = new HeldSpace(true)
  #parting = '' // goes before the next thought

  /**
   * @param most number of calls after which everything is dropped
   * @param options.calls `take` them, `drop` them together with text that looks like one, or `keep` them in the text; defaults
   *   to `take`
   * @param options.thinking whether the text begins inside a thought, see {@link opensThought}; defaults to false
   * @param options.leading whether tags behind the first other text are text, as inside JSON; defaults to false
   */
  constructor(
    most = Number.POSITIVE_INFINITY,
    {
      calls = 'take',
      thinking = false,
      leading = false,
    }: { calls?: 'take' | 'drop' | 'keep'; thinking?: boolean; leading?: boolean } = {},
  ) {
    this.#most = most
    this.#calls = calls
    this.#leading = leading
    this.#place = thinking ? 'thought' : this.#outside
  }

  /** Whether the wanted number of calls was reached. */
  get complete(): boolean {
    return this.#made >= this.#most
  }

  /** The parts that become certain with the next piece of text. */
  push(piece: string): AnswerParts {
    const parts: AnswerParts = { text: '', reasoning: '', calls: [] }
    const text = this.#tail + piece
    let from = 0
    for (;;) {
      const { pattern, longest, all } = places[this.#place]
      pattern.lastIndex = from
      const found = pattern.exec(text)
      if (found === null) {
        const end = text.length - possibleMark(text.slice(Math.max(from, text.length - longest + 1)), all)
        this.#add(parts, text.slice(from, end))
        this.#tail = text.slice(end)
        return parts
      }
      this.#add(parts, text.slice(from, found.index))
      if (this.#isText(found[0])) this.#add(parts, found[0])
      else this.#meet(parts, found[0])
      from = found.index + found[0].length
    }
  }

  /** The remaining parts when no text follows. A call without an end tag counts if its JSON is complete. */
  flush(): AnswerParts {
    const parts: AnswerParts = { text: '', reasoning: '', calls: [] }
    this.#add(parts, this.#tail)
    this.#tail = ''
    if (this.#place === 'call') this.#endCall(parts, '')
    if (!this.complete) parts.text += this.#text.end()
    return parts
  }

  get #outside(): 'text' | 'prose' {
    return this.#calls === 'keep' ? 'prose' : 'text'
  }

  #add(parts: AnswerParts, text: string): void {
    this.#last = text.at(-1) ?? this.#last
    if (this.#place === 'call') {
      this.#inside.push(text)
      this.#readStrings(text)
    } else if (this.#place === 'thought') {
      const more = this.complete ? '' : this.#thought.push(text)
      if (more === '') return
      parts.reasoning += this.#parting + more
      this.#parting = ''
    } else if (!this.complete) {
      const more = this.#text.push(text)
      this.#written ||= more !== ''
      parts.text += more
    }
  }

  #readStrings(text: string): void {
    for (const character of text) {
      if (this.#string === '\\') this.#string = '"'
      else if (character === '"') this.#string = this.#string === '' ? '"' : ''
      else if (character === '\n') this.#string = ''
      else if (character === '\\' && this.#string === '"') this.#string = '\\'
    }
  }

  /** Whether a tag is a part of the text around it. */
  #isText(mark: string): boolean {
    if (mark === endCall) return this.#string !== ''
    return this.#last === '`' || (this.#leading && this.#written)
  }

  #meet(parts: AnswerParts, mark: string): void {
    this.#last = ''
    if (mark === beginThought) this.#place = 'thought'
    else if (mark === beginCall) this.#place = 'call'
    else if (mark === endCall) this.#endCall(parts, mark)
    else {
      if (this.#thought.begun) this.#parting = '\n\n'
      this.#thought = new HeldSpace(true)
      this.#place = this.#outside
      this.#text.skip(this.#written)
    }
  }

  #endCall(parts: AnswerParts, mark: string): void {
    const inside = this.#inside.join('')
    this.#inside = []
    this.#string = ''
    this.#place = this.#outside
    const call = this.#calls === 'drop' ? undefined : parseCall(inside)
    if (call === undefined && this.#calls !== 'drop') {
      this.#add(parts, beginCall + inside + mark)
      return
    }
    if (call !== undefined && this.#made++ < this.#most) parts.calls.push(call)
    this.#text.skip(this.#written)
  }
}

/** Text in pieces. White space is held back until something follows it. */
class HeldSpace {
  #held: string[] = []
  #skipping: boolean

  constructor(skipping = false) {
    this.#skipping = skipping
  }

  push(piece: string): string {
    const text = this.#skipping ? piece.trimStart() : piece
    if (text === '') return ''
    this.#skipping = false
    const end = text.trimEnd()
    if (end === '') {
      this.#held.push(text)
      return ''
    }
    const ready = this.#held.join('') + end
    this.#held = [text.slice(end.length)]
    return ready
  }

  /** Whether there was text since white space was last dropped. */
  get begun(): boolean {
    return !this.#skipping
  }

  /** Drops the white space that comes next. Held white space only stays if it separates two texts. */
  skip(parting: boolean): void {
    this.#skipping = true
    if (!parting) this.#held = []
  }

  /** The white space at the end of the text. */
  end(): string {
    return this.#skipping ? '' : this.#held.join('')
  }
}

function marks(...all: string[]): { pattern: RegExp; longest: number; all: readonly string[] } {
  return { pattern: new RegExp(all.join('|'), 'g'), longest: Math.max(...all.map(({ length }) => length)), all }
}

/** Length of the longest suffix of a text that is the beginning of a tag. */
function possibleMark(end: string, all: readonly string[]): number {
  let length = end.length
  while (length > 0 && !all.some((mark) => mark.startsWith(end.slice(-length)))) length--
  return length
}

function parseCall(text: string): ToolCall | undefined {
  if (nestsTooDeep(text)) return undefined
  let call: { name?: unknown; arguments?: unknown } | null
  try {
    call = parseExactJson(text) as typeof call
  } catch {
    return undefined
  }
  const given = call?.arguments ?? {}
  if (typeof call?.name !== 'string' || !isJsonObject(given)) return undefined
  const id = `call_${randomUUID().replaceAll('-', '')}`
  return { id, type: 'function', function: { name: call.name, arguments: writeExactJson(given) } }
}
