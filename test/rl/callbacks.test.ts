// What a run tells its callbacks and its loggers.
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import type { LoopLM } from '../../src/model/model.js'
import type { Logger } from '../../src/monitor/logger.js'
import { loadLogger } from '../../src/monitor/loggers/load.js'
import type { TrainerCallbacks } from '../../src/rl/callbacks.js'
import type { TrainerEvent } from '../../src/rl/events.js'
import type { PretrainOptions, RLTTOptions } from '../../src/rl/options.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { RLTTTrainer } from '../../src/rl/rltt.js'
import { refusal } from '../refusal.js'
import { tinyModel, tinyTask, variedReward } from '../tiny.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-callbacks-'))
})
afterAll(() => rm(root, { recursive: true }))

const options: RLTTOptions = {
  ...{ task: tinyTask, reward: variedReward, groupSize: 2, promptsPerStep: 3, steps: 2, learningRate: 1e-2 },
  ...{ evalEvery: 2, evalProblems: 4, evalLoops: [1], logCompletions: 3, onWarning() {} },
}
async function finish(events: AsyncIterable<TrainerEvent>): Promise<TrainerEvent[]> {
  const list = []
  for await (const event of events) list.push(event)
  return list
}
const pretrain = (model: LoopLM, more: PretrainOptions) =>
  new PretrainTrainer(model, { task: tinyTask, batchSize: 4, steps: 2, learningRate: 1e-2, onWarning() {}, ...more })
const jsonLines = async (path: string) =>
  (await readFile(path, 'utf8')).split('\n').flatMap((line) => (line === '' ? [] : [JSON.parse(line)]))

/** Callbacks that write down their calls, and lag behind them. */
function recorder(calls: string[]): TrainerCallbacks {
  const record = (name: string) => async (given: { trainer: object; step: number; folder?: string | undefined }) => {
    await new Promise((resolve) => setTimeout(resolve, 1))
    calls.push(`${name} ${given.step}`)
  }
  return {
    onRunBegin: record('begin'),
    onRollouts: record('rollouts'),
    onStep: record('step'),
    onEvaluate: record('evaluate'),
    onLog: record('log'),
    onSave: record('save'),
    onRunEnd: record('end'),
  }
}

describe('callbacks', () => {
  it('are called in the order of the run and awaited before each event is yielded', async () => {
    const calls: string[] = []
    using model = await tinyModel('cpu')
    using trainer = new RLTTTrainer(model, { ...options, runDir: join(root, 'order'), callbacks: recorder(calls) })
    for await (const { type, step } of trainer.run()) calls.push(`(${type} ${step})`)
    expect(calls).toEqual([
      ...['begin 0', 'evaluate 0', 'log 0', '(eval 0)'],
      ...['rollouts 1', 'step 1', 'log 1', '(step 1)', 'rollouts 2', 'step 2', 'log 2', '(step 2)'],
      ...['evaluate 2', 'log 2', '(eval 2)', 'save 2', '(checkpoint 2)', 'end 2', '(done 2)'],
    ])
  })

  it('get the trainer, the rollouts with their rewards, the metrics and the folder', async () => {
    const runDir = join(root, 'given')
    const seen: Record<string, unknown> = {}
    using model = await tinyModel('cpu')
    const callbacks: TrainerCallbacks = {
      onRunBegin: ({ config, folder }) => Object.assign(seen, { config, begun: folder }),
      onRollouts: ({ rollouts }) => Object.assign(seen, { rollouts }),
      onStep: ({ trainer: given, completions }) => Object.assign(seen, { trainer: given, completions }),
      onSave: ({ folder }) => Object.assign(seen, { folder }),
      onRunEnd: ({ status, stoppedEarly, metrics }) => Object.assign(seen, { status, stoppedEarly, last: metrics }),
    }
    using trainer = new RLTTTrainer(model, { ...options, runDir, steps: 1, callbacks })
    const events = await finish(trainer.run())
    expect(seen.trainer).toBe(trainer)
    expect(seen).toMatchObject({ begun: runDir, folder: join(runDir, 'checkpoints', 'step-1') })
    expect(seen.config).toMatchObject({ trainer: 'rltt', options: { groupSize: 2, adamEps: 1e-8 } })
    const rollouts = seen.rollouts as { text: string; reward: number; tokens: Int32Array; promptLength: number }[]
    expect(rollouts).toHaveLength(6)
    for (const { text, reward, tokens, promptLength } of rollouts) {
      expect(reward).toBe(variedReward('', text))
      expect(tokens.length).toBeGreaterThan(promptLength)
    }
    const completions = seen.completions as { completion: string }[]
    expect(completions.map(({ completion }) => completion)).toEqual(rollouts.map(({ text }) => text))
    expect(seen).toMatchObject({ status: 'finished', stoppedEarly: false, last: events.at(-1)!.metrics })
  })

  it('can add numbers to the logged metrics, but no other values', async () => {
    const runDir = join(root, 'added')
    using model = await tinyModel('cpu')
    const callbacks: TrainerCallbacks = {
      onStep: ({ metrics, step }) => {
        metrics['own/step'] = 10 * step
      },
      onLog: ({ metrics, kind }) => {
        metrics[`own/${kind}-log`] = 1
      },
    }
    using trainer = pretrain(model, { runDir, evalEvery: 2, evalProblems: 2, callbacks })
    const events = await finish(trainer.run())
    expect(events.find(({ type, step }) => type === 'step' && step === 2)!.metrics).toMatchObject({ 'own/step': 20 })
    const logged = (await jsonLines(join(runDir, 'metrics.jsonl'))).map((line) => [
      ...[line.type, line.step, line['own/step'], line['own/step-log'], line['own/eval-log']],
    ])
    expect(logged).toEqual([
      ['eval', 0, undefined, undefined, 1],
      ['step', 1, 10, 1, undefined],
      ['step', 2, 20, 1, undefined],
      ['eval', 2, undefined, undefined, 1],
    ])
    const text = { onLog: ({ metrics }: { metrics: object }) => void Object.assign(metrics, { colour: 'red' }) }
    using other = pretrain(model, { callbacks: text })
    expect((await refusal(() => finish(other.run()))).message).toMatch(/metrics: colour must be a number, got string/)
  })

  it.each(['type', 'step', 'time'])('cannot add a metric %s, which is another field of metrics.jsonl', async (name) => {
    const runDir = join(root, `taken-${name}`)
    using model = await tinyModel('cpu')
    const callbacks: TrainerCallbacks = {
      onStep: ({ metrics }) => {
        metrics[name] = 100
      },
    }
    using trainer = pretrain(model, { runDir, callbacks })
    const { code, message } = await refusal(() => finish(trainer.run()))
    expect(code).toBe('INVALID_ARGUMENT')
    expect(message).toMatch(`metrics: ${name} is the name of another field of metrics.jsonl; a callback has added it: rename it`)
    expect(await jsonLines(join(runDir, 'metrics.jsonl'))).toEqual([])
  })

  it.each([
    ['onRunBegin', 0],
    ['onRollouts', 1],
    ['onStep', 1],
    ['onEvaluate', 0],
    ['onLog', 0],
    ['onSave', 2],
    ['onRunEnd', 2],
  ])('fail with an error that names %s, and onRunEnd gets the status failed', async (name, step) => {
    const end = vi.fn()
    const failing = () => Promise.reject(new Error('the network is down'))
    using model = await tinyModel('cpu')
    const callbacks = { onRunEnd: end, [name]: failing }
    using trainer = new RLTTTrainer(model, { ...options, runDir: join(root, `throws-${name}`), callbacks })
    const error = await refusal(() => finish(trainer.run()))
    expect(error.message).toBe(`callbacks.${name}, step ${step}: the network is down`)
    if (name !== 'onRunEnd') expect(end.mock.calls.map(([{ status }]) => status)).toEqual(['failed'])
  })

  it('are rejected if they train the model during a step', async () => {
    using model = await tinyModel('cpu')
    const callbacks: TrainerCallbacks = {
      onRollouts: () => void 0,
    }
    using other = pretrain(model, {})
    callbacks.onRollouts = async () => {
      await other.update({ sequences: [[1, 2, 3]] })
    }
    using trainer = new RLTTTrainer(model, { ...options, callbacks })
    expect((await refusal(() => finish(trainer.run()))).message).toMatch(/^callbacks\.onRollouts, step 1: .*called inside a step/)
  })

  it('can be methods of an object, and unknown names are rejected with a suggestion', async () => {
    class Counter implements TrainerCallbacks {
      steps = 0
      onStep(): void {
        this.steps++
      }
    }
    const counter = new Counter()
    using model = await tinyModel('cpu')
    using trainer = pretrain(model, { callbacks: counter })
    await finish(trainer.run())
    expect(counter.steps).toBe(2)
    const wrong = (callbacks: object) => refusal(() => pretrain(model, { callbacks }))
    expect((await wrong({ onSteps() {} })).message).toMatch(/callbacks\.onSteps: unknown callback; did you mean onStep\?/)
    expect((await wrong({ on_step_end() {} })).message).toMatch(/callbacks\.on_step_end: unknown callback/)
    expect((await wrong({ onStep: 3 })).message).toMatch(/callbacks\.onStep: must be a function, got 3/)
    expect((await wrong([])).message).toMatch(/callbacks: must be an object with functions such as onStep/)
  })

  it('get the status aborted in onRunEnd after a break or an abort', async () => {
    const ends: string[] = []
    const callbacks: TrainerCallbacks = { onRunEnd: ({ status, step }) => void ends.push(`${status} ${step}`) }
    using model = await tinyModel('cpu')
    using left = pretrain(model, { callbacks, runDir: join(root, 'left') })
    for await (const _ of left.run()) break
    const controller = new AbortController()
    using stopped = pretrain(model, { callbacks: { ...callbacks, onStep: () => controller.abort() } })
    expect((await finish(stopped.run({ signal: controller.signal }))).at(-1)).toMatchObject({ type: 'done', aborted: true })
    expect(ends).toEqual(['aborted 1', 'aborted 1'])
  })
})

describe('loggers', () => {
  /** One that writes its calls down. */
  function memory(calls: unknown[][], name?: string): Logger {
    return {
      ...(name !== undefined && { name }),
      start: (config, { folder: _, warn: __, ...run }) => void calls.push(['start', config.trainer, run]),
      log: (step, { loss = 0, ...rest }, kind) =>
        void calls.push(['log', kind, step, Number.isFinite(loss), 'eval/loop_1/reward' in rest]),
      completions: (step, rows) => void calls.push(['completions', step, rows.length]),
      note: (step, { type }) => void calls.push(['note', step, type]),
      flush: () => void calls.push(['flush']),
      finish: ({ status }) => void calls.push(['finish', status]),
    }
  }

  it('can be custom, and receive every call in order beside the built-in ones', async () => {
    const runDir = join(root, 'own')
    const calls: unknown[][] = []
    using model = await tinyModel('cpu')
    using trainer = new RLTTTrainer(model, { ...options, runDir, loggers: ['jsonl', memory(calls)] })
    await finish(trainer.run())
    const facts = { parameters: 3025, trained: 3025, device: 'cpu', dtype: 'float32', loops: 3, data: 'the task addition' }
    expect(calls.filter(([what]) => what !== 'note')).toEqual([
      [
        'start',
        'rltt',
        { name: 'own', step: -1, facts: { ...facts, parameters: model.parameterCount, trained: model.parameterCount } },
      ],
      ['log', 'eval', 0, true, true],
      ['completions', 1, 3],
      ['log', 'step', 1, true, false],
      ['completions', 2, 3],
      ['log', 'step', 2, true, false],
      ['log', 'eval', 2, true, true],
      ['flush'],
      ['finish', 'finished'],
    ])
    const files = await readdir(runDir)
    expect(files.filter((name) => /jsonl$/.test(name)).sort()).toEqual(['completions.jsonl', 'metrics.jsonl', 'notes.jsonl'])
    expect(files.filter((name) => /report|tfevents/.test(name))).toEqual([])
  })

  it('can be an empty list, and checkpoints are still written', async () => {
    const runDir = join(root, 'none')
    using model = await tinyModel('cpu')
    using trainer = pretrain(model, { runDir, loggers: [] })
    await finish(trainer.run())
    expect((await readdir(runDir)).sort()).toEqual(['checkpoints', 'config.yaml'])
    using resumed = pretrain(model, { runDir, loggers: ['jsonl'], steps: 3, resume: true })
    await finish(resumed.run())
    expect((await jsonLines(join(runDir, 'metrics.jsonl'))).map(({ step }) => step)).toEqual([3])
    expect(await jsonLines(join(runDir, 'notes.jsonl'))).toMatchObject([
      { type: 'resume', step: 2 },
      { type: 'warning', step: 2 }, // of the steps
      { type: 'end', step: 3 },
    ])
  })

  it('get warnings as notes, also those from before the first step', async () => {
    const runDir = join(root, 'noted')
    using model = await tinyModel('cpu')
    using first = pretrain(model, { runDir })
    await finish(first.run())
    using resumed = pretrain(model, { runDir, resume: true, steps: 3, batchSize: 5 })
    await finish(resumed.run())
    const notes = await jsonLines(join(runDir, 'notes.jsonl'))
    expect(notes.map(({ type, step }) => `${type} ${step}`)).toEqual(['begin 0', 'end 2', 'resume 2', 'warning 2', 'end 3'])
    expect(notes[3].message).toMatch(/with other values of/)
  })

  it('an onWarning that throws is named', async () => {
    using model = await tinyModel('cpu')
    const onWarning = () => {
      throw new Error('401')
    }
    const failing = { log() {}, finish: () => Promise.reject(new Error('no disk')) }
    using trainer = pretrain(model, { loggers: [failing], onWarning })
    expect((await refusal(() => finish(trainer.run()))).message).toBe('onWarning: 401')
  })

  it('name the failing method in errors; a failing finish is only a warning', async () => {
    using model = await tinyModel('cpu')
    const failing = (method: string, name?: string) => ({
      log() {},
      ...(name && { name }),
      [method]: () => Promise.reject(new Error('401')),
    })
    const run = (logger: Logger, more: PretrainOptions = {}) => finish(pretrain(model, { loggers: [logger], ...more }).run())
    expect((await refusal(() => run(failing('log')))).message).toBe('loggers[0].log: 401')
    expect((await refusal(() => run(failing('start', 'wandb')))).message).toBe('logger wandb.start: 401')
    const onWarning = vi.fn()
    await run(failing('finish', 'wandb'), { onWarning })
    expect(onWarning).toHaveBeenCalledExactlyOnceWith('logger wandb.finish: 401')
  })

  it('are rejected by name if they cannot run', async () => {
    using model = await tinyModel('cpu')
    const wrong = async (loggers: unknown, runDir?: string) =>
      (await refusal(() => pretrain(model, { loggers: loggers as Logger[], ...(runDir && { runDir }) }))).message
    expect(await wrong(['tensorboard'])).toMatch(/loggers: tensorboard write into a run folder: set runDir/)
    expect(await wrong(['report'], join(root, 'x'))).toMatch(/loggers: the logger report reads what jsonl writes: add jsonl/)
    expect(await wrong(['tensorbord'], join(root, 'x'))).toMatch(/loggers\.0: .*did you mean tensorboard\?/)
    expect(await wrong([{ start() {} }])).toMatch(/loggers\.0: must be jsonl, tensorboard, report, or a logger/)
  })

  it('can be loaded from a module that exports an object or a function', async () => {
    const path = (name: string) => join(root, name)
    await writeFile(path('object.mjs'), 'export default { log() {} }')
    await writeFile(path('function.mjs'), 'export default async () => ({ name: "made", log() {} })')
    await writeFile(path('nothing.mjs'), 'export default { write() {} }')
    await writeFile(path('broken.mjs'), 'throw new Error("no key")')
    expect(await loadLogger(path('object.mjs'))).toHaveProperty('log')
    expect((await loadLogger(path('function.mjs'))).name).toBe('made')
    expect((await refusal(() => loadLogger(path('nothing.mjs')))).message).toMatch(
      /exports no logger; export default an object with/,
    )
    expect((await refusal(() => loadLogger(path('broken.mjs')))).message).toMatch(/does not load: no key/)
    expect((await refusal(() => loadLogger(path('missing.mjs')))).message).toMatch(/no file/)
  })
})
