// Converts a checked request to the model's options.
import { randomInt } from 'node:crypto'
import { types } from 'node:util'
import type { ChatMessage, ChatTemplateOptions } from '../data/chat-template.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { opensThought, ToolCallStream } from '../data/tool-calls.js'
import { LoopLMError } from '../errors.js'
import type { ExitRule } from '../model/exit-rules.js'
import type { LoopLM } from '../model/model.js'
import { stopTokens } from '../model/special-tokens.js'
import type { GenerateOptions } from '../model/types.js'
import { constraintOf } from './constraints.js'
import { HttpError } from './http-error.js'
import type { ServerSettings } from './options.js'
import type { ChatRequest, CompletionRequest, EmbeddingRequest } from './request.js'
import { chatFormat, completionFormat, type Format } from './responses.js'

/** One choice. */
export interface Choice {
  prompt: number[]
  /** `maxNewTokens` 0 generates nothing. */
  options: GenerateOptions & { maxNewTokens: number }
  /** The prompt, if it is repeated before the response. */
  echo?: { text: string; scores: ScoreSettings | undefined }
}

/** How the tokens of a prompt are scored. */
export interface ScoreSettings {
  temperature: number
  loops: number | undefined
  topLogprobs: number
}

/** What a request asks for. */
export interface Plan {
  choices: Choice[]
  /** Tokens of the prompts. A prompt with several choices counts once. */
  promptTokens: number
  format: Format
  stream: boolean
  includeUsage: boolean
  /** Creates the stream that separates the parts of a response. Absent for completions, which are only text. */
  parts?: () => ToolCallStream
  /** The limit for a response's tokens, if the request asks for more. */
  cutTo: number | undefined
}

/** What is served. */
export interface Served {
  model: LoopLM
  tokenizer: Tokenizer
  settings: ServerSettings
}

/** The most log-probabilities of prompts in one response; they take about 30 MB of JSON. */
const maxEchoedNumbers = 1_000_000

/** @throws HttpError 400 or 404 naming the field */
export async function planCompletion(served: Served, request: CompletionRequest): Promise<Plan> {
  const { tokenizer } = served
  checkModel(served, request.model)
  const prompts = await readPrompts(served, request.prompt, 'prompt', request.add_special_tokens ?? true)
  const logprobs = typeof request.logprobs === 'number' ? request.logprobs : undefined
  const promptOf = (choice: number) => prompts[Math.floor(choice / (request.n ?? 1))]!.tokens
  const format = completionFormat(request.model, tokenizer, logprobs !== undefined, promptOf)
  const made = plan(served, request, prompts, 'prompt', request.max_tokens ?? 16, logprobs ?? 0, format)
  if (request.echo !== true) return made
  const numbers = logprobs === undefined ? 0 : made.choices.reduce((sum, { prompt }) => sum + prompt.length * (1 + logprobs), 0)
  if (numbers > maxEchoedNumbers) {
    const message = `logprobs: the prompts of this request have ${numbers} log-probabilities, at most ${maxEchoedNumbers} fit in an answer`
    throw new HttpError(400, message, { param: 'logprobs', code: 'invalid_value' })
  }
  const scores =
    logprobs === undefined
      ? undefined
      : { temperature: request.temperature || 1, loops: request.loops ?? undefined, topLogprobs: logprobs }
  const texts = prompts.map(({ text, tokens }) => text ?? tokenizer.decode(tokens, { skipUnknownTokens: true }))
  const n = request.n ?? 1
  return { ...made, choices: made.choices.map((choice, i) => ({ ...choice, echo: { text: texts[Math.floor(i / n)]!, scores } })) }
}

/** @throws HttpError 400 or 404 naming the field */
export async function planChat(served: Served, request: ChatRequest): Promise<Plan> {
  const { tokenizer } = served
  checkModel(served, request.model)
  if (!tokenizer.hasChatTemplate) {
    throw new HttpError(400, 'messages: the model has no chat template; use /v1/completions', { param: 'messages' })
  }
  if (request.top_logprobs && request.logprobs !== true) {
    throw new HttpError(400, 'top_logprobs: needs logprobs to be true', { param: 'top_logprobs', code: 'invalid_value' })
  }
  const messages = request.messages.map(({ role, content = '', ...message }) => ({
    ...message,
    content,
    role: role === 'developer' ? 'system' : role, // OpenAI's newer name
  }))
  const shown = request.tool_choice === 'none' || !request.tools?.length ? undefined : request.tools
  if (shown !== undefined && !shows(tokenizer, 'tools')) {
    const message = 'tools: the chat template of the model does not show it any'
    throw new HttpError(400, message, { param: 'tools', code: 'unsupported_value' })
  }
  const called = messages.findIndex((message) => message.tool_calls?.length)
  if (called !== -1 && !shows(tokenizer, 'tool_calls')) {
    const param = `messages[${called}].tool_calls`
    const message = `${param}: the chat template of the model does not show it any`
    throw new HttpError(400, message, { param, code: 'unsupported_value' })
  }
  const thinks = request.reasoning_effort === 'none' ? false : undefined
  const text = render(tokenizer, messages, {
    addGenerationPrompt: true,
    enableThinking: request.enable_thinking ?? request.chat_template_kwargs?.enable_thinking ?? thinks,
    tools: shown,
  })
  const tokens = checkPrompt(served, await encode(served, text, false, 'messages'), 'messages')
  const format = chatFormat(request.model, tokenizer, request.logprobs === true)
  const longest = request.max_completion_tokens ?? request.max_tokens ?? undefined
  const made = plan(served, request, [{ tokens }], 'messages', longest, request.top_logprobs ?? 0, format)
  const thinking = opensThought(text)
  const ebnf = constraintOf(request, thinking, shown !== undefined)
  if (ebnf !== undefined) for (const { options } of made.choices) options.grammar = { ebnf }
  const calls = request.tool_choice === 'none' ? 'drop' : shown === undefined ? 'keep' : 'take'
  const most = request.parallel_tool_calls === false ? 1 : undefined
  const leading = (request.response_format?.type ?? 'text') !== 'text'
  return { ...made, parts: () => new ToolCallStream(most, { calls, thinking, leading }) }
}

/**
 * Reads the body of POST /v1/embeddings.
 * @throws HttpError 400 or 404 naming the field
 */
export async function planEmbedding(served: Served, request: EmbeddingRequest): Promise<{ sequences: number[][] }> {
  checkModel(served, request.model)
  checkLoops(served, request.loops)
  const { hidden_size: size } = served.model.config
  if (request.dimensions != null && request.dimensions !== size) {
    const message = `dimensions: must be ${size}, the size of the model's vectors, got ${request.dimensions}: vectors cannot be shortened`
    throw new HttpError(400, message, { param: 'dimensions', code: 'invalid_value' })
  }
  const context = contextOf(served)
  const prompts = await readPrompts(served, request.input, 'input', request.add_special_tokens ?? true)
  for (const { tokens, param } of prompts) {
    if (tokens.length <= context) continue
    const message = `${param}: ${tokens.length} tokens are more than the context of ${context} tokens`
    throw new HttpError(400, message, { param, code: 'context_length_exceeded' })
  }
  return { sequences: prompts.map(({ tokens }) => tokens) }
}

interface ReadPrompt {
  /** Absent if token ids were given. */
  text?: string
  tokens: number[]
  param: string
}

async function readPrompts(
  served: Served,
  given: CompletionRequest['prompt'],
  field: string,
  addSpecialTokens: boolean,
): Promise<ReadPrompt[]> {
  const single = typeof given === 'string' || typeof given[0] === 'number'
  const read: ReadPrompt[] = []
  for (const [i, prompt] of ((single ? [given] : given) as (string | number[])[]).entries()) {
    const param = single ? field : `${field}[${i}]`
    const tokens = typeof prompt === 'string' ? await encode(served, prompt, addSpecialTokens, param) : prompt
    read.push({ ...(typeof prompt === 'string' ? { text: prompt } : {}), tokens: checkPrompt(served, tokens, param), param })
  }
  return read
}

/** @throws HttpError 400 with the template's error about the messages; other errors of the template are the server's fault */
function render(tokenizer: Tokenizer, messages: readonly ChatMessage[], options: ChatTemplateOptions): string {
  try {
    return tokenizer.applyChatTemplate(messages, options)
  } catch (error) {
    if (!(error instanceof LoopLMError) || error.code !== 'INVALID_ARGUMENT') throw error
    const { cause } = error // the message of the error itself names the template's file
    if (!types.isNativeError(cause)) throw new LoopLMError('INVALID_FILE', error.message, { cause: error })
    const reason = cause.name === 'Error' ? `refused them: ${cause.message}` : 'cannot render them'
    throw new HttpError(400, `messages: the chat template ${reason}`, { param: 'messages', code: 'invalid_value' })
  }
}

const tool = { type: 'function', function: { name: 'f', description: 'f', parameters: { type: 'object', properties: {} } } }
const toolCall = { id: 'f', type: 'function', function: { name: 'f', arguments: {} } }

/**
 * Whether the template renders tools, or calls. It is tested with a short chat, so that they are not lost silently. The
 * client's own chat could take long to render.
 */
function shows(tokenizer: Tokenizer, what: 'tools' | 'tool_calls'): boolean {
  const render = (more: boolean) => {
    const question = { role: 'user', content: 'question' }
    const answer = { role: 'assistant', content: '', ...(more && what === 'tool_calls' ? { tool_calls: [toolCall] } : {}) }
    const messages = what === 'tools' ? [question] : [question, answer]
    return tokenizer.applyChatTemplate(messages, more && what === 'tools' ? { tools: [tool] } : {})
  }
  try {
    return render(true) !== render(false)
  } catch (error) {
    return !(error instanceof LoopLMError && error.code === 'UNSUPPORTED') // the template may require other messages or tools
  }
}

function plan(
  served: Served,
  request: CompletionRequest | ChatRequest,
  prompts: Pick<ReadPrompt, 'tokens'>[],
  param: 'prompt' | 'messages',
  longest: number | undefined,
  alternatives: number,
  format: Format,
): Plan {
  const { model, tokenizer, settings } = served
  if (request.stream_options?.include_usage && request.stream !== true) {
    const message = 'stream_options: needs stream to be true'
    throw new HttpError(400, message, { param: 'stream_options', code: 'invalid_value' })
  }
  checkLoops(served, request.loops)
  const most = request.loops ?? model.config.total_ut_steps
  const least = request.exit?.min_loops ?? 1
  if (least > most) {
    const message = `exit.min_loops: must be at most the ${most} loops that a token may take, got ${least}`
    throw new HttpError(400, message, { param: 'exit.min_loops', code: 'invalid_value' })
  }
  const ends = checkTokens(served, request.stop_token_ids ?? [], 'stop_token_ids')
  const texts = [request.stop ?? []].flat().filter((text) => text !== '')
  const options = given({
    temperature: request.top_p === 0 ? 0 : request.temperature, // only the largest probability is left
    topP: request.top_p || undefined,
    topK: request.top_k === -1 ? 0 : request.top_k, // all tokens, in vLLM's notation
    minP: request.min_p,
    frequencyPenalty: request.frequency_penalty,
    presencePenalty: request.presence_penalty,
    repetitionPenalty: request.repetition_penalty,
    logitBias: checkBiases(served, request.logit_bias),
    loops: request.loops,
    exit: request.exit == null ? undefined : exitRule(request.exit),
    logprobs: alternatives === 0 ? undefined : alternatives,
    stop: [...(request.ignore_eos ? [] : stopTokens(model, tokenizer, param === 'messages')), ...ends, ...texts],
  })
  const context = contextOf(served)
  const n = request.n ?? 1
  const seed = request.seed == null ? randomInt(2 ** 47) : foldSeed(request.seed)
  const choices = prompts.flatMap(({ tokens: prompt }, p) => {
    const room = context - prompt.length
    if (room < Math.min(longest ?? 1, 1)) {
      const message = `${param}: ${prompt.length} tokens leave no room for an answer in the context of ${context} tokens`
      throw new HttpError(400, message, { param, code: 'context_length_exceeded' })
    }
    const maxNewTokens = Math.min(longest ?? Number.POSITIVE_INFINITY, room, settings.maxNewTokens)
    return Array.from({ length: n }, (_, i) => ({
      prompt,
      options: { ...options, maxNewTokens, seed: seedOf(seed, p * n + i) },
    }))
  })
  const shortest = choices.reduce((least, { options }) => Math.min(least, options.maxNewTokens), Number.POSITIVE_INFINITY)
  return {
    choices,
    promptTokens: prompts.reduce((sum, { tokens }) => sum + tokens.length, 0),
    format,
    stream: request.stream ?? false,
    includeUsage: request.stream_options?.include_usage ?? false,
    cutTo: shortest < (longest ?? 0) ? shortest : undefined,
  }
}

function checkLoops({ model }: Served, loops: number | null | undefined): void {
  const most = model.config.total_ut_steps
  if (loops == null || loops <= most) return
  throw new HttpError(400, `loops: must be at most ${most}, got ${loops}`, { param: 'loops', code: 'invalid_value' })
}

function checkModel({ settings }: Served, name: string): void {
  if (name === settings.name) return
  const message = `model: there is no model ${JSON.stringify(name.slice(0, 200))}; this server has ${JSON.stringify(settings.name)}`
  throw new HttpError(404, message, { param: 'model', code: 'model_not_found' })
}

/** The most tokens of a prompt and its response together. */
export function contextOf({ model, settings }: Served): number {
  return Math.min(settings.maxContext, model.config.max_position_embeddings, settings.maxCachedTokens)
}

/** 2^64 / φ: its multiples are far apart. */
const goldenRatio = 0x9e3779b97f4a7c15n

/** Reduces a seed of 64 bits to the 53 that the engine takes. A seed that fits does not change. */
function foldSeed(seed: number): number {
  if (Number.isSafeInteger(seed)) return Number(BigInt.asUintN(53, BigInt(seed)))
  const bits = seed < 2 ** 64 ? BigInt.asUintN(64, BigInt(seed)) : 2n ** 64n - 1n
  return Number(BigInt.asUintN(53, bits ^ ((bits >> 53n) * goldenRatio)))
}

/**
 * The seed of a choice. Choice 0 uses the request's seed, as `model.generate` would. The others' seeds are far away from it.
 */
function seedOf(seed: number, choice: number): number {
  return Number(BigInt.asUintN(53, BigInt(seed) + BigInt(choice) * goldenRatio))
}

function exitRule({ rule, threshold, min_loops: minLoops, patience }: NonNullable<ChatRequest['exit']>): ExitRule {
  // the schema has checked which of them the rule takes
  return { rule, ...given({ threshold, minLoops, patience }) } as ExitRule
}

/** No real text has this many characters per token. Such a text is rejected before tokenizing it. */
const charactersPerToken = 16

async function encode(served: Served, text: string, addSpecialTokens: boolean, param: string): Promise<number[]> {
  const { tokenizer } = served
  const context = contextOf(served)
  if (text.length > charactersPerToken * context) {
    const message = `${param}: ${text.length} characters do not fit in the context of ${context} tokens`
    throw new HttpError(400, message, { param, code: 'context_length_exceeded' })
  }
  try {
    return await tokenizer.encodeAsync(text, { addSpecialTokens })
  } catch (error) {
    // an error of the tokenizer, not of the text
    if (!(error instanceof LoopLMError) || error.code !== 'INVALID_ARGUMENT') throw error
    const message = error.message.replace(`${error.operation}: `, '')
    throw new HttpError(400, `${param}: ${message}`, { param, code: 'invalid_value' })
  }
}

function checkPrompt(served: Served, prompt: number[], param: string): number[] {
  if (prompt.length === 0) throw new HttpError(400, `${param}: has no tokens`, { param, code: 'invalid_value' })
  return checkTokens(served, prompt, param)
}

function checkBiases({ model }: Served, biases: CompletionRequest['logit_bias']): Record<string, number> | undefined {
  const size = model.config.vocab_size
  const bad = Object.keys(biases ?? {}).find((token) => Number(token) >= size)
  if (bad === undefined) return biases ?? undefined
  const message = `logit_bias: ${bad} is not a token id of the model: they go from 0 to ${size - 1}`
  throw new HttpError(400, message, { param: 'logit_bias', code: 'invalid_value' })
}

function checkTokens({ model }: Served, tokens: number[], param: string): number[] {
  const size = model.config.vocab_size
  const bad = tokens.findIndex((token) => token >= size)
  if (bad === -1) return tokens
  const message = `${param}[${bad}]: must be a token id from 0 to ${size - 1}, got ${tokens[bad]}`
  throw new HttpError(400, message, { param: `${param}[${bad}]`, code: 'invalid_value' })
}

/** Only the fields that are set. */
function given<Fields extends object>(fields: Fields): { [Name in keyof Fields]?: NonNullable<Fields[Name]> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value != null)) as {
    [Name in keyof Fields]?: NonNullable<Fields[Name]>
  }
}
