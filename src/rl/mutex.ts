import { AsyncLocalStorage } from 'node:async_hooks'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'

/** An action that has a model to itself. */
interface Holder {
  model: LoopLM
  over: boolean
}

const newest = new WeakMap<LoopLM, Promise<unknown>>()
const around = new AsyncLocalStorage<readonly Holder[]>() // those that the running code is part of

/**
 * Runs an action when those that were given before for the same model have ended, whoever gave them and however they ended. Gradients
 * belong to the model, so two trainers that accumulated at the same time would each step on the sum of both.
 *
 * @param operation names the caller in an error
 * @throws LoopLMError INVALID_ARGUMENT when it is called from inside such an action, which would wait for itself; what the action throws
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
    result.catch(() => {}), // whoever asked hears of the error; the next one goes on
  )
  return result
}
