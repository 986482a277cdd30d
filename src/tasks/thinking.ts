const tags = /<think>|<\/think>/g

/**
 * What a completion says outside its `<think>…</think>` blocks. A block that the completion never closes ends with it.
 *
 * @param prompt a prompt that ends with `<think>` has opened the block; so has one unknown when the completion closes it first
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
