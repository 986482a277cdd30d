// Holds documents to the rules of style that a program can check: lines of at most 120 bytes in every document, sentences
// of at most 30 words in README and the guide, and none of the phrases that readers stumbled over, anywhere.
// `node tools/check-words.mjs docs README.md` checks these alone.
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const longestLine = 120
const longestSentence = 30
/** The guide: README and the pages that the package carries. The others are for those who change looplm. */
const { files: packed } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))
const isGuide = (path) => path === 'README.md' || (path.startsWith('docs/') && !packed.includes(`!${path}`))

/** Words that follow a noun: after "of its own" they show that no noun comes. */
const joining =
  'a|after|alone|and|are|as|at|because|before|beside|besides|but|by|can|does|for|from|has|have|if|in|instead|is|it|may|of|on|or|so|than|that|the|then|to|under|when|where|which|while|with|without'

/** What stands in place of each phrase. A phrase is matched whatever its case; a space matches a line break. */
const phrases = [
  [/\b(leaves?|leaving|left) (\S+ )?away\b/, 'omit'],
  [/\bsay \S+ too\b/, 'set … as well, or: also set'],
  [/\bdearer\b/, 'more expensive, slower'],
  [/\blikeliest\b/, 'most likely'],
  [/\bgiven up\b/, 'stopped, cancelled, dropped'],
  // "of its own tokens" is plain, "a state of its own" is not
  [new RegExp(`\\bof (its|their|your|his|our|my|one's) own(?=( )?$|( )?[^\\w\\s/*#]| (${joining})\\b)`), 'own, separate'],
  [/\bwhatever (it|they) (is|are)\b/, 'any'],
  [/\bwhat is left of\b/, 'the rest of'],
  [/\bthat of which\b/, 'whose'],
  [/\bcan(not)? be had\b/, 'is (not) available, can(not) be allocated'],
]

/** The prose of a Markdown text: paragraphs, list items and table cells with their first line, without code, comments and links' targets. */
export function prose(text) {
  const parts = []
  let lines = []
  let first = 1
  const close = () => {
    if (lines.length > 0) parts.push({ line: first, text: lines.join(' ') })
    lines = []
  }
  let fence
  for (const [index, raw] of text.split('\n').entries()) {
    const mark = /^\s*(```+|~~~+)/.exec(raw)?.[1]
    if (fence !== undefined) {
      if (mark?.startsWith(fence)) fence = undefined
      continue
    }
    if (mark !== undefined) {
      close()
      fence = mark
      continue
    }
    const line = raw.replace(/<!--.*?-->/g, '').trim()
    if (line === '' || line.startsWith('#') || line.startsWith('<')) close()
    else if (line.startsWith('|')) {
      close()
      for (const cell of line.replaceAll('\\|', '/').split('|'))
        if (cell.trim() !== '') parts.push({ line: index + 1, text: cell.trim() })
    } else {
      if (/^([*+-]|\d+\.)\s/.test(line)) close()
      if (lines.length === 0) first = index + 1
      lines.push(line.replace(/^([*+-]|\d+\.|>)\s+/, ''))
    }
  }
  close()
  return parts.map(({ line, text }) => ({
    line,
    text: text
      .replace(/`[^`]*`/g, 'code')
      .replace(/!?\[([^\]]*)\]\([^)]*\)/g, '$1')
      .replace(/\$[^$]*\$/g, 'formula'),
  }))
}

/** The sentences of a paragraph. */
export function sentences(text) {
  return text.split(/(?<=[.!?][)"*_]*)\s+(?=["(*_]*[A-Z0-9`]|code|looplm)/)
}

/** What is wrong with a document, as `line: why`. */
export function complaints(path, text) {
  const found = []
  if (path.endsWith('.md')) {
    for (const [index, line] of text.split('\n').entries())
      if (Buffer.byteLength(line) > longestLine)
        found.push([index + 1, `a line of ${Buffer.byteLength(line)} bytes; at most ${longestLine}`])
    if (path === 'CONTRIBUTING.md' || isGuide(path))
      for (const part of prose(text))
        for (const sentence of sentences(part.text)) {
          const words = sentence.split(/\s+/).filter((word) => /[\p{L}\p{N}]/u.test(word)).length
          if (words > longestSentence)
            found.push([part.line, `a sentence of ${words} words; at most ${longestSentence}: "${sentence.slice(0, 80)}…"`])
        }
  }
  for (const [pattern, instead] of phrases) {
    const source = pattern.source.replaceAll(' ', '[\\s/*#]+')
    for (const match of text.matchAll(new RegExp(source, 'gi'))) {
      const line = text.slice(0, match.index).split('\n').length
      found.push([line, `"${match[0].replace(/\s+/g, ' ')}"; better: ${instead}`])
    }
  }
  return found.sort(([a], [b]) => a - b).map(([line, why]) => `${path}:${line}: ${why}`)
}

/** Files whose text is checked. */
const checked = /\.(md|ts|mts|mjs|cpp|h|cu|cuh|py|yaml|yml|txt)$/

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const files = execFileSync('git', ['ls-files', '--', ...process.argv.slice(2)])
    .toString()
    .split('\n')
    .filter((path) => checked.test(path) && path !== 'tools/check-words.mjs' && !path.startsWith('test/check-words'))
  const all = files.flatMap((path) => complaints(path, readFileSync(path, 'utf8')))
  for (const line of all) console.error(line)
  if (all.length > 0) {
    console.error(`${all.length} complaints. The rules are in tools/check-words.mjs.`)
    process.exitCode = 1
  }
}
