import { beforeEach, describe, expect, it } from 'vitest'
import { concat, type DeviceName, devices, full, memory, ones, Tensor, tensor, zeros } from '../../src/index.js'
import { collectGarbage } from '../garbage.js'
import { refusal } from '../refusal.js'
import { unitRoundoff } from '../rounding.js'

type Float = 'float32' | 'bfloat16' | 'float64'
// Relative to the largest element. Operands are exact in every dtype and results have up to a dozen terms, so that 64 roundings are
// plenty; bfloat16 computes in float32 and rounds what it stores, here at most twice.
const targets: { device: DeviceName; dtype: Float; bound: number }[] = [
  { device: 'cpu', dtype: 'float32', bound: 64 * unitRoundoff.float32 },
  { device: 'cpu', dtype: 'bfloat16', bound: 2 * unitRoundoff.bfloat16 },
  { device: 'reference', dtype: 'float64', bound: 64 * unitRoundoff.float64 },
]

/** Numbers that bfloat16 holds exactly, so that every dtype starts from the same ones. */
function numbers(count: number, salt = 0): number[] {
  return Array.from({ length: count }, (_, i) => (((i + salt) * 37) % 64) / 16 - 2)
}

function expectClose(got: ArrayLike<number>, want: ArrayLike<number>, bound: number) {
  expect(got.length).toBe(want.length)
  const scale = Math.max(1, ...Array.from(want, Math.abs))
  for (let i = 0; i < want.length; i++) expect(Math.abs(got[i]! - want[i]!), `element ${i}`).toBeLessThanOrEqual(bound * scale)
}

describe.each(targets)('$dtype on $device', ({ device, dtype, bound }) => {
  const make = (values: number[], shape: number[]) => tensor(values, shape, { dtype, device })
  const softmax = (row: number[]) => {
    const e = row.map((x) => Math.exp(x - Math.max(...row)))
    const sum = e.reduce((a, b) => a + b)
    return e.map((x) => x / sum)
  }

  it('gives back the elements it was made from', async () => {
    using x = make(numbers(12), [3, 4])
    expect(x.shape).toEqual([3, 4])
    expect(x.size).toBe(12)
    expect(Array.from(await x.toArray())).toEqual(numbers(12))
  })

  it.each([
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ])('multiplies matrices (transposeA %s, transposeB %s)', async (transposeA, transposeB) => {
    const [m, k, n] = [5, 7, 3]
    const [a, b] = [numbers(m * k), numbers(k * n, 11)]
    const want: number[] = []
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++) {
        let sum = 0
        for (let l = 0; l < k; l++) sum += a[transposeA ? l * m + i : i * k + l]! * b[transposeB ? j * k + l : l * n + j]!
        want.push(sum)
      }
    using x = make(a, transposeA ? [k, m] : [m, k])
    using y = make(b, transposeB ? [n, k] : [k, n])
    using product = await x.matmul(y, { transposeA, transposeB })
    expect(product.shape).toEqual([m, n])
    expectClose(await product.toArray(), want, bound)
  })

  it('multiplies batches, broadcasting their leading axes', async () => {
    using x = make(numbers(2 * 3 * 4 * 5), [2, 3, 4, 5])
    using y = make(numbers(3 * 5 * 2, 7), [3, 5, 2])
    using product = await x.matmul(y)
    expect(product.shape).toEqual([2, 3, 4, 2])
    for (const [i, j] of [
      [0, 1],
      [1, 2],
    ] as const) {
      using one = make(numbers(2 * 3 * 4 * 5).slice((i * 3 + j) * 20, (i * 3 + j + 1) * 20), [4, 5])
      using other = make(numbers(3 * 5 * 2, 7).slice(j * 10, (j + 1) * 10), [5, 2])
      using single = await one.matmul(other)
      expect((await product.toArray()).slice((i * 3 + j) * 8, (i * 3 + j + 1) * 8)).toEqual(await single.toArray())
    }
  })

  it('adds and multiplies with broadcasting as numpy does', async () => {
    const [a, b] = [numbers(6), numbers(4, 5)]
    using x = make(a, [2, 3, 1])
    using y = make(b, [1, 4])
    using sum = await x.add(y)
    using product = await x.mul(y)
    expect(sum.shape).toEqual([2, 3, 4])
    expectClose(
      await sum.toArray(),
      a.flatMap((p) => b.map((q) => p + q)),
      bound,
    )
    expectClose(
      await product.toArray(),
      a.flatMap((p) => b.map((q) => p * q)),
      bound,
    )
  })

  it('normalises rows to unit mean square times the weight', async () => {
    const [values, weight] = [numbers(12, 3), numbers(4, 9)]
    const want = [0, 4, 8].flatMap((begin) => {
      const row = values.slice(begin, begin + 4)
      const scale = 1 / Math.sqrt(row.reduce((s, v) => s + v * v, 0) / 4 + 1e-5)
      return row.map((v, j) => v * scale * weight[j]!)
    })
    using x = make(values, [3, 4])
    using w = make(weight, [4])
    using y = await x.rmsNorm(w, { eps: 1e-5 })
    expectClose(await y.toArray(), want, bound)
  })

  it('computes softmax and log-softmax of rows', async () => {
    const values = numbers(15, 2)
    const want = [0, 5, 10].flatMap((begin) => softmax(values.slice(begin, begin + 5)))
    using x = make(values, [3, 5])
    using p = await x.softmax()
    using logs = await x.logSoftmax()
    expectClose(await p.toArray(), want, bound)
    expectClose(await logs.toArray(), want.map(Math.log), bound)
  })

  it('reduces along an axis and over all elements', async () => {
    const values = numbers(24)
    using x = make(values, [2, 3, 4])
    const at = (i: number, j: number, k: number) => values[(i * 3 + j) * 4 + k]!
    const middle = [0, 1].flatMap((i) => [0, 1, 2, 3].map((k) => [0, 1, 2].map((j) => at(i, j, k))))
    const total = (row: number[]) => row.reduce((a, b) => a + b)
    using sum = await x.sum(1)
    using mean = await x.mean(-2)
    using max = await x.max(1)
    using argmax = await x.argmax(1)
    using all = await x.sum()
    expect(sum.shape).toEqual([2, 4])
    expect(all.shape).toEqual([])
    expectClose(await sum.toArray(), middle.map(total), bound)
    expectClose(
      await mean.toArray(),
      middle.map((row) => total(row) / 3),
      bound,
    )
    expect(Array.from(await max.toArray())).toEqual(middle.map((row) => Math.max(...row)))
    expect(await argmax.toArray()).toEqual(Int32Array.from(middle, (row) => row.indexOf(Math.max(...row))))
    expectClose(await all.toArray(), [total(values)], bound)
  })

  it('gathers, slices, joins, reshapes and transposes without changing an element', async () => {
    const values = numbers(12)
    using x = make(values, [4, 3])
    using indices = tensor(new Int32Array([3, 0, 3]), [3], { dtype: 'int32', device })
    using rows = await x.gather(indices)
    expect(Array.from(await rows.toArray())).toEqual([3, 0, 3].flatMap((i) => values.slice(i * 3, i * 3 + 3)))
    using middle = await x.slice([1, 0], [3, 2])
    expect(Array.from(await middle.toArray())).toEqual([3, 4, 6, 7].map((i) => values[i]))
    using joined = await concat([x, x], 1)
    expect(Array.from(await joined.toArray())).toEqual(
      [0, 1, 2, 3].flatMap((i) => [0, 0].flatMap(() => values.slice(i * 3, i * 3 + 3))),
    )
    using turned = await x.transpose()
    expect(Array.from(await turned.toArray())).toEqual([0, 1, 2].flatMap((j) => [0, 1, 2, 3].map((i) => values[i * 3 + j])))
    using view = await x.reshape([2, -1])
    expect(view.shape).toEqual([2, 6])
    expect(Array.from(await view.toArray())).toEqual(values)
  })

  it('makes zeros, ones and constants', async () => {
    using nothing = zeros([2, 2], { dtype, device })
    using unity = ones([3], { dtype, device })
    using constant = full([1, 2], -1.5, { dtype, device })
    expect(Array.from(await nothing.toArray())).toEqual([0, 0, 0, 0])
    expect(Array.from(await unity.toArray())).toEqual([1, 1, 1])
    expect(Array.from(await constant.toArray())).toEqual([-1.5, -1.5])
  })
})

describe('full in int32', () => {
  it('takes every int32, and refuses other numbers', async () => {
    for (const value of [-2147483648, 2147483647]) {
      using x = full([2], value, { dtype: 'int32' })
      expect(Array.from(await x.toArray())).toEqual([value, value])
    }
    for (const value of [2147483648, -2147483649, 0.5, Number.NaN])
      expect((await refusal(() => full([2], value, { dtype: 'int32' }))).message).toMatch(
        `full: value is ${value}, which int32 cannot hold`,
      )
  })
})

describe('dtypes', () => {
  it('rounds to bfloat16 to the nearest, ties to even, and takes its bits as they are', async () => {
    using rounded = tensor(new Float32Array([1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -9, -0]), undefined, { dtype: 'bfloat16' })
    expect(Array.from(await rounded.data())).toEqual([0x3f80, 0x3f82, 0x3f80, 0x8000])
    using bits = tensor(new Uint16Array([0x3f80, 0xc000]))
    expect(bits.dtype).toBe('bfloat16')
    expect(Array.from(await bits.toArray())).toEqual([1, -2])
  })

  it('casts between dtypes, to int32 towards zero', async () => {
    using x = tensor([1.75, -1.75, 3])
    using whole = await x.cast('int32')
    using narrow = await x.cast('bfloat16')
    using back = await narrow.cast('float32')
    expect(await whole.toArray()).toEqual(new Int32Array([1, -1, 3]))
    expect(Array.from(await back.toArray())).toEqual([1.75, -1.75, 3])
  })

  it('cannot be mixed, at compile time or at run time', async () => {
    using x = tensor([[1]])
    using y = tensor([[1]], undefined, { dtype: 'bfloat16' })
    // @ts-expect-error dtypes differ
    const error = await refusal(() => x.matmul(y))
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toMatch(/Tensor\.matmul.*float32.*bfloat16/)
    using whole = tensor(new Int32Array([1, 2]))
    // @ts-expect-error int32 has no softmax
    expect((await refusal(() => whole.softmax())).message).toMatch(/int32/)
  })

  it('adds int32 exactly', async () => {
    using x = tensor(new Int32Array([2 ** 30, -7]))
    using y = await x.add(tensor(new Int32Array([2 ** 29 + 1, 3])))
    expect(await y.data()).toEqual(new Int32Array([2 ** 30 + 2 ** 29 + 1, -4]))
  })

  it('rejects float64 outside device reference, naming the remedy', async () => {
    const error = await refusal(() => tensor(new Float64Array([1]), undefined, { dtype: 'float64' }))
    expect(error.code).toBe('UNSUPPORTED')
    expect(error.message).toMatch(/float64.*cpu.*float32/)
    expect((await refusal(() => tensor([0.5], undefined, { dtype: 'int32' }))).message).toMatch(/element 0 is 0\.5/)
  })
})

describe('errors', () => {
  it('name the operation and both shapes', async () => {
    using x = zeros([2, 3])
    using y = zeros([2, 3])
    const matmul = await refusal(() => x.matmul(y))
    expect(matmul.code).toBe('INVALID_SHAPE')
    expect(matmul.operation).toBe('Tensor.matmul')
    expect(matmul.message).toMatch(/\[2, 3\] and \[2, 3\]/)
    using z = zeros([2, 4])
    expect((await refusal(() => x.add(z))).message).toMatch(/Tensor\.add.*\[2, 3\] and \[2, 4\]/)
    expect((await refusal(() => x.rmsNorm(z))).message).toMatch(/Tensor\.rmsNorm.*\[2, 3\] and \[2, 4\]/)
    expect((await refusal(() => concat([x, z]))).message).toMatch(/concat.*\[2, 3\] and \[2, 4\]/)
    expect((await refusal(() => x.reshape([4, 2]))).message).toMatch(/reshape.*\[2, 3\].*\[4, 2\]/)
    expect((await refusal(() => x.sum(2))).message).toMatch(/axis 2.*\[2, 3\]/)
    expect((await refusal(() => x.slice([0, 0], [3, 3]))).message).toMatch(/\[3, 3\].*\[2, 3\]/)
    expect((await refusal(() => x.transpose([0, 0]))).message).toMatch(/\[0, 0\]/)
  })

  it('are thrown for data that does not fill the shape, uneven nesting and impossible shapes', async () => {
    expect((await refusal(() => tensor([1, 2, 3], [2, 2]))).message).toMatch(/\[2, 2\] has 4 elements, the data 3/)
    expect((await refusal(() => tensor([[1, 2], [3]]))).code).toBe('INVALID_SHAPE')
    expect((await refusal(() => zeros([2, 0]))).code).toBe('INVALID_SHAPE')
    expect((await refusal(() => zeros([2 ** 31, 2 ** 31]))).code).toBe('INVALID_SHAPE')
    expect((await refusal(() => zeros([1, 1, 1, 1, 1, 1, 1, 1, 1]))).code).toBe('INVALID_SHAPE')
  })

  it('name arguments of the wrong type, with what they must be and what was given', async () => {
    const x = tensor([1, 2])
    const given = (value: unknown) => value as never
    const cycle: unknown[] = []
    cycle[0] = cycle
    for (const [run, message] of [
      [() => tensor(given(new BigInt64Array(1))), /tensor: data must be a number, nested.*got BigInt64Array of length 1/],
      [() => tensor(given(new Uint8Array(4))), /data must be.*got Uint8Array of length 4/],
      [() => tensor(given(undefined)), /data must be.*got undefined/],
      [() => tensor([1], given(3)), /shape must be an array of integers, got 3/],
      [() => tensor([1], [1], given(null)), /tensor: options must be an object with fields such as dtype, got null/],
      [() => tensor([1], [1], given({ devise: 'cpu' })), /devise: unknown option; did you mean device/],
      [() => tensor([1], [1], { device: given(1n) }), /device must be one of.*got 1n/],
      [() => tensor([1], [1], { dtype: given('f32') }), /dtype must be one of 'float32'.*got 'f32'/],
      [() => zeros(given('2')), /zeros: shape must be an array of integers, got '2'/],
      [() => full([1], given('2')), /full: value must be a number, got '2'/],
      [() => concat(given([])), /concat: tensors must be an array of at least one Tensor, got Array of length 0/],
      [() => concat([x, given(null)]), /tensors\[1\] must be a Tensor.*got null/],
      [() => x.add(given(1)), /Tensor\.add: other must be a Tensor, as tensor\(\) and zeros\(\) make them, got 1/],
      [() => x.add(given(x.add(x))), /got an object of class Promise: await it/],
      [() => x.gather(given({})), /Tensor\.gather: indices must be a Tensor.*got an object/],
      [() => x.matmul(x, given({ transpose: true })), /transpose: unknown option; did you mean transpose[AB]/],
      [() => x.matmul(x, { transposeA: given(1) }), /transposeA must be true or false, got 1/],
      [() => x.rmsNorm(x, { eps: Number.NaN }), /eps must be a finite number of at least 0, got NaN/],
      [() => x.reshape(given(2)), /Tensor\.reshape: shape must be an array/],
      [() => x.slice([0.5]), /begin\[0\] must be an integer, got 0\.5/],
      [() => x.sum(given('0')), /Tensor\.sum: axis must be an integer, got '0'/],
      [() => x.cast(given('half')), /Tensor\.cast: dtype must be one of.*got 'half'/],
    ] as const) {
      const error = await refusal(run)
      expect(error.code, String(run)).toBe('INVALID_ARGUMENT')
      expect(error.message).toMatch(message)
    }
    expect((await refusal(() => tensor(given(cycle)))).message).toMatch(/nested deeper than the 8 axes/)
  })

  it('are thrown for an index outside the axis', async () => {
    using x = zeros([2, 3])
    using indices = tensor(new Int32Array([0, 2]))
    expect((await refusal(() => x.gather(indices))).message).toMatch(/index 2 \(entry 1\) is outside \[0, 2\)/)
    using negative = tensor(new Int32Array([-1]))
    expect((await refusal(() => x.gather(negative))).code).toBe('INVALID_ARGUMENT')
  })

  it('are thrown for tensors of different devices and for unknown devices', async () => {
    using x = tensor(new Int32Array([1]))
    using y = tensor(new Int32Array([1]), [1], { device: 'reference' })
    expect((await refusal(() => x.add(y))).message).toMatch(/device cpu.*reference/)
    expect((await refusal(() => zeros([1], { device: 'tpu' as 'cpu' }))).message).toMatch(/'cpu', 'reference', 'cuda'/)
  })

  it('are OUT_OF_MEMORY when a tensor does not fit, and the next call works', async () => {
    using huge = zeros([2 ** 20, 2 ** 26])
    expect((await refusal(() => huge.data())).code).toBe('OUT_OF_MEMORY')
    using x = ones([1])
    expect(Array.from(await x.data())).toEqual([1])
  })
})

describe('memory', () => {
  beforeEach(collectGarbage)

  it('is counted, and freed by dispose and using', async () => {
    const before = memory()
    const x = zeros([256, 256])
    await x.data()
    expect(memory().bytes - before.bytes).toBe(256 * 256 * 4)
    expect(memory().buffers - before.buffers).toBe(1)
    expect(memory().peak).toBeGreaterThanOrEqual(memory().bytes)
    x.dispose()
    x.dispose() // twice is fine
    expect(memory().bytes).toBe(before.bytes)
    {
      using y = zeros([256, 256])
      await y.data()
      expect(memory().bytes - before.bytes).toBe(256 * 256 * 4)
    }
    expect(memory()).toMatchObject({ bytes: before.bytes, buffers: before.buffers })
    const error = await refusal(() => x.data())
    expect(error.code).toBe('DISPOSED')
  })

  it('of a view lives until both tensors are disposed', async () => {
    const before = memory().bytes
    const x = tensor([1, 2, 3, 4])
    const view = await x.reshape([2, 2])
    x.dispose()
    expect(Array.from(await view.data())).toEqual([1, 2, 3, 4])
    view.dispose()
    expect(memory().bytes).toBe(before)
  })

  it('may be freed during a call, which still succeeds', async () => {
    const x = ones([64, 64])
    const pending = x.matmul(x)
    x.dispose()
    using product = await pending
    expect((await product.data())[0]).toBe(64)
  })

  it('copies its input before the call returns', async () => {
    const data = new Float32Array([1, 2])
    using x = tensor(data)
    data[0] = 9
    expect(Array.from(await x.data())).toEqual([1, 2])
  })
})

it('devices() lists the cpu as available, with its threads', () => {
  const cpu = devices().find(({ name }) => name === 'cpu')
  expect(cpu).toMatchObject({ available: true })
  expect(cpu!.description).toMatch(/^\w+, [1-9]\d* threads$/)
})

it('a tensor is typed by its dtype', async () => {
  const x: Tensor<'float32'> = tensor([1])
  const y: Tensor<'float64'> = tensor([1], undefined, { device: 'reference' })
  const z: Tensor<'float32'> = await x.add(x)
  const data: Float64Array = await y.data()
  expect([x.dtype, y.dtype, z.dtype, data[0]]).toEqual(['float32', 'float64', 'float32', 1])
  expect(x).toBeInstanceOf(Tensor)
})
