import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { memory } from '../src/index.js'

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

/** Collects what earlier tests left behind, so that the engine does not give it back in the middle of a count of its memory. */
export async function collectGarbage(): Promise<void> {
  await heldBytes()
}

/** What the engine has allocated, without what earlier tests and test files left behind: the first half of every count of memory. */
export async function heldBytes(): Promise<number> {
  for (let held = Number.POSITIVE_INFINITY; ; ) {
    collect()
    await new Promise((resolve) => setImmediate(resolve)) // finalizers run before it
    const { bytes } = memory()
    if (bytes >= held) return held
    held = bytes
  }
}
