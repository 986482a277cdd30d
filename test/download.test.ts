import { spawn } from 'node:child_process'
import { lstat, mkdtemp, readdir, readFile, readlink, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { download, LoopLM } from '../src/index.js'
import { commit, type Hub, startHub } from './hub.js'
import { writeOuroFolder } from './ouro-folder.js'
import { refusal } from './refusal.js'

let root: string
let hub: Hub
let cacheDir: string
let count = 0
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-download-'))
  hub = await startHub()
  const folder = await writeOuroFolder(join(root, 'source'))
  for (const name of await readdir(folder)) hub.files.set(name, await readFile(join(folder, name)))
  hub.files.set('modeling_ouro.py', Buffer.from('raise SystemExit'))
  hub.files.set('onnx/config.json', Buffer.from('{}'))
})
afterAll(async () => {
  await hub.close()
  await rm(root, { recursive: true })
})
beforeEach(() => {
  cacheDir = join(root, `cache-${count++}`)
  hub.requests.length = 0
  hub.breaks = () => undefined
  hub.damaged.clear()
})

const repository = () => join(cacheDir, 'models--org--tiny')
const sent = () => hub.requests.filter((request) => request.startsWith('GET /cdn'))
const checkpointFiles = () => [...hub.files.keys()].filter((name) => !name.includes('/') && !name.endsWith('.py')).sort()

describe('a download', () => {
  it('lies in the layout of the cache of Hugging Face, and loads', async () => {
    const seen: [string, number, number][] = []
    const folder = await download('org/tiny', { cacheDir, hubUrl: hub.url, onProgress: (...progress) => seen.push(progress) })
    expect(folder).toBe(join(repository(), 'snapshots', commit))
    expect(await readFile(join(repository(), 'refs', 'main'), 'utf8')).toBe(commit)
    expect((await readdir(folder)).sort()).toEqual(checkpointFiles())
    expect((await readdir(repository())).sort()).toEqual(['blobs', 'refs', 'snapshots'])
    for (const name of checkpointFiles()) {
      expect((await lstat(join(folder, name))).isSymbolicLink()).toBe(true)
      expect(await readlink(join(folder, name))).toMatch(/^\.\.\/\.\.\/blobs\/([\da-f]{40}|[\da-f]{64})$/)
      expect(await readFile(join(folder, name))).toEqual(hub.files.get(name))
    }
    expect((await readdir(join(repository(), 'blobs'))).some((name) => name.includes('incomplete'))).toBe(false)
    expect(seen.at(-1)!.slice(1)).toEqual([seen.at(-1)![2], seen.at(-1)![2]])
    using model = await LoopLM.fromPretrained(folder)
    expect(model.endTokens).toEqual([0, 2])
  })

  it('happens only when it is asked for', async () => {
    const error = await refusal(() => LoopLM.fromPretrained('org/tiny', { cacheDir }))
    expect(error.code).toBe('NOT_FOUND')
    expect(error.message).toMatch(/no folder org\/tiny; download: true fetches a model of that name/)
    expect(hub.requests).toEqual([])
    process.env.HF_ENDPOINT = hub.url
    try {
      using model = await LoopLM.fromPretrained('org/tiny', { download: true, revision: 'v1', cacheDir })
      expect(model.tokenizer!.hasChatTemplate).toBe(true)
      expect(await readFile(join(repository(), 'refs', 'v1'), 'utf8')).toBe(commit)
    } finally {
      delete process.env.HF_ENDPOINT
    }
  })

  it('fetches nothing twice, and finds what it has when the hub does not answer', async () => {
    const folder = await download('org/tiny', { cacheDir, hubUrl: hub.url })
    hub.requests.length = 0
    expect(await download('org/tiny', { cacheDir, hubUrl: hub.url })).toBe(folder)
    expect(sent()).toEqual([])
    await rm(join(folder, 'config.json'))
    await download('org/tiny', { cacheDir, hubUrl: hub.url }) // the blob is still there
    expect(sent()).toEqual([])
    const silent = { cacheDir, hubUrl: 'http://127.0.0.1:9' }
    expect(await download('org/tiny', silent)).toBe(folder)
    expect(await download('org/tiny', { ...silent, revision: commit })).toBe(folder)
    const error = await refusal(() => download('org/tiny', { ...silent, revision: 'other' }))
    expect(error.message).toMatch(/http:\/\/127\.0\.0\.1:9 does not answer: fetch failed/)
  })

  it('continues a file where its connection broke', async () => {
    const size = hub.files.get('model.safetensors')!.length
    let breaks = 0
    hub.breaks = (path) => (path === 'model.safetensors' && breaks++ < 3 ? Math.floor(size / 4) : undefined)
    const folder = await download('org/tiny', { cacheDir, hubUrl: hub.url })
    const ranges = sent().filter((request) => request.includes('model.safetensors'))
    expect(ranges).toHaveLength(4)
    expect(ranges[0]).not.toMatch(/bytes=/)
    for (const range of ranges.slice(1)) expect(Number(/bytes=(\d+)-/.exec(range)![1])).toBeGreaterThan(0)
    expect(await readFile(join(folder, 'model.safetensors'))).toEqual(hub.files.get('model.safetensors'))
  })

  it('that was aborted is continued by the next one, and shows no half file meanwhile', async () => {
    hub.breaks = (path) => (path === 'model.safetensors' ? 1000 : undefined)
    const controller = new AbortController()
    const onProgress = (file: string) => file === 'model.safetensors' && controller.abort()
    const error = await refusal(() => download('org/tiny', { cacheDir, hubUrl: hub.url, signal: controller.signal, onProgress }))
    expect(error.code).toBe('ABORTED')
    const snapshot = join(repository(), 'snapshots', commit)
    expect(await readdir(snapshot)).not.toContain('model.safetensors')
    expect(await stat(join(repository(), 'refs')).catch(() => undefined)).toBeUndefined()
    const silent = await refusal(() => download('org/tiny', { cacheDir, hubUrl: 'http://127.0.0.1:9' }))
    expect(silent.code).toBe('NOT_FOUND') // what is incomplete is not offered
    hub.breaks = () => undefined
    hub.requests.length = 0
    await download('org/tiny', { cacheDir, hubUrl: hub.url })
    expect(sent().find((request) => request.includes('model.safetensors'))).toMatch(/bytes=[1-9]/)
    expect(await readFile(join(snapshot, 'model.safetensors'))).toEqual(hub.files.get('model.safetensors'))
  })

  it.each(['model.safetensors', 'config.json'])('of a damaged %s is refused and leaves nothing behind', async (name) => {
    const bytes = Buffer.from(hub.files.get(name)!)
    bytes[20]! ^= 1
    hub.damaged.set(name, bytes)
    const error = await refusal(() => download('org/tiny', { cacheDir, hubUrl: hub.url }))
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toMatch(new RegExp(`${name} has the checksum [\\da-f]+ instead of [\\da-f]+`))
    expect(await readdir(join(repository(), 'snapshots', commit)).catch(() => [])).not.toContain(name)
    expect((await readdir(join(repository(), 'blobs'))).some((file) => file.includes('incomplete'))).toBe(false)
  })

  it.each([
    ['tiny', {}, 'INVALID_ARGUMENT', /"tiny" is not the name of a model/],
    ['../..', {}, 'INVALID_ARGUMENT', /not the name of a model/],
    ['org/tiny', { revision: '../main' }, 'INVALID_ARGUMENT', /revision "\.\.\/main"/],
    ['org/tiny', { revision: 'nope' }, 'NOT_FOUND', /has no org\/tiny at revision nope/],
    ['org/none', {}, 'NOT_FOUND', /has no org\/none at revision main/],
    ['org/secret', {}, 'NOT_FOUND', /private or gated: set HF_TOKEN/],
  ] as const)('of %j %j is refused', async (name, options, code, message) => {
    const error = await refusal(() => download(name, { cacheDir, hubUrl: hub.url, ...options }))
    expect(error.code).toBe(code)
    expect(error.message).toMatch(message)
  })

  it('is made by looplm download, which says where it is', async () => {
    const program = join(import.meta.dirname, '..', 'dist', 'src', 'cli', 'main.js')
    const child = spawn(process.execPath, [program, 'download', 'org/tiny', '--cache-dir', cacheDir], {
      env: { ...process.env, HF_ENDPOINT: hub.url },
    })
    let [stdout, stderr] = ['', '']
    child.stdout.on('data', (text) => (stdout += text))
    child.stderr.on('data', (text) => (stderr += text))
    const code = await new Promise((resolve) => child.on('close', resolve))
    expect([code, stdout]).toEqual([0, `${join(repository(), 'snapshots', commit)}\n`])
    expect(stderr).toContain('model.safetensors')
  })
})
