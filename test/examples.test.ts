// Every example that a user can copy: README's and docs' code runs, docstrings' and examples/ compile.
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import * as looplm from '../src/index.js'

const root = join(import.meta.dirname, '..')
mkdirSync(join(root, 'runs'), { recursive: true })
const folder = mkdtempSync(join(root, 'runs', 'examples-')) // inside the checkout, where the compiler finds the types of node
const start = process.cwd()
beforeAll(() => process.chdir(folder))
afterAll(() => {
  process.chdir(start)
  rmSync(folder, { recursive: true })
})

/** Paths below `folder` that end so, relative to the checkout. */
const files = (below: string, end: string) =>
  readdirSync(join(root, below), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith(end))
    .map((name) => join(below, name))

const publicNames = Object.keys(looplm)
const blocks = (text: string) => [...text.matchAll(/^```ts\n([\s\S]*?)^```/gm)].map((match) => match[1]!)
const documents = ['README.md', ...files('docs', '.md')].map((name) => ({
  name,
  blocks: blocks(readFileSync(join(root, name), 'utf8')),
}))

/** What docstrings may take for granted. */
const context = `
declare const model: looplm.LoopLM
declare const trainer: looplm.RLTTTrainer
declare const task: looplm.Task
declare const tokenizer: looplm.Tokenizer
declare const sequences: number[][]
declare const promptLengths: number[]
declare const coefficients: Float32Array[]
declare const dataset: looplm.Dataset
declare const hidden: looplm.Tensor<'float32'>
declare const headWeight: looplm.Tensor<'float32'>
declare const targets: looplm.Tensor<'int32'>
declare const weights: looplm.Tensor<'float32'>
declare const advantages: looplm.Tensor<'float32'>
declare const mask: looplm.Tensor<'float32'>
declare const writeFile: (path: string, text: string) => Promise<void>
`

/** The @example of every docstring below src/, as one module that compiles where it stands. */
function docstringExamples(): { name: string; text: string }[] {
  return files('src', '.ts').flatMap((file) => {
    const source = readFileSync(join(root, file), 'utf8')
    const own = [...source.matchAll(/^export (?:abstract )?(?:async )?(?:function\*? |class |const )(\w+)/gm)].map(
      (match) => match[1]!,
    )
    const examples = [...source.matchAll(/@example\s*\n\s*\* ```ts\n([\s\S]*?)\n\s*\* ```/g)]
    return examples.map((match, i) => {
      const lines = match[1]!.split('\n').map((line) => line.replace(/^\s*\* ?/, ''))
      const imports = lines.filter((line) => line.startsWith('import '))
      const imported = imports.join(' ')
      const free = (name: string) => !new RegExp(`\\b${name}\\b`).test(imported)
      const inner = own.filter((name) => !publicNames.includes(name)).filter(free)
      const text = [
        "import * as looplm from 'looplm'",
        `import { ${publicNames.filter(free).join(', ')} } from 'looplm'`,
        ...(inner.length > 0
          ? [`import { ${inner.join(', ')} } from '${relative(folder, join(root, file)).replace(/\.ts$/, '.js')}'`]
          : []),
        ...imports,
        context,
        'export async function example() {',
        ...lines.filter((line) => !line.startsWith('import ')),
        '}',
      ]
      return { name: `${file.replaceAll('/', '-').replace(/\.ts$/, '')}-${i}.ts`, text: text.join('\n') }
    })
  })
}

describe('examples', () => {
  it('of docstrings and of examples/ compile', { timeout: 120_000 }, () => {
    const examples = docstringExamples()
    expect(examples.length).toBeGreaterThan(30)
    for (const { name, text } of examples) writeFileSync(join(folder, name), text)
    const config = {
      extends: relative(folder, join(root, 'tsconfig.json')),
      compilerOptions: {
        noEmit: true,
        noUncheckedIndexedAccess: false, // a docstring indexes what its reader knows to be there
        rootDir: relative(folder, root),
        paths: { looplm: [`./${relative(folder, join(root, 'src/index.ts'))}`] },
      },
      include: ['*.ts', relative(folder, join(root, 'examples/*.ts'))],
    }
    writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config))
    let output = ''
    try {
      execFileSync(join(root, 'node_modules/.bin/tsc'), ['-p', join(folder, 'tsconfig.json')], { encoding: 'utf8' })
    } catch (error) {
      output = (error as { stdout: string }).stdout
    }
    expect(output).toBe('')
  })

  it.each([
    ['fastify', /^8 answers; the fourth has \d+ tokens.*\ntrue\n$/],
    ['openai-client', /^whole: [\s\S]*mean_loops: [\d.]+[\s\S]*streamed the same text: true\n$/],
    ['worker', /^(\w+ → 16 tokens, mean log-probability -[\d.]+: .*\n){3}$/],
    ['vectors', /^states 4 × 7 × 64; .*: true\nagrees with score\(\): true\n$/],
  ])('examples/%s.ts runs', (name, said) => {
    const program = join(root, 'dist', 'examples', `${name}.js`)
    expect(execFileSync(process.execPath, [program], { encoding: 'utf8' })).toMatch(said)
  })

  for (const document of documents.filter((d) => d.blocks.length > 0))
    it.each(document.blocks.map((text, i) => [i, text] as const))(`of ${document.name}, block %i, runs`, async (i, text) => {
      const file = join(folder, `${document.name.replaceAll(/\W/g, '-')}-${i}.ts`)
      writeFileSync(file, text)
      const said: unknown[] = []
      const log = console.log
      console.log = (...values: unknown[]) => said.push(values)
      try {
        await import(file)
      } finally {
        console.log = log
      }
      expect(said.length).toBeGreaterThan(0)
    })
})
