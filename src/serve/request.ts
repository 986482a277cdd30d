import { z } from 'zod'
import { isJsonObject, parseExactJson } from '../data/exact-json.js'
import { type ExitRule, exitRuleNames, exitRules } from '../model/exit-rules.js'
import { nestsTooDeep, tooDeep } from '../validation/json-depth.js'
import { problemsOf } from '../validation/schema.js'
import { HttpError } from './http-error.js'
import { ignored, neutral, neutralChatFields, neutralFields } from './neutral.js'

const stop = z
  .union([z.string(), z.array(z.string().min(1)).max(16)], 'must be a string or at most 16 strings, none of them empty')
  .nullish()

/** A field that must be null or absent. */
const absent = (reason: string) => z.null({ error: `must be null: ${reason}` }).optional()

/** Seeds have 64 bits. Values that round to 2^64 are accepted. */
const seed = z
  .number()
  .refine((value) => Number.isInteger(value) && value >= -(2 ** 63) && value <= 2 ** 64, 'must be an integer of 64 bits')
  .nullish()

const logitBias = z
  .record(z.string().regex(/^\d{1,9}$/, 'must be a token id'), z.number().min(-100).max(100))
  .refine((biases) => Object.keys(biases).length <= 4096, 'must have at most 4096 token ids')
  .nullish()

const rounds = z.int().min(1).max(64).nullish()
/** The fields of a rule, from the list of options in exit-rules.ts. */
function exitFields(rule: ExitRule['rule']) {
  const { threshold, minLoops, patience } = exitRules[rule]
  const none = absent(rule === 'fixed' ? 'rule fixed takes all loops' : `rule ${rule} has none`)
  const range = threshold !== undefined && 'above' in threshold ? z.number().gt(threshold.above) : z.number().min(0)
  const optional = rule === 'gate' || threshold?.default !== undefined
  return z.strictObject({
    rule: z.literal(rule),
    threshold: threshold === undefined ? none : optional ? range.nullish() : range,
    min_loops: minLoops === undefined ? none : rounds,
    patience: patience === undefined ? none : rounds,
  })
}
const [firstRule, ...otherRules] = exitRuleNames
const exit = z.discriminatedUnion(
  'rule',
  [exitFields(firstRule!), ...otherRules.map(exitFields)],
  `must be an object such as { "rule": "gate", "threshold": 0.6 }; rules are ${exitRuleNames.join(', ')}`,
)

const shared = {
  ...neutralFields,
  model: z.string().min(1),
  temperature: z.number().min(0).max(100).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  top_k: z
    .int()
    .min(-1)
    .max(2 ** 31 - 1)
    .nullish(),
  min_p: z.number().min(0).lt(1).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  repetition_penalty: z.number().gt(0).max(100).nullish(),
  logit_bias: logitBias,
  n: z.int().min(1).max(128).nullish(),
  seed,
  stop,
  stop_token_ids: z.array(z.int().min(0)).max(128).nullish(),
  ignore_eos: z.boolean().nullish(),
  stream: z.boolean().nullish(),
  stream_options: z
    .strictObject({
      include_usage: z.boolean().nullish(),
      include_obfuscation: ignored,
      continuous_usage_stats: neutral([false], 'usage comes at the end'),
    })
    .nullish(),
  loops: z.int().min(1).max(64).nullish(),
  exit: exit.nullish(),
}

const tokens = z.array(z.int().min(0)).min(1)
const texts = (most: number) =>
  z.union(
    [z.string(), tokens, z.array(z.string()).min(1).max(most), z.array(tokens).min(1).max(most)],
    `must be a string, an array of token ids, or an array of at most ${most} of either; none may be empty`,
  )

const completionSchema = z.strictObject({
  ...shared,
  prompt: texts(128),
  max_tokens: z.int().min(0).nullish(),
  logprobs: z.union([z.int().min(0).max(20), z.literal(false)], 'must be an integer from 0 to 20').nullish(),
  echo: z.boolean().nullish(),
  suffix: neutral([''], 'insertion is not supported'),
  add_special_tokens: z.boolean().nullish(),
})

const embeddingSchema = z.strictObject({
  model: z.string().min(1),
  input: texts(2048),
  encoding_format: z.enum(['float', 'base64'], 'must be "float" or "base64"').nullish(),
  dimensions: z.int().min(1).nullish(),
  loops: z.int().min(1).max(64).nullish(),
  add_special_tokens: z.boolean().nullish(),
  truncate_prompt_tokens: neutralFields.truncate_prompt_tokens,
  normalize: neutral([true], 'vectors have length 1'),
  priority: neutralFields.priority,
  user: ignored,
})

/** Message parts that are not supported, with their names in the error message. */
const unreadable: Readonly<Record<string, string>> = {
  image_url: 'images',
  image: 'images',
  video_url: 'videos',
  video: 'videos',
  input_audio: 'sounds',
  audio: 'sounds',
  audio_url: 'sounds',
  file: 'files',
}

/** The text of a message: a string, or text parts. */
const content = z.unknown().transform((value, context) => {
  const refuse = (message: string) => {
    context.addIssue({ code: 'custom', message })
    return z.NEVER
  }
  if (value == null) return ''
  if (typeof value === 'string') return value
  if (!Array.isArray(value)) return refuse('must be a string, null or an array of { "type": "text", "text": … }')
  for (const [i, part] of value.entries()) {
    if (part?.type === 'text' && typeof part.text === 'string') continue
    const type = typeof part?.type === 'string' ? part.type : ''
    const kind = Object.hasOwn(unreadable, type) ? unreadable[type] : undefined
    return refuse(
      kind === undefined
        ? `part ${i} must be { "type": "text", "text": … }`
        : `part ${i} has the type ${type}: ${kind} are not supported, the model reads text`,
    )
  }
  return value.map(({ text }: { text: string }) => text).join('')
})

const call = z.looseObject(
  {
    type: z.literal('function').nullish(),
    function: z.looseObject({ name: z.string().min(1), arguments: jsonObject().prefault({}) }),
  },
  'must be { "id": …, "type": "function", "function": { "name": …, "arguments": … } }',
)
const roles = ['system', 'developer', 'user', 'assistant', 'tool'] as const
const message = z.looseObject({
  role: z.enum(roles, `must be one of ${roles.join(', ')}`),
  content: content.optional(),
  tool_calls: z.array(call).max(128).nullish(),
  function_call: absent('use tool_calls'),
  audio: absent('sounds are not supported, the model reads text'),
})
const tool = z.looseObject(
  { type: z.literal('function'), function: z.looseObject({ name: z.string().min(1).max(256) }) },
  'must be { "type": "function", "function": { "name": … } }',
)

/** OpenAI's clients send the arguments of a call as a JSON string. Templates need the object. */
function jsonObject() {
  return z.unknown().transform((given, context): unknown => {
    if (given == null || given === '') return {}
    if (isJsonObject(given)) return given // as Ollama's clients send it; the check of the whole body has checked its depth
    const refuse = (message: string) => {
      context.addIssue({ code: 'custom', message })
      return z.NEVER
    }
    if (typeof given === 'string' && nestsTooDeep(given)) return refuse(tooDeep)
    try {
      const value = typeof given === 'string' ? parseExactJson(given) : undefined
      if (isJsonObject(value)) return value
    } catch {
      // reported below
    }
    return refuse('must be a string with a JSON object')
  })
}

const chatSchema = z.strictObject({
  ...shared,
  ...neutralChatFields,
  messages: z.array(message).min(1).max(4096),
  max_tokens: z.int().min(1).nullish(),
  max_completion_tokens: z.int().min(1).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(20).nullish(),
  tools: z.array(tool).max(128).nullish(),
  tool_choice: z
    .union(
      [
        z.enum(['auto', 'none', 'required']),
        z.strictObject({ type: z.literal('function'), function: z.strictObject({ name: z.string().min(1) }) }),
      ],
      'must be "auto", "none", "required" or { "type": "function", "function": { "name": … } }',
    )
    .nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  response_format: z
    .discriminatedUnion(
      'type',
      [
        z.strictObject({ type: z.literal('text') }),
        z.strictObject({ type: z.literal('json_object') }),
        z.strictObject({
          type: z.literal('json_schema'),
          json_schema: z.strictObject({
            name: z.string().min(1).max(64),
            description: z.string().nullish(),
            schema: z.record(z.string(), z.unknown()).nullish(),
            strict: z.boolean().nullish(),
          }),
        }),
      ],
      'must be { "type": "text" }, { "type": "json_object" } or { "type": "json_schema", "json_schema": … }',
    )
    .nullish(),
  reasoning_effort: z
    .enum(['none', 'medium'], 'must be "none" (no thinking) or "medium" (as the model does): the model knows no other effort')
    .nullish(),
  enable_thinking: z.boolean().nullish(),
  chat_template_kwargs: z.strictObject({ enable_thinking: z.boolean().nullish() }).nullish(),
})

/** A checked body of POST /v1/completions. */
export type CompletionRequest = z.output<typeof completionSchema>
/** A checked body of POST /v1/chat/completions. */
export type ChatRequest = z.output<typeof chatSchema>

/** A checked body of POST /v1/embeddings. */
export type EmbeddingRequest = z.output<typeof embeddingSchema>

/**
 * Checks the body of POST /v1/completions.
 * @throws HttpError 400 naming the field
 */
export const parseCompletion = (body: unknown): CompletionRequest => check(completionSchema, body)

/**
 * Checks the body of POST /v1/chat/completions.
 * @throws HttpError 400 naming the field
 */
export const parseChat = (body: unknown): ChatRequest => check(chatSchema, body)

/**
 * Checks the body of POST /v1/embeddings.
 * @throws HttpError 400 naming the field
 */
export const parseEmbedding = (body: unknown): EmbeddingRequest => check(embeddingSchema, body)

function check<Schema extends z.ZodObject>(schema: Schema, body: unknown): z.output<Schema> {
  const result = schema.safeParse(withoutNulls(body, schema), { reportInput: true })
  if (result.success) return result.data
  const { kind, path, message } = problemsOf(result.error, schema)[0]!
  const param = path.length === 0 ? undefined : fieldName(path)
  if (kind === 'unknown') throw new HttpError(400, `${param}: ${message}`, { param, code: 'unknown_parameter' })
  const missing = kind === 'missing'
  const text = `${param ?? 'the body'}: ${missing ? 'is missing' : message}`
  throw new HttpError(400, text, { param, code: missing ? 'missing_required_parameter' : 'invalid_value' })
}

/** Drops unknown fields that are null, because they ask for nothing. */
function withoutNulls(body: unknown, schema: z.ZodObject): unknown {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) return body
  return Object.fromEntries(Object.entries(body).filter(([name, value]) => value !== null || Object.hasOwn(schema.shape, name)))
}

/** `messages[0].content` */
function fieldName(path: readonly PropertyKey[]): string {
  const parts = path.map((part) => (typeof part === 'number' ? `[${part}]` : `.${String(part)}`))
  return parts.join('').replace(/^\./, '')
}
