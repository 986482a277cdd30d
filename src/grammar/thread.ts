import { Worker } from 'node:worker_threads'
import { LoopLMError } from '../errors.js'
import type { GrammarAnswer, GrammarCall } from './worker.js'

/** Tests run the TypeScript sources, but a worker thread needs the compiled file. */
const compiled = import.meta.url.endsWith('.ts') ? '../../dist/src/grammar/' : './'

/** A thread that runs the grammar library. It keeps the process alive only while a call is pending. */
export class GrammarThread {
  readonly #worker = new Worker(new URL(`${compiled}worker.js`, import.meta.url), { stdout: false, stderr: false })
  readonly #waiting = new Map<number, { resolve(masks: Int32Array | undefined): void; reject(error: Error): void }>()
  #next = 0
  /** The error after which no more calls are possible. */
  broken: Error | undefined

  constructor() {
    this.#worker.unref()
    this.#worker.on('message', (answer: GrammarAnswer) => {
      const waiting = this.#waiting.get(answer.id)
      this.#waiting.delete(answer.id)
      if (this.#waiting.size === 0) this.#worker.unref()
      if (!('problem' in answer)) return waiting?.resolve(answer.masks)
      const error = new LoopLMError('INVALID_ARGUMENT', answer.problem, { operation: 'grammar' })
      waiting?.reject(error)
      this.stop(
        new LoopLMError('INTERNAL', `another grammar ended the thread of grammars: ${answer.problem}`, { operation: 'grammar' }),
      )
    })
    this.#worker.on('error', (error) => this.stop(error))
  }

  call(call: GrammarCall): Promise<Int32Array | undefined> {
    if (this.broken !== undefined) return Promise.reject(this.broken)
    return new Promise((resolve, reject) => {
      const id = this.#next++
      this.#waiting.set(id, { resolve, reject })
      this.#worker.ref()
      this.#worker.postMessage({ ...call, id })
    })
  }

  stop(error: Error): void {
    if (this.broken !== undefined) return
    this.broken = error
    for (const { reject } of this.#waiting.values()) reject(error)
    this.#waiting.clear()
    void this.#worker.terminate()
  }
}
