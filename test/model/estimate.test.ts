// What a model is said to take, and what the engine allocates for it.
import { readdirSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { stringify } from 'yaml'
import { ouro } from '../../bench/models.js'
import { readModelFiles, storedDType } from '../../src/cli/model-files.js'
import {
  addition,
  estimateMemory,
  LoopLM,
  LoopRPTTrainer,
  memory,
  ObjectiveTrainer,
  PretrainTrainer,
  Tokenizer,
} from '../../src/index.js'
import { OneProcess } from '../cli/program.js'
import { collectGarbage, heldBytes } from '../garbage.js'
import { type Entry, ggufMetadata, ggufName, randomData, writeGguf, writeGgufParts } from '../gguf-file.js'
import { refusal } from '../refusal.js'

const families = join(import.meta.dirname, '../fixtures', 'families')
const sizes = {
  vocab_size: 100,
  hidden_size: 64,
  intermediate_size: 176,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  total_ut_steps: 4,
}
const within = (estimate: number, measured: number, slack = 0) =>
  expect(Math.abs(estimate - measured)).toBeLessThan(0.05 * measured + slack)

type Recompute = 'none' | 'loop' | 'layer'

/** What a training step holds; the last token of a sequence has nothing to predict. */
async function heldBy(step: { update(batch: never): Promise<unknown>; dispose(): void }, batch: object) {
  const before = memory().bytes
  await step.update(batch as never)
  const after = memory().bytes
  step.dispose()
  return { optimizer: after - memory().bytes, rest: memory().bytes - before }
}
const tokens = (model: LoopLM, count: number, length: number) =>
  Array.from({ length: count }, (_, i) =>
    Array.from({ length }, (_, j) => (j === 0 ? 1 : (7 * i + 3 * j) % model.config.vocab_size)),
  )

describe('an estimate of memory', () => {
  beforeAll(collectGarbage) // test files share a process; these tests leave nothing behind
  it.each(
    (['float32', 'bfloat16', 'float64'] as const).flatMap((dtype) =>
      (['none', 'loop', 'layer'] as const).map((recompute) => [dtype, recompute] as const),
    ),
  )('is within 5 % of the allocated memory: %s, recompute %s', async (dtype, recompute) => {
    const before = memory().bytes
    using model = await LoopLM.create(sizes, { dtype, device: dtype === 'float64' ? 'reference' : 'cpu' })
    const estimate = estimateMemory(model.config, { dtype, recompute })
    within(estimate.weights, memory().bytes - before)
    const trainer = new PretrainTrainer(model, { recompute, tokensPerMicroBatch: 1024 })
    const { optimizer, rest } = await heldBy(trainer, { sequences: tokens(model, 8, 65) })
    within(estimate.optimizer, optimizer)
    within(estimate.gradients + 8 * 64 * (estimate.activationsPerToken + estimate.headPerToken), rest)
  })

  it.each(
    readdirSync(families).flatMap((name) =>
      (['none', 'loop', 'layer'] as Recompute[]).map((recompute) => [name, recompute] as const),
    ),
  )('is within 5 % of the allocated memory: family %s, recompute %s', async (name, recompute) => {
    const before = memory().bytes
    using model = await LoopLM.fromPretrained(join(families, name))
    const estimate = estimateMemory(model.config, { dtype: 'float32', recompute })
    const slack = 64 * model.parameters().length // a tensor begins on a line of 64 bytes, which is much for one of 8 numbers
    within(estimate.weights, memory().bytes - before, slack)
    // every loop is read, also where there is no gate: that is the most
    const trainer = new PretrainTrainer(model, { onWarning: () => {}, weights: 'uniform', recompute, tokensPerMicroBatch: 4096 })
    const { optimizer, rest } = await heldBy(trainer, { sequences: tokens(model, 64, 25) })
    within(estimate.optimizer, optimizer, 2 * slack)
    within(estimate.gradients + 64 * 24 * (estimate.activationsPerToken + estimate.headPerToken), rest)
  })

  it.each(['none', 'loop', 'layer'] as Recompute[])('counts replayed exits, recompute %s', async (recompute) => {
    using model = await LoopLM.create({ ...sizes, num_key_value_heads: 4 })
    const estimate = estimateMemory(model.config, { recompute, replayExits: true })
    const trainer = new ObjectiveTrainer(model, { objective: 'exit-sampled', recompute, tokensPerMicroBatch: 1024 })
    const sequences = tokens(model, 8, 65)
    const exits = sequences.map(() => Array.from({ length: 64 }, (_, j) => j % 4))
    const batch = { sequences, exits, promptLengths: Array(8).fill(1), advantages: Array(8).fill(1) }
    const { rest } = await heldBy(trainer, batch)
    within(estimate.gradients + 8 * 64 * (estimate.activationsPerToken + estimate.headPerToken), rest)
  })

  it('counts parameters, and the keys and values of a token in every loop', async () => {
    using model = await LoopLM.create(sizes)
    const { parameters, cachePerToken } = estimateMemory(model.config)
    expect(parameters).toBe(model.parameterCount)
    const held = async (maxNewTokens: number) => {
      const scheduler = model.scheduler({ maxTokens: maxNewTokens + 16 })
      const before = memory().bytes
      await scheduler.add([1, 2, 3], { maxNewTokens, temperature: 0 }).result()
      const bytes = memory().bytes - before
      const { slots } = scheduler.stats()
      scheduler.dispose()
      return { bytes, slots }
    }
    const [few, many] = [await held(100), await held(1000)]
    within(cachePerToken, (many.bytes - few.bytes) / (many.slots - few.slots))
    expect(estimateMemory(model.config, { loops: 2 }).cachePerToken).toBe(cachePerToken / 2)
  })

  it('rejects an unknown dtype and zero loops', async () => {
    using model = await LoopLM.create(sizes)
    expect((await refusal(() => estimateMemory(model.config, { dtype: 'int8' as never }))).message).toMatch(
      /dtype must be one of/,
    )
    expect((await refusal(() => estimateMemory(model.config, { loops: 0 }))).message).toMatch(/loops/)
  })
})

describe('on the command line', () => {
  let root: string
  const one = new OneProcess()
  beforeAll(async () => {
    root = await mkdtemp(join(tmpdir(), 'looplm-plan-'))
    const config = JSON.stringify({ model_type: 'ouro', rope_theta: 1e6, ...sizes })
    await writeFile(join(root, 'config.json'), `\ufeff${config}`) // the byte order mark is no text
    const file = { trainer: 'grpo', model: sizes, dataset: 'rows.jsonl', reward: 'exactMatch', dtype: 'bfloat16' }
    const options = { beta: 0.1, promptsPerStep: 4, groupSize: 8, maxNewTokens: 100, tokensPerMicroBatch: 512 }
    await writeFile(join(root, 'grpo.yaml'), stringify({ ...file, options }))
    await writeFile(join(root, 'lora.yaml'), stringify({ ...file, options: { ...options, lora: { rank: 4 } } }))
  })
  afterAll(async () => {
    await one[Symbol.asyncDispose]()
    await rm(root, { recursive: true })
  })
  const looplm = (...args: string[]) => one.looplm(root, args)

  it('an estimate adds up and says what fits', async () => {
    const { code, stdout } = await looplm('estimate', 'config.json', '--context', '1000', '--sequences', '3', '--json')
    expect(code).toBe(0)
    const said = JSON.parse(stdout)
    using model = await LoopLM.create(sizes)
    const estimate = estimateMemory(model.config, { dtype: 'bfloat16' })
    expect(said).toMatchObject(estimate)
    expect(said.cache).toBe(3000 * estimate.cachePerToken)
    expect(said.generate).toBe(said.weights + said.cache)
    expect(said.train).toBe(said.weights + said.gradients + said.optimizer + said.activations)
    const text = await looplm('estimate', 'config.json', '--dtype', 'float32', '--sequences', '100000000')
    expect(text.stdout).toMatch(/^151937 parameters, float32\nweights +593\.5 KiB\n/)
    expect(text.stdout).toMatch(/to generate .* does not fit in the free memory/)
    expect(text.stdout).toMatch(/to train .* fits in the free memory/)
    expect((await looplm('estimate', 'nowhere')).stderr).toMatch(
      /no folder or file nowhere\. Pass a checkpoint folder, a GGUF file/,
    )
  })

  it('a plan of a new model has the vocabulary and the dtype that training gives it', async () => {
    const { vocab_size: _, ...wide } = sizes
    const form = { ...wide, hidden_size: 16, intermediate_size: 16 } // measured on the reference
    await writeFile(join(root, 'rows.jsonl'), '{"prompt":"a","answer":"b"}\n')
    await Tokenizer.characters('ab').save(join(root, 'letters'))
    const cases = [
      [{ task: { name: 'addition', digits: 2 } }, {}, addition({ digits: 2 }).tokenizer.vocabSize],
      [{ dataset: 'rows.jsonl', tokenizer: 'letters' }, {}, Tokenizer.characters('ab').vocabSize],
      [{ dataset: 'rows.jsonl', tokenizer: 'bytes' }, {}, Tokenizer.bytes().vocabSize],
      [{ task: 'addition' }, { vocab_size: 77 }, 77],
    ] as const
    for (const [data, sized, vocab_size] of cases) {
      await writeFile(join(root, 'new.yaml'), stringify({ trainer: 'pretrain', model: { ...form, ...sized }, ...data }))
      using model = await LoopLM.create({ ...form, vocab_size })
      const plan = JSON.parse((await looplm('plan', 'new.yaml', '--no-time', '--json')).stdout)
      expect([plan.parameters, plan.weights]).toEqual([model.parameterCount, 4 * model.parameterCount])
      const exact = JSON.parse((await looplm('plan', 'new.yaml', '--set', 'device=reference', '--json')).stdout)
      expect([exact.dtype, exact.weights]).toEqual(['float64', 8 * model.parameterCount])
      expect(exact.time.update).toBeGreaterThan(0)
    }
    await writeFile(join(root, 'new.yaml'), stringify({ trainer: 'pretrain', model: form, dataset: 'rows.jsonl' }))
    expect((await looplm('plan', 'new.yaml')).stderr).toMatch(/vocab_size/) // as training
  })

  it('a plan of epochs has the time of one step, and a plan of Stage II trains the gate', async () => {
    const { vocab_size: _, ...form } = sizes
    const options = { epochs: 1000, batchSize: 2, stage: 2 }
    await writeFile(join(root, 'gate.yaml'), stringify({ trainer: 'pretrain', model: form, task: 'addition', options }))
    const { trained, time } = JSON.parse((await looplm('plan', 'gate.yaml', '--json')).stdout)
    expect([trained, time.steps]).toEqual([form.hidden_size + 1, undefined])
    expect((await looplm('plan', 'gate.yaml')).stdout).toMatch(/^time .* one step \(epochs set their number\): .* update/m)
  })

  it('looplm estimate and plan bound the activations of large models', async () => {
    await writeFile(join(root, 'large.json'), JSON.stringify({ model_type: 'ouro', rope_theta: 1e6, ...ouro }))
    await writeFile(join(root, 'large.yaml'), stringify({ trainer: 'rltt', model: ouro, task: 'addition', dtype: 'bfloat16' }))
    const most = 3 * 2 ** 30 // an update keeps 2 GiB, the rest is worked on
    for (const recompute of ['none', 'layer']) {
      const said = JSON.parse((await looplm('estimate', 'large.json', '--recompute', recompute, '--json')).stdout)
      expect(said.activations).toBeLessThan(most)
      const plan = await looplm('plan', 'large.yaml', '--no-time', '--json', '--set', `recompute=${recompute}`)
      expect(JSON.parse(plan.stdout).activations).toBeLessThan(most)
    }
  })

  it('a plan takes the dtype in which the model is loaded', async () => {
    using model = await LoopLM.create({ ...sizes, hidden_size: 64, intermediate_size: 128 })
    await model.save(join(root, 'float32'))
    await model.save(join(root, 'bfloat16'), { dtype: 'bfloat16' })
    for (const dtype of ['float32', 'bfloat16'] as const) {
      using codes = await LoopLM.fromPretrained(join(root, 'float32'), { dtype, quantize: 'int8' })
      await codes.save(join(root, `codes-${dtype}`))
    }
    for (const name of ['float32', 'bfloat16', 'codes-float32', 'codes-bfloat16']) {
      await writeFile(join(root, 'stored.yaml'), stringify({ trainer: 'rltt', model: name, task: 'addition' }))
      const { stdout, stderr } = await looplm('plan', 'stored.yaml', '--no-time', '--json')
      expect(stderr).toBe('')
      using loaded = await LoopLM.fromPretrained(join(root, name))
      expect(JSON.parse(stdout).dtype, name).toBe(loaded.place.dtype)
    }
    await writeFile(join(root, 'stored.yaml'), stringify({ trainer: 'rltt', model: 'gone', task: 'addition' }))
    expect((await looplm('plan', 'stored.yaml')).stderr).toMatch(/looplm plan: no folder or file gone/)
  })

  describe('a plan of a GGUF file takes the dtype in which the model is loaded:', () => {
    const config = { ...sizes, intermediate_size: 96, looplm_exit_gate: false } // blocks have 32 values
    const metadata = ggufMetadata('ouro', config)
    const head = 'lm_head.weight'
    type TypeOf = (name: string) => string

    async function tensorsOf(matrices: TypeOf, vectors: string): Promise<Entry[]> {
      using model = await LoopLM.create(config)
      return model.parameters().map(({ name, shape }, i) => {
        const type = shape.length > 1 ? matrices(name) : vectors
        const count = shape.reduce((a, b) => a * b, 1)
        return { name: ggufName('ouro', name)!, type, shape, data: randomData(type, count, i + 1) }
      })
    }

    async function load(path: string): Promise<LoopLM> {
      const warning = vi.spyOn(process, 'emitWarning').mockImplementation(() => {}) // llama.cpp drops the exit gate
      try {
        return await LoopLM.fromPretrained(path)
      } finally {
        warning.mockRestore()
      }
    }

    it.each<[what: string, matrices: TypeOf, vectors: string, dtype: string]>([
      ['BF16', () => 'BF16', 'F32', 'bfloat16'],
      ['BF16, norms too', () => 'BF16', 'BF16', 'bfloat16'],
      ['BF16 with an F32 head', (name) => (name === head ? 'F32' : 'BF16'), 'F32', 'float32'],
      ['F16 with a BF16 head', (name) => (name === head ? 'BF16' : 'F16'), 'F32', 'float32'],
      ['F32, norms of BF16', () => 'F32', 'BF16', 'float32'],
      ['F32', () => 'F32', 'F32', 'float32'],
      ['F16', () => 'F16', 'F32', 'float32'],
      ['F64', () => 'F64', 'F32', 'float32'],
      ['Q8_0', () => 'Q8_0', 'F32', 'float32'],
      ['Q4_0 with BF16 embeddings', (name) => (name.includes('layers') ? 'Q4_0' : 'BF16'), 'BF16', 'float32'],
      ['Q5_1', () => 'Q5_1', 'F32', 'float32'],
    ])('%s', async (what, matrices, vectors, dtype) => {
      const path = await writeGguf(join(root, `${what}.gguf`), metadata, await tensorsOf(matrices, vectors))
      using loaded = await load(path)
      expect([loaded.dtype, await storedDType(await readModelFiles(path, 'test'), 'test')]).toEqual([dtype, dtype])
    })

    it.each<[what: string, first: string, dtype: 'float32' | 'bfloat16']>([
      ['BF16 in parts', 'BF16', 'bfloat16'],
      ['BF16 in parts, the first one with an F32 matrix', 'F32', 'float32'],
    ])('%s', async (what, first, dtype) => {
      const tensors = await tensorsOf((name) => (name.includes('embed') ? first : 'BF16'), 'F32')
      const path = (await writeGgufParts(join(root, what), metadata, tensors, { perPart: 10 })).at(-1)!
      using loaded = await load(path)
      await writeFile(join(root, 'gguf.yaml'), stringify({ trainer: 'rltt', model: path, task: 'addition' }))
      const { stdout, stderr } = await looplm('plan', 'gguf.yaml', '--no-time', '--json')
      expect([loaded.dtype, stderr]).toEqual([dtype, ''])
      expect(JSON.parse(stdout)).toMatchObject({ dtype, weights: estimateMemory(loaded.config, { dtype }).weights })
    })
  })

  const averaged = {
    looprpt: (model: LoopLM) => new LoopRPTTrainer(model),
    lora: (model: LoopLM) => new LoopRPTTrainer(model, { lora: { rank: 4 } }),
    reference: (model: LoopLM) => new ObjectiveTrainer(model, followed),
  }
  const terms = [{ weights: 'last' as const }]
  const followed = { groupSize: 2, objective: { terms, kl: { beta: 0.1, reference: 'ema' as const } } }
  it.each<['float32' | 'bfloat16', keyof typeof averaged, object, number]>([
    ['float32', 'looprpt', { trainer: 'looprpt' }, 2],
    ['bfloat16', 'looprpt', { trainer: 'looprpt' }, 2],
    ['bfloat16', 'lora', { trainer: 'looprpt', options: { lora: { rank: 4 } } }, 1],
    ['bfloat16', 'reference', { trainer: 'objective', options: followed, reward: 'exactMatch' }, 2],
  ])('a plan counts moving averages, which are in float32: %s, %s', async (dtype, name, run, copies) => {
    const wide = { ...sizes, hidden_size: 256, intermediate_size: 512 } // a few tokens take little beside the parameters
    await writeFile(join(root, 'average.yaml'), stringify({ model: wide, dtype, dataset: 'rows.jsonl', ...run }))
    const { stdout, stderr } = await looplm('plan', 'average.yaml', '--no-time', '--json')
    expect(stderr).toBe('')
    const plan = JSON.parse(stdout)
    expect(plan).toMatchObject({ copies, average: dtype === 'bfloat16' ? 4 * plan.trained : 0 })
    const before = await heldBytes()
    using model = await LoopLM.create(wide, { dtype })
    using trainer = averaged[name](model)
    const rated = name === 'reference' ? { rewards: [0, 1] } : {}
    await trainer.update({ sequences: [1, 2].map((token) => [token, 3, 4]), promptLengths: [2, 2], ...rated } as never)
    within(plan.weights + plan.gradients + plan.optimizer, memory().bytes - before, 2 ** 22) // the activations take some MB
  })

  it('a plan counts the reference model, the rollouts and an adapter, without reading the data', async () => {
    const plan = async (name: string, ...more: string[]) => {
      const { code, stdout, stderr } = await looplm('plan', name, '--prompt-tokens', '50', '--json', ...more)
      expect([code, stderr]).toEqual([0, ''])
      return JSON.parse(stdout)
    }
    const parsed = await plan('grpo.yaml', '--set', 'model.vocab_size=100')
    using model = await LoopLM.create(sizes)
    const { cachePerToken, gradients, weights } = estimateMemory(model.config, { dtype: 'bfloat16' })
    expect(parsed).toMatchObject({ copies: 2, weights: 2 * weights, gradients, rollouts: 32, rolloutTokens: 150, waves: 1 })
    expect(parsed.cache).toBe((4 * 50 + 32 * 100) * cachePerToken) // the completions of a prompt share it
    const adapted = await plan('lora.yaml')
    await model.addAdapter({ rank: 4 })
    expect(adapted.trained).toBe(model.adapter!.parameters.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0))
    expect(adapted).toMatchObject({ copies: 1, gradients: 4 * adapted.trained })
    const many = await plan('grpo.yaml', '--set', 'promptsPerStep=2000', '--set', 'maxNewTokens=200000')
    expect(many.waves).toBeGreaterThan(1)
    const large = ['--set', 'tokensPerMicroBatch=1000000000', '--set', 'promptsPerStep=100000']
    const text = await looplm('plan', 'grpo.yaml', ...large)
    expect(text.stdout).toMatch(/to train .* does not fit in the free memory/)
    expect(text.stdout).toMatch(/What helps: lora, recompute: 'layer', a lower tokensPerMicroBatch/)
  })
})
