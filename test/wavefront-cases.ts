// Requests of every kind, decoded by wavefront and plainly.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type CreateOptions, type ExitRule, type GenerateOptions, type LoadOptions, LoopLM } from '../src/index.js'
import { settle } from './settling.js'
import { smallConfig } from './tiny.js'

export const wavefrontConfig = { ...smallConfig, total_ut_steps: 4, initializer_range: 0.5 }
const prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
export const open: GenerateOptions = { maxNewTokens: 24, stop: [], seed: 3 }
const exits: ExitRule[] = [
  { rule: 'fixed' },
  { rule: 'gate', threshold: 0.6 },
  { rule: 'gate', threshold: 0.8, minLoops: 2 },
  { rule: 'sampled' },
  { rule: 'hidden-delta', threshold: 0.35 },
  { rule: 'cosine', threshold: 0.05 },
  { rule: 'entropy', threshold: 2 },
  { rule: 'entropy-change', threshold: 0.1 },
  { rule: 'kl', threshold: 0.05 },
  { rule: 'kl-previous', threshold: 0.05 },
  { rule: 'argmax-stable' },
  { rule: 'argmax-stable', patience: 2 },
]
const draws: GenerateOptions[] = [
  { temperature: 0 },
  { temperature: 0.8 },
  { temperature: 0.7, topK: 5 },
  { topP: 0.8, seed: 9 },
  { minP: 0.05, logprobs: 3 },
  { temperature: 0, repetitionPenalty: 1.7 },
  { frequencyPenalty: 1.5, presencePenalty: 0.5, temperature: 0.9 },
  { logitBias: { 5: 2, 9: -3 }, bannedTokens: [3, 4], temperature: 0 },
  { temperature: 0, stop: [7, 11, 30] },
  { temperature: 0, loops: 2 },
  { temperature: 0.5, loops: 6 },
]
/** Every way of drawing at full depth, and every rule greedily and with a filter and penalties. */
const cases: GenerateOptions[] = [
  ...draws,
  ...exits.flatMap((exit) => [
    { temperature: 0, exit },
    { temperature: 0.8, topP: 0.9, repetitionPenalty: 1.2, exit },
  ]),
].map((options) => ({ ...open, ...options }))

/** The model again, with matrices of few bits. */
async function quantized(model: LoopLM, options: LoadOptions): Promise<LoopLM> {
  const folder = mkdtempSync(join(tmpdir(), 'looplm-wavefront-'))
  try {
    await model.save(folder)
    model.dispose()
    return await LoopLM.fromPretrained(folder, options)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** What readouts do, how far layers move the states, and the share of the drafts that is then accepted: from and to. */
const readouts = [
  ['settle early', 0.05, [0.5, 1]],
  ['settle in the middle', 0.2, [0.2, 0.9]],
  ['never settle', 1, [0.01, 0.5]],
] as const

/**
 * Tests that both give the same bits on a device. every: 2 takes every second kind of request; only: readouts that do so alone;
 * maxNewTokens: how many tokens each request gets.
 */
export function decodesAlike(
  target: CreateOptions,
  every: number,
  { only, maxNewTokens = 24 }: { only?: (typeof readouts)[number][0]; maxNewTokens?: number } = {},
): void {
  const own = cases.filter((_, i) => i % every === 0).map((options) => ({ ...options, maxNewTokens }))
  describe.each(readouts.filter(([what]) => only === undefined || what === only))('readouts that %s', (_, scale, share) => {
    let model: LoopLM
    beforeAll(async () => {
      const { quantize, groupSize, ...place } = target
      model = await LoopLM.create(wavefrontConfig, { ...place, seed: 11, threads: 1 })
      await settle(model, scale)
      if (quantize) model = await quantized(model, { quantize, groupSize, threads: 1 })
    })
    afterAll(() => model.dispose())

    it('give the same tokens, loops and log-probabilities as plain decoding, alone and batched', async () => {
      using scheduler = model.scheduler({ maxRows: 3, loops: 6 })
      for (const [i, options] of own.entries()) {
        const ahead = { ...options, loops: options.loops ?? 4, speculate: 'wavefront' } as const
        const plain = await model.generate(prompts, options)
        expect(await model.generate(prompts, ahead), `${i}`).toEqual(plain)
        const other = scheduler.add([9, 9], options).result()
        const one = scheduler.add(prompts[i % 3]!, { ...ahead, sequence: i % 3 }).result()
        expect(await one, `${i} beside others`).toEqual(plain[i % 3])
        await other
      }
      const { drafted, accepted, cachedTokens } = scheduler.stats()
      expect(accepted).toBeGreaterThan(share[0] * drafted)
      expect(accepted).toBeLessThan(share[1] * drafted)
      expect(drafted - accepted).toBeGreaterThan(own.length)
      expect(cachedTokens).toBe(0)
    })
  })
}
