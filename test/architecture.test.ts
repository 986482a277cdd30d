import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { describe, expect, it } from 'vitest'

interface Row {
  /** Folders and files. */
  members: string[]
  /** First members of the rows that it may import. */
  allowed: string[]
}

/** The table of docs/architecture.md, from top to bottom. A row with an empty cell continues the row before. */
function readTable(): Row[] {
  const text = readFileSync('docs/architecture.md', 'utf8')
  const table = text.split('\n').slice(text.split('\n').indexOf('| folder | may import |') + 2)
  const lines = table.slice(0, table.indexOf(''))
  const rows: [string, string][] = []
  for (const line of lines) {
    const [, folders, allowed] = line.split('|').map((cell) => cell.trim())
    if (folders === '') rows.at(-1)![1] += `, ${allowed}`
    else if (allowed === '') rows.at(-1)![0] += `, ${folders}`
    else rows.push([folders!, allowed!])
  }
  const names = (cell: string) => [...cell.matchAll(/`([^`]+)`/g)].map(([, name]) => name!)
  const members = rows.map(([folders]) => names(folders))
  const resolve = (name: string) => {
    const candidates = [name, `src/${name}`, `src/${name}.ts`]
    const found = candidates.flatMap((candidate) => members.filter((row) => row.includes(candidate)))[0]
    if (found === undefined) throw new Error(`docs/architecture.md: no row for ${name}`)
    return found[0]!
  }
  return rows.map(([, allowed], i) => ({ members: members[i]!, allowed: names(allowed).map(resolve) }))
}

function filesOf(folder: string, extension: RegExp): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .map((name) => join(folder, name))
    .filter((name) => extension.test(name))
}

/** What each file imports, among `files`. */
type Imports = ReadonlyMap<string, readonly string[]>

function typescriptImports(): Imports {
  const files = filesOf('src', /\.ts$/)
  const from = (file: string) =>
    [...readFileSync(file, 'utf8').matchAll(/(?:from|import)\s*\(?\s*'(\.[^']+)\.js'/g)].map(([, path]) =>
      normalize(join(dirname(file), `${path}.ts`)),
    )
  return new Map(files.map((file) => [file, from(file)]))
}

function nativeIncludes(): Imports {
  const files = ['native', 'cuda'].flatMap((folder) => filesOf(folder, /\.(h|cpp|cu|cuh)$/))
  const known = new Set(files)
  const from = (file: string) =>
    [...readFileSync(file, 'utf8').matchAll(/^\s*#\s*include "([^"]+)"/gm)].flatMap(([, path]) => {
      const found = [dirname(file), '.'].map((folder) => normalize(join(folder, path!))).find((candidate) => known.has(candidate))
      return found ?? []
    })
  return new Map(files.map((file) => [file, from(file)]))
}

/** The row that a file belongs to: that of its own name, else of the nearest folder above it. */
function rowOf(file: string, rows: readonly Row[]): Row | undefined {
  for (let path = file; path !== '.'; path = dirname(path)) {
    const row = rows.find(({ members }) => members.includes(path))
    if (row !== undefined) return row
  }
  return undefined
}

function arrows(imports: Imports, rows: readonly Row[]) {
  const used = new Set<string>()
  const problems: string[] = []
  for (const [file, imported] of imports) {
    const row = rowOf(file, rows)
    if (row === undefined) problems.push(`${file} belongs to no row`)
    for (const other of imported) {
      const target = rowOf(other, rows)
      if (row === undefined || target === undefined || row === target) continue
      used.add(`${row.members[0]} -> ${target.members[0]}`)
      if (!row.allowed.includes(target.members[0]!)) problems.push(`${file} imports ${other}`)
    }
  }
  return { used, problems }
}

/** A circle of imports, file by file; undefined where there is none. */
function circle(imports: Imports): string[] | undefined {
  const done = new Set<string>()
  const visit = (file: string, above: readonly string[]): string[] | undefined => {
    if (above.includes(file)) return [...above.slice(above.indexOf(file)), file]
    if (done.has(file)) return undefined
    for (const other of imports.get(file) ?? []) {
      const found = visit(other, [...above, file])
      if (found !== undefined) return found
    }
    done.add(file)
    return undefined
  }
  for (const file of imports.keys()) {
    const found = visit(file, [])
    if (found !== undefined) return found
  }
  return undefined
}

describe.each([
  ['src', typescriptImports],
  ['native and cuda', nativeIncludes],
])('in %s', (_, read) => {
  const rows = readTable()
  const imports = read()

  it('files import only what docs/architecture.md allows', () => {
    expect(imports.size).toBeGreaterThan(100)
    expect(arrows(imports, rows).problems).toEqual([])
  })

  it('no files import each other in a cycle', () => {
    expect(circle(imports)).toBeUndefined()
  })
})

it('every folder of test/ has a counterpart in src/ or is a known exception', () => {
  const folders = (below: string) =>
    readdirSync(below, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? entry.name : []))
  const known = [...folders('src'), 'fixtures', 'long', 'realms']
  expect(folders('test').filter((name) => !known.includes(name))).toEqual([])
})

describe('the table of docs/architecture.md', () => {
  const rows = readTable()

  it('allows only imports that some file uses', () => {
    const used = new Set([...arrows(typescriptImports(), rows).used, ...arrows(nativeIncludes(), rows).used])
    const allowed = rows.flatMap(({ members, allowed }) => allowed.map((other) => `${members[0]} -> ${other}`))
    expect(allowed.filter((arrow) => !used.has(arrow))).toEqual([])
  })

  it('lets a row import only rows below it', () => {
    const order = rows.map(({ members }) => members[0]!)
    for (const { members, allowed } of rows) {
      const name = members[0]!
      if (name === 'cuda/emulator') continue // compiles the kernels that include it
      for (const other of allowed) expect(order.indexOf(other), `${name} -> ${other}`).toBeGreaterThan(order.indexOf(name))
    }
  })

  it('has checks that find an upward import and an import cycle', () => {
    const upward: Imports = new Map([['src/files/read.ts', ['src/rl/trainer.ts']]])
    expect(arrows(upward, rows).problems).toEqual(['src/files/read.ts imports src/rl/trainer.ts'])
    expect(
      circle(
        new Map([
          ['a', ['b']],
          ['b', ['c']],
          ['c', ['a']],
        ]),
      ),
    ).toEqual(['a', 'b', 'c', 'a'])
  })
})

/** Lines of a file that are neither empty nor a comment. */
function codeLines(file: string): string[] {
  const text = readFileSync(file, 'utf8').replaceAll(/^ *\/\*[\s\S]*?\*\/ *\n/gm, '')
  return text.split('\n').filter((line) => line.trim() !== '' && !line.trim().startsWith('//'))
}

/** A line, with the last line of its head if it begins a method with one parameter per line. */
function headAt(lines: readonly string[], start: number): string {
  const line = lines[start]!
  if (!/^ {2}[\w#*][^;=]*\((?:\{|\[)?$/.test(line)) return line
  const close = lines.findIndex((other, i) => i > start && /^ {2}\S/.test(other))
  return /^ {2}[)}\]].*\{$/.test(lines[close] ?? '') ? `${line} ${lines[close]!.trim()}` : line
}

/** Lines from each line that matches to the next one that closes it, at the same indentation. */
function lengthsOf(lines: readonly string[], opens: RegExp): [first: string, length: number][] {
  return [...lines.entries()]
    .filter(([start]) => opens.test(headAt(lines, start)))
    .map(([start, line]) => {
      const indentation = /^ */.exec(line)![0]
      const end = lines.findIndex((other, i) => i > start && other.startsWith(`${indentation}}`) && !/\{$/.test(other))
      return [line.trim(), end - start + 1]
    })
}

const method = /^ {2}(?!if|for|while|switch|return)(?:[a-z]+ )*\*?#?\w+(?:<.*>)?\(.*\{$/
const functions = new RegExp(`^(?:export )?(?:async )?function|${method.source}|^(?:export )?const \\w+ = .*=> \\{$`)

describe.each(filesOf('src', /\.ts$/))('%s', (file) => {
  const lines = codeLines(file)

  it('has no class over 300 lines and no function over 100, comments aside', () => {
    const classes = lengthsOf(lines, /^(?:export )?(?:abstract )?class /)
    expect(classes.filter(([, length]) => length > 300)).toEqual([])
    expect(lengthsOf(lines, functions).filter(([, length]) => length > 100)).toEqual([])
  })
})

it('the measured length of a method includes a head of several lines', () => {
  const long = [...Array(101)].map(() => '    work()')
  const run = ['  async run(', '    a: number,', '  ): Promise<void> {', ...long, '  }']
  const call = ['  work(', '    a,', '  )', ...long, '}']
  expect(lengthsOf(['class A {', ...run, '}', 'function b() {', ...call], functions)).toEqual([
    ['async run(', 105],
    ['function b() {', 106],
  ])
})

/** A block of C++ with its first line, comments aside: a function with its head, or a class. */
interface NativeBlock {
  head: string
  length: number
}

/** The blocks of a file that clang-format has formatted: a closing brace stands where its statement begins. */
function nativeBlocks(lines: readonly string[]): NativeBlock[] {
  const ends = (line: string) => /[;{}]$|^ *(?:public|protected|private):$|^#/.test(line.replace(/ *\/\/.*$/, ''))
  return [...lines.keys()].flatMap((at) => {
    if (!/\{(?: *\/\/.*)?$/.test(lines[at]!)) return []
    let start = at
    while (start > 0 && !ends(lines[start - 1]!)) start--
    const indentation = /^ */.exec(lines[start]!)![0]
    const end = lines.findIndex((line, i) => i > at && line.startsWith(`${indentation}}`))
    return [
      {
        head: lines
          .slice(start, at + 1)
          .join(' ')
          .trim(),
        length: end - start + 1,
      },
    ]
  })
}

// libstdc++ is inside the addon: streams and regular expressions bring 400 kB of locales.
it('no file of the addon includes streams, locales or regular expressions', () => {
  const heavy = /^\s*#\s*include <(?:[iof]?stream|sstream|iomanip|locale|regex|iostream|format)>/m
  const files = filesOf('native', /\.(h|cpp)$/).filter((file) => !file.startsWith('native/test/'))
  expect(heavy.test('#include <fstream>')).toBe(true)
  expect(files.filter((file) => heavy.test(readFileSync(file, 'utf8')))).toEqual([])
})

describe('in native/engine', () => {
  const blocks = filesOf('native/engine', /\.(h|cpp)$/).flatMap((file) => nativeBlocks(codeLines(file)))
  const isFunction = ({ head }: NativeBlock) => /\(/.test(head) && !/^(?:class|struct|enum|namespace|extern)\b/.test(head)

  it('no function has over 100 lines, comments aside', () => {
    const functions = blocks.filter(isFunction)
    expect(functions.length).toBeGreaterThan(500)
    expect(functions.filter(({ length }) => length > 100)).toEqual([])
  })

  it('no class has over 300 lines with all its members, comments aside', () => {
    const classes = blocks.flatMap(({ head, length }) => {
      const name = /^(?:class|struct) (\w+)/.exec(head)?.[1]
      if (name === undefined) return []
      const member = new RegExp(`^(?:[^(]*\\W)?${name}::(?:~?\\w+|operator\\W+)\\(`)
      const members = blocks.filter((block) => isFunction(block) && member.test(block.head))
      return [{ name, lines: members.reduce((sum, block) => sum + block.length, length) }]
    })
    expect(classes.length).toBeGreaterThan(100)
    expect(classes.filter(({ lines }) => lines > 300)).toEqual([])
  })

  it('the measured length of a function includes a head of two lines', () => {
    const long = [...Array(101)].map(() => '  x();')
    expect(nativeBlocks(['void Long::run(int a,', '               int b) {', ...long, '}'])).toEqual([
      { head: 'void Long::run(int a,                int b) {', length: 104 },
    ])
  })
})
