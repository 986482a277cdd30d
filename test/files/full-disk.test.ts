// A disk that is really full: a file system of two megabytes in its own mount namespace, which ends with the process that holds it.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readdir, readFile, rm, statfs, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { stringify } from 'yaml'
import { download } from '../../src/data/download.js'
import { Tokenizer } from '../../src/data/tokenizer.js'
import { LoopLM } from '../../src/model/model.js'
import { AdamW } from '../../src/model/optimizer.js'
import { type Outcome, runProgram } from '../cli/program.js'
import { startHub } from '../hub.js'
import { configurations, outcomeOf, runStraight } from '../kills.js'
import { refusal } from '../refusal.js'
import { parametersOf, tinyConfig } from '../tiny.js'

const asRoot = process.getuid?.() === 0
const root = await mkdtemp(join(tmpdir(), 'looplm-full-'))
const holder = await mountSmall(join(root, 'disk'))
/** The small file system as this process sees it: through the root folder of the one that mounted it. */
const disk = holder && `/proc/${holder.pid}/root${join(root, 'disk')}`
if (disk === undefined)
  console.log('full-disk: left out, no file system can be mounted here (needs Linux, and root or user namespaces)')

afterAll(async () => {
  holder?.kill()
  await rm(root, { recursive: true })
})

/** Mounts two megabytes of memory on a folder for one process, which lives until it is killed or this one ends. */
async function mountSmall(folder: string): Promise<ChildProcess | undefined> {
  await mkdir(folder)
  const namespace = asRoot ? ['-m'] : ['-r', '-m']
  const script = 'mount -t tmpfs -o size=2m tmpfs "$1" && echo ready && exec cat'
  const child = spawn('unshare', [...namespace, 'sh', '-c', script, 'sh', folder], { stdio: ['pipe', 'pipe', 'ignore'] })
  const said = await Promise.race([once(child.stdout, 'data'), once(child, 'close'), once(child, 'error').catch(() => [])])
  return String(said[0]).trim() === 'ready' && (await statfs(`/proc/${child.pid}/root${folder}`)).blocks < 1000
    ? child
    : undefined
}

/** Runs the program with the small file system as its working folder. */
function runThere(args: readonly string[]): Promise<Outcome> {
  const enter = `exec nsenter -t ${holder!.pid} -m ${asRoot ? '' : '-U --preserve-credentials'}`
  return runProgram(args, { cwd: root, shell: `${enter} sh -c 'cd "$0" && exec "$@"' '${join(root, 'disk')}'` })
}

/** Fills the disk but for some bytes. */
async function fill(left: number): Promise<void> {
  await rm(join(disk!, 'filler'), { force: true })
  const { bavail, bsize } = await statfs(disk!)
  await writeFile(join(disk!, 'filler'), Buffer.alloc(bavail * bsize - left))
}

const bytesFree = async () => statfs(disk!).then(({ bavail, bsize }) => bavail * bsize)

describe.skipIf(disk === undefined)('on a full disk', () => {
  it('no partial checkpoint stays, the previous one loads, and the run resumes with free space', async () => {
    const config = {
      ...configurations.pretrain,
      model: { ...configurations.pretrain.model, hidden_size: 32, intermediate_size: 64 },
      options: { batchSize: 8, learningRate: 0.01 },
    }
    await runStraight(root, 'whole', config, 4)
    await writeFile(join(disk!, 'run.yaml'), stringify(config))
    const train = (steps: number) =>
      runThere(['train', 'run.yaml', '--run-dir', 'run', '--set', `steps=${steps}`, '--set', 'saveEvery=1', '--resume'])
    const checkpoints = join(disk!, 'run', 'checkpoints')

    const before = await bytesFree()
    expect((await train(2)).code).toBe(0)
    const one = (before - (await bytesFree())) / 2
    await fill(Math.round(one / 2)) // room for the model, not for the moments of the optimizer
    const full = await train(4)
    expect(full.stderr).toMatch(
      /cannot write run\/checkpoints\/step-3: .*optimizer\.safetensors.*: the disk is full; free some space/,
    )
    expect(full.stderr).toMatch(/the newest checkpoint is run\/checkpoints\/step-2/)
    expect(full.code).toBe(2)
    expect((await readdir(checkpoints)).sort()).toEqual(['step-1', 'step-2']) // nothing half-written, and no hidden folder
    const left = await LoopLM.fromPretrained(join(checkpoints, 'step-2'))
    left.dispose()
    await rm(join(disk!, 'filler'))
    expect((await train(4)).code).toBe(0)
    expect(await outcomeOf(disk!, 'run', 4)).toEqual(await outcomeOf(root, 'whole', 4))
  })

  it('metrics.jsonl holds whole lines', async () => {
    await writeFile(join(disk!, 'lines.yaml'), stringify({ ...configurations.pretrain, options: { batchSize: 8 } }))
    await fill(8 * 4096)
    const { code, stderr } = await runThere(['train', 'lines.yaml', '--run-dir', 'lines', '--set', 'steps=400'])
    expect(stderr).toMatch(
      /error: .*cannot write lines\/(metrics\.jsonl|events\.out\S+): the disk is full; free some space \(ENOSPC\)/,
    )
    expect(code).toBe(2)
    const text = await readFile(join(disk!, 'lines', 'metrics.jsonl'), 'utf8')
    expect(text.endsWith('\n')).toBe(true)
    const steps = text
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line).step)
    expect(steps).toEqual(steps.map((_, i) => i + 1))
  })

  it('model.save leaves an existing folder unchanged', async () => {
    await rm(join(disk!, 'filler'), { force: true })
    const folder = join(disk!, 'model')
    using model = await LoopLM.create({ ...tinyConfig, hidden_size: 64, intermediate_size: 96 }, { seed: 1 })
    await model.save(folder)
    const names = await readdir(folder)
    await fill(20_000)
    using other = await LoopLM.create({ ...tinyConfig, hidden_size: 64, intermediate_size: 96 }, { seed: 2 })
    for (const target of [folder, join(disk!, 'new')]) {
      const error = await refusal(() => other.save(target))
      expect(error.code).toBe('INVALID_FILE')
      expect(error.message).toContain('model.safetensors')
      expect(error.message).toContain('the disk is full; free some space')
    }
    expect((await readdir(disk!)).filter((name) => /model|new|tmp/.test(name))).toEqual(['model'])
    expect(await readdir(folder)).toEqual(names)
    using kept = await LoopLM.fromPretrained(folder)
    expect(await parametersOf(kept)).toEqual(await parametersOf(model))
  })

  it('saving an adapter, a tokenizer or an optimizer fails and leaves existing files unchanged', async () => {
    await rm(join(disk!, 'filler'), { force: true })
    using model = await LoopLM.create({ ...tinyConfig, hidden_size: 64, intermediate_size: 96 }, { seed: 1 })
    await model.addAdapter({ rank: 8 })
    using optimizer = new AdamW(model)
    const writes: [name: string, write: (folder: string) => Promise<void>][] = [
      ['adapter', (folder) => model.saveAdapter(folder)],
      ['tokenizer', (folder) => Tokenizer.bytes().save(folder)],
      ['optimizer.safetensors', (path) => optimizer.save(path)],
    ]
    const content = async (path: string) => {
      const names = await readdir(path).catch(() => [])
      return Promise.all([...names.sort().map((name) => join(path, name)), ...(names.length > 0 ? [] : [path])].map(read))
    }
    const read = async (path: string) => [path, (await readFile(path)).toString('base64')]
    for (const [name, write] of writes) {
      await rm(join(disk!, 'filler'), { force: true })
      await write(join(disk!, name))
      const before = await content(join(disk!, name))
      await fill(name === 'tokenizer' ? 0 : 8192)
      const error = await refusal(() => write(join(disk!, name)))
      expect(error.code).toBe('INVALID_FILE')
      expect(error.message).toMatch(/the disk is full; free some space/)
      expect(await content(join(disk!, name))).toEqual(before)
    }
  })

  it('a download fails at once, and continues when there is space', async () => {
    const hub = await startHub()
    try {
      const name = 'model.safetensors'
      hub.files.set('config.json', Buffer.from('{}'))
      hub.files.set(name, Buffer.alloc(400_000, 'weights'))
      const options = { cacheDir: join(disk!, 'cache'), hubUrl: hub.url }
      await fill(200_000)
      const error = await refusal(() => download('org/tiny', options))
      expect(error.code).toBe('INVALID_FILE')
      expect(error.message).toMatch(
        /download: cannot write model\.safetensors to .*incomplete: the disk is full; free some space \(ENOSPC\)/,
      )
      const requests = () => hub.requests.filter((request) => request.startsWith(`GET /cdn/${name}`))
      expect(requests()).toHaveLength(1)
      await rm(join(disk!, 'filler'))
      expect(await readFile(join(await download('org/tiny', options), name))).toEqual(hub.files.get(name))
      expect(requests().at(-1)).toMatch(/bytes=\d+-$/)
    } finally {
      await hub.close()
    }
  })
})
