import { appendFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatasetStream, LoopLM, Tokenizer } from 'looplm'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { readConfig } from '../../src/cli/estimate.js'
import { ChatFormat } from '../../src/data/chat-format.js'
import { textOf } from '../../src/files/read.js'
import { writeOuroFolder } from '../ouro-folder.js'

let root: string
const at = (name: string) => join(root, name)
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-read-'))
  await writeOuroFolder(root)
  await writeFile(at('rows.jsonl'), '{"prompt":"a","completion":"b"}\n')
  await writeFile(at('README.md'), 'About these rows.\n')
  await writeFile(at('other.jinja'), '{{ messages[0].content }}')
})
afterAll(() => rm(root, { recursive: true }))

describe('textOf', () => {
  it('leaves out a byte order mark, which is text elsewhere', () => {
    expect(textOf(Buffer.from('\ufeffa\ufeffé'), 'a file')).toBe('a\ufeffé')
  })
})

describe('a text file with a byte that is no UTF-8', () => {
  const readers: [file: string, read: () => unknown][] = [
    ['config.json', () => LoopLM.fromPretrained(root)],
    ['config.json', () => readConfig(at('config.json'))],
    ['tokenizer.json', () => Tokenizer.fromPretrained(root)],
    ['tokenizer_config.json', () => Tokenizer.fromPretrained(root)],
    ['chat_template.jinja', () => Tokenizer.fromPretrained(root)],
    ['other.jinja', () => new ChatFormat(Tokenizer.bytes(), { template: at('other.jinja') })],
    ['README.md', () => DatasetStream.open(root)],
  ]
  it.each(readers)('is refused by name: %s', async (file, read) => {
    const before = await readFile(at(file))
    await appendFile(at(file), Uint8Array.of(0xe9)) // é in Latin-1
    const error = await (async () => read())().then(
      () => undefined,
      (refusal: unknown) => refusal,
    )
    await writeFile(at(file), before)
    expect(error).toMatchObject({ code: 'INVALID_FILE' })
    expect((error as Error).message).toContain(`${at(file)} is not valid UTF-8; save the file as UTF-8`)
  })
})
