import type { LoopLMError } from '../errors.js'

/**
 * A promise's value, unless a number of seconds passes first or the signal fires. What the promise does later counts no more.
 *
 * @param seconds 0: never
 * @param late the error after that time
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
