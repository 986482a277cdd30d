/**
 * A paragraph in lines of at most `width` bytes, every line but the first behind `indent`. No line begins with a mark that
 * would make it an item of a list.
 */
export function wrapText(text, { width = 120, indent = '' } = {}) {
  const lines = []
  let line
  for (const word of text.split(/\s+/)) {
    if (line !== undefined && (Buffer.byteLength(line) + 1 + Buffer.byteLength(word) <= width || /^([-+*]|\d+\.)$/.test(word)))
      line += ` ${word}`
    else {
      if (line !== undefined) lines.push(line)
      line = line === undefined ? word : indent + word
    }
  }
  return [...lines, line].join('\n')
}
