// Datasets of the Hugging Face Hub: fetched on the user's wish alone, the files of a split, in the cache that other tools share.
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type DatasetOptions, DatasetStream, downloadDataset, loadDataset } from '../../src/index.js'
import { runProgram } from '../cli/program.js'
import { commit, type Hub, startHub } from '../hub.js'
import { refusal } from '../refusal.js'

let root: string
let hub: Hub
let cacheDir: string
let count = 0
const readme = `---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
---
`
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-hub-set-'))
  hub = await startHub()
  const file = (prompts: string[]) =>
    Buffer.from(parquetWriteBuffer({ columnData: [{ name: 'prompt', data: prompts, type: 'STRING' }] }))
  hub.files.set('README.md', Buffer.from(readme))
  hub.files.set('main/train-00000-of-00002.parquet', file(['a', 'b']))
  hub.files.set('main/train-00001-of-00002.parquet', file(['c']))
  hub.files.set('main/test-00000-of-00001.parquet', file(['d']))
  hub.files.set('load.py', Buffer.from('raise SystemExit'))
  process.env.HF_ENDPOINT = hub.url
})
afterAll(async () => {
  delete process.env.HF_ENDPOINT
  await hub.close()
  await rm(root, { recursive: true })
})
beforeEach(() => {
  cacheDir = join(root, `cache-${count++}`)
  hub.requests.length = 0
})

const sent = () => hub.requests.filter((request) => request.startsWith('GET /cdn/'))
const prompts = async (options: DatasetOptions = {}) =>
  (await loadDataset('hub:org/tiny', { cacheDir, ...options })).map(({ prompt }) => prompt)

describe('a dataset of the hub', () => {
  it('is downloaded only with download: true', async () => {
    const error = await refusal(() => prompts())
    expect(error.code).toBe('NOT_FOUND')
    expect(error.message).toMatch(
      /the dataset org\/tiny is not in the cache; download: true fetches it .*looplm download --dataset/,
    )
    expect((await refusal(() => DatasetStream.open('hub:org/tiny', { cacheDir }))).message).toBe(error.message)
    expect(hub.requests).toEqual([])
  })

  it('downloads only the files of its split, and is later found without a request', async () => {
    expect(await prompts({ download: true })).toEqual(['a', 'b', 'c'])
    expect(sent().sort()).toEqual(
      ['README.md', 'main/train-00000-of-00002.parquet', 'main/train-00001-of-00002.parquet'].map((name) => `GET /cdn/${name}`),
    )
    const repository = join(cacheDir, 'datasets--org--tiny')
    expect(await readFile(join(repository, 'refs', 'main'), 'utf8')).toBe(commit)
    expect((await readdir(join(repository, 'snapshots', commit))).sort()).toEqual(['README.md', 'main'])
    hub.requests.length = 0
    expect(await prompts()).toEqual(['a', 'b', 'c'])
    expect(await prompts({ revision: commit, config: 'main', split: 'train' })).toEqual(['a', 'b', 'c'])
    const stream = await DatasetStream.open('hub:org/tiny', { cacheDir, seed: 2 })
    expect((await stream.take(0, 3)).map(({ prompt }) => prompt).sort()).toEqual(['a', 'b', 'c'])
    expect(hub.requests).toEqual([])
  })

  it('names the missing file of another split, and then downloads only that', async () => {
    await downloadDataset('org/tiny', { cacheDir })
    const error = await refusal(() => prompts({ split: 'test' }))
    expect(error.message).toMatch(/is not in the cache: it has no main\/test-00000-of-00001\.parquet; download: true/)
    hub.requests.length = 0
    expect(await prompts({ split: 'test', download: true })).toEqual(['d'])
    expect(sent()).toEqual(['GET /cdn/main/test-00000-of-00001.parquet'])
  })

  it('is used from the cache when the hub does not answer', async () => {
    await downloadDataset('org/tiny', { cacheDir })
    const silent = { cacheDir, hubUrl: 'http://127.0.0.1:9' }
    expect(await downloadDataset('org/tiny', silent)).toBe(join(cacheDir, 'datasets--org--tiny', 'snapshots', commit))
    expect((await refusal(() => downloadDataset('org/tiny', { ...silent, split: 'test' }))).message).toMatch(/does not answer/)
  })

  it('is read from a cache without the file list that looplm keeps', async () => {
    await downloadDataset('org/tiny', { cacheDir })
    await rm(join(cacheDir, 'datasets--org--tiny', '.looplm'), { recursive: true })
    expect(await prompts()).toEqual(['a', 'b', 'c'])
  })

  it('is rejected when damaged in transit, and leaves nothing behind', async () => {
    const name = 'main/train-00000-of-00002.parquet'
    const bytes = Buffer.from(hub.files.get(name)!)
    bytes[10]! ^= 1
    hub.damaged.set(name, bytes)
    const error = await refusal(() => prompts({ download: true }))
    hub.damaged.clear()
    expect([error.code, error.message]).toEqual(['INVALID_FILE', expect.stringMatching(/has the checksum .* instead of/)])
    const left = await readdir(join(cacheDir, 'datasets--org--tiny'), { recursive: true })
    expect(left.filter((path) => path.includes('train-00000') || path.endsWith('.incomplete'))).toEqual([])
    expect((await refusal(() => prompts())).code).toBe('NOT_FOUND')
    expect(await prompts({ download: true })).toEqual(['a', 'b', 'c'])
  })

  it.each<[string, DatasetOptions, string, RegExp]>([
    ['hub:tiny', {}, 'INVALID_ARGUMENT', /"tiny" is not the name of a dataset/],
    ['hub:org/none', { download: true }, 'NOT_FOUND', /has no org\/none at revision main/],
    ['hub:org/tiny', { download: true, revision: '../x' }, 'INVALID_ARGUMENT', /revision/],
    ['hub:org/tiny', { download: true, split: 'dev' }, 'INVALID_ARGUMENT', /split: org\/tiny has train, test; there is no "dev"/],
    ['hub:org/tiny', { download: true, config: 'x' }, 'INVALID_ARGUMENT', /config: org\/tiny has main; there is no "x"/],
    ['hub:org/tiny', { download: 'yes' as never }, 'INVALID_ARGUMENT', /download must be true or false/],
  ])('%s with %j is rejected', async (source, options, code, message) => {
    const error = await refusal(() => loadDataset(source, { cacheDir, ...options }))
    expect([error.code, error.message]).toEqual([code, expect.stringMatching(message)])
  })

  it('is not downloaded with an unknown option', async () => {
    const wrong = { cacheDir, splt: 'test' } as object
    expect((await refusal(() => downloadDataset('org/tiny', wrong))).message).toMatch(
      /splt: unknown option; did you mean split\?/,
    )
    expect(hub.requests).toEqual([])
  })

  it('is downloaded by looplm download --dataset, which prints its path', async () => {
    const args = ['download', 'org/tiny', '--cache-dir', cacheDir]
    const { code, stdout } = await runProgram([...args, '--dataset', '--split', 'test'], { cwd: root })
    expect([code, stdout]).toEqual([0, `${join(cacheDir, 'datasets--org--tiny', 'snapshots', commit)}\n`])
    expect(await prompts({ split: 'test' })).toEqual(['d'])
    const refused = await runProgram([...args, '--split', 'test'], { cwd: root })
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching(/--split and --config belong to dataset/)])
  })
})
