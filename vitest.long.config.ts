import { defineConfig, mergeConfig } from 'vitest/config'
import { LongTests } from './test/long/results.js'
import base from './vitest.config.js'

// Soaks: kills, leaks and whatever else takes minutes. Each prints the figures it measured; they go to docs/long-tests.md.
const long = mergeConfig(
  base,
  defineConfig({ test: { isolate: true, maxWorkers: 1, testTimeout: 3_600_000, reporters: ['default', new LongTests()] } }),
)
export default { ...long, test: { ...long.test, include: ['test/long/**/*.test.ts'], exclude: [] } }
