import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { mergeConfig } from 'vitest/config'
import base from './vitest.config.js'

// npm run test:unit: what says within 90 seconds on two cores that a change is wrong. A file that starts programs, or imports what does,
// is left to npm test, and so are those that compute for four seconds or more.
const programs =
  /from '(?:node:child_process|(?:\.\.?\/)+(?:native-tests|mpi|emulated|leaks|kills|browser|trainer-ranks|(?:cli\/)?program)\.js)'/
const long = [
  ...['checksums', 'exit-gate', 'families-forms', 'invariance', 'rounding', 'scheduler', 'text-stream', 'wavefront'].map(
    (name) => `model/${name}`,
  ),
  ...['agents', 'bounds-of-options', 'families-training', 'looprpt-gradients', 'option-effects'].map((name) => `rl/${name}`),
  ...['exit-sampled', 'field-effects', 'objective-run'].map((name) => `rl/objective/${name}`),
  ...['data/tool-calls', 'serve/malformed', 'serve/server', 'tokenizer/tokenizer-golden', 'cli/train-config'],
  ...['examples-loggers', 'kernels', 'study', 'study-two'],
].map((name) => `test/${name}.test.ts`)
const files = readdirSync('test', { recursive: true, encoding: 'utf8' }).map((name) => join('test', name))
const withPrograms = files.filter((path) => path.endsWith('.test.ts') && programs.test(readFileSync(path, 'utf8')))

export default mergeConfig(base, {
  test: {
    exclude: [...withPrograms, ...long],
    coverage: {
      provider: 'v8',
      include: ['src/**/*.ts'],
      reporter: ['text-summary', 'html', 'json-summary'],
      reportsDirectory: 'coverage',
    },
  },
})
