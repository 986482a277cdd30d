// Active grammars. One thread runs all of them. New grammars are first tried in another thread, because the library aborts on
// an invalid grammar.
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import { byteCharacters, characterOfByte } from '../tokenizer/byte-characters.js'
import { GrammarThread } from './thread.js'

/** The tokens that a row may draw next. */
export interface NextTokens {
  /** Bit v % 32 of word v / 32: whether token v is allowed. */
  allowed: Int32Array
  /** Whether the text may end here. */
  mayEnd: boolean
  /** Whether any token is allowed. */
  any: boolean
}

/** A text that grows by tokens under a grammar. */
export interface GrammarSession {
  /** The tokens that may follow `token`, or that may come at the start. */
  next(token?: number): Promise<NextTokens>
  close(): void
}

const mostGrammars = 64 // how many compiled grammars are kept
const mostCharacters = 1_000_000 // limit for the length of a grammar
const longestTrial = 20_000 // in milliseconds
const bytes = 0 // the number of the vocabulary with which grammars are tried

let thread: Sessions | undefined
let trials: GrammarThread | undefined

/**
 * Begins a text.
 *
 * @param vocabulary number of tokens of the model; those that the tokenizer lacks are never allowed
 * @param ebnf the grammar; its start rule is root
 * @throws LoopLMError INVALID_ARGUMENT with what is wrong with the grammar
 */
export async function beginGrammar(tokenizer: Tokenizer, vocabulary: number, ebnf: string): Promise<GrammarSession> {
  if (thread?.broken ?? true) thread = new Sessions()
  return await thread!.begin(tokenizer, vocabulary, ebnf)
}

class Sessions {
  readonly #thread = new GrammarThread()
  readonly #vocabularies = new WeakMap<Tokenizer, Map<number, Promise<number>>>()
  readonly #grammars = new Map<string, Promise<number>>()
  readonly #collected = new FinalizationRegistry<number>((vocabulary) => this.#forgetVocabulary(vocabulary))
  #made = 1
  #queue: { move: [number, number, number]; resolve(masks: Int32Array): void; reject(error: unknown): void }[] = []
  #closed: number[] = []

  get broken(): boolean {
    return this.#thread.broken !== undefined
  }

  async begin(tokenizer: Tokenizer, size: number, ebnf: string): Promise<GrammarSession> {
    if (ebnf.length > mostCharacters) {
      const message = `grammar: it has ${ebnf.length} characters of EBNF, and may have ${mostCharacters}; make it smaller`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'grammar' })
    }
    const compile = async () => await this.#compile(await this.#vocabulary(tokenizer, size), ebnf)
    await compile()
    const session = this.#made++
    let begun = false
    return {
      next: async (token = -1) => {
        const grammar = begun ? -1 : await compile() // again, if others replaced it since
        const mask = await this.#move([session, grammar, token])
        begun = true
        return readMask(mask, size)
      },
      close: () => void this.#closed.push(session),
    }
  }

  #vocabulary(tokenizer: Tokenizer, size: number): Promise<number> {
    const known = this.#vocabularies.get(tokenizer) ?? new Map<number, Promise<number>>()
    this.#vocabularies.set(tokenizer, known)
    const made = known.get(size) ?? this.#makeVocabulary(tokenizer, size)
    known.set(size, made)
    return made
  }

  async #makeVocabulary(tokenizer: Tokenizer, size: number): Promise<number> {
    const tokens: string[] = []
    let turn = performance.now()
    for (let id = 0; id < size; id++) {
      tokens.push(tokenizer.isSkipped(id) ? '' : byteCharacters(tokenizer.tokenBytes(id)))
      if (id % 256 > 0 || performance.now() - turn < 5) continue
      await new Promise((resolve) => setImmediate(resolve))
      turn = performance.now()
    }
    const vocabulary = this.#made++
    await this.#thread.call({ kind: 'vocabulary', vocabulary, tokens })
    this.#collected.register(tokenizer, vocabulary)
    return vocabulary
  }

  /** Compiles a grammar. The most recently used ones are kept. */
  #compile(vocabulary: number, ebnf: string): Promise<number> {
    const key = `${vocabulary} ${ebnf}`
    const known = this.#grammars.get(key)
    this.#grammars.delete(key)
    const made = known ?? this.#makeGrammar(vocabulary, ebnf)
    this.#grammars.set(key, made)
    made.catch(() => this.#grammars.delete(key))
    const [oldest] = this.#grammars
    if (this.#grammars.size > mostGrammars && oldest !== undefined) this.#forget(...oldest)
    return made
  }

  #forget(key: string, made: Promise<number>): void {
    this.#grammars.delete(key)
    const forget = (grammar: number) => this.#thread.call({ kind: 'forget', grammar }).catch(() => {})
    made.then((grammar) => setImmediate(forget, grammar)).catch(() => {}) // later than the moves of texts that begin now
  }

  /** Frees what the library keeps of a tokenizer that no longer exists. */
  #forgetVocabulary(vocabulary: number): void {
    for (const [key, made] of this.#grammars) if (key.startsWith(`${vocabulary} `)) this.#forget(key, made)
    this.#thread.call({ kind: 'forget vocabulary', vocabulary }).catch(() => {})
  }

  async #makeGrammar(vocabulary: number, ebnf: string): Promise<number> {
    await tryGrammar(ebnf)
    const grammar = this.#made++
    await this.#thread.call({ kind: 'compile', vocabulary, grammar, ebnf })
    return grammar
  }

  /** Moves of the same tick are sent together. */
  #move(move: [number, number, number]): Promise<Int32Array> {
    return new Promise((resolve, reject) => {
      this.#queue.push({ move, resolve, reject })
      if (this.#queue.length === 1) queueMicrotask(() => void this.#send())
    })
  }

  async #send(): Promise<void> {
    const queue = this.#queue
    const closed = this.#closed
    this.#queue = []
    this.#closed = []
    try {
      const moves = Int32Array.from(queue.flatMap(({ move }) => move))
      const masks = (await this.#thread.call({ kind: 'masks', moves, closed }))!
      const words = masks.length / queue.length
      for (const [i, { resolve }] of queue.entries()) resolve(masks.subarray(i * words, (i + 1) * words))
    } catch (error) {
      for (const { reject } of queue) reject(error)
    }
  }
}

let trial: Promise<void> = Promise.resolve()

/**
 * Tries a grammar in a separate thread, which ends if the grammar is invalid or takes too long. One grammar is tried at a time.
 */
function tryGrammar(ebnf: string): Promise<void> {
  const tried = trial.then(() => tryNow(ebnf))
  trial = tried.catch(() => {})
  return tried
}

async function tryNow(ebnf: string): Promise<void> {
  if (trials === undefined || trials.broken !== undefined) {
    trials = new GrammarThread()
    await trials.call({ kind: 'vocabulary', vocabulary: bytes, tokens: characterOfByte })
  }
  const own = trials
  const timer = setTimeout(() => {
    const message = `grammar: it was not compiled within ${longestTrial / 1000} seconds; make it smaller`
    own.stop(new LoopLMError('INVALID_ARGUMENT', message, { operation: 'grammar' }))
  }, longestTrial)
  try {
    await own.call({ kind: 'compile', vocabulary: bytes, grammar: 0, ebnf })
    await own.call({ kind: 'masks', moves: Int32Array.of(0, 0, -1), closed: [] })
    await own.call({ kind: 'masks', moves: new Int32Array(), closed: [0] })
    await own.call({ kind: 'forget', grammar: 0 })
  } finally {
    clearTimeout(timer)
  }
}

/** `mask` has one bit per token, followed by one for the end. */
function readMask(mask: Int32Array, size: number): NextTokens {
  const allowed = mask.slice(0, Math.ceil(size / 32))
  const mayEnd = ((mask[size >> 5]! >>> (size & 31)) & 1) === 1
  if (size % 32 > 0) allowed[allowed.length - 1]! &= (1 << (size % 32)) - 1
  return { allowed, mayEnd, any: allowed.some((word) => word !== 0) }
}
