// What the file system refuses is a LoopLMError with the path, the cause and what to do, whoever writes.
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { readTrainConfig } from '../../src/cli/train-config.js'
import { download } from '../../src/data/download.js'
import { fileError } from '../../src/errors.js'
import { AdamW, Corpus, LoopLM, loadDataset, PretrainTrainer, Tokenizer } from '../../src/index.js'
import { writeReport } from '../../src/monitor/report.js'
import { startHub } from '../hub.js'
import { refusal } from '../refusal.js'
import { tinyConfig, tinyTask } from '../tiny.js'

const root = await mkdtemp(join(tmpdir(), 'looplm-file-errors-'))
let model: LoopLM
let adapted: LoopLM
beforeAll(async () => {
  model = await LoopLM.create(tinyConfig, { seed: 1 })
  adapted = await LoopLM.create(tinyConfig, { seed: 1 })
  await adapted.addAdapter({ rank: 2 })
  await writeFile(join(root, 'file'), 'mine')
  await symlink('circle', join(root, 'circle'))
  await mkdir(join(root, 'folder', 'inside'), { recursive: true })
  await writeFile(join(root, 'text.txt'), 'some text\n'.repeat(50))
  await mkdir(join(root, 'run'))
  await writeFile(join(root, 'run', 'metrics.jsonl'), '{"step":1,"loss":2}\n')
})
afterAll(async () => {
  model.dispose()
  adapted.dispose()
  await rm(root, { recursive: true })
})

/** Everything that writes a folder or a file, told where. */
const folders: [what: string, write: (path: string) => Promise<unknown>][] = [
  ['LoopLM.save', (path) => model.save(path)],
  ['LoopLM.saveAdapter', (path) => adapted.saveAdapter(path)],
  ['Tokenizer.save', (path) => Tokenizer.bytes().save(path)],
  ['a run', (path) => train({ runDir: path })],
  ['a corpus', (path) => Corpus.open(join(root, 'text.txt'), Tokenizer.bytes(), { contextLength: 8, cache: path })],
  ['a download', (path) => fetchModel(path)],
]
const files: typeof folders = [
  ['AdamW.save', (path) => new AdamW(model).save(path)],
  ['writeReport', (path) => writeReport([join(root, 'run')], path)],
]

async function train(options: object): Promise<void> {
  using trainer = new PretrainTrainer(model, { task: tinyTask, batchSize: 2, steps: 1, onWarning() {}, ...options })
  for await (const _ of trainer.run());
}

async function fetchModel(cacheDir: string): Promise<void> {
  const hub = await startHub()
  try {
    hub.files.set('config.json', Buffer.from('{}'))
    hub.files.set('model.safetensors', Buffer.alloc(10))
    await download('org/tiny', { cacheDir, hubUrl: hub.url })
  } finally {
    await hub.close()
  }
}

/** Paths at which nothing can be written, and how the error says so. */
const places: [what: string, path: string, message: RegExp][] = [
  ['below a file', join(root, 'file', 'new'), /: .*is a file, not a folder; choose another path.*\(ENOTDIR\)/],
  ['far below a file', join(root, 'file', 'a', 'b'), /\(ENOTDIR\)/],
  ['with a name too long', join(root, 'x'.repeat(300)), /name in the path is too long; choose a shorter one \(ENAMETOOLONG\)/],
  ['below a link to itself', join(root, 'circle', 'new'), /symbolic links in the path form a cycle.*\(ELOOP\)/],
]
const folderPlaces: typeof places = [
  ...places,
  ['in the place of a file', join(root, 'file'), /\((EEXIST|ENOTDIR)\)/],
  ['in the place of a link to itself', join(root, 'circle'), /\((ELOOP|EEXIST)\)/],
]
const filePlaces: typeof places = [
  ...places,
  ['in the place of a folder', join(root, 'folder'), /it is a folder.*; choose another path \((EISDIR|ENOTEMPTY)\)/],
]

async function check(write: (path: string) => Promise<unknown>, path: string, message: RegExp): Promise<void> {
  const before = (await readdir(root, { recursive: true })).sort()
  const error = await refusal(() => write(path))
  expect(error.code, error.message).toBe('INVALID_FILE')
  expect(error.message).toMatch(message)
  expect(error.message).toContain(path.slice(0, root.length + 5))
  expect(error.message).not.toMatch(/\n|\bopen '|\bmkdir '|\bscandir '|\bstat '/) // the words of the system
  expect((await readdir(root, { recursive: true })).sort()).toEqual(before)
  expect(await readFile(join(root, 'file'), 'utf8')).toBe('mine')
}

describe.each(folders)('%s', (_what, write) => {
  it.each(folderPlaces)('%s fails and changes nothing', async (_where, path, message) => check(write, path, message))
})
describe.each(files)('%s', (_what, write) => {
  it.each(filePlaces)('%s fails and changes nothing', async (_where, path, message) => check(write, path, message))
})

describe('a run in a folder', () => {
  it.each([
    ['whose checkpoints are a file', 'checkpoints', /checkpoints: a part of the path is a file, not a folder.*\(ENOTDIR\)$/],
    ['whose config.yaml is a folder', 'config.yaml/x', /config\.yaml: it is not a regular file$/],
    ['whose metrics.jsonl is a folder', 'metrics.jsonl/x', /metrics\.jsonl: it is not a regular file$/],
  ])('%s is rejected, naming the path', async (_what, name, message) => {
    const runDir = await mkdtemp(join(root, 'blocked-'))
    const [first, second] = name.split('/')
    if (second === undefined) await writeFile(join(runDir, name), 'mine')
    else await mkdir(join(runDir, first!))
    const error = await refusal(() => train({ runDir, resume: true })) // without it, a folder with metrics.jsonl holds a run
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toContain(join(runDir, first!))
    expect(error.message).toMatch(message)
    expect(error.message).not.toMatch(/\bopen '|\bmkdir '|\bscandir '/)
  })
})

describe('reading', () => {
  it.each<[what: string, path: string, read: (path: string) => Promise<unknown>]>([
    ['a model below a file', join(root, 'file', 'model'), (path) => LoopLM.fromPretrained(path)],
    ['a model that is a file', join(root, 'file'), (path) => LoopLM.fromPretrained(path)],
    ['a model behind a link to itself', join(root, 'circle'), (path) => LoopLM.fromPretrained(path)],
    [
      'an adapter that is a file',
      join(root, 'file'),
      (path) => LoopLM.create(tinyConfig).then((model) => model.loadAdapter(path)),
    ],
    ['a tokenizer that is a file', join(root, 'file'), (path) => Tokenizer.fromPretrained(path)],
    ['a tokenizer that is a folder', join(root, 'folder'), (path) => Tokenizer.fromFile(path)],
    ['an optimizer that is a folder', join(root, 'folder'), (path) => new AdamW(model).load(path)],
    [
      'a corpus behind a link to itself',
      join(root, 'circle'),
      (path) => Corpus.open(path, Tokenizer.bytes(), { contextLength: 8 }),
    ],
    ['a report of a file', join(root, 'file'), (path) => writeReport([path], join(root, 'report.html'))],
    ['a checkpoint to resume that is a file', join(root, 'file'), (path) => train({ resume: path })],
    ['a dataset that is a folder', join(root, 'folder'), (path) => loadDataset(path)],
    ['a dataset below a file', join(root, 'file', 'rows.jsonl'), (path) => loadDataset(path)],
    ['a configuration that is a folder', join(root, 'folder'), (path) => readTrainConfig(path, [])],
    ['a configuration behind a link to itself', join(root, 'circle'), (path) => readTrainConfig(path, [])],
    ['a configuration that is not there', join(root, 'nowhere.yaml'), (path) => readTrainConfig(path, [])],
    ['a name that is too long', join(root, 'x'.repeat(300)), (path) => LoopLM.fromPretrained(path)],
  ])('%s fails with a readable message and the path', async (_what, path, read) => {
    const error = await refusal(() => read(path))
    expect(error.code, error.message).toMatch(/INVALID_FILE|NOT_FOUND/)
    expect(error.message).toContain(path)
    expect(error.message).not.toMatch(/\bopen '|\bmkdir '|\bscandir '|\bstat '/)
  })
})

it.each(['ENOSPC', 'EDQUOT', 'EROFS', 'EACCES', 'EPERM', 'EMFILE', 'ENFILE', 'EBUSY', 'EIO', 'EISDIR', 'ELOOP'])(
  '%s becomes a message with the cause and a remedy',
  (code) => {
    const cause = Object.assign(new Error(`${code}: no, open '/x'`), { code })
    const { message } = fileError(cause, 'write', 'runs/a', 'run')
    expect(message).toMatch(new RegExp(`^run: cannot write runs/a: [a-z ,()-]+; .* \\(${code}\\)$`))
  },
)
