// `looplm export` and the upload to a hub, which is a server of this machine.
import { createHash } from 'node:crypto'
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Command } from 'commander'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { parse } from 'yaml'
import { addExport } from '../../src/cli/export.js'
import { uploadModel } from '../../src/data/upload.js'
import { LoopLM, LoopRPTTrainer, PretrainTrainer, RLTTTrainer } from '../../src/index.js'
import { refusal } from '../refusal.js'
import { parametersOf, tinyModel, tinyTask, variedReward } from '../tiny.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-export-'))
})
afterAll(() => rm(root, { recursive: true }))

async function exportRun(source: string, folder: string): Promise<string> {
  const program = new Command().exitOverride()
  addExport(program)
  const write = vi.spyOn(process.stdout, 'write').mockReturnValue(true)
  try {
    await program.parseAsync(['node', 'looplm', 'export', source, folder])
    return String(write.mock.calls[0]?.[0])
  } finally {
    write.mockRestore()
  }
}

const quiet = { task: tinyTask, onWarning() {}, loggers: ['jsonl'] as const }

describe('looplm export', () => {
  it('copies the best checkpoint of a run without its optimizer, and writes a model card', async () => {
    const runDir = join(root, 'run')
    using model = await tinyModel('cpu')
    const best = { metricForBestModel: 'eval/loop_1/reward', evalEvery: 1, evalProblems: 16, saveEvery: 1 }
    const policy = { reward: variedReward, groupSize: 4, promptsPerStep: 2, steps: 3, learningRate: 1e-5, ...best }
    using trainer = new RLTTTrainer(model, { ...quiet, ...policy, runDir })
    for await (const _ of trainer.run({ config: { model: 'org/base', task: 'addition' } }));
    const { step, path } = trainer.best!
    expect(step).toBe(0) // such small steps change no greedy answer, so that the newest is not the best
    const folder = join(root, 'exported')
    expect(await exportRun(runDir, folder)).toContain('add a license to')
    const names = await readdir(folder)
    expect(names.sort()).toEqual([
      'README.md',
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ])
    using loaded = await LoopLM.fromPretrained(folder)
    using original = await LoopLM.fromPretrained(path!)
    expect(await parametersOf(loaded)).toEqual(await parametersOf(original))
    expect(await parametersOf(loaded)).not.toEqual(await parametersOf(model))
    const card = await readFile(join(folder, 'README.md'), 'utf8')
    const head = parse(/^---\n([\s\S]*?)\n---/.exec(card)![1]!)
    expect(head).toEqual({ library_name: 'looplm', base_model: 'org/base', tags: ['looplm', 'looped-transformer', 'rltt'] })
    expect(card).toMatch(/No license was set/)
    expect(card).toMatch(new RegExp(`\\| steps \\| ${step} \\|`))
    expect(card).toMatch(/\| `eval\/loop_3\/reward` \| [\d.]+ \| [\d.]+ to [\d.]+ \|/)
    expect(card).toMatch(/\| `groupSize` \| `4` \|/)
    expect((await refusal(() => exportRun(runDir, folder))).message).toMatch(/exported is not empty; choose a new folder/)
    expect((await refusal(() => exportRun(root, join(root, 'x')))).message).toMatch(
      /is neither a run with a checkpoint nor a checkpoint folder/,
    )

    const other = { runDir: join(root, 'continued'), resume: join(runDir, 'checkpoints', 'step-3') }
    using later = new RLTTTrainer(model, { ...quiet, ...policy, ...other, steps: 4 })
    for await (const _ of later.run());
    expect(await exportRun(other.runDir, join(root, 'of-continued'))).toContain(`: ${path}, with`)
  })

  it('names a base model only if the run says so', async () => {
    const bases = [
      [{ model: 'org/base' }, 'org/base'],
      [{ model: { hidden_size: 16 } }, 'none: trained from its first parameters'],
      [undefined, 'unknown: the run was started in code'],
    ] as const
    for (const [i, [config, base]] of bases.entries()) {
      const runDir = join(root, `based-${i}`)
      using model = await tinyModel('cpu')
      using trainer = new PretrainTrainer(model, { ...quiet, steps: 1, batchSize: 2, learningRate: 1e-3, runDir })
      for await (const _ of trainer.run({ config }));
      await exportRun(runDir, join(root, `card-${i}`))
      expect(await readFile(join(root, `card-${i}`, 'README.md'), 'utf8')).toContain(`| base model | ${base} |`)
    }
    await cp(join(root, 'based-0', 'checkpoints', 'step-1'), join(root, 'alone', 'checkpoints', 'step-1'), { recursive: true })
    await exportRun(join(root, 'alone'), join(root, 'card-alone'))
    expect(await readFile(join(root, 'card-alone', 'README.md'), 'utf8')).toContain('| base model | unknown |')
  })

  it.each([
    ['{', /^looplm export: .*trainer_state\.json is not JSON/],
    ['[]', /trainer_state\.json: options: Invalid input|trainer_state\.json: .*expected object/],
    ['{ "format": 1, "trainer": "rltt" }', /trainer_state\.json: step: /],
  ])('rejects a damaged trainer_state.json by name: %s', async (content, message) => {
    const runDir = await mkdtemp(join(root, 'damaged-'))
    const checkpoint = join(runDir, 'checkpoints', 'step-1')
    await mkdir(checkpoint, { recursive: true })
    await writeFile(join(checkpoint, 'trainer_state.json'), content)
    for (const source of [runDir, checkpoint]) {
      const error = await refusal(() => exportRun(source, join(root, 'never')))
      expect([error.code, error.message]).toEqual(['INVALID_FILE', expect.stringMatching(message)])
    }
  })

  it('omits the teacher and the optimizer of a checkpoint', async () => {
    const runDir = join(root, 'looprpt')
    using model = await tinyModel('cpu')
    using trainer = new LoopRPTTrainer(model, { ...quiet, steps: 1, batchSize: 2, rollouts: 2, learningRate: 1e-3, runDir })
    for await (const _ of trainer.run());
    const checkpoint = join(runDir, 'checkpoints', 'step-1')
    expect(await readdir(checkpoint)).toEqual(expect.arrayContaining(['teacher.safetensors', 'optimizer.safetensors']))
    await exportRun(checkpoint, join(root, 'plain'))
    expect((await readdir(join(root, 'plain'))).filter((name) => /safetensors$/.test(name))).toEqual(['model.safetensors'])
  })
})

describe('an upload', () => {
  /** The part of the hub's protocol that an upload uses; large files are those of safetensors. */
  async function startHub() {
    const files = new Map<string, Buffer>()
    const requests: string[] = []
    const blobs = new Map<string, Buffer>()
    let exists = false
    const server = createServer(async (request, response) => {
      const chunks: Buffer[] = []
      for await (const chunk of request) chunks.push(chunk as Buffer)
      const body = Buffer.concat(chunks)
      const path = request.url!
      requests.push(`${request.method} ${path}`)
      const json = (value: unknown, status = 200) => {
        response.writeHead(status, { 'content-type': 'application/json' })
        response.end(JSON.stringify(value))
      }
      if (path.startsWith('/blob/')) {
        blobs.set(path.slice(6), body)
        return response.end()
      }
      if (request.headers.authorization !== 'Bearer hf_right') return json({ error: 'no' }, 401)
      if (path === '/api/repos/create') {
        exists = true
        return json({ url: `${url}/org/tiny`, id: '1' })
      }
      if (path === '/api/models/org/tiny/preupload/main') {
        const { files } = JSON.parse(body.toString())
        const mode = (name: string) => (name.endsWith('.safetensors') ? 'lfs' : 'regular')
        return json({ files: files.map(({ path }: { path: string }) => ({ path, uploadMode: mode(path) })) })
      }
      if (path === '/org/tiny.git/info/lfs/objects/batch') {
        const { objects } = JSON.parse(body.toString())
        const upload = (oid: string) => ({ upload: { href: `${url}/blob/${oid}` } })
        return json({ transfer: 'basic', objects: objects.map((one: { oid: string }) => ({ ...one, actions: upload(one.oid) })) })
      }
      if (path === '/api/models/org/tiny/commit/main') {
        for (const line of body.toString().trim().split('\n')) {
          const { key, value } = JSON.parse(line)
          if (key === 'file') files.set(value.path, Buffer.from(value.content, value.encoding))
          if (key === 'lfsFile') files.set(value.path, blobs.get(value.oid)!)
        }
        return json({ commitOid: 'c'.repeat(40), commitUrl: url, hookOutput: '' })
      }
      return exists ? json({ id: 'org/tiny' }) : json({ error: 'not here' }, 404)
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
    return { url, files, requests, close: () => server.close().closeAllConnections() }
  }

  it('creates the repository once and uploads every file unchanged', async () => {
    const hub = await startHub()
    try {
      using model = await tinyModel('cpu')
      model.tokenizer = tinyTask.tokenizer
      const folder = join(root, 'saved')
      await model.save(folder)
      await mkdir(join(folder, 'more'))
      await writeFile(join(folder, 'a b#ü%.txt'), 'text')
      const options = { hubUrl: hub.url, token: 'hf_right' }
      expect(await uploadModel(folder, 'org/tiny', options)).toBe(`${hub.url}/org/tiny`)
      await uploadModel(folder, 'org/tiny', options)
      expect(hub.requests.filter((request) => request.includes('/api/repos/create'))).toHaveLength(1)
      const hash = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')
      const names = (await readdir(folder)).filter((name) => name !== 'more')
      expect([...hub.files.keys()].sort()).toEqual(names.sort())
      for (const name of names)
        expect([name, hash(hub.files.get(name)!)]).toEqual([name, hash(await readFile(join(folder, name)))])
      const wrong = await refusal(() => uploadModel(folder, 'org/tiny', { ...options, token: 'hf_wrong' }))
      expect(wrong.message).toMatch(/refuses the token for org\/tiny/)
    } finally {
      hub.close()
    }
  })

  it('is rejected before sending without a token, a repository name or an exported model', async () => {
    const hubUrl = 'http://127.0.0.1:9'
    const refused = async (folder: string, name: string, token = 'hf_right') =>
      (await refusal(() => uploadModel(folder, name, { hubUrl, token }))).message
    await mkdir(join(root, 'empty'))
    await mkdir(join(root, 'checkpoint'))
    await writeFile(join(root, 'checkpoint', 'trainer_state.json'), '{}')
    expect(await refused(join(root, 'empty'), 'org/tiny', '')).toMatch(/needs a token that may write: set HF_TOKEN/)
    expect(await refused(join(root, 'empty'), 'org/tiny', 'abc')).toMatch(/set HF_TOKEN to one .*, which begins with hf_/)
    expect(await refused(join(root, 'empty'), 'tiny')).toMatch(/"tiny" is no name of a repository; write it as org\/name/)
    expect(await refused(join(root, 'checkpoint'), 'org/tiny')).toMatch(/is a checkpoint of a run; .* first: looplm export/)
    expect(await refused(join(root, 'empty'), 'org/tiny')).toMatch(/is no model: it has no config\.json/)
    expect(await refused(join(root, 'gone'), 'org/tiny')).toMatch(/no folder|cannot read/)
  })
})
