const tags = /<think>|<\/think>/g

/**
 * The text of a completion outside of its `<think>…</think>` blocks. An unclosed block extends to the end.
 *
 * @param prompt if it ends with `<think>`, it has opened a block; so has an unknown prompt if the completion closes one first
 */
export function withoutThinking(completion: string, prompt = ''): string {
  const found = [...completion.matchAll(tags)]
  let thinking = prompt.trimEnd().endsWith('<think>') || found[0]?.[0] === '</think>'
  let start = 0
  const said: string[] = []
  for (const { 0: tag, index } of found) {
    if (!thinking) said.push(completion.slice(start, index))
    thinking = tag === '<think>'
    start = index + tag.length
  }
  if (!thinking) said.push(completion.slice(start))
  return said.join('\n')
}
