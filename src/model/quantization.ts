import { LoopLMError } from '../errors.js'
import type { NativeQuantization, Quantization } from '../native.js'
import { checkNumber, checkWord } from '../validation/arguments.js'
import type { LoadOptions } from './types.js'

const unquantized = (option: string) =>
  `${option} needs a quantized model: pass quantize ('int8', 'int4' or 'int4-asymmetric'), or omit ${option}`

/** The quantization that the options `quantize` and `groupSize` ask for. undefined if `quantize` is not set. */
export function checkQuantization(options: LoadOptions, operation: string): Quantization | undefined {
  if (options.quantize === undefined) {
    if (options.groupSize === undefined) return undefined
    throw new LoopLMError('INVALID_ARGUMENT', unquantized('groupSize'), { operation })
  }
  const format = checkWord(options.quantize, 'quantize', ['int8', 'int4', 'int4-asymmetric'], operation)
  const range = { min: 32, max: 2 ** 16, integer: true }
  const groupSize = checkNumber(options.groupSize ?? 64, 'groupSize', range, operation)
  return { bits: format === 'int8' ? 8 : 4, groupSize, ...(format === 'int4-asymmetric' ? { asymmetric: true } : {}) }
}

/** A quantization in words, for messages: `4 bits, asymmetric, groups of 64`. */
export const quantizationText = ({ bits, groupSize, asymmetric }: Quantization): string =>
  `${bits} bits${asymmetric ? ', asymmetric' : ''}, groups of ${groupSize}`

/** Adds the option `activations`, which is not stored in files. */
export function engineQuantization(
  quantization: Quantization | undefined,
  activations: LoadOptions['activations'],
  operation: string,
): NativeQuantization | undefined {
  if (activations === undefined) return quantization
  checkWord(activations, 'activations', ['float', 'int8'], operation)
  if (quantization !== undefined) return { ...quantization, activations }
  throw new LoopLMError('INVALID_ARGUMENT', unquantized('activations'), { operation })
}
