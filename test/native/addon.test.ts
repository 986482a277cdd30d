import { spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { describe, expect, it } from 'vitest'
import { LoopLM, memory } from '../../src/index.js'
import { architectureOf, parseConfig } from '../../src/model/config.js'
import { type NativeBinding, native } from '../../src/native.js'
import { heldBytes } from '../garbage.js'

const root = join(import.meta.dirname, '..', '..')
const addonPath = (createRequire(import.meta.url)('node-gyp-build') as { resolve(folder: string): string }).resolve(root)

const longWork = {
  vocab_size: 50,
  hidden_size: 256,
  intermediate_size: 512,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  total_ut_steps: 16,
}

/** JavaScript that opens a context and starts scores, hours of them: what ends before it is killed has cancelled them. */
const startLongWork = `
  const addon = require(${JSON.stringify(addonPath)})
  const architecture = ${JSON.stringify(architectureOf(parseConfig(longWork, 'test', false)))}
  const context = addon.openContext('cpu', 2)
  const tokens = Int32Array.from({ length: 16384 }, (_, i) => i % 50)
  const sequences = { tokens, lengths: new Int32Array(64).fill(256), promptLengths: new Int32Array(0) }
  const options = { temperature: 1, loops: 0, lastLoop: false, responsesOnly: false, predictions: false, top: 0 }
  const started = addon.modelCreate(context, architecture, 'float32', 0).then((model) => {
    for (let i = 0; i < 1000; i++) addon.modelScore(model, sequences, options, undefined).catch(() => {})
    addon.tensorFill(context, 'float32', [64, 64], 1)
    return model
  })
`

const runNode = (script: string, env: Record<string, string> = {}) =>
  spawnSync(process.execPath, ['--expose-gc', '--eval', script], {
    encoding: 'utf8',
    timeout: 540_000,
    env: { ...process.env, ...env },
  })

describe('LOOPLM_CPU_ISA', () => {
  const open = `console.log(require(${JSON.stringify(addonPath)}).openContext('cpu', 1) === undefined)`
  it('accepts the name of an instruction set', () => {
    const { stdout, stderr } = runNode(open, { LOOPLM_CPU_ISA: 'avx512_bf16' })
    expect(stdout, stderr).toBe('false\n')
  })
  it('rejects any other name and lists the valid ones', () => {
    const { status, stderr } = runNode(open, { LOOPLM_CPU_ISA: 'sse2' })
    expect(stderr).toMatch(
      /LOOPLM_CPU_ISA in the environment is "sse2"; it takes avx512_bf16, avx512_vnni, avx512, avx2_vnni, avx2, neon_bf16, neon_i8mm, neon_dot or baseline/,
    )
    expect(status).toBe(1)
  })
})

describe('ending with work pending', () => {
  it.each([
    ['terminate()', `started.then(() => parentPort.postMessage('started'))`, true],
    ['process.exit()', `started.then(() => { parentPort.postMessage('started'); setTimeout(() => process.exit(0), 20) })`, false],
    [
      'an exception',
      `started.then(() => { parentPort.postMessage('started'); setTimeout(() => { throw new Error('end') }, 20) })`,
      false,
    ],
  ])('by %s cancels the work of a worker, and the engine keeps working', async (_, script, terminate) => {
    const before = await heldBytes()
    for (let round = 0; round < 2; round++) {
      const worker = new Worker(`const { parentPort } = require('node:worker_threads'); ${startLongWork}; ${script}`, {
        eval: true,
      })
      let failure: unknown
      worker.on('error', (error) => {
        failure = error
      })
      const ended = new Promise((resolve) => worker.once('exit', resolve))
      const started = new Promise((resolve) => worker.once('message', () => resolve(true)))
      expect(await Promise.race([started, ended.then(() => failure)])).toBe(true)
      if (terminate) await worker.terminate()
      await ended
    }
    expect(memory().bytes).toBe(before)
    const context = native().openContext('cpu', 1)
    const x = native().tensorFill(context, 'float32', [2], 3)
    expect(await native().tensorData(x)).toEqual(new Float32Array([3, 3]))
    x.dispose()
  })

  it.each([
    ['process.exit()', `started.then(() => setTimeout(() => process.exit(7), 20))`, 7],
    ['an exception', `started.then(() => setTimeout(() => { throw new Error('end') }, 20))`, 1],
  ])('by %s ends a process at once with its exit code', (_, script, code) => {
    const { status, signal } = runNode(startLongWork + script)
    expect({ status, signal }).toEqual({ status: code, signal: null })
  })

  it('lets a busy process settle its promises, and an idle one exit', () => {
    const script = `
      const addon = require(${JSON.stringify(addonPath)})
      const x = addon.tensorFill(addon.openContext('cpu', 1), 'float32', [512, 512], 1)
      addon.tensorMatmul(x, x, false, false).then((y) => addon.tensorData(y)).then((data) => console.log(data[0]))`
    const { status, stdout } = runNode(script)
    expect([status, stdout.trim()]).toEqual([0, '512'])
  })
})

describe('long calls', () => {
  const large = {
    vocab_size: 29,
    hidden_size: 128,
    intermediate_size: 256,
    num_hidden_layers: 4,
    num_attention_heads: 4,
    total_ut_steps: 32,
  }
  const many = Array.from({ length: 8 }, (_, i) => Array.from({ length: 128 }, (_, j) => (i + j) % 29))

  it('end soon after an abort with ABORTED and the reason, and the next call works', async () => {
    using model = await LoopLM.create(large)
    const controller = new AbortController()
    const started = process.cpuUsage()
    const pending = model.score(many, { signal: controller.signal })
    setTimeout(() => controller.abort(new Error('enough')))
    await expect(pending).rejects.toMatchObject({ code: 'ABORTED', cause: new Error('enough') })
    const aborted = process.cpuUsage(started)
    const again = process.cpuUsage()
    expect((await model.score(many)).loops).toBe(32)
    expect(aborted.user).toBeLessThan(process.cpuUsage(again).user / 2) // time of this process, not of a busy machine
    await expect(model.score(many, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' })
  })

  it('do not block the event loop', async () => {
    using model = await LoopLM.create(large)
    let turns = 0
    let timer = setImmediate(function turn() {
      turns++
      timer = setImmediate(turn)
    })
    await model.score(many, { loops: 8 })
    clearImmediate(timer)
    expect(turns).toBeGreaterThan(100) // a blocked loop makes two or three
  })
})

it('the garbage collector frees tensors that were not disposed, and knows their size', () => {
  const script = `
    const addon = require(${JSON.stringify(addonPath)})
    const context = addon.openContext('cpu', 1)
    async function main() {
      for (let i = 0; i < 50; i++) await addon.tensorData(addon.tensorFill(context, 'float32', [1024, 1024], i))
      const { external } = process.memoryUsage()
      for (let i = 0; i < 10; i++) { gc(); await new Promise((resolve) => setImmediate(resolve)) }
      console.log(JSON.stringify([addon.memory().bytes, external > 2 ** 22]))
    }
    main()`
  const { stdout, stderr } = runNode(script)
  expect([stdout.trim(), stderr]).toEqual(['[0,true]', ''])
})

describe('native functions', () => {
  const wrong = async (run: (addon: NativeBinding) => unknown) => {
    try {
      await run(native())
    } catch (error) {
      return error as Error & { code?: string }
    }
    throw new Error('expected an error')
  }

  it('reject values of the wrong kind instead of crashing', async () => {
    const context = native().openContext('cpu', 1)
    const x = native().tensorFill(context, 'float32', [2], 1)
    const sequences = { tokens: new Int32Array(4), lengths: new Int32Array([2, 2]), promptLengths: new Int32Array(0) }
    for (const run of [
      (addon) => addon.tensorData(undefined as never),
      (addon) => addon.tensorData({} as never),
      (addon) => addon.tensorData(context as never),
      (addon) => addon.modelParameters(x as never),
      (addon) => addon.tensorCreate(context, 'float16' as never, [1], new Float32Array(1)),
      (addon) => addon.tensorCreate(context, 'float32', [1], new Int32Array(1)),
      (addon) => addon.tensorCreate(context, 'float32', [1.5], new Float32Array(1)),
      (addon) => addon.tensorConcat([], 0),
      (addon) => addon.openContext('cpu', -1),
      (addon) => addon.modelScore(x as never, sequences, {} as never, undefined),
      (addon) => addon.modelScore(context as never, sequences, {} as never, x as never),
      (addon) => addon.modelCreate(context, {} as never, 'float32', 0),
    ] satisfies ((addon: NativeBinding) => unknown)[]) {
      expect((await wrong(run)).code, run.toString()).toBe('INVALID_ARGUMENT')
    }
    const handle = x.constructor as new (...values: unknown[]) => unknown
    expect(() => new handle()).toThrow(TypeError)
    expect(() => new handle({})).toThrow(TypeError)
    expect(() => Reflect.apply(Reflect.get(Object.getPrototypeOf(x), 'dispose') as () => void, {}, [])).toThrow()
    x.dispose()
  })

  it('reject tensors of another context', async () => {
    const x = native().tensorFill(native().openContext('cpu', 1), 'float32', [2], 1)
    const y = native().tensorFill(native().openContext('cpu', 1), 'float32', [2], 1)
    expect((await wrong((addon) => addon.tensorBinary('add', x, y))).message).toMatch(/device of the other/)
    x.dispose()
    y.dispose()
  })
})

it('a missing build fails with NATIVE_LOAD, the cause and the remedy', () => {
  const code = `import { devices } from ${JSON.stringify(join(root, 'dist', 'src', 'index.js'))}
    try { devices() } catch ({ code, message }) { console.log(code + ' ' + message) }`
  const env = { ...process.env, LOOPLM_PREBUILD: join(root, 'src') } // where there is none
  const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', code], { env, encoding: 'utf8' })
  expect(stdout).toMatch(/^NATIVE_LOAD .*No native build was found.*npm run build.*cmake and g\+\+/s)
})
