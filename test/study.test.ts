import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { LoopLM } from '../src/index.js'
import { fillTables } from '../study/document.js'
import { atEqualLoops } from '../study/gates.js'
import { figures } from '../study/one/figures.js'
import { baseId, chosenRate, dueRuns, type Method, methods, settings, trainingId } from '../study/one/plan.js'
import type { BaseResult, Measurement, Result, TrainingResult } from '../study/one/results.js'
import { train } from '../study/one/run.js'
import { tables } from '../study/one/tables.js'
import { deviation, holm, interval, logGamma, pairedTest, studentCdf, studentQuantile } from '../study/statistics.js'
import { readResults, storeResult } from '../study/store.js'

const root = join(import.meta.dirname, '..')
const folder = mkdtempSync(join(tmpdir(), 'study-'))
afterAll(() => rmSync(folder, { recursive: true }))

describe('statistics of the study', () => {
  it("agree with tables of Student's distribution", () => {
    for (const [freedom, t] of [
      [1, 12.7062047],
      [4, 2.7764451],
      [7, 2.3646243],
      [9, 2.2621572],
      [30, 2.0422725],
    ] as const)
      expect(studentQuantile(0.975, freedom)).toBeCloseTo(t, 6)
    expect(studentCdf(2, 10)).toBeCloseTo(0.963306, 6)
    expect(studentCdf(-2, 10)).toBeCloseTo(1 - 0.963306, 6)
    expect(studentCdf(0.5, 1)).toBeCloseTo(0.5 + Math.atan(0.5) / Math.PI, 12) // Cauchy
    expect(logGamma(0.5)).toBeCloseTo(Math.log(Math.PI) / 2, 12)
    expect(logGamma(10)).toBeCloseTo(Math.log(362880), 12)
  })

  it("reproduce the paired test of Student's sleep data", () => {
    const second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    const first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0, 2]
    const test = pairedTest(second, first)
    expect(test.mean).toBeCloseTo(1.58, 10)
    expect(test.t).toBeCloseTo(4.062128, 5)
    expect(test.p).toBeCloseTo(0.00283289, 7)
    expect([test.low, test.high]).toEqual([expect.closeTo(0.7001142, 6), expect.closeTo(2.4598858, 6)])
    expect(deviation([2, 4, 4, 4, 5, 5, 7, 9])).toBeCloseTo(2.13809, 5)
  })

  it('give a zero-width interval for one value, and no test for one pair', () => {
    expect(interval([0.4])).toEqual({ mean: 0.4, low: 0.4, high: 0.4, count: 1 })
    expect(() => pairedTest([1], [0])).toThrow(RangeError)
    expect(pairedTest([1, 2], [1, 2]).p).toBe(1)
  })

  it("adjust p-values by Holm's steps", () => {
    expect(holm([0.01, 0.04, 0.03, 0.005])).toEqual([0.03, 0.06, 0.06, 0.02].map((p) => expect.closeTo(p, 12)))
    expect(holm([0.9, 0.8])).toEqual([1, 1])
  })
})

describe('curves of accuracy against mean loops', () => {
  const curve = (...points: [number, number][]) => points.map(([loops, accuracy]) => ({ loops, accuracy }))

  it('are compared over the range that both cover', () => {
    expect(atEqualLoops(curve([1, 0], [3, 1]), curve([2, 0.5], [4, 0.5]), 4)!.map((value) => value.toFixed(6))).toEqual([
      '0.750000', // the mean of 0.5 to 1 over 2 to 3
      '0.500000',
    ])
    expect(atEqualLoops(curve([1, 0.2], [1.5, 0.3]), curve([2, 0.5], [4, 0.5]), 4)).toBeUndefined()
  })

  it('are compared up to their ends despite rounding', () => {
    for (let i = 0; i < 1000; i++) {
      const [from, to] = [1 + Math.abs(Math.sin(i)), 3 + Math.abs(Math.cos(i))]
      const [own, other] = atEqualLoops(curve([from, 0.5], [to, 0.5]), curve([1, 0.25], [to, 0.25]), 4)!
      expect(own).toBeCloseTo(0.5, 12)
      expect(other).toBeCloseTo(0.25, 12)
    }
  })
})

describe('plan of the study', () => {
  const measurement = (accuracy: number): Measurement => ({
    accuracy: [accuracy, accuracy, accuracy, accuracy],
    length: [5, 5, 5, 5],
    gates: settings.thresholds.map((threshold) => ({ threshold, accuracy, loops: 2 })),
    tokens: { easy: [accuracy], medium: [accuracy], hard: [accuracy] },
  })
  const base = (seed: number): BaseResult => {
    return { id: baseId(seed), kind: 'base', steps: 1, seconds: 1, final: measurement(0.3) }
  }
  const training = (method: string, seed: number, learningRate: number, accuracy: number): TrainingResult => ({
    id: trainingId(method, seed, learningRate),
    kind: 'training',
    method,
    base: seed,
    learningRate,
    curve: { step: [], seconds: [], reward: [], length: [], exitLoop: [] },
    checkpoints: [],
    final: measurement(accuracy),
  })
  const byId = (list: Result[]) => new Map(list.map((result) => [result.id, result]))

  it('makes bases first, then tunes every method on its own base', () => {
    const begun = dueRuns(new Map()).map(({ id }) => id)
    expect(begun.sort()).toEqual([...settings.tuningBases, ...settings.bases].map(baseId).sort())
    const [first] = settings.tuningBases
    const due = dueRuns(byId([base(first), base(0)]))
    expect(due).toContainEqual(expect.objectContaining({ id: trainingId('grpo', first, 1e-4), tuning: true }))
    expect(due.some((spec) => spec.kind === 'training' && spec.base === 0)).toBe(false)
    expect(new Set<number>([...settings.bases, ...settings.tuningBases]).size).toBe(
      settings.bases.length + settings.tuningBases.length,
    )
  })

  it('trains with the learning rate that was best on the tuning base, and skips what is stored', () => {
    const [seed] = settings.tuningBases
    const tuned = [training('grpo', seed, 1e-4, 0.5), training('grpo', seed, 2e-4, 0.9), training('grpo', seed, 4e-4, 0.4)]
    expect(chosenRate('grpo', byId(tuned.slice(1)))).toBeUndefined()
    expect(chosenRate('grpo', byId(tuned))).toBe(2e-4)
    const due = (more: Result[]) => dueRuns(byId([base(0), ...tuned, ...more])).map(({ id }) => id)
    expect(due([])).toContain(trainingId('grpo', 0, 2e-4))
    expect(due([training('grpo', 0, 2e-4, 0.5)])).not.toContain(trainingId('grpo', 0, 2e-4))
  })

  it('stores one result per id, and ignores a partly written file', () => {
    const results = [base(1), base(0), training('grpo', 0, 1e-4, 0.25)]
    for (const result of results) storeResult(folder, result)
    const again: BaseResult = { ...base(0), steps: 7 }
    storeResult(folder, again)
    writeFileSync(join(folder, 'base.jsonl.part'), '{"id": "half a li') // what a killed study leaves
    expect(readdirSync(folder).filter((name) => name.endsWith('.jsonl'))).toEqual(['base.jsonl', 'training.jsonl'])
    expect(readResults<Result>(folder)).toEqual(byId([{ ...base(0), steps: 7 }, base(1), training('grpo', 0, 1e-4, 0.25)]))
  })

  it('gives every reinforcement method the same rollouts and the same grid of learning rates', () => {
    const policies = Object.values(methods).filter(({ part }) => part !== 'b')
    for (const { steps, learningRates, options } of policies) {
      expect({ steps, learningRates }).toEqual({ steps: settings.policy.steps, learningRates: [1e-4, 2e-4, 4e-4] })
      expect(options).toMatchObject({ promptsPerStep: 32, groupSize: 8, temperature: 1 })
    }
  })
})

describe('report of the study', () => {
  const results = readResults<Result>(join(root, 'study', 'one', 'results'))

  it('regenerates the tables of docs/study.md from the stored metrics', () => {
    const text = readFileSync(join(root, 'docs', 'study.md'), 'utf8')
    expect(fillTables(text, tables(results))).toBe(text)
  })

  it('regenerates the figures from the stored metrics', () => {
    const made = Object.entries(figures(results))
    const stored = readdirSync(join(root, 'docs', 'study')).filter((name) => /^[abc]-.*\.svg$/.test(name))
    expect(made.map(([name]) => `${name}.svg`).sort()).toEqual(stored.sort())
    for (const [name, svg] of made) {
      expect(readFileSync(join(root, 'docs', 'study', `${name}.svg`), 'utf8'), name).toBe(svg)
      expect(svg, name).not.toMatch(/NaN|undefined|Infinity/)
    }
  })

  it('rejects a placeholder without a table and a table without a placeholder', () => {
    expect(() => fillTables('<!-- table x -->\n<!-- end -->', {})).toThrow(/table x, which does not exist/)
    expect(() => fillTables('', { x: '' })).toThrow(/no place for table x/)
    expect(fillTables('a\n<!-- table x -->\nold\n<!-- end -->\nb', { x: 'new' })).toBe(
      'a\n<!-- table x -->\nnew\n<!-- end -->\nb',
    )
  })
})

describe('a run of the study', () => {
  const sizes = { checkpointProblems: 4, finalProblems: 8, gateProblems: 8, tokenProblems: 4 }
  const small = { ...settings.model, hidden_size: 16, intermediate_size: 32 }

  for (const name of Object.keys(methods)) {
    it(`of ${name} gives the same metrics twice`, async () => {
      const { options } = methods[name]!
      const firstDigit = (_: string, completion: string, { answer }: Record<string, unknown>) =>
        Number(completion[0] === String(answer)[0]) // an untrained model earns this sometimes
      const fewer = methods[name]!.part === 'b' ? { batchSize: 16 } : { promptsPerStep: 16, reward: firstDigit }
      const method: Method = { ...methods[name]!, steps: 3, options: { ...options, ...fewer } }
      const run = async () => {
        using model = await LoopLM.create(small, { seed: 3, threads: 1 })
        const id = trainingId(name, 3, 1e-3)
        const result = await train(
          { id, kind: 'training', method: name, base: 3, learningRate: 1e-3, tuning: false },
          model,
          method,
          sizes,
        )
        return JSON.parse(
          JSON.stringify(result, (key, value: unknown) => (key === 'seconds' ? undefined : value)),
        ) as TrainingResult
      }
      const result = await run()
      expect(await run()).toEqual(result)
      expect(result.final.accuracy).toHaveLength(4)
      expect(result.final.tokens.hard).toHaveLength(4)
      expect(result.curve.step).toEqual([1, 2, 3])
      expect(result.curve.reward).toHaveLength(3)
      if (method.part !== 'b') for (const value of result.curve.reward) expect(value * (1 - value)).toBeGreaterThan(0)
    })
  }
})
