import type { ChatAnswer, ChatPiece } from './options.js'

/**
 * A turn in progress. {@link ChatSession.stream} creates one. Iterate over its tokens, or wait for its result. It runs even if
 * nobody iterates. Breaking out of the iteration stops it.
 */
export class ChatTurn implements AsyncIterable<ChatPiece> {
  readonly #pieces: ChatPiece[] = []
  readonly #answer: Promise<ChatAnswer>
  readonly #stopping = new AbortController()
  #ended = false
  #notify: () => void = () => {}
  #change: Promise<void>

  /** @internal */
  constructor(run: (push: (piece: ChatPiece) => void, stopped: AbortSignal) => Promise<ChatAnswer>) {
    this.#change = this.#next()
    const push = (piece: ChatPiece) => {
      this.#pieces.push(piece)
      this.#notify()
    }
    const end = () => {
      this.#ended = true
      this.#notify()
    }
    this.#answer = run(push, this.#stopping.signal)
    this.#answer.then(end, end)
  }

  /**
   * Resolves to the whole response when the turn has ended.
   *
   * @throws LoopLMError ABORTED if its signal fires, DISPOSED, NON_FINITE and OUT_OF_MEMORY as {@link LoopLM.generate}
   */
  result(): Promise<ChatAnswer> {
    return this.#answer
  }

  /** Ends the response after its current tokens, with finish reason `cancelled`. The conversation keeps them. */
  stop(): void {
    this.#stopping.abort()
  }

  /** Yields every token, starting with the first. */
  async *[Symbol.asyncIterator](): AsyncGenerator<ChatPiece, void, undefined> {
    try {
      for (let i = 0; ; i++) {
        while (i >= this.#pieces.length && !this.#ended) await this.#change
        if (i >= this.#pieces.length) {
          await this.#answer
          return
        }
        yield this.#pieces[i]!
      }
    } finally {
      this.stop()
      await this.#answer.catch(() => {}) // now the session can take the next message
    }
  }

  /** Resolves at the next change, and prepares the promise for the change after it. */
  #next(): Promise<void> {
    return new Promise((resolve) => {
      this.#notify = () => {
        this.#change = this.#next()
        resolve()
      }
    })
  }
}
