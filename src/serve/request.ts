import { z } from 'zod'
import { exitRules } from '../model/generate.js'
import { nearestName } from '../rl/validate.js'
import { HttpError } from './http-error.js'

const stop = z
  .union([z.string().min(1), z.array(z.string().min(1)).max(16)], 'must be a text or at most 16 texts, none empty')
  .nullish()

/** Accepted because clients send them, and of no effect here. */
const ignored = z.unknown().optional()

/** Accepted with the value that changes nothing; any other would be silently wrong. */
const only = <Value extends string | number | boolean>(value: Value, reason: string) =>
  z.literal(value, { error: `must be ${JSON.stringify(value)}: ${reason}` }).nullish()

/** Accepted only where it asks for nothing. */
const absent = (reason: string) => z.null({ error: `must be null: ${reason}` }).optional()

const minLoops = z.int().min(1).max(64).nullish()
const exit = z.discriminatedUnion(
  'rule',
  [
    z.strictObject({
      rule: z.literal('fixed'),
      threshold: absent('rule fixed takes all loops'),
      min_loops: absent('rule fixed takes all loops'),
    }),
    z.strictObject({ rule: z.literal('gate'), threshold: z.number().gt(0).nullish(), min_loops: minLoops }),
    z.strictObject({ rule: z.enum(['hidden-delta', 'kl', 'entropy']), threshold: z.number().min(0), min_loops: minLoops }),
    z.strictObject({
      rule: z.literal('argmax-stable'),
      threshold: absent('rule argmax-stable has none'),
      min_loops: minLoops,
    }),
  ],
  `must be an object such as { "rule": "gate", "threshold": 0.6 }; rules are ${exitRules.join(', ')}`,
)

const shared = {
  model: z.string().min(1),
  max_tokens: z.int().min(1).nullish(),
  temperature: z.number().min(0).max(100).nullish(),
  top_p: z.number().gt(0).max(1).nullish(),
  top_k: z
    .int()
    .min(0)
    .max(2 ** 31 - 1)
    .nullish(),
  min_p: z.number().min(0).lt(1).nullish(),
  n: z.int().min(1).max(128).nullish(),
  seed: z.int().nullish(),
  stop,
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ include_usage: z.boolean().nullish(), include_obfuscation: ignored }).nullish(),
  loops: z.int().min(1).max(64).nullish(),
  exit: exit.nullish(),
  frequency_penalty: only(0, 'penalties are not supported'),
  presence_penalty: only(0, 'penalties are not supported'),
  logit_bias: z
    .looseObject({})
    .refine((biases) => Object.keys(biases).length === 0, 'must be empty: biases are not supported')
    .nullish(),
  user: ignored,
  metadata: ignored,
  store: ignored,
  service_tier: ignored,
  safety_identifier: ignored,
  prompt_cache_key: ignored,
  prompt_cache_options: ignored,
  prompt_cache_retention: ignored,
}

const tokens = z.array(z.int().min(0)).min(1)

const completionSchema = z.strictObject({
  ...shared,
  prompt: z.union(
    [z.string(), tokens, z.array(z.string()).min(1).max(128), z.array(tokens).min(1).max(128)],
    'must be a text, an array of token ids, or an array of either; none may be empty',
  ),
  logprobs: z.int().min(0).max(20).nullish(),
  best_of: only(1, 'ask for n instead'),
  echo: only(false, 'the prompt is not repeated'),
  suffix: absent('insertion is not supported'),
})

const part = z.looseObject(
  { type: z.literal('text'), text: z.string() },
  'must be { "type": "text", "text": … }: other content is not supported',
)
const call = z.looseObject(
  { type: z.literal('function').optional(), function: z.looseObject({ name: z.string().min(1), arguments: jsonObject() }) },
  'must be { "id": …, "type": "function", "function": { "name": …, "arguments": … } }',
)
const message = z.looseObject({
  role: z.string().min(1),
  content: z
    .union([z.string(), z.array(part), z.null()], 'must be a text or an array of { "type": "text", "text": … }')
    .optional(),
  tool_calls: z.array(call).max(128).nullish(),
  function_call: absent('use tool_calls'),
})
const tool = z.looseObject(
  { type: z.literal('function'), function: z.looseObject({ name: z.string().min(1).max(256) }) },
  'must be { "type": "function", "function": { "name": … } }',
)

/** OpenAI's clients send the arguments of a call as a text of JSON; templates want the object. */
function jsonObject() {
  return z.string('must be a JSON object as a text').transform((text, context) => {
    try {
      const value: unknown = JSON.parse(text === '' ? '{}' : text)
      if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value
    } catch {
      // told below
    }
    context.addIssue({ code: 'custom', message: 'must be a JSON object as a text' })
    return z.NEVER
  })
}

const chatSchema = z.strictObject({
  ...shared,
  messages: z.array(message).min(1).max(4096),
  max_completion_tokens: z.int().min(1).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(20).nullish(),
  tools: z.array(tool).max(128).nullish(),
  tool_choice: z.enum(['auto', 'none'], 'must be "auto" or "none": a call cannot be forced').nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  response_format: z.strictObject({ type: z.literal('text') }, 'must be { "type": "text" }').nullish(),
  functions: absent('use tools'),
  function_call: absent('use tool_choice'),
  reasoning_effort: absent('choose loops, exit or enable_thinking instead'),
  verbosity: absent('the model does not know it'),
  prediction: absent('predicted outputs are not supported'),
  audio: absent('answers are text'),
  web_search_options: absent('there is no search'),
  moderation: absent('there is none'),
  modalities: z.array(z.literal('text')).nullish(),
  enable_thinking: z.boolean().nullish(),
  chat_template_kwargs: z.strictObject({ enable_thinking: z.boolean().nullish() }).nullish(),
})

/** A checked body of POST /v1/completions. */
export type CompletionRequest = z.output<typeof completionSchema>
/** A checked body of POST /v1/chat/completions. */
export type ChatRequest = z.output<typeof chatSchema>

/** Checks the body of POST /v1/completions. @throws HttpError 400 naming the field */
export const parseCompletion = (body: unknown): CompletionRequest => check(completionSchema, body)

/** Checks the body of POST /v1/chat/completions. @throws HttpError 400 naming the field */
export const parseChat = (body: unknown): ChatRequest => check(chatSchema, body)

function check<Schema extends z.ZodObject>(schema: Schema, body: unknown): z.output<Schema> {
  const result = schema.safeParse(body)
  if (result.success) return result.data
  const issue = result.error.issues[0]!
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0]!.slice(0, 64)
    const nearest = issue.path.length === 0 ? nearestName(key, Object.keys(schema.shape)) : undefined
    const param = fieldName([...issue.path, key])
    const hint = nearest === undefined ? '' : `; did you mean ${nearest}?`
    throw new HttpError(400, `${param}: unknown field${hint}`, { param, code: 'unknown_parameter' })
  }
  const param = issue.path.length === 0 ? undefined : fieldName(issue.path)
  const missing = issue.code === 'invalid_type' && valueAt(body, issue.path) === undefined
  const message = `${param ?? 'the body'}: ${missing ? 'is missing' : issue.message}`
  throw new HttpError(400, message, { param, code: missing ? 'missing_required_parameter' : 'invalid_value' })
}

/** `messages[0].content` */
function fieldName(path: readonly PropertyKey[]): string {
  const parts = path.map((part) => (typeof part === 'number' ? `[${part}]` : `.${String(part)}`))
  return parts.join('').replace(/^\./, '')
}

function valueAt(body: unknown, path: readonly PropertyKey[]): unknown {
  let value = body
  for (const key of path) value = (value as Record<PropertyKey, unknown> | null | undefined)?.[key]
  return value
}
