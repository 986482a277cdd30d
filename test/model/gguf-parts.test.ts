// GGUF models in several files, and with queries, keys and values in one tensor: the same models, to the last bit.
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type GenerateOptions, LoopLM } from '../../src/index.js'
import {
  type Entry,
  fuseQkv,
  ggufMetadata,
  ggufName,
  ggufTensors,
  type Metadata,
  randomData,
  writeGguf,
  writeGgufParts,
} from '../gguf-file.js'
import { refusal } from '../refusal.js'
import { readTensors } from '../stored-tensors.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-gguf-parts-'))
})
afterAll(() => rm(root, { recursive: true, force: true }))

const fixture = (...parts: string[]) => join(import.meta.dirname, '../fixtures', ...parts)
const sequences = [
  [1, 2, 3, 4, 5, 6],
  [7, 8, 9],
]

/** All parameters, the scores and a text of a model. */
async function facts(path: string) {
  using model = await LoopLM.fromPretrained(path)
  const parameters: Record<string, number[]> = {}
  for (const { name } of model.parameters()) parameters[name] = [...(await model.getParameter(name))]
  const options: GenerateOptions = { maxNewTokens: 6, temperature: 0, stop: [] }
  const { quantization, dtype, config } = model
  const scores = await model.score(sequences)
  return { parameters, scores, text: await model.generate([[1, 2, 3]], options), quantization, dtype, config }
}

interface Case {
  what: string
  metadata: Metadata
  entries: Entry[]
}

async function fromFixture(family: 'ouro' | 'nanbeige', ...folder: string[]): Promise<Case> {
  const config = JSON.parse(await readFile(join(fixture(...folder), 'config.json'), 'utf8'))
  const headDim = config.head_dim ?? config.hidden_size / config.num_attention_heads
  const entries = ggufTensors(family, readTensors(join(fixture(...folder), 'model.safetensors')), headDim)
  return { what: folder.join('-'), metadata: ggufMetadata(family, config), entries }
}

/** Fewer key heads than query heads, so that the parts of a fused tensor differ. */
const sizes = { vocab_size: 40, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, total_ut_steps: 3 }
async function ofType(type: string): Promise<Case> {
  const config = { ...sizes, num_attention_heads: 4, num_key_value_heads: 2, looplm_exit_gate: false }
  using model = await LoopLM.create(config as never)
  const entries = model.parameters().map(({ name, shape }, i): Entry => {
    const own = shape.length > 1 ? type : 'F32'
    const count = shape.reduce((a, b) => a * b, 1)
    return { name: ggufName('ouro', name)!, type: own, shape: [...shape], data: randomData(own, count, i + 1) }
  })
  return { what: type, metadata: ggufMetadata('ouro', config), entries }
}

describe.each([
  ['ouro, grouped queries', () => fromFixture('ouro', 'gqa')],
  ['nanbeige', () => fromFixture('nanbeige', 'families', 'nanbeige')],
  ['nanbeige with biases', () => fromFixture('nanbeige', 'families', 'nanbeige_flags')],
  ['F16', () => ofType('F16')],
  ['BF16', () => ofType('BF16')],
  ['Q8_0', () => ofType('Q8_0')],
  ['Q4_0', () => ofType('Q4_0')],
] as const)('%s', (title, make) => {
  let made: Case
  let whole: Awaited<ReturnType<typeof facts>>
  const name = title.replaceAll(/\W+/g, '-')
  beforeAll(async () => {
    made = await make()
    whole = await facts(await writeGguf(join(root, `${name}.gguf`), made.metadata, made.entries))
  })

  it('is the same model in several parts, whichever part is named', async () => {
    const paths = await writeGgufParts(join(root, name), made.metadata, made.entries, { perPart: 5 })
    expect(paths.length).toBeGreaterThan(2)
    for (const path of [paths[0]!, paths.at(-1)!]) expect(await facts(path)).toEqual(whole)
  })

  it('is the same model in a folder whose first part has no tensors', async () => {
    const folder = join(root, `${name}-folder`)
    await mkdir(folder)
    await writeGgufParts(join(folder, 'model'), made.metadata, made.entries, { perPart: 9, emptyFirst: true })
    expect(await facts(folder)).toEqual(whole)
  })

  it('is the same model with queries, keys and values in one tensor', async () => {
    const fused = fuseQkv(made.entries)
    expect(fused.length).toBeLessThan(made.entries.length)
    expect(await facts(await writeGguf(join(root, `${name}-fused.gguf`), made.metadata, fused))).toEqual(whole)
    const [first] = await writeGgufParts(join(root, `${name}-fused`), made.metadata, fused, { perPart: 6 })
    expect(await facts(first!)).toEqual(whole)
  })
})

describe('parts of a GGUF file', () => {
  let paths: string[]
  let made: Case
  beforeAll(async () => {
    made = await ofType('Q8_0')
    paths = await writeGgufParts(join(root, 'broken'), made.metadata, made.entries, { perPart: 9 })
    expect(paths.length).toBe(3)
  })

  /** The parts in a folder where one of them is replaced or, without a source, missing. */
  async function folderWith(name: string, number: number, source?: string): Promise<string> {
    const folder = join(root, `broken-${name}`)
    await mkdir(folder)
    for (const [i, path] of paths.entries()) {
      const from = i === number - 1 ? source : path
      if (from !== undefined) await copyFile(from, join(folder, basename(path)))
    }
    return folder
  }
  const refused = (path: string) => refusal(() => LoopLM.fromPretrained(path))

  it.each([1, 2, 3])('are rejected with the path of the missing part %i', async (number) => {
    const folder = await folderWith(`missing-${number}`, number)
    const { code, message } = await refused(folder)
    expect(code).toBe('NOT_FOUND')
    expect(message).toContain(`part ${number} is missing: put ${join(folder, basename(paths[number - 1]!))} beside it`)
  })

  it('are rejected if one is of another model or appears twice', async () => {
    const others = await writeGgufParts(join(root, 'other'), made.metadata, made.entries.slice(1), { perPart: 9 })
    const other = await refused(await folderWith('other', 2, others[1]!))
    expect(other.code).toBe('INVALID_FILE')
    expect(other.message).toMatch(/broken-00002-of-00003\.gguf: its keys say part 2 of 3, with \d+ tensors in all/)
    expect((await refused(await folderWith('twice', 2, paths[2]!))).message).toMatch(/its keys say part 3 of 3/)
  })

  it.each([
    ['in two parts', 8, 17, () => /tensor ".*" is also in .*broken-in-two-parts.broken-00001-of-00003/],
    ['in none', 10, 18, () => new RegExp(`have ${made.entries.length - 1} tensors, their keys say ${made.entries.length}`)],
  ])('are rejected if a tensor is %s', async (what, from, to, message) => {
    const split: Metadata = { 'split.no': ['u16', 1], 'split.count': ['u16', 3] }
    const total: Metadata = { 'split.tensors.count': ['i32', made.entries.length] }
    const second = await writeGguf(join(root, `${what}.gguf`), { ...split, ...total }, made.entries.slice(from, to))
    const { code, message: said } = await refused(await folderWith(what.replaceAll(' ', '-'), 2, second))
    expect(code).toBe('INVALID_FILE')
    expect(said).toMatch(message())
  })

  it('are rejected by name if one is cut short', async () => {
    const bytes = await readFile(paths[1]!)
    const cut = join(root, 'cut.gguf')
    await writeFile(cut, bytes.subarray(0, bytes.length - 64))
    const { code, message } = await refused(await folderWith('cut', 2, cut))
    expect(code).toBe('INVALID_FILE')
    expect(message).toMatch(/broken-00002-of-00003\.gguf: tensor .* cut short/)
  })
})
