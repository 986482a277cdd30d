// Datasets of every format: what their rows are, what is refused, which files and columns are read, and streams of more than memory holds.
import { spawnSync } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type DatasetOptions, readExamples } from '../../src/data/dataset.js'
import type { Format, Place } from '../../src/data/formats/format.js'
import { DatasetSampler } from '../../src/data/sampler.js'
import { type Dataset, DatasetStream, loadDataset, Random, readDataset } from '../../src/index.js'
import { openRows } from '../../src/rl/dataset-rows.js'
import { refusal } from '../refusal.js'

let root: string
let count = 0
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-dataset-'))
})
afterAll(() => rm(root, { recursive: true }))

type Row = Record<string, unknown>

async function write(name: string, content: string | Uint8Array, folder = join(root, String(count++))): Promise<string> {
  const path = join(folder, name)
  await mkdir(join(path, '..'), { recursive: true })
  await writeFile(path, content)
  return path
}

async function writeFolder(files: Record<string, string | Uint8Array>): Promise<string> {
  const folder = join(root, String(count++))
  for (const [name, content] of Object.entries(files)) await write(name, content, folder)
  return folder
}

const jsonl = (rows: readonly Row[]) => rows.map((row) => `${JSON.stringify(row)}\n`).join('')
const cell = (value: unknown) => (/[",\n\r\t]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value))
const csv = (rows: readonly Row[], mark = ',') =>
  [Object.keys(rows[0]!), ...rows.map((row) => Object.values(row))].map((cells) => `${cells.map(cell).join(mark)}\r\n`).join('')
function parquet(rows: readonly Row[], options: { rowGroupSize?: number; pageSize?: number } = {}): Uint8Array {
  const columnData = Object.keys(rows[0]!).map((name) => ({ name, data: rows.map((row) => row[name]) }))
  return new Uint8Array(parquetWriteBuffer({ columnData, ...options }))
}

const writers: Record<string, (rows: readonly Row[]) => string | Uint8Array> = {
  'rows.jsonl': jsonl,
  'rows.json': (rows) => JSON.stringify(rows, null, 1),
  'lines.json': jsonl,
  'rows.csv': csv,
  'rows.tsv': (rows) => csv(rows, '\t'),
  'rows.parquet': (rows) => parquet(rows, { rowGroupSize: 7 }),
}
const names = Object.keys(writers)

/** Rows of text with everything that a format has to escape. */
function awkward(count: number, seed = 1): Row[] {
  const random = new Random(seed)
  const parts = [
    'a',
    '"',
    ',',
    '\n',
    '\r\n',
    '\\',
    '[',
    ']',
    '{',
    '}',
    'é',
    '漢',
    '😀',
    '\ufeff',
    ' ',
    '""',
    "'",
    '\\"',
    ':',
    ';',
  ]
  const text = () => Array.from({ length: random.integer(12) }, () => parts[random.integer(parts.length)]).join('')
  return Array.from({ length: count }, (_, i) => ({ prompt: `${i}${text()}`, answer: `${text()}.`, note: text() }))
}

describe('a dataset', () => {
  it.each(names)('has the same rows when read from %s', async (name) => {
    const rows = awkward(40)
    const path = await write(name, writers[name]!(rows))
    expect(await loadDataset(path)).toEqual(rows)
    const read: unknown[] = []
    for await (const row of readDataset(path)) read.push(row)
    expect(read).toEqual(rows)
  })

  it.each(names)('can be read from any row of %s', async (name) => {
    const rows = awkward(40, 2)
    const path = await write(name, writers[name]!(rows))
    const format = { jsonl: 'jsonl', json: 'json', csv: 'csv', tsv: 'csv', parquet: 'parquet' }[name.split('.')[1]!] as Format
    const from = async (place?: Place) => {
      const found = []
      for await (const batch of readExamples(path, format, {}, place)) for (const one of batch) found.push(one)
      return found
    }
    const whole = await from()
    expect(whole).toHaveLength(40)
    for (const i of [0, 1, 6, 7, 13, 20, 39]) expect(await from(whole[i])).toEqual(whole.slice(i))
  })

  it('supports rows longer than one read of the file', async () => {
    const rows = [3, 200_000, 70_000, 5].map((length, i) => ({
      prompt: `${i}`.repeat(length),
      answer: 'é"\n'.repeat(length / 4),
    }))
    for (const name of names) expect(await loadDataset(await write(name, writers[name]!(rows)))).toEqual(rows)
  })

  it('of Parquet has JSON values for dates, large integers and bytes, and omits nulls', async () => {
    const bytes = parquetWriteBuffer({
      columnData: [
        { name: 'prompt', data: ['a', 'b'], type: 'STRING' },
        { name: 'answer', data: ['c', null], type: 'STRING', nullable: true },
        { name: 'id', data: [7n, 2n ** 60n], type: 'INT64' },
        { name: 'at', data: [new Date('2026-01-02T03:04:05Z'), new Date(0)], type: 'TIMESTAMP' },
        { name: 'raw', data: [Uint8Array.of(0xff, 0), Uint8Array.of(0x61)], type: 'BYTE_ARRAY' },
        { name: 'extra', data: [{ x: [1, 2] }, { x: [] }], type: 'JSON' },
      ],
    })
    const at = ['2026-01-02T03:04:05.000Z', '1970-01-01T00:00:00.000Z']
    expect(await loadDataset(await write('rows.parquet', new Uint8Array(bytes)))).toEqual([
      { prompt: 'a', answer: 'c', id: 7, at: at[0], raw: '/wA=', extra: { x: [1, 2] } },
      { prompt: 'b', id: '1152921504606846976', at: at[1], raw: 'a', extra: { x: [] } },
    ])
  })

  it('of CSV supports other delimiters, a byte order mark, empty lines and no final newline', async () => {
    expect(await loadDataset(await write('a.csv', '\ufeffprompt;answer\n\n"x;""y""";2\n\nz;'), { delimiter: ';' })).toEqual([
      { prompt: 'x;"y"', answer: '2' },
      { prompt: 'z', answer: '' },
    ])
  })

  it('fails with "has no rows" for an empty array or an empty file', async () => {
    for (const text of ['[]', ' [ ]\n', '', '\ufeff[]']) {
      expect((await refusal(async () => loadDataset(await write('a.json', text)))).message).toMatch(/a\.json has no rows/)
    }
  })

  const whole = parquet(awkward(30))
  const header = 'prompt,answer\n'
  it.each<[what: string, name: string, content: string | Uint8Array, message: RegExp]>([
    ['an array that does not end', 'a.json', '[{"prompt":"a"},{"prompt":"b"', /row 2 does not end: the file is cut off/],
    ['an array that ends twice', 'a.json', '[{"prompt":"a"}] ]', /stands behind the end of the array/],
    ['text in quotes behind an array', 'a.json', '[{"prompt":"a"}] "junk"', /stands behind the end of the array/],
    ['two commas', 'a.json', '[{"prompt":"a"},,{"prompt":"b"}]', /row 2 is empty/],
    ['a comma before the end', 'a.json', '[{"prompt":"a"},]', /row 2 is empty/],
    ['a number in an array', 'a.json', '[{"prompt":"a"}, 5]', /row 2 must be a JSON object, got a value of type number/],
    ['one object over several lines', 'a.json', '{\n"prompt": "a"\n}', /line 1 is not JSON/],
    [
      'an element without a field',
      'a.json',
      '[{"prompt":"a"},{"promt":"b"}]',
      /row 2 field "prompt" must be a string or an array of messages, got nothing/,
    ],
    ['NUL bytes in JSON Lines', 'a.jsonl', '{"prompt":"a"}\n\0\0\0\n', /line 2 has NUL bytes, so the file is damaged/],
    ['UTF-16', 'a.jsonl', Buffer.from('\ufeff{"prompt":"a"}\n', 'utf16le'), /line 1 is not valid UTF-8; save the file as UTF-8/],
    ['a quote that never closes', 'a.csv', `${header}a,b\n"c,d\ne,f\n`, /row 2 column 1 has a quote that is never closed/],
    ['text behind a quote', 'a.csv', `${header}a,b\n"c"d,e\n`, /row 2 \(line 3\) column 1 has text behind a closing quote/],
    ['a quote inside a cell', 'a.csv', `${header}a,say "hi"\n`, /row 1 \(line 2\) column 2 has a quote inside a cell/],
    ['a cell too many', 'a.csv', `${header}"x\ny",b\nc,d,e\n`, /row 2 \(line 4\) has 3 cells, and the header has 2 columns/],
    ['a cell too few', 'a.csv', `${header}a\n`, /row 1 \(line 2\) has 1 cells/],
    ['NUL bytes in CSV', 'a.csv', `${header}a,b\0c\n`, /row 1 \(line 2\) field "answer" has NUL bytes/],
    [
      'bytes in CSV that are not UTF-8',
      'a.csv',
      Buffer.from(`${header}a,\xff\n`, 'latin1'),
      /row 1 .* field "answer" is not valid UTF-8/,
    ],
    ['a column twice', 'a.csv', 'prompt,prompt\na,b\n', /the header\) names the column "prompt" twice/],
    ['another delimiter', 'a.csv', 'prompt;answer\na;b\n', /has one column, "prompt;answer"; give delimiter: ";"/],
    ['a column __proto__', 'a.csv', 'prompt,__proto__\na,b\n', /has a column "__proto__"/],
    [
      'no such column',
      'a.csv',
      'question,answer\na,b\n',
      /row 1 .* field "prompt" must be a string or an array of messages, got nothing; the row has the fields question/,
    ],
    ['a Parquet file that is cut off', 'a.parquet', whole.subarray(0, 400), /a\.parquet is no Parquet file, or cut off/],
    ['a Parquet file of a few bytes', 'a.parquet', 'PAR1', /a\.parquet is no Parquet file/],
    ['Parquet without its pages', 'a.parquet', damaged(whole), /a\.parquet row 1 cannot be read .*the file is damaged/],
    ['text that is not UTF-8 in Parquet', 'a.parquet', wrongText(), /row 2 field "prompt" is not valid UTF-8/],
    [
      'a Parquet field of another type',
      'a.parquet',
      parquet([{ prompt: 'a', answer: 4 }]),
      /row 1 field "answer" must be a string/,
    ],
  ])('with %s is rejected, naming file, row and field', async (_what, name, content, message) => {
    const path = await write(name, content)
    const error = await refusal(() => loadDataset(path))
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toContain(path)
    expect(error.message).toMatch(message)
    expect((await refusal(() => DatasetStream.open(path))).message).toBe(error.message)
  })

  it.each(names)('with a row over maxRowBytes is rejected as %s', async (name) => {
    const path = await write(
      name,
      writers[name]!([
        { prompt: 'a', answer: 'b' },
        { prompt: 'x'.repeat(300_000), answer: 'c' },
      ]),
    )
    const error = await refusal(() => loadDataset(path, { maxRowBytes: 100_000 }))
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toMatch(/(line|row) 2.*(is|makes it) longer than maxRowBytes = 100000/)
  })

  it('from a damaged Parquet file has rows or fails with INVALID_FILE', async () => {
    const rows = awkward(30, 3)
    const bytes = parquet(rows)
    const random = new Random(5)
    let refused = 0
    for (let trial = 0; trial < 60; trial++) {
      const spoilt = Uint8Array.from(bytes)
      for (let i = 0; i < 3; i++) spoilt[random.integer(spoilt.length)]! ^= 1 << random.integer(8)
      const path = await write('a.parquet', trial % 3 === 0 ? bytes.subarray(0, random.integer(bytes.length)) : spoilt)
      const outcome = await loadDataset(path, { maxRowBytes: 2 ** 20 }).catch((error) => error)
      if (Array.isArray(outcome)) continue
      expect(outcome).toMatchObject({ name: 'LoopLMError', code: 'INVALID_FILE', message: expect.stringContaining(path) })
      refused++
    }
    expect(refused).toBeGreaterThan(20)
  })

  it('that is read in part lets the process exit', async () => {
    const paths = await Promise.all(names.map((name) => write(name, writers[name]!(awkward(3000)))))
    const index = new URL('../../dist/src/index.js', import.meta.url).href
    const script = `
      import { readDataset } from ${JSON.stringify(index)}
      for (const path of ${JSON.stringify(paths)}) for await (const { prompt } of readDataset(path)) { console.log(prompt.length > 0); break }`
    const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', script], {
      encoding: 'utf8',
    })
    expect([status, stdout, stderr]).toEqual([0, 'true\n'.repeat(names.length), ''])
  })

  it('fails with ABORTED when its signal fires during reading', async () => {
    const path = await write('a.jsonl', jsonl(awkward(20_000)))
    const controller = new AbortController()
    setImmediate(() => controller.abort())
    expect((await refusal(() => loadDataset(path, { signal: controller.signal }))).code).toBe('ABORTED')
  })

  it.each(['rows.jsonl', 'rows.json', 'rows.csv', 'rows.parquet'])(
    'leaves the event loop free for other work while %s is read',
    async (name) => {
      const rows = Array.from({ length: 4000 }, (_, i) => ({ prompt: `${i}`, answer: `${i}`.repeat(400) }))
      const bytes = writers[name]!(rows)
      const path = await write(name, bytes)
      let turns = 0
      let waiting = true
      const turn = () => {
        turns++
        if (waiting) setImmediate(turn)
      }
      setImmediate(turn)
      await loadDataset(path)
      waiting = false
      expect(turns).toBeGreaterThan(25) // 6 MB in parts of at most 128 KiB
    },
  )
})

/** A Parquet file whose pages are zeros. */
function damaged(bytes: Uint8Array): Uint8Array {
  const spoilt = Uint8Array.from(bytes)
  const length = new DataView(spoilt.buffer).getUint32(spoilt.length - 8, true)
  spoilt.fill(0, 4, spoilt.length - 8 - length - 200)
  return spoilt
}

/** A Parquet file with text of which a byte is not UTF-8. */
function wrongText(): Uint8Array {
  const bytes = parquet([{ prompt: 'first' }, { prompt: 'sEcond' }])
  const at = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).indexOf('sEcond')
  bytes[at + 1] = 0xff
  return bytes
}

describe('columns', () => {
  const rows = [{ question: 'q', meta: { gold: 'g', n: 3 }, id: 1 }]
  const load = async (columns: DatasetOptions['columns']) => loadDataset(await write('a.jsonl', jsonl(rows)), { columns })

  it('can be renamed, nested, templated, computed or dropped; all others stay', async () => {
    const columns = {
      prompt: { template: 'Q: {question} ({meta.n})\nWrite {} in \\boxed{}.' },
      answer: 'meta.gold',
      twice: (row: Row) => [row.id, row.id],
      id: null,
      none: () => undefined,
    }
    expect(await load(columns)).toEqual([
      {
        question: 'q',
        meta: { gold: 'g', n: 3 },
        prompt: 'Q: q (3)\nWrite {} in \\boxed{}.',
        answer: 'g',
        twice: [1, 1],
      },
    ])
    expect((await load({ prompt: 'question', answer: 'meta.n' }))[0]).toMatchObject({ prompt: 'q', answer: '3' })
  })

  it.each<[DatasetOptions['columns'], RegExp]>([
    [{ prompt: 'problem' }, /line 1 has no field "problem", which columns\.prompt names; it has the fields question, meta, id/],
    [{ prompt: 'meta.none' }, /line 1 has no field "meta\.none"/],
    [
      { prompt: { template: '{meta}' } },
      /line 1 field "meta" must be a string or a number for columns\.prompt, got a value of type object/,
    ],
    [{ prompt: () => 7n }, /line 1 field "prompt" must be a string/],
    [{ prompt: (row) => (row.none as string).trim() }, /line 1 is refused by columns\.prompt: Cannot read properties/],
    [{ prompt: async () => 'a' }, /line 1 got a promise from columns\.prompt/],
    ['gsm8k', /line 1 field "answer" must be a string, got nothing/],
    ['math', /line 1 has no field "problem"/],
    ['countdown', /line 1 field "nums" must be an array of numbers, got nothing/],
  ])('given as %j are rejected, naming file, row and field', async (columns, message) => {
    const error = await refusal(() => load(columns))
    expect(error.code).toBe('INVALID_FILE')
    expect(error.message).toMatch(/\/a\.jsonl line 1 /)
    expect(error.message).toMatch(message)
  })

  it.each<[unknown, RegExp]>([
    ['gsm', /columns must be one of 'gsm8k', 'math', 'countdown', got 'gsm'/],
    [{ prompt: 5 }, /columns\.prompt must be a column of the file/],
    [['prompt'], /columns(\.0)? must be/],
  ])('given as %j are rejected', async (columns, message) => {
    const error = await refusal(() => load(columns as DatasetOptions['columns']))
    expect([error.code, error.message]).toEqual(['INVALID_ARGUMENT', expect.stringMatching(message)])
  })

  it('have presets for GSM8K, MATH and countdown', async () => {
    const read = async (columns: 'gsm8k' | 'math' | 'countdown', row: Row) =>
      (await loadDataset(await write('a.jsonl', jsonl([row])), { columns }))[0]!
    const solution = 'She has 2*600=<<2*600=1200>>1200 eggs.\n#### 1,200'
    expect(await read('gsm8k', { question: 'How many?', answer: solution })).toEqual({
      question: 'How many?',
      prompt: 'How many?',
      answer: '1200',
      completion: 'She has 2*600=1200 eggs.\n#### 1,200',
    })
    const solved = { problem: 'x?', solution: 'So \\boxed{\\frac{1}{2}}.', level: 'Level 1' }
    expect(await read('math', solved)).toMatchObject({ prompt: 'x?', answer: '\\frac{1}{2}', completion: solved.solution })
    expect(await read('math', { problem: 'x?', answer: '204' })).toEqual({ problem: 'x?', prompt: 'x?', answer: '204' })
    const made = await read('countdown', { nums: [19, 36, 55, 7], target: 65 })
    expect(made).toMatchObject({ nums: [19, 36, 55, 7], target: 65 })
    expect(made.prompt).toMatch(/^Make 65 from the numbers 19, 36, 55, 7\. /)
    const wrong = [
      ['gsm8k', { question: 'a', answer: '42' }, /field "answer" has no "####"/],
      ['math', { problem: 'a', solution: '42' }, /field "solution" has no \\boxed{}/],
      ['countdown', { nums: [1, 'x'], target: 1 }, /field "nums" must be an array of numbers/],
      ['countdown', { nums: [1] }, /field "target" must be a number/],
    ] as const
    for (const [columns, row, message] of wrong) expect((await refusal(() => read(columns, row))).message).toMatch(message)
  })
})

describe('the files of a dataset', () => {
  const one = (prompt: string) => jsonl([{ prompt }])
  const prompts = async (folder: string, options?: DatasetOptions) =>
    (await loadDataset(folder, options)).map(({ prompt }) => prompt)

  it('are read in name order, without metadata files', async () => {
    const folder = await writeFolder({
      'data/b.jsonl': one('b'),
      'data/a.jsonl': one('a'),
      'config.json': '{}',
      'dataset_infos.json': '{}',
      LICENSE: 'free',
      '.cache/c.jsonl': one('c'),
      'README.md': '# A set\n',
    })
    expect(await prompts(folder)).toEqual(['a', 'b'])
  })

  it('belong to splits by their names', async () => {
    const folder = await writeFolder({
      'data/train-00001-of-00002.jsonl': one('2'),
      'data/train-00000-of-00002.jsonl': one('1'),
      'data/test-00000-of-00001.jsonl': one('3'),
      'data/dev.jsonl': one('4'),
      'data/hard-00000-of-00001.jsonl': one('5'),
    })
    expect(await prompts(folder)).toEqual(['1', '2'])
    expect(await prompts(folder, { split: 'test' })).toEqual(['3'])
    expect(await prompts(folder, { split: 'validation' })).toEqual(['4'])
    expect(await prompts(folder, { split: 'hard' })).toEqual(['5'])
    expect((await refusal(() => prompts(folder, { split: 'val' }))).message).toMatch(/split: .* has .*; there is no "val"/)
    expect(await prompts(await writeFolder({ 'test.jsonl': one('t') }))).toEqual(['t'])
  })

  it.each<[string[], DatasetOptions, string[]]>([
    [['all', 'train', 'test'], {}, ['train']],
    [['all', 'train', 'test'], { split: 'test' }, ['test']],
    [['all', 'x/train-00000-of-00001', 'x/extra'], {}, ['x/train-00000-of-00001']],
    [['sums', 'sums_test'], {}, ['sums']],
    [['a', 'b'], {}, ['a', 'b']],
  ])(
    '%j of which %j asks for are %j: a file that names no split is read only without train files',
    async (names, options, read) => {
      const folder = await writeFolder(Object.fromEntries(names.map((name) => [`${name}.jsonl`, one(name)])))
      expect(await prompts(folder, options)).toEqual(read)
    },
  )

  it.each([
    ['data_dir: ./data', ['data/a', 'data/b1']],
    ['data_dir: data/', ['data/a', 'data/b1']],
    ['data_dir: .', ['c', 'data/a', 'data/b1']],
    ['{ data_dir: ., data_files: ./data/a.jsonl }', ['data/a']],
    ['{ data_dir: ./data, data_files: ./a.* }', ['data/a']],
    ['data_files: "data/b[0-9].jsonl"', ['data/b1']],
    ['data_files: "data/[!a]*.jsonl"', ['data/b1']],
  ])('are those that configs: [%s] of README.md chooses', async (config, read) => {
    const files = Object.fromEntries(['c', 'data/a', 'data/b1'].map((name) => [`${name}.jsonl`, one(name)]))
    const fields = config.startsWith('{') ? config : `{ ${config} }`
    expect(await prompts(await writeFolder({ ...files, 'README.md': `---\nconfigs: [${fields}]\n---\n` }))).toEqual(read)
  })

  it('belong to configurations by README.md, or by folders', async () => {
    const readme = `---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*.jsonl
- config_name: socratic
  data_files: socratic/**
---
# A set
`
    const files = { 'main/train-0.jsonl': one('1'), 'main/test-0.jsonl': one('2'), 'socratic/x/y.jsonl': one('3') }
    const folder = await writeFolder({ ...files, 'README.md': readme })
    expect(await prompts(folder, { config: 'main' })).toEqual(['1'])
    expect(await prompts(folder, { config: 'main', split: 'test' })).toEqual(['2'])
    expect(await prompts(folder, { config: 'socratic' })).toEqual(['3'])
    expect((await refusal(() => prompts(folder))).message).toMatch(/config: .* has main, socratic; give one/)
    expect((await refusal(() => prompts(folder, { config: 'x' }))).message).toMatch(/config: .*there is no "x"/)
    const plain = await writeFolder(files)
    expect(await prompts(plain, { config: 'main', split: 'test' })).toEqual(['2'])
    expect((await refusal(() => prompts(plain, { config: 'x' }))).message).toMatch(/config: .*it has main, socratic/)
    expect(await prompts(await writeFolder({ ...files, 'README.md': '---\nconfigs: [\n---\n' }), { config: 'main' })).toEqual([
      '1',
    ])
  })

  it.each<[string, Record<string, string>, DatasetOptions, string, RegExp]>([
    ['no file of a known format', { 'a.txt': 'a' }, {}, 'INVALID_FILE', /holds no \.jsonl/],
    [
      'files of several formats',
      { 'a.jsonl': one('a'), 'b.csv': 'prompt\nb\n' },
      {},
      'INVALID_FILE',
      /several formats \(jsonl, csv\)/,
    ],
    ...['{ data_files: ["b.*", "[z-a].*"], data_dir: ./x }', '{ data_dir: ./x }'].map(
      (config): [string, Record<string, string>, DatasetOptions, string, RegExp] => [
        `no file that ${config} matches`,
        { 'a.jsonl': one('a'), 'README.md': `---\nconfigs: [${config}]\n---\n` },
        {},
        'INVALID_FILE',
        /holds no \.jsonl, .* file that matches x\/(b\.\*, x\/\[z-a\]\.\*|\*\*), as its README\.md asks/,
      ],
    ),
    ['no rows', { 'a.jsonl': '\n' }, {}, 'INVALID_FILE', /has no rows/],
    [
      'a format that there is not',
      { 'a.jsonl': one('a') },
      { format: 'xml' as never },
      'INVALID_ARGUMENT',
      /format must be one of/,
    ],
    ['an option that there is not', { 'a.jsonl': one('a') }, { spilt: 'a' } as never, 'INVALID_ARGUMENT', /did you mean split\?/],
  ])('with %s are rejected', async (_what, files, options, code, message) => {
    const error = await refusal(async () => loadDataset(await writeFolder(files), options))
    expect([error.code, error.message]).toEqual([code, expect.stringMatching(message)])
  })

  it('may have any name when the format is given', async () => {
    const path = await write('rows.data', one('a'))
    expect((await refusal(() => loadDataset(path))).message).toMatch(/the extension is none of .*; pass format/)
    expect(await prompts(path, { format: 'jsonl' })).toEqual(['a'])
    expect((await refusal(() => loadDataset(path, { format: 'jsonl', split: 'test' }))).message).toMatch(
      /split: .* is a single file/,
    )
    expect((await refusal(() => loadDataset(join(root, 'nowhere')))).code).toBe('NOT_FOUND')
  })
})

describe('a stream', () => {
  const rows = Array.from({ length: 3000 }, (_, i) => ({ prompt: `${i}`, answer: 'a\n"b",'.repeat(i % 5) }))
  const shards = (make: (rows: readonly Row[]) => string | Uint8Array, end: string) =>
    writeFolder({
      [`0.${end}`]: make(rows.slice(0, 1200)),
      [`1.${end}`]: make(rows.slice(1200, 1201)),
      [`2.${end}`]: make(rows.slice(1201)),
    })

  it('that fits into its buffer has the order and fingerprint of a loaded dataset', async () => {
    const folder = await shards(jsonl, 'jsonl')
    const stream = await DatasetStream.open(folder, { seed: 5, shuffleBuffer: 3000 })
    expect(stream.rows).toBe(3000)
    expect(await stream.take(0, 7000)).toEqual(new DatasetSampler(rows, { seed: 5 }).take(7000))
    const dataset = (await loadDataset(folder)) as Dataset
    const checks = { problemOf: () => undefined, read: async () => {}, mayBeLong: () => false }
    const described = await openRows(dataset, 'dataset', 5, 'test').describe(checks, undefined)
    expect(described).toEqual({ fingerprint: stream.fingerprint, rows: 3000, conversations: false })
    expect(await openRows(stream, 'dataset', 5, 'test').describe(checks, undefined)).toEqual(described)
  })

  it.each([
    ['jsonl', jsonl],
    ['json', (rows: readonly Row[]) => JSON.stringify(rows)],
    ['csv', csv],
    ['parquet', (rows: readonly Row[]) => parquet(rows, { rowGroupSize: 500 })],
  ] as const)('of %s yields every row once per pass, shuffled per window by seed and position', async (end, make) => {
    const folder = await shards(make, end)
    const [seed, shuffleBuffer] = [3, 700]
    const stream = await DatasetStream.open(folder, { seed, shuffleBuffer })
    const taken = await stream.take(0, 6000)
    for (const pass of [0, 1]) {
      // the definition: shards in another order, then every window of 700 rows in another order
      const order = new Random(seed, pass, 2 ** 32 - 1).shuffle([rows.slice(0, 1200), rows.slice(1200, 1201), rows.slice(1201)])
      const all = order.flat()
      const expected: Row[] = []
      for (let begin = 0, window = 0; begin < all.length; begin += shuffleBuffer, window++) {
        expected.push(...new Random(seed, pass, window).shuffle(all.slice(begin, begin + shuffleBuffer)))
      }
      expect(taken.slice(3000 * pass, 3000 * (pass + 1))).toEqual(expected)
    }
    for (const start of [0, 1, 699, 700, 1500, 2999, 3000, 5321]) {
      const resumed = await DatasetStream.open(folder, { seed, shuffleBuffer })
      expect(await resumed.take(start, 40)).toEqual(taken.slice(start, start + 40))
      expect(resumed.state).toEqual({ seed, index: start + 40 })
    }
    expect(
      (await (await DatasetStream.open(folder, { seed: 4, shuffleBuffer })).take(0, 20)).map(({ prompt }) => prompt),
    ).not.toEqual(taken.slice(0, 20).map(({ prompt }) => prompt))
  })

  it('serves concurrent calls of take()', async () => {
    const stream = await DatasetStream.open(await shards(jsonl, 'jsonl'), { shuffleBuffer: 500 })
    const parts = await Promise.all([0, 400, 800, 2900].map((start) => stream.take(start, 200)))
    for (const [i, start] of [0, 400, 800, 2900].entries()) expect(parts[i]).toEqual(await stream.take(start, 200))
  })

  it('has the same fingerprint in every file format', async () => {
    const kept = rows.slice(0, 50)
    const prints = await Promise.all(
      names.map(async (name) => (await DatasetStream.open(await write(name, writers[name]!(kept)))).fingerprint),
    )
    expect(new Set(prints).size).toBe(1)
    const other = await DatasetStream.open(await write('a.jsonl', jsonl(kept)), { columns: { answer: 'prompt' } })
    expect(other.fingerprint).not.toBe(prints[0])
  })

  it('fails when a file has changed, and continues once it is restored', async () => {
    const folder = await writeFolder({ 'a.jsonl': jsonl(rows.slice(0, 20)) })
    const path = join(folder, 'a.jsonl')
    const stamp = new Date(1_700_000_000_000)
    await utimes(path, stamp, stamp)
    const stream = await DatasetStream.open(folder, { shuffleBuffer: 10 })
    const first = await stream.take(0, 10)
    const content = await readFile(path)
    await writeFile(path, jsonl(rows.slice(0, 10)))
    const error = await refusal(() => stream.take(10, 10))
    expect([error.code, error.message]).toEqual([
      'INVALID_FILE',
      expect.stringMatching(/a\.jsonl has changed since it was opened/),
    ])
    await writeFile(path, content)
    await utimes(path, stamp, stamp)
    expect([...first, ...(await stream.take(10, 10))].map(({ prompt }) => prompt).sort()).toEqual(
      rows
        .slice(0, 20)
        .map(({ prompt }) => prompt)
        .sort(),
    )
  })

  it('rejects invalid counts and seeds', async () => {
    const path = await write('a.jsonl', jsonl(rows.slice(0, 3)))
    expect((await refusal(() => DatasetStream.open(path, { seed: -1 }))).message).toMatch(/seed/)
    expect((await refusal(() => DatasetStream.open(path, { shuffleBuffer: 0 }))).message).toMatch(/shuffleBuffer/)
    const stream = await DatasetStream.open(path)
    expect((await refusal(() => stream.take(-1, 1))).message).toMatch(/start/)
    expect((await refusal(() => stream.take(0, 1e12))).message).toMatch(/at most 16777216 rows/)
  })
})
