// What every family has beside scores and gradients (families.test.ts): bfloat16, few bits, adapters, decay, frozen vectors, first
// parameters, names of files.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { AdamW, LoopLM, type LoopLMConfigInput, type ModelDType, RLTTTrainer } from '../../src/index.js'
import { adapterOf, fillAdapter, mergedBy } from '../adapters.js'
import { expectDerivative } from '../central-differences.js'
import { describedLogSoftmax, describedStates } from '../described-model.js'
import { batchOf, behind, familiesFolder, type Notes } from '../family-fixtures.js'
import { readGolden, relativeError } from '../golden-files.js'
import type { Parameters } from '../looped-model.js'
import { describedYardstick, expectRounded } from '../rounding.js'
import { readTensors } from '../stored-tensors.js'
import { parametersOf } from '../tiny.js'

const work = mkdtempSync(join(tmpdir(), 'looplm-forms-'))
afterAll(() => rmSync(work, { recursive: true }))
const json = (...path: string[]) => JSON.parse(readFileSync(join(...path), 'utf8'))

/** The configuration of a fixture with widths that groups of 32 divide. */
const wide: Record<string, object> = {
  nanbeige: { hidden_size: 64, intermediate_size: 96 },
  nanbeige_flags: { hidden_size: 64, intermediate_size: 96, num_attention_heads: 8, tie_word_embeddings: false },
  huginn: { n_embd: 64, n_heads: 4, head_dim: 16, num_key_value_heads: 4, intermediate_size: 96, tie_embeddings: false },
  retrofit_llama: { n_embd: 64, n_heads: 4, head_dim: 16, num_key_value_heads: 2, intermediate_size: 96, looplm_layout: 'llama' },
  retrofit_olmo2: { n_embd: 64, n_heads: 4, head_dim: 16, num_key_value_heads: 4, intermediate_size: 96, looplm_layout: 'olmo2' },
  hrm_text: { hidden_size: 64, intermediate_size: 96, num_attention_heads: 4, head_dim: 16 },
  hrm_text_resaved: { hidden_size: 64, intermediate_size: 96, num_attention_heads: 8, head_dim: 8 },
}

describe.each(readdirSync(familiesFolder))('%s', (name) => {
  const folder = join(familiesFolder, name)
  const notes: Notes & { ignored_tensors?: string[] } = json(folder, 'golden.json')
  const batch = batchOf(readGolden(folder), folder)
  const { sequences, options } = batch
  const some = 1 // sequences of the slow tests
  const promptLengths = notes.prefix_mask ? batch.promptLengths : sequences.map(() => 1)
  const { initialStates } = options as { initialStates?: Float32Array[] }
  const given = { promptLengths, ...options }

  /** A score is as near to the truth as a plain evaluation, for the parameters given or the model's own. */
  async function expectNear(model: LoopLM, parameters?: Parameters): Promise<void> {
    const narrow = model.architecture.hidden === 16
    const used = narrow ? sequences : sequences.slice(0, some)
    const states = narrow ? given : { promptLengths: promptLengths.slice(0, some), initialState: 'zeros' as const }
    const scores = await model.score(used, states)
    const of = await describedYardstick(model, used, {
      promptLengths,
      ...(states === given && initialStates !== undefined ? { initialStates } : {}),
      ...(parameters === undefined ? {} : { parameters }),
    })
    for (const field of ['logprobs', 'entropy'] as const) {
      const got = scores[field].flatMap((row, i) => behind(row, used[i]!.length - 1, promptLengths[i]! - 1))
      expectRounded(got, of, (scored) => scored[field].flat())
    }
  }

  it.each(['float32', 'bfloat16'] as const)('scores in %s as accurately as a plain evaluation', async (dtype) => {
    using model = await LoopLM.fromPretrained(folder, { dtype })
    await expectNear(model)
  })

  it.each([
    ['int8', 'bfloat16'],
    ['int4', 'float32'],
  ] as const)('scores accurately in %s and %s, and the same after save and load', async (quantize, dtype) => {
    const config = { ...json(folder, 'config.json'), ...wide[name] } as LoopLMConfigInput
    using plain = await LoopLM.create(config, { dtype, seed: 3 })
    using exact = await LoopLM.create(config, { dtype, seed: 3, quantize, groupSize: 32, activations: 'float' })
    await expectNear(exact)
    using model = await LoopLM.create(config, { dtype, seed: 3, quantize, groupSize: 32 })
    const saved = join(work, `${name}-${quantize}-${dtype}`)
    await model.save(saved)
    using again = await LoopLM.fromPretrained(saved)
    expect(await again.score(sequences, { promptLengths })).toEqual(await model.score(sequences, { promptLengths }))
    expect((await model.score(sequences, { promptLengths })).logprobs).not.toEqual(
      (await plain.score(sequences, { promptLengths })).logprobs,
    )
  })

  it('is saved with the published names', async () => {
    using model = await LoopLM.fromPretrained(folder)
    await model.save(join(work, name))
    const names = (path: string) =>
      readTensors(join(path, 'model.safetensors'))
        .map((tensor) => tensor.name)
        .sort()
    const published = names(folder)
    const ignored = (tensor: string) => (notes.ignored_tensors ?? []).some((end) => tensor.endsWith(end))
    expect(names(join(work, name))).toEqual(published.filter((tensor) => !ignored(tensor)))
    using again = await LoopLM.fromPretrained(join(work, name))
    expect(await again.score(sequences, given)).toEqual(await model.score(sequences, given))
  })

  describe('with an adapter', () => {
    const scale = 0.75
    async function adapted(device: 'reference' | 'cpu', dtype?: ModelDType): Promise<LoopLM> {
      const model = await LoopLM.fromPretrained(folder, { device, ...(dtype === undefined ? {} : { dtype }) })
      await model.addAdapter({ rank: 2, alpha: 2 * scale, seed: 5 })
      await fillAdapter(model)
      return model
    }

    it('has one pair of LoRA matrices per matrix of the blocks, fused or not', async () => {
      using model = await adapted('cpu')
      const matrices = model.architecture.parameters.filter(({ role }) => /^(attention|attentionOutput|gateUp|down)$/.test(role))
      const path = ({ name }: { name: string }) => name.replace(/\.weight$/, '')
      expect(model.adapter!.parameters.map((p) => [p.name, ...p.shape])).toEqual(
        matrices.flatMap((m) => [
          [`${path(m)}.lora_A.weight`, 2, m.shape[1]],
          [`${path(m)}.lora_B.weight`, m.shape[0], 2],
        ]),
      )
    })

    it.each([
      ['reference', 'float64'],
      ['cpu', 'float32'],
      ['cpu', 'bfloat16'],
    ] as const)('scores as the merged model does (%s %s)', async (device, dtype) => {
      using model = await adapted(device, dtype)
      await expectNear(model, mergedBy(await parametersOf(model), await adapterOf(model), scale))
      if (dtype === 'bfloat16') return
      using merged = await model.mergeAdapter()
      const [own, sum] = [await model.score(sequences, given), await merged.score(sequences, given)]
      for (const i of sequences.keys())
        expect(relativeError(own.logprobs[i]!, sum.logprobs[i]!)).toBeLessThan(dtype === 'float64' ? 1e-12 : 1e-4)
    })

    it('has a gradient that agrees with central differences', async () => {
      using model = await adapted('reference')
      const loops = model.architecture.loops
      const used = sequences.slice(0, some)
      const prompts = promptLengths.slice(0, some)
      const coefficients = used.map((ids, i) =>
        Float64Array.from({ length: loops * (ids.length - 1) }, (_, n) =>
          n % (ids.length - 1) < prompts[i]! - 1 ? 0 : Math.cos(n + i),
        ),
      )
      const states = initialStates === undefined ? {} : { initialStates: initialStates.slice(0, some) }
      await model.score(used, { promptLengths: prompts, ...states })
      await model.backward(coefficients)
      const base = await parametersOf(model)
      const adapter = await adapterOf(model)
      const a = model.architecture
      const first = (ids: readonly number[], i: number) =>
        initialStates === undefined ? {} : { initialStates: initialStates[i]!.subarray(0, ids.length * a.hidden) }
      const loss = (values: Parameters) => {
        const p = mergedBy(base, values, scale)
        return used.reduce((sum, ids, i) => {
          const states = describedStates(a, p, ids, { promptLength: prompts[i]!, ...first(ids, i) })
          const rows = states.flatMap((rows) => rows.slice(0, -1).map((row, j) => describedLogSoftmax(a, p, row)[ids[j + 1]!]!))
          return rows.reduce((s, l, k) => s + coefficients[i]![k]! * l, sum)
        }, 0)
      }
      expectDerivative(await model.gradients(), adapter, loss)
    })

    it('trains only the adapter, saves published names and loads bit for bit', async () => {
      using model = await LoopLM.fromPretrained(folder)
      await model.addAdapter({ rank: 2 })
      const before = await parametersOf(model)
      using trainer = new RLTTTrainer(model, { weights: 'uniform', learningRate: 0.01 })
      await trainer.update({ sequences, promptLengths: batch.promptLengths, advantages: sequences.map((_, i) => (i % 2) - 0.5) })
      expect(await parametersOf(model)).toEqual(before)
      for (const [parameter, values] of await adapterOf(model))
        if (parameter.includes('.lora_B.')) expect(Math.max(...Array.from(values, Math.abs)), parameter).toBeGreaterThan(0)
      const saved = join(work, `${name}-adapter`)
      await model.saveAdapter(saved)
      const names = readTensors(join(saved, 'adapter_model.safetensors')).map((tensor) => tensor.name)
      expect(names.sort()).toEqual(model.adapter!.parameters.map((p) => `base_model.model.${p.name}`).sort())
      using other = await LoopLM.fromPretrained(folder)
      await other.loadAdapter(saved)
      expect(await adapterOf(other)).toEqual(await adapterOf(model))
      expect(await other.score(sequences, given)).toEqual(await model.score(sequences, given))
    })

    it('gets the adapter from the option lora of a trainer', async () => {
      using model = await LoopLM.fromPretrained(folder)
      using trainer = new RLTTTrainer(model, { weights: 'uniform', lora: { rank: 2 } })
      await trainer.update({ sequences, promptLengths: batch.promptLengths, advantages: sequences.map((_, i) => (i % 2) - 0.5) })
      using other = await adapted('cpu') // of the same rank
      const { rank, targetModules, parameters } = other.adapter!
      expect(model.adapter).toMatchObject({ rank, targetModules, parameters })
      expect(rank).toBe(2)
    })
  })

  it('applies weight decay only to matrices', async () => {
    using model = await LoopLM.fromPretrained(folder)
    const before = await parametersOf(model)
    const T = model.architecture.loops
    await model.backward(
      sequences,
      sequences.map((ids) => Array(T * (ids.length - 1)).fill(0)),
    )
    using optimizer = new AdamW(model, { learningRate: 0.1, weightDecay: 0.5 })
    await optimizer.step()
    for (const { name, shape } of model.parameters()) {
      const [was, is] = [before.get(name)!, await model.getParameter(name)]
      if (shape.length !== 2) expect(is, name).toEqual(was)
      else
        expect(
          relativeError(
            is,
            was.map((v) => 0.95 * v),
          ),
          name,
        ).toBeLessThan(1e-6)
    }
  })

  it('does not move frozen vectors', async () => {
    using model = await LoopLM.fromPretrained(folder)
    const before = await parametersOf(model)
    using trainer = new RLTTTrainer(model, { weights: 'uniform', learningRate: 0.1, weightDecay: 0.1 })
    await trainer.update({ sequences, promptLengths: batch.promptLengths, advantages: sequences.map((_, i) => (i % 2) - 0.5) })
    const unmoved = model.parameters().filter(({ name }) => notes.frozen.includes(name))
    for (const { name } of model.parameters()) {
      const same = expect(await model.getParameter(name), name)
      if (unmoved.some((p) => p.name === name)) same.toEqual(before.get(name))
      else same.not.toEqual(before.get(name))
    }
    expect(unmoved.map((p) => p.name)).toEqual(notes.family === 'hrm_text' ? ['model.z_L_init'] : [])
  })

  it('is initialized as published', async () => {
    const config = { ...json(folder, 'config.json'), ...wide[name] }
    using model = await LoopLM.create(config, { seed: 1 })
    for (const { name, shape } of model.parameters()) {
      const values = Array.from(await model.getParameter(name))
      const deviation = (part: readonly number[]) => Math.sqrt(part.reduce((sum, v) => sum + v * v, 0) / part.length)
      const wanted = published(notes.family, name, shape, { ...config, D: model.config.hidden_size })
      if (typeof wanted === 'number') expect(new Set(values), name).toEqual(new Set([wanted]))
      else
        for (const [i, { sigma, cut }] of wanted.entries()) {
          const n = values.length / wanted.length
          const part = values.slice(i * n, (i + 1) * n)
          expect(Math.abs(deviation(part) / sigma - (cut ? 0.9866 : 1)), `${name} ${i}`).toBeLessThan(4 / Math.sqrt(2 * n))
          if (cut) expect(Math.max(...part.map(Math.abs)), name).toBeLessThanOrEqual(3.0001 * sigma)
        }
    }
  })
})

/** The constant that a parameter begins with, or the standard deviations of its normals, of equal parts of the rows. */
function published(
  family: string,
  name: string,
  shape: readonly number[],
  c: Record<string, number>,
): number | { sigma: number; cut: boolean }[] {
  const { D } = c as { D: number }
  if (/norm|ln_f/.test(name)) return 1
  if (/bias/.test(name)) return 0
  if (family === 'nanbeige') return [{ sigma: c.initializer_range ?? 0.02, cut: false }]
  if (family === 'hrm_text') {
    if (name === 'model.z_L_init') return [{ sigma: 1, cut: true }]
    if (name === 'model.embed_tokens.weight') return [{ sigma: c.initializer_range!, cut: true }]
    return [{ sigma: 1 / Math.sqrt(shape[1]!), cut: true }]
  }
  const sigma = Math.sqrt(2 / (5 * D))
  const depth = c.n_layers_in_prelude! + c.n_layers_in_coda! + c.n_layers_in_recurrent_block! * c.mean_recurrence!
  const last = sigma / Math.sqrt(2 * depth)
  if (/\.proj\.weight$/.test(name)) return [{ sigma: last, cut: true }]
  if (/fc\.weight$/.test(name)) return [sigma, last].map((s) => ({ sigma: s, cut: true }))
  return [{ sigma, cut: true }]
}
