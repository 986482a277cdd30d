// Models in 8 and 4 bits: their parameters are near the original's, and everything else is what a model with those parameters does.
import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type LoadOptions, LoopLM, memory } from '../../src/index.js'
import { heldBytes } from '../garbage.js'
import { refusal } from '../refusal.js'
import { expectScores, unitRoundoff, yardstick } from '../rounding.js'
import { smallConfig as config, parametersOf } from '../tiny.js'

const prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
const sequences = [[1, 2, 3, 4, 5, 6], Array.from({ length: 20 }, (_, i) => (7 * i) % 50)]
let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'looplm-quantize-'))
  using model = await LoopLM.create(config, { seed: 3 })
  await model.save(join(folder, 'model'))
})
afterAll(() => rm(folder, { recursive: true }))

/** The quantized model of a tied one whose head is a separate matrix with the same values. */
async function withOwnHead(tied: LoopLM, options: LoadOptions): Promise<LoopLM> {
  using plain = await LoopLM.create(config, { dtype: tied.dtype })
  for (const { name } of tied.parameters()) await plain.setParameter(name, await tied.getParameter(name))
  await plain.setParameter('lm_head.weight', await tied.getParameter('model.embed_tokens.weight'))
  const own = await mkdtemp(join(folder, 'own-'))
  await plain.save(own)
  return LoopLM.fromPretrained(own, options)
}

describe.each([
  { quantize: 'int8', dtype: 'float32', steps: 127 },
  { quantize: 'int4', dtype: 'float32', steps: 8 },
  { quantize: 'int8', dtype: 'bfloat16', steps: 127 },
  { quantize: 'int4', dtype: 'bfloat16', steps: 8 },
  { quantize: 'int4-asymmetric', dtype: 'float32', steps: 2.5 }, // its ends may be cut off where that has less error on the whole
] as const)('$quantize in $dtype', ({ quantize, dtype, steps }) => {
  const load = (options: LoadOptions = {}) =>
    LoopLM.fromPretrained(join(folder, 'model'), { dtype, quantize, groupSize: 32, ...options })

  it('keeps every weight within a step of its group, and norms, gate and embedding unchanged', async () => {
    using model = await load()
    using original = await LoopLM.fromPretrained(join(folder, 'model'), { dtype })
    for (const { name, shape } of original.parameters()) {
      const [values, want] = [await model.getParameter(name), await original.getParameter(name)]
      if (shape.length < 2 || !/_proj|lm_head/.test(name)) {
        expect(values).toEqual(want)
        continue
      }
      let [different, far] = [0, 0]
      for (let first = 0; first < want.length; first += 32) {
        const largest = Math.max(...want.slice(first, first + 32).map(Math.abs))
        // The far end of 4 bits is one step short on one side. Scale, quotient, product and what is stored are rounded to float32.
        const step = (largest / steps) * (steps === 8 ? 1 : 0.5)
        for (let i = first; i < first + 32; i++) {
          if (!(Math.abs(values[i]! - want[i]!) <= step + 4 * unitRoundoff.float32 * largest)) far++
          if (values[i] !== want[i]) different++
        }
      }
      expect(far, name).toBe(0)
      expect(different).toBeGreaterThan(0)
    }
  })

  it('computes what a model with those weights computes', async () => {
    using model = await load({ activations: 'float' })
    using plain = await LoopLM.create(config, { dtype: 'float32' })
    for (const { name } of plain.parameters()) await plain.setParameter(name, await model.getParameter(name))
    expectScores(await model.score(sequences), await yardstick(model, config, sequences))
    const options = { maxNewTokens: 8, temperature: 0, stop: [] }
    const results = await model.generate(prompts, options)
    for (const [i, prompt] of prompts.entries()) expect((await model.generate([prompt], options))[0]).toEqual(results[i])
    if (dtype === 'float32')
      expect(results.map(({ tokens }) => tokens)).toEqual((await plain.generate(prompts, options)).map(({ tokens }) => tokens))
  })

  it('rounds activations to 8 bits by default, each row alone, like the reference', async () => {
    using model = await load()
    using asked = await load({ activations: 'int8' })
    using float = await load({ activations: 'float' })
    const scores = await model.score(sequences)
    expect(await asked.score(sequences)).toEqual(scores)
    expect(await float.score(sequences)).not.toEqual(scores)
    const options = { maxNewTokens: 8, temperature: 0, stop: [] }
    const results = await model.generate(prompts, options)
    for (const [i, prompt] of prompts.entries()) expect((await model.generate([prompt], options))[0]).toEqual(results[i])
    if (dtype === 'bfloat16') return // the reference has no activations of 16 bits
    const reference = { device: 'reference', dtype: 'float64' } as const
    using exact = await load({ ...reference, activations: 'int8' })
    using exactly = await load({ ...reference, activations: 'float' })
    const difference = (a: number[], b: number[]) => Math.hypot(...a.map((x, i) => x - b[i]!)) / Math.hypot(...b)
    const logprobs = async (of: LoopLM) => (await of.score(sequences)).logprobs.flatMap((rows) => [...rows])
    const truth = await logprobs(exact)
    // A float32 activation may lie on the other side of a rounding than the float64 one, and what follows then rounds otherwise too:
    // the kernels themselves are compared in native/test.
    expect(difference(await logprobs(model), truth)).toBeLessThan(
      0.5 * difference(await logprobs(model), await logprobs(exactly)),
    )
    expect(difference(await logprobs(float), await logprobs(exactly))).toBeLessThan(1e-5)
  })

  it('quantizes a tied head like a separate head with the same values', async () => {
    const options = { dtype, quantize, groupSize: 32 } as const
    using tied = await LoopLM.create({ ...config, tie_word_embeddings: true }, { ...options, seed: 3 })
    using source = await LoopLM.create({ ...config, tie_word_embeddings: true }, { dtype, seed: 3 })
    const one = join(folder, `tied-${quantize}-${dtype}`)
    await source.save(one)
    using untied = await withOwnHead(source, options)
    using read = await LoopLM.fromPretrained(one, options)
    const want = await untied.score(sequences)
    for (const model of [tied, read]) {
      expect(await model.score(sequences)).toEqual(want)
      expect(await model.getParameter('model.embed_tokens.weight')).toEqual(
        await source.getParameter('model.embed_tokens.weight'),
      )
    }
    expect(await source.score(sequences)).not.toEqual(want)
  })

  it('takes less memory and rejects training', async () => {
    const before = await heldBytes()
    using model = await load()
    const taken = memory().bytes - before
    using original = await LoopLM.fromPretrained(join(folder, 'model'), { dtype })
    expect(taken).toBeLessThan(0.75 * (memory().bytes - before - taken))
    const code = async (run: () => Promise<unknown>) => (await refusal(run)).code
    await model.score([[1, 2]])
    expect(await code(() => model.backward([Float32Array.from([1, 1, 1])]))).toBe('UNSUPPORTED')
    expect(await code(() => model.clone())).toBe('UNSUPPORTED')
    expect(await code(async () => model.setParameter('lm_head.weight', await original.getParameter('lm_head.weight')))).toBe(
      'UNSUPPORTED',
    )
  })
})

it('int4-asymmetric has less error than int4 in as many bytes, also for shifted weights', async () => {
  /** Σ (w - quantized w)² over the matrices of the blocks, and the bytes of the model. */
  const errors = async (quantize: 'int4' | 'int4-asymmetric', path: string) => {
    const before = await heldBytes()
    using model = await LoopLM.fromPretrained(path, { quantize, groupSize: 32 })
    const { bytes } = memory()
    using original = await LoopLM.fromPretrained(path)
    let sum = 0
    for (const { name, shape } of original.parameters())
      if (shape.length > 1 && /_proj/.test(name)) {
        const [values, want] = [await model.getParameter(name), await original.getParameter(name)]
        for (const [i, value] of values.entries()) sum += (value - want[i]!) ** 2
      }
    return { sum, bytes: bytes - before }
  }
  const normal = join(folder, 'model')
  const [symmetric, asymmetric] = [await errors('int4', normal), await errors('int4-asymmetric', normal)]
  expect(asymmetric.sum).toBeLessThan(0.75 * symmetric.sum)
  expect(asymmetric.bytes).toBe(symmetric.bytes)
  const shifted = join(folder, 'shifted')
  using model = await LoopLM.fromPretrained(normal)
  for (const { name, shape } of model.parameters())
    if (shape.length > 1 && /_proj/.test(name)) {
      const values = await model.getParameter(name)
      await model.setParameter(
        name,
        values.map((w) => w + 1),
      )
    }
  await model.save(shifted)
  expect((await errors('int4-asymmetric', shifted)).sum).toBeLessThan(0.25 * (await errors('int4', shifted)).sum)
})

it('quantize options that are unknown or do not fit are rejected by name', async () => {
  const message = async (options: object, sizes: object = {}) =>
    (await refusal(() => LoopLM.create({ ...config, ...sizes }, options))).message
  expect(await message({ quantize: 'int4', groupSize: 64 })).toMatch(/groups of 64 do not fit.*64, 64 and 96/)
  expect(await message({ quantize: 'int3' })).toMatch(/quantize must be one of 'int8', 'int4', 'int4-asymmetric'/)
  expect(await message({ quantize: 'int8', groupSize: 16 })).toMatch(/groupSize.*at least 32/)
  expect(await message({ quantize: 'int8', groupSize: 48 })).toMatch(/groups of 48 do not fit/)
  expect(await message({ groupSize: 32 })).toMatch(
    /groupSize needs a quantized model: pass quantize \('int8', 'int4' or 'int4-asymmetric'\), or omit groupSize/,
  )
  expect(await message({ activations: 'int8' })).toMatch(
    /activations needs a quantized model: pass quantize \('int8', 'int4' or 'int4-asymmetric'\), or omit activations/,
  )
  expect(await message({ quantize: 'int8', activations: 'int4' })).toMatch(/activations must be one of 'float', 'int8'/)
})

/** Names, dtypes and shapes of a safetensors file. */
async function tensorsOf(file: string): Promise<Record<string, [dtype: string, shape: number[]]>> {
  const bytes = await readFile(file)
  const { __metadata__, ...entries } = JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString())
  return Object.fromEntries(
    Object.entries<{ dtype: string; shape: number[] }>(entries).map(([name, { dtype, shape }]) => [name, [dtype, shape]]),
  )
}

describe.each([
  { quantize: 'int8', dtype: 'float32', tied: false },
  { quantize: 'int4', dtype: 'bfloat16', tied: false },
  { quantize: 'int4', dtype: 'float32', tied: true },
  { quantize: 'int4-asymmetric', dtype: 'bfloat16', tied: true },
] as const)('a folder saved with $quantize, $dtype, tied $tied', ({ quantize, dtype, tied }) => {
  const bits = quantize === 'int8' ? 8 : 4
  const asymmetric = quantize === 'int4-asymmetric' ? { asymmetric: true } : {}
  const name = () => join(folder, `${quantize}-${dtype}-${tied}`)
  const make = () => LoopLM.create({ ...config, tie_word_embeddings: tied }, { dtype, quantize, groupSize: 32, seed: 3 })
  beforeAll(async () => {
    using model = await make()
    await model.save(name())
  })

  it('loads bit for bit, and saving it again gives the same files', async () => {
    using model = await make()
    using loaded = await LoopLM.fromPretrained(name(), { dtype })
    expect(loaded.quantization).toEqual({ bits, groupSize: 32, ...asymmetric })
    expect(await loaded.score(sequences)).toEqual(await model.score(sequences))
    const options = { maxNewTokens: 8, seed: 4, stop: [] }
    expect(await loaded.generate(prompts, options)).toEqual(await model.generate(prompts, options))
    await loaded.save(`${name()}-again`)
    const read = (folder: string) => readFile(join(folder, 'model.safetensors'))
    expect((await read(`${name()}-again`)).equals(await read(name()))).toBe(true)
    const config = async (folder: string) => JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'))
    expect(await config(`${name()}-again`)).toEqual(await config(name()))
  })

  it('declares the quantization in config.json, and has no tensors that look like plain weights', async () => {
    const { quantization_config } = JSON.parse(await readFile(join(name(), 'config.json'), 'utf8'))
    expect(quantization_config).toEqual({ quant_method: 'looplm', bits, group_size: 32, ...asymmetric })
    const tensors = await tensorsOf(join(name(), 'model.safetensors'))
    const plain = dtype === 'float32' ? 'F32' : 'BF16'
    using model = await make()
    for (const { name, shape } of model.parameters()) {
      const { [name]: tensor, [`${name}_scale`]: scale } = tensors
      if (!/_proj|lm_head/.test(name)) {
        expect([tensor, scale], name).toEqual([[plain, shape], undefined])
        continue
      }
      const [out, width] = shape as [number, number]
      expect(tensor, name).toEqual(bits === 8 ? ['I8', [out, width / 32, 32]] : ['U8', [out, width / 32, 16]])
      expect(scale, name).toEqual('asymmetric' in asymmetric ? ['BF16', [out, width / 32, 2]] : ['F32', [out, width / 32]])
    }
    expect('lm_head.weight' in tensors).toBe(!tied) // a tied head is made from the embedding, which keeps its dtype
  })

  it('is saved dequantized on request, with the values of its codes', async () => {
    using model = await LoopLM.fromPretrained(name(), { dtype })
    await model.save(`${name()}-plain`, { dequantize: true })
    using plain = await LoopLM.fromPretrained(`${name()}-plain`, { dtype })
    expect(plain.quantization).toBeUndefined()
    for (const { name } of model.parameters()) {
      const [values, want] = [await plain.getParameter(name), await model.getParameter(name)]
      if (dtype === 'float32') expect(values).toEqual(want)
      else
        expect(
          values.every((v, i) => Math.abs(v - want[i]!) <= unitRoundoff.bfloat16 * Math.abs(want[i]!)),
          name,
        ).toBe(true)
    }
  })

  it('cannot be quantized again, and has the same values in float64', async () => {
    const attempt = (options: object) => refusal(() => LoopLM.fromPretrained(name(), options))
    expect((await attempt({ quantize: 'int4' })).message).toMatch(
      /is quantized already \(\d bits(, asymmetric)?, groups of 32\): omit quantize/,
    )
    using model = await LoopLM.fromPretrained(name(), { dtype, activations: 'float' })
    using exact = await LoopLM.fromPretrained(name(), { device: 'reference' })
    for (const { name } of model.parameters()) // the same codes: values differ by the roundings of dtype alone
      expect(Float32Array.from(await exact.getParameter(name))).toEqual(await model.getParameter(name))
    const parameters = new Map<string, ArrayLike<number>>(await parametersOf(exact))
    if (tied) {
      using source = await LoopLM.create({ ...config, tie_word_embeddings: true }, { dtype, seed: 3 })
      using own = await withOwnHead(source, { dtype, quantize, groupSize: 32 })
      await own.save(`${name()}-own`)
      using exactly = await LoopLM.fromPretrained(`${name()}-own`, { device: 'reference' })
      parameters.set('lm_head.weight', await exactly.getParameter('lm_head.weight'))
    }
    for (const each of [model, exact]) {
      const of = await yardstick(each, config, sequences, { parameters })
      expectScores(await each.score(sequences), of)
    }
  })
})

it('loading quantized weights never holds them in memory twice, nor unquantized', async () => {
  const sizes = {
    ...{ vocab_size: 4096, hidden_size: 512, intermediate_size: 1408, num_hidden_layers: 6, num_attention_heads: 8 },
    total_ut_steps: 2,
  }
  const [plain, quantized] = [join(folder, 'large'), join(folder, 'large-int4')]
  const parameters = await (async () => {
    using model = await LoopLM.create(sizes, { dtype: 'bfloat16', seed: 1 })
    await model.save(plain)
    return model.parameterCount
  })()
  /** Peaks of the engine's and of the process' memory while a process of its own loads a folder, beyond what it had before. */
  const measure = async (from: string, options: object, saveTo?: string) => {
    const code = `
      import { readFileSync } from 'node:fs'
      import { LoopLM, memory } from ${JSON.stringify(join(import.meta.dirname, '..', '..', 'dist', 'src', 'index.js'))}
      const high = () => 1024 * Number(/VmHWM:\\s+(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1])
      const small = { vocab_size: 32, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2 }
      ;(await LoopLM.create(small)).dispose() // what every model brings along
      const before = high()
      const model = await LoopLM.fromPretrained(${JSON.stringify(from)}, ${JSON.stringify({ dtype: 'bfloat16', ...options })})
      const resident = high() - before
      ${saveTo === undefined ? '' : `await model.save(${JSON.stringify(saveTo)})`}
      console.log(JSON.stringify({ bytes: memory().bytes, peak: memory().peak, resident }))`
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', code])
    return JSON.parse(stdout) as Record<'bytes' | 'peak' | 'resident', number>
  }
  const runs = [await measure(plain, { quantize: 'int4' }, quantized), await measure(quantized, {})]
  for (const { bytes, peak, resident } of runs) {
    expect(bytes).toBeLessThan(0.4 * 2 * parameters)
    expect(peak).toBe(bytes)
    expect(resident).toBeLessThan(1.1 * bytes + 2 ** 23) // a block of the file and what a process does by the way
  }
  // plain weights are in memory once too; the bounds notice a second copy: they are larger than all of that
  const whole = await measure(plain, {})
  expect(whole.peak).toBeLessThan(1.01 * 2 * parameters)
  expect(whole.resident).toBeLessThan(1.1 * 2 * parameters + 2 ** 23)
  expect(whole.resident).toBeGreaterThan(1.1 * runs[0]!.bytes + 2 ** 23)
})
