import { HttpError } from './http-error.js'

/** A sequence's slot: granted immediately or in turn, and released when the sequence ends. */
export interface Place {
  /** Resolves when the sequence may run; rejects with the signal's reason. */
  granted: Promise<void>
  /** Releases the slot, whether it was granted or not. May be called twice. */
  release(): void
}

interface Waiting {
  grant(): void
}

/**
 * Bounds the number of running and of waiting sequences. Sequences run in the order of their arrival. Either all sequences of a
 * request are admitted or none.
 */
export class Admission {
  running = 0
  readonly maxRunning: number
  readonly maxWaiting: number
  readonly #queue: Waiting[] = []
  #meanSeconds = 1 // duration of a sequence, moving average

  constructor(maxRunning: number, maxWaiting: number) {
    this.maxRunning = maxRunning
    this.maxWaiting = maxWaiting
  }

  get waiting(): number {
    return this.#queue.length
  }

  /**
   * Admits the sequences of one request.
   *
   * @throws HttpError 429 with Retry-After if there is no room now, 400 if there never is
   */
  admit(sequences: number, signal: AbortSignal): Place[] {
    const room = this.maxRunning + this.maxWaiting
    if (sequences > room) {
      throw new HttpError(400, `n: ${sequences} sequences in one request are more than the ${room} that this server holds`, {
        param: 'n',
        code: 'invalid_value',
      })
    }
    if (this.running + this.waiting + sequences > room) {
      const seconds = Math.min(60, Math.max(1, Math.ceil((this.#meanSeconds * (this.waiting + 1)) / this.maxRunning)))
      const message = `${this.running} sequences run and ${this.waiting} wait; try again in ${seconds} s`
      throw new HttpError(429, message, { code: 'queue_full', headers: { 'retry-after': String(seconds) } })
    }
    return Array.from({ length: sequences }, () => this.#place(signal))
  }

  #place(signal: AbortSignal): Place {
    let state: 'waiting' | 'running' | 'released' = 'waiting'
    let started = 0
    const waiting: Waiting = { grant: () => {} }
    let leave = () => {}
    const granted = new Promise<void>((resolve, reject) => {
      leave = () => reject(signal.reason)
      waiting.grant = () => {
        state = 'running'
        started = performance.now()
        this.running++
        signal.removeEventListener('abort', leave)
        resolve()
      }
    })
    granted.catch(() => {}) // the request may fail before it awaits this slot
    if (signal.aborted) leave()
    else signal.addEventListener('abort', leave)
    const release = () => {
      signal.removeEventListener('abort', leave)
      if (state === 'running') {
        this.running--
        this.#meanSeconds = 0.9 * this.#meanSeconds + (0.1 * (performance.now() - started)) / 1000
      } else if (state === 'waiting') {
        const at = this.#queue.indexOf(waiting)
        if (at !== -1) this.#queue.splice(at, 1)
      }
      state = 'released'
      this.#next()
    }
    this.#queue.push(waiting)
    this.#next()
    return { granted, release }
  }

  #next(): void {
    while (this.running < this.maxRunning && this.#queue.length > 0) this.#queue.shift()!.grant()
  }
}
