import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Random } from '../../src/index.js'
import { groupAdvantages } from '../../src/rl/objective/advantages.js'
import { scoreCompletions } from '../../src/rl/rewards.js'
import { countdownMatch } from '../../src/tasks/countdown.js'
import {
  answersEqual,
  boxedMatch,
  combineRewards,
  exactMatch,
  lastBoxed,
  loadRewards,
  normalizeAnswer,
} from '../../src/tasks/rewards.js'

import { expectLinear } from '../scaling.js'

describe('exactMatch', () => {
  it('is 1 for the answer, ignoring white space at both ends, and 0 for anything else', () => {
    expect(exactMatch('', ' 42\n', { answer: '42' })).toBe(1)
    expect(exactMatch('', '4 2', { answer: '42' })).toBe(0)
    expect(exactMatch('', '042', { answer: '42' })).toBe(0)
  })

  it('is null without an answer', () => {
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
    ['x+1', '1+x'],
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

  it('takes the gold answer of a worked solution from after the last ####', () => {
    expect(boxedMatch('', '\\boxed{18}', { answer: 'She sells 16 - 3 - 4 = <<16-3-4=9>>9.\n#### 18' })).toBe(1)
    expect(boxedMatch('', '\\boxed{9}', { answer: 'She sells 9.\n#### 18' })).toBe(0)
    expect(boxedMatch('', '\\boxed{1234}', { answer: '#### 1,234' })).toBe(1)
  })

  const thoughts: [prompt: string, completion: string, reward: number][] = [
    ['', '<think>maybe \\boxed{4}', 0],
    ['', '<think>maybe \\boxed{4}</think>', 0],
    ['', '<think>maybe \\boxed{5}</think>It is \\boxed{4}.', 1],
    ['', '<think>maybe \\boxed{4}</think>It is \\boxed{5}.', 0],
    ['2+2=<think>\n', 'maybe \\boxed{4}', 0],
    ['2+2=<think>\n', 'maybe \\boxed{5}</think>\\boxed{4}', 1],
    ['2+2=<think>\n</think>\n', '\\boxed{4}', 1],
    ['', 'maybe \\boxed{4}</think>I do not know.', 0],
    ['', '\\boxed{4}<think>is that right?', 1],
    ['', '<think>a</think>\\boxed{3}<think>no: \\boxed{4}</think>', 0],
    ['', '<think>a</think>\\boxed{3}<think>no: \\boxed{4}</think>\\boxed{4}', 1],
    ['Think between <think> and </think>. 2+2=', '\\boxed{4}', 1],
    ['', '<think>\\boxed{</think>4}', 0],
  ]
  it.each(thoughts)('takes no answer from a think block: %j %j', (prompt, completion, reward) => {
    expect(boxedMatch(prompt, completion, { answer: '4' })).toBe(reward)
  })
})

describe('answersEqual', () => {
  const pairs = readFileSync(new URL('../fixtures/answers.txt', import.meta.url), 'utf8')
    .split('\n')
    .filter((line) => /^[=!]\t/.test(line))
    .map((line) => line.split('\t') as [label: string, a: string, b: string])

  it('agrees with every label of test/fixtures/answers.txt, in both directions', () => {
    const wrong = pairs.filter(
      ([label, a, b]) => answersEqual(a, b) !== (label === '=') || answersEqual(b, a) !== (label === '='),
    )
    expect(wrong).toEqual([])
    expect(pairs.filter(([label]) => label === '=').length).toBeGreaterThan(200)
    expect(pairs.filter(([label]) => label === '!').length).toBeGreaterThan(200)
  })

  it('treats every answer as equal to itself, and normalizes idempotently', () => {
    for (const answer of pairs.flatMap(([, a, b]) => [a, b])) {
      expect(answersEqual(answer, answer), answer).toBe(true)
      expect(normalizeAnswer(normalizeAnswer(answer)), answer).toBe(normalizeAnswer(answer))
    }
  })

  it('never throws and is symmetric, for random combinations of answer parts', () => {
    const parts = [
      ...[
        '1',
        '2',
        '34',
        '0.',
        '.2',
        'e5',
        '1,234',
        '99999999999999999999',
        'x',
        'y',
        'i',
        'e',
        'f(',
        '\\pi',
        '\\frac',
        '\\sqrt',
        '√',
      ],
      ...[
        '{',
        '}',
        '(',
        ')',
        '[',
        ']',
        '\\{',
        '\\}',
        '|',
        '^',
        '_',
        '+',
        '-',
        '/',
        '!',
        '\\cdot',
        '\\times',
        '\\pm',
        ' ',
        ',',
        '.',
        ':',
      ],
      ...[
        '=',
        '<',
        '>',
        '<=',
        '\\in',
        '\\cup',
        '\\infty',
        ' or ',
        '\\text{',
        'cm',
        'AM',
        'million',
        '%',
        '\\$',
        '$',
        '°',
        '^\\circ',
      ],
      ...['\\begin{pmatrix}', '\\end{pmatrix}', '&', '\\\\', '\\', '\\left', '\\sin ', '\\binom', '\\overline{3}', '½', '²', '⁻'],
    ]
    const random = new Random(5)
    const draw = (longest: number) =>
      Array.from({ length: 1 + random.integer(longest) }, () => parts[random.integer(parts.length)]).join('')
    const asymmetric: string[] = []
    for (let k = 0; k < 20_000; k++) {
      const [a, b] = [draw(10), draw(4)]
      if (answersEqual(a, b) !== answersEqual(b, a)) asymmetric.push(`${a} and ${b}`)
      normalizeAnswer(a)
    }
    expect(asymmetric).toEqual([])
  })

  it('compares integers and decimals of any length exactly', () => {
    const digits = '7'.repeat(20_000)
    expect(answersEqual(digits, `000${digits}.000`)).toBe(true)
    expect(answersEqual(digits, `${digits.slice(1)}8`)).toBe(false)
    expect(answersEqual(`-${digits}`, digits)).toBe(false)
  })

  it('rejects a value that is not a string, and a negative tolerance', () => {
    expect(() => answersEqual(5 as never, '5')).toThrow(/answersEqual: a must be a string, got 5/)
    expect(() => answersEqual('5', null as never)).toThrow(/answersEqual: b must be a string, got null/)
    expect(() => answersEqual('5', '5', -1)).toThrow(/tolerance must be a finite number of at least 0, got -1/)
    expect(() => normalizeAnswer(undefined as never)).toThrow(/answer must be a string/)
    expect(() => lastBoxed({} as never)).toThrow(/text must be a string/)
  })

  it('takes a wider tolerance for decimals, not for other numbers', () => {
    expect(answersEqual('0.33', '1/3', 0.02)).toBe(true)
    expect(answersEqual('33/100', '1/3', 0.02)).toBe(false)
    expect(answersEqual('3.14', '\\pi', 0.01)).toBe(true)
  })

  // Longest answers that are parsed have 4096 characters, so both shorter and longer ones are among these.
  const shapes: Record<string, (length: number) => string> = {
    'a fraction of ones and an x': (n) => `${'1'.repeat(n / 2)}/${'1'.repeat(n / 2)}x`,
    'zeros and an x': (n) => `${'0'.repeat(n)}x`,
    'a decimal of zeros': (n) => `0.${'0'.repeat(n)}1`,
    nines: (n) => '9'.repeat(n),
    'groups of three': (n) => `1${',111'.repeat(n / 4)}1`,
    'nested braces': (n) => '{'.repeat(n / 2) + '}'.repeat(n / 2),
    'nested brackets': (n) => `${'('.repeat(n / 2)}1${')'.repeat(n / 2)}`,
    'open brackets': (n) => '('.repeat(n),
    'open braces': (n) => '{'.repeat(n),
    commas: (n) => ','.repeat(n),
    'full stops': (n) => '.'.repeat(n),
    backslashes: (n) => '\\'.repeat(n),
    spaces: (n) => `1${' '.repeat(n)}2`,
    'dollar signs': (n) => '$'.repeat(n),
    hashes: (n) => '#'.repeat(n),
    signs: (n) => '-'.repeat(n),
    bars: (n) => '|'.repeat(n),
    roots: (n) => `${'\\sqrt'.repeat(n / 5)}2`,
    'nested roots': (n) => `${'\\sqrt{'.repeat(n / 7)}2${'}'.repeat(n / 7)}`,
    'roots of large numbers': (n) => '\\sqrt{999999999999999989}+'.repeat(n / 25),
    'powers of powers': (n) => '9^{9^{9}}'.repeat(n / 9),
    'products of sums': (n) => '(x+y+z)'.repeat(n / 7),
    'a sum': (n) => `x${'+y'.repeat(n / 2)}`,
    fractions: (n) => '\\frac1'.repeat(n / 6),
    factorials: (n) => '150!'.repeat(n / 4),
    functions: (n) => '\\sin'.repeat(n / 4),
    units: (n) => `5${'\\text{ cm}'.repeat(n / 10)}`,
    'open texts': (n) => '\\text{'.repeat(n / 6),
    'open boxes': (n) => '\\boxed{'.repeat(n / 7),
    'a matrix': (n) => `\\begin{pmatrix}${'1&'.repeat(n / 2)}`,
    'a list': (n) => Array.from({ length: n / 6 }, (_, i) => 1000 + (i % 1000)).join(', '),
    'plus or minus': (n) => '\\pm '.repeat(n / 4),
    letters: (n) => 'A'.repeat(n),
    superscripts: (n) => '²'.repeat(n),
    thoughts: (n) => '<think>'.repeat(n / 7),
  }
  it.each(Object.entries(shapes))('takes time linear in the length: %s', (_, shape) => {
    const milliseconds = (length: number) => {
      const text = shape(length)
      const runs = Array.from({ length: 5 }, () => {
        const start = process.cpuUsage()
        answersEqual(text, `${text}3`)
        answersEqual(text, '2')
        normalizeAnswer(text)
        boxedMatch(text, `\\boxed{${text}}${text}`, { answer: text })
        const { user, system } = process.cpuUsage(start)
        return (user + system) / 1000
      })
      return runs.sort((a, b) => a - b)[2]!
    }
    milliseconds(1000) // compiled
    expect(milliseconds(100_000)).toBeLessThan(8 * milliseconds(25_000) + 50) // 4 times, and room for garbage collection
  })
})

describe('combineRewards', () => {
  const one = { name: 'one', reward: () => 1 }
  const silent = { name: 'silent', reward: () => null }

  it('adds weighted scores, sync and async', async () => {
    const reward = combineRewards([one, { name: 'half', reward: async () => 0.5, weight: -2 }])
    expect(await reward('', '', {})).toBe(0)
  })

  it('skips rewards that return null', async () => {
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

  it('rejects rewards and sums above 1e100, naming the value', async () => {
    const huge = { name: 'huge', reward: () => 1e300 }
    await expect(combineRewards([huge])('', '', {})).rejects.toThrow(
      /reward huge must return a finite number of at most 1e\+100 in size or null, got 1e\+300/,
    )
    await expect(combineRewards([{ ...huge, reward: () => 9e99, weight: 1e10 }])('', '', {})).rejects.toThrow(/got 9e\+109/)
    const completions = [{ prompt: '', completion: '', columns: {} }]
    await expect(scoreCompletions([huge], completions)).rejects.toThrow(/reward huge .* got 1e\+300/)
    await expect(scoreCompletions([{ ...huge, reward: () => 1, weight: -1e200 }], completions)).rejects.toThrow(/got -1e\+200/)
    expect(() => groupAdvantages([1e300, 0], 2)).toThrow(
      /reward 0 is 1e\+300; rewards are finite numbers of at most 1e\+100 in size/,
    )
    expect(groupAdvantages([1e100, -1e100], 2).advantages).toEqual([Math.SQRT1_2, -Math.SQRT1_2])
  })

  it('rejects an empty list, a repeated name and an infinite weight', () => {
    expect(() => combineRewards([])).toThrow(/rewards is empty; give at least one/)
    expect(() => combineRewards([{ ...one, wieght: 2 } as never])).toThrow(/rewards\[0\]\.wieght: .*did you mean .*weight\?/)
    expect(() => combineRewards([one, one])).toThrow(/two rewards are named one; give each another name/)
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

  it('uses only the default export, named after the file', async () => {
    const rewards = await loadRewards(await write('length.mjs', 'export const f = () => 2; export default () => 1'))
    expect(Object.keys(rewards)).toEqual(['length'])
    expect(await rewards.length!('', '', {})).toBe(1)
  })

  it('uses every exported function when there is no default export', async () => {
    const rewards = await loadRewards(
      await write('b.mjs', 'export const x = 1; export const f = () => 1; export function g() {}'),
    )
    expect(Object.keys(rewards).sort()).toEqual(['f', 'g'])
  })

  it('fails for a file that is missing, broken or without a function', async () => {
    await expect(loadRewards(join(folder, 'missing.mjs'))).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(loadRewards(await write('c.mjs', 'export const x = 1'))).rejects.toMatchObject({
      code: 'INVALID_FILE',
      message: expect.stringMatching(/c\.mjs exports no function \(found: x\)/),
    })
    await expect(loadRewards(await write('d.mjs', 'throw new Error("boom")'))).rejects.toMatchObject({
      code: 'INVALID_FILE',
      message: expect.stringMatching(/d\.mjs.*boom/),
    })
    await expect(loadRewards(await write('e.mjs', 'import "../nowhere.mjs"'))).rejects.toMatchObject({ code: 'INVALID_FILE' })
  })
})

describe('countdownMatch', () => {
  const score = (expression: string, nums = [1, 5, 6], target = 25) =>
    countdownMatch('', `so \\boxed{${expression}}`, { nums, target })

  it.each(['(6-1)*5', '5 * ( 6 - 1 )', '(6 - 1) \\times 5', '(6−1)·5 = 25', '\\left(6-1\\right)\\cdot 5', '((6)-(1))*5'])(
    'accepts %s',
    (expression) => {
      expect(score(expression)).toBe(1)
    },
  )

  it.each([
    ['25', 'the target alone'],
    ['5*5', 'a number that is not there'],
    ['(6-1)*5+0', 'a number too many'],
    ['6-1+5*4', 'another number'],
    ['6*5-1', 'another value'],
    ['(6-1)*5=26', 'a wrong claim'],
    ['(6-1)*5)', 'a bracket too many'],
    ['(6-1)5', 'an operation that is not written'],
    ['(6-1)*', 'half an expression'],
    ['', 'nothing'],
    ['6-1)*(5', 'brackets the wrong way round'],
    ['(6-1)*5'.padEnd(2000, ' '), 'a very long one'],
    ['('.repeat(900), 'brackets alone'],
  ])('rejects %s: %s', (expression) => {
    expect(score(expression)).toBe(0)
  })

  it('computes with fractions, exactly, and never divides by zero', () => {
    expect(score('8/(3-8/3)', [3, 3, 8, 8], 24)).toBe(1)
    expect(score('1/3*3', [1, 3, 3], 1)).toBe(1)
    expect(score('1/(2-2)', [1, 2, 2], 1)).toBe(0)
    expect(score('1', [2 ** 60], 1)).toBe(null) // no exact numbers
    expect(score('999999999999999*999999999999999', [999999999999999, 999999999999999], 5)).toBe(0)
  })

  it('is null without numbers or a target, and ignores thoughts', () => {
    expect(countdownMatch('', '\\boxed{1}', { target: 1 })).toBeNull()
    expect(countdownMatch('', '\\boxed{1}', { nums: [1] })).toBeNull()
    const columns = { nums: [1, 5, 6], target: 25 }
    expect(countdownMatch('', '<think>\\boxed{(6-1)*5}</think> no', columns)).toBe(0)
    expect(countdownMatch('', 'no box', columns)).toBe(0)
  })
})
