import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { fileError, LoopLMError } from '../errors.js'

/*
 * The GGUF format of llama.cpp, versions 2 and 3, little-endian:
 *
 *   "GGUF", version, number of tensors, number of keys
 *   keys      name, type, value: numbers, texts, flags, and arrays of one of these
 *   tensors   name, dimensions (the innermost first), type, offset in the data
 *   data      from the next multiple of general.alignment (default 32) on; every tensor begins at such a multiple
 *
 * All of it is checked against the file's size before any of the data is read.
 */

/** A value of the metadata. Integers beyond 2^53 are rounded. */
export type GgufValue = number | boolean | string | readonly (number | boolean | string)[]

export interface GgufTensor {
  name: string
  /** ggml's name, for example `Q8_0`. */
  type: string
  /** Row-major: the innermost dimension last. */
  shape: number[]
  /** The file that contains it. */
  path: string
  /** Offset in the file, in bytes. */
  offset: number
}

export interface GgufFile {
  path: string
  metadata: ReadonlyMap<string, GgufValue>
  tensors: readonly GgufTensor[]
}

/** The types that looplm reads, by their number: values per block, and bytes per block. */
const types: Readonly<Record<number, [name: string, elements: number, bytes: number]>> = {
  0: ['F32', 1, 4],
  1: ['F16', 1, 2],
  2: ['Q4_0', 32, 18],
  3: ['Q4_1', 32, 20],
  6: ['Q5_0', 32, 22],
  7: ['Q5_1', 32, 24],
  8: ['Q8_0', 32, 34],
  12: ['Q4_K', 256, 144],
  13: ['Q5_K', 256, 176],
  14: ['Q6_K', 256, 210],
  28: ['F64', 1, 8],
  30: ['BF16', 1, 2],
}

/** Size in bytes of `values` consecutive values of a type. Not an integer if they are not whole blocks. */
export function ggufBytes(type: string, values: number): number {
  const [, elements, bytes] = Object.values(types).find(([name]) => name === type)!
  return (values / elements) * bytes
}

/** Names of unsupported types, for errors. */
const otherTypes: Readonly<Record<number, string>> = {
  ...{ 9: 'Q8_1', 10: 'Q2_K', 11: 'Q3_K', 15: 'Q8_K', 16: 'IQ2_XXS', 17: 'IQ2_XS', 18: 'IQ3_XXS', 19: 'IQ1_S', 20: 'IQ4_NL' },
  ...{ 21: 'IQ3_S', 22: 'IQ2_S', 23: 'IQ4_XS', 24: 'I8', 25: 'I16', 26: 'I32', 27: 'I64', 29: 'IQ1_M', 34: 'TQ1_0' },
  ...{ 35: 'TQ2_0', 39: 'MXFP4', 40: 'NVFP4' },
}

/**
 * The largest header in bytes. The largest published ones, with vocabularies of 250,000 tokens and their merges, have about 20
 * MB.
 */
const maxHeaderBytes = 2 ** 28
const firstRead = 2 ** 22
const maxDimensions = 4

/**
 * Reads the header of one GGUF file.
 *
 * @throws LoopLMError NOT_FOUND; INVALID_FILE naming the file and the invalid key or tensor; UNSUPPORTED naming a tensor of a
 *   type that looplm does not read
 */
export async function readGguf(path: string, operation: string): Promise<GgufFile> {
  const file = await open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0)).catch((cause) => {
    if (cause.code !== 'ENOENT') throw fileError(cause, 'read', path, operation)
    throw new LoopLMError('NOT_FOUND', `no file ${path}`, { operation, cause })
  })
  try {
    const found = await file.stat()
    if (!found.isFile()) throw new LoopLMError('INVALID_FILE', `${path} must be a regular file`, { operation })
    const most = Math.min(found.size, maxHeaderBytes)
    for (let bytes = Math.min(firstRead, most); ; bytes = Math.min(4 * bytes, most)) {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(bytes), 0, bytes, 0)
      try {
        return new Header(path, operation, buffer.subarray(0, bytesRead), found.size).parse()
      } catch (error) {
        if (!(error instanceof TooShort)) throw error
        if (bytes < most) continue
        const reason = found.size > maxHeaderBytes ? `is longer than ${maxHeaderBytes} bytes` : 'goes beyond the end of the file'
        throw new LoopLMError('INVALID_FILE', `${path}: ${error.where} ${reason} (is it cut short?)`, { operation })
      }
    }
  } catch (cause) {
    throw fileError(cause, 'read', path, operation)
  } finally {
    await file.close()
  }
}

/** The header continues after the bytes that were read. */
class TooShort extends Error {
  constructor(readonly where: string) {
    super(where)
  }
}

type PlacedTensor = GgufTensor & { bytes: number }

const scalarBytes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8]
const textType = 8
const arrayType = 9

class Header {
  #at = 0
  #where = 'the header'

  constructor(
    readonly path: string,
    readonly operation: string,
    readonly bytes: Buffer,
    readonly size: number, // size of the file in bytes
  ) {}

  parse(): GgufFile {
    if (this.size < 24) throw this.#invalid(`has ${this.size} bytes, a GGUF file at least 24`)
    if (this.bytes.toString('latin1', 0, 4) !== 'GGUF') throw this.#invalid('does not begin with "GGUF": it is no GGUF file')
    this.#at = 4
    const version = this.#integer(4)
    if (version === 0x02000000 || version === 0x03000000)
      throw this.#invalid('is for big-endian machines; convert the model again, without --bigendian')
    if (version !== 2 && version !== 3)
      throw this.#invalid(`has version ${version}; looplm reads 2 and 3: convert the model with a newer llama.cpp`)
    const tensorCount = this.#count(33)
    const keyCount = this.#count(13)
    const metadata = this.#metadata(keyCount)
    return { path: this.path, metadata, tensors: this.#tensors(tensorCount, metadata.get('general.alignment') ?? 32) }
  }

  #metadata(count: number): Map<string, GgufValue> {
    const metadata = new Map<string, GgufValue>()
    for (let i = 0; i < count; i++) {
      this.#where = `key ${i} of ${count}`
      const key = this.#text()
      this.#where = `key ${JSON.stringify(key.slice(0, 100))}`
      if (metadata.has(key)) throw this.#invalid(`${this.#where} is there twice`)
      metadata.set(key, this.#value(this.#integer(4)))
    }
    return metadata
  }

  #tensors(count: number, alignment: GgufValue): GgufTensor[] {
    if (typeof alignment !== 'number' || !(alignment >= 1 && alignment <= 2 ** 30) || Math.log2(alignment) % 1 !== 0)
      throw this.#invalid(`key "general.alignment" must be a power of two, got ${alignment}`)
    const tensors: PlacedTensor[] = []
    const names = new Set<string>()
    for (let i = 0; i < count; i++) {
      this.#where = `tensor ${i} of ${count}`
      const name = this.#text()
      this.#where = `tensor ${JSON.stringify(name.slice(0, 100))}`
      if (names.has(name)) throw this.#invalid(`${this.#where} is there twice`)
      names.add(name)
      tensors.push(this.#tensor(name, alignment))
    }
    const begin = Math.ceil(this.#at / alignment) * alignment
    const placed = tensors.map(({ offset, ...tensor }) => ({ ...tensor, offset: begin + offset }))
    let end = begin
    let last = ''
    for (const { name, offset, bytes } of [...placed].sort((a, b) => a.offset - b.offset)) {
      this.#where = `tensor ${JSON.stringify(name)}`
      if (offset < end) throw this.#invalid(`${this.#where} overlaps tensor ${JSON.stringify(last)}`)
      if (offset + bytes > this.size)
        throw this.#invalid(`${this.#where} ends at byte ${offset + bytes} of ${this.size} (is the file cut short?)`)
      end = offset + bytes
      last = name
    }
    return placed.map(({ bytes, ...tensor }) => tensor)
  }

  #tensor(name: string, alignment: number): PlacedTensor {
    const dimensions = this.#integer(4)
    if (dimensions < 1 || dimensions > maxDimensions)
      throw this.#invalid(`${this.#where} has ${dimensions} dimensions; 1 to ${maxDimensions} are allowed`)
    const shape = Array.from({ length: dimensions }, () => this.#integer(8)).reverse()
    const number = this.#integer(4)
    const offset = this.#integer(8)
    const type = Object.hasOwn(types, number) ? types[number] : undefined
    if (type === undefined) {
      const known = otherTypes[number] ?? `number ${number}`
      const remedy = 'convert the model to F16, Q8_0, Q6_K or Q4_0, for example with llama-quantize from the F16 file'
      const message = `${this.path}: ${this.#where} has the type ${known}, which looplm does not read; ${remedy}`
      throw new LoopLMError('UNSUPPORTED', message, { operation: this.operation })
    }
    const [typeName, elements, blockBytes] = type
    const width = shape.at(-1)!
    const count = shape.reduce((product, n) => product * n, 1)
    if (count < 1 || !Number.isSafeInteger(count)) throw this.#invalid(`${this.#where} has the shape [${shape.join(', ')}]`)
    if (width % elements !== 0)
      throw this.#invalid(`${this.#where} has rows of ${width} values, which are no whole blocks of ${typeName} (${elements})`)
    const bytes = (count / elements) * blockBytes
    if (offset % alignment !== 0)
      throw this.#invalid(
        `${this.#where} begins at byte ${offset} of the data, which is no multiple of the alignment ${alignment}`,
      )
    if (offset + bytes > this.size)
      throw this.#invalid(
        `${this.#where} ends at byte ${offset + bytes} of the data; the file has ${this.size} (is it cut short?)`,
      )
    return { name, type: typeName, shape, path: this.path, offset, bytes }
  }

  #value(type: number): GgufValue {
    if (type === textType) return this.#text()
    if (type !== arrayType) return this.#scalar(type)
    const of = this.#integer(4)
    if (of === arrayType) throw this.#invalid(`${this.#where} is an array of arrays, which GGUF readers do not allow`)
    const length = this.#count(of === textType ? 8 : this.#scalarSize(of))
    const values: (number | boolean | string)[] = []
    for (let i = 0; i < length; i++) values.push(of === textType ? this.#text() : this.#scalar(of))
    return values
  }

  #scalarSize(type: number): number {
    const bytes = scalarBytes[type]
    if (bytes === undefined || bytes === 0) throw this.#invalid(`${this.#where} has the unknown type ${type}`)
    return bytes
  }

  #scalar(type: number): number | boolean {
    const bytes = this.#scalarSize(type)
    const at = this.#take(bytes)
    const { bytes: from } = this
    switch (type) {
      case 0:
        return from.readUInt8(at)
      case 1:
        return from.readInt8(at)
      case 2:
        return from.readUInt16LE(at)
      case 3:
        return from.readInt16LE(at)
      case 4:
        return from.readUInt32LE(at)
      case 5:
        return from.readInt32LE(at)
      case 6:
        return from.readFloatLE(at)
      case 7:
        return this.#flag(from.readUInt8(at))
      case 10:
        return Number(from.readBigUInt64LE(at))
      case 11:
        return Number(from.readBigInt64LE(at))
      default:
        return from.readDoubleLE(at)
    }
  }

  #flag(value: number): boolean {
    if (value > 1) throw this.#invalid(`${this.#where} must be 0 or 1, got ${value}`)
    return value === 1
  }

  #text(): string {
    const length = this.#count(1)
    const at = this.#take(length)
    return this.bytes.toString('utf8', at, at + length)
  }

  /**
   * Reads the number of entries that follow, and checks that the file is large enough for them. `entryBytes`: the smallest size
   * of an entry.
   */
  #count(entryBytes: number): number {
    const count = this.#integer(8)
    if (count * entryBytes > this.size - this.#at)
      throw this.#invalid(`${this.#where} claims ${count} entries, more than the file holds (is it cut short?)`)
    return count
  }

  #integer(bytes: 4 | 8): number {
    const at = this.#take(bytes)
    return bytes === 4 ? this.bytes.readUInt32LE(at) : Number(this.bytes.readBigUInt64LE(at))
  }

  #take(count: number): number {
    const at = this.#at
    if (at + count > this.bytes.length) throw new TooShort(this.#where)
    this.#at += count
    return at
  }

  #invalid(problem: string): LoopLMError {
    return new LoopLMError('INVALID_FILE', `${this.path}: ${problem}`, { operation: this.operation })
  }
}
