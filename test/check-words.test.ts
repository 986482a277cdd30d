// The rules of style that tools/check-words.mjs holds documents to: each fails on a bad text and passes a good one.
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { complaints, prose, sentences } from '../tools/check-words.mjs'

const words = (count: number) => `${Array.from({ length: count }, (_, i) => `w${i}`).join(' ')}.`

describe('the limit on line length', () => {
  it('is 120 bytes in documents, also in tables and code blocks', () => {
    const long = `${'é'.repeat(60)}x` // 61 characters, 121 bytes
    for (const text of [long, `| ${long} |`, `\`\`\`ts\n${long}\n\`\`\``])
      expect(complaints('docs/study.md', text).map((line) => line.replace(/^\S+ /, ''))).toEqual([
        expect.stringMatching(/^a line of 12[1-5] bytes; at most 120$/),
      ])
    expect(complaints('docs/study.md', 'é'.repeat(60))).toEqual([])
  })

  it('does not apply to code files', () => {
    expect(complaints('src/a.ts', 'x'.repeat(300))).toEqual([])
  })
})

describe('the limit on sentence length', () => {
  it('is 30 words in README and the guide', () => {
    for (const path of ['README.md', 'CONTRIBUTING.md', 'docs/training.md'])
      expect(complaints(path, `Short.\n\n* ${words(31).replace(/(w1.) /, '$1\n  ')}`)).toEqual([
        expect.stringMatching(/^\S+:3: a sentence of 31 words; at most 30: "w0 w1/),
      ])
    expect(complaints('README.md', words(30).replace('w9 ', 'w9\n'))).toEqual([])
  })

  it('counts each table cell separately', () => {
    expect(complaints('README.md', `| ${words(20)} | ${words(20).slice(0, 40)} |`)).toEqual([])
    expect(complaints('README.md', `| a |\n| - |\n| ${words(31)} |`.replaceAll('w1', 'v'))).toHaveLength(1)
  })

  it('does not apply to other documents and code blocks', () => {
    expect(complaints('docs/study.md', words(31).replace('w9 ', 'w9\n'))).toEqual([])
    expect(complaints('README.md', `\`\`\`text\n${words(31).replace('w9 ', 'w9\n')}\n\`\`\``)).toEqual([])
  })

  it('splits sentences at a full stop before a capital, a digit, code, or looplm', () => {
    expect(sentences('One is e.g. this. Two (three.) 4 four! code five? looplm six.')).toEqual([
      'One is e.g. this.',
      'Two (three.)',
      '4 four!',
      'code five?',
      'looplm six.',
    ])
  })

  it('counts code and formulas as one word each, and a link by its text', () => {
    expect(prose('Use `a b c` and $x + y$ of [the page](https://a.b/c d).')).toEqual([
      { line: 1, text: 'Use code and formula of the page.' },
    ])
  })
})

describe('discouraged phrases', () => {
  it.each([
    ['leave it away', 'omit'],
    ['say X too', 'set'],
    ['is dearer', 'more expensive'],
    ['the likeliest token', 'most likely'],
    ['a request that was given up', 'stopped'],
    ['a thread of its own', 'own'],
    ['whatever it is', 'any'],
    ['what is left of it', 'the rest of'],
    ['that of which', 'whose'],
    ['memory that cannot be had', 'available'],
  ])('"%s" is found in every kind of file, also across lines of a comment', (phrase, instead) => {
    const broken = `// A ${phrase.replace(/ (\S+)$/, '\n// $1')}.`
    for (const [path, text] of [
      ['docs/study.md', `A ${phrase}.`],
      ['src/a.ts', broken],
    ])
      expect(complaints(path!, text!)).toEqual([expect.stringMatching(new RegExp(`^${path}:[12]: ".*better: .*${instead}`))])
  })

  it('do not include "of its own" before a noun', () => {
    expect(complaints('src/a.ts', 'the gradients of its own sequences, of their own 3 loops')).toEqual([])
    expect(complaints('src/a.ts', 'a state of its own and more')).toHaveLength(1)
  })
})

describe('the program', () => {
  const tool = join(import.meta.dirname, '..', 'tools', 'check-words.mjs')

  it('checks the given paths, by default the whole repository, and fails on a complaint', () => {
    const folder = mkdtempSync(join(tmpdir(), 'looplm-words-'))
    try {
      execFileSync('git', ['init', '-q'], { cwd: folder })
      writeFileSync(join(folder, 'good.md'), 'Fine.\n')
      writeFileSync(join(folder, 'bad.md'), 'This is dearer.\n')
      writeFileSync(join(folder, 'picture.svg'), 'dearer')
      execFileSync('git', ['add', '.'], { cwd: folder })
      const run = (...paths: string[]) => spawnSync(process.execPath, [tool, ...paths], { cwd: folder, encoding: 'utf8' })
      expect(run('good.md')).toMatchObject({ status: 0, stderr: '' })
      for (const paths of [['bad.md'], []]) {
        const { status, stderr } = run(...paths)
        expect([status, stderr]).toEqual([1, expect.stringMatching(/^bad\.md:1: "dearer"; better: .*\n1 complaints\./)])
      }
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})
