import { types } from 'node:util'
import { LoopLMError } from '../errors.js'
import type { Architecture } from '../native/architecture.js'
import type { NativeSequences } from '../native.js'
import type { DeviceName } from '../tensor/types.js'
import { checkNumber, checkOptions, checkWord, describe, type Range } from '../validation/arguments.js'
import { type LoopLMConfig, maxLoops } from './config.js'
import type { InputOptions, InputVectors, ModelDType, RealArray, StateOptions, TokenSequence } from './types.js'

export { checkNumber, checkWord, describe }

/** The number of loops to run. 0 tells the engine to use the model's own number. */
export function checkLoops(loops: number | undefined, operation: string): number {
  return loops === undefined ? 0 : checkNumber(loops, 'loops', { min: 1, max: maxLoops, integer: true }, operation)
}

/** The loop counts of an evaluation. */
export function checkLoopCounts(counts: unknown, operation: string): void {
  if (!Array.isArray(counts) || counts.length === 0) {
    const message = `loops must be a list of at least one number of loops, such as [1, 2, 4], got ${describe(counts)}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  for (const [i, loops] of counts.entries())
    checkNumber(loops, `loops[${i}]`, { min: 1, max: maxLoops, integer: true }, operation)
}

/** With a lower temperature, logits / temperature could overflow float32. */
export const lowestTemperature = 1e-6
/** The highest temperature of a draw. From about 1e38 on, 1 / temperature could be 0, and -∞ · 0 is NaN. */
export const highestTemperature = 1e30

export function checkTemperature(temperature: number | undefined, operation: string): number {
  return checkNumber(temperature ?? 1, 'temperature', { min: lowestTemperature }, operation)
}

/** The dtype of a model on a device. Defaults to float64 on device `reference` and to `fallback` elsewhere. */
export function checkDType<Fallback extends ModelDType | undefined>(
  dtype: unknown,
  device: DeviceName,
  fallback: Fallback,
  operation: string,
): ModelDType | Fallback {
  const onReference = device === 'reference'
  if (dtype === undefined && !onReference) return fallback
  const word = checkWord(dtype ?? 'float64', 'dtype', ['float32', 'bfloat16', 'float64'], operation)
  if (onReference === (word === 'float64')) return word
  const message = onReference
    ? `a model on device reference computes in float64, not in ${word}`
    : `float64 is computed on device reference only, not on ${device}`
  throw new LoopLMError('UNSUPPORTED', message, { operation })
}

/** The limits that {@link packSequences} enforces. */
export interface SequenceLimits {
  vocabulary: number
  minLength: number
  /** The model's max_position_embeddings. Later positions were never trained and would give nonsense without an error. */
  positions?: number
  /** Positions to reserve for new tokens. Defaults to 0. */
  room?: number
  promptLengths?: ArrayLike<number> | undefined
  /** What the caller calls the sequences, or the only one of them. Defaults to `sequences`. */
  name?: 'prompt' | 'prompts'
}

/** The limits that apply to every sequence of a model. */
export function sequenceLimits(config: LoopLMConfig): Pick<Required<SequenceLimits>, 'vocabulary' | 'positions'> {
  return { vocabulary: config.vocab_size, positions: config.max_position_embeddings }
}

/** Reads how initial states are made if none are given. Rejects given states for families that start from the tokens alone. */
export function readStates(options: StateOptions, { begin, family }: Architecture, operation: string) {
  const { initialStates, initialState = 'drawn', stateSeed = 0 } = options
  const word = checkWord(initialState, 'initialState', ['drawn', 'zeros'], operation)
  const seed = checkNumber(stateSeed, 'stateSeed', { min: 0, integer: true }, operation)
  const stateless = !begin.some(({ kind }) => kind === 'state')
  if (stateless && initialStates !== undefined) {
    const message = `initialStates: models of family ${family} start from the tokens, not from a state; omit initialStates`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  return { stateless, stateSeed: seed, zeroStates: word === 'zeros' }
}

/** Adds the initial states of the tokens to the sequences, as the options say. */
export function withStates(
  sequences: NativeSequences,
  options: StateOptions,
  architecture: Architecture,
  operation: string,
): NativeSequences {
  const { initialStates } = options
  const { hidden } = architecture
  const { stateless, ...drawn } = readStates(options, architecture, operation)
  if (stateless) return sequences
  if (initialStates === undefined) return { ...sequences, ...drawn }
  const shape = (i: number) => [{ shape: `length × ${hidden}`, length: sequences.lengths[i]! * hidden }]
  return { ...sequences, states: packValues(initialStates, 'initialStates', shape, sequences.lengths.length, operation) }
}

/** Adds the input vectors that replace embedded tokens to the sequences, as the options say. */
export function withVectors(
  sequences: NativeSequences,
  given: InputOptions['inputVectors'],
  hidden: number,
  operation: string,
): NativeSequences {
  if (given === undefined) return sequences
  const count = sequences.lengths.length
  if (!Array.isArray(given) || given.length !== count) {
    const message = `inputVectors must be an array with one entry for each of the ${count} sequences, got ${describe(given)}`
    throw new LoopLMError('INVALID_SHAPE', message, { operation })
  }
  const tokens: number[] = []
  const values: ArrayLike<number>[] = []
  let first = 0
  for (const [i, vectors] of given.entries()) {
    const length = sequences.lengths[i]!
    if (vectors !== undefined) {
      const name = `inputVectors[${i}]`
      checkOptions<InputVectors>(vectors, { positions: true, values: true }, operation, name)
      const { positions, values: own } = vectors
      const wanted = (positions?.length ?? NaN) * hidden
      if (own?.length !== wanted) {
        const form = `one of ${hidden} numbers for each of its ${positions?.length ?? 0} positions`
        const message = `${name}.values must hold ${form}, ${wanted || 0} in all; got ${own?.length ?? describe(own)}`
        throw new LoopLMError('INVALID_SHAPE', message, { operation })
      }
      for (let k = 0; k < positions.length; k++) {
        const from = k === 0 ? 0 : positions[k - 1]! + 1 // checks that positions ascend
        const range = { min: from, max: length - 1, integer: true }
        tokens.push(
          first + checkNumber(positions[k], `${name}.positions[${k}] (of ${length} tokens, ascending)`, range, operation),
        )
      }
      values.push(own)
    }
    first += length
  }
  if (tokens.length === 0) return sequences
  return { ...sequences, vectors: { tokens: Int32Array.from(tokens), values: concatenate(values, 'inputVectors', operation) } }
}

/** Splits the gradient of all input vectors by sequence. */
export function splitVectors(gradient: RealArray, { lengths, vectors }: NativeSequences, hidden: number): RealArray[] {
  let token = 0
  let vector = 0
  return Array.from(lengths, (length) => {
    const first = vector
    token += length
    while (vectors !== undefined && vectors.tokens[vector]! < token) vector++
    return gradient.slice(first * hidden, vector * hidden)
  })
}

/** An error message if a sequence needs more positions than the model has. undefined if it fits. */
export function positionProblem(name: string, length: number, positions: number, room = 0): string | undefined {
  if (length + room <= positions) return undefined
  const more = room > 0 ? ` and room for ${room} more` : ''
  const problem = `${name} has ${length} tokens${more}; the model has ${positions} positions`
  return `${problem} (max_position_embeddings of its configuration). Shorten the sequence`
}

/** What the caller calls one of its sequences. */
export const sequenceName = (name: string, i: number): string => (name === 'prompt' ? name : `${name}[${i}]`)

/** Checks token ids and lengths, and copies the sequences into one array. */
export function packSequences(sequences: readonly TokenSequence[], limits: SequenceLimits, operation: string): NativeSequences {
  const { vocabulary, minLength, positions = Infinity, room = 0, promptLengths, name = 'sequences' } = limits
  const nameOf = (i: number) => sequenceName(name, i)
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
  if (!Array.isArray(sequences)) throw refuse(`${name} must be an array of token id arrays, got ${describe(sequences)}`)
  if (sequences.length === 0) throw refuse(`${name} is empty; give at least one sequence`)
  let total = 0
  for (const [i, sequence] of sequences.entries()) {
    if (!Array.isArray(sequence) && !types.isInt32Array(sequence)) {
      throw refuse(`${nameOf(i)} must be number[] or Int32Array, got ${describe(sequence)}`)
    }
    if (sequence.length < minLength) {
      throw refuse(`${nameOf(i)} has ${sequence.length} tokens; at least ${minLength} are needed`)
    }
    const problem = positionProblem(nameOf(i), sequence.length, positions, room)
    if (problem !== undefined) throw refuse(problem)
    total += sequence.length
  }
  if (total >= 2 ** 31) throw refuse(`${name} hold ${total} tokens; at most ${2 ** 31 - 1} fit in one call`)

  const tokens = new Int32Array(total)
  let end = 0
  for (const [i, sequence] of sequences.entries()) {
    for (let j = 0; j < sequence.length; j++) {
      const token = sequence[j]!
      if (!Number.isInteger(token) || token < 0 || token >= vocabulary) {
        throw refuse(`${nameOf(i)}[${j}] is ${describe(token)}; token ids are integers from 0 to ${vocabulary - 1}`)
      }
      tokens[end++] = token
    }
  }
  const lengths = Int32Array.from(sequences, (sequence) => sequence.length)
  return { tokens, lengths, promptLengths: checkPromptLengths(promptLengths, lengths, operation) }
}

function checkPromptLengths(promptLengths: ArrayLike<number> | undefined, lengths: Int32Array, operation: string): Int32Array {
  if (promptLengths === undefined) return new Int32Array(0)
  if (promptLengths?.length !== lengths.length) {
    const message = `promptLengths must have one entry for each of the ${lengths.length} sequences, got ${describe(promptLengths)}`
    throw new LoopLMError(promptLengths?.length === undefined ? 'INVALID_ARGUMENT' : 'INVALID_SHAPE', message, { operation })
  }
  return lengths.map((length, i) => {
    const range = { min: 1, max: length - 1, integer: true }
    return checkNumber(promptLengths[i], `promptLengths[${i}] (of a sequence of ${length} tokens)`, range, operation)
  })
}

/**
 * Concatenates per-sequence arrays.
 *
 * @param allowed the lengths that are allowed for a sequence; all sequences must choose the same alternative
 */
export function packValues(
  values: readonly ArrayLike<number>[] | undefined,
  name: string,
  allowed: (sequence: number) => { shape: string; length: number }[],
  sequences: number,
  operation: string,
): Float64Array {
  if (values === undefined) return new Float64Array(0)
  if (!Array.isArray(values) || values.length !== sequences) {
    const message = `${name} must be an array with one entry for each of the ${sequences} sequences, got ${describe(values)}`
    throw new LoopLMError('INVALID_SHAPE', message, { operation })
  }
  let form: number | undefined
  for (const [i, row] of values.entries()) {
    const forms = allowed(i)
    const found = forms.findIndex((candidate) => candidate.length === row?.length)
    form ??= found
    if (found === -1 || (found !== form && forms[form]!.length !== row.length)) {
      const shapes = forms.map(({ shape, length }) => `${shape} = ${length}`).join(' or ')
      const message = `${name}[${i}] must have ${shapes} entries (the same form for every sequence), got ${row?.length ?? describe(row)}`
      throw new LoopLMError('INVALID_SHAPE', message, { operation })
    }
  }
  return concatenate(values, name, operation)
}

/** Concatenates per-sequence arrays of integers. */
export function packIntegers(
  values: readonly ArrayLike<number>[] | undefined,
  name: string,
  allowed: Parameters<typeof packValues>[2],
  range: Range,
  sequences: number,
  operation: string,
): Int32Array {
  const packed = packValues(values, name, allowed, sequences, operation)
  const limits = { min: -(2 ** 31), max: 2 ** 31 - 1, ...range, integer: true }
  return Int32Array.from(packed, (value, i) => checkNumber(value, `${name} (entry ${i} of all)`, limits, operation))
}

/** Checks that there is one number for each of so many things: sequences, or loops. */
export function packOneEach(
  values: ArrayLike<number>,
  name: string,
  count: number,
  operation: string,
  things = 'sequences',
): Float64Array {
  if (values?.length !== count) {
    const message = `${name} must have one entry for each of the ${count} ${things}, got ${values?.length ?? describe(values)}`
    throw new LoopLMError('INVALID_SHAPE', message, { operation })
  }
  return concatenate([values], name, operation)
}

function concatenate(values: readonly ArrayLike<number>[], name: string, operation: string): Float64Array {
  const packed = new Float64Array(values.reduce((sum, row) => sum + row.length, 0))
  let end = 0
  for (const row of values) {
    checkNumbers(row, name, operation)
    packed.set(row, end)
    end += row.length
  }
  const bad = packed.findIndex((value) => !Number.isFinite(value))
  if (bad === -1) return packed
  throw new LoopLMError('NON_FINITE', `${name} holds ${packed[bad]} (entry ${bad} of all)`, { operation })
}

/** Rejects entries that are not numbers: null and strings would silently become numbers. */
function checkNumbers(row: ArrayLike<number>, name: string, operation: string): void {
  const refuse = (found: string) =>
    new LoopLMError('INVALID_ARGUMENT', `${name} must hold numbers alone, got ${found}`, { operation })
  if (ArrayBuffer.isView(row)) {
    if (types.isBigInt64Array(row) || types.isBigUint64Array(row)) throw refuse(describe(row))
    return
  }
  for (let j = 0; j < row.length; j++) if (typeof row[j] !== 'number') throw refuse(`${describe(row[j])} (entry ${j} of a row)`)
}
