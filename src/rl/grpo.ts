import type { LoopLM } from '../model/model.js'
import { parseOptions } from '../validation/schema.js'
import { classicSchedule } from './classic-objective.js'
import { grpoOptions } from './config-rollouts.js'
import type { GRPOConfig, GRPOOptions } from './options.js'
import { PolicyGradientTrainer } from './policy-gradient.js'

/**
 * GRPO (DeepSeekMath, arXiv 2402.03300; math.md §3) on the last loop. It uses RLTT's code with all weight on loop T and, by
 * default, the clipped ratio of PPO. With `surrogate: 'reinforce'` it computes the same as `RLTTTrainer` with
 * `weights: 'last'`.
 *
 * @example
 * ```ts
 * const trainer = new GRPOTrainer(model, { learningRate: 1e-5, epsilonHigh: 0.28, groupSize: 4 })
 * const { loss } = await trainer.update({ sequences, promptLengths, rewards: [1, 0, 0, 1] })
 * ```
 */
export class GRPOTrainer extends PolicyGradientTrainer<GRPOConfig> {
  /**
   * @param model the model to train, in place
   * @param options see {@link GRPOOptions}; `looplm options grpo` lists them
   * @throws LoopLMError INVALID_CONFIG naming every rejected option
   */
  constructor(model: LoopLM, options: GRPOOptions = {}) {
    const config = parseOptions('GRPOTrainer', grpoOptions, options)
    super('grpo', model, config, classicSchedule(config))
  }
}
