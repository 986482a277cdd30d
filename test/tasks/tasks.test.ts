import { describe, expect, it } from 'vitest'
import { parse } from 'yaml'
import { Random } from '../../src/data/random.js'
import { LoopLMError } from '../../src/errors.js'
import {
  addition,
  chain,
  createTask,
  defineTask,
  mano,
  parity,
  pointerChasing,
  sorting,
  type Task,
  type TaskConfig,
  tasks,
} from '../../src/tasks/index.js'
import { cpuTime } from '../scaling.js'

const variants: Record<string, Task> = {
  'addition of 5 digits': addition(),
  'addition of 1 to 5 digits': addition({ digits: 5, minDigits: 1 }),
  'addition of 15 digits': addition({ digits: 15 }),
  'addition of 2 digits in width 3': addition({ digits: 2, width: 3 }),
  mano: mano(),
  'mano modulo 23, 10 operations': mano({ modulus: 23, operations: 10 }),
  sorting: sorting(),
  'sorting 20 of 62': sorting({ count: 20, values: 62 }),
  'pointer chasing': pointerChasing(),
  'pointer chasing, 62 nodes': pointerChasing({ nodes: 62, hops: 61 }),
  parity: parity(),
  'parity of 3 bits': parity({ bits: 3, written: 0 }),
  chain: chain(),
  'chain modulo 36, 16 operations': chain({ modulus: 36, operations: 16 }),
}

describe.each(Object.entries(variants))('%s', (_name, task) => {
  const problems = Array.from({ length: 500 }, (_, i) => task.sample(i % 2 === 0 ? 'train' : 'test', i))

  it('makes a problem from split, index and seed alone', () => {
    expect(task.sample('train', 7, 3)).toEqual(task.sample('train', 7, 3))
    const addresses = [
      task.sample('train', 7, 3),
      task.sample('train', 8, 3),
      task.sample('train', 7, 4),
      task.sample('test', 7, 3),
    ]
    expect(new Set(addresses.map(({ prompt }) => prompt)).size).toBe(4)
  })

  it('stays within its alphabet and its maximum lengths', () => {
    const learned = problems.map(({ answer, completion = answer }) => task.tokenizer.encode(completion as string).length)
    for (const { prompt } of problems) expect(task.tokenizer.encode(prompt).length).toBeLessThanOrEqual(task.maxPromptLength)
    expect(Math.max(...problems.map(({ prompt }) => prompt.length))).toBe(task.maxPromptLength)
    // Without an end token every answer has the same length; with one, the longest leaves room for it.
    if (task.stop.length === 0) expect(new Set(learned)).toEqual(new Set([task.maxCompletionLength]))
    else expect(Math.max(...learned)).toBeLessThanOrEqual(task.maxCompletionLength - task.stop.length)
    for (const end of task.stop) expect(end).toBeLessThan(task.tokenizer.vocabSize)
  })

  it('rewards the answer and nothing else', () => {
    const { prompt, answer } = problems[0]!
    expect(task.reward(prompt, answer, { answer })).toBe(1)
    const wrong = answer === '0' ? '1' : '0'
    for (const completion of ['', `${answer}${wrong}`, answer.slice(1), `${answer} `])
      expect(task.reward(prompt, completion, { answer })).toBe(0)
    for (const { prompt, answer, completion = answer } of problems)
      expect(task.reward(prompt, completion as string, { answer })).toBe(1)
  })

  it('rewards no answer that was cut off', () => {
    const { prompt, answer } = problems[0]!
    const cut = answer.at(-1)!.repeat(task.maxCompletionLength - answer.length) + answer
    expect(cut).toHaveLength(task.maxCompletionLength)
    if (task.stop.length > 0) expect(task.reward(prompt, cut, { answer })).toBe(0)
    else expect(cut).toBe(answer) // every answer has this length
  })
})

describe('addition', () => {
  it('of 5 digits has 12 prompt tokens, 6 answer tokens and a vocabulary of 12', () => {
    const task = addition({ digits: 5 })
    expect([task.maxPromptLength, task.maxCompletionLength, task.tokenizer.vocabSize]).toEqual([12, 6, 12])
    for (let i = 0; i < 100; i++) {
      const { prompt, answer } = task.sample('train', i)
      expect(prompt).toMatch(/^\d{5}\+\d{5}=$/)
      expect(answer).toMatch(/^[01]\d{5}$/)
    }
  })

  it('has the right answers', () => {
    for (const task of [
      addition(),
      addition({ digits: 5, minDigits: 1 }),
      addition({ digits: 15 }),
      addition({ digits: 1, width: 9 }),
    ]) {
      for (let i = 0; i < 1000; i++) {
        const { prompt, answer } = task.sample('train', i)
        const [a, b] = prompt.slice(0, -1).split('+').map(BigInt) as [bigint, bigint]
        expect(BigInt(answer)).toBe(a + b)
      }
    }
  })

  it('draws the number of digits uniformly from minDigits to digits', () => {
    const task = addition({ digits: 5, minDigits: 1 })
    const small = [1, 2, 3, 4, 5].map((digits) => {
      let count = 0
      for (let i = 0; i < 5000; i++) {
        const operands = task.sample('train', i).prompt.slice(0, -1).split('+').map(Number)
        if (operands.every((operand) => operand < 10 ** digits)) count++
      }
      return count / 5000
    })
    // P(both < 10^d) = Σ_k (1/5) min(1, 10^(d-k))²
    const expected = [1, 2, 3, 4, 5].map((d) => [1, 2, 3, 4, 5].reduce((sum, k) => sum + Math.min(1, 100 ** (d - k)) / 5, 0))
    for (const [i, share] of small.entries()) expect(Math.abs(share - expected[i]!)).toBeLessThan(0.04)
  })

  it('of 5 digits draws operands uniformly from all of [0, 10^5)', () => {
    const task = addition()
    const leading = new Array<number>(10).fill(0)
    for (let i = 0; i < 5000; i++) leading[Number(task.sample('train', i).prompt[0])]!++
    // chi-square with 9 degrees of freedom: above 27.9 with probability 0.001
    expect(leading.reduce((sum, count) => sum + (count - 500) ** 2 / 500, 0)).toBeLessThan(27.9)
  })

  it('holds out a+b together with b+a', () => {
    const task = addition({ digits: 2 })
    const key = (prompt: string) => prompt.slice(0, -1).split('+').sort().join('+')
    const test = new Set(Array.from({ length: 3000 }, (_, i) => key(task.sample('test', i).prompt)))
    const train = new Set(Array.from({ length: 30_000 }, (_, i) => key(task.sample('train', i, 5).prompt)))
    expect([...test].filter((problem) => train.has(problem))).toEqual([])
    // 5050 unordered pairs, one eighth held out: all of the test set and nearly all of the training set have been seen
    expect(Math.abs(test.size / 5050 - 1 / 8)).toBeLessThan(0.03)
    expect(train.size / 5050).toBeGreaterThan(0.8)
  })
})

describe('mano', () => {
  /** Reads a prefix expression from its end with a stack. */
  function evaluate(expression: string, modulus: number): number {
    const stack: number[] = []
    for (const token of [...expression].reverse()) {
      if (/[0-9a-z]/.test(token)) {
        stack.push(Number.parseInt(token, 36))
        continue
      }
      const [left, right] = [stack.pop()!, stack.pop()!]
      const value = token === '+' ? left + right : token === '-' ? left - right : left * right
      stack.push(((value % modulus) + modulus) % modulus)
    }
    expect(stack).toHaveLength(1)
    return stack[0]!
  }

  it('has the right answers', () => {
    for (const [modulus, operations] of [
      [10, 3],
      [23, 10],
      [36, 1],
      [2, 4],
    ] as const) {
      const task = mano({ modulus, operations })
      for (let i = 0; i < 500; i++) {
        const { prompt, answer } = task.sample('train', i)
        expect(Number.parseInt(answer, 36)).toBe(evaluate(prompt.slice(0, -1), modulus))
      }
    }
  })

  it('draws 1 to n operations equally often', () => {
    const counts = [0, 0, 0, 0]
    for (let i = 0; i < 3000; i++)
      counts[
        mano()
          .sample('train', i)
          .prompt.replace(/[^-+*]/g, '').length
      ]!++
    expect(counts[0]).toBe(0)
    for (const count of counts.slice(1)) expect(Math.abs(count - 1000)).toBeLessThan(120)
  })
})

describe('sorting', () => {
  it('has the right answers: the values in the order of their character codes', () => {
    const task = sorting({ count: 12, values: 62 })
    for (let i = 0; i < 500; i++) {
      const { prompt, answer } = task.sample('test', i)
      expect(answer).toBe([...prompt.slice(0, -1)].sort().join(''))
    }
  })
})

describe('pointer chasing', () => {
  it('has the right answers: where following the listed pointers leads', () => {
    for (const [nodes, hops] of [
      [8, 2],
      [5, 4],
      [20, 7],
    ] as const) {
      const task = pointerChasing({ nodes, hops })
      for (let i = 0; i < 300; i++) {
        const { prompt, answer } = task.sample('train', i)
        const [list, start] = prompt.slice(0, -1).split('?') as [string, string]
        const next = new Map(list.match(/../g)!.map((pair) => [pair[0]!, pair[1]!]))
        expect(next.size).toBe(nodes)
        let node = start
        for (let hop = 0; hop < hops; hop++) node = next.get(node)!
        expect(answer).toBe(node)
      }
    }
  })
})

describe('parity', () => {
  it('has the right answers, direct or written out in the requested shares', () => {
    const task = parity({ bits: 9, written: 0.25 })
    let written = 0
    for (let i = 0; i < 2000; i++) {
      const { prompt, answer, completion } = task.sample('train', i)
      const bits = prompt.slice(0, -1)
      const prefixes = [...bits].map((_, k) => `${bits.slice(0, k + 1).replaceAll('0', '').length % 2}`)
      expect(answer).toBe(prefixes.at(-1))
      if (completion === answer) continue
      written++
      expect(completion).toBe(prefixes.join(''))
    }
    expect(Math.abs(written / 2000 - 0.25)).toBeLessThan(0.04) // 4 standard deviations
  })
})

describe('chain', () => {
  /** The values of all assignments, by substitution. */
  function solve(prompt: string, modulus: number): { values: number[]; asked: number } {
    const known = new Map<string, number>()
    const read = (text: string) => known.get(text) ?? Number.parseInt(text, 36)
    const [assignments, asked] = [prompt.split(';').slice(0, -1), prompt.split('?')[1]!]
    for (const assignment of assignments) {
      const [, name, left, operator, right] = /^(\w)=(\w)(?:([-+*])(\w))?$/.exec(assignment)!
      let value = read(left!)
      if (operator === '+') value += read(right!)
      if (operator === '-') value -= read(right!)
      if (operator === '*') value *= read(right!)
      known.set(name!, ((value % modulus) + modulus) % modulus)
    }
    return { values: [...known.values()], asked: known.get(asked)! }
  }

  it('has the right answers, with traces in the requested shares', () => {
    const ways = { direct: 0, half: 0, all: 0, twice: 0 }
    const task = chain({ modulus: 13, operations: 5, traces: { direct: 2, half: 1, all: 1, twice: 0 } })
    for (let i = 0; i < 2000; i++) {
      const { prompt, answer, completion } = task.sample('train', i)
      const { values, asked } = solve(prompt, 13)
      expect(values.length - 1).toBeGreaterThanOrEqual(3)
      expect(values.length - 1).toBeLessThanOrEqual(5)
      const text = values.map((value) => value.toString(36).toUpperCase())
      expect(answer).toBe(text.at(-1))
      expect(asked).toBe(values.at(-1))
      const shown = {
        direct: answer,
        half: text
          .toReversed()
          .filter((_, k) => k % 2 === 0)
          .toReversed()
          .join(''),
        all: text.join(''),
        twice: text.map((value) => value + value).join(''),
      }
      ways[Object.entries(shown).find(([, each]) => each === completion)![0] as keyof typeof ways]++
    }
    for (const [way, share] of Object.entries({ direct: 0.5, half: 0.25, all: 0.25, twice: 0 }))
      expect(Math.abs(ways[way as keyof typeof ways] / 2000 - share)).toBeLessThan(0.045) // 4 standard deviations
  })

  it('rejects traces without a weight, and minOperations above operations', () => {
    expect(() => chain({ traces: { direct: 0, half: 0, all: 0, twice: 0 } })).toThrow(/traces: at least one weight/)
    expect(() => chain({ operations: 2, minOperations: 3 })).toThrow(/minOperations: must not exceed operations/)
  })
})

describe('the test split', () => {
  it.each([
    ['addition', addition({ digits: 2 })],
    ['mano', mano({ modulus: 5, operations: 1 })],
    ['sorting', sorting({ count: 2, values: 10 })],
    ['pointer chasing', pointerChasing({ nodes: 5, hops: 2 })],
    ['parity', parity({ bits: 8 })],
    ['chain', chain({ operations: 2 })],
  ])('of %s shares no problem with training, whatever the seeds', (_name, task) => {
    expect(task.heldOut).toBe(true)
    const prompts = (split: 'train' | 'test', seed: number) =>
      Array.from({ length: 3000 }, (_, i) => task.sample(split, i, seed).prompt)
    const train = new Set([...prompts('train', 0), ...prompts('train', 1)])
    expect([...prompts('test', 0), ...prompts('test', 2)].filter((prompt) => train.has(prompt))).toEqual([])
  })

  it('is not held out when there are too few problems, and heldOut says so', () => {
    for (const task of [addition({ digits: 1 }), mano({ modulus: 2, operations: 1 }), pointerChasing({ nodes: 3, hops: 1 })]) {
      expect(task.heldOut).toBe(false)
      expect(task.sample('test', 0).prompt).not.toBe('')
    }
  })

  it('is rejected under another name or with a negative index', () => {
    expect(() => addition().sample('valid' as 'test', 0)).toThrow(/split must be "train" or "test", got "valid"/)
    expect(() => addition().sample('test', -1)).toThrow(LoopLMError)
  })
})

describe('createTask', () => {
  it('builds every task by name, from YAML as well', () => {
    for (const name of Object.keys(tasks)) expect(createTask({ name } as TaskConfig).name).toBe(name)
    const task = createTask(parse('name: addition\ndigits: 4\nminDigits: 1\nwidth: 6\n'))
    expect([task.maxPromptLength, task.maxCompletionLength]).toEqual([14, 7])
  })

  const bad: [config: unknown, code: string, message: RegExp][] = [
    [{ name: 'additon' }, 'NOT_FOUND', /no task "additon"; the tasks are addition, mano, sorting, pointerChasing/],
    [{ name: 'toString' }, 'NOT_FOUND', /no task/],
    [{}, 'NOT_FOUND', /no task/],
    [null, 'INVALID_CONFIG', /a task is an object/],
    ['addition', 'INVALID_CONFIG', /a task is an object/],
    [{ name: 'addition', digit: 5 }, 'INVALID_CONFIG', /task addition: .*digit/],
    [{ name: 'addition', digits: '5' }, 'INVALID_CONFIG', /digits/],
    [{ name: 'addition', digits: 16 }, 'INVALID_CONFIG', /digits/],
    [{ name: 'addition', digits: 2.5 }, 'INVALID_CONFIG', /digits/],
    [{ name: 'addition', digits: 3, minDigits: 4 }, 'INVALID_CONFIG', /minDigits: must not exceed digits/],
    [{ name: 'addition', digits: 3, width: 2 }, 'INVALID_CONFIG', /width: must be at least digits/],
    [{ name: 'mano', modulus: 37 }, 'INVALID_CONFIG', /modulus/],
    [{ name: 'sorting', values: 63 }, 'INVALID_CONFIG', /values/],
    [{ name: 'pointerChasing', nodes: 4, hops: 4 }, 'INVALID_CONFIG', /hops: must be less than nodes/],
  ]
  it.each(bad)('rejects %j', (config, code, message) => {
    let error: unknown
    try {
      createTask(config as TaskConfig)
    } catch (caught) {
      error = caught
    }
    expect(error).toBeInstanceOf(LoopLMError)
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) })
  })
})

describe('speed', () => {
  it('a training problem takes less time than 300 random numbers', () => {
    const random = new Random(1)
    const numbers = cpuTime(() => {
      for (let i = 0; i < 300 * 2560; i++) random.uniform()
    })
    for (const task of [addition(), mano(), sorting(), pointerChasing()]) {
      let next = 0
      const problems = cpuTime(() => {
        for (let i = 0; i < 2560; i++) task.sample('train', next++)
      })

      expect(problems / numbers).toBeLessThan(1)
    }
  })
})

describe('a definition of a task', () => {
  const whole = {
    name: 'copy',
    alphabet: 'ab.',
    maxPromptLength: 1,
    maxCompletionLength: 2,
    problems: 2,
    end: '.',
    draw: () => ({ problem: { prompt: 'a', answer: 'a' }, key: 'a' }),
  }

  it.each<[fields: object, message: RegExp]>([
    [{ name: undefined }, /defineTask: name must be the name of the task, got undefined/],
    [{ alphabet: '' }, /alphabet must be the characters of prompts and answers, got an empty string/],
    [{ maxPromptLength: 0 }, /maxPromptLength must be an integer of at least 1, got 0/],
    [{ maxCompletionLength: 1.5 }, /maxCompletionLength must be an integer of at least 1, got 1\.5/],
    [{ problems: undefined }, /problems must be a finite number of at least 1, got undefined/],
    [{ end: 'c' }, /end must be a character of the alphabet, got 'c'/],
    [{ end: 'ab' }, /end must be a character of the alphabet, got 'ab'/],
    [{ answerOf: 'all' }, /answerOf must be a function, got 'all'/],
    [{ draw: undefined }, /draw must be a function, got undefined/],
    [{ drawn: 1 }, /definition\.drawn: unknown option; .*draw/],
  ])('with %o is refused by name', (fields, message) => {
    expect(defineTask(whole).sample('train', 0)).toEqual({ prompt: 'a', answer: 'a' })
    const define = () => defineTask({ ...whole, ...fields } as never)
    expect(define).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) }))
  })

  it('counts characters of two UTF-16 units as one', () => {
    const draw = () => ({ problem: { prompt: '😀', answer: '😀😁' }, key: '😀' })
    const task = defineTask({ ...whole, alphabet: '😀😁.', maxCompletionLength: 3, draw })
    expect([task.reward('😀', '😀😁', { answer: '😀😁' }), task.reward('😀', '😀😁😁', { answer: '😀😁😁' })]).toEqual([1, 0])
  })

  it('must be given', () => {
    expect(() => defineTask(undefined as never)).toThrow(/definition must be an object with fields such as name, got undefined/)
  })
})
