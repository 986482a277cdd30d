import { AsyncLocalStorage } from 'node:async_hooks'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'

/** An action that has exclusive use of a model. */
interface Holder {
  model: LoopLM
  over: boolean
}

const newest = new WeakMap<LoopLM, Promise<unknown>>()
const around = new AsyncLocalStorage<readonly Holder[]>() // the holders that the running code is part of

/**
 * Runs an action after all earlier actions for the same model have ended, even if they failed. Gradients belong to the model,
 * so two trainers that accumulated at the same time would both step on the sum.
 *
 * @param operation names the caller in an error
 * @throws LoopLMError INVALID_ARGUMENT if called from inside such an action, which would be a deadlock; errors of the action
 */
export async function exclusively<Result>(model: LoopLM, operation: string, action: () => Promise<Result>): Promise<Result> {
  const outer = (around.getStore() ?? []).filter(({ over }) => !over)
  if (outer.some((holder) => holder.model === model)) {
    const message =
      'it was called inside a step of the same model, for example by a reward or an objective, so each would wait for the ' +
      'other. Call it between steps, or train a clone of the model'
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  const holder = { model, over: false }
  const run = async () => {
    try {
      return await around.run([...outer, holder], action)
    } finally {
      holder.over = true
    }
  }
  const result = (newest.get(model) ?? Promise.resolve()).then(run)
  newest.set(
    model,
    result.catch(() => {}), // the caller gets the error; the next action runs anyway
  )
  return result
}
