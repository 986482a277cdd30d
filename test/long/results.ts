// A reporter for vitest.long.config.ts: the last result of every file of test/long, as a table in docs/long-tests.md. Files that did not
// run keep their rows.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { join, relative } from 'node:path'
import type { Reporter, TestModule } from 'vitest/node'

const root = join(import.meta.dirname, '..', '..')
const path = join(root, 'docs', 'long-tests.md')
const folder = join(root, 'test', 'long')

const head = `# Long tests

\`npm run test:long\` runs what takes minutes: soaks, kills, leaks, the emulator's full sweep. It writes this table; a run of single files
(\`npm run test:long -- test/long/kills.test.ts\`) replaces their rows; a row that names a commit was measured on that state. Everything else is in \`npm test\`.

| file | what it shows | result | duration | when and where |
| --- | --- | --- | --- | --- |
`

/** A text in one cell of the table. */
const cell = (text: string) => text.replaceAll('|', '\\|').replace(/\s*\n\s*/g, '<br>')

/** The rows of the table as it is, by file. */
function rows(): Map<string, string> {
  const text = existsSync(path) ? readFileSync(path, 'utf8') : ''
  return new Map([...text.matchAll(/^\| (test\/long\/\S+) \|.*$/gm)].map(([row, file]) => [file!, row]))
}

/** What the comment at the beginning of a file says. */
function purpose(file: string): string {
  const comment = /^(?:\/\/ .*\n)+/.exec(readFileSync(join(root, file), 'utf8'))?.[0] ?? ''
  return comment
    .replaceAll(/^\/\/ /gm, '')
    .replaceAll('\n', ' ')
    .trim()
}

function duration(milliseconds: number): string {
  const seconds = Math.round(milliseconds / 1000)
  return seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`
}

/** Writes docs/long-tests.md. */
export class LongTests implements Reporter {
  #printed: string[] = []

  onTestModuleStart(): void {
    this.#printed = [] // one file at a time
  }

  onUserConsoleLog({ type, content }: { type: string; content: string }): void {
    if (type === 'stdout') this.#printed.push(content.trim())
  }

  onTestModuleEnd(module: TestModule): void {
    const tests = [...module.children.allTests()]
    const count = (state: string) => tests.filter((test) => test.result().state === state).length
    const counts = ['passed', 'failed', 'skipped'].map((state) => [count(state), state] as const).filter(([number]) => number > 0)
    const sum = counts.map(([number, state]) => `${number} ${state}`).join(', ') || 'no test ran'
    const file = relative(root, module.moduleId)
    const { duration: spent } = module.diagnostic()
    const where = `${new Date().toISOString().slice(0, 10)}, Node ${process.version}, ${availableParallelism()} cores, ${cpus()[0]?.model ?? process.arch}`
    const found = rows()
    const cells = [file, purpose(file), cell([sum, ...this.#printed].join('\n')), duration(spent), cell(where)]
    found.set(file, `| ${cells.join(' | ')} |`)
    const files = readdirSync(folder)
      .filter((name) => name.endsWith('.test.ts'))
      .map((name) => `test/long/${name}`)
      .sort()
    const table = files.map((name) => found.get(name) ?? `| ${name} | ${cell(purpose(name))} | not run yet | | |`)
    writeFileSync(path, `${head}${table.join('\n')}\n`)
  }
}
