import { checkLoopChoice } from '../model/loops.js'
import type { LoopLM } from '../model/model.js'
import { refuseOptions } from '../validation/schema.js'
import type { TrainedLoops } from './objective/loops.js'
import type { LoopConfig } from './options.js'

/**
 * The loops of a trainer, checked against its model.
 *
 * @throws LoopLMError INVALID_CONFIG naming the option
 */
export function trainedLoops(trainer: string, { architecture }: LoopLM, config: LoopConfig): TrainedLoops {
  const { loops = architecture.loops, readLoops, backwardLoops, initialState, stateSeed } = config
  if (loops > architecture.loops && architecture.fixedLoops === true) {
    const problem = `${loops} is more than the ${architecture.loops} loops of the model, and family ${architecture.family} has a fixed number`
    throw refuseOptions(trainer, `loops: ${problem}`)
  }
  checkLoopChoice({ loops, readLoops, backwardLoops }, architecture, trainer)
  const run = readLoops?.at(-1) ?? loops
  return {
    run,
    read: readLoops ?? Array.from({ length: run }, (_, t) => t + 1),
    scoring: { loops: run, ...(readLoops === undefined ? {} : { readLoops }), initialState, stateSeed },
    ...(backwardLoops === undefined ? {} : { backwardLoops }),
  }
}
