// Every part of a tokenizer.json does what it does in Python's tokenizers 0.23.2, which wrote the golden file
// (tools/tokenizer-fixtures.py), or is refused by name. docs/tokenizers.md has the table.
import { readFileSync } from 'node:fs'
import { crc32, gunzipSync } from 'node:zlib'
import { describe, expect, it } from 'vitest'
import { Tokenizer } from '../../src/data/tokenizer.js'
import { parseTokenizerJson } from '../../src/data/tokenizer-json.js'
import { Fields } from '../../src/tokenizer/fields.js'
import { readNormalizer } from '../../src/tokenizer/normalizers.js'
import { Pipeline } from '../../src/tokenizer/pipeline.js'
import { readPreTokenizer } from '../../src/tokenizer/pre-tokenizers.js'
import { refusal } from '../refusal.js'

interface Case {
  part: string
  type: string
  tokenizer: { model: unknown }
  /** Of encoding: by text; null where Python fails. */
  ids?: (number[] | null)[]
  addSpecialTokens?: boolean
  /** Of models: number and hash of the ids of long texts. */
  long?: [count: number, hash: number][]
  /** Of decoding: ids, skipSpecialTokens, text. */
  texts?: [number[], boolean, string][]
}

interface Golden {
  characters: object
  texts: string[]
  cases: Case[]
  /** First characters of the rows of 256 that follow. */
  rows: number[]
  classes: { part?: object; cut?: string; normalizer?: object; removed?: string }[]
  forms: Record<string, number[]>
}

const file = new URL('../fixtures/tokenizers.json.gz', import.meta.url)
const golden = JSON.parse(gunzipSync(readFileSync(file)).toString()) as Golden
const json = ({ tokenizer }: Case) => (tokenizer.model === 'characters' ? { ...tokenizer, model: golden.characters } : tokenizer)

/** Golden cases that are refused, with what the error says. */
const refused: [isIt: (content: string) => boolean, message: RegExp][] = [
  [(content) => content.includes('"UnicodeScripts"'), /field "pre_tokenizer.type" is "UnicodeScripts", which is not supported/],
  [
    (content) => /"\(\?i\)(?:CAF|\\\\w)/.test(content),
    /field "pre_tokenizer[.\w]*pattern\.Regex" "\(\?i\).* where case is ignored is not supported/,
  ],
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

  it('docs/tokenizers.md lists the result of each part', () => {
    const document = readFileSync(new URL('../../docs/tokenizers.md', import.meta.url), 'utf8')
    for (const row of table) expect(document).toContain(row)
    expect(table.length).toBe(kinds.size)
  })
})

describe('long texts', () => {
  const models = golden.cases.filter(({ long }) => long !== undefined)
  const texts = [
    'a'.repeat(20_000),
    'ab '.repeat(7_000),
    'the theatre '.repeat(2_000),
    golden.texts.join('').repeat(3),
    '漢é😀'.repeat(2_000),
  ]

  it('have the same tokens as in Python, encoded synchronously and asynchronously', async () => {
    expect(new Set(models.map(({ type }) => type))).toEqual(new Set(['BPE', 'WordPiece', 'WordLevel', 'Unigram']))
    for (const example of models) {
      const tokenizer = new Tokenizer(json(example))
      for (const [i, expected] of example.long!.entries()) {
        for (const ids of [tokenizer.encode(texts[i]!), await tokenizer.encodeAsync(texts[i]!)]) {
          expect([ids.length, crc32(ids.join())], `${example.type}, text ${i}`).toEqual(expected)
        }
      }
    }
  })

  it.each(['BPE', 'WordPiece', 'WordLevel', 'Unigram'])('of twice the length take at most about twice the steps: %s', (type) => {
    let most = 0
    for (const { tokenizer } of models.filter((example) => example.type === type)) {
      const { vocab, addedTokens, tokenizer: read } = parseTokenizerJson(tokenizer, 'tokenizer.json')
      const pipeline = new Pipeline(read, vocab, addedTokens, 'tokenizer.json')
      const steps = (text: string) => Array.from({ [Symbol.iterator]: () => pipeline.encode(text, false) }).length
      for (const part of ['a', 'ab ', 'the theatre ', '漢é😀']) {
        const text = part.repeat(Math.ceil(10_000 / part.length))
        // A queue's operations per piece are n log n at most; a turn ends after a fixed number of them
        const once = steps(text)
        most = Math.max(most, once)
        expect(steps(text + text), `${type} ${part}`).toBeLessThanOrEqual(2.2 * once + 2)
      }
    }
    expect(most).toBeGreaterThan(6) // turns that nobody ends would be one step of any length
  })

  it('do not block the event loop while they are encoded', async () => {
    const { tokenizer } = models.find(({ type }) => type === 'BPE')!
    let turns = 0
    let open = true
    const tick = () => {
      turns++
      if (open) setImmediate(tick)
    }
    setImmediate(tick)
    await new Tokenizer(tokenizer).encodeAsync('a'.repeat(1_000_000))
    open = false
    expect(turns).toBeGreaterThan(3)
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
    for (const [i, sum] of golden.forms[type]!.entries()) {
      const characters = rows[i]!.map((point) => String.fromCodePoint(point))
      const text = characters.map((c) => `${c} a${c}\u0334\u0301 `).join('')
      expect(crc32(normalize({ text, head: 0 }).text), `row ${golden.rows[i]!.toString(16)}`).toBe(sum)
    }
  })
})

/** The code points of a row of 256 without surrogates. */
function points(start: number): number[] {
  return Array.from({ length: 256 }, (_, i) => start + i).filter((point) => point < 0xd800 || point > 0xdfff)
}

/** The code points of every row, and a text of them in which a string follows each. */
const rows = golden.rows.map(points)
const followedBy = (between: string) => rows.map((row) => row.map((point) => String.fromCodePoint(point) + between).join(''))
const [letters, bars] = [followedBy('a'), followedBy('|')]

/** Code points between two letters that do not stay in one piece with both. */
function cutCharacters(part: object): number[] {
  const split = readPreTokenizer(new Fields(part, 'pre_tokenizer', 'tokenizer.json'))
  const found: number[] = []
  for (const [i, row] of rows.entries()) {
    const text = `a${letters[i]}`
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
  const found = rows[0]!.filter((point) => changed(String.fromCodePoint(point)) === '')
  for (let i = 1; i < rows.length; i++) {
    const texts = changed(bars[i]!).split('|')
    found.push(...rows[i]!.filter((_, at) => texts[at] === ''))
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
