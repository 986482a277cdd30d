import { randomUUID } from 'node:crypto'
import type { Tokenizer } from '../data/tokenizer.js'
import { TextStream } from '../model/text-stream.js'
import type { ToolCall } from './tool-calls.js'

/** What is reported of one generated token. */
export interface TokenReport {
  token: number
  logprob: number
  /** 1-based. */
  loop: number
  /** The likeliest tokens, best first; as many as were asked for. */
  alternatives: readonly { token: number; logprob: number }[]
}

/** A choice, or what is new in it. */
export interface Piece {
  index: number
  text: string
  /** Calls of functions, which are not part of the text. */
  calls: ToolCall[]
  tokens: TokenReport[]
  finishReason: 'length' | 'stop' | 'tool_calls' | null
}

/** Tokens of a request and what they cost. */
export interface Usage {
  prompt_tokens: number
  completion_tokens: number
  total_tokens: number
  /** Loops per generated token. */
  mean_loops: number | null
}

/** The objects of one endpoint. */
export interface Format {
  whole(pieces: readonly Piece[], usage: Usage): object
  /** What opens a stream, if anything does. */
  opening(index: number): object | undefined
  delta(piece: Piece): object
  usage(usage: Usage): object
}

/** Usage of the choices of a request. */
export function usageOf(promptTokens: number, pieces: readonly Pick<Piece, 'tokens'>[]): Usage {
  const loops = pieces.flatMap(({ tokens }) => tokens.map(({ loop }) => loop))
  return {
    prompt_tokens: promptTokens,
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
    if (logprobs) offsets[piece.index] ??= textOffsets(tokenizer, promptOf(piece.index))
    return {
      index: piece.index,
      text: piece.text,
      logprobs: logprobs ? completionLogprobs(tokenizer, piece, offsets[piece.index]!) : null,
      finish_reason: piece.finishReason,
      loops: loopsOf(piece),
    }
  }
  return {
    whole: (pieces, usage) => ({ ...head, choices: pieces.map(choice), usage }),
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
  const called: number[] = [] // by choice: calls so far
  const rest = (piece: Piece) => ({
    logprobs: logprobs ? { content: piece.tokens.map((report) => chatLogprob(tokenizer, report)), refusal: null } : null,
    finish_reason: piece.finishReason,
    loops: loopsOf(piece),
  })
  return {
    whole: (pieces, usage) => ({
      ...head,
      choices: pieces.map((piece) => ({
        index: piece.index,
        message: {
          role: 'assistant',
          ...(piece.calls.length === 0 ? { content: piece.text } : { content: piece.text || null, tool_calls: piece.calls }),
          refusal: null,
        },
        ...rest(piece),
      })),
      usage,
    }),
    opening: (index) => ({
      ...chunk,
      choices: [{ index, delta: { role: 'assistant', content: '' }, logprobs: null, finish_reason: null, loops: [] }],
    }),
    delta: (piece) => {
      const from = called[piece.index] ?? 0
      called[piece.index] = from + piece.calls.length
      const calls = piece.calls.map((call, i) => ({ index: from + i, ...call }))
      const content = piece.text === '' && calls.length > 0 ? {} : { content: piece.text }
      const delta = calls.length === 0 ? content : { ...content, tool_calls: calls }
      return { ...chunk, choices: [{ index: piece.index, delta, ...rest(piece) }] }
    },
    usage: (usage) => ({ ...chunk, choices: [], usage }),
  }
}

function chatLogprob(tokenizer: Tokenizer, { token, logprob, alternatives }: TokenReport) {
  const entry = (token: number, logprob: number) => {
    const bytes = tokenizer.tokenBytes(token)
    return { token: new TextDecoder().decode(bytes), logprob, bytes: Array.from(bytes) }
  }
  return {
    ...entry(token, logprob),
    top_logprobs: alternatives.map((alternative) => entry(alternative.token, alternative.logprob)),
  }
}

function completionLogprobs(tokenizer: Tokenizer, { tokens }: Piece, offset: (token: number) => number) {
  return {
    tokens: tokens.map(({ token }) => tokenText(tokenizer, token)),
    token_logprobs: tokens.map(({ logprob }) => logprob),
    top_logprobs: tokens.map((report) => topLogprobs(tokenizer, report)),
    text_offset: tokens.map(({ token }) => offset(token)),
  }
}

/** The likeliest tokens and the one that was drawn, by their text; where an earlier one has it, a token is named by its id. */
function topLogprobs(tokenizer: Tokenizer, { token, logprob, alternatives }: TokenReport): Record<string, number> {
  const texts = new Map([[tokenText(tokenizer, token), token]]) // what `tokens` says is found here
  const key = (id: number) => {
    const text = tokenText(tokenizer, id)
    if (!texts.has(text)) texts.set(text, id)
    return texts.get(text) === id ? text : `token_id:${id}`
  }
  const drawn = alternatives.some((alternative) => alternative.token === token) ? [] : [{ token, logprob }]
  return Object.fromEntries([...alternatives, ...drawn].map((entry) => [key(entry.token), entry.logprob]))
}

/** Where each token of a choice begins in its text: where the text ends that is certain without it. */
function textOffsets(tokenizer: Tokenizer, prompt: readonly number[]): (token: number) => number {
  const stream = new TextStream(tokenizer, [], prompt)
  let end = 0
  return (token) => {
    const start = end
    end += stream.push(token).length
    return start
  }
}

/** A token's text; one that is a part of a character is spelt as OpenAI does: `bytes:\xe2\x98`. */
export function tokenText(tokenizer: Tokenizer, token: number): string {
  const bytes = tokenizer.tokenBytes(token)
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return `bytes:${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}`
  }
}
