// The CUDA backend without a GPU: the same .cu files, compiled by g++ against cuda/emulator. What a GPU does: npm run test:gpu.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import {
  createServer,
  deviceMemory,
  devices,
  LoopLM,
  LoopLMError,
  PretrainTrainer,
  Tokenizer,
  tensor,
  zeros,
} from '../../src/index.js'
import { buildEmulated, emulatedKernelTests, emulatedLibrary } from '../emulated.js'
import { collectGarbage, heldBytes } from '../garbage.js'
import { refusal } from '../refusal.js'
import { expectScores, yardstick } from '../rounding.js'
import { smallConfig } from '../tiny.js'

const device = 'cuda-emulated' as 'cuda' // no name for users

beforeAll(buildEmulated)

describe.concurrent('kernels on cuda-emulated', () => {
  // Counting 20,000 draws takes minutes there. The quantized cache is one source for both dtypes, and draws and the gradient of the
  // embedding compute with float32 in both: npm run test:long has all.
  it.each([
    ['f32', ['sample', 'coded_attention', 'embed_backward']],
    ['bf16', ['sample: frequencies', 'gemm']], // products: below
  ])('agree with the reference in %s', { timeout: 1_800_000 }, async (dtype, skipped) => {
    const skip = skipped.flatMap((name) => ['--skip', name])
    const { failures, passed, status } = await emulatedKernelTests(['--dtype', dtype, ...skip])
    expect(failures).toEqual([])
    expect(passed).toBeGreaterThan(1000)
    expect(status).toBe(0)
  })
})

it('products in bf16 agree with the reference and use shared memory without bank conflicts', () => {
  const tool = join(import.meta.dirname, '..', '..', 'tools', 'cuda-banks.mjs')
  const { stdout, stderr } = spawnSync(process.execPath, [tool, '--dtype', 'bf16', 'gemm'], { encoding: 'utf8' })
  expect(stderr).toBe('') // otherwise the tests that failed
  const kernels = [...stdout.matchAll(/^ *([\d.]+) .* ((?:tensor|many_rows)_kernel\S*)/gm)]
  expect(kernels.length).toBeGreaterThan(8)
  expect(kernels.filter(([, cycles]) => cycles !== '1.00').map(([line]) => line)).toEqual([])
})

describe('the device', () => {
  it('computes on tensors', async () => {
    using x = tensor([[1, 2, 3]], undefined, { device })
    using y = await x.matmul(x, { transposeB: true })
    expect(Array.from(await y.data())).toEqual([14])
  })

  it('says how much memory was requested and is free on OUT_OF_MEMORY, and keeps working', async () => {
    using huge = zeros([2 ** 20, 2 ** 26], { device })
    const error = await huge.data().catch((e) => e)
    expect(error).toBeInstanceOf(LoopLMError)
    expect(error.code).toBe('OUT_OF_MEMORY')
    expect(error.message).toMatch(/262144\.00 GiB were requested, \d+\.\d+ GiB of \d+\.\d+ GiB are free/)
    using x = tensor([1], undefined, { device })
    expect(Array.from(await x.data())).toEqual([1])
  })

  it('is listed with what was tried, and an unknown device is rejected by name', () => {
    const cuda = devices().find(({ name }) => name === 'cuda')!
    expect(cuda.description).toMatch(/looplm_cuda\.so: /)
    expect(() => zeros([1], { device: 'cuda:99' })).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED', message: expect.stringMatching(/cuda:99/) }),
    )
  })

  it('closes cleanly when the process exits in the middle of its work', () => {
    const code = `import { LoopLM, zeros } from '${join(import.meta.dirname, '..', '..', 'dist', 'src', 'index.js')}'
      await zeros([1]).data() // the CPU's thread is there first
      const model = await LoopLM.create(${JSON.stringify(config)}, { device: '${device}' })
      model.score(Array.from({ length: 200 }, () => Array.from({ length: 40 }, (_, i) => i)))
      setTimeout(() => process.exit(0), 300)`
    const run = spawnSync(process.execPath, ['--input-type=module', '-e', code], { encoding: 'utf8' })
    expect(run).toMatchObject({ status: 0, signal: null, stderr: '' })
  })

  it('auto is cuda where that works and the CPU elsewhere', async () => {
    const works = devices().find(({ name }) => name === 'cuda')!.available
    using x = zeros([1], { device: 'auto' })
    expect(x.device).toBe(works ? 'cuda' : 'cpu')
  })
})

const config = { ...smallConfig, total_ut_steps: 2 }

describe('little memory', () => {
  const small = { sequences: [[1, 2, 3, 4, 5]] }
  const large = { sequences: Array.from({ length: 6 }, () => Array.from({ length: 30 }, (_, i) => i)) }
  const create = async () => {
    const model = await LoopLM.create(config, { device, seed: 3 })
    return { model, trainer: new PretrainTrainer(model, { stage: 1, learningRate: 1e-3 }) }
  }
  const withMemory = async <T>(bytes: number, run: () => Promise<T>): Promise<T> => {
    process.env.LOOPLM_EMULATOR_MEMORY = String(bytes)
    try {
      return await run()
    } finally {
      delete process.env.LOOPLM_EMULATOR_MEMORY
    }
  }

  const withRoom = async <T>(bytes: number, run: () => Promise<T>): Promise<T> => withMemory((await heldBytes()) + bytes, run) // what is collected in the middle would be more room

  it('a step that does not fit fails with OUT_OF_MEMORY and does not affect later steps', async () => {
    const [{ model, trainer }, other] = [await create(), await create()]
    using _ = model
    using __ = other.model
    const losses = [(await trainer.update(small)).loss, (await other.trainer.update(small)).loss]
    const error = await withRoom(2 ** 20, () => trainer.update(large)).catch((e) => e)
    expect(error).toBeInstanceOf(LoopLMError)
    expect(error.code).toBe('OUT_OF_MEMORY')
    expect(error.message).toMatch(/\d+\.\d\d GiB were requested, 0\.\d\d GiB of 0\.\d\d GiB are free/)
    for (const batch of [small, large]) losses.push((await trainer.update(batch)).loss, (await other.trainer.update(batch)).loss)
    for (let i = 0; i < losses.length; i += 2) expect(losses[i]).toBe(losses[i + 1])
  })

  const mib = 2 ** 20
  const prompts = Array.from({ length: 12 }, (_, i) => [i, 3, 7])
  const greedy = { temperature: 0, stop: [] }

  it('deviceMemory reports the total of the device, and as free what is not held', async () => {
    await collectGarbage()
    const before = deviceMemory(device)
    expect(before.total).toBe(16 * 2 ** 30)
    const x = zeros([2 ** 20], { device })
    await x.data()
    expect(deviceMemory(device).free).toBe(before.free - 4 * mib)
    x.dispose()
    using after = zeros([1], { device }) // the device frees what was disposed before it computes
    await after.data()
    expect(before.free - deviceMemory(device).free).toBeLessThan(mib)
    await withMemory(64 * mib, async () => expect(deviceMemory(device).total).toBe(64 * mib))
  })

  it('a server reserves half of what is free on the device for its cache', async () => {
    using model = await LoopLM.create({ ...config, vocab_size: 300, max_position_embeddings: 2 ** 24 }, { device })
    model.tokenizer = Tokenizer.bytes()
    await withMemory(64 * mib, async () => {
      const expected = Math.floor(deviceMemory(device).free / 2 / 1024) // 1 KiB of keys and values a token
      expect(createServer(model).settings.maxCachedTokens).toBe(expected)
    })
  })

  it('prompts that do not fit together run in turn and give the same tokens', async () => {
    using model = await LoopLM.create(config, { device, seed: 3 })
    const options = { ...greedy, maxNewTokens: 12, exit: { rule: 'gate', threshold: 0.6 } as const }
    const expected = await model.generate(prompts, options)
    using scheduler = model.scheduler({ maxRows: 12 })
    // 1 KiB of keys and values a token, 14 tokens for each prompt, and room for a third of the prompts beside what a pass takes
    const results = await withRoom(250 * 1024, async () => {
      const requests = prompts.map((prompt) => scheduler.add(prompt, options))
      return await Promise.all(requests.map((request) => request.result()))
    })
    for (const [i, { tokens }] of results.entries()) expect(tokens).toEqual(expected[i]!.tokens)
    expect(scheduler.stats().slots).toBeLessThan(12 * 14)
  })

  it('a request that does not fit fails alone, whether first, in between or last', async () => {
    using model = await LoopLM.create({ ...config, max_position_embeddings: 2 ** 20 }, { device, seed: 3 })
    const [expected] = await model.generate([[1, 2]], { ...greedy, maxNewTokens: 4 })
    for (const place of [0, 1, 2]) {
      // room for 1843 tokens beside what is held
      await withRoom(2 * mib, async () => {
        using scheduler = model.scheduler()
        const add = (maxNewTokens: number) => scheduler.add([1, 2], { ...greedy, maxNewTokens })
        const requests = [0, 1, 2].map((i) => add(i === place ? 1950 : 4))
        const outcomes = await Promise.allSettled(requests.map((request) => request.result()))
        for (const [i, outcome] of outcomes.entries()) {
          if (i !== place) expect(outcome).toMatchObject({ value: { tokens: expected!.tokens } })
          else expect(outcome).toMatchObject({ reason: { code: 'OUT_OF_MEMORY' } })
        }
        expect(() => add(2 ** 20)).toThrow(expect.objectContaining({ code: 'OUT_OF_MEMORY' }))
      })
    }
  })

  it('a repeated step allocates no memory', async () => {
    const { model, trainer } = await create()
    using _ = model
    await trainer.update(small)
    await withMemory(1, () => trainer.update(small))
    await model.score(small.sequences)
    await withMemory(1, () => model.score(small.sequences))
  })
})

describe('a quantized model', () => {
  const prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
  const greedy = { maxNewTokens: 3, temperature: 0, stop: [] }

  it.each([
    ['int4', 'float32'],
    ['int8', 'float32'],
    ['int4', 'bfloat16'],
  ] as const)('%s in %s gives the results of the CPU', async (quantize, dtype) => {
    const options = { dtype, quantize, groupSize: 32, seed: 3 } as const
    using model = await LoopLM.create(config, { ...options, device })
    using onCpu = await LoopLM.create(config, { ...options, activations: 'float' })
    const tokens = Array.from({ length: 20 }, (_, i) => (7 * i) % 50)
    const of = await yardstick(onCpu, config, [tokens])
    for (const each of [model, onCpu]) expectScores(await each.score([tokens]), of)
    const results = await model.generate(prompts, greedy)
    for (const [i, prompt] of prompts.entries()) expect((await model.generate([prompt], greedy))[0]).toEqual(results[i])
    if (dtype === 'float32')
      expect(results.map((r) => r.tokens)).toEqual((await onCpu.generate(prompts, greedy)).map((r) => r.tokens))
  })

  it('rejects quantized activations with a remedy', async () => {
    const error = await refusal(() => LoopLM.create(config, { device, quantize: 'int8', groupSize: 32, activations: 'int8' }))
    expect([error.code, error.message]).toEqual([
      'UNSUPPORTED',
      expect.stringMatching(/does not quantize activations: omit activations, or set 'float'/),
    ])
  })

  it('rejects asymmetric weights by name', async () => {
    const error = await refusal(() => LoopLM.create(config, { device, quantize: 'int4-asymmetric', groupSize: 32 }))
    expect([error.code, error.message]).toEqual([
      'UNSUPPORTED',
      expect.stringMatching(/has no products with asymmetric weights; cpu and reference have. Use 'int4'/),
    ])
  })
})

describe('the programme for a GPU, with the emulator in its place', () => {
  const root = join(import.meta.dirname, '..', '..')
  const env = { ...process.env, LOOPLM_CUDA_LIBRARY: emulatedLibrary }

  it('device cuda is available, and auto selects it', () => {
    const code = `import { devices, zeros } from '${join(root, 'dist', 'src', 'index.js')}'
      console.log(JSON.stringify([devices().find(({ name }) => name === 'cuda'), zeros([1], { device: 'auto' }).device]))`
    const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', code], { encoding: 'utf8', env })
    const [cuda, auto] = JSON.parse(stdout)
    expect(cuda.available).toBe(true)
    expect(cuda.description).toMatch(/looplm_cuda_emulated\.so: opened/)
    expect(auto).toBe('cuda')
  })

  it('an unsupported chip is unavailable with the reason, and auto selects the CPU', () => {
    const code = `import { devices, zeros } from '${join(root, 'dist', 'src', 'index.js')}'
      console.log(JSON.stringify([devices().find(({ name }) => name === 'cuda'), zeros([1], { device: 'auto' }).device]))`
    const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', code], {
      encoding: 'utf8',
      env: { ...env, LOOPLM_EMULATOR_CHIP: '7.5' },
    })
    const [cuda, auto] = JSON.parse(stdout)
    expect(cuda.available).toBe(false)
    expect(cuda.description).toMatch(/emulated has compute capability 7\.5, this library has code for 8\.0 and later/)
    expect(auto).toBe('cpu')
  })

  it('listing devices does not open them', () => {
    const code = `import { devices } from '${join(root, 'dist', 'src', 'index.js')}'
      console.log(devices().find(({ name }) => name === 'cuda').description)`
    const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', code], {
      encoding: 'utf8',
      env,
    })
    expect(stdout).toMatch(/^emulated, compute capability 9\.0, 4 multiprocessors, 16\.00 GiB; .*opened\n$/) // nothing of cuBLASLt
  })

  it('the native bench measures every kernel', () => {
    const options = ['--device', 'cuda', '--dtype', 'f32', '--size', 'tiny', '--milliseconds', '1']
    const { stdout, stderr } = spawnSync(join(root, 'build', 'looplm_kernel_bench'), options, { encoding: 'utf8', env })
    const { kernels } = JSON.parse(stdout) as { kernels: { kernel: string; seconds: number; share: number }[] }
    expect(kernels.map(({ kernel }) => kernel)).toEqual(
      expect.arrayContaining(['gemm', 'attention_backward', 'head', 'adamw', 'sample', 'decode 1 row', 'decode 16 rows']),
    )
    for (const { seconds } of kernels) expect(seconds).toBeGreaterThan(0)
    expect(stderr).toMatch(/% of the roof/)
    expect(stderr).toMatch(/tokens\/s/)
  })
})
