// Shift-FFN: the MLP of every layer also sees the token before, in scores, gradients and decoding with a cache.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type DeviceName, LoopLM, type LoopLMConfigInput, RLTTTrainer } from '../../src/index.js'
import { registerFamily } from '../../src/model/architectures/families.js'
import { adapterOf, fillAdapter, mergedBy } from '../adapters.js'
import { expectDerivative } from '../central-differences.js'
import { describedConfig as described, describedLogSoftmax, describedStates } from '../described-model.js'
import { buildEmulated, triedOn } from '../emulated.js'
import { familiesFolder } from '../family-fixtures.js'
import { twoRegisters } from '../fixtures/two-registers.js'
import { relativeError } from '../golden-files.js'
import type { Parameters } from '../looped-model.js'
import { refusal } from '../refusal.js'
import { parametersOf, tinyConfig } from '../tiny.js'

const work = mkdtempSync(join(tmpdir(), 'looplm-shift-'))
afterAll(() => rmSync(work, { recursive: true }))
beforeAll(() => registerFamily('two_registers', twoRegisters))
beforeAll(buildEmulated, 900_000)
const emulated = 'cuda-emulated' as DeviceName // the CUDA kernels without a GPU

const ouro = { ...tinyConfig, num_hidden_layers: 2 }
const sequences = [
  [1, 10, 2, 11, 0, 3],
  [1, 10, 2, 7],
  [7, 8, 11, 5],
]
const scale = 0.75

/** A model whose Shift-FFN does something; its gates are open for some tokens and shut for others. */
async function shifted(config: LoopLMConfigInput, device: DeviceName = 'reference', more = {}): Promise<LoopLM> {
  const model = await LoopLM.create(config, { device, seed: 1 })
  await model.addAdapter({ rank: 2, alpha: 2 * scale, seed: 5, shiftRank: 3, ...more })
  await openShift(model)
  return model
}
async function openShift(model: LoopLM): Promise<void> {
  await fillAdapter(model)
  for (const [i, { name, shape }] of model.adapter!.parameters.entries())
    if (name.endsWith('shift_ffn.c.weight'))
      await model.setParameter(
        name,
        Float64Array.from({ length: shape[0]! * shape[1]! }, (_, j) => 0.5 * Math.cos(i + 2 * j)),
      )
}
const modules = (config: LoopLMConfigInput) => ({ targetModules: [config === described ? 'down' : 'down_proj'] })

function logprobs(model: LoopLM, base: Parameters, adapter: Parameters, ids: readonly number[]): number[] {
  const a = model.architecture
  const paths = [...adapter.keys()].filter((name) => name.endsWith('.shift_ffn.a.weight'))
  const shift = (layer: number) => {
    const of = (letter: string) => adapter.get(paths[layer]!.replace(/a\.weight$/, `${letter}.weight`))!
    return { a: of('a'), b: of('b'), c: of('c') }
  }
  const merged = mergedBy(base, adapter, scale)
  return describedStates(a, merged, ids, { shift }).flatMap((rows) =>
    rows.slice(0, -1).map((row, j) => describedLogSoftmax(a, base, row)[ids[j + 1]!]!),
  )
}

describe.each([
  ['Ouro', ouro],
  ['a family with a prelude and a coda', described],
] as const)('Shift-FFN on %s', (_, config) => {
  it('changes nothing at first, and has three matrices per layer', async () => {
    using plain = await LoopLM.create(config, { seed: 1 })
    using model = await LoopLM.create(config, { seed: 1 })
    await model.addAdapter({ rank: 2, shiftRank: 3, ...modules(config) })
    expect((await model.score(sequences)).logprobs).toEqual((await plain.score(sequences)).logprobs)
    const own = model.adapter!.parameters.filter(({ name }) => name.includes('shift_ffn'))
    expect(own).toHaveLength(3 * model.architecture.layers)
    expect(own.slice(0, 3).map(({ shape }) => shape)).toEqual([
      [3, 16],
      [3, 32],
      [16, 3],
    ])
  })

  it.each([
    ['reference', 1e-12],
    ['cpu', 1e-5],
    [emulated, 1e-5],
  ] as const)('scores by its formula (%s)', async (device, bound) => {
    using model = await shifted(config, device, modules(config))
    const [base, adapter] = [await parametersOf(model), await adapterOf(model)]
    const scores = await model.score(sequences, { initialState: 'zeros' })
    for (const [i, ids] of sequences.entries())
      expect(relativeError(scores.logprobs[i]!, logprobs(model, base, adapter, ids))).toBeLessThan(bound)
  })

  it.each(['none', 'loop', 'layer'] as const)(
    'has a gradient that agrees with central differences, recompute %s',
    async (recompute) => {
      using model = await shifted(config, 'reference', modules(config))
      const coefficients = sequences.map((ids, i) =>
        Float64Array.from({ length: 3 * (ids.length - 1) }, (_, n) => Math.cos(n + i)),
      )
      await model.backward(sequences, coefficients, { initialState: 'zeros', recompute })
      const [base, adapter] = [await parametersOf(model), await adapterOf(model)]
      expectDerivative(await model.gradients(), adapter, (values) =>
        sequences.reduce(
          (sum, ids, i) => logprobs(model, base, values, ids).reduce((s, l, k) => s + coefficients[i]![k]! * l, sum),
          0,
        ),
      )
    },
  )
})

it('Shift-FFN gives responses that share a prompt the gradient of whole sequences', async () => {
  using model = await shifted(ouro, 'reference', modules(ouro))
  const batch = { sequences, promptLengths: [3, 3, 1], advantages: [1, -1, 0.5] }
  const gradients = async (given: typeof batch) => {
    using trainer = new RLTTTrainer(model, { weights: 'uniform', normalizer: 'constant', constantNormalizerLength: 5 })
    return (await trainer.gradients(given)).gradients
  }
  const together = await gradients(batch) // the first two read one copy of their prompt
  const sum = new Map<string, Float64Array>()
  for (const i of sequences.keys()) {
    const one = { sequences: [sequences[i]!], promptLengths: [batch.promptLengths[i]!], advantages: [batch.advantages[i]! / 3] }
    for (const [name, g] of await gradients(one)) {
      const before = sum.get(name) ?? new Float64Array(g.length)
      sum.set(
        name,
        Float64Array.from(g, (v, k) => v + before[k]!),
      )
    }
  }
  for (const [name, g] of together) expect(relativeError(g, sum.get(name)!, 1e-12), name).toBeLessThan(1e-9)
})

describe('decoding Shift-FFN with a cache', () => {
  it.each(['cpu', emulated] as const)(
    'samples with the log-probabilities of score, for any pieces of the prompt, on %s',
    async (device) => {
      using model = await shifted(ouro, device, modules(ouro))
      const prompts = [[1, 10, 2, 5, 6, 7, 8], [3]]
      for (const more of [{}, { speculate: { loops: 1, tokens: 3 } }] as const)
        for (const prefillTokens of [512, 2]) {
          using scheduler = model.scheduler({ prefillTokens })
          const options = { maxNewTokens: 8, seed: 3, stop: [], exit: { rule: 'fixed' }, ...more } as const
          const requests = prompts.map((prompt) => scheduler.add(prompt, options))
          for (const [i, prompt] of prompts.entries()) {
            const result = await requests[i]!.result()
            const { logprobs } = await model.score([[...prompt, ...result.tokens]], { lastLoop: true })
            expect(relativeError(result.logprobs, logprobs[0]!.slice(-8))).toBeLessThan(1e-4)
          }
        }
    },
  )

  it.each([
    ['per-loop', 'cpu'],
    ['shared', 'cpu'],
    ['per-loop', emulated],
    ['shared', emulated],
  ] as const)('does not depend on the batch, even with early exits, kv %s, on %s', async (kv, device) => {
    using model = await shifted(ouro, device, modules(ouro))
    const prompts = [[1, 10, 2], [4], [5, 6, 7, 8, 9]]
    const options = { maxNewTokens: 8, temperature: 0, stop: [], kv, exit: { rule: 'entropy', threshold: 1.5 } } as const
    const together = await model.generate(prompts, options)
    expect(new Set(together.flatMap(({ loops }) => loops)).size).toBeGreaterThan(1)
    for (const [i, prompt] of prompts.entries()) expect((await model.generate([prompt], options))[0]).toEqual(together[i])
  })
})

describe.each([...readdirSync(familiesFolder), 'two_registers'])('prompts of one token, %s', (name) => {
  const load = async (device: DeviceName) => {
    const model =
      name === 'two_registers'
        ? await LoopLM.create(described, { device, seed: 1 })
        : await LoopLM.fromPretrained(join(familiesFolder, name), { device })
    await model.addAdapter({ rank: 2, alpha: 2 * scale, seed: 5, shiftRank: 3 })
    await openShift(model)
    return model
  }

  it.each((['reference', 'cpu', emulated] as const).filter((device) => triedOn(device, [name]).length > 0))(
    'sample with the log-probabilities that they are scored with, on %s',
    async (device) => {
      using model = await load(device)
      const prompts = [[3], [1, 5, 2], [7], [4, 6]]
      const options = { maxNewTokens: 5, seed: 3, stop: [], exit: { rule: 'fixed' } } as const
      const together = await model.generate(prompts, options)
      for (const [i, prompt] of prompts.entries()) {
        const { tokens, logprobs } = together[i]!
        const scores = await model.score([[...prompt, ...tokens]], { lastLoop: true, promptLengths: [prompt.length] })
        expect(relativeError(logprobs, scores.logprobs[0]!.slice(-tokens.length))).toBeLessThan(
          device === 'reference' ? 1e-9 : 1e-4,
        )
      }
    },
  )

  it('do not depend on the batch with early exits, and drafts change nothing', async () => {
    using model = await load('cpu')
    const prompts = [[3], [1, 5, 2], [7]]
    const options = { maxNewTokens: 6, temperature: 0, stop: [], exit: { rule: 'entropy', threshold: 3.5 } } as const
    const together = await model.generate(prompts, options)
    for (const [i, prompt] of prompts.entries()) expect((await model.generate([prompt], options))[0]).toEqual(together[i])
    const fixed = { ...options, exit: { rule: 'fixed' } } as const
    const tokens = async (more: object) => (await model.generate(prompts, { ...fixed, ...more })).map((r) => r.tokens)
    expect(await tokens({ speculate: { loops: 1, tokens: 3 } })).toEqual(await tokens({}))
  })
})

it('Shift-FFN has the same gradient on cuda-emulated and reference', async () => {
  const gradients = async (device: DeviceName) => {
    using model = await shifted(ouro, device, modules(ouro))
    const scored = await model.score(sequences)
    await scored.backward(scored.logprobs.map((rows, i) => rows.map((_, n) => Math.cos(n + i))))
    return model.gradients()
  }
  const [want, got] = [await gradients('reference'), await gradients(emulated)]
  for (const [name, values] of want) expect(relativeError(got.get(name)!, values), name).toBeLessThan(1e-4)
})

it('Shift-FFN trains, is saved and loaded bit for bit, and cannot be merged', async () => {
  using model = await LoopLM.create(ouro, { seed: 1 })
  using trainer = new RLTTTrainer(model, { weights: 'uniform', learningRate: 0.05, lora: { rank: 2, shiftRank: 3 } })
  for (let step = 0; step < 2; step++) await trainer.update({ sequences, promptLengths: [1, 1, 1], advantages: [1, -1, 0.5] })
  const trained = await adapterOf(model)
  using fresh = await LoopLM.create(ouro, { seed: 1 })
  await fresh.addAdapter({ rank: 2, shiftRank: 3 })
  for (const [name, values] of await adapterOf(fresh)) expect(trained.get(name), name).not.toEqual(values)
  await model.saveAdapter(join(work, 'adapter'))
  using other = await LoopLM.create(ouro, { seed: 1 })
  await other.loadAdapter(join(work, 'adapter'))
  expect(await adapterOf(other)).toEqual(trained)
  expect(await other.score(sequences)).toEqual(await model.score(sequences))
  expect(await refusal(() => model.mergeAdapter())).toMatchObject({
    code: 'UNSUPPORTED',
    message: expect.stringContaining('shiftRank'),
  })
})
