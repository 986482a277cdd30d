// LoopRPT on text: what a run stores, and what the report makes of it.
import { describe, expect, it } from 'vitest'
import { LoopLM } from '../src/index.js'
import { arms, dueRuns, runId, settings } from '../study/text/plan.js'
import type { Measurement, Result } from '../study/text/results.js'
import { hardOnly, measure, train } from '../study/text/run.js'
import { claim, tables } from '../study/text/tables.js'

const { thresholds } = settings
const block = (seed: number) => Array.from({ length: 12 }, (_, i) => 97 + ((i + seed) % 7))
const text = {
  training: Array.from({ length: 20 }, (_, i) => block(i)),
  heldOut: [block(3), block(5)],
  fingerprint: 'a text',
}

describe('a run on text', () => {
  it.each(['looprpt', 'stage1', 'stage1-hard', 'policy', 'stage2'])('of %s gives the same metrics twice', async (arm) => {
    const run = async () => {
      using model = await LoopLM.create(settings.model, { seed: 3, threads: 1 })
      const { seconds, ...rest } = await train({ id: runId(arm, 0), kind: 'training', arm, base: 0 }, model, text, 2)
      expect(seconds).toBeGreaterThan(0)
      return rest
    }
    const result = await run()
    expect(await run()).toEqual(result)
    expect(result.final.gate).toHaveLength(thresholds.gate.length)
    expect(result.noise !== undefined).toBe(arms[arm]!.trainer === 'looprpt')
  })

  it('trains only the hard bytes of a block, and measures those of the base', async () => {
    const run = async (arm: string) => {
      using model = await LoopLM.create(settings.model, { seed: 3, threads: 1 })
      return await train({ id: runId(arm, 0), kind: 'training', arm, base: 0 }, model, text, 3)
    }
    const [hard, all] = [await run('stage1-hard'), await run('stage1-equal-data')]
    const [noisy, noisier] = [await run('looprpt-1e-4'), await run('looprpt-more-noise-1e-4')]
    expect(noisier.noise! / noisy.noise!).toBeCloseTo(3, 2)
    expect(hard.final.loss).not.toEqual(all.final.loss)
    expect(hard.hard!.map(({ base }) => base)).toEqual(all.hard!.map(({ base }) => base))
    for (const { share } of hard.hard!) expect(share).toBe(1) // an untrained model is certain of nothing
    using base = await LoopLM.create(settings.model, { seed: 3, threads: 1 })
    expect(hard.hard![0]!.base).toEqual((await measure(base, text)).accuracy)
    expect(hard.hard![0]!.trained).toEqual(hard.final.accuracy)
  })

  it('keeps the fifth of a block whose entropy at full depth is highest', async () => {
    using model = await LoopLM.create(settings.model, { seed: 3, threads: 1 })
    const { mask } = await hardOnly(model, { sequences: text.heldOut })
    const { entropy } = await model.score(text.heldOut)
    expect(mask).toHaveLength(2)
    for (const [i, row] of mask.entries()) {
      const last = Array.from(entropy[i]!.slice(-row.length))
      const of = (kept: number) => last.filter((_, j) => row[j] === kept)
      expect(of(1)).toHaveLength(3) // of 11 predictions, rounded up
      expect(Math.min(...of(1))).toBeGreaterThanOrEqual(Math.max(...of(0)))
    }
  })

  it('measures the extreme exit thresholds like fixed loops', async () => {
    using model = await LoopLM.create(settings.model, { seed: 3, threads: 1 })
    const { accuracy, gate, entropy } = await measure(model, text)
    expect(gate.at(-1)).toEqual({ accuracy: accuracy.at(-1), loops: 4 }) // threshold 1
    expect(entropy[0]).toEqual({ accuracy: accuracy.at(-1), loops: 4 }) // no prediction is certain
    expect(entropy.at(-1)).toEqual({ accuracy: accuracy[0], loops: 1 }) // 6 nats are more than ln 256
  })
})

describe('report of LoopRPT on text', () => {
  const measurement = (accuracy: number): Measurement => {
    const points = [1, 2, 3, 4].map((loops) => ({ loops, accuracy: accuracy - 0.1 / loops }))
    return { accuracy: points.map((point) => point.accuracy), loss: [2, 2, 2, 2], gate: points, entropy: points }
  }
  const result = (arm: string, base: number, accuracy: number): Result => ({
    ...{ id: runId(arm, base), kind: arm === 'base' ? 'base' : 'training', processor: 'a processor', arm, base },
    ...{ text: 'a text', steps: 1, seconds: 1, ...(arm === 'base' && { fell: 0.012 }) },
    ...{ final: measurement(accuracy + 0.001 * Math.sin(base + arm.length)) },
    ...(arm !== 'base' && { hard: settings.hardAbove.map((above) => hardBytes(above, accuracy + 0.001 * Math.sin(base))) }),
  })
  const hardBytes = (above: number, accuracy: number) => {
    return { above, share: 0.3, base: [0.1, 0.2, 0.2, 0.2], trained: [0.1, accuracy, accuracy, accuracy] }
  }
  const gains: Record<string, number> = { base: 0, looprpt: 0.05, stage1: 0.1, 'stage1-equal-data': 0.02 }
  const results = (count: number) =>
    new Map(
      settings.bases
        .slice(0, count)
        .flatMap((base) =>
          Object.entries(gains).map(([arm, gain]) => [runId(arm, base), result(arm, base, 0.4 + gain)] as const),
        ),
    )

  it('answers the claim by its corrected tests, and says what is missing', () => {
    expect(claim(results(4))).toMatch(/^does not hold: LoopRPT is ahead of base .*Stage I \(data\).*; behind Stage I \(compute\)/)
    expect(claim(results(2))).toMatch(/no run on text yet/)
    expect(tables(results(4))['text-tests']).toMatch(/\| LoopRPT \| base \| gate \| \+5\.\d/)
    expect(tables(new Map()).text).toBe('No runs yet.')
  })

  it('calls arms equal only by the test of equivalence', () => {
    const same = settings.bases.map((base) => result('stage1-hard', base, 0.45))
    const made = new Map([...results(4), ...same.map((run) => [run.id, run] as const)])
    expect(claim(made)).toMatch(/^does not hold: .*; equal to Stage I \(hard tokens\) \(/)
    expect(tables(made)['text-tests']).toMatch(/\| LoopRPT \| Stage I \(hard tokens\) \| gate \| .* \| 1\.0000 \| \.0\d+ \|\n/)
  })

  it('compares an arm at its best learning rate', () => {
    const slower = (count: number) => {
      const runs = settings.bases.slice(0, count).map((base) => result('looprpt-3e-4', base, 0.55))
      return new Map([...results(4), ...runs.map((run) => [run.id, run] as const)])
    }
    expect(claim(slower(4))).toMatch(/^holds: LoopRPT, 3e-4 is ahead of base .*Stage I \(compute\)/)
    expect(claim(slower(2))).toMatch(/^does not hold: LoopRPT is /) // too few bases to choose it
  })

  it('compares hard bytes with the base and with the same bytes in Stage I', () => {
    const made = tables(results(4))
    expect(made['text-hard']).toMatch(/\| LoopRPT \| base \| 4 \| \+25\.\d/)
    expect(made['text-hard']).toMatch(/\| LoopRPT \| Stage I \(data\) \| 2 \| \+3\.0/)
    expect(made['text-hard-levels']).toMatch(/above 1\.5 nats \(30\.0 % of all\)[\s\S]*\| base \| 20\.0 ± 0\.0/)
    expect(tables(results(2))['text-hard']).toBe('No runs yet.')
  })

  it('lists due runs: first bases, then the arms of a finished base', () => {
    expect(dueRuns(new Map())).toHaveLength(settings.bases.length)
    expect(dueRuns(results(1)).map(({ id }) => id)).toContain(runId('policy', 0))
    expect(Object.keys(arms)).not.toContain('base')
  })
})
