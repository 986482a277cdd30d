/** A demangled kernel without namespaces, return type and parameters. */
export function shortName(name) {
  let depth = 0
  let end = 0
  for (; end < name.length; end++) {
    if (name[end] === '<') depth++
    if (name[end] === '>') depth--
    if (name[end] === '(' && depth === 0 && !name.startsWith('(anonymous', end)) break
  }
  return name
    .slice(0, end)
    .replace(/^void /, '')
    .replace(/(looplm|cuda|\(anonymous namespace\)|_GLOBAL__N__\w+)::/g, '')
    .replace(/\((bool|int|Loop\w+)\)/g, '')
    .replaceAll('> >', '>>')
}
