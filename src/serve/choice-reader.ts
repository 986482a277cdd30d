import type { AnswerParts, ToolCallStream } from '../data/tool-calls.js'
import type { GenerateChunk } from '../model/types.js'
import type { Echo, Piece } from './responses.js'

/** Collects the output of a sequence until it is sent. */
export class ChoiceReader {
  /** The loop of every token so far. */
  readonly loops: number[] = []
  /** Number of prompt tokens that came from the cache. */
  cachedTokens = 0
  readonly #index: number
  readonly #parts: ToolCallStream | undefined
  #piece: Piece
  #called = false

  /** @param parts separates thoughts and tool calls from the text; without it everything is text */
  constructor(index: number, parts: ToolCallStream | undefined) {
    this.#index = index
    this.#parts = parts
    this.#piece = emptyPiece(index)
  }

  /** Whether the choice needs no more tokens. */
  get complete(): boolean {
    return this.#piece.finishReason !== null || this.#parts?.complete === true
  }

  /** Whether there is something to send. false while a character or a tag is incomplete. */
  get ready(): boolean {
    const { echo, text, reasoning, calls, finishReason } = this.#piece
    return echo !== undefined || text !== '' || reasoning !== '' || calls.length > 0 || finishReason !== null
  }

  /** Puts the prompt before the response. */
  repeat(echo: Echo): void {
    this.#piece.echo = echo
  }

  add({ token, logprob, loop, text = '', topLogprobs = [], finishReason }: GenerateChunk): void {
    this.loops.push(loop)
    this.#piece.tokens.push({ token, logprob, loop, alternatives: topLogprobs })
    if (this.#parts === undefined) this.#piece.text += text
    else {
      this.#take(this.#parts.push(text))
      if (finishReason !== undefined) this.#take(this.#parts.flush())
      if (this.#parts.complete) finishReason = 'stop'
    }
    this.#piece.finishReason = (finishReason === 'stop' && this.#called ? 'tool_calls' : finishReason) ?? null
  }

  /** Ends a choice that generates nothing. */
  end(): void {
    this.#piece.finishReason = 'length'
  }

  /** The output since the last call. */
  take(): Piece {
    const piece = this.#piece
    this.#piece = emptyPiece(this.#index)
    return piece
  }

  #take({ text, reasoning, calls }: AnswerParts): void {
    this.#piece.text += text
    this.#piece.reasoning += reasoning
    this.#piece.calls.push(...calls)
    this.#called ||= calls.length > 0
  }
}

const emptyPiece = (index: number): Piece => ({ index, text: '', reasoning: '', calls: [], tokens: [], finishReason: null })
