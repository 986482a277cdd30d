// Best checkpoints, early stopping, evaluations on several tasks, rewards that take their time, and what a run says about itself.
import { cp, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { LoopLM } from '../../src/model/model.js'
import { RunReader } from '../../src/monitor/run-reader.js'
import { BestCheckpoints } from '../../src/rl/best-checkpoint.js'
import { pretrainOptions } from '../../src/rl/config-tokens.js'
import type { Metrics, TrainerEvent } from '../../src/rl/events.js'
import { GRPOTrainer } from '../../src/rl/grpo.js'
import type { OwnObjective } from '../../src/rl/objective/custom-objective.js'
import { ObjectiveTrainer } from '../../src/rl/objective-trainer.js'
import type { PretrainOptions } from '../../src/rl/options.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { scoreCompletions } from '../../src/rl/rewards.js'
import { RLTTTrainer } from '../../src/rl/rltt.js'
import { addition, sorting } from '../../src/tasks/index.js'
import { refusal } from '../refusal.js'
import { parametersOf, tinyBatch, tinyModel, tinyTask, variedReward } from '../tiny.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-selection-'))
})
afterAll(() => rm(root, { recursive: true }))

async function finish(events: AsyncIterable<TrainerEvent>): Promise<TrainerEvent[]> {
  const list = []
  for await (const event of events) list.push(event)
  return list
}

/** A trainer whose evaluations return what a test wants: at step 1, 2, …, with `evalOnStart` at step 0, 1, …. */
class Scripted extends PretrainTrainer {
  readonly script: readonly number[]
  constructor(model: LoopLM, options: PretrainOptions, script: readonly number[]) {
    const base = { batchSize: 4, evalEvery: 1, evalOnStart: false, metricForBestModel: 'eval/score', onWarning() {} }
    super(model, { task: tinyTask, ...base, ...options })
    this.script = options.evalOnStart ? script : [Number.NaN, ...script]
  }
  protected override async evaluateData(): Promise<Metrics> {
    return { 'eval/score': this.script[this.step]! }
  }
}

async function scripted(options: PretrainOptions, script: readonly number[]) {
  const model = await tinyModel('cpu')
  const trainer = new Scripted(model, { steps: script.length, ...options }, script)
  return { model, trainer, events: await finish(trainer.run()) }
}

/** Steps at which a metric stands in an event file of TensorBoard; records are length, checksum, event, checksum. */
function tensorboardSteps(bytes: Buffer, tag: string): number[] {
  const steps: number[] = []
  for (let at = 0; at < bytes.length; ) {
    const length = Number(bytes.readBigUInt64LE(at))
    const event = bytes.subarray(at + 12, at + 12 + length)
    if (event.includes(tag)) steps.push(event[10]!) // behind the tag and the 8 bytes of the time, and the tag of the step
    at += length + 16
  }
  return steps
}

const checkpoints = async (runDir: string) => (await readdir(join(runDir, 'checkpoints'))).sort()

describe('the best checkpoints', () => {
  it('are written and kept beside the newest', async () => {
    const runDir = join(root, 'best')
    const { trainer } = await scripted({ runDir, saveBest: 2, saveEvery: 2, keepCheckpoints: 1 }, [0.1, 0.5, 0.3, 0.2, 0.4, 0.1])
    expect(await checkpoints(runDir)).toEqual(['step-2', 'step-5', 'step-6'])
    expect(trainer.best).toEqual({ step: 2, value: 0.5, path: join(runDir, 'checkpoints', 'step-2') })
    const state = JSON.parse(await readFile(join(runDir, 'checkpoints', 'step-6', 'trainer_state.json'), 'utf8'))
    expect(state.best).toEqual([
      { step: 2, value: 0.5 },
      { step: 5, value: 0.4 },
    ])
  })

  it('are those with the lowest value if the metric is a loss', async () => {
    const config = { metricForBestModel: 'eval/loop_1/loss', saveBest: 2 } as unknown as ConstructorParameters<
      typeof BestCheckpoints
    >[0]
    const selection = new BestCheckpoints(config)
    for (const [i, value] of [3, 1, Number.NaN, 2, 1].entries()) selection.add(i + 1, { 'eval/loop_1/loss': value })
    expect(selection.state.best.map(({ step }) => step)).toEqual([2, 5])
  })

  it('are loaded at the end with loadBestModelAtEnd; the newest checkpoint keeps the last state', async () => {
    const runDir = join(root, 'load-best')
    const { model } = await scripted({ runDir, loadBestModelAtEnd: true }, [0.1, 0.9, 0.2])
    using best = await LoopLM.fromPretrained(join(runDir, 'checkpoints', 'step-2'))
    using newest = await LoopLM.fromPretrained(join(runDir, 'checkpoints', 'step-3'))
    expect(await parametersOf(model)).toEqual(await parametersOf(best))
    expect(await parametersOf(newest)).not.toEqual(await parametersOf(best))
  })

  it('are loaded again by another run, which writes no checkpoint because it makes no step', async () => {
    const runDir = join(root, 'load-best-again')
    const { model, trainer } = await scripted({ runDir, loadBestModelAtEnd: true }, [0.1, 0.9, 0.2])
    const weights = () => readFile(join(runDir, 'checkpoints', 'step-3', 'model.safetensors'))
    const [before, best] = [await weights(), await parametersOf(model)]
    expect((await finish(trainer.run())).map(({ type }) => type)).toEqual(['done'])
    expect((await weights()).equals(before)).toBe(true)
    expect(await parametersOf(model)).toEqual(best)
  })

  it('are the same after a resume', async () => {
    const script = [0.3, 0.6, 0.1, 0.7, 0.2, 0.65]
    const options = { saveBest: 2, saveEvery: 1, keepCheckpoints: 1 }
    const [whole, cut] = [join(root, 'whole'), join(root, 'cut')]
    const straight = await scripted({ ...options, runDir: whole }, script)
    await scripted({ ...options, runDir: cut, steps: 3 }, script)
    const resumed = await scripted({ ...options, runDir: cut, resume: true }, script)
    expect(await checkpoints(cut)).toEqual(await checkpoints(whole))
    expect(resumed.trainer.best).toMatchObject({ step: 4, value: 0.7 })
    expect(await parametersOf(resumed.model)).toEqual(await parametersOf(straight.model))
  })

  it('are found beside the checkpoint that a run in another folder resumes from', async () => {
    const [one, two, copy] = ['resumed-one', 'resumed-two', 'resumed-copy'].map((name) => join(root, name))
    const step = (runDir: string, number: number) => join(runDir, 'checkpoints', `step-${number}`)
    const options = { loadBestModelAtEnd: true, saveEvery: 1, keepCheckpoints: 1 }
    await scripted({ ...options, runDir: one! }, [0.9, 0.1, 0.2])
    await scripted({ runDir: two! }, [0.5]) // its step-1 is not that of the first run
    using best = await LoopLM.fromPretrained(step(one!, 1))
    const wanted = { step: 1, value: 0.9, path: step(one!, 1) }
    const goOn = async (runDir: string, resume: string | boolean, script: number[]) => {
      const onWarning = vi.fn()
      const resumed = await scripted({ ...options, runDir, resume, onWarning }, script)
      return { ...resumed, warnings: onWarning.mock.calls.map(([message]) => message).join('\n') }
    }
    for (const [resume, script] of [
      [step(one!, 3), [0, 0, 0, 0.3]],
      [true, [0, 0, 0, 0, 0.4]],
    ] as const) {
      const { model, trainer, warnings } = await goOn(two!, resume, [...script])
      expect(trainer.best).toEqual(wanted)
      expect(await parametersOf(model)).toEqual(await parametersOf(best))
      expect(warnings).not.toMatch(/best/)
    }

    await cp(step(one!, 3), join(copy!, 'step-3'), { recursive: true })
    expect((await goOn(one!, join(copy!, 'step-3'), [0, 0, 0, 0.3])).trainer.best).toEqual(wanted)

    await rm(one!, { recursive: true })
    const { trainer, warnings } = await goOn(two!, true, [0, 0, 0, 0, 0, 0.1])
    expect(warnings).toMatch(
      /of the best checkpoints, step-1 was found neither in .*two nor beside .*two.*step-5, and no longer counts/,
    )
    expect(trainer.best).toEqual({ step: 6, value: 0.1, path: step(two!, 6) })
  })

  it('are found on resume even if they were written before their evaluation', async () => {
    const runDir = join(root, 'evaluated-later')
    await scripted({ runDir, steps: 2, evalEvery: 0, metricForBestModel: undefined } as PretrainOptions, [0, 0])
    await scripted({ runDir, resume: true }, [0, 0.9, 0.1])
    const { trainer } = await scripted({ runDir, resume: true }, [0, 0.9, 0.1, 0.2])
    expect(trainer.best).toMatchObject({ step: 2, value: 0.9 })
  })

  it('require a known metric and the options that they depend on', async () => {
    expect((await refusal(() => scripted({ loadBestModelAtEnd: true }, [1]))).message).toMatch(/loadBestModelAtEnd: needs runDir/)
    const error = await refusal(() => scripted({ metricForBestModel: 'accuracy' }, [1]))
    expect(error.message).toMatch(/no metric "accuracy"; it has eval\/score/)
    for (const [options, message] of [
      [{ saveBest: 1 }, /saveBest: needs metricForBestModel/],
      [{ earlyStoppingPatience: 2 }, /earlyStoppingPatience: needs metricForBestModel/],
      [{ loadBestModelAtEnd: true }, /loadBestModelAtEnd: needs metricForBestModel/],
      [{ metricForBestModel: 'x' }, /metricForBestModel: needs evalEvery/],
    ] as const) {
      expect(
        JSON.stringify(pretrainOptions.safeParse(options).error?.issues.map(({ path, message }) => `${path}: ${message}`)),
      ).toMatch(message)
    }
  })
})

describe('the evaluation before the first step', () => {
  const shown = (events: TrainerEvent[]) => events.map(({ type, step }) => `${type} ${step}`)
  const lines = async (runDir: string): Promise<{ type: string; step: number }[]> =>
    (await readFile(join(runDir, 'metrics.jsonl'), 'utf8'))
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line))
  const start = { evalOnStart: true }
  const plain = { ...start, evalEvery: 2, metricForBestModel: undefined, steps: 4 } as PretrainOptions

  it('is on by default, measures the given model and does not change training', async () => {
    const course = async (options: PretrainOptions) => {
      using model = await tinyModel('cpu')
      using trainer = new PretrainTrainer(model, {
        task: tinyTask,
        batchSize: 4,
        steps: 2,
        evalEvery: 2,
        evalProblems: 16,
        ...options,
      })
      const before = await trainer.evaluate()
      return { before, events: await finish(trainer.run()), parameters: await parametersOf(model) }
    }
    const with0 = await course({})
    expect(shown(with0.events)).toEqual(['eval 0', 'step 1', 'step 2', 'eval 2', 'done 2'])
    expect(with0.before.map(({ reward }) => reward)).toEqual(
      [1, 2, 3].map((t) => with0.events[0]!.metrics[`eval/loop_${t}/reward`]),
    )
    const without = await course({ evalOnStart: false })
    expect(shown(without.events)).toEqual(['step 1', 'step 2', 'eval 2', 'done 2'])
    expect(without.parameters).toEqual(with0.parameters)
    expect(shown((await course({ evalEvery: 0 })).events)).toEqual(['step 1', 'step 2', 'done 2'])
  })

  it('is in metrics.jsonl, the events of TensorBoard and the report', async () => {
    const runDir = join(root, 'start')
    await scripted({ ...plain, runDir }, [0.4, 0, 0.1, 0, 0.3])
    expect(shown((await lines(runDir)) as TrainerEvent[])).toEqual([
      'eval 0',
      'step 1',
      'step 2',
      'eval 2',
      'step 3',
      'step 4',
      'eval 4',
    ])
    const { curves } = await new RunReader(runDir).read()
    expect(curves['eval/score']).toMatchObject({ steps: [0, 2, 4], values: [0.4, 0.1, 0.3] })
    const events = (await readdir(runDir)).find((name) => name.startsWith('events.out.tfevents'))!
    expect(tensorboardSteps(await readFile(join(runDir, events)), 'eval/score')).toEqual([0, 2, 4])
    expect(await readFile(join(runDir, 'report.html'), 'utf8')).toContain('"eval/score":{"steps":[0,2,4]')
  })

  it('is not repeated on resume, even after a stop at step 0', async () => {
    const runDir = join(root, 'start-resumed')
    const first = await scripted({ ...plain, runDir, steps: 2 }, [0.4, 0, 0.1])
    expect(shown(first.events)).toContain('eval 0')
    const rest = await scripted({ ...plain, runDir, resume: true }, [0.4, 0, 0.1, 0, 0.3])
    expect(shown(rest.events)).toEqual(['step 3', 'step 4', 'eval 4', 'checkpoint 4', 'done 4'])
    expect((await lines(runDir)).filter(({ type }) => type === 'eval').map(({ step }) => step)).toEqual([0, 2, 4])

    const stopped = join(root, 'start-stopped')
    using model = await tinyModel('cpu')
    const controller = new AbortController()
    const onEvaluate = () => controller.abort()
    const trainer = new Scripted(model, { ...plain, runDir: stopped, callbacks: { onEvaluate } }, [0.4, 0, 0.1])
    expect(shown(await finish(trainer.run({ signal: controller.signal })))).toEqual(['eval 0', 'checkpoint 0', 'done 0'])
    const resumed = await scripted({ ...plain, runDir: stopped, resume: true }, [0.4, 0, 0.1, 0, 0.3])
    expect(shown(resumed.events).slice(0, 2)).toEqual(['step 1', 'step 2'])
    expect((await lines(stopped)).filter(({ type }) => type === 'eval').map(({ step }) => step)).toEqual([0, 2, 4])
  })

  it('runs again after a crash before the first checkpoint, and is logged once', async () => {
    const runDir = join(root, 'start-crashed')
    using model = await tinyModel('cpu')
    const onStep = () => {
      throw new Error('power cut')
    }
    const crashed = new Scripted(model, { ...plain, runDir, callbacks: { onStep } }, [0.4, 0, 0.1])
    await expect(finish(crashed.run())).rejects.toThrow('power cut')
    const again = await scripted({ ...plain, runDir, resume: true }, [0.4, 0, 0.1, 0, 0.3])
    expect(shown(again.events)[0]).toBe('eval 0')
    expect((await lines(runDir)).map(({ step }) => step)).toEqual([0, 1, 2, 2, 3, 4, 4])
  })

  it('makes the start a candidate for the best model', async () => {
    const runDir = join(root, 'start-best')
    const onWarning = vi.fn()
    const options = { ...start, runDir, steps: 3, loadBestModelAtEnd: true, onWarning }
    const { model, trainer } = await scripted(options, [0.9, 0.1, 0.5, 0.3])
    using untrained = await tinyModel('cpu')
    expect(trainer.best).toEqual({ step: 0, value: 0.9, path: join(runDir, 'checkpoints', 'step-0') })
    expect(await parametersOf(model)).toEqual(await parametersOf(untrained))
    expect(onWarning).toHaveBeenCalledExactlyOnceWith(
      'no evaluation was better than the one at the start, so the model has the parameters of step 0 again',
    )
  })

  it('counts for earlyStoppingPatience', async () => {
    const { events } = await scripted({ ...start, steps: 5, earlyStoppingPatience: 2 }, [0.5, 0.4, 0.3, 0.9, 0.9, 0.9])
    expect(events.at(-1)).toMatchObject({ step: 2, stoppedEarly: true })
  })

  it.each<[what: string, options: PretrainOptions, script: number[], warning: RegExp | undefined]>([
    [
      'ends below it',
      {},
      [0.407, 0.163, 0.253],
      /worse at step 2 than at the start: eval\/score 0\.407 → 0\.253\. Lower learningRate/,
    ],
    ['ends where it began', {}, [0.4, 0.1, 0.4], undefined],
    ['ends above it', {}, [0.4, 0.1, 0.5], undefined],
    ['ends above it in a loss', { greaterIsBetter: false }, [0.4, 0.1, 0.5], /eval\/score 0\.400 → 0\.500/],
    ['ends below it in a loss', { greaterIsBetter: false }, [0.4, 0.6, 0.3], undefined],
    ['has a better one to load', { loadBestModelAtEnd: true, runDir: 'load' }, [0.4, 0.6, 0.3], undefined],
    ['began later', { evalOnStart: false, steps: 3 }, [0.4, 0.6, 0.3], /worse at step 3 than at step 1/],
  ])('is the baseline of the warning about a worse model: run that %s', async (_what, options, script, warning) => {
    const onWarning = vi.fn()
    const runDir = options.runDir === undefined ? {} : { runDir: join(root, options.runDir) }
    await scripted({ ...start, steps: script.length - 1, ...options, ...runDir, onWarning }, script)
    const warnings = onWarning.mock.calls.map(([message]) => message)
    if (warning === undefined) expect(warnings).toEqual([])
    else expect(warnings).toEqual([expect.stringMatching(warning)])
  })

  it('is the baseline of the warning about a worse model after a resume', async () => {
    const runDir = join(root, 'start-compared')
    const script = [0.4, 0, 0.5, 0, 0.3]
    await scripted({ ...plain, runDir, steps: 2 }, script)
    const onWarning = vi.fn()
    await scripted({ ...plain, runDir, resume: true, metricForBestModel: 'eval/score', onWarning }, script)
    expect(onWarning).toHaveBeenCalledWith(
      expect.stringMatching(/worse at step 4 than at the start: eval\/score 0\.400 → 0\.300/),
    )
  })

  it('is compared at the largest loop count per metric and task, also after a resume', () => {
    const selection = new BestCheckpoints({ earlyStoppingThreshold: 0 } as never)
    const metrics = (reward: number, other: number, loss: number) => ({
      'eval/loop_1/reward': 0,
      'eval/loop_12/reward': reward,
      'eval/loop_4/reward': 1 - reward,
      'eval/other/loop_2/reward': other,
      'eval/loop_2/loss': loss,
    })
    selection.add(0, metrics(0.5, 0.5, 2))
    expect(selection.falls()).toEqual([])
    const resumed = new BestCheckpoints({ earlyStoppingThreshold: 0 } as never)
    resumed.state = JSON.parse(JSON.stringify(selection.state))
    expect(resumed.falls()).toEqual([])
    resumed.add(5, metrics(0.4, 0.6, 2.5))
    expect(resumed.falls()).toEqual([
      { metric: 'eval/loop_12/reward', before: 0.5, after: 0.4, from: 0, to: 5 },
      { metric: 'eval/loop_2/loss', before: 2, after: 2.5, from: 0, to: 5 },
    ])
  })
})

describe('early stopping', () => {
  it('ends the run after earlyStoppingPatience evaluations without improvement, also on resume', async () => {
    const runDir = join(root, 'early')
    const script = [0.1, 0.5, 0.5, 0.4, 0.9]
    const { events } = await scripted({ runDir, earlyStoppingPatience: 2 }, script)
    expect(events.at(-1)).toMatchObject({ type: 'done', step: 4, aborted: false, stoppedEarly: true })
    const again = await scripted({ runDir, earlyStoppingPatience: 2, resume: true }, script)
    expect(again.events.map(({ type }) => type)).toEqual(['done'])
  })

  it('keeps counting after a resume', async () => {
    const runDir = join(root, 'patience')
    const script = [0.5, 0.4, 0.3, 0.2, 0.9]
    await scripted({ runDir, earlyStoppingPatience: 3, steps: 2 }, script)
    const { events } = await scripted({ runDir, earlyStoppingPatience: 3, resume: true }, script)
    expect(events.at(-1)).toMatchObject({ step: 4, stoppedEarly: true })
  })

  it('does not count an improvement within the threshold', async () => {
    const options = { earlyStoppingPatience: 2, earlyStoppingThreshold: 0.1 }
    expect((await scripted(options, [0.5, 0.55, 0.58, 0.9])).events.at(-1)).toMatchObject({ step: 3, stoppedEarly: true })
    expect((await scripted(options, [0.5, 0.55, 0.7, 0.9])).events.at(-1)).toMatchObject({ step: 4, stoppedEarly: false })
  })
})

describe('evaluations', () => {
  const evalTasks = { small: addition({ digits: 1 }), padded: addition({ digits: 1, width: 2 }) }

  it('cover several tasks at several loop counts', async () => {
    using model = await tinyModel('cpu')
    const options = { task: tinyTask, batchSize: 8, steps: 1, evalEvery: 1, evalProblems: 8, evalLoops: [1, 3], evalTasks }
    const events = await finish(new PretrainTrainer(model, options).run())
    const { metrics } = events.find(({ type }) => type === 'eval')!
    const names = ['', 'small/', 'padded/'].flatMap((task) => [1, 3].map((loop) => `eval/${task}loop_${loop}/reward`))
    expect(Object.keys(metrics).filter((name) => name.endsWith('reward'))).toEqual(names)
    expect(metrics['eval/small/loop_3/reward']).toBe(metrics['eval/loop_3/reward'])
  })

  it('need no evalDataset if evalTasks is set', async () => {
    using model = await tinyModel('cpu')
    const dataset = [{ prompt: '1+1=', answer: '02' }]
    const tokenizer = tinyTask.tokenizer
    const options = { dataset, tokenizer, batchSize: 2, steps: 1, evalEvery: 1, evalProblems: 4, evalTasks }
    const { metrics } = (await finish(new PretrainTrainer(model, options).run())).find(({ type }) => type === 'eval')!
    const rewards = ['small', 'padded'].flatMap((task) => [1, 2, 3].map((loop) => `eval/${task}/loop_${loop}/reward`))
    expect(Object.keys(metrics).filter((name) => name.endsWith('reward'))).toEqual(rewards)
    expect(Object.keys(metrics).filter((name) => !/^eval\/(small|padded)\//.test(name))).toEqual([])
  })

  it('are rejected before the first step if they cannot work', async () => {
    using model = await tinyModel('cpu')
    const base = { batchSize: 2, steps: 1, evalEvery: 1, callbacks: { onStep: () => expect.unreachable() } }
    const dataset = [{ prompt: '1+1=', answer: '02' }]
    const none = new PretrainTrainer(model, { ...base, dataset, tokenizer: tinyTask.tokenizer })
    expect((await refusal(() => finish(none.run()))).message).toMatch(
      /evalDataset: evaluation with a dataset needs held-out rows/,
    )
    const foreign = new PretrainTrainer(model, { ...base, task: tinyTask, evalTasks: { letters: sorting({}) } })
    expect((await refusal(() => finish(foreign.run()))).message).toMatch(/evalTasks\.letters: .*is not in the alphabet/)
  })

  it('run again on resume if an abort cut them off', async () => {
    const runDir = join(root, 'cut-evaluation')
    const controller = new AbortController()
    const slow = {
      ...tinyTask,
      reward: (...args: Parameters<typeof tinyTask.reward>) => {
        controller.abort()
        return tinyTask.reward(...args)
      },
    }
    const common = { task: tinyTask, batchSize: 4, steps: 4, evalEvery: 2, evalOnStart: false, evalProblems: 4 }
    const options = { ...common, runDir, onWarning() {} }
    using model = await tinyModel('cpu')
    const first = await finish(new PretrainTrainer(model, { ...options, evalTasks: { slow } }).run({ signal: controller.signal }))
    expect(first.map(({ type, step }) => `${type} ${step}`)).toEqual(['step 1', 'step 2', 'checkpoint 2', 'done 2'])
    using again = await tinyModel('cpu')
    const evalTasks = { slow: tinyTask }
    const rest = await finish(new PretrainTrainer(again, { ...options, evalTasks, resume: true }).run())
    expect(rest.map(({ type, step }) => `${type} ${step}`)).toEqual([
      'eval 2',
      'step 3',
      'step 4',
      'eval 4',
      'checkpoint 4',
      'done 4',
    ])
  })
})

describe('asynchronous rewards', () => {
  const completions = Array.from({ length: 20 }, (_, i) => ({ prompt: 'p', completion: String(i), columns: {} }))
  const later = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds))

  it('run with at most the given concurrency and return in order', async () => {
    let waiting = 0
    let most = 0
    const reward = async (_prompt: string, completion: string) => {
      most = Math.max(most, ++waiting)
      await later(1 + ((7 * Number(completion)) % 5))
      waiting--
      return Number(completion)
    }
    const { rewards } = await scoreCompletions([{ name: 'slow', reward }], completions, { rewardConcurrency: 3 })
    expect(most).toBe(3)
    expect(rewards).toEqual(completions.map((_, i) => i))
  })

  it('fail by name on a timeout, and every call gets an abort signal', async () => {
    let told = 0
    const reward = async (_p: string, completion: string, _c: object, context?: { signal?: AbortSignal }) => {
      context!.signal!.addEventListener('abort', () => told++)
      if (completion === '3') await new Promise(() => {}) // never
      return 1
    }
    const error = await refusal(() => scoreCompletions([{ name: 'judge', reward }], completions, { rewardTimeout: 0.4 }))
    expect(error.message).toMatch(/reward judge: no answer within rewardTimeout = 0.4 s/)
    expect(told).toBe(20)
  })

  it('do not delay the end of an aborted run', async () => {
    using model = await tinyModel('cpu')
    const controller = new AbortController()
    const reward = () => {
      setTimeout(() => controller.abort(), 20)
      return new Promise<number>(() => {})
    }
    using trainer = new RLTTTrainer(model, { task: tinyTask, reward, groupSize: 2, promptsPerStep: 2, steps: 3 })
    const events = await finish(trainer.run({ signal: controller.signal }))
    expect(events).toMatchObject([{ type: 'done', step: 0, aborted: true }])
  })

  it('are not called any more after one has failed', async () => {
    let asked = 0
    const reward = async () => {
      asked++
      throw new Error('no connection')
    }
    const error = await refusal(() => scoreCompletions([{ name: 'judge', reward }], completions, { rewardConcurrency: 2 }))
    expect(error.message).toBe('reward judge: no connection')
    expect(asked).toBe(2)
  })
})

describe('a value that is not finite', () => {
  const base = { groupSize: 4, learningRate: 1e-2 } as const

  it('is reported with step and loop: a hidden state', async () => {
    using model = await tinyModel('cpu')
    using trainer = new RLTTTrainer(model, base)
    await trainer.update(tinyBatch)
    const name = 'model.layers.0.mlp.up_proj.weight'
    const values = await model.getParameter(name)
    const huge = values.map((value) => Math.sign(value) * 3e38)
    await model.setParameter(name, huge)
    const error = await refusal(() => trainer.update(tinyBatch))
    expect(error.code).toBe('NON_FINITE')
    expect(error.message).toMatch(
      /^step 2: the loss is NaN: the hidden state after loop 1 is not finite \(sequence 0, token \d+\); nothing was changed/,
    )
  })

  it('is reported with step and loop: a log-probability, when the head overflows', async () => {
    using model = await tinyModel('reference')
    using trainer = new RLTTTrainer(model, base)
    const head = await model.getParameter('lm_head.weight')
    await model.setParameter(
      'lm_head.weight',
      head.map((value) => value * 1e308),
    )
    const error = await refusal(() => trainer.update(tinyBatch))
    expect(error.message).toMatch(/^step 1: the loss is NaN: the log-probability after loop 1 is not finite/)
  })

  it('is reported with what earlier updates of the step have changed: a loss', async () => {
    using model = await tinyModel()
    let calls = 0
    const objective: OwnObjective = ({ scores, lengthNormalizers, advantages }) => ({
      loss: ++calls === 3 ? Number.NaN : 1,
      coefficients: scores.logprobs.map((row, i) => row.map(() => lengthNormalizers[i]! * advantages[i]!)),
    })
    const options = { task: tinyTask, reward: variedReward, groupSize: 4, promptsPerStep: 2, onWarning() {} }
    using trainer = new ObjectiveTrainer(model, { ...options, objective, updatesPerRollout: 3, steps: 1 })
    const before = await parametersOf(model)
    const error = await refusal(() => finish(trainer.run()))
    expect(error.message).toMatch(/; this update changed nothing, but 2 earlier ones of the step did\. Go back/)
    expect(await parametersOf(model)).not.toEqual(before)
  })

  it('is reported with the step: a reward', async () => {
    using model = await tinyModel('cpu')
    let calls = 0
    const reward = () => (++calls > 8 ? Number.NaN : calls % 3)
    using trainer = new RLTTTrainer(model, { task: tinyTask, reward, groupSize: 4, promptsPerStep: 2, steps: 3 })
    const error = await refusal(() => finish(trainer.run()))
    expect(error.code).toBe('NON_FINITE')
    expect(error.message).toMatch(/^step 2: reward reward must return a finite number or null, got NaN/)
  })
})

describe('a loss of 0', () => {
  it('is explained by one warning on fresh rollouts', async () => {
    using model = await tinyModel('cpu')
    const onWarning = vi.fn()
    const options = { task: tinyTask, reward: variedReward, groupSize: 4, promptsPerStep: 4, steps: 2, onWarning }
    await finish(new GRPOTrainer(model, options).run())
    expect(onWarning).toHaveBeenCalledExactlyOnceWith(
      expect.stringMatching(
        /^step 1: the loss is 0, as it must be on fresh rollouts.*The gradient is not 0 \(grad_norm [\d.]+\)/,
      ),
    )
  })

  it('is explained by another warning if no completion has a reward', async () => {
    using model = await tinyModel('cpu')
    const onWarning = vi.fn()
    using trainer = new RLTTTrainer(model, { groupSize: 4, onWarning })
    await trainer.update({ ...tinyBatch, rewards: Array(8).fill(null) })
    expect(onWarning).toHaveBeenCalledExactlyOnceWith(expect.stringMatching(/no completion has both tokens and a reward/))
  })
})
