// Families of looped models against an independent PyTorch implementation: scores of every loop, gradients, AdamW, saved folders.
// LOOPLM_FAMILY_FIXTURES names a folder of other seeds.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type DeviceName, LoopLM, RLTTTrainer } from '../../src/index.js'
import { buildEmulated, stepsOn, triedOn, triesAll } from '../emulated.js'
import { batchOf, behind, type Notes, familiesFolder as root } from '../family-fixtures.js'
import { norm, readGolden, relativeError } from '../golden-files.js'
import { refusal } from '../refusal.js'

const targets: { device: DeviceName; dtype: 'float32' | 'float64'; bound: number }[] = [
  { device: 'reference', dtype: 'float64', bound: 1e-9 },
  { device: 'cpu', dtype: 'float32', bound: 1e-4 },
  { device: 'cuda-emulated' as DeviceName, dtype: 'float32', bound: 1e-4 }, // the CUDA kernels without a GPU
]
const work = mkdtempSync(join(tmpdir(), 'looplm-families-'))
afterAll(() => rmSync(work, { recursive: true }))
beforeAll(buildEmulated, 900_000)

describe.each(targets)('$device $dtype', ({ device, dtype, bound }) => {
  describe.each(triedOn(device, readdirSync(root)))('%s', (name) => {
    const folder = join(root, name)
    const gold = readGolden(folder)
    const notes: Notes = JSON.parse(readFileSync(join(folder, 'golden.json'), 'utf8'))
    const { sequences, promptLengths, lengths, width, perSequence, options } = batchOf(gold, folder)
    const load = () => LoopLM.fromPretrained(folder, { device, dtype })
    /** Inside a prefix that sees itself log-probabilities mean nothing. */
    const first = (b: number) => (notes.prefix_mask ? promptLengths[b]! - 1 : 0)
    const prompts = notes.prefix_mask ? { promptLengths } : {}

    it('scores every token at every loop', async () => {
      using model = await load()
      expect(model.family).toBe(notes.family === 'huginn' ? 'huginn_raven' : notes.family)
      const scores = await model.score(sequences, { ...options, ...prompts })
      expect(scores.loops).toBe(notes.loops)
      for (const [got, golden] of [
        [scores.logprobs, 'logprobs'],
        [scores.entropy, 'entropy'],
      ] as const) {
        const wanted = perSequence(golden, first)
        for (const [b, want] of wanted.entries())
          expect(relativeError(behind(got[b]!, lengths[b]! - 1, first(b)), want)).toBeLessThan(bound)
      }
      const pdf = scores.exitPdf[0]!
      expect(Array.from(pdf), 'without a gate every token takes all loops').toEqual(
        Array.from(pdf, (_, i) => (i < pdf.length - lengths[0]! ? 0 : 1)),
      )
    })

    const checkGradients = (loss: string, gradients: ReadonlyMap<string, ArrayLike<number>>) => {
      const prefix = `grad.${loss}.`
      const wanted = [...gold].filter(([key]) => key.startsWith(prefix))
      const total = Math.sqrt(wanted.reduce((sum, [, { data }]) => sum + norm(data) ** 2, 0))
      expect([...gradients.keys()].sort()).toEqual(wanted.map(([key]) => key.slice(prefix.length)).sort())
      for (const [key, { data }] of wanted)
        expect(relativeError(gradients.get(key.slice(prefix.length))!, data, 1e-2 * total), key).toBeLessThan(bound)
    }

    const trainedGradients = async (model: LoopLM) => {
      const gradients = new Map<string, ArrayLike<number>>()
      for (const { name } of model.parameters()) if (!notes.frozen.includes(name)) gradients.set(name, await model.gradient(name))
      return gradients
    }

    // What is recomputed is the engine's choice, not the device's: the emulator tries the least and the most.
    const recomputes = (['none', 'loop', 'layer'] as const).filter((way) => triesAll(device) || way !== 'loop')
    it.each(recomputes)('has the gradient of a next-token loss, recompute %s', async (recompute) => {
      using model = await load()
      const weights = gold.get('loop_weights')!.data
      const mask = gold.get('loss_mask')!.data
      const tokens = mask.reduce((sum, m) => sum + m, 0)
      const coefficients = lengths.map((length, b) =>
        Array.from(weights, (w) =>
          Array.from({ length: length - 1 }, (_, j) => (-w * mask[b * (width - 1) + j]!) / tokens),
        ).flat(),
      )
      if (notes.prefix_mask) {
        await model.score(sequences, { ...options, ...prompts }) // its prompts are those of the gradient
        await model.backward(coefficients, { recompute })
      } else {
        await model.backward(sequences, coefficients, { ...options, recompute })
      }
      checkGradients('next_token', await trainedGradients(model))
    })

    if (gold.has('loss.last_truncated'))
      it.each(recomputes)('has the truncated gradient of its published training, recompute %s', async (recompute) => {
        using model = await load()
        const mask = gold.get('loss_mask')!.data
        const tokens = mask.reduce((sum, m) => sum + m, 0)
        const coefficients = lengths.map((length, b) =>
          Array.from({ length: length - 1 }, (_, j) => -mask[b * (width - 1) + j]! / tokens),
        )
        const readLoops = [notes.loops]
        const { logprobs } = await model.score(sequences, { ...options, ...prompts, readLoops })
        const loss = logprobs.flatMap((row, b) =>
          Array.from(row, (l, j) => (mask[b * (width - 1) + j]! ? l * coefficients[b]![j]! : 0)),
        )
        const want = gold.get('loss.last_truncated')!.data[0]!
        expect(Math.abs(loss.reduce((a, b) => a + b, 0) - want)).toBeLessThan(bound * Math.max(1, want))
        await model.backward(coefficients, { recompute, backwardLoops: 'published' })
        checkGradients('last_truncated', await trainedGradients(model))
        if (notes.family === 'hrm_text') return
        await model.zeroGradients()
        await model.backward(coefficients, { recompute, backwardLoops: notes.truncate as number })
        checkGradients('last_truncated', await trainedGradients(model))
      })

    it('follows the oracle through AdamW steps of RLTT', async () => {
      using model = await load()
      const batch = { sequences, promptLengths, advantages: Array.from(gold.get('advantages')!.data), ...options }
      const settings = { weights: 'uniform', learningRate: 1e-3, weightDecay: 0.1, maxGradNorm: 1 } as const
      using trainer = new RLTTTrainer(model, settings)
      checkGradients('rltt_uniform', (await trainer.gradients(batch)).gradients)
      for (const want of stepsOn(device, gold.get('adamw_losses')!.data)) {
        const { loss } = await trainer.update(batch)
        expect(Math.abs(loss! - want) / Math.max(Math.abs(want), 0.1)).toBeLessThan(bound)
      }
    })

    it('is saved in the published form', async () => {
      using model = await load()
      const saved = join(work, `${device}-${name}`)
      await model.save(saved)
      using again = await LoopLM.fromPretrained(saved, { device, dtype })
      expect(again.parameters()).toEqual(model.parameters())
      for (const { name } of model.parameters()) expect(await again.getParameter(name)).toEqual(await model.getParameter(name))
      const published = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))
      expect(JSON.parse(readFileSync(join(saved, 'config.json'), 'utf8'))).toMatchObject({
        model_type: published.model_type,
        ...('auto_map' in published ? { auto_map: published.auto_map } : {}),
      })
    })
  })
})

describe('options that a family does not have', () => {
  const config = JSON.parse(readFileSync(join(root, 'nanbeige', 'config.json'), 'utf8'))
  it.each([
    ['enable_mhc', true, /enable_mhc: is set, but hyper-connections/],
    ['loop_share_kv', true, /loop_share_kv/],
    ['loop_loss_weights', [0.7, 0.7], /loop_loss_weights: must sum to at most 1, got 1.4/],
    ['rope_scaling', { rope_type: 'yarn' }, /rope_scaling/],
  ])('are rejected by name: %s of Nanbeige', async (field, value, message) => {
    const error = await refusal(() => LoopLM.create({ ...config, [field]: value }))
    expect(error.code).toBe('INVALID_CONFIG')
    expect(error.message).toMatch(message)
  })
  it('are rejected by name: an exit gate', async () => {
    using model = await LoopLM.create(config)
    using trainer = new RLTTTrainer(model, { weights: 'exit-pdf' })
    const update = () => trainer.update({ sequences: [[1, 2, 3]], promptLengths: [1], advantages: [1] })
    expect((await refusal(update)).message).toMatch(/needs an exit gate, and this model of family nanbeige has none/)
    expect((await refusal(() => model.generate([[1]], { exit: { rule: 'gate', threshold: 0.5 } }))).message).toMatch(/exit gate/)
  })
})

it('initial states depend on the tokens and the seed, not on the batch', async () => {
  using model = await LoopLM.fromPretrained(join(root, 'huginn'), { device: 'cpu', dtype: 'float32' })
  const [alone] = (await model.score([[1, 2, 3, 4]])).logprobs
  const beside = (
    await model.score([
      [5, 6, 7],
      [1, 2, 3, 4],
      [1, 2, 3, 4, 9],
    ])
  ).logprobs
  expect(beside[1]).toEqual(alone)
  expect((await model.score([[1, 2, 3, 4]], { stateSeed: 1 })).logprobs[0]).not.toEqual(alone)
  expect((await model.score([[1, 2, 3, 4]], { initialState: 'zeros' })).logprobs[0]).not.toEqual(alone)
})
