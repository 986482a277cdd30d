import { LoopLMError } from '../errors.js'
import { beginGrammar, type GrammarSession } from '../grammar/sessions.js'
import type { GeneratingModel, Request } from './request.js'

/** Tells, step by step, which tokens a request with a grammar may draw. */
export class Constraint {
  readonly #request: Request
  readonly #operation: string
  readonly #session: Promise<GrammarSession>
  #made = 0

  constructor(model: GeneratingModel, request: Request, operation: string) {
    this.#request = request
    this.#operation = operation
    this.#session = beginGrammar(model.tokenizer!, model.config.vocab_size, request.grammar!)
    this.#session.catch(() => {}) // `next` reports the error
  }

  /**
   * One bit per token that may be drawn after `token`, or at the start. undefined if the text is complete and no end token
   * exists to end it.
   *
   * @throws LoopLMError INVALID_ARGUMENT when the grammar is wrong, or when no token of the vocabulary can continue the text
   */
  async next(token?: number): Promise<Int32Array | undefined> {
    const { stopTokens, bannedTokens } = this.#request.native
    const { allowed, mayEnd } = await (await this.#session).next(token)
    if (token !== undefined) this.#made++
    const put = (ids: Int32Array, on: boolean) => {
      for (const id of ids) allowed[id >> 5] = on ? allowed[id >> 5]! | (1 << (id & 31)) : allowed[id >> 5]! & ~(1 << (id & 31))
    }
    put(stopTokens, mayEnd) // a stop token that is also text would end the text too early
    put(bannedTokens, false)
    if (allowed.some((word) => word !== 0)) return allowed
    if (mayEnd) return undefined
    const message =
      `grammar: no allowed token can follow after ${this.#made} tokens: the tokenizer lacks the characters that come ` +
      'next, or bannedTokens or stop excludes them'
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation: this.#operation })
  }

  close(): void {
    this.#session.then((session) => session.close()).catch(() => {})
  }
}
