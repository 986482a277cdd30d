// Pages whose tables and figures are generated.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * Writes a page's tables between their markers, and its figures.
 *
 * @param page its name in docs, without `.md`; figures go to docs/study
 * @returns the paths written, relative to `root`
 */
export function writePage(
  root: string,
  page: string,
  tables: Readonly<Record<string, string>>,
  figures: Readonly<Record<string, string>>,
): string[] {
  const document = join('docs', `${page}.md`)
  mkdirSync(join(root, 'docs', 'study'), { recursive: true })
  const paths = Object.entries(figures).map(([name, svg]) => {
    const path = join('docs', 'study', `${name}.svg`)
    writeFileSync(join(root, path), svg)
    return path
  })
  writeFileSync(join(root, document), fillTables(readFileSync(join(root, document), 'utf8'), tables))
  return [document, ...paths]
}

/**
 * Replaces the text between `<!-- table NAME -->` and `<!-- end -->`.
 *
 * @throws Error for a marker without a table, or a table without a marker
 */
export function fillTables(text: string, content: Readonly<Record<string, string>>): string {
  const placed = new Set<string>()
  const filled = text.replace(/<!-- table ([\w-]+) -->\n[\s\S]*?<!-- end -->/g, (_, name: string) => {
    if (content[name] === undefined) throw new Error(`the page has a place for table ${name}, which does not exist`)
    placed.add(name)
    return `<!-- table ${name} -->\n${content[name]}\n<!-- end -->`
  })
  const missing = Object.keys(content).filter((name) => !placed.has(name))
  if (missing.length > 0) throw new Error(`the page has no place for table ${missing.join(', ')}`)
  return filled
}
