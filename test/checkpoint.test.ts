// A resumed run is the run that was never interrupted, bit for bit.
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { LoopLM } from '../src/model/model.js'
import { newestCheckpoint } from '../src/rl/checkpoint.js'
import type { TrainerEvent } from '../src/rl/events.js'
import { GRPOTrainer } from '../src/rl/grpo.js'
import { PretrainTrainer } from '../src/rl/pretrain.js'
import { RLTTTrainer } from '../src/rl/rltt.js'
import { parametersOf, tinyModel, tinyTask, variedReward } from './tiny.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-checkpoint-'))
})
afterAll(() => rm(root, { recursive: true }))

const shared = {
  task: tinyTask,
  learningRate: 3e-3,
  schedule: 'cosine',
  warmupSteps: 2,
  weightDecay: 0.1,
  steps: 6,
  seed: 9,
  onWarning() {},
} as const
const policy = {
  ...shared,
  groupSize: 4,
  promptsPerStep: 4,
  reward: variedReward,
} as const
interface RunOptions {
  runDir: string
  resume?: boolean | string
  saveEvery?: number
  keepCheckpoints?: number
}
const trainers = {
  'RLTT with a reference': (model: LoopLM, options: RunOptions) => new RLTTTrainer(model, { ...policy, beta: 0.05, ...options }),
  'GRPO with minibatches': (model: LoopLM, options: RunOptions) =>
    new GRPOTrainer(model, { ...policy, updatesPerRollout: 2, minibatches: 2, ...options }),
  'Stage I': (model: LoopLM, options: RunOptions) => new PretrainTrainer(model, { ...shared, batchSize: 8, ...options }),
}

async function finish(events: AsyncIterable<TrainerEvent>): Promise<TrainerEvent[]> {
  const list = []
  for await (const event of events) list.push(event)
  return list
}

/** Runs until a step is done, then aborts, as Ctrl-C does. */
async function runUntil(trainer: RLTTTrainer | GRPOTrainer | PretrainTrainer, last: number): Promise<TrainerEvent[]> {
  const controller = new AbortController()
  const list = []
  for await (const event of trainer.run({ signal: controller.signal })) {
    list.push(event)
    if (event.type === 'step' && event.step === last) controller.abort()
  }
  return list
}

async function readLines(runDir: string): Promise<Record<string, number>[]> {
  const lines = (await readFile(join(runDir, 'metrics.jsonl'), 'utf8')).trimEnd().split('\n')
  const timed = new Set(['step_time', 'sampling_time', 'tokens_per_second', 'memory/resident', 'memory/device'])
  return lines.map((line) => Object.fromEntries(Object.entries<number>(JSON.parse(line)).filter(([name]) => !timed.has(name))))
}

describe('resuming', () => {
  it.each(Object.entries(trainers))('%s: three steps and three more equal six', async (name, make) => {
    const [whole, cut] = [join(root, `${name} whole`), join(root, `${name} cut`)]
    using straight = await tinyModel('cpu')
    {
      using trainer = make(straight, { runDir: whole })
      await finish(trainer.run())
    }
    {
      using model = await tinyModel('cpu')
      using trainer = make(model, { runDir: cut })
      const events = await runUntil(trainer, 3)
      expect(events.slice(-2)).toMatchObject([
        { type: 'checkpoint', path: join(cut, 'checkpoints', 'step-3') },
        { type: 'done', step: 3, aborted: true },
      ])
    }
    using resumed = await tinyModel('cpu', 77) // its parameters come from the checkpoint
    using trainer = make(resumed, { runDir: cut, resume: true })
    const events = await finish(trainer.run())
    expect(events.filter(({ type }) => type === 'step').map(({ step }) => step)).toEqual([4, 5, 6])
    expect(await parametersOf(resumed)).toEqual(await parametersOf(straight))
    expect(await readLines(cut)).toEqual(await readLines(whole))
  })

  it('forgets the metrics of steps after the checkpoint', async () => {
    const runDir = join(root, 'crash')
    using model = await tinyModel('cpu')
    using trainer = trainers['Stage I'](model, { runDir, saveEvery: 2 })
    for await (const { type, step } of trainer.run()) if (type === 'step' && step === 5) break // no checkpoint is written
    using again = await tinyModel('cpu')
    using resumed = trainers['Stage I'](again, { runDir, resume: true })
    await finish(resumed.run())
    expect((await readLines(runDir)).map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6])
  })

  it('starts from the beginning where there is no checkpoint', async () => {
    using model = await tinyModel('cpu')
    using trainer = trainers['Stage I'](model, { runDir: join(root, 'new'), resume: true })
    expect((await finish(trainer.run()))[0]).toMatchObject({ type: 'step', step: 1 })
  })

  it('tells which options have changed', async () => {
    const runDir = join(root, 'new')
    const onWarning = vi.fn()
    using model = await tinyModel('cpu')
    using trainer = new PretrainTrainer(model, { ...shared, batchSize: 9, steps: 7, runDir, resume: true, onWarning })
    await finish(trainer.run())
    expect(onWarning).toHaveBeenCalledWith(expect.stringMatching(/with other values of .*(batchSize, steps|steps, batchSize)/))
  })

  it('refuses what is not a checkpoint, one of another trainer, and a run that exists', async () => {
    const runDir = join(root, 'new')
    using model = await tinyModel('cpu')
    const before = await parametersOf(model)
    const attempt = async (options: RunOptions) => {
      using trainer = trainers['RLTT with a reference'](model, options)
      await finish(trainer.run())
    }
    await expect(attempt({ runDir })).rejects.toThrow(/already holds a run/)
    await expect(attempt({ runDir, resume: join(root, 'nowhere') })).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(attempt({ runDir, resume: true })).rejects.toThrow(/was written by the trainer pretrain, not rltt/)
    const broken = join(root, 'broken')
    await mkdir(broken)
    await writeFile(join(broken, 'trainer_state.json'), '{"format":1,"trainer":"rltt","step":-3}')
    await expect(attempt({ runDir, resume: broken })).rejects.toThrow(/trainer_state\.json: step: /)
    expect(await parametersOf(model)).toEqual(before)
  })
})

describe('checkpoint folders', () => {
  it('are complete, few, and loadable as a model', async () => {
    const runDir = join(root, 'folders')
    using model = await tinyModel('cpu')
    using trainer = trainers['Stage I'](model, { runDir, saveEvery: 1, keepCheckpoints: 2 })
    const events = await finish(trainer.run())
    expect(events.filter(({ type }) => type === 'checkpoint')).toHaveLength(6)
    expect((await readdir(join(runDir, 'checkpoints'))).sort()).toEqual(['step-5', 'step-6'])
    const files = await readdir(join(runDir, 'checkpoints', 'step-6'))
    expect(files).toEqual(
      expect.arrayContaining([
        'config.json',
        'model.safetensors',
        'optimizer.safetensors',
        'tokenizer.json',
        'trainer_state.json',
      ]),
    )
    using loaded = await LoopLM.fromPretrained(join(runDir, 'checkpoints', 'step-6'))
    expect(await parametersOf(loaded)).toEqual(await parametersOf(model))
  })

  it('that were never finished do not count', async () => {
    const runDir = join(root, 'unfinished')
    await mkdir(join(runDir, 'checkpoints', '.step-9.tmp'), { recursive: true })
    expect(await newestCheckpoint(runDir)).toBeUndefined()
    for (const step of [2, 10]) await mkdir(join(runDir, 'checkpoints', `step-${step}`))
    expect(await newestCheckpoint(runDir)).toBe(join(runDir, 'checkpoints', 'step-10'))
  })
})
