import type { DType } from '../native/types.js'

export type { DType }

/**
 * Devices that looplm knows; `devices()` says which work here. `cuda` is the first CUDA device, `cuda:1` the second; `auto` is `cuda` where
 * that works and `cpu` elsewhere.
 */
export type DeviceName = 'cpu' | 'reference' | 'cuda' | `cuda:${number}` | 'auto'

/** The dtypes that arithmetic other than `add`, `mul`, `sum` and `max` is defined for. */
export type FloatDType = Exclude<DType, 'int32'>

/** The typed array that holds a dtype's elements as they are: bfloat16 as its 16 bits. */
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

/** Numbers in arrays nested to any depth; every level must be even. */
export type NestedNumbers = number | readonly NestedNumbers[]

/** Where a new tensor lives and what it holds. */
export interface TensorOptions<D extends DType = DType> {
  /** Default: by the data's type (`Int32Array` int32, `Float64Array` float64, `Uint16Array` bfloat16), else float32, on `reference` float64. */
  dtype?: D
  /** Default `cpu`. */
  device?: DeviceName
}
