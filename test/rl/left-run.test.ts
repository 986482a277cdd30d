// A run whose caller leaves the loop, throws in it, drops the iterator or begins another one.
import { getEventListeners } from 'node:events'
import { readdirSync, readlinkSync } from 'node:fs'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { LoopLM } from '../../src/model/model.js'
import { newestCheckpoint } from '../../src/rl/checkpoint.js'
import type { TrainerEvent } from '../../src/rl/events.js'
import type { PretrainOptions } from '../../src/rl/options.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { refusal } from '../refusal.js'
import { parametersOf, tinyModel, tinyTask } from '../tiny.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-left-'))
})
afterAll(() => rm(root, { recursive: true }))

const options: PretrainOptions = { task: tinyTask, batchSize: 4, steps: 6, learningRate: 1e-2, onWarning() {} }
const train = (model: LoopLM, more: PretrainOptions) => new PretrainTrainer(model, { ...options, ...more })

async function finish(events: AsyncIterable<TrainerEvent>): Promise<string[]> {
  const list = []
  for await (const { type, step } of events) list.push(`${type} ${step}`)
  return list
}

/** Lock files that this process holds open in a run's folder. */
function openLocks(runDir: string): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      const path = readlinkSync(`/proc/self/fd/${fd}`)
      return path.startsWith(join(runDir, 'run.lock')) ? [path] : []
    } catch {
      return [] // the one of this listing
    }
  })
}
const listsOpenFiles = process.platform === 'linux'

async function expectFree(runDir: string): Promise<void> {
  expect(await readdir(runDir)).not.toContain('run.lock')
  if (listsOpenFiles) expect(openLocks(runDir)).toEqual([])
}

describe('leaving the loop over a run', () => {
  it('with break writes a checkpoint from which a resumed run continues exactly', async () => {
    const runDir = join(root, 'break')
    using model = await tinyModel('cpu')
    for await (const { type, step } of train(model, { runDir }).run()) if (type === 'step' && step === 3) break
    expect(await newestCheckpoint(runDir)).toBe(join(runDir, 'checkpoints', 'step-3'))
    expect(await readdir(runDir)).toContain('report.html')
    await expectFree(runDir)
    using resumed = await tinyModel('cpu', 5)
    expect(await finish(train(resumed, { runDir, resume: true }).run())).toEqual([
      'step 4',
      'step 5',
      'step 6',
      'checkpoint 6',
      'done 6',
    ])
    using straight = await tinyModel('cpu')
    await finish(train(straight, {}).run())
    expect(await parametersOf(resumed)).toEqual(await parametersOf(straight))
  })

  it('with an error writes a checkpoint and rethrows that error', async () => {
    const runDir = join(root, 'throw')
    using model = await tinyModel('cpu')
    const error = new Error('what the loop did went wrong')
    const loop = async () => {
      for await (const { step } of train(model, { runDir }).run()) if (step === 2) throw error
    }
    await expect(loop()).rejects.toBe(error)
    expect(await newestCheckpoint(runDir)).toBe(join(runDir, 'checkpoints', 'step-2'))
    await expectFree(runDir)
  })

  it('leaves no listener on the abort signal, even while the run waits for the caller', async () => {
    using model = await tinyModel('cpu')
    const { signal } = new AbortController()
    const events = train(model, { runDir: join(root, 'listeners'), evalEvery: 1, evalProblems: 4 }).run({ signal })
    for (let i = 0; i < 3; i++) {
      await events.next()
      expect(getEventListeners(signal, 'abort')).toEqual([])
    }
    await events.return()
    expect(getEventListeners(signal, 'abort')).toEqual([])
  })

  it('with return() of the iterator writes a checkpoint', async () => {
    const runDir = join(root, 'return')
    using model = await tinyModel('cpu')
    const events = train(model, { runDir }).run()
    await events.next()
    expect(await events.return()).toEqual({ done: true, value: undefined })
    expect(await newestCheckpoint(runDir)).toBe(join(runDir, 'checkpoints', 'step-1'))
    expect(await events.next()).toEqual({ done: true, value: undefined })
    await expectFree(runDir)
  })

  it('at a checkpoint event writes no second checkpoint', async () => {
    const runDir = join(root, 'at-checkpoint')
    using model = await tinyModel('cpu')
    let saves = 0
    const trainer = train(model, { runDir, saveEvery: 2 })
    const save = vi.spyOn(model, 'save').mockImplementation(async (...args) => {
      saves++
      return LoopLM.prototype.save.apply(model, args)
    })
    for await (const { type } of trainer.run()) if (type === 'checkpoint') break
    save.mockRestore()
    expect(saves).toBe(1)
    expect(await newestCheckpoint(runDir)).toBe(join(runDir, 'checkpoints', 'step-2'))
  })

  it('after the run itself failed writes no checkpoint', async () => {
    const runDir = join(root, 'failed')
    using model = await tinyModel('cpu')
    const onStep = ({ step }: { step: number }) => {
      if (step === 2) throw new Error('no network')
    }
    await expect(finish(train(model, { runDir, callbacks: { onStep } }).run())).rejects.toThrow('no network')
    expect(await newestCheckpoint(runDir)).toBeUndefined()
    await expectFree(runDir)
  })

  it('fails with an error if the checkpoint cannot be written', async () => {
    const runDir = join(root, 'unwritable')
    using model = await tinyModel('cpu')
    const trainer = train(model, { runDir })
    vi.spyOn(trainer.optimizer, 'save').mockRejectedValue(Object.assign(new Error('disk'), { code: 'ENOSPC' }))
    const error = await refusal(async () => {
      for await (const _ of trainer.run()) break
    })
    expect(error.message).toMatch(/cannot write .*step-1.*the run has no checkpoint yet/)
    await expectFree(runDir)
  })
})

describe('several runs of one trainer', () => {
  it('continue where the dropped run stopped, with a warning', async () => {
    const runDir = join(root, 'again')
    using model = await tinyModel('cpu')
    const onWarning = vi.fn()
    const trainer = train(model, { runDir, onWarning })
    const first = trainer.run()
    await first.next()
    await first.next()
    expect(await finish(trainer.run())).toEqual(['step 3', 'step 4', 'step 5', 'step 6', 'checkpoint 6', 'done 6'])
    expect(onWarning).toHaveBeenCalledExactlyOnceWith(
      expect.stringMatching(/run was called again before .* the earlier run ends here/),
    )
    expect(await first.next()).toEqual({ done: true, value: undefined })
    await expectFree(runDir)
    using straight = await tinyModel('cpu')
    await finish(train(straight, {}).run())
    expect(await parametersOf(model)).toEqual(await parametersOf(straight))
  })

  it('do not repeat the initial evaluation if the first run was dropped after it', async () => {
    const runDir = join(root, 'again-at-start')
    using model = await tinyModel('cpu')
    const trainer = train(model, { runDir, steps: 2, evalEvery: 2, evalProblems: 4 })
    expect((await trainer.run().next()).value).toMatchObject({ type: 'eval', step: 0 })
    expect(await finish(trainer.run())).toEqual(['step 1', 'step 2', 'eval 2', 'checkpoint 2', 'done 2'])
  })

  it('continue in the folder that the first run opened, even if it was aborted before its first step', async () => {
    const runDir = join(root, 'again-unstepped')
    using model = await tinyModel('cpu')
    const trainer = train(model, { runDir, steps: 1 })
    expect(await finish(trainer.run({ signal: AbortSignal.abort() }))).toEqual(['checkpoint 0', 'done 0'])
    expect(await finish(trainer.run())).toEqual(['step 1', 'checkpoint 1', 'done 1'])
  })

  it('are rejected while the first one computes', async () => {
    using model = await tinyModel('cpu')
    const trainer = train(model, { runDir: join(root, 'computing') })
    const first = trainer.run()
    const pending = first.next()
    expect((await refusal(() => trainer.run().next())).message).toMatch(/run: an earlier run of this trainer is computing; wait/)
    expect((await pending).value).toMatchObject({ type: 'step', step: 1 })
    expect(await finish(first)).toContain('done 6')
  })

  it('are not disturbed by iterators that were never started', async () => {
    using model = await tinyModel('cpu')
    const onWarning = vi.fn()
    const trainer = train(model, { runDir: join(root, 'unasked'), onWarning })
    const [one, two] = [trainer.run(), trainer.run()]
    expect(await finish(two)).toContain('done 6')
    expect(await finish(one)).toEqual([])
    expect(onWarning).not.toHaveBeenCalled()
  })
})

describe('the folder of a run whose iterator was dropped', () => {
  setFlagsFromString('--expose-gc')
  const collect: () => void = runInNewContext('gc')

  /** Drops trainer and iterator; the model stays. */
  async function drop(model: LoopLM, runDir: string): Promise<void> {
    await train(model, { runDir }).run().next()
  }

  it('is unlocked once the iterator is garbage-collected', async () => {
    const runDir = join(root, 'dropped')
    using model = await tinyModel('cpu')
    await drop(model, runDir)
    expect(await readdir(runDir)).toContain('run.lock')
    await expect
      .poll(async () => {
        collect()
        return readdir(runDir)
      })
      .not.toContain('run.lock')
    await expectFree(runDir)
    using other = await tinyModel('cpu')
    expect(await finish(train(other, { runDir, resume: true }).run())).toContain('done 6')
  })

  it('is unlocked once its trainer is disposed', async () => {
    const runDir = join(root, 'disposed')
    using model = await tinyModel('cpu')
    const events = await (async () => {
      using trainer = train(model, { runDir })
      const events = trainer.run()
      await events.next()
      return events
    })()
    await expectFree(runDir)
    using other = await tinyModel('cpu')
    expect(await finish(train(other, { runDir, resume: true }).run())).toContain('done 6')
    await expect(events.next()).rejects.toThrow(/disposed/)
  })

  it('stays locked for other trainers while the iterator is alive', async () => {
    const runDir = join(root, 'held')
    using model = await tinyModel('cpu')
    const events = train(model, { runDir }).run()
    await events.next()
    using other = await tinyModel('cpu')
    const error = await refusal(() => finish(train(other, { runDir, resume: true }).run()))
    expect(error.message).toMatch(
      /is locked: process \d+ on .* trains there; .* That is this process: .*leave its loop with break, call return\(\) or dispose/,
    )
    await events.return()
    expect(await finish(train(other, { runDir, resume: true }).run())).toContain('done 6')
  })
})
