// Datasets that are read while a run trains on them: the same rows, the same bits, exact resume, passes, and an event loop that turns.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  addition,
  type Dataset,
  DatasetStream,
  evaluate,
  GRPOTrainer,
  LoopLM,
  loadDataset,
  PretrainTrainer,
  type RewardFunction,
  Tokenizer,
} from '../../src/index.js'
import { encodePrompts } from '../../src/rl/lessons.js'
import { openProblems } from '../../src/rl/problems.js'
import { refusal } from '../refusal.js'
import { parametersOf } from '../tiny.js'

let root: string
let path: string
const rows = Array.from({ length: 40 }, (_, i) => ({ question: `${i}+1=`, answer: `${i + 1}` }))
const columns = { prompt: 'question' } as const
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-streamed-'))
  path = join(root, 'sums.jsonl')
  await writeFile(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''))
})
afterAll(() => rm(root, { recursive: true }))

const tokenizer = Tokenizer.bytes({ special: { eos: '<eos>' } })
const sizes = { vocab_size: 257, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2 }
const newModel = () => LoopLM.create({ ...sizes, total_ut_steps: 2 }, { seed: 1 })
const learning = { tokenizer, batchSize: 8, learningRate: 1e-2, seed: 7 }

async function trained(options: ConstructorParameters<typeof PretrainTrainer>[1]) {
  using model = await newModel()
  const warnings: string[] = []
  using trainer = new PretrainTrainer(model, { ...learning, onWarning: (message) => warnings.push(message), ...options })
  for await (const _ of trainer.run());
  return { parameters: await parametersOf(model), steps: trainer.step, warnings }
}

describe('a dataset given as a path', () => {
  it('trains to the same bits as in memory if it fits into the buffer', async () => {
    const loaded = await trained({ dataset: await loadDataset(path, { columns }), steps: 12 })
    expect((await trained({ dataset: { path, columns }, steps: 12 })).parameters).toEqual(loaded.parameters)
    const stream = await DatasetStream.open(path, { columns, seed: 7 })
    expect((await trained({ dataset: stream, steps: 12 })).parameters).toEqual(loaded.parameters)
  })

  it('resumes exactly from a checkpoint if it does not fit into the buffer', async () => {
    const dataset = { path, columns, shuffleBuffer: 11 }
    const whole = await trained({ dataset, steps: 9 })
    const runDir = join(root, 'resumed')
    await trained({ dataset, steps: 4, runDir })
    const resumed = await trained({ dataset, steps: 9, runDir, resume: true })
    expect(resumed.parameters).toEqual(whole.parameters)
    expect(resumed.warnings.filter((message) => message.includes('the data has changed'))).toEqual([])
    const other = await trained({ dataset: { ...dataset, shuffleBuffer: 12 }, steps: 10, runDir, resume: true })
    expect(other.warnings.join()).toMatch(/the data has changed since .*now a dataset of 40 rows/)
  })

  it('is sampled from and evaluated like rows in memory', async () => {
    const reward: RewardFunction = (_prompt, completion) => completion.length
    const options = { tokenizer, reward, steps: 2, promptsPerStep: 3, groupSize: 2, maxNewTokens: 3, seed: 3, evalEvery: 1 }
    const eventsOf = async (dataset: Dataset | object) => {
      using model = await newModel()
      using trainer = new GRPOTrainer(model, { ...options, dataset, evalDataset: dataset, evalProblems: 5 } as never)
      const events: unknown[] = []
      for await (const event of trainer.run()) if (event.type === 'step') events.push(event.completions, event.metrics.loss)
      return [events, (await trainer.evaluate()).map(({ rewards }) => rewards)]
    }
    const loaded = await loadDataset(path, { columns })
    expect(await eventsOf({ path, columns })).toEqual(await eventsOf(loaded))
    using model = await newModel()
    const asked = { tokenizer, loops: [1], problems: 6, maxNewTokens: 2 }
    expect(await evaluate(model, { ...asked, dataset: { path, columns } })).toEqual(
      await evaluate(model, { ...asked, dataset: loaded }),
    )
  })

  it.each<[string, string, RegExp]>([
    ['prompt.jsonl', '{"prompt":"a","answer":"b"}\n{"prompt":5}\n', /prompt\.jsonl line 2 field "prompt" must be a string/],
    ['text.jsonl', '{"prompt":"a"}\n{"text":"once"}\n', /text\.jsonl line 2 field "prompt" is missing/],
    ['long.csv', `prompt,answer\na,b\n${'x'.repeat(70)},c\n`, /long\.csv row 2 \(line 3\) field "prompt" has 70 tokens/],
  ])('is rejected with file and position before the first step: %s', async (name, text, message) => {
    await writeFile(join(root, name), text)
    using model = await LoopLM.create({ ...sizes, max_position_embeddings: 64 }, { seed: 1 })
    const trainer = new GRPOTrainer(model, { dataset: join(root, name), tokenizer, reward: () => 1, steps: 1 })
    const error = await refusal(async () => {
      for await (const _ of trainer.run()) expect.unreachable()
    })
    expect(error.message).toMatch(message)
  })

  it('is named in the error if it does not exist', async () => {
    using model = await newModel()
    const trainer = new PretrainTrainer(model, { dataset: 'nowhere.jsonl', tokenizer, steps: 1 })
    const error = await refusal(async () => {
      for await (const _ of trainer.run()) expect.unreachable()
    })
    expect([error.code, error.message]).toEqual(['NOT_FOUND', expect.stringMatching(/no file or folder nowhere\.jsonl/)])
  })
})

describe('epochs', () => {
  it.each([
    [1, 5],
    [2, 10],
    [0.5, 3],
    [0.01, 1],
  ])('%d of 40 rows are %d steps of batch size 8', async (epochs, steps) => {
    expect((await trained({ dataset: { path, columns }, epochs })).steps).toBe(steps)
  })

  it('visit every row once, and are stored in the checkpoint', async () => {
    const runDir = join(root, 'epochs')
    const seen = new Map<string, number>()
    using model = await newModel()
    using trainer = new GRPOTrainer(model, {
      ...{ dataset: { path, columns }, tokenizer, epochs: 1, promptsPerStep: 5, groupSize: 2, maxNewTokens: 2, runDir },
      reward: (prompt) => seen.set(prompt, (seen.get(prompt) ?? 0) + 1).size,
    })
    for await (const _ of trainer.run());
    expect(trainer.step).toBe(8)
    expect([...seen.values()]).toEqual(Array(40).fill(2))
    const state = JSON.parse(await readFile(join(runDir, 'checkpoints/step-8/trainer_state.json'), 'utf8'))
    expect(state.config).toMatchObject({ steps: 8, epochs: 1 })
  })

  it('are rejected together with steps or with a task', async () => {
    using model = await newModel()
    const both = () => new PretrainTrainer(model, { dataset: path, epochs: 1, steps: 5 })
    expect((await refusal(both)).message).toMatch(/epochs: give steps or epochs, not both/)
    using digits = await LoopLM.create({ ...sizes, vocab_size: 12 }, { seed: 1 })
    const endless = new PretrainTrainer(digits, { task: addition({ digits: 1 }), epochs: 1 })
    const error = await refusal(async () => {
      for await (const _ of endless.run()) expect.unreachable()
    })
    expect(error.message).toMatch(/epochs: a task makes problems without end/)
  })
})

it('encoding many prompts yields to the event loop', async () => {
  using model = await newModel()
  const dataset = Array.from({ length: 600 }, (_, i) => ({ prompt: `${i}:${'many words '.repeat(60)}` }))
  const source = openProblems('test', model, { dataset, tokenizer, seed: 0 })
  let turns = 0
  let waiting = true
  const turn = () => {
    turns++
    if (waiting) setImmediate(turn)
  }
  setImmediate(turn)
  const begun = process.cpuUsage()
  await encodePrompts(source, dataset)
  waiting = false
  const { user, system } = process.cpuUsage(begun)
  expect(turns).toBeGreaterThan((user + system) / 1000 / 20) // a turn has 5 ms of work
})
