import type { LoopLM } from '../model/model.js'
import { parseOptions } from '../validation/schema.js'
import { classicSchedule } from './classic-objective.js'
import { rlttOptions } from './config-rollouts.js'
import type { RLTTConfig, RLTTOptions } from './options.js'
import { PolicyGradientTrainer } from './policy-gradient.js'

/**
 * RLTT, reinforcement learning on the latent thoughts of every loop (arXiv 2602.10520; math.md §4). It is the policy gradient
 * of the log-probabilities after each loop, weighted by the probability of exiting there, so that early loops get credit too.
 *
 * The constructor reads and writes nothing. `update` and `gradients` need no task and no reward.
 *
 * @example
 * ```ts
 * const trainer = new RLTTTrainer(model, { task: addition({ digits: 3 }), steps: 200, learningRate: 2e-4, runDir: 'runs/addition' })
 * for await (const event of trainer.run()) if (event.type === 'step') console.log(event.step, event.metrics.reward)
 * ```
 */
export class RLTTTrainer extends PolicyGradientTrainer<RLTTConfig> {
  /**
   * @param model the model to train, in place
   * @param options see {@link RLTTOptions}; `looplm options rltt` lists them
   * @throws LoopLMError INVALID_CONFIG naming every rejected option
   */
  constructor(model: LoopLM, options: RLTTOptions = {}) {
    const config = parseOptions('RLTTTrainer', rlttOptions, options)
    super('rltt', model, config, classicSchedule(config))
  }
}
