// Every part of a tokenizer.json does what it does in Python's tokenizers 0.23.2, which wrote the golden file
// (tools/tokenizer-fixtures.py), or is refused by name. docs/tokenizers.md has the table.
import { readFileSync } from 'node:fs'
import { crc32, gunzipSync } from 'node:zlib'
import { describe, expect, it } from 'vitest'
import { Tokenizer } from '../src/data/tokenizer.js'
import { Fields } from '../src/tokenizer/fields.js'
import { readNormalizer } from '../src/tokenizer/normalizers.js'
import { readPreTokenizer } from '../src/tokenizer/pre-tokenizers.js'
import { refusal } from './refusal.js'

interface Case {
  part: string
  type: string
  tokenizer: { model: unknown }
  /** Of encoding: by text; null where Python fails. */
  ids?: (number[] | null)[]
  addSpecialTokens?: boolean
  /** Of decoding: ids, skipSpecialTokens, text. */
  texts?: [number[], boolean, string][]
}

interface Golden {
  characters: object
  texts: string[]
  cases: Case[]
  classes: { part?: object; cut?: string; normalizer?: object; removed?: string }[]
  forms: Record<string, number[]>
}

const file = new URL('fixtures/tokenizers.json.gz', import.meta.url)
const golden = JSON.parse(gunzipSync(readFileSync(file)).toString()) as Golden
const json = ({ tokenizer }: Case) => (tokenizer.model === 'characters' ? { ...tokenizer, model: golden.characters } : tokenizer)

/** Golden cases that are refused, with what the error says. */
const refused: [isIt: (content: string) => boolean, message: RegExp][] = [
  [(content) => content.includes('"UnicodeScripts"'), /field "pre_tokenizer.type" is "UnicodeScripts", which is not supported/],
  [(content) => content.includes('"\\\\X"'), /field "pre_tokenizer[.\w]*pattern\.Regex" "\\\\X" cannot be carried out: /],
]
const refusalOf = (example: Case) => refused.find(([isIt]) => isIt(JSON.stringify({ ...example.tokenizer, model: null })))?.[1]

const kinds = grouped(golden.cases)
const table: string[] = []

describe('as in Python:', () => {
  it.each([...kinds.keys()])('%s', async (kind) => {
    let same = 0
    for (const example of kinds.get(kind)!) {
      const message = refusalOf(example)
      if (message !== undefined) {
        const error = await refusal(() => new Tokenizer(json(example)))
        expect(error.message).toMatch(message)
        continue
      }
      const tokenizer = new Tokenizer(json(example))
      const { addSpecialTokens = true } = example
      for (const [i, ids] of (example.ids ?? []).entries()) {
        if (ids === null) continue
        const text = golden.texts[i]!
        const found = tokenizer.encode(text, { addSpecialTokens })
        if (!equal(found, ids))
          expect({ text, ids: found }, JSON.stringify({ ...example.tokenizer, model: 0 })).toEqual({ text, ids })
        same++
      }
      for (const [ids, skipSpecialTokens, text] of example.texts ?? []) {
        const found = tokenizer.decode(ids, { skipSpecialTokens, skipUnknownTokens: true })
        if (found !== text) expect({ ids, text: found }, JSON.stringify(example.tokenizer)).toEqual({ ids, text })
        same++
      }
    }
    const [part, type] = [kind.slice(0, kind.indexOf(' ')), kind.slice(kind.indexOf(' ') + 1)]
    table.push(`| ${part} | ${type} | ${same === 0 ? 'refused' : `same on ${same} strings`} |`)
  })

  it('what docs/tokenizers.md says of each part', () => {
    const document = readFileSync(new URL('../docs/tokenizers.md', import.meta.url), 'utf8')
    for (const row of table) expect(document).toContain(row)
    expect(table.length).toBe(kinds.size)
  })
})

describe('over all of Unicode', () => {
  // Node's own tables of characters must be as new as those of Python's regular expressions
  const current = Number(process.versions.unicode) >= 16

  it.runIf(current)('characters are cut, kept and removed as in Python', () => {
    for (const { part, cut, normalizer, removed } of golden.classes) {
      const what = JSON.stringify(part ?? normalizer)
      if (part !== undefined) expect(rangesOf(cutCharacters(part)), what).toBe(cut)
      else expect(rangesOf(removedCharacters(normalizer!)), what).toBe(removed)
    }
  })

  it.runIf(current).each(Object.keys(golden.forms))('%s changes each character as in Python', (type) => {
    const normalize = readNormalizer(new Fields({ type }, 'normalizer', 'tokenizer.json'))
    for (const [row, sum] of golden.forms[type]!.entries()) {
      const characters = points(row * 256, row * 256 + 256).map((point) => String.fromCodePoint(point))
      const text = characters.map((c) => `${c} a${c}\u0334\u0301 `).join('')
      expect(crc32(normalize({ text, head: 0 }).text), `row ${(row * 256).toString(16)}`).toBe(sum)
    }
  })
})

function points(start: number, end: number): number[] {
  const row: number[] = []
  for (let point = start; point < end; point++) if (point < 0xd800 || point > 0xdfff) row.push(point)
  return row
}

/** Code points between two letters that do not stay in one piece with both. */
function cutCharacters(part: object): number[] {
  const split = readPreTokenizer(new Fields(part, 'pre_tokenizer', 'tokenizer.json'))
  const found: number[] = []
  for (let start = 0; start < 0x110000; start += 4096) {
    const row = points(start, start + 4096)
    const text = `a${row.map((point) => `${String.fromCodePoint(point)}a`).join('')}`
    const joined = new Uint8Array(text.length) // by position: whether it is in one piece with the position before
    let end = 0
    for (const piece of split({ text, head: 0 })) {
      const from = text.indexOf(piece.text, end)
      end = from + piece.text.length
      joined.fill(1, from + 1, end)
    }
    let at = 1
    for (const point of row) {
      const length = point > 0xffff ? 2 : 1
      if (joined[at] === 0 || joined[at + length] === 0) found.push(point)
      at += length + 1
    }
  }
  return found
}

function removedCharacters(part: object): number[] {
  const normalize = readNormalizer(new Fields(part, 'normalizer', 'tokenizer.json'))
  const changed = (text: string) => normalize({ text, head: 0 }).text
  const found = points(0, 256).filter((point) => changed(String.fromCodePoint(point)) === '')
  for (let start = 256; start < 0x110000; start += 256) {
    const row = points(start, start + 256)
    const texts = changed(row.map((point) => `${String.fromCodePoint(point)}|`).join('')).split('|')
    found.push(...row.filter((_, i) => texts[i] === ''))
  }
  return found
}

function rangesOf(row: readonly number[]): string {
  const ranges: [number, number][] = []
  for (const point of row) {
    const last = ranges.at(-1)
    if (last?.[1] === point - 1) last[1] = point
    else ranges.push([point, point])
  }
  return ranges.map(([a, b]) => (a === b ? a.toString(16) : `${a.toString(16)}-${b.toString(16)}`)).join(' ')
}

function equal(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((value, i) => value === b[i])
}

function grouped(cases: readonly Case[]): Map<string, Case[]> {
  const groups = new Map<string, Case[]>()
  for (const example of cases) {
    const kind = `${example.part} ${example.type}`
    const group = groups.get(kind)
    if (group === undefined) groups.set(kind, [example])
    else group.push(example)
  }
  return groups
}
