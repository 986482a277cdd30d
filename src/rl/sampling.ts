import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import type { ExitRule } from '../model/exit-rules.js'
import type { LoopLM } from '../model/model.js'
import type { GenerateOptions, StateOptions } from '../model/types.js'
import type { PolicyConfig } from './options.js'

/** A trainer's options for sampling rollouts. The caller adds a seed, a signal and lengths. */
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

/** A choice of initial states, for families whose loops start from one. */
export interface StateChoice {
  /** `zeros`, or `drawn` from `stateSeed` and the tokens. Defaults to `drawn`. */
  initialState?: 'drawn' | 'zeros' | undefined
  /** Seed of drawn initial states. Defaults to 0. */
  stateSeed?: number | undefined
}

/** Options of the model with the initial states, if they are chosen. */
export function startingFrom({ initialState, stateSeed }: StateChoice): Omit<StateOptions, 'initialStates'> {
  return { ...(initialState === undefined ? {} : { initialState }), ...(stateSeed === undefined ? {} : { stateSeed }) }
}

/** A constraint on responses. */
export interface Constrained {
  grammar?: GenerateOptions['grammar'] | undefined
}

/** Generation options with the grammar, if there is one. */
export function constrained({ grammar }: Constrained): GenerateOptions {
  return grammar === undefined ? {} : { grammar }
}

/**
 * Checks that the model's tokenizer, which a grammar uses, is that of the data.
 *
 * @param tokenizer of the data
 * @throws LoopLMError INVALID_CONFIG if it is another one
 */
export function checkGrammarTokenizer(model: LoopLM, tokenizer: Tokenizer, operation: string): void {
  const own = model.tokenizer
  if (own === undefined || own.fingerprint === tokenizer.fingerprint) return
  const message =
    'grammar: the data uses another tokenizer than the model, and a grammar needs the one that encoded the data; set ' +
    'model.tokenizer to the tokenizer of the data'
  throw new LoopLMError('INVALID_CONFIG', message, { operation })
}

/** The exit rule of rollouts. */
export function rolloutExit({ exit, exitThreshold }: Pick<PolicyConfig, 'exit' | 'exitThreshold'>): ExitRule {
  if (exitThreshold !== undefined) return { rule: 'gate', threshold: exitThreshold }
  return exit ?? { rule: 'fixed' }
}
