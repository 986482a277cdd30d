// The oldest glibc that a package runs with, as README promises, and how versions of it compare.

export const oldestGlibc = '2.35'

/** Whether a version, for example 2.38 or 2.3.4, is newer than another. */
export function isNewer(version, than) {
  const [a, b] = [version, than].map((text) => text.split('.').map(Number))
  for (let i = 0; i < Math.max(a.length, b.length); i++) {
    const difference = (a[i] ?? 0) - (b[i] ?? 0)
    if (difference !== 0) return difference > 0
  }
  return false
}
