// LoRA adapters: the same numbers as the merged model, gradients, files in PEFT's format, trainers that move nothing else.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  AdamW,
  addition,
  type DeviceName,
  GRPOTrainer,
  LoopLM,
  LoopRPTTrainer,
  type LoRAModule,
  type LoRAOptions,
  type ModelDType,
  memory,
  PretrainTrainer,
  RLTTTrainer,
} from '../../src/index.js'
import { MovingAverage } from '../../src/model/looprpt.js'
import { adapterOf, fillAdapter, mergedBy } from '../adapters.js'
import { expectDerivative } from '../central-differences.js'
import { withoutChecksums } from '../checksums.js'
import { heldBytes } from '../garbage.js'
import { relativeError } from '../golden-files.js'
import { forward, prediction } from '../looped-model.js'
import { refusal } from '../refusal.js'
import { expectRounded, expectScores, unitRoundoff, yardstick } from '../rounding.js'
import { parametersOf, tinyConfig } from '../tiny.js'

const scratch = mkdtempSync(join(tmpdir(), 'looplm-lora-'))
afterAll(() => rmSync(scratch, { recursive: true }))

const config = { ...tinyConfig, num_hidden_layers: 2 }
const sequences = [
  [1, 10, 2, 11, 0, 3],
  [7, 8, 11, 5],
]
const all = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const
const scale = 0.75
const options: LoRAOptions = { rank: 4, alpha: 3, seed: 5 } // alpha / rank is exact in bfloat16

/** A model whose adapter does something. */
async function adapted(place: { device?: DeviceName; dtype?: ModelDType } = { device: 'reference' }, more: LoRAOptions = {}) {
  const model = await LoopLM.create(config, { seed: 1, ...place })
  await model.addAdapter({ ...options, ...more })
  await fillAdapter(model)
  return model
}
const product = (x: ArrayLike<number>, y: ArrayLike<number>, m: number, k: number, n: number) =>
  Array.from({ length: m * n }, (_, i) => {
    let sum = 0
    for (let c = 0; c < k; c++) sum += x[Math.floor(i / n) * k + c]! * y[c * n + (i % n)]!
    return sum
  })
const transpose = (x: ArrayLike<number>, m: number, n: number) =>
  Array.from({ length: m * n }, (_, i) => x[(i % m) * n + Math.floor(i / m)]!)

describe('an adapter', () => {
  it('changes nothing at first, and A is uniform in ±1/√in', async () => {
    const model = await LoopLM.create(config, { seed: 1 })
    const { logprobs } = await model.score(sequences)
    await model.addAdapter(options)
    expect((await model.score(sequences)).logprobs).toEqual(logprobs)
    const a = Array.from(await model.getParameter('model.layers.1.mlp.down_proj.lora_A.weight'))
    expect(Math.max(...a.map(Math.abs))).toBeLessThan(1 / Math.sqrt(24))
    expect(Math.sqrt(a.reduce((s, v) => s + v * v, 0) / a.length)).toBeCloseTo(1 / Math.sqrt(3 * 24), 1)
    expect(model.adapter!.parameters.map(({ name, shape }) => [name, ...shape]).slice(0, 2)).toEqual([
      ['model.layers.0.self_attn.q_proj.lora_A.weight', 4, 16],
      ['model.layers.0.self_attn.q_proj.lora_B.weight', 16, 4],
    ])
  })

  it.each<[DeviceName, ModelDType]>([
    ['reference', 'float64'],
    ['cpu', 'float32'],
    ['cpu', 'bfloat16'],
  ])('scores and generates as the merged model does (%s %s)', async (device, dtype) => {
    const model = await adapted({ device, dtype })
    const before = await parametersOf(model)
    const merged = await model.mergeAdapter()
    expect(merged.adapter).toBeUndefined()
    const want = await merged.score(sequences)
    const parameters = mergedBy(before, await adapterOf(model), scale)
    expectScores(await model.score(sequences), await yardstick(model, config, sequences, { parameters }))
    expectScores(want, await yardstick(merged, config, sequences))
    // A weight and four products, at most six roundings here and in `mergedBy`; bfloat16 has sums in float32 and is rounded once.
    const roundings = dtype === 'bfloat16' ? 1 : 12
    for (const [name, values] of await parametersOf(merged)) {
      const whole = parameters.get(name)!
      const allowed = roundings * unitRoundoff[dtype] * Math.max(...Array.from(whole, Math.abs))
      for (const [i, v] of values.entries()) expect(Math.abs(v - whole[i]!), name).toBeLessThanOrEqual(allowed)
    }
    expect(await parametersOf(model)).toEqual(before) // merging changed a copy
    const base = await LoopLM.create(config, { seed: 1, device, dtype })
    expect(relativeError((await base.score(sequences)).logprobs[0]!, want.logprobs[0]!)).toBeGreaterThan(0.1)
    if (dtype === 'bfloat16') return
    const decode = (m: LoopLM) => m.generate([[1, 10, 2]], { maxNewTokens: 12, temperature: 0, stop: [] })
    expect((await decode(model))[0]!.tokens).toEqual((await decode(merged))[0]!.tokens)
  })

  it('samples with the log-probabilities that it scores with', async () => {
    const model = await adapted({ dtype: 'float32' })
    const [sampled] = await model.generate([[1, 10]], { maxNewTokens: 10, temperature: 1, seed: 3, stop: [] })
    const whole = [[1, 10, ...sampled!.tokens]]
    const { logprobs } = await model.score(whole, { lastLoop: true })
    const parameters = mergedBy(await parametersOf(model), await adapterOf(model), scale)
    const of = await yardstick(model, config, whole, { parameters })
    for (const got of [sampled!.logprobs, logprobs[0]!.subarray(1)])
      expectRounded(got, of, (scored) => scored.logprobs[0]!.slice(-10))
  })

  it('has a gradient that agrees with central differences through an independent model', async () => {
    const model = await adapted()
    const coefficients = sequences.map((s, i) => Float64Array.from({ length: 3 * (s.length - 1) }, (_, n) => Math.cos(n + i)))
    await model.backward(sequences, coefficients)
    const gradients = await model.gradients()
    expect([...gradients.keys()]).toEqual(model.adapter!.parameters.map(({ name }) => name))
    const base = await parametersOf(model)
    const adapter = await adapterOf(model)
    const loss = (values: ReadonlyMap<string, ArrayLike<number>>) => {
      const p = mergedBy(base, values, scale)
      let sum = 0
      for (const [i, ids] of sequences.entries()) {
        const run = forward(config, p, ids)
        for (let j = 0; j + 1 < ids.length; j++)
          prediction(config, p, run, ids, j).logprobs.forEach((l, t) => {
            sum += coefficients[i]![t * (ids.length - 1) + j]! * l
          })
      }
      return sum
    }
    expectDerivative(gradients, adapter, loss, 1e-7)
  })

  it.each<[DeviceName, ModelDType, number]>([
    ['reference', 'float64', 1e-10],
    ['cpu', 'float32', 1e-4],
  ])('has the gradient of the merged model by the chain rule (%s)', async (device, dtype, bound) => {
    const model = await adapted({ device, dtype })
    const merged = await model.mergeAdapter()
    const coefficients = sequences.map((s) => Array<number>(3 * (s.length - 1)).fill(-0.1))
    for (const m of [model, merged]) await m.backward(sequences, coefficients, { recompute: 'layer' })
    const [low, dense] = [await model.gradients(), await merged.gradients()]
    const adapter = await adapterOf(model)
    for (const { name, shape } of model.adapter!.parameters) {
      if (!name.includes('lora_A')) continue
      const width = shape[1]!
      const [a, b, dw] = [adapter.get(name)!, adapter.get(name.replace('_A', '_B'))!, dense.get(name.replace('lora_A.', ''))!]
      const out = b.length / 4
      const da = product(transpose(b, out, 4), dw, 4, out, width).map((v) => scale * v)
      const db = product(dw, transpose(a, 4, width), out, width, 4).map((v) => scale * v)
      expect(relativeError(low.get(name)!, da), name).toBeLessThan(bound)
      expect(relativeError(low.get(name.replace('_A', '_B'))!, db), name).toBeLessThan(bound)
    }
  })

  it.each(all)('has only the parameters of the target module %s', async (module) => {
    const model = await adapted({ device: 'reference' }, { targetModules: [module] })
    expect(model.adapter!.parameters).toHaveLength(4)
    expect(model.adapter!.parameters.every(({ name }) => name.includes(`.${module}.lora_`))).toBe(true)
    const merged = await model.mergeAdapter()
    expect(relativeError((await model.score(sequences)).logprobs[0]!, (await merged.score(sequences)).logprobs[0]!)).toBeLessThan(
      1e-12,
    )
  })

  it('is the only part that an optimizer updates and stores', async () => {
    const wide = { ...config, hidden_size: 256, intermediate_size: 512, num_attention_heads: 4 }
    const model = await LoopLM.create(wide, { seed: 1 })
    await model.addAdapter({ rank: 2 })
    const bytes = async () => Buffer.concat([...(await parametersOf(model)).values()].map((v) => Buffer.from(v.buffer)))
    const before = await bytes()
    const held = await heldBytes()
    using optimizer = new AdamW(model, { learningRate: 0.01, weightDecay: 0.5 })
    await model.backward([[1, 2, 3]], [Array(6).fill(-1)])
    await optimizer.step()
    expect(before.equals(await bytes())).toBe(true)
    const file = join(scratch, 'optimizer.safetensors')
    await optimizer.save(file)
    const names = Object.keys(header(file)).filter((name) => name !== '__metadata__')
    expect(names).toHaveLength(2 * model.adapter!.parameters.length)
    expect(names.every((name) => /lora_[AB]\.weight$/.test(name))).toBe(true)
    // The model has 2 × 655 k weights of 4 bytes; a gradient and two moments of them would be 15 MiB.
    expect(memory().bytes - held).toBeLessThan(6 * 2 ** 20)
  })

  it('lets clones share the base parameters until one is changed', async () => {
    const wide = { ...config, hidden_size: 256, intermediate_size: 512, num_attention_heads: 4 }
    const model = await LoopLM.create(wide, { seed: 1 })
    await model.addAdapter({ rank: 2 })
    const { logprobs } = await model.score(sequences)
    const held = await heldBytes()
    const clone = await model.clone()
    expect(memory().bytes - held).toBeLessThan(0.5 * 2 ** 20) // its own parameters are 5 MiB
    await clone.setParameter('model.norm.weight', Array(256).fill(2))
    expect((await model.score(sequences)).logprobs).toEqual(logprobs)
    expect((await clone.score(sequences)).logprobs).not.toEqual(logprobs)
    await clone.copyParametersFrom(model)
    expect((await clone.score(sequences)).logprobs).toEqual(logprobs)
    const free = await model.clone()
    await free.removeAdapter()
    await new PretrainTrainer(free, { learningRate: 0.1 }).update({ sequences })
    expect((await model.score(sequences)).logprobs).toEqual(logprobs)
  })

  it('can be added and removed; an optimizer made without it is rejected meanwhile', async () => {
    const model = await LoopLM.create(config, { seed: 1 })
    const { logprobs } = await model.score(sequences)
    const optimizer = new AdamW(model)
    const step = async () => {
      await model.backward(
        sequences,
        sequences.map((s) => Array(3 * (s.length - 1)).fill(-1)),
      )
      return optimizer.step()
    }
    await model.addAdapter(options)
    await model.removeAdapter()
    expect((await model.score(sequences)).logprobs).toEqual(logprobs)
    await step()
    await model.addAdapter(options)
    expect(await refusal(step)).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('new optimizer') })
    expect(await refusal(() => model.addAdapter())).toMatchObject({ message: expect.stringContaining('already') })
    expect(await refusal(() => model.gradient('lm_head.weight'))).toMatchObject({ message: expect.stringContaining('frozen') })
    expect(await refusal(() => model.save(join(scratch, 'no')))).toMatchObject({
      message: expect.stringContaining('mergeAdapter'),
    })
    await model.removeAdapter()
    await step()
  })

  it('a moving average made with it is rejected without it, and the other way round', async () => {
    const model = await LoopLM.create(config, { seed: 1, dtype: 'bfloat16' })
    const teacher = await model.clone()
    const both = (change: (model: LoopLM) => Promise<unknown>) => Promise.all([model, teacher].map(change))
    const path = join(scratch, 'average.safetensors')
    const expectRejected = async (average: MovingAverage) => {
      for (const run of [() => average.update(0.5), () => average.save(path), () => average.load(path)])
        expect(await refusal(run)).toMatchObject({
          code: 'INVALID_ARGUMENT',
          message: expect.stringContaining('create a new moving average'),
        })
    }
    const without = new MovingAverage(teacher, model)
    await without.save(path)
    await both((model) => model.addAdapter(options))
    await expectRejected(without)
    const withAdapter = new MovingAverage(teacher, model)
    await withAdapter.update(0.5)
    await both((model) => model.removeAdapter())
    await expectRejected(withAdapter)
    await without.update(0.5)
  })
})

it('addAdapter rejects unknown or wrong options by name', async () => {
  using model = await LoopLM.create(config)
  const add = async (options: object) => {
    const error = await refusal(() => model.addAdapter(options))
    expect(error.code).toBe('INVALID_ARGUMENT')
    return error.message
  }
  expect(await add(null as never)).toMatch(/LoopLM\.addAdapter: options must be an object.*got null/)
  expect(await add({ r: 8 })).toMatch(/r: unknown option; the options are rank, alpha/)
  expect(await add({ targetModule: ['q_proj'] })).toMatch(/targetModule: unknown option; did you mean targetModules/)
  expect(await add({ dropout: 0.1 })).toMatch(/dropout must be 0, because dropout is not supported; got 0\.1/)
  expect(model.adapter).toBeUndefined()
  await model.addAdapter({ rank: 2, targetModules: ['q_proj'], dropout: 0 })
  using optimizer = new AdamW(model, { only: ['model.layers.0.self_attn.q_proj.lora_A.weight'] })
  expect((await refusal(() => optimizer.step({ only: ['lora_A'] }))).message).toMatch(
    /only\[0\]: the model has no parameter 'lora_A'/,
  )
})

function header(path: string): Record<string, { shape: number[]; dtype: string }> {
  const bytes = readFileSync(path)
  return JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString())
}

describe('adapter files', () => {
  it.each(['float32', 'bfloat16'] as const)('have the format of PEFT and load exactly (%s)', async (dtype) => {
    const folder = join(scratch, dtype)
    const model = await adapted({ dtype }, { targetModules: ['v_proj', 'q_proj', 'down_proj'] })
    await model.saveAdapter(folder)
    const tensors = header(join(folder, 'adapter_model.safetensors'))
    expect(tensors['base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight']).toMatchObject({ shape: [4, 16] })
    expect(tensors['base_model.model.model.layers.1.mlp.down_proj.lora_B.weight']).toMatchObject({ shape: [16, 4] })
    expect(Object.keys(tensors).filter((name) => name !== '__metadata__')).toHaveLength(2 * 2 * 3)
    expect(JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'))).toMatchObject({
      peft_type: 'LORA',
      task_type: 'CAUSAL_LM',
      r: 4,
      lora_alpha: 3,
      lora_dropout: 0,
      bias: 'none',
      target_modules: ['q_proj', 'v_proj', 'down_proj'],
    })
    const other = await LoopLM.create(config, { seed: 1, dtype })
    await other.loadAdapter(folder)
    expect(await adapterOf(other)).toEqual(await adapterOf(model))
    expect((await other.score(sequences)).logprobs).toEqual((await model.score(sequences)).logprobs)
  })

  it.each<[string, object, RegExp]>([
    ['another kind', { peft_type: 'IA3' }, /peft_type/],
    ['DoRA', { use_dora: true }, /use_dora/],
    ['ranks by layer', { rank_pattern: { q_proj: 2 } }, /rank_pattern/],
    ['biases', { bias: 'all' }, /bias/],
    ['modules it does not know', { target_modules: ['wq'] }, /target_modules/],
    ['a rank that is none', { r: 0 }, /"r"/],
    ['a rank that the file has not', { r: 2 }, /lora_A.*shape/],
    ['a rank that would need more memory than the file has', { r: 2 ** 20 }, /cannot hold/],
    ['modules that the file has not', { target_modules: ['q_proj', 'k_proj'] }, /missing/],
  ])('are rejected by field: %s', async (_, change, message) => {
    const folder = join(scratch, 'refused')
    await (await adapted({ dtype: 'float32' }, { targetModules: ['q_proj'] })).saveAdapter(folder)
    const path = join(folder, 'adapter_config.json')
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), ...change }))
    const model = await LoopLM.create(config, { seed: 1 })
    const error = await refusal(() => model.loadAdapter(folder))
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toMatch(message)
    expect(model.adapter).toBeUndefined()
    expect((await model.gradients()).has('lm_head.weight')).toBe(true)
  })
})

describe('adapter_config.json', () => {
  /** Every field that PEFT 0.21 writes for a plain LoRA, and `change`. */
  const written = (change: object) => ({
    ...{ alora_invocation_tokens: null, alpha_pattern: {}, arrow_config: null, auto_mapping: null, bias: 'none' },
    ...{ base_model_name_or_path: 'ByteDance/Ouro-1.4B', corda_config: null, ensure_weight_tying: false, eva_config: null },
    ...{ exclude_modules: null, fan_in_fan_out: false, inference_mode: true, init_lora_weights: true, kasa_config: null },
    ...{ layer_replication: null, layers_pattern: null, layers_to_transform: null, loftq_config: {}, lora_alpha: 3 },
    ...{ lora_bias: false, lora_dropout: 0.05, lora_ga_config: null, megatron_config: null, megatron_core: 'megatron.core' },
    ...{ modules_to_save: null, monteclora_config: null, peft_type: 'LORA', peft_version: '0.21.0', qalora_group_size: 16 },
    ...{ r: 4, rank_pattern: {}, revision: null, target_modules: ['v_proj', 'q_proj'], target_parameters: null },
    ...{ task_type: 'CAUSAL_LM', trainable_token_indices: null, use_bdlora: null, use_dora: false, use_qalora: false },
    ...{ use_rslora: false, velora_config: null },
    ...change,
  })
  let folder: string
  let trained: Map<string, ArrayLike<number>>
  beforeAll(async () => {
    folder = join(scratch, 'fields')
    const model = await adapted({ dtype: 'float32' }, { targetModules: ['q_proj', 'v_proj'] })
    await model.saveAdapter(folder)
    await withoutChecksums(folder) // as PEFT writes it
    trained = await adapterOf(model)
  })
  const load = async (change: object) => {
    writeFileSync(join(folder, 'adapter_config.json'), JSON.stringify(written(change)))
    const model = await LoopLM.create(config, { seed: 1 })
    await model.loadAdapter(folder)
    return adapterOf(model)
  }

  it.each([
    {},
    ...[true, false, null, undefined, 'gaussian', 'Gaussian', 'orthogonal', 'eva', 'mica'].map((init_lora_weights) => ({
      init_lora_weights,
    })),
    { init_lora_weights: 'eva', eva_config: { rho: 2 } },
    { task_type: null },
    { corda_config: { corda_method: 'ipm' } }, // PEFT ignores it without init_lora_weights: corda
    { runtime_config: { ephemeral_gpu_offload: false } },
    { modules_to_save: [], layers_to_transform: [], exclude_modules: [] },
    { of_a_later_version: null },
  ])('loads with %o', async (change) => {
    expect(await load(change)).toEqual(trained)
  })

  it.each(['pissa', 'pissa_niter_16', 'PiSSA', 'olora', 'loftq', 'corda', 'lora_ga', 'of a later version', 1, ['gaussian']])(
    'is rejected with init_lora_weights %o, which changes the base model',
    async (init_lora_weights) => {
      const error = await refusal(() => load({ init_lora_weights }))
      expect(error.code).toBe('INVALID_FILE')
      expect(error.message).toMatch(/adapter_config\.json: field "init_lora_weights" is .*changes the base model/)
      expect(error.message).toContain('path_initial_model_for_weight_conversion')
    },
  )

  it.each<[string, unknown]>([
    ['use_dora', true],
    ['use_rslora', true],
    ['use_qalora', true],
    ['use_bdlora', { nblocks: 2 }],
    ['lora_bias', true],
    ['bias', 'lora_only'],
    ['fan_in_fan_out', true],
    ['modules_to_save', ['lm_head']],
    ['rank_pattern', { q_proj: 8 }],
    ['alpha_pattern', { 'layers.0.self_attn.q_proj': 8 }],
    ['layers_to_transform', 0],
    ['layers_to_transform', [1]],
    ['layers_pattern', 'layers'],
    ['layer_replication', [[0, 2]]],
    ['exclude_modules', ['v_proj']],
    ['trainable_token_indices', [3]],
    ['target_parameters', ['mlp.experts.gate_up_proj']],
    ['target_modules', '.*_proj'],
    ['alora_invocation_tokens', []],
    ['alora_invocation_tokens', [5, 6]],
    ['arrow_config', { top_k: 2 }],
    ['kasa_config', { beta: 1 }],
    ['velora_config', { scale: 1 }],
    ['monteclora_config', { sample_scale: 1 }],
    ['megatron_config', { a: 1 }],
    ['peft_type', 'ADALORA'],
    ['task_type', 'SEQ_CLS'],
    ['of_a_later_version', 'yes'],
    ['a_number', 0],
  ])('is rejected by the name of the field: %s %o', async (field, value) => {
    const error = await refusal(() => load({ [field]: value }))
    expect(error).toMatchObject({ code: 'INVALID_FILE', message: expect.stringContaining(`field "${field}"`) })
  })
})

describe('trainers with lora', () => {
  const task = addition({ digits: 1 })
  const base = { task, learningRate: 0.02, lora: { rank: 2, alpha: 4, targetModules: ['v_proj', 'down_proj'] as LoRAModule[] } }
  const reward = (_: string, completion: string) => completion.charCodeAt(0) % 7
  type Make = (model: LoopLM, more: object) => RLTTTrainer | GRPOTrainer | LoopRPTTrainer | PretrainTrainer
  const trainers: [string, ModelDType, Make][] = [
    [
      'RLTT',
      'float32',
      (m, more) => new RLTTTrainer(m, { ...base, reward, beta: 0.1, groupSize: 4, promptsPerStep: 4, ...more }),
    ],
    [
      'GRPO',
      'bfloat16',
      (m, more) => new GRPOTrainer(m, { ...base, reward, beta: 0.1, groupSize: 4, promptsPerStep: 4, ...more }),
    ],
    ['LoopRPT', 'float32', (m, more) => new LoopRPTTrainer(m, { ...base, rollouts: 2, batchSize: 6, ...more })],
    ['LoopRPT', 'bfloat16', (m, more) => new LoopRPTTrainer(m, { ...base, rollouts: 2, batchSize: 6, ...more })],
    ['Stage I', 'bfloat16', (m, more) => new PretrainTrainer(m, { ...base, batchSize: 6, ...more })],
  ]

  it.each(trainers)('%s in %s trains only the adapter and resumes bit for bit', async (name, dtype, make) => {
    const fresh = () => LoopLM.create(config, { seed: 2, dtype })
    const straight = await fresh()
    const before = await parametersOf(straight)
    for await (const _ of make(straight, { steps: 4, onWarning: () => {} }).run());
    expect(await parametersOf(straight)).toEqual(before)
    const trained = await adapterOf(straight)
    expect([...trained].filter(([key]) => key.includes('lora_B')).every(([, b]) => Array.from(b).some((v) => v !== 0))).toBe(true)
    const runDir = join(scratch, `${name} ${dtype}`)
    for await (const _ of make(await fresh(), { steps: 2, runDir, onWarning: () => {} }).run());
    const saved = readdirSync(join(runDir, 'checkpoints', 'step-2'))
    expect(saved).toEqual(expect.arrayContaining(['adapter_config.json', 'adapter_model.safetensors']))
    expect(saved).not.toContain('model.safetensors')
    const resumed = await fresh()
    for await (const _ of make(resumed, { steps: 4, runDir, resume: true, onWarning: () => {} }).run());
    expect(await adapterOf(resumed)).toEqual(trained)
  })

  it('LoopRPT has the gradient of the merged model by the chain rule', async () => {
    const model = await adapted()
    const merged = await model.mergeAdapter()
    const teacher = await LoopLM.create(config, { seed: 9, device: 'reference' })
    const gradients = async (m: LoopLM) =>
      (await new LoopRPTTrainer(m, { teacher, rho: 0.6, rollouts: 3, klCoefficient: 0.5 }).gradients({ sequences })).gradients
    const [low, dense] = [await gradients(model), await gradients(merged)]
    const adapter = await adapterOf(model)
    expect([...low.keys()]).toEqual([...adapter.keys()])
    for (const { name, shape } of model.adapter!.parameters) {
      if (!name.includes('lora_A')) continue
      const [b, dw] = [adapter.get(name.replace('_A', '_B'))!, dense.get(name.replace('lora_A.', ''))!]
      const da = product(transpose(b, b.length / 4, 4), dw, 4, b.length / 4, shape[1]!).map((v) => scale * v)
      expect(relativeError(low.get(name)!, da), name).toBeLessThan(1e-9)
    }
  })

  it('continue a loaded adapter, with or without the option lora, unless it does not fit', async () => {
    const folder = join(scratch, 'continued')
    const first = await LoopLM.create(config, { seed: 1 })
    await new PretrainTrainer(first, base).update({ sequences })
    await first.saveAdapter(folder)
    const second = await LoopLM.create(config, { seed: 1 })
    await second.loadAdapter(folder)
    const { lora, ...plain } = base
    const saved = await adapterOf(first)
    for (const options of [base, plain]) await new PretrainTrainer(second, options).update({ sequences })
    for (let step = 0; step < 2; step++) await new PretrainTrainer(first, plain).update({ sequences })
    expect(await adapterOf(second)).toEqual(await adapterOf(first)) // which was never loaded
    expect(await adapterOf(second)).not.toEqual(saved)
    const other = { ...base, lora: { ...lora, rank: 3 } }
    expect(await refusal(() => new PretrainTrainer(second, other).update({ sequences }))).toMatchObject({
      code: 'INVALID_CONFIG',
      message: expect.stringContaining('lora'),
    })
  })

  it('reject dropout and Stage II by name', async () => {
    const model = await LoopLM.create(config)
    expect(() => new PretrainTrainer(model, { ...base, stage: 2 })).toThrow(/lora: stage 2 trains/)
    const dropout = { lora: { dropout: 0.1 } } as never
    expect(() => new PretrainTrainer(model, dropout)).toThrow(/lora\.dropout/)
  })
})
