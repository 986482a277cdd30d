// Constraints of a response as grammar rules: JSON for `response_format`, calls for `tool_choice` and for tools with `strict`.
import { LoopLMError } from '../errors.js'
import { allowsOnlyObjects, type SchemaRules, schemaRules, sharedRules } from '../grammar/json-schema.js'
import { classText, complement, literalText, type Range } from '../grammar/regex.js'
import { HttpError } from './http-error.js'
import type { ChatRequest } from './request.js'

/**
 * Rules for text up to a tag, the tag and what follows it, or without `end` for text that does not have the tag. Rule `name`k:
 * the text so far ends with the first k characters of the tag.
 */
function tagRules(name: string, tag: string, end?: string): string[] {
  const one = (character: string): Range => [character.codePointAt(0)!, character.codePointAt(0)!]
  return Array.from(tag, (character, k) => {
    const ways = [`${classText(complement([one('<'), one(character)]))} ${name}0`]
    if (k > 0) ways.push(`"<" ${name}1`)
    if (k < tag.length - 1) ways.push(`${literalText(character)} ${name}${k + 1}`)
    else if (end !== undefined) ways.push(`${literalText(character)} ${end}`)
    if (end === undefined) ways.push('""')
    return `${name}${k} ::= ${ways.join(' | ')}`
  })
}

const thoughtRules = tagRules('thought', '</think>', '[\\n]{0,2}')
const freeRules = tagRules('free', '<tool_call>')

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
  else if (strict) root = 'free0 (call free0)*'
  else return undefined
  if (strict) rules.push(...freeRules)
  if (thinking) rules.push(...thoughtRules)
  return [`root ::= ${thinking ? `thought0 (${root})` : root}`, ...rules, ...sharedRules].join('\n')
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
    const values = use(argumentRules(parameters ?? { additionalProperties: false }, i))
    const begin = literalText(`<tool_call>\n{"name": ${JSON.stringify(name)}, "arguments": `)
    return `${begin} ${values} ${literalText('}\n</tool_call>')}`
  })
}

/** Without these keywords and a type, the parameters of a function are those of an object. */
const decisive = ['type', '$ref', 'const', 'enum', 'anyOf', 'oneOf', 'allOf']

/** The rules of a call's arguments, which are an object. */
function argumentRules(parameters: unknown, tool: number): SchemaRules {
  const param = `tools[${tool}].function.parameters`
  const given = parameters === true ? {} : parameters
  const open = typeof given === 'object' && given !== null && !decisive.some((keyword) => keyword in given)
  const schema = open && !Array.isArray(given) ? { type: 'object', ...given } : given
  const rules = rulesOf(schema, `t${tool}`, param)
  if (allowsOnlyObjects(schema)) return rules
  const message = `${param}: must allow nothing but objects, because arguments have names; set "type": "object"`
  throw new HttpError(400, message, { param, code: 'invalid_value' })
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
