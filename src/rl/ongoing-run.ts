import { LoopLMError } from '../errors.js'
import type { TrainerEvent } from './events.js'

type Events = AsyncGenerator<TrainerEvent, void, undefined>

/** Whether a run is computing or waiting for its caller, and the function that unlocks its folder. */
interface State {
  computing: boolean
  unlock: (() => void) | undefined
}

function release(state: State): void {
  const { unlock } = state
  state.unlock = undefined
  unlock?.()
}

// releases the folders of iterators that were garbage-collected before they ended
const dropped = new FinalizationRegistry<State>(release)

/**
 * The run of a trainer, which has at most one at a time. Its folder is locked from the first event until the run ends, the
 * caller's loop exits, the iterator is garbage-collected, or {@link OngoingRun.release} is called.
 */
export class OngoingRun {
  #newest: { events: WeakRef<Events>; state: State } | undefined

  /**
   * Creates a run that begins when its first event is requested. If an earlier run of the trainer still waits for its caller,
   * it is ended first.
   *
   * @param lock called before anything else; returns a function that unlocks the folder
   * @param warn called when an earlier run is ended
   */
  begin(lock: () => Promise<(() => void) | undefined>, run: () => Events, warn: (message: string) => void): Events {
    const earlier = this.#newest
    const state: State = { computing: false, unlock: undefined }
    const events = drive(state, async () => {
      if (earlier !== undefined) await end(earlier, warn)
      state.unlock = await lock()
      return run()
    })
    this.#newest = { events: new WeakRef(events), state }
    dropped.register(events, state)
    return events
  }

  /** Unlocks the folder if the run is waiting for its caller. */
  release(): void {
    const state = this.#newest?.state
    if (state !== undefined && !state.computing) release(state)
  }
}

async function* drive(state: State, begin: () => Promise<Events>): Events {
  try {
    state.computing = true
    for await (const event of await begin()) {
      state.computing = false
      yield event
      state.computing = true
    }
  } finally {
    state.computing = false
    release(state)
  }
}

async function end({ events, state }: { events: WeakRef<Events>; state: State }, warn: (message: string) => void) {
  if (state.computing) {
    const message = 'an earlier run of this trainer is computing; wait for its next event, or make another trainer'
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'run' })
  }
  const earlier = events.deref()
  if (state.unlock !== undefined)
    warn('run was called again before the loop over an earlier run had ended; the earlier run ends here')
  await earlier?.return()
  release(state)
}
