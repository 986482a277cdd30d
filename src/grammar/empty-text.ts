// The grammar library (0.1.27) reads outside its memory where a rule is the empty text several times. Whether that ends it depends
// on what its memory holds, and trying a grammar does not find it. So rules are rewritten before they reach the library.

/** A string, a class or a comment, in which the signs of the notation mean nothing. */
const opaque = /"(?:[^"\\\n]|\\.)*"|\[(?:[^\]\\\n]|\\.)*\]|#[^\n]*/g

const never = /(?:[\w.-]+|\ue000\d+\ue001|"") ?\{\s?0+\s?(?:,\s?0+\s?)?\}/g
const several = /""\s?(?:[*+?]|\{\s?\d+\s?(?:,\s?\d*\s?)?\}|"")/g
const emptyGroup = /\(\s?""(?:\s?\|\s?"")*\s?\)/g
const group = /\([^()]*\)/g
const emptyRule = /(?<=^|\n)([\w.-]+)\s?::=\s?""(?:\s?\|\s?"")*(?=\s?$|\n[\w.-]+\s?::=)/g
const used = /(?<![\w.-])[\w.-]+(?![\w.-]|\s?::=)/g
const mostRounds = 100 // more levels than the library can nest

/** Rules of the same texts that do not repeat the empty text, as far as their form tells. */
export function withoutRepeatedEmptyText(ebnf: string): string {
  const parts: string[] = []
  const keep = (part: string) => `\ue000${parts.push(part) - 1}\ue001`
  let text = ebnf.replace(opaque, (part) => (part === '""' ? part : part.startsWith('#') ? '' : keep(part)))
  if (!/""|\{\s*0/.test(text) || text.includes('Dispatch')) return ebnf
  text = text.replace(/\s+/g, (space) => (space.includes('\n') ? '\n' : ' ')).trim()
  for (let round = 0; round < mostRounds; round++) {
    const before = text
    text = text.replace(never, '""').replace(several, '""').replace(emptyGroup, '""')
    if (text !== before) continue
    const empty = new Set(Array.from(text.matchAll(emptyRule), ([, name]) => name!))
    text = text.replace(used, (name) => (empty.has(name) ? '""' : name))
    if (text === before) text = text.replace(group, keep)
    if (text === before) break
  }
  const expand = (kept: string): string => kept.replace(/\ue000(\d+)\ue001/g, (all, at) => (parts[at] ? expand(parts[at]) : all))
  return expand(text)
}
