import { setMaxListeners } from 'node:events'
import { z } from 'zod'
import { changedIntegers } from '../data/exact-json.js'
import type { ToolCall } from '../data/tool-calls.js'
import { errorMessage, LoopLMError } from '../errors.js'
import { checkOptions } from '../validation/arguments.js'
import { within } from './within.js'

/** What a tool gets besides its arguments. */
export interface ToolContext {
  /** Fires if the call takes too long or the run is aborted. */
  signal: AbortSignal
}

/** A function that the model may call. {@link defineTool} creates one. */
export interface Tool {
  /** The name that the model calls. */
  readonly name: string
  /** What the tool does, for the model. */
  readonly description: string
  /** JSON Schema of the arguments, which the chat template shows to the model. */
  readonly parameters: Readonly<Record<string, unknown>>
  /**
   * Checks the arguments and runs the tool.
   *
   * @returns what the model reads: strings are unchanged, everything else becomes JSON
   * @throws LoopLMError INVALID_ARGUMENT if the arguments do not fit `parameters`; errors of `run`
   */
  call(args: unknown, context: ToolContext): Promise<string>
}

/** A Zod schema. */
type ZodSchema<Arguments> = z.ZodType<Arguments>

/** The argument of {@link defineTool}. */
export interface ToolDefinition<Arguments> {
  /** The tool's name: letters, digits, `_` and `-`. */
  name: string
  /** What the tool does, for the model. */
  description: string
  /**
   * A Zod schema, or a JSON Schema of an object. Long ids should be strings: calls with integers that JavaScript would round
   * fail.
   */
  parameters: ZodSchema<Arguments> | Readonly<Record<string, unknown>>
  /**
   * Runs the tool. Returns what the model reads: strings are unchanged, everything else becomes JSON. It may be asynchronous.
   */
  run(args: Arguments, context: ToolContext): unknown
}

const definition = { name: true, description: true, parameters: true, run: true } as const

/**
 * Defines a tool that models can call. Calls whose arguments do not fit `parameters` do not run; the model gets an error
 * message.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the field
 *
 * @example
 * ```ts
 * import { z } from 'zod'
 *
 * const add = defineTool({
 *   name: 'add',
 *   description: 'Adds two numbers.',
 *   parameters: z.object({ a: z.number(), b: z.number() }),
 *   run: ({ a, b }) => a + b,
 * })
 * ```
 */
export function defineTool<Schema extends z.ZodType>(
  tool: Omit<ToolDefinition<z.output<Schema>>, 'parameters'> & {
    /** A Zod schema, which also types the argument of `run`. */
    parameters: Schema
  },
): Tool
/** Defines a tool whose arguments a JSON Schema describes. */
export function defineTool(
  tool: Omit<ToolDefinition<Record<string, unknown>>, 'parameters'> & {
    /** A JSON Schema of an object. */
    parameters: Readonly<Record<string, unknown>>
  },
): Tool
export function defineTool<Arguments>(tool: ToolDefinition<Arguments>): Tool {
  const operation = 'defineTool'
  checkOptions(tool, definition, operation, 'tool')
  const { name, description, parameters, run } = tool
  const refuse = (field: string, message: string, cause?: unknown) =>
    new LoopLMError('INVALID_ARGUMENT', `${field} ${message}`, { operation, cause })
  if (typeof name !== 'string' || !/^[\w-]{1,64}$/.test(name)) throw refuse('name', 'must be 1 to 64 letters, digits, "_" or "-"')
  if (typeof description !== 'string' || description === '')
    throw refuse('description', 'must be a string that says what the tool does')
  if (typeof run !== 'function') throw refuse('run', 'must be a function')
  if (typeof parameters !== 'object' || parameters === null)
    throw refuse('parameters', 'must be a schema of Zod or a JSON Schema of an object')
  if (!('_zod' in parameters) && ('_def' in parameters || '~standard' in parameters)) {
    const remedy = "pass one of Zod 4 (import { z } from 'zod/v4'), or a JSON Schema of an object"
    throw refuse('parameters', `is a schema of Zod 3 or of another library; ${remedy}`)
  }
  const { schema, json } = schemaOf(parameters, refuse)
  if (json.type !== 'object') throw refuse('parameters', 'must describe an object: arguments have names')
  return {
    name,
    description,
    parameters: json,
    async call(args, context) {
      const parsed = schema.safeParse(args)
      if (!parsed.success) {
        const wrong = parsed.error.issues.map(
          ({ path, message }) => `${path.length === 0 ? 'arguments' : path.join('.')}: ${message}`,
        )
        throw new LoopLMError('INVALID_ARGUMENT', `wrong arguments: ${wrong.join('; ')}`, { operation: name })
      }
      const result = await run(parsed.data as Arguments, context)
      return typeof result === 'string' ? result : (JSON.stringify(result) ?? 'null')
    },
  }
}

function schemaOf(
  parameters: object,
  refuse: (field: string, message: string, cause?: unknown) => LoopLMError,
): { schema: z.ZodType; json: Record<string, unknown> } {
  try {
    if ('_zod' in parameters) {
      const schema = parameters as z.ZodType
      const { $schema: _, ...json } = z.toJSONSchema(schema, { io: 'input' }) as Record<string, unknown>
      return { schema, json }
    }
    return { schema: z.fromJSONSchema(parameters as Parameters<typeof z.fromJSONSchema>[0]), json: { ...parameters } }
  } catch (cause) {
    throw refuse('parameters', `cannot be read: ${(cause as Error).message}`, cause)
  }
}

/** Tools in the format that chat templates expect. */
export function toolSchemas(tools: readonly Tool[]): object[] {
  return tools.map(({ name, description, parameters }) => ({ type: 'function', function: { name, description, parameters } }))
}

/** The result of a call. */
export interface ToolResult {
  content: string
  failed: boolean
}

/** Runs the tool calls of a step, with limits on concurrency and on time per call. */
export class ToolRunner {
  readonly #timeout: number
  readonly #signal: AbortSignal
  #free: number
  readonly #waiting: (() => void)[] = []

  /** @param timeout in seconds; 0: no limit */
  constructor({ concurrency, timeout, signal }: { concurrency: number; timeout: number; signal: AbortSignal }) {
    this.#free = concurrency
    this.#timeout = timeout
    this.#signal = signal
  }

  /**
   * Runs a call. Errors become results for the model.
   * @throws LoopLMError ABORTED by the run's signal
   */
  async run(tools: readonly Tool[], call: ToolCall): Promise<ToolResult> {
    if (this.#free === 0) await new Promise<void>((resolve) => this.#waiting.push(resolve))
    else this.#free--
    try {
      return { content: await this.#call(tools, call), failed: false }
    } catch (error) {
      this.#signal.throwIfAborted()
      return { content: `Error: ${messageOf(error)}`, failed: true }
    } finally {
      const next = this.#waiting.shift()
      if (next === undefined) this.#free++
      else next()
    }
  }

  async #call(tools: readonly Tool[], { function: { name, arguments: text } }: ToolCall): Promise<string> {
    this.#signal.throwIfAborted()
    const tool = tools.find((tool) => tool.name === name)
    if (tool === undefined)
      throw new Error(`there is no tool "${name}"; there are: ${tools.map(({ name }) => name).join(', ') || 'none'}`)
    const [changed] = changedIntegers(text)
    if (changed !== undefined)
      throw new Error(`wrong arguments: the integer ${changed} would become ${Number(changed)}; write it as a string`)
    const controller = new AbortController()
    setMaxListeners(0, this.#signal)
    const stop = () => controller.abort(this.#signal.reason)
    this.#signal.addEventListener('abort', stop)
    const late = () => {
      const error = new LoopLMError('ABORTED', `${name} gave no answer within ${this.#timeout} s`)
      controller.abort(error)
      return error
    }
    try {
      const answer = tool.call(JSON.parse(text), { signal: controller.signal })
      return await within(answer, this.#timeout, this.#signal, late)
    } finally {
      this.#signal.removeEventListener('abort', stop)
    }
  }
}

function messageOf(error: unknown): string {
  return errorMessage(error).split('\n')[0]!.slice(0, 500)
}
