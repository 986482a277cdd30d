// Configuration files and names that come from anywhere: aliases and keys that YAML allows, and names that every object has.
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { task } from '../../src/cli/arguments.js'
import { openRewards } from '../../src/cli/train.js'
import { readTrainConfig } from '../../src/cli/train-config.js'
import { parseYaml } from '../../src/data/yaml.js'
import { addition, GRPOTrainer, LoopLM, loadDataset, ObjectiveTrainer, PretrainTrainer } from '../../src/index.js'
import { namedRewards } from '../../src/rl/rewards.js'
import { checkJson } from '../../src/validation/json-value.js'
import { refusal } from '../refusal.js'
import { expectLinear } from '../scaling.js'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'looplm-config-'))
})
afterAll(() => rm(folder, { recursive: true }))

const valid = 'trainer: rltt\nmodel: m\ntask: addition\n'
const read = async (text: string, changes: string[] = []) => {
  const path = join(folder, 'train.yaml')
  await writeFile(path, text)
  return readTrainConfig(path, changes)
}
const refused = async (text: string, changes: string[] = []) => (await refusal(() => read(text, changes))).message
const sizes = { vocab_size: 12, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2 }

describe('a YAML file', () => {
  it.each([
    ['a map', 'model: &x { a: *x }\n', /the alias \*x stands within its own value at line 1, column 16$/],
    ['a list', 'model: { a: &x [1, *x] }\n', /alias \*x/],
    ['two levels up', 'options: &x { a: &y { b: [*y, 1] }, c: *x }\n', /alias \*y/],
    ['the whole file', '&x\ntrainer: rltt\noptions: { a: *x }\n', /alias \*x .* line 3/],
  ])('is rejected for an alias within its own value: %s', async (_, text, message) => {
    expect(await refused(text)).toMatch(message)
  })

  it('may repeat a value by an alias', async () => {
    const { options } = await read(`${valid}options: { steps: &n 3, seed: *n }\n`)
    expect(options).toMatchObject({ steps: 3, seed: 3 })
  })

  it.each([
    ['at the top', `${valid}__proto__: { x: 1 }\n`, [], /__proto__ cannot be a key at line 4, column 1$/],
    ['in options', `${valid}options: { __proto__: { steps: 1 } }\n`, [], /__proto__ cannot be a key/],
    ['in quotes, in a list', `${valid}options: { stop: [{ "__proto__": 1 }] }\n`, [], /__proto__ cannot be a key/],
    ['of --set', valid, ['__proto__.x=1'], /--set: __proto__\.x: __proto__ cannot be a key/],
    ['within a key of --set', valid, ['options.a.__proto__=1'], /--set: options\.a\.__proto__: __proto__ cannot be a key/],
    ['in a value of --set', valid, ['evalTasks={ __proto__: addition }'], /--set evalTasks: __proto__ cannot be a key/],
  ])('is rejected for a key __proto__ %s', async (_, text, changes, message) => {
    expect(await refused(text, changes)).toMatch(message)
  })

  it.each(['constructor', 'constructor.prototype', 'toString', 'hasOwnProperty', 'valueOf.x'])(
    'has no option %s, in the file or by --set',
    async (name) => {
      const [first] = name.split('.') as [string]
      expect(await refused(valid, [`${name}=1`])).toMatch(`${first}: unknown option`)
      expect(await refused(`${valid}${first}: 1\n`)).toMatch(`${first}: unknown option`)
      expect(await refused(`${valid}options: { ${first}: 1 }\n`)).toMatch(`${first}: unknown option`)
    },
  )

  it.each([
    ['lists', `options: ${'['.repeat(200_000)}`],
    ['closed lists', `options: ${'['.repeat(5000)}${']'.repeat(5000)}`],
    ['maps', '{a: '.repeat(100_000)],
    ['indentation', Array.from({ length: 1000 }, (_, i) => `${' '.repeat(i)}a:`).join('\n')],
    ['dashes', '- '.repeat(200_000)],
    ['explicit keys', '? '.repeat(200_000)],
  ])('is rejected when it is nested too deeply: %s', async (_, text) => {
    expect(await refused(text)).toMatch(/is nested more than 100 deep$/)
  })

  it.each([
    ['twice', 'a: 1\nb: 2\na: 3\n', /Map keys must be unique, "a" is there twice at line 3, column 1/],
    ['as a number and as a text', '1: x\n"1": y\n', /"1" is there twice/],
    ['twice on one line', '{ x: { steps: 1, steps: 2 } }', /"steps" is there twice/],
  ])('is rejected for a key %s', (_, text, message) => {
    expect(() => parseYaml(text, 'a.yaml')).toThrow(message)
  })

  it('is rejected for a second document, unless the first is wrong', () => {
    expect(() => parseYaml('a: 1\n---\nb: 2\n', 'a.yaml')).toThrow(/a second document begins at line 2, column 1/)
    expect(() => parseYaml('a: ]\n---\nb: 2\n', 'a.yaml')).toThrow(/Unexpected flow-seq-end token.* at line 1, column 4/)
  })

  it('is rejected for a key that is a list or a map', () => {
    expect(() => parseYaml('? [a]\n: 1\n', 'a.yaml')).toThrow(/a key must be a plain value at line 1/)
    expect(() => parseYaml('{ { a: 1 }: 1 }', 'a.yaml')).toThrow(/a key must be a plain value/)
  })

  const shapes: Record<string, (count: number) => string> = {
    keys: (n) => Array.from({ length: n }, (_, i) => `k${i}: ${i}\n`).join(''),
    'keys in braces': (n) => `{${Array.from({ length: n }, (_, i) => `k${i}: ${i}`).join(',')}}`,
    'errors on one line': (n) => 'a: ]'.repeat(n),
    anchors: (n) => Array.from({ length: n }, (_, i) => `- &a${i} 1\n`).join(''),
    aliases: (n) => `a: &x 1\nb: [${'*x,'.repeat(n)}]`,
  }
  it.each(Object.entries(shapes))('is parsed in time linear in its length: %s', (name, shape) => {
    const outcomes = new Set<string>()
    expectLinear((count) => {
      try {
        parseYaml(shape(count), 'a.yaml')
        outcomes.add('parsed')
      } catch {
        outcomes.add('rejected')
      }
    }, 1500)
    // a text that is rejected at once says nothing about its length
    expect([...outcomes]).toEqual([name === 'errors on one line' ? 'rejected' : 'parsed'])
  })

  it('with 60,000 unknown options is rejected, naming the first 20', async () => {
    const options = Array.from({ length: 60_000 }, (_, i) => `  k${i}: ${i}\n`).join('')
    const lines = (await refused(`${valid}options:\n${options}`)).split('\n')
    expect(lines).toHaveLength(22)
    expect(lines[0]).toMatch(/: more than 20 things are wrong$/)
    expect(lines[1]).toMatch(/^ {2}options\.k0: unknown option/)
    expect(lines.at(-1)).toBe('  … and more')
  })
})

describe('names that every JavaScript object inherits', () => {
  const inherited = ['toString', 'constructor', 'hasOwnProperty', 'valueOf', '__proto__']

  it.each(inherited)('rejects %s as a reward', async (name) => {
    const { code, message } = await refusal(() => openRewards(name))
    expect({ code, message }).toEqual({
      code: 'NOT_FOUND',
      message: `reward: no file ${name}; the built-in rewards are exactMatch, boxedMatch, countdownMatch`,
    })
  })

  it('suggests the built-in reward for a misspelled name', async () => {
    expect((await refusal(() => openRewards('boxedmatch'))).message).toMatch(/did you mean boxedMatch\?$/)
  })

  it.each(inherited)('rejects %s as a task, trainer, device, recipe or metric', async (name) => {
    expect(() => task(name)).toThrow(/no task/)
    expect(() => task(`{ name: ${name} }`)).toThrow(/no task/)
    expect(await refused(valid.replace('rltt', name))).toMatch(/trainer: /)
    expect(await refused(`${valid}device: ${name}\n`)).toMatch(/device: /)
    expect(await refused(`${valid}dtype: ${name}\n`)).toMatch(/dtype: /)
    const model = await LoopLM.create(sizes)
    const objective = name as 'rltt'
    expect(() => new ObjectiveTrainer(model, { task: addition({ digits: 1 }), objective })).toThrow(/objective: /)
    const trainer = new PretrainTrainer(model, {
      task: addition({ digits: 1 }),
      steps: 1,
      batchSize: 2,
      evalEvery: 1,
      evalProblems: 2,
      metricForBestModel: name,
    })
    const { message } = await refusal(async () => {
      for await (const _ of trainer.run());
    })
    expect(message).toMatch(`an evaluation has no metric "${name}"`)
    model.dispose()
  })

  it('a reward function may have such a name, except __proto__', async () => {
    expect(namedRewards({ constructor: () => 1, toString: () => 2 })).toHaveLength(2)
    expect(() => namedRewards([])).toThrow(/reward: is empty; give at least one function, or omit it/)
    const same = { name: 'a', reward: () => 1 }
    expect(() => namedRewards([same, same])).toThrow(/two rewards are named a; give each another name/)
    expect(() => namedRewards([{ name: '__proto__', reward: () => 1 }])).toThrow(/a reward cannot be named __proto__/)
    const model = await LoopLM.create(sizes)
    const options = { task: addition({ digits: 1 }), steps: 1, promptsPerStep: 2, groupSize: 2 }
    const trainer = new GRPOTrainer(model, { ...options, reward: { constructor: () => 1, toString: () => 2 } })
    const steps = []
    for await (const { type, metrics } of trainer.run()) if (type === 'step') steps.push(metrics)
    expect(steps).toMatchObject([{ 'rewards/constructor/mean': 1, 'rewards/toString/mean': 2, reward: 3 }])
    model.dispose()
  })

  it('rejects a dataset row with a field __proto__', async () => {
    const path = join(folder, 'rows.jsonl')
    await writeFile(path, '{"prompt":"a"}\n{"prompt":"b","__proto__":{"answer":"c"}}\n')
    expect((await refusal(() => loadDataset(path))).message).toMatch(/rows\.jsonl line 2 has a field "__proto__"/)
  })
})

describe('the check that a configuration can be saved', () => {
  const cycle: Record<string, unknown> = { a: [1] }
  cycle.a = [1, cycle]
  let deep: unknown = 1
  for (let i = 0; i < 100_000; i++) deep = [deep]
  it.each<[string, unknown, RegExp]>([
    ['a cycle', cycle, /extra\.a\.1: is an object within itself/],
    ['a BigInt', { id: 2n ** 64n }, /extra\.id: cannot be saved as JSON, got 18446744073709551616n/],
    ['a function', () => 1, /extra: cannot be saved as JSON, got a function/],
    ['an infinity', [Number.POSITIVE_INFINITY], /extra\.0: must be a finite number.*got Infinity/],
    ['100,000 levels', deep, /is nested more than 256 deep/],
    ['a key __proto__', JSON.parse('{ "__proto__": { "x": 1 } }'), /extra: __proto__ cannot be a key/],
  ])('rejects the configuration before a model is created: %s', async (_, extra, message) => {
    expect((await refusal(() => LoopLM.create({ ...sizes, extra }))).message).toMatch(message)
  })

  it('rejects a key __proto__ at the top level', async () => {
    const config = JSON.parse(`{ "__proto__": { "x": 1 }, ${JSON.stringify(sizes).slice(1)}`)
    expect((await refusal(() => LoopLM.create(config))).message).toMatch(/LoopLM\.create: config: __proto__ cannot be a key/)
    await writeFile(join(folder, 'config.json'), `{ "__proto__": 1, "rope_theta": 1, ${JSON.stringify(sizes).slice(1)}`)
    expect((await refusal(() => LoopLM.fromPretrained(folder))).message).toMatch(
      /config\.json: config: __proto__ cannot be a key/,
    )
  })

  it('accepts one object in two places, and undefined fields', () => {
    const shared = { a: [1] }
    let many: unknown = shared
    for (let i = 0; i < 60; i++) many = [many, many] // 2^60 paths
    expect(() => checkJson({ x: shared, y: shared, z: undefined, many }, '', 'test')).not.toThrow()
  })
})
