// Tables and figures of docs/study.md, from the stored metrics alone.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Results } from './comparisons.js'
import { figures } from './figures.js'
import { tables } from './tables.js'

/** Writes docs/study.md's tables between their marks and its figures beside it; returns the paths written, relative to `root`. */
export function writeReport(root: string, results: Results): string[] {
  const document = join('docs', 'study.md')
  const drawn = figures(results)
  mkdirSync(join(root, 'docs', 'study'), { recursive: true })
  for (const [name, svg] of Object.entries(drawn)) writeFileSync(join(root, 'docs', 'study', `${name}.svg`), svg)
  const text = readFileSync(join(root, document), 'utf8')
  writeFileSync(join(root, document), fillTables(text, tables(results)))
  return [document, ...Object.keys(drawn).map((name) => join('docs', 'study', `${name}.svg`))]
}

/**
 * Replaces what stands between `<!-- table NAME -->` and `<!-- end -->`.
 *
 * @throws Error for a name without a table, or a table without a place
 */
export function fillTables(text: string, content: Readonly<Record<string, string>>): string {
  const placed = new Set<string>()
  const filled = text.replace(/<!-- table ([\w-]+) -->\n[\s\S]*?<!-- end -->/g, (_, name: string) => {
    if (content[name] === undefined) throw new Error(`docs/study.md has a place for table ${name}, which does not exist`)
    placed.add(name)
    return `<!-- table ${name} -->\n${content[name]}\n<!-- end -->`
  })
  const missing = Object.keys(content).filter((name) => !placed.has(name))
  if (missing.length > 0) throw new Error(`docs/study.md has no place for table ${missing.join(', ')}`)
  return filled
}
