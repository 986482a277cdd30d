import { types } from 'node:util'
import { LoopLMError } from '../errors.js'
import type { NativeLogitOptions } from '../native.js'
import { checkNumber, describe } from '../validation/arguments.js'
import type { GenerateOptions } from './types.js'

/** Sums and products of logits, biases and penalties within these limits are finite in float32, also for 2^24 tokens. */
const additive = { min: -1e30, max: 1e30 }
const factor = { min: 1e-6, max: 1e6 }

/** The options that change logits before a token is drawn, in the form that the engine takes. */
export function readLogitOptions(options: GenerateOptions, vocabulary: number, operation: string): NativeLogitOptions {
  const { logitBias, bannedTokens, logitsProcessor } = options
  const penalty = (name: 'frequencyPenalty' | 'presencePenalty') => checkNumber(options[name] ?? 0, name, additive, operation)
  const biases = readBiases(logitBias, vocabulary, operation)
  if (logitsProcessor !== undefined && typeof logitsProcessor !== 'function')
    throw refuse(`logitsProcessor must be a function of (logits, context), got ${describe(logitsProcessor)}`, operation)
  return {
    biasTokens: Int32Array.from(biases.keys()),
    biases: Float64Array.from(biases.values()),
    bannedTokens: readBanned(bannedTokens, vocabulary, operation),
    repetitionPenalty: checkNumber(options.repetitionPenalty ?? 1, 'repetitionPenalty', factor, operation),
    frequencyPenalty: penalty('frequencyPenalty'),
    presencePenalty: penalty('presencePenalty'),
    host: options.grammar !== undefined ? 'mask' : logitsProcessor === undefined ? 'none' : 'logits',
  }
}

const refuse = (message: string, operation: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })

/** Reads the biases. Biases of 0 are dropped. */
function readBiases(given: GenerateOptions['logitBias'], vocabulary: number, operation: string): Map<number, number> {
  if (given === undefined) return new Map()
  if (typeof given !== 'object' || given === null || Array.isArray(given))
    throw refuse(`logitBias must be an object or a Map from token ids to numbers, got ${describe(given)}`, operation)
  const entries: [unknown, unknown][] = types.isMap(given) ? [...given] : Object.entries(given)
  const out = new Map<number, number>()
  for (const [key, bias] of entries) {
    const id = typeof key === 'string' && /^\d+$/.test(key) ? Number(key) : key
    const token = checkNumber(id, 'an id of logitBias', { min: 0, max: vocabulary - 1, integer: true }, operation)
    const value = checkNumber(bias, `logitBias[${token}]`, additive, operation)
    if (value !== 0) out.set(token, value)
  }
  return out
}

function readBanned(given: GenerateOptions['bannedTokens'], vocabulary: number, operation: string): Int32Array {
  if (given === undefined) return new Int32Array()
  if (!Array.isArray(given)) throw refuse(`bannedTokens must be an array of token ids, got ${describe(given)}`, operation)
  const range = { min: 0, max: vocabulary - 1, integer: true }
  return Int32Array.from(new Set(given.map((id, i) => checkNumber(id, `bannedTokens[${i}]`, range, operation))))
}

/** Checks the logits that a processor returned. */
export function checkedLogits(given: ArrayLike<number>, vocabulary: number, operation: string): Float64Array {
  if (typeof given?.length !== 'number' || given.length !== vocabulary)
    throw refuse(`logitsProcessor must return ${vocabulary} logits, or nothing, got ${describe(given)}`, operation)
  const logits = Float64Array.from(given)
  const rounded = Float32Array.from(logits) // the engine computes in float32
  const bad = rounded.findIndex((logit) => Number.isNaN(logit) || logit === Infinity)
  if (bad !== -1)
    throw refuse(
      `logitsProcessor set the logit of token ${bad} to ${logits[bad]}: use finite float32 numbers or -Infinity`,
      operation,
    )
  if (rounded.every((logit) => logit === -Infinity))
    throw refuse('logitsProcessor ruled out every token: leave at least one logit finite', operation)
  return logits
}
