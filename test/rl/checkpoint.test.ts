// A resumed run is the run that was never interrupted, bit for bit.
import { spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { existsSync } from 'node:fs'
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { LoopLM } from '../../src/model/model.js'
import type { TrainerCallbacks } from '../../src/rl/callbacks.js'
import { newestCheckpoint } from '../../src/rl/checkpoint.js'
import type { TrainerEvent } from '../../src/rl/events.js'
import { GRPOTrainer } from '../../src/rl/grpo.js'
import { LoopRPTTrainer } from '../../src/rl/looprpt.js'
import { ObjectiveTrainer } from '../../src/rl/objective-trainer.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { RLTTTrainer } from '../../src/rl/rltt.js'
import { refusal } from '../refusal.js'
import { timeless } from '../timeless.js'
import { parametersOf, tinyConfig, tinyModel, tinyTask, variedReward } from '../tiny.js'

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
  callbacks?: TrainerCallbacks
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
  return lines.map((line) => timeless<number>(JSON.parse(line)))
}

describe('resuming', () => {
  it.each(Object.entries(trainers))('%s: stopping after 3 of 6 steps and resuming gives the same result', async (name, make) => {
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
    const onStep = ({ step }: { step: number }) => {
      if (step === 5) throw new Error('power cut')
    }
    using trainer = trainers['Stage I'](model, { runDir, saveEvery: 2, callbacks: { onStep } })
    await expect(finish(trainer.run())).rejects.toThrow('power cut') // no checkpoint is written
    using again = await tinyModel('cpu')
    using resumed = trainers['Stage I'](again, { runDir, resume: true })
    const events = await finish(resumed.run())
    expect(events.filter(({ type }) => type === 'step').map(({ step }) => step)).toEqual([5, 6])
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

  it('rejects a missing checkpoint, one of another trainer and an existing run', async () => {
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

  it('rejects a checkpoint in a folder named after another step', async () => {
    const [from, to] = [join(root, 'new', 'checkpoints', 'step-7'), join(root, 'moved', 'step-9')]
    await cp(from, to, { recursive: true })
    using model = await tinyModel('cpu')
    using trainer = trainers['Stage I'](model, { runDir: join(root, 'unmade', 'run'), resume: to })
    await expect(finish(trainer.run())).rejects.toThrow(/step-9\/trainer_state\.json: step: is 7 in the folder of step 9/)
    expect(existsSync(join(root, 'unmade'))).toBe(false)
  })

  it('leaves the model unchanged and the trainer unusable if it fails half-way', async () => {
    const runDir = join(root, 'half')
    const make = (model: LoopLM, resume: boolean) =>
      new LoopRPTTrainer(model, { ...shared, batchSize: 4, rollouts: 2, steps: 2, runDir, resume })
    using first = await tinyModel('cpu')
    using run = make(first, false)
    await finish(run.run())
    await truncate(join(runDir, 'checkpoints', 'step-2', 'teacher.safetensors'), 500)
    using model = await tinyModel('cpu', 5)
    const before = await parametersOf(model)
    using trainer = make(model, true)
    const anew = /teacher\.safetensors.*the trainer has loaded parts of the checkpoint and cannot be used: make a new trainer/
    await expect(finish(trainer.run())).rejects.toThrow(anew)
    expect(trainer.step).toBe(0)
    expect(await parametersOf(model)).toEqual(before)
    await expect(finish(trainer.run())).rejects.toThrow(anew)
    await expect(trainer.update({ sequences: [[1, 2, 3]] })).rejects.toThrow(anew)
    await expect(trainer.gradients({ sequences: [[1, 2, 3]] })).rejects.toThrow(anew)
  })

  it('rejects a checkpoint without the reference that the KL needs, before it loads anything', async () => {
    const runDir = join(root, 'no-reference')
    const make = (model: LoopLM, options: object) => new RLTTTrainer(model, { ...policy, steps: 1, ...options })
    using first = await tinyModel('cpu')
    await finish(make(first, { runDir }).run())
    const moved = join(root, 'copied', 'step-1')
    await cp(join(runDir, 'checkpoints', 'step-1'), moved, { recursive: true })
    for (const [options, missing] of [
      [{ runDir, resume: true, beta: 0.1 }, join(runDir, 'reference')],
      [{ resume: moved, beta: 0.1 }, join(root, 'reference')],
    ] as const) {
      using model = await tinyModel('cpu', 5)
      const before = await parametersOf(model)
      using trainer = make(model, options)
      const error = await refusal(() => finish(trainer.run()))
      expect([error.code, error.message]).toEqual([
        'INVALID_CONFIG',
        expect.stringContaining(`beta: ${missing} is missing: the run of `),
      ])
      expect(await parametersOf(model)).toEqual(before)
      expect((await trainer.update({ sequences: [[1, 2, 3]], promptLengths: [1], advantages: [1] })).loss).toBeTypeOf('number')
    }
    using averaged = await tinyModel('cpu')
    const ema = { terms: [{}], kl: { beta: 0.1, reference: 'ema' } } as const
    const options = { ...policy, steps: 1, objective: ema, resume: join(root, 'ema-0') }
    using of = new ObjectiveTrainer(averaged, { ...policy, steps: 1, objective: 'rltt', runDir: join(root, 'ema-0') })
    await finish(of.run())
    using resumed = new ObjectiveTrainer(averaged, { ...options, resume: join(root, 'ema-0', 'checkpoints', 'step-1') })
    expect((await refusal(() => finish(resumed.run()))).message).toMatch(/step-1\/reference\.safetensors is missing/)
  })

  it('leaves the trainer usable if it fails at the first file', async () => {
    using model = await tinyModel('cpu')
    using trainer = trainers['Stage I'](model, { runDir: join(root, 'usable'), resume: join(root, 'nowhere') })
    await expect(finish(trainer.run())).rejects.toThrow(/is not a checkpoint of a trainer/)
    expect((await trainer.update({ sequences: [[1, 2, 3]] })).loss).toBeGreaterThan(0)
  })
})

describe('checkpoint folders', () => {
  it('are complete, limited in number, and loadable as a model', async () => {
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

  it('are ignored if they were never finished', async () => {
    const runDir = join(root, 'unfinished')
    await mkdir(join(runDir, 'checkpoints', '.step-9.tmp'), { recursive: true })
    expect(await newestCheckpoint(runDir)).toBeUndefined()
    for (const step of [2, 10]) await mkdir(join(runDir, 'checkpoints', `step-${step}`))
    expect(await newestCheckpoint(runDir)).toBe(join(runDir, 'checkpoints', 'step-10'))
  })
})

describe('saving into a folder that holds a model', () => {
  // Saves a model of six loops over one of three. It is killed at the n-th rename, copies the folder before each as a kill would leave it,
  // or fails at the first, the second, … until it is saved.
  const program = `
    import { cpSync } from 'node:fs'
    import fsp from 'node:fs/promises'
    import { syncBuiltinESMExports } from 'node:module'
    const [index, folder, kill, config] = process.argv.slice(1)
    const real = fsp.rename
    let count = 0
    let fail = 0
    fsp.rename = async (from, to) => {
      count++
      if (count === Number(kill)) process.kill(process.pid, 'SIGKILL')
      if (kill === 'copied') cpSync(folder, folder + '-' + count, { recursive: true })
      if (count === fail) throw Object.assign(new Error('no'), { code: 'EIO' })
      return real(from, to)
    }
    syncBuiltinESMExports()
    const { LoopLM, Tokenizer } = await import(index)
    const model = await LoopLM.create({ ...JSON.parse(config), total_ut_steps: 6 }, { seed: 2, threads: 1 })
    model.tokenizer = Tokenizer.characters('0123456789+=')
    const content = async () => {
      const files = (await fsp.readdir(folder, { withFileTypes: true })).filter((entry) => entry.isFile())
      const texts = files.map(async ({ name }) => name + (await fsp.readFile(folder + '/' + name)).toString('base64'))
      return (await Promise.all(texts)).sort().join()
    }
    const before = await content()
    for (fail = kill === 'never' ? 1 : 0; ; fail++) {
      count = 0
      const error = await model.save(folder).catch((error) => error)
      console.log(JSON.stringify({ error: error?.message, count, same: before === (await content()) }))
      if (error === undefined || fail === 0) break
    }
  `
  const index = join(import.meta.dirname, '..', '..', 'dist', 'src', 'index.js')
  const save = (folder: string, kill: number | 'copied' | 'never') => {
    const args = ['--input-type=module', '-e', program, index, folder, String(kill), JSON.stringify(tinyConfig)]
    const { signal, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
    expect(stderr).toBe('')
    return {
      signal,
      attempts:
        stdout === ''
          ? []
          : stdout
              .trim()
              .split('\n')
              .map((line) => JSON.parse(line)),
    }
  }
  const make = async (name: string) => {
    const folder = join(root, name)
    using model = await LoopLM.create(tinyConfig, { seed: 1, threads: 1 })
    await model.save(folder)
    for (const name of stale) await writeFile(join(folder, name), 'of the old model')
    await writeFile(join(folder, 'notes.txt'), 'mine')
    await mkdir(join(folder, 'own'))
    return folder
  }
  const clean = ['config.json', 'generation_config.json', 'model.safetensors', 'notes.txt', 'own']
  const stale = ['adapter_config.json', 'chat_template.jinja', 'pytorch_model.bin']

  it('leaves the old model or an error with advice, wherever the process is killed', async () => {
    const seen = new Set<string>()
    const {
      attempts: [{ count }],
    } = save(await make('kill'), 'copied')
    expect(count).toBeGreaterThan(8)
    expect(save(await make('killed'), 4).signal).toBe('SIGKILL')
    for (const name of ['killed', ...Array.from({ length: count }, (_, i) => `kill-${i + 1}`)]) {
      const folder = join(root, name)
      expect(await readFile(join(folder, 'notes.txt'), 'utf8')).toBe('mine')
      try {
        using model = await LoopLM.fromPretrained(folder)
        using made = await LoopLM.create(model.config, { seed: model.config.total_ut_steps === 6 ? 2 : 1, threads: 1 })
        expect(await parametersOf(model)).toEqual(await parametersOf(made))
        const left = (await readdir(folder)).filter((file) => stale.includes(file)).sort()
        expect(left).toEqual(model.config.total_ut_steps === 6 ? [] : stale)
        seen.add(`${model.config.total_ut_steps} loops`)
      } catch (error) {
        const [, from] = /was cut off half-way: save it again, or complete it by moving the files of (.*) into/.exec(
          (error as Error).message,
        )!
        seen.add('refused')
        for (const file of await readdir(from!)) await rename(join(from!, file), join(folder, file))
        using model = await LoopLM.fromPretrained(folder)
        expect(model.config.total_ut_steps).toBe(6)
        expect(model.tokenizer).toBeDefined()
      }
      using again = await LoopLM.create(tinyConfig, { seed: 3, threads: 1 })
      await again.save(folder)
      using loaded = await LoopLM.fromPretrained(folder)
      expect(await parametersOf(loaded)).toEqual(await parametersOf(again))
      const left = (await readdir(folder)).filter((file) => !file.startsWith('tokenizer'))
      expect(left.sort()).toEqual(clean) // what the killed process left is gone, the user's files are there
      expect((await readdir(root)).filter((file) => file.startsWith(`${name}.`))).toEqual([])
    }
    expect([...seen].sort()).toEqual(['3 loops', 'refused'])
  })

  it('restores everything if a file cannot be replaced', async () => {
    const folder = await make('failed')
    const { attempts } = save(folder, 'never')
    expect(attempts.length).toBeGreaterThan(8)
    for (const { error, same } of attempts.slice(0, -1)) {
      expect(error).toMatch(/LoopLM\.save: cannot write .*failed: the disk reported an error/)
      expect(same).toBe(true)
    }
    expect(attempts.at(-1)).toMatchObject({ same: false })
    expect((await readdir(folder)).sort()).toEqual([...clean, 'tokenizer.json', 'tokenizer_config.json'])
  })

  it('fails without changes if a folder of the user has the name of a file', async () => {
    const folder = await make('in-the-way')
    await mkdir(join(folder, 'tokenizer.json'))
    await writeFile(join(folder, 'tokenizer.json', 'deep'), 'mine')
    expect(save(folder, 0).attempts[0].error).toMatch(/cannot write .*tokenizer\.json: it is a folder/)
    expect(await readFile(join(folder, 'tokenizer.json', 'deep'), 'utf8')).toBe('mine')
    expect((await readdir(folder)).sort()).toEqual([...clean, ...stale, 'tokenizer.json'].sort())
  })

  it('leaves one whole model if two save at the same time', async () => {
    const folder = await make('both')
    using one = await LoopLM.create(tinyConfig, { seed: 4, threads: 1 })
    using two = await LoopLM.create({ ...tinyConfig, total_ut_steps: 2 }, { seed: 5, threads: 1 })
    await Promise.all([one.save(folder), two.save(folder), one.save(join(root, 'fresh')), two.save(join(root, 'fresh'))])
    for (const place of [folder, join(root, 'fresh')]) {
      using loaded = await LoopLM.fromPretrained(place)
      expect(await parametersOf(loaded)).toEqual(await parametersOf(loaded.config.total_ut_steps === 2 ? two : one))
      expect((await readdir(place)).filter((name) => name.startsWith('.'))).toEqual([])
    }
  })

  it('makes loadAdapter reject an adapter whose save was cut off half-way', async () => {
    using model = await tinyModel('cpu')
    await model.addAdapter({ rank: 2 })
    const folder = join(root, 'adapter')
    await model.saveAdapter(folder)
    const id = randomUUID()
    await mkdir(join(folder, `.save-${id}`))
    await mkdir(join(folder, `.save-${id}.old`))
    await rename(join(folder, 'adapter_config.json'), join(folder, `.save-${id}.old`, 'adapter_config.json'))
    expect((await refusal(() => model.loadAdapter(folder))).message).toMatch(/was cut off half-way: save it again/)
    await model.saveAdapter(folder)
    expect((await readdir(folder)).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors'])
  })
})
