import { LoopLMError } from '../errors.js'
import type { TrainerEvent } from './events.js'

type Events = AsyncGenerator<TrainerEvent, void, undefined>

/** Whether a run is computing or waits for its caller, and what gives its folder back. */
interface State {
  computing: boolean
  unlock: (() => void) | undefined
}

function release(state: State): void {
  const { unlock } = state
  state.unlock = undefined
  unlock?.()
}

const dropped = new FinalizationRegistry<State>(release) // iterators that nobody holds and nobody ended

/**
 * The run of a trainer, of which there is one at a time. Its folder is locked from the first event on until the run ends, the caller's loop
 * is left, the iterator is collected, or {@link OngoingRun.release} is called.
 */
export class OngoingRun {
  #newest: { events: WeakRef<Events>; state: State } | undefined

  /**
   * A run that begins when its first event is asked for. An earlier one of the trainer whose caller has not asked for more is ended first.
   *
   * @param lock called before anything else; what it returns gives the folder back
   * @param warn told when an earlier run is ended
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

  /** Gives the folder back where the run waits for its caller. */
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
