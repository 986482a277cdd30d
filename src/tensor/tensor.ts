import '../dispose.js'
import { types } from 'node:util'
import { LoopLMError } from '../errors.js'
import { call, type NativeTensor, native } from '../native.js'
import { checkFlag, checkInstance, checkNumber, checkOptions, checkWord, describe } from '../validation/arguments.js'
import type { DeviceName, DType, DTypeArrays, FloatDType } from './types.js'

export const dtypes: readonly DType[] = ['float32', 'bfloat16', 'float64', 'int32']

/** The values of a tensor as a JavaScript array. */
type Values<D extends DType> = (Omit<DTypeArrays, 'bfloat16'> & Record<'bfloat16', Float32Array>)[D]

/**
 * An immutable dense array on a device. Operations return promises and run in the order of the calls. Mixing dtypes or devices
 * is an error at run time; for dtypes also at compile time. `dispose()` or `using` frees the memory; the garbage collector is
 * the fallback.
 *
 * @example
 * ```ts
 * using a = tensor([[1, 2], [3, 4]])
 * using b = await a.matmul(a, { transposeB: true })
 * await b.toArray() // Float32Array [5, 11, 11, 25]
 * ```
 */
export class Tensor<D extends DType = DType> {
  /** The type of an element. */
  readonly dtype: D
  /** The device that holds the elements. */
  readonly device: DeviceName
  /** Elements per axis. [] is a single number. */
  readonly shape: readonly number[]
  readonly #handle: NativeTensor

  /** @internal Use {@link tensor}, {@link zeros}, {@link ones} or {@link full}. */
  constructor(handle: NativeTensor, dtype: D, device: DeviceName) {
    this.#handle = handle
    this.dtype = dtype
    this.device = device
    this.shape = Object.freeze(native().tensorShape(handle))
  }

  /** Number of elements. */
  get size(): number {
    return this.shape.reduce((product, n) => product * n, 1)
  }

  /**
   * Matrix product of the last two axes, [m, k] × [k, n]; leading axes are batches and broadcast as in numpy. Accumulates in
   * float32 (float64 for float64).
   *
   * @param other same dtype and device
   * @throws LoopLMError INVALID_SHAPE with both shapes
   */
  async matmul(
    this: Tensor<D & FloatDType>,
    other: Tensor<NoInfer<D & FloatDType>>,
    options: {
      /** Whether this tensor's last two axes are [k, m]. Defaults to false. */
      transposeA?: boolean
      /** Whether the other's last two axes are [n, k], as in a linear layer's weight. Defaults to false. */
      transposeB?: boolean
    } = {},
  ): Promise<Tensor<D>> {
    const operation = 'Tensor.matmul'
    checkOptions(options, { transposeA: true, transposeB: true }, operation)
    const transposeA = checkFlag(options.transposeA ?? false, 'transposeA', operation)
    const transposeB = checkFlag(options.transposeB ?? false, 'transposeB', operation)
    return this.#result('matmul', { other }, (a, b) => native().tensorMatmul(a, b!, transposeA, transposeB))
  }

  /**
   * Element-wise sum with numpy's broadcasting. int32 wraps around.
   * @throws LoopLMError INVALID_SHAPE with both shapes
   */
  async add(other: Tensor<NoInfer<D>>): Promise<Tensor<D>> {
    return this.#result('add', { other }, (a, b) => native().tensorBinary('add', a, b!))
  }

  /**
   * Element-wise product with numpy's broadcasting. int32 wraps around.
   * @throws LoopLMError INVALID_SHAPE with both shapes
   */
  async mul(other: Tensor<NoInfer<D>>): Promise<Tensor<D>> {
    return this.#result('mul', { other }, (a, b) => native().tensorBinary('mul', a, b!))
  }

  /**
   * x · rsqrt(mean x² + eps) · weight over the last axis, computed in float32 (Zhang and Sennrich, arXiv 1910.07467).
   *
   * @param weight [n], where n is the last axis
   */
  async rmsNorm(
    this: Tensor<D & FloatDType>,
    weight: Tensor<NoInfer<D & FloatDType>>,
    options: {
      /** Added to the mean square. Defaults to 1e-6. */
      eps?: number
    } = {},
  ): Promise<Tensor<D>> {
    const operation = 'Tensor.rmsNorm'
    checkOptions(options, { eps: true }, operation)
    const eps = checkNumber(options.eps ?? 1e-6, 'eps', { min: 0 }, operation)
    return this.#result('rmsNorm', { weight }, (x, w) => native().tensorRmsNorm(x, w!, eps))
  }

  /** exp(x) / Σ exp(x) over the last axis. */
  async softmax(this: Tensor<D & FloatDType>): Promise<Tensor<D>> {
    return this.#result('softmax', {}, (x) => native().tensorSoftmax(x, false))
  }

  /** x - log Σ exp(x) over the last axis. */
  async logSoftmax(this: Tensor<D & FloatDType>): Promise<Tensor<D>> {
    return this.#result('logSoftmax', {}, (x) => native().tensorSoftmax(x, true))
  }

  /**
   * Selects rows along axis 0.
   *
   * @param indices int32, any shape; the result has the shape of indices followed by this tensor's other axes
   * @throws LoopLMError INVALID_ARGUMENT naming an index outside axis 0
   */
  async gather(indices: Tensor<'int32'>): Promise<Tensor<D>> {
    const operation = 'Tensor.gather'
    checkOperand(operation, this.device, 'int32', indices, 'indices')
    const [x, at] = [this.handle(operation), indices.handle(operation)]
    return new Tensor(await call(operation, () => native().tensorGather(x, at)), this.dtype, this.device)
  }

  /**
   * Sum over an axis, which is removed, or over all elements. A sum beyond int32 becomes its nearest value.
   * @param axis negative values count from the end
   */
  async sum(axis?: number): Promise<Tensor<D>> {
    return this.#result('sum', {}, (x) => native().tensorReduce('sum', x, checkAxis(axis, 'Tensor.sum')))
  }

  /**
   * Mean over an axis, which is removed, or over all elements.
   * @param axis negative values count from the end
   */
  async mean(this: Tensor<D & FloatDType>, axis?: number): Promise<Tensor<D>> {
    return this.#result('mean', {}, (x) => native().tensorReduce('mean', x, checkAxis(axis, 'Tensor.mean')))
  }

  /**
   * Largest element along an axis, which is removed, or of all elements. NaN if any of them is NaN.
   * @param axis negative values count from the end
   */
  async max(axis?: number): Promise<Tensor<D>> {
    return this.#result('max', {}, (x) => native().tensorReduce('max', x, checkAxis(axis, 'Tensor.max')))
  }

  /**
   * Index of the largest element along an axis, which is removed, or of all elements. The lowest index wins a tie. The first NaN
   * counts as the largest element.
   */
  async argmax(axis?: number): Promise<Tensor<'int32'>> {
    const operation = 'Tensor.argmax'
    const handle = this.handle(operation)
    const along = checkAxis(axis, operation)
    return new Tensor(await call(operation, () => native().tensorReduce('argmax', handle, along)), 'int32', this.device)
  }

  /**
   * The same elements in row-major order with another shape. The result is a view; the memory is freed when both are disposed.
   * @param shape one entry may be -1
   */
  async reshape(shape: readonly number[]): Promise<Tensor<D>> {
    checkIntegers(shape, 'shape', 'Tensor.reshape')
    return this.#result('reshape', {}, (x) => native().tensorReshape(x, shape))
  }

  /**
   * A copy of the elements from `begin` up to `end` (exclusive) on every axis.
   * @param end defaults to the tensor's shape
   */
  async slice(begin: readonly number[], end: readonly number[] = this.shape): Promise<Tensor<D>> {
    checkIntegers(begin, 'begin', 'Tensor.slice')
    checkIntegers(end, 'end', 'Tensor.slice')
    return this.#result('slice', {}, (x) => native().tensorSlice(x, begin, end))
  }

  /**
   * Permutes axes: axis i of the result is axis axes[i] of this tensor.
   * @param axes defaults to all axes, reversed
   */
  async transpose(axes: readonly number[] = this.shape.map((_, i) => i).reverse()): Promise<Tensor<D>> {
    checkIntegers(axes, 'axes', 'Tensor.transpose')
    return this.#result('transpose', {}, (x) => native().tensorTranspose(x, axes))
  }

  /** A copy in another dtype, rounded to nearest (to int32: towards zero). float64 only exists on device `reference`. */
  async cast<To extends DType>(dtype: To): Promise<Tensor<To>> {
    const handle = this.handle('Tensor.cast')
    checkWord(dtype, 'dtype', dtypes, 'Tensor.cast')
    return new Tensor(await call('Tensor.cast', () => native().tensorCast(handle, dtype)), dtype, this.device)
  }

  /** The elements in row-major order, without conversion; bfloat16 as 16-bit integers. */
  async data(): Promise<DTypeArrays[D]> {
    const handle = this.handle('Tensor.data')
    return (await call('Tensor.data', () => native().tensorData(handle))) as DTypeArrays[D]
  }

  /** The elements as numbers in row-major order; bfloat16 is widened to a Float32Array. */
  async toArray(): Promise<Values<D>> {
    const data = await this.data()
    if (!types.isUint16Array(data)) return data as unknown as Values<D>
    return new Float32Array(Uint32Array.from(data, (bits) => bits << 16).buffer) as unknown as Values<D>
  }

  /** Frees the memory once all earlier calls have ended. Later calls throw DISPOSED. */
  dispose(): void {
    this.#handle.dispose()
  }

  /** `using x = …` disposes the tensor at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** @internal The engine's object, or DISPOSED. */
  handle(operation: string): NativeTensor {
    if (!this.#handle.disposed) return this.#handle
    throw new LoopLMError('DISPOSED', 'the tensor was disposed', { operation })
  }

  async #result(
    name: string,
    operands: Readonly<Record<string, Tensor>>,
    run: (x: NativeTensor, other?: NativeTensor) => Promise<NativeTensor>,
  ): Promise<Tensor<D>> {
    const operation = `Tensor.${name}`
    const x = this.handle(operation)
    const handles = Object.entries(operands).map(([name, operand]) => {
      checkOperand(operation, this.device, this.dtype, operand, name)
      return operand.handle(operation)
    })
    return new Tensor(await call(operation, () => run(x, ...handles)), this.dtype, this.device)
  }
}

/** Rejects values that are not tensors. */
export function checkTensor(value: unknown, name: string, operation: string): void {
  checkInstance(value, name, Tensor, 'tensor() and zeros() make them', operation)
}

/** Rejects an operand that is not a tensor, or has another dtype or device. */
export function checkOperand(operation: string, device: DeviceName, dtype: DType, other: Tensor, name: string): void {
  checkTensor(other, name, operation)
  if (other.dtype !== dtype) {
    const message = `${name}: expected a tensor of dtype ${dtype}, got ${other.dtype}; dtypes do not mix: cast one of them`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  if (other.device !== device) {
    const message = `${name}: expected a tensor on device ${device}, got one on ${other.device}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
}

/** Checks a shape, or positions on every axis. */
export function checkIntegers(values: readonly number[], name: string, operation: string): readonly number[] {
  if (!Array.isArray(values)) {
    throw new LoopLMError('INVALID_ARGUMENT', `${name} must be an array of integers, got ${describe(values)}`, { operation })
  }
  return values.map((value, i) => checkNumber(value, `${name}[${i}]`, { integer: true }, operation))
}

export function checkAxis<Axis extends number | undefined>(axis: Axis, operation: string): Axis {
  if (axis !== undefined) checkNumber(axis, 'axis', { integer: true }, operation)
  return axis
}
