import type { LoopLMError } from '../errors.js'

export const maxTimeout = 2_147_483 // seconds; longer timers of Node fire immediately

/**
 * Resolves to a promise's value, unless the time limit passes or the signal fires first. Later results of the promise are
 * ignored.
 *
 * @param seconds at most `maxTimeout`; 0: no limit
 * @param late creates the error of the time limit
 */
export async function within<T>(promise: Promise<T>, seconds: number, signal: AbortSignal, late: () => LoopLMError): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  let stop: (() => void) | undefined
  const cut = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason)
    if (signal.aborted) stop()
    else signal.addEventListener('abort', stop)
    if (seconds > 0) timer = setTimeout(() => reject(late()), 1000 * seconds)
  })
  try {
    return await Promise.race([promise, cut])
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', stop!)
  }
}
