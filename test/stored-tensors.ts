// The tensors of a safetensors file as they lie there, to change them and write them again.
import { readFileSync, writeFileSync } from 'node:fs'

export interface Stored {
  name: string
  dtype: string
  shape: number[]
  data: Buffer
}

export function readTensors(path: string): Stored[] {
  const file = readFileSync(path)
  const begin = 8 + Number(file.readBigUInt64LE(0))
  const { __metadata__, ...header } = JSON.parse(file.subarray(8, begin).toString('utf8'))
  return Object.entries(header as Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>).map(
    ([name, { dtype, shape, data_offsets }]) => {
      const [from, to] = data_offsets
      return { name, dtype, shape, data: file.subarray(begin + from, begin + to) }
    },
  )
}

export function writeTensors(path: string, tensors: readonly Stored[]): void {
  let offset = 0
  const entries = tensors.map(({ name, dtype, shape, data }) => {
    const data_offsets = [offset, offset + data.length]
    offset += data.length
    return [name, { dtype, shape, data_offsets }]
  })
  const header = Buffer.from(JSON.stringify(Object.fromEntries(entries)))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  writeFileSync(path, Buffer.concat([length, header, ...tensors.map(({ data }) => data)]))
}

const words = ({ data }: Stored, size: 2 | 4) =>
  Array.from({ length: data.length / size }, (_, i) => data.readUIntLE(i * size, size))
const packed = (values: number[], size: 2 | 4) => {
  const data = Buffer.alloc(values.length * size)
  for (const [i, value] of values.entries()) data.writeUIntLE(value, i * size, size)
  return data
}

/** Of a bfloat16 tensor. */
export const asF32 = (tensor: Stored): Stored => {
  const values = words(tensor, 2).map((bits) => (bits << 16) >>> 0)
  return { ...tensor, dtype: 'F32', data: packed(values, 4) }
}
/** Of a float32 tensor whose values bfloat16 has. */
export const asBF16 = (tensor: Stored): Stored => {
  const values = words(tensor, 4).map((bits) => bits >>> 16)
  return { ...tensor, dtype: 'BF16', data: packed(values, 2) }
}
/** Of a float32 tensor whose values are zero or normal numbers of binary16. */
export const asF16 = (tensor: Stored): Stored => {
  const values = words(tensor, 4).map((bits) => {
    const sign = (bits >>> 16) & 0x8000
    return (bits & 0x7fffffff) === 0 ? sign : sign | (((bits >>> 13) & 0x3ffff) - (112 << 10))
  })
  return { ...tensor, dtype: 'F16', data: packed(values, 2) }
}
