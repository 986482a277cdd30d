import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { grpoOptions, objectiveTrainerOptions, rlttOptions } from '../../src/rl/config-rollouts.js'
import { looprptOptions, pretrainOptions } from '../../src/rl/config-tokens.js'
import { objectiveSchema } from '../../src/rl/objective/schema.js'
import { plainConfig } from '../../src/rl/plain-config.js'
import { trainerNames, trainerOptions, trainers } from '../../src/rl/registry.js'
import { parseOptions } from '../../src/validation/schema.js'

const whole = {
  rltt: rlttOptions,
  grpo: grpoOptions,
  objective: objectiveTrainerOptions,
  looprpt: looprptOptions,
  pretrain: pretrainOptions,
}

const refusal = (options: unknown, schema: z.ZodType = rlttOptions) => {
  try {
    parseOptions('Trainer', schema, options)
  } catch (error) {
    return (error as Error).message
  }
  throw new Error('was accepted')
}

describe('trainer options', () => {
  it('have the documented defaults', () => {
    const defaults = {
      normalizer: 'response-mean',
      beta: 0,
      adamEps: 1e-8,
      maxGradNorm: 1,
      temperature: 1,
      groupSize: 8,
      promptsPerStep: 32,
    }
    expect(parseOptions('x', rlttOptions, {})).toMatchObject({
      ...defaults,
      weights: 'exit-pdf',
      detachWeights: true,
      surrogate: 'reinforce',
    })
    expect(parseOptions('x', grpoOptions, {})).toMatchObject({
      ...defaults,
      weights: 'last',
      surrogate: 'ppo',
      epsilon: 0.2,
      adamBetas: [0.9, 0.999],
    })
    expect(parseOptions('x', grpoOptions, {})).not.toHaveProperty('dualClip')
    expect(parseOptions('x', pretrainOptions, {})).toMatchObject({ stage: 1, adamBetas: [0.9, 0.95] })
  })

  it('name the field, its value and the allowed values in errors', () => {
    expect(refusal({ weights: 'exit_pdf' })).toMatch(/weights: .*"exit-pdf"\|"uniform"\|"progressive"\|"last".* got "exit_pdf"/)
    expect(refusal({ groupSize: 1 })).toMatch(/groupSize: .*>=2, got 1/)
    expect(refusal({ learningRate: '1e-5' })).toMatch(/learningRate: .*number.*got "1e-5"/)
    expect(refusal({ adamBetas: [0.9, 1] })).toMatch(/adamBetas\.1: .*<1, got 1/)
    expect(refusal({ task: 3 })).toMatch(/task: must be a task/)
    expect(refusal({ stage: 3 }, pretrainOptions)).toMatch(/stage: must be 1 or 2, got 3/)
  })

  it('report every wrong field at once', () => {
    expect(refusal({ steps: 0, seed: -1, topP: 2 }).split('\n')).toHaveLength(3)
  })

  it('reject unknown fields and suggest the nearest name', () => {
    expect(refusal({ learning_rate: 1 })).toMatch(/learning_rate: unknown option; did you mean learningRate\?/)
    expect(refusal({ maxCompletionLength: 1 })).toMatch(
      /maxCompletionLength: unknown option; did you mean constantNormalizerLength\?/,
    )
    expect(refusal({ max_completion_length: 1 })).toMatch(/max_completion_length: unknown option; did you mean maxNewTokens\?/)
    expect(refusal({ epsilonhigh: 1 })).toMatch(/did you mean epsilonHigh\?/)
    expect(refusal({ entropyCoeficient: 1 }, pretrainOptions)).toMatch(/did you mean entropyCoefficient\?/)
    expect(refusal({ quux: 1 })).toMatch(/the options are weights, alpha/)
  })

  it('reject warmupSteps together with warmupRatio', () => {
    for (const schema of [rlttOptions, grpoOptions, pretrainOptions]) {
      expect(refusal({ warmupSteps: 1, warmupRatio: 0.1 }, schema)).toMatch(/give warmupSteps or warmupRatio, not both/)
    }
  })

  it('reject a learning rate that would rise to its minimum', () => {
    const rates = { schedule: 'cosine', learningRate: 1e-3, minLearningRate: 1 }
    for (const schema of [rlttOptions, grpoOptions, pretrainOptions])
      expect(refusal(rates, schema)).toMatch(
        /minLearningRate: is 1, more than learningRate 0\.001; lower it, or raise learningRate$/,
      )
    expect(rlttOptions.safeParse({ ...rates, minLearningRate: 1e-3 }).success).toBe(true)
  })

  const [task, corpus, tokenizer] = [{ sample() {} }, 'text', { encode() {} }]
  const environment = () => {}
  it.each([
    ['rltt', { epsilon: 0.3 }, "epsilon: needs the surrogate 'ppo' (the bound of 'cispo' is cap)"],
    ['rltt', { epsilonHigh: 0.3, surrogate: 'cispo' }, "epsilonHigh: needs the surrogate 'ppo' (the bound of 'cispo' is cap)"],
    ['grpo', { dualClip: 2, surrogate: 'cispo' }, "dualClip: needs the surrogate 'ppo' (the bound of 'cispo' is cap)"],
    ['grpo', { cap: 5 }, "cap: needs the surrogate 'cispo'"],
    ['rltt', { alpha: 2 }, "alpha: needs the weights 'progressive'"],
    ['rltt', { weights: [1, 2], detachWeights: false }, "detachWeights: needs the weights 'exit-pdf'"],
    ['grpo', { constantNormalizerLength: 9 }, "constantNormalizerLength: needs the normalizer 'constant'"],
    ['grpo', { advantage: { discount: 0.5 } }, "advantage.discount: needs the source 'turn'"],
    ['objective', { branch: { entropy: 1, width: 2 } }, 'branch: needs an environment'],
    ['rltt', { maxTurns: 3 }, 'maxTurns: needs an environment'],
    ['rltt', { tools: [] }, 'tools: needs an environment'],
    ['grpo', { task, evalDataset: 'rows' }, 'evalDataset: needs a dataset'],
    ['grpo', { task, tokenizer }, 'tokenizer: needs a dataset or a corpus (a task has its own tokenizer)'],
    ['grpo', { task, chatTemplate: { system: 'x' } }, 'chatTemplate: needs a dataset'],
    ['pretrain', { task, evalCorpus: 'text' }, 'evalCorpus: needs a corpus'],
    ['looprpt', { task, contextLength: 8 }, 'contextLength: needs a corpus'],
    ['looprpt', { dataset: 'rows', heldOutShare: 0 }, 'heldOutShare: needs a corpus'],
    ['looprpt', { corpus, reward() {} }, 'reward: needs a task or a dataset'],
    ['pretrain', { corpus, assistantOnly: true }, 'assistantOnly: needs a dataset'],
    ['pretrain', { corpus, evalDataset: 'rows' }, 'evalDataset: needs a dataset'],
    ['pretrain', { weights: 'last', alpha: 2 }, "alpha: needs the weights 'progressive'"],
    ['pretrain', { weights: 'last', entropyCoefficient: 1 }, "entropyCoefficient: needs the weights 'exit-pdf'"],
    ['rltt', { greaterIsBetter: true }, /^greaterIsBetter: needs metricForBestModel, the metric that .*reward$/],
    ['pretrain', { earlyStoppingThreshold: 1 }, 'earlyStoppingThreshold: needs earlyStoppingPatience'],
    ['looprpt', { minLearningRate: 1e-9 }, "minLearningRate: needs the schedule 'linear' or 'cosine'"],
    ...['loops', 'readLoops', 'backwardLoops', 'weights', 'alpha', 'entropyCoefficient', 'recompute', 'stateSeed'].map((name) => {
      const values = { readLoops: [1], weights: 'last', recompute: 'loop' } as Record<string, unknown>
      const message = `${name}: needs stage 1 (stage 2 trains only the exit gate, at every loop)`
      return ['pretrain', { stage: 2, [name]: values[name] ?? 2 }, message] as const
    }),
    ['pretrain', { stage: 2, initialState: 'zeros' }, /^initialState: needs stage 1 /],
  ] as const)('that nothing reads are rejected: %s %o', (trainer, options, message) => {
    const [first, ...more] = refusal(options, whole[trainer])
      .replace(/^Trainer: /, '')
      .split('\n')
    expect(more).toEqual([])
    const [problem, remedy] = first!.split('; ')
    if (typeof message === 'string') expect(problem).toBe(message)
    else expect(problem).toMatch(message)
    expect(remedy).toBe(`set it, or omit ${/[\w.]+(?=:)/.exec(first!)![0].split('.').at(-1)}`)
  })

  it('that nothing reads are accepted with their defaults, which config.yaml of a run has', () => {
    for (const trainer of trainerNames) {
      const defaults = plainConfig(parseOptions('x', whole[trainer], {}))
      expect(defaults).not.toEqual({})
      for (const source of [{}, { task }, { dataset: [] }, ...(trainer in { pretrain: 0, looprpt: 0 } ? [{ corpus }] : [])]) {
        expect(plainConfig(parseOptions('x', whole[trainer], { ...defaults, ...source }))).toEqual(defaults)
      }
    }
    parseOptions('x', pretrainOptions, { ...plainConfig(parseOptions('x', pretrainOptions, {})), stage: 2 })
    parseOptions('x', rlttOptions, { environment, maxTurns: 3, branch: { entropy: 1, width: 2 } })
  })

  it('are all documented with type and default', () => {
    for (const trainer of trainerNames) {
      const defaults = trainers[trainer].schema.parse({}) as Record<string, unknown>
      for (const { name, description, type, default: value } of trainerOptions(trainer)) {
        expect(description, name).toMatch(/\w/)
        expect(type, name).not.toMatch(/\b(any|object)\b/)
        expect(value, name).toBe(defaults[name] === undefined ? undefined : JSON.stringify(defaults[name]))
      }
    }
    expect(trainerOptions('rltt').find(({ name }) => name === 'groupSize')).toMatchObject({ type: 'integer >= 2', default: '8' })
  })
})

describe('the comments of the option types', () => {
  const source = readFileSync('src/rl/options.ts', 'utf8')
  const interfaces = new Map(
    [...source.matchAll(/^export interface (\w+)(?: extends ([\w, ]+))? \{(?:\}|([\s\S]*?)^\})/gm)].map(
      ([, name, parents = '', body = '']) => {
        const members = [...body.matchAll(/\/\*\*([\s\S]*?)\*\/\s+(\w+)\??:/g)].map(([, comment, field]) => {
          const words = comment!.split('\n').map((line) => line.trim().replace(/^\* ?/, ''))
          return [field!, words.join(' ').trim()] as const
        })
        return [name!, { parents: parents.split(', ').filter(Boolean), comments: new Map(members) }]
      },
    ),
  )
  const commentOf = (name: string, field: string): string | undefined => {
    const { parents, comments } = interfaces.get(name)!
    return comments.get(field) ?? parents.map((parent) => commentOf(parent, field)).find((comment) => comment !== undefined)
  }

  it.each([
    ['rltt', 'RLTTConfig'],
    ['grpo', 'GRPOConfig'],
    ['pretrain', 'PretrainConfig'],
    ['looprpt', 'LoopRPTConfig'],
    ['objective', 'ObjectiveTrainerConfig'],
  ] as const)('agree with the schema of %s', (trainer, type) => {
    for (const { name, description, default: value } of trainerOptions(trainer)) {
      if (name === 'objective') continue // the type also takes a function
      const said = value === undefined || name === 'lora' ? description : `${description} Default \`${value}\`.`
      expect(commentOf(type, name), name).toBe(said)
    }
  })

  it('agree with the schemas for fields that are not plain data', () => {
    for (const [type, { shape }] of [
      ['PolicyConfig', objectiveTrainerOptions],
      ['LoopRPTConfig', looprptOptions],
    ] as const) {
      for (const [name, schema] of Object.entries(shape)) {
        if (name === 'objective') continue
        expect(commentOf(type, name)?.startsWith(schema.description!), name).toBe(true)
      }
    }
  })
})

it('the type of an objective has the fields of its schema, with their comments', () => {
  const source = readFileSync('src/rl/objective/input.ts', 'utf8')
  const text = source.replaceAll(/\s*\n\s*\*?\s*/g, ' ')
  interface Node {
    properties?: Record<string, Node>
    items?: Node
    anyOf?: Node[]
    oneOf?: Node[]
    description?: string
    default?: unknown
  }
  const names = new Set<string>()
  const visit = ({ properties = {}, items, anyOf = [], oneOf = [] }: Node): void => {
    for (const inner of [...(items === undefined ? [] : [items]), ...anyOf, ...oneOf]) visit(inner)
    for (const [name, field] of Object.entries(properties)) {
      names.add(name)
      const said =
        field.default === undefined ? field.description : `${field.description} Default \`${JSON.stringify(field.default)}\`.`
      if (field.description !== undefined) expect(text).toContain(said)
      visit(field)
    }
  }
  visit(z.toJSONSchema(objectiveSchema, { io: 'input' }) as Node)
  const written = new Set([...source.replaceAll(/\/\*[\s\S]*?\*\//g, '').matchAll(/(\w+)\??:/g)].map(([, name]) => name!))
  expect([...written].sort()).toEqual([...names].sort())
})
