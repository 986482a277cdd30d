import type { DType } from '../native/types.js'

export type { DType }

/**
 * The names of devices. `devices()` says which work on this machine. `cuda` is the first CUDA device, `cuda:1` the second.
 * `auto` is `cuda` if that works, else `cpu`.
 */
export type DeviceName = 'cpu' | 'reference' | 'cuda' | `cuda:${number}` | 'auto'

/** The dtypes that all arithmetic supports. `add`, `mul`, `sum` and `max` support int32 too. */
export type FloatDType = Exclude<DType, 'int32'>

/** The typed array that holds a dtype's elements without conversion: bfloat16 as its 16 bits. */
export interface DTypeArrays {
  /** 32-bit floats. */
  float32: Float32Array
  /** The upper 16 bits of 32-bit floats. */
  bfloat16: Uint16Array
  /** 64-bit floats. */
  float64: Float64Array
  /** 32-bit integers. */
  int32: Int32Array
}

/** Numbers in arrays nested to any depth. All arrays of a level must have the same length. */
export type NestedNumbers = number | readonly NestedNumbers[]

/** The dtype and device of a new tensor. */
export interface TensorOptions<D extends DType = DType> {
  /**
   * Defaults to the type of the data (`Int32Array` int32, `Float64Array` float64, `Uint16Array` bfloat16), else to float32, or
   * float64 on `reference`.
   */
  dtype?: D
  /** Defaults to `cpu`. */
  device?: DeviceName
}
