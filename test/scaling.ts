// Claims about running time that neither a busy nor a slow machine breaks: CPU time of this process instead of time that passes, the
// smallest of several runs, and ratios instead of seconds.
import { expect } from 'vitest'

/** CPU milliseconds, the least of `runs`. */
export function cpuTime(work: () => unknown, runs = 7): number {
  const times = Array.from({ length: runs }, () => {
    const before = process.cpuUsage()
    work()
    const { user, system } = process.cpuUsage(before)
    return (user + system) / 1000
  })
  return Math.min(...times)
}

/** Claims that four times the size takes about four times as long: less than 10, where quadratic work takes 16. */
export function expectLinear(work: (size: number) => unknown, size: number): void {
  const large = Math.max(
    1,
    Math.ceil(
      40 /
        Math.max(
          0.1,
          cpuTime(() => work(4 * size), 1),
        ),
    ),
  ) // so often that 40 ms are measured
  const times = (n: number) => cpuTime(() => Array.from({ length: large }, () => work(n)))
  expect(times(4 * size) / times(size)).toBeLessThan(10)
}
