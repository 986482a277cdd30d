// Run by Jest (test/realms.test.ts) against dist: its realm has its own Float32Array, Error and Promise, and no Symbol.dispose.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { types } from 'node:util'
import { runInThisContext } from 'node:vm'
import {
  AdamW,
  boxedMatch,
  combineRewards,
  createServer,
  evaluate,
  LoopLM,
  LoopLMError,
  PretrainTrainer,
  RLTTTrainer,
  tasks,
  tensor,
} from 'looplm'

const main = runInThisContext(
  '({ Float32Array, Float64Array, Int32Array, Uint16Array, Array, Object, Promise, Error, BigInt64Array })',
)
const task = tasks.addition({ digits: 1 })
const shape = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 }
const create = async () => {
  const model = await LoopLM.create({ vocab_size: task.tokenizer.vocabSize, ...shape })
  model.tokenizer = task.tokenizer
  return model
}
const prompt = task.sample('train', 0).prompt
const finish = async (trainer) => {
  let last
  for await (const event of trainer.run()) last = event
  return last
}
let folder

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'looplm-jest-'))
})
afterAll(() => rm(folder, { recursive: true }))

test('this realm is not that of Node', () => {
  expect(main.Float32Array).not.toBe(Float32Array)
  expect(main.Error).not.toBe(Error)
})

test('Symbol.dispose disposes', async () => {
  const model = await create()
  const optimizer = new AdamW(model)
  const scheduler = model.scheduler()
  const x = tensor([1, 2])
  for (const object of [x, scheduler, optimizer, model]) {
    expect(typeof Symbol.dispose).toBe('symbol')
    object[Symbol.dispose]()
  }
  await expect(x.data()).rejects.toMatchObject({ code: 'DISPOSED' })
  await expect(model.generate([prompt])).rejects.toMatchObject({ code: 'DISPOSED' })
})

test('typed arrays of both realms make tensors, and come back as numbers', async () => {
  for (const realm of [globalThis, main]) {
    for (const [name, dtype] of [
      ['Float32Array', 'float32'],
      ['Int32Array', 'int32'],
      ['Uint16Array', 'bfloat16'],
    ]) {
      const x = tensor(new realm[name]([1, 2]))
      expect(x.dtype).toBe(dtype)
      expect(Array.from(await x.data())).toEqual([1, 2])
    }
    expect(tensor(new realm.Float64Array([1.5]), undefined, { device: 'reference' }).dtype).toBe('float64')
    expect(() => tensor(new realm.BigInt64Array(1))).toThrow(/data must be a number.*BigInt64Array/)
  }
  const half = await tensor([1.5, -2]).cast('bfloat16')
  expect(Array.from(await half.toArray())).toEqual([1.5, -2])
})

test('token ids of both realms are generated from, scored and embedded', async () => {
  const model = await create()
  const ids = task.tokenizer.encode(prompt)
  for (const realm of [globalThis, main]) {
    for (const tokens of [realm.Int32Array.from(ids), realm.Array.from(ids)]) {
      const [result] = await model.generate([tokens], { maxNewTokens: 2, temperature: 0 })
      expect(result.tokens).toHaveLength(2)
      const { logprobs } = await model.score([tokens], { promptLengths: realm.Int32Array.of(1) })
      expect(types.isTypedArray(logprobs[0])).toBe(true)
    }
  }
  const texts = []
  for await (const { text } of model.stream(prompt, { maxNewTokens: 2 })) texts.push(text)
  expect(texts.length).toBeGreaterThan(0)
  const { signal } = Object.assign(new AbortController())
  await expect(model.generate([prompt], { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' })
  await model.generate([prompt], { maxNewTokens: 1, signal })
})

test('trainers run, save and resume, with rewards and errors of both realms', async () => {
  const model = await create()
  const options = {
    task,
    steps: 2,
    promptsPerStep: 2,
    groupSize: 2,
    seed: 3,
    runDir: join(folder, 'run'),
    evalEvery: 1,
    evalProblems: 2,
  }
  const reward = combineRewards([
    { name: 'half', reward: (_p, completion) => completion.length / 2 },
    { name: 'box', reward: boxedMatch },
  ])
  const trainer = new RLTTTrainer(model, { ...options, reward })
  const types = []
  for await (const event of trainer.run()) types.push(event.type)
  expect(types).toContain('step')
  expect(types).toContain('checkpoint')
  expect(types.at(-1)).toBe('done')
  const again = new RLTTTrainer(model, { ...options, reward, steps: 3, resume: true })
  const steps = []
  for await (const { type, step } of again.run()) if (type === 'step') steps.push(step)
  expect(steps).toEqual([3])
  for (const realm of [globalThis, main]) {
    const failing = new RLTTTrainer(await create(), {
      task,
      steps: 1,
      promptsPerStep: 1,
      groupSize: 2,
      reward: () => realm.Promise.reject(new realm.Error('of the reward')),
    })
    await expect(finish(failing)).rejects.toThrow(/of the reward/)
  }
  const pretrain = new PretrainTrainer(await create(), { task, steps: 1, batchSize: 2 })
  expect((await finish(pretrain)).metrics.loss).toBeGreaterThan(0)
  const [evaluation] = await evaluate(model, { task, problems: 2 })
  expect(evaluation.problems).toBe(2)
})

test('a model is saved and loaded, and errors are LoopLMError', async () => {
  const model = await create()
  await model.save(join(folder, 'model'))
  const loaded = await LoopLM.fromPretrained(join(folder, 'model'))
  expect(loaded.config.hidden_size).toBe(16)
  const error = await LoopLM.fromPretrained(join(folder, 'none')).catch((cause) => cause)
  expect(error).toBeInstanceOf(LoopLMError)
  expect(error).toBeInstanceOf(Error)
  expect(error.code).toBe('NOT_FOUND')
  expect(() => new AdamW(main.Promise.resolve(model))).toThrow(/await it/)
})

test('a server answers', async () => {
  const server = createServer(await create(), { name: 'tiny', port: 0, log: () => {} })
  try {
    const url = await server.listen()
    const headers = { 'content-type': 'application/json' }
    const body = JSON.stringify({ model: 'tiny', prompt, max_tokens: 2 })
    const response = await fetch(`${url}/v1/completions`, { method: 'POST', headers, body })
    expect(await response.json()).toMatchObject({ choices: [{ index: 0 }] })
  } finally {
    await server.close()
  }
})
