// The report of Study II on made-up results, whose verdicts are known, whole and in part.
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { fillTables } from '../study/document.js'
import { readResults } from '../study/store.js'
import type { Result as TextResult } from '../study/text/results.js'
import { type Question, sentence, verdictsOf } from '../study/two/comparisons.js'
import { figures } from '../study/two/figures.js'
import { baseId, settings, type TaskName, taskOf, trainingId } from '../study/two/plan.js'
import type { Measurement, Point, Result } from '../study/two/results.js'
import { tables } from '../study/two/tables.js'

const page = readFileSync(join(import.meta.dirname, '../docs/study-2.md'), 'utf8')
const seed = (base: number) => Math.sin(12.9898 * (base + 1)) * 0.01 // differs from base to base

function measurement(task: TaskName, accuracy: number, length: number): Measurement {
  const perLoop = [0.2, 0.6, 0.9, 1].map((share) => share * accuracy)
  return {
    accuracy: perLoop,
    rightLength: [length, length, length, length],
    budgets: taskOf(task).budgets.map((tokens) => ({ tokens, accuracy: perLoop })),
    gates: settings.thresholds.map((threshold) => ({
      threshold,
      accuracy: accuracy * (0.5 + threshold / 2),
      loops: 1 + 3 * threshold,
    })),
    deeper: settings.deeper.map((loops) => ({ loops, accuracy: 0.9 * accuracy })),
    passAt8: Math.min(1, accuracy + 0.1),
  }
}

/** A run that ends at an accuracy, and the length of its right answers. */
function run(task: TaskName, arm: string, base: number, learningRate: number, accuracy: number, length = 4): Result {
  const course = Array.from({ length: settings.points + 1 }, (_, k): Point => {
    const reached = 0.3 + (accuracy - 0.3) * Math.min(1, k / (settings.points - 3))
    const { accuracy: perLoop, rightLength } = measurement(task, reached, length)
    const means = { reward: reached, length, entropy: 0.5, gradNorm: 1, flat: 0.2, logprob: [-1, -1, -1, -1] }
    return { step: k, tokens: 1000 * k, seconds: k, ...means, accuracy: perLoop, rightLength }
  })
  const final = measurement(task, accuracy, length)
  const id = trainingId(task, arm, base, learningRate)
  const about = { id, kind: 'training', processor: 'a processor', task, arm, base, learningRate } as const
  const gradients = { cosine: [0.5, 0.8, 0.9, 1], norm: [2, 1.5, 1.1, 1] }
  return {
    ...about,
    course,
    final,
    calibrated: final.gates,
    ...(arm === 'grpo' ? { gradients: [gradients, gradients, gradients] } : {}),
  }
}

function base(task: TaskName, number: number): Result {
  const about = {
    id: baseId(task, number),
    kind: 'base',
    processor: 'a processor',
    task,
    base: number,
    steps: 100,
    seconds: 10,
  } as const
  return { ...about, final: measurement(task, 0.3, 4) }
}

const [, best] = settings.rates
/** Both arms on so many bases, with RLTT's difference, and the tuning that comes before them. */
function compared(task: TaskName, count: number, difference: (base: number) => number, shorter = 0): Result[] {
  const tuning = settings.tuningBases.flatMap((number) => [
    base(task, number),
    ...['grpo', 'rltt'].flatMap((arm) => settings.rates.map((rate) => run(task, arm, number, rate, rate === best ? 0.6 : 0.4))),
  ])
  const runs = settings.bases
    .slice(0, count)
    .flatMap((number) => [
      base(task, number),
      run(task, 'grpo', number, best!, 0.6 + seed(number)),
      run(task, 'rltt', number, best!, 0.6 + seed(number) + difference(number), 4 - shorter - 10 * seed(number + 7)),
    ])
  return [...tuning, ...runs]
}
const byId = (results: Result[]) => new Map(results.map((result) => [result.id, result]))

describe('report of Study II', () => {
  const whole = byId([
    ...compared('chain', 10, (number) => 0.1 + seed(number + 3), 1),
    ...compared('addition', 10, (number) => seed(number + 3) / 10),
    ...compared('parity', 2, () => -0.2),
  ])
  const made = tables(whole)
  const lines = (text: string) => text.replaceAll(/\n {2}|(?<=[^\n])\n(?=[^\n*])/g, ' ') // as they are before they are wrapped

  it('says what is ahead, what is equal and what is missing, each with its test', () => {
    expect(lines(made.verdicts!)).toMatch(
      /C, area under full-depth accuracy: RLTT exit-pdf is ahead of GRPO \(.*paired t-test on 10 bases, p \(Holm\)/,
    )
    expect(lines(made.verdicts!)).toMatch(
      /A, final accuracy at two loops: RLTT exit-pdf and GRPO are equal within 1.5 points \(.*TOST, p \(Holm\)/,
    )
    expect(lines(made.verdicts!)).toMatch(
      /C, length of right answers at matched accuracy: RLTT exit-pdf is shorter than GRPO \(−/,
    )
    expect(lines(made.verdicts!)).not.toMatch(/P, /) // two bases have no test
    expect(lines(made.status!)).toMatch(/C: chain modulo 5: GRPO and RLTT compared on 10 of 10 bases\./)
    expect(lines(made.status!)).toMatch(/P: parity of 16 bits: GRPO and RLTT compared on 2 of 10 bases, 8 missing\./)
    expect(lines(made.status!)).toMatch(/Without all of their runs: .*exit-sampled \(A, C\)/)
    expect(lines(made.status!)).toMatch(/Processor: a processor\./)
  })

  it('recommends by the corrected test alone, and answers the published claims', () => {
    const use = (task: string, what: string) =>
      made
        .users!.split('\n')
        .find((row) => row.startsWith(`| ${task} | ${what}`))!
        .split('|')
        .at(-2)!
        .trim()
    expect(use('C', '4 loops')).toBe('**RLTT**')
    expect(use('A', '4 loops')).toBe('either')
    const claims = made.claims!.replace(/\s+/g, ' ')
    expect(claims).toMatch(/at full depth\*\* .*: does not hold: equal on A .*; ahead on C/)
    expect(claims).toMatch(/shorter answers\*\* .*: holds: C/)
    expect(claims).toMatch(/LoopRPT .*: no run on text yet/)
  })

  it('corrects for multiple tests: what one test alone shows, many do not', () => {
    const question = (difference: number): Question => {
      const others = [0.5, 0.52, 0.48, 0.51, 0.49, 0.5]
      const own = others.map((value, i) => value + difference + 0.03 * Math.sin(5 * i))
      return { task: 'chain', arm: 'rltt', reference: 'grpo', what: 'accuracy', share: true, own, others }
    }
    const [alone] = verdictsOf([question(0.03)])
    expect(alone!.kind).toBe('ahead')
    const family = verdictsOf([question(0.03), ...Array.from({ length: 20 }, () => question(0))])
    expect(family[0]!.kind).toBe('open')
    expect(sentence(family[0]!)).toMatch(/is not decided/)
    expect(family[0]!.adjusted).toBeCloseTo(Math.min(1, 21 * alone!.test.p), 10)
  })

  it('regenerates the tables of docs/study-2.md from the stored results', () => {
    const stored = readResults<Result>(join(import.meta.dirname, '../study/two/results'))
    const ofText = readResults<TextResult>(join(import.meta.dirname, '../study/text/results'))
    expect(fillTables(page, tables(stored, ofText))).toBe(page)
    const folder = join(import.meta.dirname, '../docs/study')
    expect(Object.keys(figures(stored))).toEqual(['two-course', 'two-loops', 'two-rates'])
    for (const [name, svg] of Object.entries(figures(stored))) expect(readFileSync(join(folder, `${name}.svg`), 'utf8')).toBe(svg)
  })

  it('has the weights of every base on which a run is stored', () => {
    const folder = join(import.meta.dirname, '../study/two')
    const stored = [...readResults<Result>(join(folder, 'results')).values()]
    expect(stored.length).toBeGreaterThan(0)
    for (const { id, task, base } of stored)
      expect(existsSync(join(folder, 'bases', task, `${base}`, 'model.safetensors')), id).toBe(true)
  })

  it('fills the page for any state of the runs: none, tuning alone, some, all', () => {
    const part = [...whole.values()]
    for (const results of [[], part.slice(0, 3), part.slice(0, 15), part.slice(0, 20), part]) {
      const content = tables(byId(results))
      const filled = fillTables(page, content)
      expect(filled).not.toMatch(/NaN|undefined|Infinity/)
      for (const svg of Object.values(figures(byId(results)))) expect(svg).not.toMatch(/NaN|undefined|Infinity/)
    }
    expect(Object.keys(figures(whole))).toHaveLength(3)
    expect(made.figures).toMatch(/study\/two-course.svg/)
  })
})
