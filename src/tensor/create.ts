import { types } from 'node:util'
import { LoopLMError, toLoopLMError } from '../errors.js'
import { call, context, type NativeTensor, native } from '../native.js'
import { checkOptions, checkWord, describe, type Keys } from '../validation/arguments.js'
import { checkDevice } from './devices.js'
import { checkAxis, checkIntegers, checkOperand, checkTensor, dtypes, Tensor } from './tensor.js'
import type { DeviceName, DType, NestedNumbers, TensorOptions } from './types.js'

/** The data of a new tensor. */
type Source = NestedNumbers | Float32Array | Float64Array | Int32Array | Uint16Array

/** The device of a new tensor. */
interface Place<Device extends DeviceName = DeviceName> {
  /** Defaults to `cpu`. */
  device?: Device
}

const maxRank = 8 // the engine's limit
const tensorOptions = { dtype: true, device: true } satisfies Keys<TensorOptions>

/**
 * Creates a tensor with the given elements. They are copied before the call returns.
 *
 * @param data a typed array in row-major order, or numbers in nested arrays. A `Uint16Array` holds bfloat16 bits; other numbers
 *   are rounded to nearest
 * @param shape defaults to the nesting of the data, or to one axis
 * @param options dtype and device
 * @throws LoopLMError INVALID_SHAPE, INVALID_ARGUMENT, UNSUPPORTED (float64 is on device `reference` only)
 *
 * @example
 * ```ts
 * const x = tensor(new Float32Array(6), [2, 3])
 * const y = tensor([[1, 2, 3]], undefined, { dtype: 'bfloat16' })
 * ```
 */
export function tensor<D extends DType>(
  data: Source,
  shape: readonly number[] | undefined,
  options: TensorOptions<D> & Required<Pick<TensorOptions<D>, 'dtype'>>,
): Tensor<D>
/** Creates a tensor of 32-bit integers. They are copied before the call returns. */
export function tensor(data: Int32Array, shape?: readonly number[], options?: Place): Tensor<'int32'>
/** Creates a tensor from bfloat16 bits. They are copied before the call returns. */
export function tensor(data: Uint16Array, shape?: readonly number[], options?: Place): Tensor<'bfloat16'>
/** Creates a float64 tensor on device `reference`. The data is copied before the call returns. */
export function tensor(
  data: Source,
  shape: readonly number[] | undefined,
  options: Required<Place<'reference'>>,
): Tensor<'float64'>
/** Creates a float32 tensor. The data is copied before the call returns. */
export function tensor(
  data: NestedNumbers | Float32Array,
  shape?: readonly number[],
  options?: Place<Exclude<DeviceName, 'reference'>>,
): Tensor<'float32'>
export function tensor(data: Source, shape?: readonly number[], options: TensorOptions = {}): Tensor {
  const operation = 'tensor'
  checkOptions(options, tensorOptions, operation)
  const device = checkDevice(options.device, operation)
  checkData(data, operation)
  const nested = ArrayBuffer.isView(data) ? undefined : flatten(data, operation)
  const values = nested?.values ?? (data as Exclude<Source, NestedNumbers>)
  const dtype = checkDType(options.dtype ?? defaultDType(data, device), operation)
  const dimensions = shape === undefined ? (nested?.shape ?? [values.length]) : checkIntegers(shape, 'shape', operation)
  return create(operation, device, dtype, (on) =>
    native().tensorCreate(on, dtype, dimensions, elements(values, dtype, operation)),
  )
}

/**
 * Creates a tensor of zeros.
 *
 * @param shape elements per axis, each at least 1
 * @param options dtype and device
 * @throws LoopLMError INVALID_SHAPE, UNSUPPORTED
 *
 * @example
 * ```ts
 * await zeros([2, 2]).toArray() // Float32Array [0, 0, 0, 0]
 * ```
 */
export function zeros<D extends DType = 'float32'>(shape: readonly number[], options: TensorOptions<D> = {}): Tensor<D> {
  return filled('zeros', shape, 0, options)
}

/**
 * Creates a tensor of ones.
 *
 * @param shape elements per axis, each at least 1
 * @param options dtype and device
 * @throws LoopLMError INVALID_SHAPE, UNSUPPORTED
 *
 * @example
 * ```ts
 * await ones([2], { dtype: 'int32' }).toArray() // Int32Array [1, 1]
 * ```
 */
export function ones<D extends DType = 'float32'>(shape: readonly number[], options: TensorOptions<D> = {}): Tensor<D> {
  return filled('ones', shape, 1, options)
}

/**
 * Creates a tensor whose elements are all `value`.
 *
 * @param shape elements per axis, each at least 1
 * @param value rounded to nearest
 * @param options dtype and device
 * @throws LoopLMError INVALID_SHAPE, UNSUPPORTED
 *
 * @example
 * ```ts
 * await full([2], 0.5).toArray() // Float32Array [0.5, 0.5]
 * ```
 */
export function full<D extends DType = 'float32'>(
  shape: readonly number[],
  value: number,
  options: TensorOptions<D> = {},
): Tensor<D> {
  return filled('full', shape, value, options)
}

/**
 * Concatenates tensors along an axis. All other axes must be equal.
 *
 * @param tensors at least one, of one dtype and device
 * @param axis negative values count from the end; defaults to 0
 * @throws LoopLMError INVALID_SHAPE naming both shapes
 *
 * @example
 * ```ts
 * using both = await concat([tensor([1, 2]), tensor([3])])
 * await both.toArray() // Float32Array [1, 2, 3]
 * ```
 */
export async function concat<D extends DType>(tensors: readonly Tensor<D>[], axis = 0): Promise<Tensor<D>> {
  const operation = 'concat'
  if (!Array.isArray(tensors) || tensors.length === 0) {
    const message = `tensors must be an array of at least one Tensor, got ${describe(tensors)}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  const [first] = tensors as [Tensor<D>]
  checkTensor(first, 'tensors[0]', operation)
  checkAxis(axis, operation)
  for (const [i, other] of tensors.entries()) checkOperand(operation, first.device, first.dtype, other, `tensors[${i}]`)
  const handles = tensors.map((each) => each.handle(operation))
  return new Tensor(await call(operation, () => native().tensorConcat(handles, axis)), first.dtype, first.device)
}

function filled<D extends DType>(
  operation: string,
  shape: readonly number[],
  value: number,
  options: TensorOptions<D>,
): Tensor<D> {
  checkOptions(options, tensorOptions, operation)
  const device = checkDevice(options.device, operation)
  const dtype = checkDType(options.dtype ?? (device === 'reference' ? 'float64' : 'float32'), operation) as D
  const dimensions = checkIntegers(shape, 'shape', operation)
  if (typeof value !== 'number') {
    throw new LoopLMError('INVALID_ARGUMENT', `value must be a number, got ${describe(value)}`, { operation })
  }
  if (dtype === 'int32' && (value | 0) !== value) {
    throw new LoopLMError('INVALID_ARGUMENT', `value is ${value}, which int32 cannot hold`, { operation })
  }
  return create(operation, device, dtype, (on) => native().tensorFill(on, dtype, dimensions, value))
}

function create<D extends DType>(
  operation: string,
  device: DeviceName,
  dtype: D,
  make: (on: ReturnType<typeof context>) => NativeTensor,
): Tensor<D> {
  const on = context(device, 0, operation)
  try {
    return new Tensor(make(on), dtype, device)
  } catch (error) {
    throw toLoopLMError(error, operation)
  }
}

function defaultDType(data: Source, device: DeviceName): DType {
  if (types.isInt32Array(data)) return 'int32'
  if (types.isFloat64Array(data) || device === 'reference') return 'float64'
  return types.isUint16Array(data) ? 'bfloat16' : 'float32'
}

function checkDType(dtype: unknown, operation: string): DType {
  return checkWord(dtype, 'dtype', dtypes, operation)
}

/** Rejects other typed arrays: JavaScript numbers cannot hold 64-bit integers, and bytes may be the content of a file. */
function checkData(data: unknown, operation: string): void {
  const kinds = [types.isFloat32Array, types.isFloat64Array, types.isInt32Array, types.isUint16Array]
  const typed = kinds.some((isKind) => isKind(data)) // also true for arrays of another realm
  if (typed && (data as Float32Array).length === 0) {
    const message = 'data has no elements, and every axis must be at least 1; was its ArrayBuffer transferred or shrunk?'
    throw new LoopLMError('INVALID_SHAPE', message, { operation })
  }
  if (typed || typeof data === 'number' || Array.isArray(data)) return
  const message = `data must be a number, nested arrays of numbers, or a Float32Array, Float64Array, Int32Array or Uint16Array, got ${describe(data)}`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

/** The typed array that the addon takes for a dtype. */
function elements(
  values: ArrayLike<number>,
  dtype: DType,
  operation: string,
): Float32Array | Float64Array | Int32Array | Uint16Array {
  if (dtype === 'bfloat16') return types.isUint16Array(values) ? values : toFloat32(values)
  if (types.isUint16Array(values)) {
    throw new LoopLMError('INVALID_ARGUMENT', `a Uint16Array holds bfloat16 bits; it cannot become ${dtype}`, { operation })
  }
  if (dtype === 'float64') return types.isFloat64Array(values) ? values : Float64Array.from(values)
  if (dtype === 'float32') return toFloat32(values)
  if (types.isInt32Array(values)) return values
  const whole = Int32Array.from(values)
  const bad = whole.findIndex((value, i) => value !== values[i])
  if (bad === -1) return whole
  throw new LoopLMError('INVALID_ARGUMENT', `element ${bad} is ${values[bad]}, which int32 cannot hold`, { operation })
}

function toFloat32(values: ArrayLike<number>): Float32Array {
  return types.isFloat32Array(values) ? values : Float32Array.from(values)
}

/** Flattens nested arrays in row-major order and returns the shape. All arrays of a level must have the same length. */
function flatten(data: NestedNumbers, operation: string): { values: number[]; shape: number[] } {
  const shape: number[] = []
  for (let level: NestedNumbers | undefined = data; Array.isArray(level); level = level[0]) {
    shape.push(level.length)
    if (shape.length <= maxRank) continue
    throw new LoopLMError('INVALID_SHAPE', `data is nested deeper than the ${maxRank} axes that a tensor may have`, { operation })
  }
  const values: number[] = []
  const visit = (value: NestedNumbers, depth: number) => {
    if (typeof value === 'number' && depth === shape.length) {
      values.push(value)
    } else if (Array.isArray(value) && value.length === shape[depth]) {
      for (const inner of value) visit(inner, depth + 1)
    } else {
      const found = Array.isArray(value) ? `an array of ${value.length}` : describe(value)
      const wanted = depth < shape.length ? `an array of ${shape[depth]}` : 'a number'
      throw new LoopLMError('INVALID_SHAPE', `nested arrays must be even: expected ${wanted} at depth ${depth}, got ${found}`, {
        operation,
      })
    }
  }
  visit(data, 0)
  return { values, shape }
}
