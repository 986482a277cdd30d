import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    pool: 'forks', // a native addon must not be unloaded between worker threads
    maxWorkers: 1, // the engine has its own thread pool; two test files at once would share two cores
    include: ['test/**/*.test.ts'],
    testTimeout: 60_000,
  },
})
