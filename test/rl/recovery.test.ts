// A run survives what happens to long runs: kills, full disks, folders that cannot be written or vanish, and signals.
import { type ChildProcess, spawnSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { replaceFolder } from '../../src/files/replace-folder.js'
import { newestCheckpoint, setAside, settle } from '../../src/rl/checkpoint.js'
import type { TrainerEvent } from '../../src/rl/events.js'
import { PretrainTrainer } from '../../src/rl/pretrain.js'
import { RLTTTrainer } from '../../src/rl/rltt.js'
import { OneProcess, runProgram } from '../cli/program.js'
import { openJsonLines } from '../json-lines.js'
import { configurations, killAndResume, outcomeOf, runStraight } from '../kills.js'
import { refusal } from '../refusal.js'
import { parametersOf, tinyModel, tinyTask, variedReward } from '../tiny.js'

let root: string
let undisturbed: OneProcess
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-recovery-'))
  undisturbed = new OneProcess()
})
afterAll(async () => {
  await undisturbed[Symbol.asyncDispose]()
  await rm(root, { recursive: true })
})

const index = join(import.meta.dirname, '..', '..', 'dist', 'src', 'index.js')
const options = { task: tinyTask, batchSize: 8, learningRate: 1e-2, onWarning() {} }

async function finish(events: AsyncIterable<TrainerEvent>): Promise<TrainerEvent[]> {
  const list = []
  for await (const event of events) list.push(event)
  return list
}

describe('a run that is killed', () => {
  const { text, grpo } = configurations // the others, and many more kills, in test/long
  const each = Object.entries({ text, grpo })
  it.each(each)('%s: resumes and ends bit for bit like an undisturbed run', async (name, config) => {
    const steps = 24
    await runStraight(root, `${name}-whole`, config, steps, undisturbed)
    const report = await killAndResume(root, `${name}-killed`, config, { kills: 2, steps, seed: 3, milliseconds: 60 })
    expect(report.kills).toBe(2)
    expect(await outcomeOf(root, `${name}-killed`, steps)).toEqual(await outcomeOf(root, `${name}-whole`, steps))
  })
})

describe('a folder left by a process that died while writing', () => {
  const marks = async (folder: string) => {
    const found: Record<string, string> = {}
    for (const name of (await readdir(folder)).sort())
      found[name] = await readFile(join(folder, name, 'mark'), 'utf8').catch(() => 'nothing')
    return found
  }
  const make = async (folder: string, name: string, mark: string) => {
    await mkdir(join(folder, name), { recursive: true })
    await writeFile(join(folder, name, 'mark'), mark)
  }

  it.each([
    ['before the first rename', { 'step-1': 'old', '.step-1.tmp': 'new' }, { 'step-1': 'old' }],
    ['between the renames', { '.step-1.old': 'old', '.step-1.tmp': 'new' }, { 'step-1': 'old' }],
    ['after the second rename', { '.step-1.old': 'old', 'step-1': 'new' }, { 'step-1': 'new' }],
    ['while an old one was removed', { 'step-9': 'new', '.step-1.tmp': 'rest' }, { 'step-9': 'new' }],
  ])('is repaired after a kill %s', async (when, before, after) => {
    const runDir = join(root, 'settle', when)
    const folder = join(runDir, 'checkpoints')
    for (const [name, mark] of Object.entries(before)) await make(folder, name, mark as string)
    await make(runDir, '.reference.old', 'old')
    await settle(runDir)
    expect(await marks(folder)).toEqual(after)
    expect(await marks(runDir)).toEqual({ checkpoints: 'nothing', reference: 'old' })
  })

  it('is not confused with hidden files of the user, which stay untouched', async () => {
    const runDir = join(root, 'dotfiles')
    const own = {
      '.bashrc.old': 'x',
      '.vimrc.tmp': 'y',
      '.cache.tmp/deep': 'z',
      'checkpoints/.notes.old': 'n',
      '.step-1.old': 's',
    }
    await mkdir(join(runDir, '.cache.tmp'), { recursive: true })
    await mkdir(join(runDir, 'checkpoints'))
    for (const [name, text] of Object.entries(own)) await writeFile(join(runDir, name), text)
    await settle(runDir)
    for (const [name, text] of Object.entries(own)) expect(await readFile(join(runDir, name), 'utf8')).toBe(text)
    expect((await readdir(runDir)).sort()).toEqual(['.bashrc.old', '.cache.tmp', '.step-1.old', '.vimrc.tmp', 'checkpoints'])
  })

  it('is replaced as a whole, and stays unchanged if a part fails', async () => {
    const folder = join(root, 'replace')
    const write = (mark: string) => (to: string) => writeFile(join(to, 'mark'), mark)
    await replaceFolder(join(folder, 'a'), [write('first')])
    await replaceFolder(join(folder, 'a'), [write('second')])
    expect(await marks(folder)).toEqual({ a: 'second' })
    const full = () => Promise.reject(Object.assign(new Error('no space'), { code: 'ENOSPC' }))
    const error = await refusal(() => replaceFolder(join(folder, 'a'), [write('third'), full]))
    expect(error.message).toMatch(/cannot write .*replace\/a: the disk is full; free some space \(ENOSPC\)/)
    expect(await marks(folder)).toEqual({ a: 'second' })
  })

  it('is set aside if a run continues from an earlier step', async () => {
    const runDir = join(root, 'aside')
    for (const step of [2, 4, 6]) await mkdir(join(runDir, 'checkpoints', `step-${step}`), { recursive: true })
    expect(await setAside(runDir, 2)).toEqual([4, 6])
    expect(await newestCheckpoint(runDir)).toBe(join(runDir, 'checkpoints', 'step-2'))
    expect((await readdir(join(runDir, 'checkpoints'))).sort()).toEqual(['step-2', 'superseded-step-4', 'superseded-step-6'])
  })
})

describe('metrics.jsonl', () => {
  it('loses only the lines that a kill damaged', async () => {
    const path = join(root, 'damaged')
    const first = await openJsonLines(path, -1)
    for (const step of [1, 2, 3, 4]) await first.log(step, {}, 'step')
    const file = join(path, 'metrics.jsonl')
    const lines = (await readFile(file, 'utf8')).trimEnd().split('\n')
    await writeFile(
      file,
      `${lines[0]}\n{"type":"st\n\0\0\0\n${lines[1]}\n17\n${lines[2]}\n${lines[3]}\n{"type":"step","step":2,"loss":0.3`,
    )
    const warn = vi.fn()
    const again = await openJsonLines(path, 3, {}, warn)
    expect(warn).toHaveBeenCalledExactlyOnceWith(expect.stringMatching(/metrics\.jsonl: dropped 3 damaged lines/))
    await again.log(4, {}, 'step')
    const steps = (await readFile(file, 'utf8'))
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line).step)
    expect(steps).toEqual([1, 2, 3, 4])
  })
})

describe('a folder that cannot be written', () => {
  it('is rejected by name before training starts', async () => {
    const file = join(root, 'a-file')
    await writeFile(file, '')
    using model = await tinyModel('cpu')
    const before = await parametersOf(model)
    using trainer = new PretrainTrainer(model, { ...options, runDir: join(file, 'run'), steps: 2 })
    const error = await refusal(() => finish(trainer.run()))
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toMatch(
      /cannot write .*a-file\/run: a part of the path is a file, not a folder; choose another path \(ENOTDIR\)/,
    )
    expect(await parametersOf(model)).toEqual(before)
  })

  // Root may write anywhere: it gives up the capability to, and keeps the one to read, wherever Node and this checkout lie.
  const asUser = process.getuid?.() === 0 ? 'exec setpriv --bounding-set -dac_override' : undefined
  const usable = asUser === undefined || spawnSync('sh', ['-c', `${asUser} true`]).status === 0
  if (!usable) console.log('recovery: the read-only folder is left out, root cannot give up its right to write here (setpriv)')
  it.skipIf(!usable)('is rejected with advice if it is read-only', async () => {
    await mkdir(join(root, 'locked'))
    await writeFile(join(root, 'locked.yaml'), JSON.stringify(configurations.pretrain))
    await chmod(join(root, 'locked'), 0o555)
    const args = ['train', 'locked.yaml', '--run-dir', 'locked/run', '--set', 'steps=2']
    const { code, stderr } = await runProgram(args, { cwd: root, ...(asUser && { shell: asUser }) })
    expect(stderr).toMatch(/error: .*cannot write locked\/run: permission denied; choose another folder/)
    expect(code).toBe(2)
  })

  const unseeing = process.getuid?.() === 0 ? 'exec setpriv --bounding-set -dac_override,-dac_read_search' : undefined
  const tried = spawnSync('sh', ['-c', `${unseeing ?? 'exec'} "$@"`, 'sh', process.execPath, '--check', index])
  if (tried.status !== 0)
    console.log('recovery: unreadable files are left out, root cannot give up its right to read here (setpriv)')
  it.skipIf(tried.status !== 0)('is reported as unreadable, not as missing', async () => {
    const folder = join(root, 'unreadable')
    using model = await tinyModel('cpu')
    await model.save(folder)
    const load = async () => {
      const options = { cwd: root, ...(unseeing && { shell: unseeing }) }
      const { code, stderr } = await runProgram(['generate', 'unreadable', '--prompt', 'a'], options)
      expect(code).toBe(2)
      return stderr
    }
    const denied = /cannot read unreadable\/config\.json: permission denied; .*\(EACCES\)/
    await chmod(join(folder, 'config.json'), 0)
    expect(await load()).toMatch(denied)
    await chmod(folder, 0)
    expect(await load()).toMatch(denied)
    await chmod(folder, 0o755)
  })

  it('keeps the last whole checkpoint on a full disk, from which the run continues', async () => {
    const config = {
      ...configurations.pretrain,
      model: { ...configurations.pretrain.model, hidden_size: 64, intermediate_size: 256 },
      options: { batchSize: 8, learningRate: 0.01 }, // no schedule, which would depend on the steps
    }
    await runStraight(root, 'full-whole', config, 4, undisturbed)
    await writeFile(join(root, 'full.yaml'), JSON.stringify(config))
    const args = ['train', 'full.yaml', '--run-dir', 'full', '--set', 'steps=4', '--set', 'saveEvery=1', '--resume']
    const limit = 'ulimit -f 700; exec' // 512-byte blocks: the model fits, the optimizer's state does not
    const first = await runProgram(args, { cwd: root, shell: limit })
    expect(first.stderr).toMatch(
      /error: cannot write full\/checkpoints\/step-1: .*optimizer\.safetensors.*larger than the limit.*\(EFBIG\)/,
    )
    expect(first.stderr).toMatch(/the run has no checkpoint yet/)
    expect(first.code).toBe(2)
    expect(await readdir(join(root, 'full', 'checkpoints'))).toEqual([]) // nothing half-written
    await undisturbed.looplm(root, [...args, '--set', 'steps=2'])
    const again = await runProgram(args, { cwd: root, shell: limit })
    expect(again.stderr).toMatch(/the newest checkpoint is full\/checkpoints\/step-2/)
    expect(again.code).toBe(2)
    expect(await readdir(join(root, 'full', 'checkpoints'))).toEqual(['step-1', 'step-2'])
    expect((await undisturbed.looplm(root, args)).code).toBe(0)
    expect(await outcomeOf(root, 'full', 4)).toEqual(await outcomeOf(root, 'full-whole', 4))
  })

  it('gets whole lines of metrics.jsonl or none on a full disk', async () => {
    await writeFile(join(root, 'lines.yaml'), JSON.stringify({ ...configurations.pretrain, options: { batchSize: 8 } }))
    const args = ['train', 'lines.yaml', '--run-dir', 'lines', '--set', 'steps=200']
    const { code, stderr } = await runProgram(args, { cwd: root, shell: 'ulimit -f 4; exec' })
    expect(stderr).toMatch(/error: .*cannot write lines\/metrics\.jsonl: the file would be larger than the limit.*\(EFBIG\)/)
    expect(code).toBe(2)
    const text = await readFile(join(root, 'lines', 'metrics.jsonl'), 'utf8')
    expect(text.endsWith('\n')).toBe(true)
    for (const line of text.trimEnd().split('\n')) JSON.parse(line)
  })

  it.each([0, 1])('is created again if it vanished, and the run can be resumed and exported: saveEvery %d', async (saveEvery) => {
    const runDir = join(root, `vanished-${saveEvery}`)
    const onWarning = vi.fn()
    const make = async (steps: number, resume: boolean) => {
      const model = await tinyModel('cpu')
      const onStep = ({ step }: { step: number }) => (step === 2 && !resume ? rmSync(runDir, { recursive: true }) : undefined)
      const trainer = new RLTTTrainer(model, {
        ...{ task: tinyTask, reward: variedReward, groupSize: 4, promptsPerStep: 2, beta: 0.05, learningRate: 1e-2 },
        ...{ runDir, resume, steps, saveEvery, callbacks: { onStep }, onWarning },
      })
      return { model, trainer }
    }
    const { trainer } = await make(3, false)
    expect((await finish(trainer.run())).at(-1)).toMatchObject({ type: 'done', step: 3 })
    expect(onWarning).toHaveBeenCalledExactlyOnceWith(expect.stringMatching(/the run folder .* has vanished and was made again/))
    const files = ['checkpoints', 'completions.jsonl', 'config.yaml', 'metrics.jsonl', 'notes.jsonl', 'reference', 'run.json']
    expect(await readdir(runDir)).toEqual(expect.arrayContaining(files))
    expect(JSON.parse(await readFile(join(runDir, 'run.json'), 'utf8'))).toMatchObject({ trainer: 'rltt', options: { steps: 3 } })
    const resumed = await make(5, true)
    const steps = (await finish(resumed.trainer.run())).filter(({ type }) => type === 'step').map(({ step }) => step)
    expect(steps).toEqual([4, 5]) // without a checkpoint it would begin at 1
  })
})

describe('SIGINT, SIGTERM and SIGHUP', () => {
  it.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)('%s saves a checkpoint and prints how to continue', async (signal) => {
    await writeFile(join(root, 'signal.yaml'), JSON.stringify(configurations.grpo))
    await writeFile(join(root, 'varied.mjs'), 'export const varied = (prompt, completion) => completion.charCodeAt(0) % 7\n')
    const args = ['train', 'signal.yaml', '--run-dir', signal, '--set', 'steps=100000', '--json']
    let sent = false
    const watch = (child: { kill(signal: NodeJS.Signals): void }, stdout: string) => {
      if (!sent && stdout.split('\n').length > 2) child.kill(signal)
      sent ||= stdout.split('\n').length > 2
    }
    const { code, stdout, stderr } = await runProgram(args, { cwd: root, watch })
    const { step } = JSON.parse(stdout.trimEnd().split('\n').at(-1)!)
    expect(stderr).toContain(`stopped after step ${step}; saved ${signal}/checkpoints/step-${step}; continue with:`)
    expect(code).toBe({ SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[signal])
    expect(await newestCheckpoint(join(root, signal))).toBe(join(root, signal, 'checkpoints', `step-${step}`))
    const state = JSON.parse(await readFile(join(root, signal, 'checkpoints', `step-${step}`, 'trainer_state.json'), 'utf8'))
    expect(state.step).toBe(step)
  })

  it('a second signal exits at once, and the newest checkpoint stays usable', async () => {
    await writeFile(join(root, 'twice.yaml'), JSON.stringify({ ...configurations.pretrain, options: { learningRate: 0.01 } }))
    await undisturbed.looplm(root, ['train', 'twice.yaml', '--run-dir', 'twice', '--set', 'steps=1'])
    let signals = 0
    const watch = (child: ChildProcess) => {
      if (signals++ > 0) return
      child.stderr!.on('data', (text) => String(text).includes('send SIGTERM again') && child.kill('SIGTERM'))
      child.kill('SIGTERM')
    }
    const args = ['train', 'twice.yaml', '--run-dir', 'twice', '--resume', '--json']
    const big = ['--set', 'steps=100000', '--set', 'batchSize=30000'] // the step under way takes much longer than a signal
    const { code, stderr } = await runProgram([...args, ...big], { cwd: root, watch })
    expect(code).toBe(143)
    expect(stderr).not.toContain('saved')
    const resumed = await undisturbed.looplm(root, [...args, '--set', 'steps=3'])
    expect(resumed.code).toBe(0)
    const events = resumed.stdout.trimEnd().split('\n')
    const steps = events.map((line) => JSON.parse(line)).filter(({ type }) => type === 'step')
    expect(steps.map(({ step }) => step)).toEqual([2, 3]) // it did not begin anew
  })
})

describe('a folder in which a run trains', () => {
  it('is locked against other runs of any process until the run ends', async () => {
    const runDir = join(root, 'taken')
    using model = await tinyModel('cpu')
    const first = new PretrainTrainer(model, { ...options, runDir, steps: 3 }).run()
    await first.next()
    const config = await readFile(join(runDir, 'config.yaml'), 'utf8')
    using other = await tinyModel('cpu')
    const inside = await refusal(() => finish(new PretrainTrainer(other, { ...options, runDir, steps: 4, resume: true }).run()))
    expect(inside.code).toBe('INVALID_ARGUMENT')
    await writeFile(join(root, 'taken.yaml'), JSON.stringify(configurations.pretrain))
    const outside = await undisturbed.looplm(root, ['train', 'taken.yaml', '--run-dir', 'taken', '--set', 'steps=4', '--resume'])
    expect(outside.code).toBe(2)
    for (const said of [inside.message, outside.stderr])
      expect(said).toMatch(
        new RegExp(
          `taken is locked: process ${process.pid} on .* trains there; wait for it or stop it, or choose another folder`,
        ),
      )
    expect(await readFile(join(runDir, 'config.yaml'), 'utf8')).toBe(config)

    expect((await finish(first)).at(-1)).toMatchObject({ type: 'done', step: 3 })
    expect(await readdir(runDir)).not.toContain('run.lock')
    await finish(new PretrainTrainer(other, { ...options, runDir, steps: 4, resume: true }).run())
  })

  it('is unlocked when its process is killed', async () => {
    await writeFile(join(root, 'freed.yaml'), JSON.stringify({ ...configurations.pretrain, options: { batchSize: 8 } }))
    const args = ['train', 'freed.yaml', '--run-dir', 'freed', '--set', 'saveEvery=1', '--json', '--resume']
    const watch = (child: { kill(signal: NodeJS.Signals): void }) => child.kill('SIGKILL')
    const killed = await runProgram([...args, '--set', 'steps=100000'], { cwd: root, watch })
    expect(killed.signal).toBe('SIGKILL')
    expect(await readdir(join(root, 'freed'))).toContain('run.lock') // what it left is no lock
    const [step = '0'] = (await newestCheckpoint(join(root, 'freed')))?.match(/\d+$/) ?? []
    const { code } = await undisturbed.looplm(root, [...args, '--set', `steps=${Number(step) + 2}`])
    expect(code).toBe(0)
    expect(await readdir(join(root, 'freed'))).not.toContain('run.lock')
  })

  it('is unlocked after the run was rejected or stopped', async () => {
    const runDir = join(root, 'given-up')
    using model = await tinyModel('cpu')
    for await (const _ of new PretrainTrainer(model, { ...options, runDir, steps: 3 }).run()) break
    await expect(finish(new PretrainTrainer(model, { ...options, runDir, steps: 3 }).run())).rejects.toThrow(
      /already holds a run/,
    )
    expect(await readdir(runDir)).not.toContain('run.lock')
  })
})

it('a run does not write over another', async () => {
  using model = await tinyModel('cpu')
  const runDir = join(root, 'twice-the-same')
  await finish(new PretrainTrainer(model, { ...options, runDir, steps: 1 }).run())
  rmSync(join(runDir, 'metrics.jsonl'))
  using again = await tinyModel('cpu')
  using trainer = new PretrainTrainer(again, { ...options, runDir, steps: 1 })
  await expect(finish(trainer.run())).rejects.toThrow(/already holds a run/)
  await trainer.update({ sequences: [[1, 10, 2, 11, 3]] })
  await expect(finish(trainer.run())).rejects.toThrow(/already holds a run/)
  expect(await readdir(join(runDir, 'checkpoints'))).toEqual(['step-1'])
})
