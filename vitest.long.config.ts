import { defineConfig, mergeConfig } from 'vitest/config'
import base from './vitest.config.js'

// Soaks: kills, leaks and whatever else takes minutes. Each prints the figures it measured.
const long = mergeConfig(base, defineConfig({ test: { testTimeout: 3_600_000 } }))
export default { ...long, test: { ...long.test, include: ['test/long/**/*.test.ts'], exclude: [] } }
