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

/**
 * Claims that four times the size takes about four times as long: less than 10, where quadratic work takes 16. The large size is run
 * again only while it seems to take longer.
 */
export function expectLinear(work: (size: number) => unknown, size: number): void {
  const once = cpuTime(() => work(4 * size), 1)
  const often = Math.ceil(40 / Math.max(0.1, once)) // so often that 40 ms are measured
  const time = (n: number, runs: number) => cpuTime(() => Array.from({ length: often }, () => work(n)), runs)
  const small = time(size, 3)
  let ratio = Number.POSITIVE_INFINITY
  for (let run = 0; run < 7 && !(ratio < 10); run++) ratio = Math.min(ratio, time(4 * size, 1) / small)
  expect(ratio).toBeLessThan(10)
}
