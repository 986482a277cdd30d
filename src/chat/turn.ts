import type { ChatAnswer, ChatPiece } from './options.js'

/**
 * An answer under way; {@link ChatSession.stream} makes one. Iterate over its tokens, or wait for its result. It goes on whether or not
 * anyone listens; leaving the iteration early stops it.
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
   * The whole answer, once it has ended.
   *
   * @throws LoopLMError ABORTED by its signal, DISPOSED, NON_FINITE and OUT_OF_MEMORY as {@link LoopLM.generate}
   */
  result(): Promise<ChatAnswer> {
    return this.#answer
  }

  /** Ends the answer where it is, with finish reason `cancelled`. The conversation keeps what was said. */
  stop(): void {
    this.#stopping.abort()
  }

  /** Every token from the first, as it comes. */
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
      await this.#answer.catch(() => {}) // the session is free for the next message
    }
  }

  /** Resolves at the next change, which begins the wait for another one. */
  #next(): Promise<void> {
    return new Promise((resolve) => {
      this.#notify = () => {
        this.#change = this.#next()
        resolve()
      }
    })
  }
}
