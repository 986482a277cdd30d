/**
 * The remedy for a misspelt name: the nearest known one or, if none is near, `otherwise`.
 *
 * @param options.farthest how many letters may differ; defaults to a third of the name's length, at least 2
 * @param options.write formats a known name for the remedy
 */
export function didYouMean(
  name: string,
  known: readonly string[],
  otherwise: string,
  options: { farthest?: number; write?: (known: string) => string } = {},
): string {
  const { farthest = Math.max(2, Math.floor(name.length / 3)), write = (near) => near } = options
  const nearest = nearestName(name, known, farthest)
  return nearest === undefined ? otherwise : `did you mean ${write(nearest)}?`
}

function nearestName(name: string, known: readonly string[], farthest: number): string | undefined {
  let best: string | undefined
  let bestDistance = farthest + 1
  for (const candidate of known) {
    const distance = editDistance(plain(name), plain(candidate))
    if (distance < bestDistance) {
      best = candidate
      bestDistance = distance
    }
  }
  return best
}

function plain(name: string): string {
  return name.replaceAll(/[-_]/g, '').toLowerCase()
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(next[j - 1]! + 1, row[j]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    }
    row = next
  }
  return row[b.length]!
}
