import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import type { ExitRule } from '../model/exit-rules.js'
import type { LoopLM } from '../model/model.js'
import type { GenerateOptions } from '../model/types.js'
import type { PolicyConfig } from './options.js'

/** How a trainer's options draw the tokens of rollouts; a seed, a signal and lengths are the caller's. */
export function samplingOptions(config: PolicyConfig): GenerateOptions {
  const { temperature, topK, topP, minP, repetitionPenalty, frequencyPenalty, presencePenalty, initialState, stateSeed } = config
  const { logitBias, bannedTokens, grammar, loops, speculate } = config
  return {
    ...{ temperature, topK, topP, minP, repetitionPenalty, frequencyPenalty, presencePenalty, initialState, stateSeed },
    ...(logitBias === undefined ? {} : { logitBias }),
    ...(bannedTokens === undefined ? {} : { bannedTokens }),
    ...constrained({ grammar }),
    ...(loops === undefined ? {} : { loops }),
    ...{ exit: rolloutExit(config), speculate },
  }
}

/** What answers must be. */
export interface Constrained {
  grammar?: GenerateOptions['grammar'] | undefined
}

/** The grammar of generation options, where there is one. */
export function constrained({ grammar }: Constrained): GenerateOptions {
  return grammar === undefined ? {} : { grammar }
}

/**
 * The model finds the tokens of a grammar with its own tokenizer.
 *
 * @param tokenizer of the data
 * @throws LoopLMError INVALID_CONFIG where that is another one
 */
export function checkGrammarTokenizer(model: LoopLM, tokenizer: Tokenizer, operation: string): void {
  const own = model.tokenizer
  if (own === undefined || own.fingerprint === tokenizer.fingerprint) return
  const message =
    'grammar: the data uses another tokenizer than the model, and a grammar needs the one that encoded the data; set ' +
    'model.tokenizer to the tokenizer of the data'
  throw new LoopLMError('INVALID_CONFIG', message, { operation })
}

/** Where tokens of rollouts leave the loops. */
export function rolloutExit({ exit, exitThreshold }: Pick<PolicyConfig, 'exit' | 'exitThreshold'>): ExitRule {
  if (exitThreshold !== undefined) return { rule: 'gate', threshold: exitThreshold }
  return exit ?? { rule: 'fixed' }
}
