// docs/long-tests.md: a section for every file of test/long. A run of some files replaces their sections.
import { wrapText } from '../../tools/wrap-text.mjs'

const head = `# Long tests

\`\`\`text
npm run test:long
npm run test:long -- test/long/kills.test.ts
\`\`\`

\`npm run test:long\` runs what takes minutes: soaks, kills, leaks, the emulator's full sweep. Everything else is in
\`npm test\`. It writes this page. A run of single files replaces their sections. A result that names a commit was
measured on that commit.
`

/** What a run of a file showed. */
export interface LongResult {
  file: string
  /** The comment at the beginning of the file. */
  purpose: string
  /** Counts of tests, then what they printed. */
  lines: readonly string[]
  /** Undefined for a file that has not run. */
  duration?: string
  where?: string
}

const item = (text: string) => wrapText(`* ${text}`, { indent: '  ' })

/** The section of a file, without the line break at its end. */
export function longSection({ file, purpose, lines, duration, where }: LongResult): string {
  const items = lines.flatMap((text) => text.split('\n')).filter((text) => text.trim() !== '')
  if (duration !== undefined) items.push(`Duration: ${duration}`)
  if (where !== undefined) items.push(where)
  return [`## ${file}`, '', wrapText(purpose), '', ...items.map((text) => item(text.trim()))].join('\n')
}

/** The page with the sections of `results`, and those of `before` for the other `files`; a file without either has not run yet. */
export function longPage(
  before: string,
  files: readonly { file: string; purpose: string }[],
  results: readonly LongResult[],
): string {
  const found = new Map(
    before
      .split(/^## /m)
      .slice(1)
      .map((section) => [section.slice(0, section.indexOf('\n')), `## ${section.trimEnd()}`]),
  )
  for (const result of results) found.set(result.file, longSection(result))
  const sections = files.map(({ file, purpose }) => found.get(file) ?? longSection({ file, purpose, lines: ['Not run yet.'] }))
  return `${[head.trimEnd(), ...sections].join('\n\n')}\n`
}
