// Numbers in every kind of array: views of shared and of resizable memory are copied, what holds no numbers is refused by name.
import { describe, expect, it } from 'vitest'
import { LoopLM, tensor } from '../../src/index.js'
import { refusal } from '../refusal.js'

type Typed = Float32Array | Float64Array | Int32Array | Uint16Array
interface TypedConstructor<T extends Typed> {
  new (buffer: ArrayBufferLike): T
  readonly BYTES_PER_ELEMENT: number
}

/** A view of a SharedArrayBuffer. */
function shared<T extends Typed>(type: TypedConstructor<T>, values: readonly number[]): T {
  const view = new type(new SharedArrayBuffer(values.length * type.BYTES_PER_ELEMENT))
  view.set(values)
  return view
}

/** A view of memory that can be resized; its length follows. */
function resizable<T extends Typed>(type: TypedConstructor<T>, values: readonly number[]): { view: T; buffer: ArrayBuffer } {
  const Resizable = ArrayBuffer as unknown as new (bytes: number, options: { maxByteLength: number }) => ArrayBuffer
  const buffer = new Resizable(values.length * type.BYTES_PER_ELEMENT, { maxByteLength: 4096 })
  const view = new type(buffer)
  view.set(values)
  return { view, buffer }
}
const resize = (buffer: ArrayBuffer, bytes: number) => (buffer as unknown as { resize(bytes: number): void }).resize(bytes)

function detached<T extends Typed>(view: T): T {
  structuredClone(view, { transfer: [view.buffer as ArrayBuffer] })
  return view
}

const config = { vocab_size: 20, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2 }

describe('a tensor of', () => {
  it.each([
    ['Float32Array', Float32Array, 'cpu'],
    ['Float64Array', Float64Array, 'reference'],
    ['Int32Array', Int32Array, 'cpu'],
  ] as const)('shared memory is a copy of it: %s', async (_, type, device) => {
    const view = shared(type as TypedConstructor<Float32Array>, [1, 2, 3, 4])
    using x = tensor(view, [2, 2], { device, dtype: type === Int32Array ? 'int32' : undefined! })
    using part = tensor(view.subarray(1, 3), undefined, { device, dtype: type === Int32Array ? 'int32' : undefined! })
    view.fill(9)
    expect(Array.from(await x.data())).toEqual([1, 2, 3, 4])
    expect(Array.from(await part.data())).toEqual([2, 3])
  })

  it('shared Uint16Array memory has dtype bfloat16', async () => {
    using x = tensor(shared(Uint16Array, [0x3f80, 0xc000]))
    expect(x.dtype).toBe('bfloat16')
    expect(Array.from(await x.toArray())).toEqual([1, -2])
  })

  it('resized memory has the current elements', async () => {
    const { view, buffer } = resizable(Float32Array, [1, 2, 3, 4])
    resize(buffer, 8)
    expect(Array.from(await tensor(view).data())).toEqual([1, 2])
    resize(buffer, 12)
    expect(Array.from(await tensor(view).data())).toEqual([1, 2, 0])
    const behind = new Float32Array(buffer, 4)
    expect(Array.from(await tensor(behind).data())).toEqual([2, 0])
  })

  it('detached or shrunk memory is rejected with the reason', async () => {
    const { view, buffer } = resizable(Float32Array, [1, 2])
    const fixed = new Float32Array(buffer, 4, 1)
    resize(buffer, 4)
    for (const data of [fixed, detached(new Float32Array(4)), detached(new Int32Array(4)), new Float64Array(0)]) {
      const { code, message } = await refusal(() => tensor(data as Float32Array))
      expect([code, message]).toEqual(['INVALID_SHAPE', expect.stringMatching(/data has no elements.*transferred or shrunk/)])
    }
    expect(Array.from(await tensor(view).data())).toEqual([1])
  })

  it.each([
    ['BigInt64Array', new BigInt64Array(2)],
    ['BigUint64Array', new BigUint64Array(2)],
    ['Uint8Array', new Uint8Array(4)],
    ['Buffer', Buffer.from([1, 2, 3, 4]).subarray(1)],
    ['DataView', new DataView(new ArrayBuffer(8))],
    ['ArrayBuffer', new ArrayBuffer(8)],
    ['SharedArrayBuffer', new SharedArrayBuffer(8)],
  ])('%s is rejected by name', async (name, data) => {
    const { code, message } = await refusal(() => tensor(data as never))
    expect(code).toBe('INVALID_ARGUMENT')
    expect(message).toContain(name)
  })
})

describe('a model', () => {
  it('accepts token ids, lengths, coefficients and parameters in shared and in resizable memory', async () => {
    using model = await LoopLM.create(config, { seed: 3 })
    const tokens = [1, 2, 3, 4]
    const expected = await model.score([tokens], { promptLengths: [2] })
    for (const sequence of [shared(Int32Array, tokens), resizable(Int32Array, tokens).view]) {
      for (const promptLengths of [shared(Int32Array, [2]), resizable(Int32Array, [2]).view])
        expect(await model.score([sequence], { promptLengths })).toEqual(expected)
      const [a, b] = await model.generate([sequence, tokens], { temperature: 0, maxNewTokens: 3 })
      expect(a!.tokens).toEqual(b!.tokens)
    }
    const coefficients = Array.from({ length: 12 }, (_, i) => i / 7)
    await model.backward([tokens], [coefficients])
    const gradient = await model.gradient('model.norm.weight')
    for (const row of [shared(Float64Array, coefficients), resizable(Float64Array, coefficients).view]) {
      await model.zeroGradients()
      await model.backward([tokens], [row])
      expect(await model.gradient('model.norm.weight')).toEqual(gradient)
    }
    const [some, others] = [1, 2].map((first) => Array.from({ length: 16 }, (_, i) => first + i / 16)) as [number[], number[]]
    for (const values of [shared(Float32Array, some), resizable(Float32Array, others).view]) {
      await model.setParameter('model.norm.weight', values)
      expect(Array.from(await model.getParameter('model.norm.weight'))).toEqual(Array.from(values))
    }
  })

  it('rejects 64-bit integers, views without elements and detached memory', async () => {
    using model = await LoopLM.create(config)
    for (const [run, problem] of [
      [() => model.score([new BigInt64Array([1n, 2n])] as never), /sequences\[0\].*BigInt64Array/],
      [() => model.score([new DataView(new ArrayBuffer(8))] as never), /sequences\[0\].*DataView/],
      [() => model.score([detached(new Int32Array(4))]), /sequences\[0\] has 0 tokens/],
      [() => model.setParameter('model.norm.weight', new BigInt64Array(16) as never), /BigInt64Array/],
      [() => model.setParameter('model.norm.weight', detached(new Float64Array(16))), /\[16\] = 16 entries.*got 0/],
      [() => model.backward([[1, 2]], [new DataView(new ArrayBuffer(8))] as never), /coefficients\[0\].*DataView/],
    ] as const)
      expect((await refusal(run)).message).toMatch(problem)
  })
})
