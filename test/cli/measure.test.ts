// What `looplm plan` says of time: operations by hand, what the steps of each trainer compute, and a measurement that has a result.
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { stringify } from 'yaml'
import { forwardOperations, measureRates, passOperations, stepSeconds, tokensPerSecond } from '../../src/cli/measure.js'
import { makePlan } from '../../src/cli/plan.js'
import { readTrainConfig } from '../../src/cli/train-config.js'
import { architectureOf, parseConfig } from '../../src/model/config.js'
import { plannedStep } from '../../src/rl/planned-step.js'
import { type TrainerName, trainerNames, trainers } from '../../src/rl/registry.js'
import { tinyConfig } from '../tiny.js'
import { runProgram } from './program.js'

const architecture = architectureOf(parseConfig(tinyConfig, 'test', false))
// one block: q, k, v, o of 16 × 16, gate, up and down of 16 × 24, four norms of 16; one norm behind the loops
const matrices = 4 * 16 * 16 + 3 * 16 * 24
const norms = 5 * 16
const head = 12 * 16
const lengths = { promptTokens: 4, newTokens: 6 }
const planned = (trainer: TrainerName, options: object) =>
  plannedStep(trainer, trainers[trainer].schema.parse({ tokensPerMicroBatch: 4096, ...options }), architecture, lengths)

describe('the operations of a token', () => {
  it('are two per weight and loop, plus those of the head and of attention', () => {
    expect(forwardOperations(architecture, { loops: 3, reads: 1 })).toBe(2 * (3 * (matrices + norms) + head))
    expect(forwardOperations(architecture, { loops: 3, reads: 3 })).toBe(2 * (3 * (matrices + norms) + 3 * head))
    const attention = 4 * 16 * 10 // scores and sums of 10 tokens, heads × head_dim = 16
    expect(forwardOperations(architecture, { loops: 3, reads: 1, context: 10 })).toBe(
      2 * (3 * (matrices + norms) + head) + 3 * attention,
    )
  })

  it('count blocks outside the loops once, and looped blocks in every loop', async () => {
    const families = join(import.meta.dirname, '../fixtures/families')
    for (const family of await readdir(families)) {
      const config = JSON.parse(await readFile(join(families, family, 'config.json'), 'utf8'))
      const found = architectureOf(parseConfig(config, family, true))
      const [one, two] = [1, 2].map((loops) => forwardOperations(found, { loops, reads: 0 })) as [number, number]
      const blocks = (steps: typeof found.loop) => steps.filter(({ kind }) => kind === 'block').length
      const { hidden: D, intermediate: F, heads, kvHeads, headDim } = found
      const least = 2 * (2 * D * heads * headDim + 2 * D * kvHeads * headDim + 3 * D * F) // of a block without biases and gates
      expect(two - one, family).toBeGreaterThanOrEqual(blocks(found.loop) * least)
      expect(one - (two - one), family).toBeGreaterThanOrEqual(blocks(found.begin) * least)
      expect(two - one, family).toBeLessThan(blocks(found.loop) * least * 2)
    }
  })

  it('are three times as many in training, or twice as many with an adapter', () => {
    const pass = { tokens: 10, loops: 3, reads: 3, backward: 3 }
    const forward = 10 * forwardOperations(architecture, { loops: 3, reads: 3, context: 5 })
    expect(passOperations(architecture, pass, { context: 5 })).toBe(3 * forward)
    expect(passOperations(architecture, pass, { context: 5, adapter: true })).toBe(2 * forward)
    expect(passOperations(architecture, pass, { context: 5, recompute: true })).toBe(4 * forward)
    expect(passOperations(architecture, { ...pass, backward: 0 }, { context: 5 })).toBe(forward)
  })

  it('give the tokens per second of the loops and the recomputation that were asked for', () => {
    const config = parseConfig(tinyConfig, 'test', false)
    const rates = { forward: 1e9, train: 1e9, decode: 1e9, rows: 1 }
    const speed = (how: object) => tokensPerSecond(config, rates, { context: 8, recompute: false, ...how })
    expect(speed({ loops: 3 })).toEqual(speed({}))
    const fewer = speed({ loops: 1 })
    expect(fewer.generate).toBe(1e9 / forwardOperations(architecture, { loops: 1, reads: 1, context: 4 }))
    expect(fewer.train).toBeGreaterThan(speed({}).train)
    expect(speed({ recompute: true })).toEqual({ ...speed({}), train: 0.75 * speed({}).train })
  })
})

describe('a step', () => {
  const some = { promptsPerStep: 2, groupSize: 4, maxNewTokens: 6, logprobCheckEvery: 0 }
  const apart = 2 * 4 * (4 + 6)
  const shared = 2 * 4 + 2 * 4 * 6 // training runs the prompt of a group once

  it('trains one loop with GRPO and all loops with RLTT, plus the scores they need', () => {
    const { rollouts, passes, copies } = planned('grpo', some)
    expect(rollouts).toEqual({ prompts: 2, completions: 8, promptTokens: 4, newTokens: 6, loops: 3 })
    expect(passes).toEqual([{ tokens: shared, loops: 3, reads: 1, backward: 3 }])
    expect(copies).toBe(0)
    expect(planned('rltt', some).passes).toEqual([{ tokens: shared, loops: 3, reads: 3, backward: 3 }])
    const old = { tokens: apart, loops: 3, reads: 1, backward: 0 }
    expect(planned('grpo', { ...some, updatesPerRollout: 2 }).passes).toEqual([
      { tokens: 2 * shared, loops: 3, reads: 1, backward: 3 },
      old,
    ])
    const compared = planned('grpo', { ...some, beta: 0.1, logprobCheckEvery: 4 })
    expect(compared.passes.slice(1)).toEqual([{ ...old, tokens: apart / 4 }, old])
    expect(compared.copies).toBe(1)
    expect(planned('grpo', { ...some, beta: 0.1, lora: {} }).copies).toBe(0)
    expect(planned('objective', { ...some, objective: 'looprpt' }).copies).toBe(1)
  })

  it('counts rows or packed text in pre-training, and rollouts and a teacher in LoopRPT', () => {
    expect(planned('pretrain', { batchSize: 5 }).passes).toEqual([{ tokens: 50, loops: 3, reads: 3, backward: 3 }])
    expect(planned('pretrain', { batchSize: 5, stage: 2 }).passes[0]!.backward).toBe(0)
    const text = { ...(trainers.pretrain.schema.parse({ batchSize: 5, contextLength: 7 }) as object), corpus: 'text.txt' }
    expect(plannedStep('pretrain', text, architecture, lengths).passes[0]!.tokens).toBe(35)
    const { passes, copies } = planned('looprpt', { batchSize: 5, rollouts: 8, rho: 0.5 })
    expect(copies).toBe(1)
    expect(passes.map(({ tokens, loops, backward }) => [tokens, loops, backward])).toEqual([
      [50, 3, 0],
      [50, 3, 3],
      [400, 2, 2],
    ])
  })

  it('takes the time of its passes plus that of prompts and sampled tokens', () => {
    const step = planned('grpo', { ...some, beta: 0.1 })
    const rates = { train: 1000, forward: 500, decode: 100, rows: 8 }
    const { sampling, update } = stepSeconds(architecture, rates, step)
    const at = (reads: number, context: number) => forwardOperations(architecture, { loops: 3, reads, context })
    expect(update).toBeCloseTo((3 * shared * at(1, 5)) / 1000 + (apart * at(1, 5)) / 500, 9)
    expect(sampling).toBeCloseTo((2 * 4 * at(0, 2)) / 500 + (8 * 6 * at(1, 7)) / 100, 9)
  })
})

describe('a plan', () => {
  it('is made for every family and trainer, with waves when rollouts do not fit', async () => {
    const root = await mkdtemp(join(tmpdir(), 'looplm-plans-'))
    const families = join(import.meta.dirname, '../fixtures/families')
    for (const family of await readdir(families)) {
      const model = parseConfig(JSON.parse(await readFile(join(families, family, 'config.json'), 'utf8')), family, true)
      for (const trainer of trainerNames) {
        const path = join(root, `${trainer}.yaml`)
        await writeFile(path, stringify({ trainer, model: 'unread', dataset: 'rows.jsonl', options: {} }))
        const plan = (set: string[], free?: number) =>
          readTrainConfig(path, set).then((config) => makePlan(config, model, lengths, free))
        const { step, train, waves, peak, weights, gradients } = await plan([])
        expect(train, `${family} ${trainer}`).toBeGreaterThan(weights + gradients)
        const { sampling, update } = stepSeconds(architectureOf(model), { train: 1, forward: 1, decode: 1, rows: 1 }, step)
        expect(update).toBeGreaterThan(0)
        expect(Number.isFinite(update + sampling)).toBe(true)
        expect(step.rollouts !== undefined, trainer).toBe(['rltt', 'grpo', 'objective'].includes(trainer))
        if (step.rollouts === undefined) continue
        expect(waves).toBe(1)
        const tight = await plan([], train + (peak - train) / 3 / 0.9)
        expect(tight.waves, `${family} ${trainer}`).toBeGreaterThanOrEqual(3)
        expect(tight.waves).toBeLessThanOrEqual(4)
      }
    }
    await rm(root, { recursive: true })
  })

  it('has a rate for every kind of work', async () => {
    const rates = await measureRates(architecture, { device: 'cpu' }, { rows: 4, tokens: 16 })
    expect(rates.rows).toBe(4)
    for (const rate of [rates.train, rates.forward, rates.decode]) expect(rate).toBeGreaterThan(0)
  })

  // A factor of 20 either way: what this finds is a wrong unit or a forgotten factor of the step, on a machine that does other things too.
  it('predicts the time of a real step within a factor of 20', async () => {
    const root = await mkdtemp(join(tmpdir(), 'looplm-plan-real-'))
    const model = { hidden_size: 64, intermediate_size: 176, num_hidden_layers: 2, num_attention_heads: 4, total_ut_steps: 3 }
    const options = { steps: 2, promptsPerStep: 2, groupSize: 8, maxNewTokens: 24, beta: 0.1, tokensPerMicroBatch: 256 }
    const rows = Array.from({ length: 8 }, (_, i) => JSON.stringify({ prompt: `${i}`.repeat(32), answer: 'x' }))
    await writeFile(join(root, 'rows.jsonl'), rows.join('\n'))
    await writeFile(join(root, 'odd.mjs'), 'export const odd = (prompt, completion) => completion.charCodeAt(3) % 2\n')
    const file = { trainer: 'grpo', model, dataset: 'rows.jsonl', tokenizer: 'bytes', reward: 'odd.mjs', threads: 1, options }
    await writeFile(join(root, 'run.yaml'), stringify(file))
    const plan = await runProgram(['plan', 'run.yaml', '--prompt-tokens', '32', '--json'], { cwd: root })
    const { time, peak } = JSON.parse(plan.stdout)
    const train = await runProgram(['train', 'run.yaml', '--json'], { cwd: root })
    const steps = train.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
      .filter(({ type }) => type === 'step')
    const last = steps.at(-1).metrics
    const predicted = time.sampling + time.update
    console.log(
      `a step: ${predicted.toFixed(2)} s predicted (${time.sampling.toFixed(2)} sampling), ${last.step_time.toFixed(2)} s measured ` +
        `(${last.sampling_time.toFixed(2)} sampling); ${(peak / 2 ** 20).toFixed(0)} MiB at most predicted, ${last['memory/device'].toFixed(0)} MiB held`,
    )
    expect(predicted / last.step_time).toBeGreaterThan(1 / 20)
    expect(predicted / last.step_time).toBeLessThan(20)
    await rm(root, { recursive: true })
  })
})
