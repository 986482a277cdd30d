// Constraints of a response as grammar rules: JSON for `response_format`, calls for `tool_choice` and for tools with `strict`.
import { LoopLMError } from '../errors.js'
import { type SchemaRules, schemaRules, sharedRules } from '../grammar/json-schema.js'
import { literalText } from '../grammar/regex.js'
import { HttpError } from './http-error.js'
import type { ChatRequest } from './request.js'

/** Text without a tag such as `<tool_call>`: "<" is never followed by "t". */
const freeRules = ['free ::= ([^<] | "<" [^t<])*', 'thought ::= [^<]* "</think>" [\\n]{0,2}']

/**
 * The grammar rules of a response, or undefined if it is unconstrained.
 *
 * @param thinking whether the response begins inside a thought, which is unconstrained up to its end
 * @param calls whether the template shows the tools
 * @throws HttpError 400 naming the field whose schema cannot be converted
 */
export function constraintOf(request: ChatRequest, thinking: boolean, calls: boolean): string | undefined {
  const rules: string[] = []
  const tools = calls ? (request.tools ?? []) : []
  const named =
    typeof request.tool_choice === 'object' && request.tool_choice !== null ? request.tool_choice.function.name : undefined
  const forced = named !== undefined || request.tool_choice === 'required'
  const format = request.response_format?.type ?? 'text'
  const strict = !forced && format === 'text' && tools.some((tool) => tool.function.strict === true)
  const called = forced || strict || (format !== 'text' && tools.length > 0)
  const use = ({ start, rules: own }: SchemaRules) => {
    rules.push(...own)
    return start
  }
  const call = called ? callRules(request, named, use) : []
  if (call.length > 0) rules.push(`call ::= ${call.join(' | ')}`)
  let root: string
  if (forced) root = 'call'
  else if (format !== 'text') root = `${use(answerRules(request))}${called ? ' | call' : ''}`
  else if (strict) root = 'free (call free)*'
  else return undefined
  return [`root ::= ${thinking ? `thought (${root})` : root}`, ...rules, ...freeRules, ...sharedRules].join('\n')
}

function answerRules({ response_format: format }: ChatRequest): SchemaRules {
  if (format?.type !== 'json_schema') return schemaRules({ type: 'object' }, 'a')
  return rulesOf(format.json_schema.schema ?? {}, 'a', 'response_format.json_schema.schema')
}

/** The rules of a call of any tool, or of the named one, in the format that templates of Qwen and Hermes show. */
function callRules(request: ChatRequest, named: string | undefined, use: (rules: SchemaRules) => string): string[] {
  const tools = [...(request.tools ?? []).entries()].filter(([, tool]) => named === undefined || tool.function.name === named)
  if (tools.length === 0) {
    const param = 'tool_choice'
    const what = named === undefined ? 'a call is required, and there are no tools' : `there is no tool ${JSON.stringify(named)}`
    throw new HttpError(400, `${param}: ${what}`, { param, code: 'invalid_value' })
  }
  return tools.map(([i, tool]) => {
    const { name, parameters } = tool.function as { name: string; parameters?: unknown }
    const values = use(
      rulesOf(parameters ?? { type: 'object', additionalProperties: false }, `t${i}`, `tools[${i}].function.parameters`),
    )
    const begin = literalText(`<tool_call>\n{"name": ${JSON.stringify(name)}, "arguments": `)
    return `${begin} ${values} ${literalText('}\n</tool_call>')}`
  })
}

function rulesOf(schema: unknown, prefix: string, param: string): SchemaRules {
  try {
    return schemaRules(schema, prefix)
  } catch (error) {
    if (!(error instanceof LoopLMError) || error.code !== 'INVALID_ARGUMENT') throw error
    const message = error.message.replace(/^grammar: jsonSchema: /, '')
    throw new HttpError(400, `${param}: ${message}`, { param, code: 'invalid_value' })
  }
}
