// Models on the emulated CUDA device: every checkpoint, loss and step (npm test has some of each kind), and wavefront decoding with
// all readouts.
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import type { DeviceName } from '../../src/index.js'
import { buildEmulated } from '../emulated.js'
import { runTests } from '../native-tests.js'
import { decodesAlike } from '../wavefront-cases.js'

beforeAll(buildEmulated, 900_000)

const root = join(import.meta.dirname, '..', '..')
const files = ['golden', 'families', 'families-generate', 'prompt-cache', 'continue', 'input-vectors-generate', 'shift-ffn']

it.each(files)('%s', async (name) => {
  const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs')
  const file = `test/model/${name}.test.ts`
  const args = [vitest, 'run', '--root', root, file, '-t', 'cuda-emulated|prompts of one token']
  const { stdout, stderr, status } = await runTests(process.execPath, args, { NO_COLOR: '1', LOOPLM_EMULATED: 'all' })
  expect(status, `${stdout}${stderr}`).toBe(0)
  console.log(`${file}: ${/Tests +(\d+ passed)/.exec(stdout)![1]}`)
})

describe('wavefront decoding', () => decodesAlike({ device: 'cuda-emulated' as DeviceName, dtype: 'float32' }, 7))
