// A separate adapter for every loop: scores, gradients, decoding, files.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type DeviceName, LoopLM, type LoopLMConfigInput, memory, RLTTTrainer } from '../../src/index.js'
import { registerFamily } from '../../src/model/architectures/families.js'
import { adapterOf, fillAdapter, mergedBy } from '../adapters.js'
import { expectDerivative } from '../central-differences.js'
import { describedConfig as described, describedLogSoftmax, describedStates } from '../described-model.js'
import { buildEmulated } from '../emulated.js'
import { twoRegisters } from '../fixtures/two-registers.js'
import { heldBytes } from '../garbage.js'
import { relativeError } from '../golden-files.js'
import type { Parameters } from '../looped-model.js'
import { refusal } from '../refusal.js'
import { parametersOf, tinyConfig } from '../tiny.js'

const work = mkdtempSync(join(tmpdir(), 'looplm-per-loop-'))
afterAll(() => rmSync(work, { recursive: true }))
beforeAll(() => registerFamily('two_registers', twoRegisters))
beforeAll(buildEmulated, 900_000)
const emulated = 'cuda-emulated' as DeviceName // the CUDA kernels without a GPU

const ouro = { ...tinyConfig, num_hidden_layers: 2 }
const sequences = [
  [1, 10, 2, 11, 0, 3],
  [7, 8, 11, 5],
]
const scale = 0.75

async function adapted(config: LoopLMConfigInput, device: DeviceName = 'reference'): Promise<LoopLM> {
  const model = await LoopLM.create(config, { device, seed: 1 })
  await model.addAdapter({ rank: 2, alpha: 2 * scale, seed: 5, perLoop: true })
  await fillAdapter(model)
  return model
}

/** T × (length - 1) log-probabilities of a sequence, with matrices that are merged loop by loop. */
function logprobs(model: LoopLM, base: Parameters, adapter: Parameters, ids: readonly number[]): number[] {
  const a = model.architecture
  const merged = new Map<number, Parameters>()
  const of = (loop: number) => {
    if (!merged.has(loop)) merged.set(loop, mergedBy(base, adapter, scale, loop))
    return merged.get(loop)!
  }
  return describedStates(a, of, ids).flatMap((rows) =>
    rows.slice(0, -1).map((row, j) => describedLogSoftmax(a, base, row)[ids[j + 1]!]!),
  )
}

describe.each([
  ['Ouro', ouro],
  ['a family with a prelude and a coda', described],
] as const)('on %s', (_, config) => {
  it.each([
    ['reference', 1e-12],
    ['cpu', 1e-5],
    [emulated, 1e-5],
  ] as const)('every loop uses a separate adapter (%s)', async (device, bound) => {
    using model = await adapted(config, device)
    const [base, adapter] = [await parametersOf(model), await adapterOf(model)]
    const scores = await model.score(sequences, { initialState: 'zeros' })
    for (const [i, ids] of sequences.entries())
      expect(relativeError(scores.logprobs[i]!, logprobs(model, base, adapter, ids))).toBeLessThan(bound)
  })

  it.each(['none', 'loop', 'layer'] as const)(
    'the gradient of a per-loop adapter agrees with central differences, recompute %s',
    async (recompute) => {
      using model = await adapted(config)
      const coefficients = sequences.map((ids, i) =>
        Float64Array.from({ length: 3 * (ids.length - 1) }, (_, n) => Math.cos(n + i)),
      )
      await model.backward(sequences, coefficients, { initialState: 'zeros', recompute })
      const [base, adapter] = [await parametersOf(model), await adapterOf(model)]
      const gradients = await model.gradients()
      expect([...gradients.keys()]).toEqual([...adapter.keys()])
      expectDerivative(gradients, adapter, (values) =>
        sequences.reduce(
          (sum, ids, i) => logprobs(model, base, values, ids).reduce((s, l, k) => s + coefficients[i]![k]! * l, sum),
          0,
        ),
      )
    },
  )

  it('layers outside the loops have one adapter', async () => {
    using model = await adapted(config)
    const looped = model.architecture.loop.filter((step) => step.kind === 'block').length
    const outside = model.architecture.layers - looped
    const matrices = model.architecture.parameters.filter(({ role }) => /^(attention|attentionOutput|gateUp|down)$/.test(role))
    const each = matrices.length / model.architecture.layers
    expect(model.adapter!.parameters).toHaveLength(2 * each * (3 * looped + outside))
    expect(model.adapter!.perLoop).toBe(true)
  })

  it('a per-loop adapter trains alone, and is saved and loaded bit for bit', async () => {
    using model = await LoopLM.create(config, { seed: 1 })
    using trainer = new RLTTTrainer(model, { weights: 'uniform', learningRate: 0.05, lora: { rank: 2, perLoop: true } })
    const before = await parametersOf(model)
    await trainer.update({ sequences, promptLengths: [1, 1], advantages: [1, -1] })
    expect(await parametersOf(model)).toEqual(before)
    const trained = await adapterOf(model)
    for (const [name, values] of trained)
      if (name.includes('.lora_B.'))
        expect(
          Array.from(values).some((v) => v !== 0),
          name,
        ).toBe(true)
    const folder = join(work, model.family)
    await model.saveAdapter(folder)
    using other = await LoopLM.create(config, { seed: 1 })
    await other.loadAdapter(folder)
    expect(await adapterOf(other)).toEqual(trained)
    expect(await other.score(sequences)).toEqual(await model.score(sequences))
    using clone = await model.clone()
    expect(await clone.score(sequences)).toEqual(await model.score(sequences))
  })
})

it.each([
  ['per-loop', 'cpu'],
  ['shared', 'cpu'],
  ['per-loop', emulated],
  ['shared', emulated],
] as const)('per-loop adapters decode rows at different loops of one pass, kv %s, on %s', async (kv, device) => {
  using model = await adapted(ouro, device)
  const prompts = [[1, 10, 2], [4], [5, 6, 7, 8, 9]]
  const options = { maxNewTokens: 8, temperature: 0, stop: [], kv, exit: { rule: 'entropy', threshold: 2.2 } } as const
  const together = await model.generate(prompts, options)
  const loops = new Set(together.flatMap((result) => result.loops))
  expect(loops.size).toBeGreaterThan(1) // so that rows are apart
  for (const [i, prompt] of prompts.entries()) expect((await model.generate([prompt], options))[0]).toEqual(together[i])
})

it.each(['cpu', emulated] as const)('per-loop adapters sample with the log-probabilities of score, on %s', async (device) => {
  using model = await adapted(ouro, device)
  for (const more of [{}, { speculate: { loops: 1, tokens: 3 } }]) {
    const results = await model.generate([[1, 10], [3]], { maxNewTokens: 8, seed: 3, stop: [], exit: { rule: 'fixed' }, ...more })
    const whole = [[1, 10], [3]].map((prompt, i) => [...prompt, ...results[i]!.tokens])
    const { logprobs } = await model.score(whole, { lastLoop: true })
    for (const i of [0, 1]) expect(relativeError(results[i]!.logprobs, logprobs[i]!.slice(-8))).toBeLessThan(1e-4)
  }
})

it('per-loop adapters have the same gradient on cuda-emulated and reference', async () => {
  const gradients = async (device: DeviceName) => {
    using model = await adapted(ouro, device)
    const scored = await model.score(sequences)
    await scored.backward(scored.logprobs.map((rows, i) => rows.map((_, n) => Math.cos(n + i))))
    return model.gradients()
  }
  const [want, got] = [await gradients('reference'), await gradients(emulated)]
  for (const [name, values] of want) expect(relativeError(got.get(name)!, values), name).toBeLessThan(1e-4)
})

it('per-loop adapters take the memory of one adapter per loop', async () => {
  const wide = { ...ouro, hidden_size: 256, intermediate_size: 512, num_attention_heads: 4 }
  const bytes = async (perLoop: boolean) => {
    using model = await LoopLM.create(wide, { seed: 1 })
    const before = await heldBytes()
    await model.addAdapter({ rank: 8, perLoop })
    return memory().bytes - before
  }
  const [shared, own] = [await bytes(false), await bytes(true)]
  expect(own / shared).toBeCloseTo(3, 1)
})

describe('a per-loop adapter', () => {
  it('rejects more loops than it has matrices for', async () => {
    using model = await adapted(ouro)
    const message = /the adapter has matrices for 3 loops, not for 4/
    expect((await refusal(() => model.score(sequences, { loops: 4 }))).message).toMatch(message)
    expect((await refusal(() => model.generate([[1]], { loops: 4 }))).message).toMatch(message)
    await model.score(sequences, { loops: 2 })
  })
  it('cannot be merged', async () => {
    using model = await adapted(ouro)
    expect(await refusal(() => model.mergeAdapter())).toMatchObject({
      code: 'UNSUPPORTED',
      message: expect.stringContaining('every loop has its own adapter'),
    })
  })
  it('is not compatible with files of shared adapters', async () => {
    using model = await adapted(ouro, 'cpu')
    const folder = join(work, 'kinds')
    await model.saveAdapter(folder)
    const path = join(folder, 'adapter_config.json')
    const config = JSON.parse(readFileSync(path, 'utf8'))
    expect(config.peft_type).not.toBe('LORA') // which PEFT would take for an adapter that lacks its tensors
    writeFileSync(path, JSON.stringify({ ...config, peft_type: 'LORA' }))
    using other = await LoopLM.create(ouro, { seed: 1 })
    expect((await refusal(() => other.loadAdapter(folder))).message).toMatch(/missing/)
    await other.addAdapter({ rank: 2, alpha: 2 * scale })
    writeFileSync(path, JSON.stringify(config))
    expect((await refusal(() => other.loadAdapter(folder))).message).toMatch(/whose rank, alpha, perLoop, shiftRank/)
    expect((await refusal(() => other.addAdapter({ perLoop: 1 as never }))).message).toMatch(/perLoop/)
  })
})
