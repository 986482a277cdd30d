import type { ExitRule } from '../model/exit-rules.js'
import type { GenerateOptions } from '../model/types.js'
import type { PolicyConfig } from './options.js'

/** How a trainer's options draw the tokens of rollouts; a seed, a signal and lengths are the caller's. */
export function samplingOptions(config: PolicyConfig): GenerateOptions {
  const { temperature, topK, topP, minP, repetitionPenalty, frequencyPenalty, presencePenalty, initialState, stateSeed } = config
  const { logitBias, bannedTokens, loops } = config
  return {
    ...{ temperature, topK, topP, minP, repetitionPenalty, frequencyPenalty, presencePenalty, initialState, stateSeed },
    ...(logitBias === undefined ? {} : { logitBias }),
    ...(bannedTokens === undefined ? {} : { bannedTokens }),
    ...(loops === undefined ? {} : { loops }),
    exit: rolloutExit(config),
  }
}

/** Where tokens of rollouts leave the loops. */
export function rolloutExit({ exit, exitThreshold }: Pick<PolicyConfig, 'exit' | 'exitThreshold'>): ExitRule {
  if (exitThreshold !== undefined) return { rule: 'gate', threshold: exitThreshold }
  return exit ?? { rule: 'fixed' }
}
