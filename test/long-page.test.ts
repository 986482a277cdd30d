// The page of the long tests: a run replaces the sections of its files and keeps the others.
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { longPage } from './long/page.js'

const files = ['a', 'b', 'c'].map((name) => ({ file: `test/long/${name}.test.ts`, purpose: `What ${name} shows.` }))
const result = (name: string, line: string) => ({
  ...{ file: `test/long/${name}.test.ts`, purpose: `What ${name} shows.`, lines: ['1 passed', line] },
  ...{ duration: '3 s', where: '2 cores' },
})

describe('the page of the long tests', () => {
  it('has a section for every file, also for one that has not run', () => {
    const page = longPage('', files, [result('b', `${'word '.repeat(40)}end`)])
    expect(page).toContain('## test/long/a.test.ts\n\nWhat a shows.\n\n* Not run yet.\n\n## test/long/b.test.ts')
    expect(page).toContain('end\n* Duration: 3 s\n* 2 cores\n\n## test/long/c.test.ts')
    for (const line of page.split('\n')) expect(line.length).toBeLessThanOrEqual(120)
  })

  it('keeps sections of files that did not run, and drops those of deleted files', () => {
    const before = longPage('', files, [result('a', 'first'), result('b', 'second'), result('c', 'third')])
    const page = longPage(before, files.slice(0, 2), [result('b', 'again')])
    expect(page).toBe(longPage('', files.slice(0, 2), [result('a', 'first'), result('b', 'again')]))
    expect(longPage(page, files.slice(0, 2), [])).toBe(page)
  })

  it('stays unchanged when no file has run', () => {
    const page = readFileSync('docs/long-tests.md', 'utf8')
    const found = [...page.matchAll(/^## (\S+)$/gm)].map(([, file]) => ({ file: file!, purpose: 'lost' }))
    expect(found.length).toBeGreaterThan(10)
    expect(longPage(page, found, [])).toBe(page)
  })
})
