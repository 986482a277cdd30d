import { createHash } from 'node:crypto'
import { closeSync, existsSync, openSync, readdirSync, statSync } from 'node:fs'
import { lstat, mkdir, mkdtemp, readdir, readFile, readlink, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { hubAddress, hubCache, hubToken } from '../../src/data/hub.js'
import { download, LoopLM } from '../../src/index.js'
import { native } from '../../src/native.js'
import { runProgram } from '../cli/program.js'
import { commit, type Hub, startHub } from '../hub.js'
import { writeOuroFolder } from '../ouro-folder.js'
import { refusal } from '../refusal.js'

let root: string
let hub: Hub
let cacheDir: string
let count = 0
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-download-'))
  hub = await startHub()
  hub.received = (bytes) => {
    const blobs = join(repository(), 'blobs')
    const incomplete = readdirSync(blobs).filter((name) => name.endsWith('.incomplete'))
    return incomplete.some((name) => statSync(join(blobs, name)).size === bytes)
  }
  const folder = await writeOuroFolder(join(root, 'source'))
  for (const name of (await readdir(folder)).sort()) hub.files.set(name, await readFile(join(folder, name)))
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
  hub.held = () => undefined
  hub.damaged.clear()
})

const repository = () => join(cacheDir, 'models--org--tiny')
const sha256 = (name: string) => createHash('sha256').update(hub.files.get(name)!).digest('hex')
const sent = (name = '') => hub.requests.filter((request) => request.startsWith(`GET /cdn/${name}`))
/** How many downloads know by now what they have to fetch: the hub lists two files a page. */
const listed = () => hub.requests.filter((request) => request.includes('/tree/')).length / Math.ceil(hub.files.size / 2)
const checkpointFiles = () => [...hub.files.keys()].filter((name) => !name.includes('/') && !name.endsWith('.py')).sort()

describe('a download', () => {
  it('has the layout of the Hugging Face cache, and loads', async () => {
    const seen: [string, number, number][] = []
    const folder = await download('org/tiny', { cacheDir, hubUrl: hub.url, onProgress: (...progress) => seen.push(progress) })
    expect(folder).toBe(join(repository(), 'snapshots', commit))
    expect(await readFile(join(repository(), 'refs', 'main'), 'utf8')).toBe(commit)
    expect((await readdir(folder)).sort()).toEqual(checkpointFiles())
    expect((await readdir(repository())).sort()).toEqual(['.looplm', 'blobs', 'refs', 'snapshots'])
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

  it('happens only with download: true', async () => {
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

  it('is later found by name without a request', async () => {
    const folder = await download('org/tiny', { cacheDir, hubUrl: hub.url })
    hub.requests.length = 0
    using model = await LoopLM.fromPretrained('org/tiny', { cacheDir })
    expect(model.tokenizer!.hasChatTemplate).toBe(true)
    using pinned = await LoopLM.fromPretrained('org/tiny', { cacheDir, revision: commit })
    expect(pinned.config).toEqual(model.config)
    process.env.HF_HUB_CACHE = cacheDir
    try {
      using named = await LoopLM.fromPretrained('org/tiny')
      expect(named.config).toEqual(model.config)
    } finally {
      delete process.env.HF_HUB_CACHE
    }
    const other = await refusal(() => LoopLM.fromPretrained('org/tiny', { cacheDir, revision: 'other' }))
    expect([other.code, other.message]).toEqual(['NOT_FOUND', expect.stringMatching(/no folder org\/tiny; download: true/)])
    const wrong = await refusal(() => LoopLM.fromPretrained('org/tiny', { cacheDir, revision: '../x' }))
    expect(wrong.code).toBe('INVALID_ARGUMENT')
    await rm(join(folder, 'model.safetensors'))
    const half = await refusal(() => LoopLM.fromPretrained('org/tiny', { cacheDir }))
    expect(half.code).toBe('NOT_FOUND')
    expect(half.message).toMatch(
      /no folder org\/tiny; .* in the cache is incomplete: it has no model\.safetensors; download: true/,
    )
    expect(hub.requests).toEqual([])
  })

  it('fetches nothing twice, and uses the cache when the hub does not answer', async () => {
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
    const arrived = [1, 2, 3].map((parts) => parts * Math.floor(size / 4))
    expect(sent('model.safetensors')).toEqual(
      ['', ...arrived.map((from) => ` bytes=${from}-`)].map((range) => `GET /cdn/model.safetensors${range}`),
    )
    expect(await readFile(join(folder, 'model.safetensors'))).toEqual(hub.files.get('model.safetensors'))
  })

  it('continues after an abort, and shows no partial file meanwhile', async () => {
    hub.breaks = (path) => (path === 'model.safetensors' ? 1000 : undefined)
    const controller = new AbortController()
    const onProgress = (file: string) => file === 'model.safetensors' && controller.abort()
    const error = await refusal(() => download('org/tiny', { cacheDir, hubUrl: hub.url, signal: controller.signal, onProgress }))
    expect(error.code).toBe('ABORTED')
    const snapshot = join(repository(), 'snapshots', commit)
    expect(await readdir(snapshot)).not.toContain('model.safetensors')
    expect(await stat(join(repository(), 'refs')).catch(() => undefined)).toBeUndefined()
    hub.breaks = () => undefined
    hub.requests.length = 0
    await download('org/tiny', { cacheDir, hubUrl: hub.url })
    expect(sent('model.safetensors')).toEqual(['GET /cdn/model.safetensors bytes=1000-'])
    expect(await readFile(join(snapshot, 'model.safetensors'))).toEqual(hub.files.get('model.safetensors'))
  })

  it.each(['model.safetensors', 'config.json'])('of a damaged %s is rejected and leaves nothing behind', async (name) => {
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
    ['org/tiny', { revison: 'v1' }, 'INVALID_ARGUMENT', /revison: unknown option; did you mean revision\?/],
    ['../..', {}, 'INVALID_ARGUMENT', /not the name of a model/],
    ['org/tiny', { revision: '../main' }, 'INVALID_ARGUMENT', /revision "\.\.\/main"/],
    ['org/tiny', { revision: 'nope' }, 'NOT_FOUND', /has no org\/tiny at revision nope/],
    ['org/none', {}, 'NOT_FOUND', /has no org\/none at revision main/],
    ['org/secret', {}, 'NOT_FOUND', /private or gated: set HF_TOKEN/],
  ] as const)('of %j %j is rejected', async (name, options, code, message) => {
    const error = await refusal(() => download(name, { cacheDir, hubUrl: hub.url, ...options }))
    expect(error.code).toBe(code)
    expect(error.message).toMatch(message)
  })

  it('is done by looplm download, which prints the folder', async () => {
    const { code, stdout, stderr } = await runDownload()
    expect([code, stdout]).toEqual([0, `${join(repository(), 'snapshots', commit)}\n`])
    expect(stderr).toContain('model.safetensors')
  })

  it('fails with the error that onProgress throws', async () => {
    const onProgress = () => {
      throw new RangeError('mine')
    }
    await expect(download('org/tiny', { cacheDir, hubUrl: hub.url, onProgress })).rejects.toThrow(new RangeError('mine'))
    expect(sent()).toHaveLength(1)
  })

  it('fails when the hub has fewer bytes of a file than it lists', async () => {
    hub.damaged.set('model.safetensors', hub.files.get('model.safetensors')!.subarray(0, 1000))
    const error = await refusal(() => download('org/tiny', { cacheDir, hubUrl: hub.url }))
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toMatch(/model\.safetensors has at most 1000 bytes instead of \d+; try again later/)
  })
})

describe('the variables of the environment', () => {
  const cacheNames = ['HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'HF_HOME', 'XDG_CACHE_HOME']
  beforeEach(() => {
    for (const name of [...cacheNames, 'HF_TOKEN', 'HF_ENDPOINT']) vi.stubEnv(name, '')
  })
  afterEach(() => void vi.unstubAllEnvs())

  it.each([
    ['', undefined],
    ['abc', 'Bearer abc'],
    [' hf_abc\n', 'Bearer hf_abc'],
  ])('HF_TOKEN %j is sent with every request as %j', async (token, sentAs) => {
    hub.tokens.clear()
    vi.stubEnv('HF_TOKEN', token)
    vi.stubEnv('HF_ENDPOINT', hub.url)
    await download('org/tiny', { cacheDir })
    expect(sent()).not.toEqual([])
    expect(hub.tokens).toEqual(new Set([sentAs]))
  })

  it('name the Hub and the token, unless they are empty or options do', () => {
    expect([hubAddress(undefined, ''), hubToken(undefined, '')]).toEqual(['https://huggingface.co', undefined])
    vi.stubEnv('HF_TOKEN', 'hf_a')
    vi.stubEnv('HF_ENDPOINT', 'http://hub/')
    expect([hubAddress(undefined, ''), hubToken(undefined, '')]).toEqual(['http://hub', 'hf_a'])
    expect([hubAddress('http://own', ''), hubToken('', '')]).toEqual(['http://own', undefined])
  })

  it.each([
    [{}, '~/.cache/huggingface/hub'],
    [{ XDG_CACHE_HOME: '/x' }, '/x/huggingface/hub'],
    [{ HF_HOME: '~/hf' }, '~/hf/hub'],
    [{ HF_HOME: '~' }, '~/hub'],
    [{ HF_HOME: `$LOOPLM_A/\${LOOPLM_A}b/$LOOPLM_NONE`, LOOPLM_A: '~' }, '~/~b/$LOOPLM_NONE/hub'],
    [{ HF_HOME: '/x', HUGGINGFACE_HUB_CACHE: '~/c' }, '~/c'],
    [{ HUGGINGFACE_HUB_CACHE: '/x', HF_HUB_CACHE: '/a/~/c' }, '/a/~/c'],
  ])('%j: the cache is %s', (variables, folder) => {
    for (const [name, value] of Object.entries(variables)) vi.stubEnv(name, value)
    expect(hubCache()).toBe(folder.replace(/^~/, homedir()))
  })

  it.each([
    ['HF_ENDPOINT', 'hub.example', /HF_ENDPOINT: must be an address such as .*, got "hub\.example"/],
    ['HF_ENDPOINT', 'http://', /HF_ENDPOINT: must be an address/],
    ['HF_TOKEN', 'hf_é', /HF_TOKEN: has characters that no token has/],
    ['HF_TOKEN', 'hf_a b', /HF_TOKEN: has characters that no token has/],
  ])('%s %j is rejected, even with the model in the cache', async (name, value, message) => {
    await download('org/tiny', { cacheDir, hubUrl: hub.url })
    vi.stubEnv(name, value)
    const error = await refusal(() => download('org/tiny', { cacheDir }))
    expect([error.code, error.message]).toEqual(['INVALID_ARGUMENT', expect.stringMatching(message)])
  })
})

/** Runs `looplm download` in a separate process. */
async function runDownload(options: Partial<Parameters<typeof runProgram>[1]> = {}) {
  process.env.HF_ENDPOINT = hub.url
  const outcome = runProgram(['download', 'org/tiny', '--cache-dir', cacheDir], { cwd: root, ...options })
  delete process.env.HF_ENDPOINT
  return outcome
}

describe('concurrent downloads of the same files', () => {
  const everyFileOnce = () => checkpointFiles().map((name) => `GET /cdn/${name}`)

  it.each([2, 5])('%i calls in one process fetch each file once', async (calls) => {
    hub.held = () => expect.poll(listed).toBe(calls)
    const seen = Array.from({ length: calls }, () => new Map<string, boolean>())
    const folders = await Promise.all(
      seen.map((whole) => {
        const onProgress = (file: string, received: number, size: number) => whole.set(file, received === size)
        return download('org/tiny', { cacheDir, hubUrl: hub.url, onProgress })
      }),
    )
    expect(new Set(folders)).toEqual(new Set([join(repository(), 'snapshots', commit)]))
    expect(sent().sort()).toEqual(everyFileOnce())
    for (const name of checkpointFiles()) expect(await readFile(join(folders[0]!, name))).toEqual(hub.files.get(name))
    expect(await readdir(join(repository(), 'refs'))).toEqual(['main'])
    for (const whole of seen) expect(new Set(whole.values())).toEqual(new Set([true]))
  })

  it('two processes fetch each file once', async () => {
    hub.held = () => expect.poll(listed).toBe(2)
    const outcomes = await Promise.all([runDownload(), runDownload()])
    for (const { code, stdout, stderr } of outcomes)
      expect([code, stdout], stderr).toEqual([0, `${join(repository(), 'snapshots', commit)}\n`])
    expect(sent().sort()).toEqual(everyFileOnce())
  })

  /** Until a download of this process has found a lock taken, three times. */
  function waiting(): () => Promise<void> {
    const lock = vi.spyOn(native(), 'lockFile')
    const refused = () => lock.mock.results.filter(({ value }) => value === false).length
    return async () => {
      await expect.poll(refused).toBeGreaterThan(2)
      lock.mockRestore()
    }
  }

  it('a waiting one continues the partial file of a killed one', async () => {
    const name = 'model.safetensors'
    let release = () => {}
    const gate = new Promise<void>((resolve) => (release = resolve))
    hub.breaks = (path, from) => (path === name && from === 0 ? 1000 : undefined)
    hub.held = (path, from) => (path === name && from > 0 ? gate : undefined)
    let kill = () => {}
    const killed = runDownload({ started: (child) => (kill = () => child.kill('SIGKILL')) })
    await expect.poll(() => sent(name)).toHaveLength(2) // its connection broke, and it asks for the rest
    const waits = waiting()
    const other = download('org/tiny', { cacheDir, hubUrl: hub.url })
    await waits()
    expect(sent(name)).toHaveLength(2)
    kill()
    expect((await killed).signal).toBe('SIGKILL')
    release()
    expect(await readFile(join(await other, name))).toEqual(hub.files.get(name))
    expect(sent(name).at(-1)).toBe(`GET /cdn/${name} bytes=1000-`)
    expect(sent(name)).toHaveLength(3)
  })

  it('a waiting one can be aborted while the other completes', async () => {
    let release = () => {}
    const gate = new Promise<void>((resolve) => (release = resolve))
    hub.held = () => gate
    const first = download('org/tiny', { cacheDir, hubUrl: hub.url })
    await expect.poll(() => sent()).toHaveLength(1)
    const waits = waiting()
    const controller = new AbortController()
    const second = refusal(() => download('org/tiny', { cacheDir, hubUrl: hub.url, signal: controller.signal }))
    await waits()
    controller.abort()
    expect((await second).code).toBe('ABORTED')
    expect(sent()).toHaveLength(1)
    release()
    await first
    expect(sent().sort()).toEqual(everyFileOnce())
  })

  it('wait for a blob lock that another tool holds', async () => {
    const name = 'model.safetensors'
    const locks = join(cacheDir, '.locks', 'models--org--tiny')
    await mkdir(locks, { recursive: true })
    const lock = openSync(join(locks, `${sha256(name)}.lock`), 'w')
    expect(native().lockFile(lock)).toBe(true)
    const waits = waiting()
    const other = download('org/tiny', { cacheDir, hubUrl: hub.url })
    await waits()
    expect(sent(name)).toEqual([])
    closeSync(lock)
    expect(await readFile(join(await other, name))).toEqual(hub.files.get(name))
  })

  it('warn when the file system does not support locks', async () => {
    const lock = vi.spyOn(native(), 'lockFile').mockImplementation(() => {
      throw new Error('no locks available')
    })
    const warning = vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
    try {
      await download('org/tiny', { cacheDir, hubUrl: hub.url })
      expect(warning.mock.calls.map(([text]) => text)).toEqual([
        expect.stringMatching(
          /models--org--tiny cannot be locked \(no locks available\): make sure that no other process downloads there/,
        ),
      ])
    } finally {
      lock.mockRestore()
      warning.mockRestore()
    }
  })
})

describe('without a network', () => {
  const offline = (revision: string) => download('org/tiny', { cacheDir, hubUrl: 'http://127.0.0.1:9', revision })

  it.each(['model.safetensors', 'tokenizer.json'])(
    'a download that was aborted at %s is not found until it is complete',
    async (name) => {
      const controller = new AbortController()
      const onProgress = (file: string) => file === name && controller.abort()
      hub.breaks = (path) => (path === name ? 1000 : undefined)
      const options = { cacheDir, hubUrl: hub.url, onProgress, signal: controller.signal }
      expect((await refusal(() => download('org/tiny', options))).code).toBe('ABORTED')
      await mkdir(join(repository(), 'refs'))
      await writeFile(join(repository(), 'refs', 'main'), commit) // other tools write it before the files
      for (const revision of [commit, 'main']) {
        const error = await refusal(() => offline(revision))
        expect(error.code).toBe('NOT_FOUND')
        expect(error.message).toMatch(/127\.0\.0\.1:9 does not answer: .*; .* in the cache is incomplete: it has no /)
        expect(error.message).toContain(`it has no ${name}`)
      }
      hub.breaks = () => undefined
      const folder = await download('org/tiny', { cacheDir, hubUrl: hub.url, revision: commit })
      for (const revision of [commit, 'main']) expect(await offline(revision)).toBe(folder)
      await rm(join(repository(), 'blobs'), { recursive: true })
      expect((await refusal(() => offline('main'))).message).toMatch(/it has no /)
    },
  )

  const index = JSON.stringify({ weight_map: { a: 'model-1.safetensors', b: 'model-2.safetensors', c: 'model-1.safetensors' } })
  it.each([
    [['config.json', 'model.safetensors'], 'nothing'],
    [['config.json', 'model.safetensors.index.json', 'model-1.safetensors', 'model-2.safetensors'], 'nothing'],
    [['config.json', 'model.safetensors.index.json', 'model-1.safetensors'], 'model-2.safetensors'],
    [['config.json', 'tokenizer.json'], 'model.safetensors'],
    [['model.safetensors'], 'config.json'],
    [['config.json', 'model.safetensors -> nothing'], 'model.safetensors'],
  ])('with only %j in the cache, the missing file is %s', async (names, missing) => {
    const snapshot = join(repository(), 'snapshots', commit)
    await mkdir(snapshot, { recursive: true })
    await mkdir(join(repository(), 'refs'))
    await writeFile(join(repository(), 'refs', 'main'), commit)
    for (const name of names) {
      const [path, target] = name.split(' -> ')
      if (target !== undefined) await symlink(target, join(snapshot, path!))
      else await writeFile(join(snapshot, name), name.endsWith('index.json') ? index : '{}')
    }
    for (const revision of [commit, 'main']) {
      if (missing === 'nothing') expect(await offline(revision)).toBe(snapshot)
      else expect((await refusal(() => offline(revision))).message).toContain(`is incomplete: it has no ${missing}`)
    }
  })
})

describe('a download to a disk that cannot be written', () => {
  const incomplete = () => join(repository(), 'blobs', `${sha256('model.safetensors')}.incomplete`)

  it.skipIf(!existsSync('/dev/full'))('fails at once with the cause, without a retry', async () => {
    await mkdir(join(repository(), 'blobs'), { recursive: true })
    await symlink('/dev/full', incomplete())
    const error = await refusal(() => download('org/tiny', { cacheDir, hubUrl: hub.url }))
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toBe(
      `download: cannot write model.safetensors to ${incomplete()}: the disk is full; free some space (ENOSPC)`,
    )
    expect(sent('model.safetensors')).toHaveLength(1)
  })

  it('keeps a partial file, which the next download continues', async () => {
    const { code, stderr } = await runDownload({ shell: 'ulimit -f 16; exec' })
    expect(stderr).toMatch(/cannot write model\.safetensors to .*incomplete: the file would be larger .*\(ulimit -f\) \(EFBIG\)/)
    expect(code).toBe(2)
    expect(sent('model.safetensors')).toHaveLength(1)
    const { size } = statSync(incomplete())
    expect(size).toBeGreaterThan(0)
    const folder = await download('org/tiny', { cacheDir, hubUrl: hub.url })
    expect(sent('model.safetensors').at(-1)).toBe(`GET /cdn/model.safetensors bytes=${size}-`)
    expect(await readFile(join(folder, 'model.safetensors'))).toEqual(hub.files.get('model.safetensors'))
  })

  it('fails with the path when a folder cannot be created', async () => {
    await mkdir(repository(), { recursive: true })
    await writeFile(join(repository(), 'blobs'), 'a file')
    const error = await refusal(() => download('org/tiny', { cacheDir, hubUrl: hub.url }))
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toMatch(/download: cannot write .*models--org--tiny\/blobs: /)
  })
})
