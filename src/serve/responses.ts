import { randomUUID } from 'node:crypto'
import type { Tokenizer } from '../data/tokenizer.js'
import type { ToolCall } from '../data/tool-calls.js'
import { TextStream } from '../model/text-stream.js'
import type { RealArray, TokenLogprob } from '../model/types.js'

/** What is reported for one token. */
export interface TokenReport {
  token: number
  /** null if no token precedes it. */
  logprob: number | null
  /** The most probable tokens, best first, as many as requested. null if `logprob` is null. */
  alternatives: readonly TokenLogprob[] | null
}

/** A generated token. */
export interface NewToken extends TokenReport {
  /** The loop that it was read from, 1-based. */
  loop: number
}

/** A prompt that is repeated before its completion. */
export interface Echo {
  text: string
  /** Empty if no log-probabilities were requested. */
  tokens: readonly TokenReport[]
}

/** A choice, or its new output. */
export interface Piece {
  index: number
  /** The prompt, once, if it is repeated. */
  echo?: Echo
  text: string
  /** Thoughts, which are not part of the text. */
  reasoning: string
  /** Function calls, which are not part of the text. */
  calls: ToolCall[]
  tokens: NewToken[]
  finishReason: 'length' | 'stop' | 'tool_calls' | null
}

/** Token counts of a request. */
export interface Usage {
  prompt_tokens: number
  /** Prompt tokens that came from the prompt cache and did not run. */
  prompt_tokens_details: { cached_tokens: number }
  completion_tokens: number
  total_tokens: number
  /** Mean number of loops per generated token. */
  mean_loops: number | null
}

/** Builds the objects of an endpoint that generates. */
export interface Format {
  /**
   * A choice of a complete response. It is built when the choice ends, so that a large response does not block the event loop.
   */
  choice(piece: Piece): object
  whole(choices: readonly object[], usage: Usage): object
  /** The first object of a stream, if there is one. */
  opening(index: number): object | undefined
  delta(piece: Piece): object
  usage(usage: Usage): object
}

/**
 * The usage of a request.
 * @param loops of all tokens that were generated for it
 */
export function usageOf(prompt: { promptTokens: number; cachedTokens: number }, loops: readonly number[]): Usage {
  const { promptTokens, cachedTokens } = prompt
  return {
    prompt_tokens: promptTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
    completion_tokens: loops.length,
    total_tokens: promptTokens + loops.length,
    mean_loops: loops.length === 0 ? null : loops.reduce((sum, loop) => sum + loop, 0) / loops.length,
  }
}

const seconds = () => Math.floor(Date.now() / 1000)
const loopsOf = ({ tokens }: Piece) => tokens.map(({ loop }) => loop)

/**
 * Objects of POST /v1/completions.
 *
 * @param promptOf the tokens before a choice
 */
export function completionFormat(
  model: string,
  tokenizer: Tokenizer,
  logprobs: boolean,
  promptOf: (choice: number) => readonly number[],
): Format {
  const head = { id: `cmpl-${randomUUID()}`, object: 'text_completion', created: seconds(), model }
  const offsets: ((token: number) => number)[] = [] // by choice
  const choice = (piece: Piece) => {
    if (logprobs) offsets[piece.index] ??= textOffsets(tokenizer, promptOf(piece.index), piece.echo?.text.length ?? 0)
    return {
      index: piece.index,
      text: (piece.echo?.text ?? '') + piece.text,
      logprobs: logprobs ? completionLogprobs(tokenizer, piece, offsets[piece.index]!) : null,
      finish_reason: piece.finishReason,
      loops: loopsOf(piece),
    }
  }
  return {
    choice,
    whole: (choices, usage) => ({ ...head, choices, usage }),
    opening: () => undefined,
    delta: (piece) => ({ ...head, choices: [choice(piece)] }),
    usage: (usage) => ({ ...head, choices: [], usage }),
  }
}

/** Objects of POST /v1/chat/completions. */
export function chatFormat(model: string, tokenizer: Tokenizer, logprobs: boolean): Format {
  const id = `chatcmpl-${randomUUID()}`
  const head = { id, object: 'chat.completion', created: seconds(), model }
  const chunk = { ...head, object: 'chat.completion.chunk' }
  const called: number[] = [] // number of calls so far, by choice
  const rest = (piece: Piece) => ({
    logprobs: logprobs ? { content: piece.tokens.map((report) => chatLogprob(tokenizer, report)), refusal: null } : null,
    finish_reason: piece.finishReason,
    loops: loopsOf(piece),
  })
  return {
    choice: (piece) => ({
      index: piece.index,
      message: {
        role: 'assistant',
        ...(piece.reasoning === '' ? {} : { reasoning_content: piece.reasoning }),
        ...(piece.calls.length === 0 ? { content: piece.text } : { content: piece.text || null, tool_calls: piece.calls }),
        refusal: null,
      },
      ...rest(piece),
    }),
    whole: (choices, usage) => ({ ...head, choices, usage }),
    opening: (index) => ({
      ...chunk,
      choices: [{ index, delta: { role: 'assistant', content: '' }, logprobs: null, finish_reason: null, loops: [] }],
    }),
    delta: (piece) => {
      const from = called[piece.index] ?? 0
      called[piece.index] = from + piece.calls.length
      const calls = piece.calls.map((call, i) => ({ index: from + i, ...call }))
      const delta = {
        ...(piece.reasoning === '' ? {} : { reasoning_content: piece.reasoning }),
        ...(piece.text === '' && (calls.length > 0 || piece.reasoning !== '') ? {} : { content: piece.text }),
        ...(calls.length === 0 ? {} : { tool_calls: calls }),
      }
      return { ...chunk, choices: [{ index: piece.index, delta, ...rest(piece) }] }
    },
    usage: (usage) => ({ ...chunk, choices: [], usage }),
  }
}

function chatLogprob(tokenizer: Tokenizer, { token, logprob, alternatives }: NewToken) {
  const entry = (token: number, logprob: number | null) => {
    const bytes = tokenizer.tokenBytes(token)
    return { token: new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes), logprob, bytes: Array.from(bytes) }
  }
  return {
    ...entry(token, logprob),
    top_logprobs: (alternatives ?? []).map((alternative) => entry(alternative.token, alternative.logprob)),
  }
}

function completionLogprobs(tokenizer: Tokenizer, { echo, tokens }: Piece, offset: (token: number) => number) {
  const all = [...(echo?.tokens ?? []), ...tokens]
  const before = echo === undefined ? [] : promptOffsets(tokenizer, echo)
  return {
    tokens: all.map(({ token }) => tokenText(tokenizer, token)),
    token_logprobs: all.map(({ logprob }) => logprob),
    top_logprobs: all.map((report) => topLogprobs(tokenizer, report)),
    text_offset: [...before, ...tokens.map(({ token }) => offset(token))],
  }
}

/**
 * The log-probabilities of the most probable tokens and of the drawn token, by their text. If a more probable token has the
 * same text, a token is named by its id.
 */
function topLogprobs(tokenizer: Tokenizer, { token, logprob, alternatives }: TokenReport): Record<string, number> | null {
  if (logprob === null || alternatives === null) return null
  const texts = new Map([[tokenText(tokenizer, token), token]]) // the key must equal the entry of `tokens`
  const key = (id: number) => {
    const text = tokenText(tokenizer, id)
    if (!texts.has(text)) texts.set(text, id)
    return texts.get(text) === id ? text : `token_id:${id}`
  }
  const came = alternatives.some((alternative) => alternative.token === token) ? [] : [{ token, logprob }]
  return Object.fromEntries([...alternatives, ...came].map((entry) => [key(entry.token), entry.logprob]))
}

/** The start of each token of a choice in its text: where the text ends that is certain without the token. */
function textOffsets(tokenizer: Tokenizer, prompt: readonly number[], start: number): (token: number) => number {
  const stream = new TextStream(tokenizer, [], prompt)
  let end = start
  return (token) => {
    const begin = end
    end += stream.push(token).length
    return begin
  }
}

/** The same for a prompt. Tokens that the tokenizer adds before it begin at the start of the text. */
function promptOffsets(tokenizer: Tokenizer, { text, tokens }: Echo): number[] {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  let whole = ''
  const begins = tokens.map(({ token }) => {
    const begin = whole.length
    whole += decoder.decode(tokenizer.tokenBytes(token), { stream: true })
    return begin
  })
  const added = whole.endsWith(text) ? whole.length - text.length : 0
  return begins.map((begin) => Math.min(text.length, Math.max(0, begin - added)))
}

/** The body of a response of POST /v1/embeddings. */
export function embeddingAnswer(model: string, vectors: readonly RealArray[], base64: boolean, promptTokens: number): object {
  const data = vectors.map((vector, index) => ({ object: 'embedding', index, embedding: unit(vector, base64) }))
  return { object: 'list', data, model, usage: { prompt_tokens: promptTokens, total_tokens: promptTokens } }
}

/** The vector scaled to length 1, as numbers or as the base64 of little-endian float32. */
function unit(vector: RealArray, base64: boolean): number[] | string {
  const values = Array.from(vector)
  const length = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))
  const numbers = values.map((value) => (length === 0 ? 0 : value / length))
  if (!base64) return numbers
  const bytes = Buffer.alloc(4 * numbers.length)
  for (const [i, value] of numbers.entries()) bytes.writeFloatLE(value, 4 * i)
  return bytes.toString('base64')
}

const texts = new WeakMap<Tokenizer, Map<number, string>>()

/** A token's text. A token that is part of a character is spelled as OpenAI does: `bytes:\xe2\x98`. */
export function tokenText(tokenizer: Tokenizer, token: number): string {
  const known = texts.get(tokenizer) ?? new Map<number, string>()
  texts.set(tokenizer, known)
  let text = known.get(token) // log-probabilities of a long prompt name many tokens, mostly the same ones
  if (text === undefined) {
    text = spell(tokenizer.tokenBytes(token))
    known.set(token, text)
  }
  return text
}

function spell(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return `bytes:${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}`
  }
}
