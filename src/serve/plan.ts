// A checked request in the model's words.
import { randomInt } from 'node:crypto'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { ExitRule, GenerateOptions, TokenSequence } from '../model/types.js'
import { HttpError } from './http-error.js'
import type { ServeSettings } from './options.js'
import type { ChatRequest, CompletionRequest } from './request.js'
import { chatFormat, completionFormat, type Format } from './responses.js'
import { toolCallEnd } from './tool-calls.js'

/** What a request asks for. */
export interface Plan {
  /** One per choice. */
  sequences: { prompt: TokenSequence; options: GenerateOptions }[]
  /** Tokens of the prompts, each counted once. */
  promptTokens: number
  format: Format
  stream: boolean
  includeUsage: boolean
  /** The model may call functions, several at once or one. */
  tools?: { parallel: boolean }
}

/** What is served. */
export interface Served {
  model: LoopLM
  tokenizer: Tokenizer
  settings: ServeSettings & { maxCachedTokens: number }
}

/** @throws HttpError 400 or 404 naming the field */
export async function planCompletion(served: Served, request: CompletionRequest): Promise<Plan> {
  const { tokenizer } = served
  checkModel(served, request.model)
  const given = request.prompt
  const single = typeof given === 'string' || typeof given[0] === 'number'
  const prompts = (single ? [given] : given) as (string | number[])[]
  const tokens: number[][] = []
  for (const [i, prompt] of prompts.entries()) {
    const param = single ? 'prompt' : `prompt[${i}]`
    tokens.push(checkPrompt(served, typeof prompt === 'string' ? await encode(served, prompt, true, param) : prompt, param))
  }
  const logprobs = request.logprobs ?? undefined
  const promptOf = (choice: number) => tokens[Math.floor(choice / (request.n ?? 1))]!
  const format = completionFormat(request.model, tokenizer, logprobs !== undefined, promptOf)
  return plan(served, request, tokens, 'prompt', request.max_tokens ?? 16, logprobs ?? 0, format)
}

/** @throws HttpError 400 or 404 naming the field */
export async function planChat(served: Served, request: ChatRequest): Promise<Plan> {
  const { tokenizer } = served
  checkModel(served, request.model)
  if (!tokenizer.hasChatTemplate) {
    throw new HttpError(400, 'messages: the model has no chat template; use /v1/completions', { param: 'messages' })
  }
  if (request.top_logprobs != null && request.logprobs !== true) {
    throw new HttpError(400, 'top_logprobs: needs logprobs to be true', { param: 'top_logprobs', code: 'invalid_value' })
  }
  const messages = request.messages.map(({ role, content, ...message }) => ({
    ...message,
    role: role === 'developer' ? 'system' : role, // OpenAI's newer word
    content: Array.isArray(content) ? content.map(({ text }) => text).join('') : (content ?? ''),
  }))
  const shown = request.tool_choice === 'none' || !request.tools?.length ? undefined : request.tools
  if (shown !== undefined && !showsTools(tokenizer)) {
    const message = 'tools: the chat template of the model does not show it any'
    throw new HttpError(400, message, { param: 'tools', code: 'unsupported_value' })
  }
  const text = tokenizer.applyChatTemplate(messages, {
    addGenerationPrompt: true,
    enableThinking: request.enable_thinking ?? request.chat_template_kwargs?.enable_thinking ?? undefined,
    tools: shown,
  })
  const tools = shown === undefined ? undefined : { parallel: request.parallel_tool_calls ?? true }
  const tokens = checkPrompt(served, await encode(served, text, false, 'messages'), 'messages')
  const format = chatFormat(request.model, tokenizer, request.logprobs === true)
  const longest = request.max_completion_tokens ?? request.max_tokens ?? undefined
  const stop = tools?.parallel === false ? [toolCallEnd] : [] // nothing behind the first call is wanted
  const made = plan(served, request, [tokens], 'messages', longest, request.top_logprobs ?? 0, format, stop)
  return tools === undefined ? made : { ...made, tools }
}

/** Whether the template writes tools anywhere: asked of a short chat, for the client's own may take long to render. */
function showsTools(tokenizer: Tokenizer): boolean {
  const tool = { type: 'function', function: { name: 'f', description: 'f', parameters: { type: 'object', properties: {} } } }
  try {
    tokenizer.applyChatTemplate([{ role: 'user', content: 'question' }], { tools: [tool] })
    return true
  } catch (error) {
    return !(error instanceof LoopLMError && error.code === 'UNSUPPORTED') // it may want other messages or tools
  }
}

function plan(
  { model, tokenizer, settings }: Served,
  request: CompletionRequest | ChatRequest,
  prompts: number[][],
  param: string,
  longest: number | undefined,
  alternatives: number,
  format: Format,
  stop: readonly string[] = [],
): Plan {
  if (longest !== undefined && longest > settings.maxNewTokens) {
    const name =
      'max_completion_tokens' in request && request.max_completion_tokens != null ? 'max_completion_tokens' : 'max_tokens'
    const message = `${name}: must be at most ${settings.maxNewTokens}, got ${longest}`
    throw new HttpError(400, message, { param: name, code: 'invalid_value' })
  }
  if (request.stream_options != null && request.stream !== true) {
    const message = 'stream_options: needs stream to be true'
    throw new HttpError(400, message, { param: 'stream_options', code: 'invalid_value' })
  }
  const most = model.config.total_ut_steps
  const loops = request.loops ?? undefined
  if (loops !== undefined && loops > most) {
    throw new HttpError(400, `loops: must be at most ${most}, got ${loops}`, { param: 'loops', code: 'invalid_value' })
  }
  const least = request.exit?.min_loops ?? 1
  if (least > (loops ?? most)) {
    const message = `exit.min_loops: must be at most the ${loops ?? most} loops that a token may take, got ${least}`
    throw new HttpError(400, message, { param: 'exit.min_loops', code: 'invalid_value' })
  }
  const context = contextOf({ model, tokenizer, settings })
  const options = given({
    temperature: request.temperature,
    topP: request.top_p,
    topK: request.top_k,
    minP: request.min_p,
    loops,
    exit: request.exit == null ? undefined : exitRule(request.exit),
    logprobs: alternatives === 0 ? undefined : alternatives,
    stop: [...endTokens(model, tokenizer, param === 'messages'), ...[request.stop ?? []].flat(), ...stop],
  })
  const seed = request.seed == null ? randomInt(2 ** 47) : Number(BigInt.asUintN(53, BigInt(request.seed)))
  const sequences = prompts.flatMap((prompt, p) => {
    const room = context - prompt.length
    if (room < (longest ?? 1)) {
      const message = `${param}: ${prompt.length} tokens and ${longest ?? 1} new ones are more than the context of ${context} tokens`
      throw new HttpError(400, message, { param, code: 'context_length_exceeded' })
    }
    const maxNewTokens = longest ?? Math.min(room, settings.maxNewTokens)
    return Array.from({ length: request.n ?? 1 }, (_, i) => ({
      prompt,
      options: { ...options, maxNewTokens, seed: seedOf(seed, p * (request.n ?? 1) + i) },
    }))
  })
  return {
    sequences,
    promptTokens: prompts.reduce((sum, { length }) => sum + length, 0),
    format,
    stream: request.stream ?? false,
    includeUsage: request.stream_options?.include_usage ?? false,
  }
}

function checkModel({ settings }: Served, name: string): void {
  if (name === settings.name) return
  const message = `model: there is no model ${JSON.stringify(name.slice(0, 200))}; this server has ${JSON.stringify(settings.name)}`
  throw new HttpError(404, message, { param: 'model', code: 'model_not_found' })
}

/** Tokens that a prompt and its answer may have together. */
export function contextOf({ model, settings }: Served): number {
  return Math.min(settings.maxContext, model.config.max_position_embeddings, settings.maxCachedTokens)
}

/** Where a sequence ends beside its stop texts. A turn of a chat ends where the template ends it. */
export function endTokens(model: LoopLM, tokenizer: Tokenizer, chat: boolean): number[] {
  const turn = chat ? tokenizer.chatEndToken() : undefined
  return [...new Set([...model.endTokens, ...(turn === undefined ? [] : [turn])])]
}

/** Choice 0 has the request's seed, as `model.generate` would use it; the others' are far away from it. */
function seedOf(seed: number, choice: number): number {
  return Number(BigInt.asUintN(53, BigInt(seed) + BigInt(choice) * 0x9e3779b97f4a7c15n))
}

function exitRule({ rule, threshold, min_loops: minLoops }: NonNullable<ChatRequest['exit']>): ExitRule {
  return { rule, ...given({ threshold, minLoops }) } as ExitRule // the schema says which of them a rule has
}

/** No text of this many characters per token is real; it is refused before time is spent on it. */
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
    throw new HttpError(400, `${param}: ${(error as Error).message}`, { param, code: 'invalid_value' })
  }
}

function checkPrompt({ model }: Served, prompt: number[], param: string): number[] {
  const size = model.config.vocab_size
  const bad = prompt.findIndex((token) => token >= size)
  if (bad !== -1) {
    const message = `${param}[${bad}]: must be a token id from 0 to ${size - 1}, got ${prompt[bad]}`
    throw new HttpError(400, message, { param: `${param}[${bad}]`, code: 'invalid_value' })
  }
  if (prompt.length === 0) throw new HttpError(400, `${param}: has no tokens`, { param, code: 'invalid_value' })
  return prompt
}

/** Only the fields that are set. */
function given<Fields extends object>(fields: Fields): { [Name in keyof Fields]?: NonNullable<Fields[Name]> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value != null)) as {
    [Name in keyof Fields]?: NonNullable<Fields[Name]>
  }
}
