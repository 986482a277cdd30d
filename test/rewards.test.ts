import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  answersEqual,
  boxedMatch,
  combineRewards,
  exactMatch,
  lastBoxed,
  loadRewards,
  normalizeAnswer,
} from '../src/tasks/rewards.js'

import { expectLinear } from './scaling.js'

describe('exactMatch', () => {
  it('is 1 for the answer, ignoring white space at both ends, and 0 for anything else', () => {
    expect(exactMatch('', ' 42\n', { answer: '42' })).toBe(1)
    expect(exactMatch('', '4 2', { answer: '42' })).toBe(0)
    expect(exactMatch('', '042', { answer: '42' })).toBe(0)
  })

  it('has no opinion without an answer', () => {
    expect(exactMatch('', '42', {})).toBeNull()
  })
})

describe('lastBoxed', () => {
  const cases: [string, string | undefined][] = [
    ['the answer is \\boxed{42}.', '42'],
    ['\\boxed{1} or rather \\boxed{2}', '2'],
    ['\\boxed{\\frac{1}{2}}', '\\frac{1}{2}'],
    ['\\boxed {7}', '7'],
    ['\\boxed{\\{1,2\\}}', '\\{1,2\\}'],
    ['\\boxed{\\left\\{1\\right.}', '\\left\\{1\\right.'],
    ['first \\boxed{3}, then \\boxed{4', '3'],
    ['\\boxed{\\boxed{5}}', '5'],
    ['\\boxed{\\boxed{5}', '5'],
    ['a stray } and { before \\boxed{6}', '6'],
    ['written twice escaped \\\\boxed{8}', '8'],
    ['\\boxed{}', ''],
    ['boxed{9}', undefined],
    ['no box', undefined],
    ['\\boxed{open', undefined],
  ]
  it.each(cases)('%s → %s', (text, content) => {
    expect(lastBoxed(text)).toBe(content)
  })

  it('takes time linear in the text, also when every box is left open', () => {
    expect(lastBoxed('\\boxed{'.repeat(100_000))).toBeUndefined()
    expectLinear((boxes) => lastBoxed('\\boxed{'.repeat(boxes)), 25_000)
  })
})

describe('boxedMatch', () => {
  const right: [given: string, gold: string][] = [
    ['42', '42'],
    [' 42 ', '42'],
    ['042', '42'],
    ['+42', '42'],
    ['-7', '-7'],
    ['\u22127', '-7'],
    ['-0', '0'],
    ['42.', '42'],
    ['42.0', '42'],
    ['.5', '0.5'],
    ['0.50', '1/2'],
    ['\\frac{1}{2}', '0.5'],
    ['\\dfrac{1}{2}', '\\frac{1}{2}'],
    ['\\tfrac12', '1/2'],
    ['\\frac12', '\\dfrac{2}{4}'],
    ['-\\frac{3}{4}', '-0.75'],
    ['\\frac{-3}{4}', '-\\frac{3}{4}'],
    ['2\\frac{1}{2}', '2.5'],
    ['-1\\frac{1}{4}', '-\\frac{5}{4}'],
    ['0.3333333', '\\frac{1}{3}'],
    ['6/3', '2'],
    ['1e3', '1000'],
    ['50\\%', '50'],
    ['50\\%', '0.5'],
    ['50%', '1/2'],
    ['12.5 \\%', '\\frac{1}{8}'],
    ['1,234,567', '1234567'],
    ['1{,}234', '1234'],
    ['1\\,234', '1234'],
    ['1,\\!234', '1234'],
    ['1,234.5', '1234.5'],
    ['-12,000', '-12000'],
    ['$42$', '42'],
    ['\\$42', '42'],
    ['\\(42\\)', '42'],
    ['\\$1,250.00', '1250'],
    ['5\\text{ cm}', '5'],
    ['5 \\mathrm{cm}^2', '5'],
    ['\\frac{1}{2}\\text{ hours}', '0.5'],
    ['90^\\circ', '90'],
    ['90^{\\circ}', '90'],
    ['45°', '45'],
    ['\\text{Tuesday}', 'Tuesday'],
    ['\\textbf{(B)}', '(B)'],
    ['\\text{north east}', 'north east'],
    ['\\left(1, 2\\right)', '(1,2)'],
    ['\\left[0,\\dfrac12\\right)', '[0, \\frac{1}{2})'],
    ['x + 1', 'x+1'],
    ['2\\sqrt{3}', '2 \\sqrt{3}'],
    ['3\\text{ million}', '3\\text{ million}'],
    ['123456789012345678901', '123456789012345678901'],
    ['7', 'Adding up gives \\boxed{7}.'],
  ]
  it.each(right)('%s is %s', (given, gold) => {
    expect(boxedMatch('', `so \\boxed{${given}}`, { answer: gold })).toBe(1)
  })

  const wrong: [given: string, gold: string][] = [
    ['41', '42'],
    ['-42', '42'],
    ['4 and 2', '42'],
    ['0.33', '1/3'],
    ['0.5001', '1/2'],
    ['1000001', '1000000'],
    ['1000000.5', '1000000'],
    ['0.0000001', '0'],
    ['123456789012345678902', '123456789012345678901'],
    ['\\frac{2}{1}', '\\frac{1}{2}'],
    ['1/0', '1/0.0'],
    ['50\\%', '5'],
    ['50\\%', '0.05'],
    ['0.5\\%', '0.5\\text{ of }3'],
    ['1, 234', '1234'],
    ['(1,234)', '1234'],
    ['12,34', '1234'],
    ['(2,1)', '(1,2)'],
    ['(1,2]', '(1,2)'],
    ['3\\text{ million}', '3'],
    ['x', 'X'],
    ['5 apples', '5'],
    ['x+1', '1+x'],
    ['2\\frac{-1}{2}', '1.5'],
    ['', ''],
    ['$', ''],
    ['Infinity', 'Infinity1'],
    ['1e999', '2e999'],
  ]
  it.each(wrong)('%s is not %s', (given, gold) => {
    expect(boxedMatch('', `so \\boxed{${given}}`, { answer: gold })).toBe(0)
  })

  it('judges the last closed box only', () => {
    expect(boxedMatch('', '\\boxed{1} \\boxed{2}', { answer: '1' })).toBe(0)
    expect(boxedMatch('', '\\boxed{1} \\boxed{2}', { answer: '2' })).toBe(1)
  })

  it('is 0 without a box and null without an answer', () => {
    expect(boxedMatch('', '42', { answer: '42' })).toBe(0)
    expect(boxedMatch('', '\\boxed{42}', {})).toBeNull()
  })

  it('is symmetric, and normalising twice changes nothing', () => {
    for (const [given, gold] of [...right, ...wrong]) {
      expect(answersEqual(given, gold)).toBe(answersEqual(gold, given))
      expect(normalizeAnswer(normalizeAnswer(given))).toBe(normalizeAnswer(given))
    }
  })
})

describe('combineRewards', () => {
  const one = { name: 'one', reward: () => 1 }
  const silent = { name: 'silent', reward: () => null }

  it('adds weighted scores, sync and async', async () => {
    const reward = combineRewards([one, { name: 'half', reward: async () => 0.5, weight: -2 }])
    expect(await reward('', '', {})).toBe(0)
  })

  it('leaves out rewards without an opinion', async () => {
    expect(await combineRewards([one, { ...silent, weight: 5 }])('', '', {})).toBe(1)
    expect(await combineRewards([silent])('', '', {})).toBeNull()
  })

  it('passes prompt, completion, columns and signal on', async () => {
    const seen: unknown[] = []
    const spy = { name: 'spy', reward: (...all: unknown[]) => seen.push(...all) }
    const { signal } = new AbortController()
    await combineRewards([spy])('p', 'c', { answer: 'a', level: 3 }, { signal })
    expect(seen).toEqual(['p', 'c', { answer: 'a', level: 3 }, { signal }])
  })

  it('names the reward whose score is not a finite number', async () => {
    await expect(combineRewards([one, { name: 'bad', reward: () => Number.NaN }])('', '', {})).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: expect.stringContaining('bad'),
    })
    const text = { name: 'text', reward: () => '1' as unknown as number }
    await expect(combineRewards([text])('', '', {})).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('text'),
    })
  })

  it('refuses an empty list, a repeated name and an infinite weight', () => {
    expect(() => combineRewards([])).toThrow(/no rewards/)
    expect(() => combineRewards([one, one])).toThrow(/two rewards are named one/)
    expect(() => combineRewards([{ ...one, weight: Number.POSITIVE_INFINITY }])).toThrow(/weight of reward one/)
  })
})

describe('loadRewards', () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'looplm-rewards-'))
  })
  afterAll(() => rm(folder, { recursive: true }))

  const write = async (name: string, text: string): Promise<string> => {
    const path = join(folder, name)
    await writeFile(path, text)
    return path
  }

  it('takes a default export alone, under the name of the file', async () => {
    const rewards = await loadRewards(await write('length.mjs', 'export const f = () => 2; export default () => 1'))
    expect(Object.keys(rewards)).toEqual(['length'])
    expect(await rewards.length!('', '', {})).toBe(1)
  })

  it('takes every exported function when there is no default', async () => {
    const rewards = await loadRewards(
      await write('b.mjs', 'export const x = 1; export const f = () => 1; export function g() {}'),
    )
    expect(Object.keys(rewards).sort()).toEqual(['f', 'g'])
  })

  it('says when the file is missing, broken or exports no function', async () => {
    await expect(loadRewards(join(folder, 'missing.mjs'))).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(loadRewards(await write('c.mjs', 'export const x = 1'))).rejects.toMatchObject({
      code: 'INVALID_FILE',
      message: expect.stringMatching(/c\.mjs exports no function \(found: x\)/),
    })
    await expect(loadRewards(await write('d.mjs', 'throw new Error("boom")'))).rejects.toMatchObject({
      code: 'INVALID_FILE',
      message: expect.stringMatching(/d\.mjs.*boom/),
    })
    await expect(loadRewards(await write('e.mjs', 'import "./nowhere.mjs"'))).rejects.toMatchObject({ code: 'INVALID_FILE' })
  })
})
