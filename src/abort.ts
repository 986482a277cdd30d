interface Watch {
  callbacks: Set<() => void>
  fire: () => void
}
const watches = new WeakMap<AbortSignal, Watch>()

/**
 * Calls `callback` when the signal fires, or in a microtask if it has already fired. A signal gets only one listener, however
 * many callbacks wait, because Node warns of a leak from the eleventh listener on.
 *
 * @returns a function that cancels the wait
 */
export function whenAborted(signal: AbortSignal | undefined, callback: () => void): () => void {
  if (signal === undefined) return () => {}
  if (signal.aborted) {
    queueMicrotask(callback)
    return () => {}
  }
  const { callbacks, fire } = watches.get(signal) ?? watch(signal)
  callbacks.add(callback)
  return () => {
    if (!callbacks.delete(callback) || callbacks.size > 0) return
    signal.removeEventListener('abort', fire)
    watches.delete(signal)
  }
}

function watch(signal: AbortSignal): Watch {
  const callbacks = new Set<() => void>()
  const fire = () => {
    watches.delete(signal)
    for (const callback of callbacks) callback()
  }
  signal.addEventListener('abort', fire, { once: true })
  const made = { callbacks, fire }
  watches.set(signal, made)
  return made
}
