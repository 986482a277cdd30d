// Callers whose arrays, errors and promises are of another realm than Node's own: Jest, and contexts of node:vm.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { createContext, runInContext } from 'node:vm'
import { describe, expect, it } from 'vitest'
import { errorMessage, toLoopLMError } from '../src/errors.js'
import * as looplm from '../src/index.js'

const root = join(import.meta.dirname, '..')

describe('Jest', () => {
  it('runs a test file against the built package', { timeout: 300_000 }, () => {
    const jest = [
      join(root, 'node_modules', 'jest', 'bin', 'jest.js'),
      '--config',
      join(import.meta.dirname, 'realms', 'jest.config.json'),
    ]
    const env = { ...process.env, NODE_OPTIONS: '--experimental-vm-modules' }
    const { status, stdout, stderr } = spawnSync(process.execPath, [...jest, '--forceExit'], { env, encoding: 'utf8' })
    expect(status, stdout + stderr).toBe(0)
    expect(stdout + stderr).toMatch(/Tests: +7 passed, 7 total/)
  })
})

describe('a context of node:vm', () => {
  const context = createContext({ looplm, console })
  const run = (code: string): unknown => runInContext(`(async () => { ${code} })()`, context)

  it('has its own Array class', async () => {
    expect(await run('return [new Float32Array(1), [], new Error("x"), Promise.resolve()]')).not.toBeInstanceOf(Array)
  })

  it('passes typed arrays, arrays and options', async () => {
    const found = (await run(`
      const { tensor } = looplm
      const dtypes = [new Float32Array(2), new Int32Array(2), new Uint16Array(2), [[1, 2]]].map((data) => tensor(data).dtype)
      const sum = await tensor([[1, 2], [3, 4]]).add(tensor(new Float32Array([1, 1, 1, 1]), [2, 2]))
      return { dtypes, sum: Array.from(await sum.toArray()) }
    `)) as { dtypes: string[]; sum: number[] }
    expect([...found.dtypes]).toEqual(['float32', 'int32', 'bfloat16', 'float32'])
    expect([...found.sum]).toEqual([2, 3, 4, 5])
  })

  it('can generate, score and train with arrays and rewards of its realm', async () => {
    const found = (await run(`
      const { LoopLM, RLTTTrainer, Tokenizer } = looplm
      const tokenizer = Tokenizer.characters('0123:', { special: { eos: '<eos>' } })
      const shape = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 }
      const model = await LoopLM.create({ vocab_size: tokenizer.vocabSize, eos_token_id: tokenizer.eosTokenId, ...shape })
      model.tokenizer = tokenizer
      const [{ tokens }] = await model.generate([Int32Array.of(0, 4)], { maxNewTokens: 2, temperature: 0 })
      await model.score([Int32Array.of(0, 4, 1)], { promptLengths: Int32Array.of(2) })
      const dataset = [{ prompt: '0:', answer: '0' }, { prompt: '1:', answer: '1' }]
      const options = { dataset, tokenizer, steps: 1, promptsPerStep: 2, groupSize: 2, maxNewTokens: 2 }
      const trainer = new RLTTTrainer(model, { ...options, reward: async (_prompt, completion) => completion.length })
      let last
      for await (const event of trainer.run()) last = event.type
      const failing = new RLTTTrainer(model, { ...options, reward: () => { throw new Error('no reward today') } })
      let error
      try { for await (const _ of failing.run()); } catch (cause) { error = cause }
      model.dispose()
      return { length: tokens.length, last, message: error.message, known: error instanceof looplm.LoopLMError }
    `)) as { length: number; last: string; message: string; known: boolean }
    expect(found).toMatchObject({ last: 'done', known: true })
    expect(found.length).toBeGreaterThan(0)
    expect(found.message).toMatch(/no reward today$/)
  })

  it('gets the message of its own errors, not "[object Object]" or "Error: …"', async () => {
    expect(errorMessage(await run('return new TypeError("of another realm")'))).toBe('of another realm')
    expect(toLoopLMError(await run('return Object.assign(new Error("full"), { code: "OUT_OF_MEMORY" })'))).toMatchObject({
      code: 'OUT_OF_MEMORY',
      message: 'full',
    })
    expect(errorMessage('a text')).toBe('a text')
    expect(errorMessage(null)).toBe('null')
  })

  it('gets an error that says to await a promise', async () => {
    const error = await run('try { new looplm.AdamW(Promise.resolve()) } catch (error) { return error }')
    expect((error as Error).message).toMatch(/model must be a LoopLM.*await it/)
  })
})

it('nothing in src uses instanceof with a built-in class', async () => {
  const files = (await readdir(join(root, 'src'), { recursive: true })).filter((name) => name.endsWith('.ts'))
  const builtIn =
    /instanceof (?:\w*Array|ArrayBuffer|SharedArrayBuffer|DataView|Error|\w+Error|Promise|Map|Set|Date|RegExp|Object|Function|AbortSignal|URL)\b/
  const own = /instanceof (?:LoopLMError|HttpError|CommanderError|CsvError)\b/g
  expect(
    ['x instanceof Float32Array', 'x instanceof Error', 'x instanceof Promise'].filter((code) => !builtIn.test(code)),
  ).toEqual([])
  expect(files.length).toBeGreaterThan(200)
  const found = files.filter((name) => builtIn.test(readFileSync(join(root, 'src', name), 'utf8').replaceAll(own, '')))
  expect(found).toEqual([])
})
