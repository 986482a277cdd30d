// A reporter for vitest.long.config.ts: the last result of every file of test/long, in docs/long-tests.md. Files that did not run keep their
// sections.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { join, relative } from 'node:path'
import type { Reporter, TestModule } from 'vitest/node'
import { longPage } from './page.js'

const root = join(import.meta.dirname, '..', '..')
const path = join(root, 'docs', 'long-tests.md')
const folder = join(root, 'test', 'long')

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
    const result = { file, purpose: purpose(file), lines: [sum, ...this.#printed], duration: duration(spent), where }
    const files = readdirSync(folder)
      .filter((name) => name.endsWith('.test.ts'))
      .sort()
      .map((name) => ({ file: `test/long/${name}`, purpose: purpose(`test/long/${name}`) }))
    writeFileSync(path, longPage(existsSync(path) ? readFileSync(path, 'utf8') : '', files, [result]))
  }
}
