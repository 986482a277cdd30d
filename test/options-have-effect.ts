// No option of a trainer and no field of an objective is ignored: each changes what a short run does. A field that is added without a
// row here fails the test, and so does a row whose field nothing reads.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { z } from 'zod'
import { fragmentTokenizer } from '../examples/agents/tokenizer.js'
import { defineTool } from '../src/chat/tools.js'
import { LoopLM } from '../src/model/model.js'
import { native } from '../src/native.js'
import type { Environment } from '../src/rl/environment.js'
import { objectiveSchema } from '../src/rl/objective/schema.js'
import { type TrainerName, trainerNames, trainers } from '../src/rl/registry.js'
import { parametersOf, tinyConfig, tinyTask } from './tiny.js'

type Options = Record<string, unknown>
const policies: readonly TrainerName[] = ['rltt', 'grpo', 'objective']

let folder: string

let runs = 0

/** Everything that a run does but its times: events, metrics, warnings, files, parameters; its calls of the engine for `quiet` options. */
async function outcome(name: TrainerName, options: Options, quiet = false): Promise<string> {
  using model = await LoopLM.create(tinyConfig, { device: 'cpu', seed: 1, threads: 1 })
  const { inFolder, rows, text, chats, ...rest } = options
  const runDir = inFolder === true ? join(folder, `run-${runs++}`) : undefined
  const data = {
    ...(rows === true || text === true || chats !== undefined ? {} : { task: { ...tinyTask, stop: [0, 1, 2, 3] } }), // completions of 1 or 2 tokens
    ...(rows === true
      ? {
          dataset: ['1+2', '3+4', '5+5'].map((sum) => ({ prompt: `${sum}=`, answer: '3' })),
          evalDataset: [{ prompt: '1+2=', answer: '3' }],
          tokenizer: tinyTask.tokenizer,
        }
      : {}),
    ...(chats === undefined
      ? {}
      : {
          dataset: [chats === 'text' ? { prompt: '5+5=', answer: '3' } : { prompt: dialogue, answer: '9' }],
          tokenizer: tinyTask.tokenizer.withChatTemplate(template),
        }),
    ...(text === true ? { corpus: join(folder, 'text.txt'), tokenizer: tinyTask.tokenizer } : {}),
  }
  let [calls, waiting, most] = [0, 0, 0]
  const reward = async (_prompt: string, completion: string) => {
    const value = calls++ + ((completion.charCodeAt(0) || 0) % 7) // later evaluations earn more
    most = Math.max(most, ++waiting)
    await new Promise((resolve) => setTimeout(resolve, 2))
    waiting--
    return value
  }
  const log: unknown[] = []
  const onWarning = (message: string) => log.push(message)
  const policy = policies.includes(name)
  const shared = { steps: 3, evalProblems: 8, learningRate: 1e-2, onWarning, ...(runDir === undefined ? {} : { runDir }) }
  const sizes = policy
    ? { reward, promptsPerStep: 2, groupSize: 4, logprobCheckEvery: 0 }
    : { batchSize: 4, ...(name === 'looprpt' ? { rollouts: 4 } : {}) }
  const spies = quiet
    ? (['modelAccumulateLoss', 'modelAccumulateLoopRpt', 'modelScore'] as const).map((call) => vi.spyOn(native(), call))
    : []
  const generate = vi.spyOn(model, 'generate')
  try {
    using trainer = trainers[name].create(model, { ...data, ...shared, ...sizes, ...rest })
    for await (const { type, step, metrics } of trainer.run()) {
      const { step_time, tokens_per_second, sampling_time, ...timeless } = metrics
      const numbers = Object.entries(timeless).filter(([key]) => !key.startsWith('memory/'))
      log.push(
        type,
        step,
        numbers,
        generate.mock.calls.map(([prompts]) => prompts.length),
      )
    }
    log.push(trainer.best?.step)
  } catch (error) {
    log.push(String(error))
  } finally {
    for (const spy of spies) {
      log.push(spy.mock.calls.map((given) => given.slice(1).map((value) => plain(value))))
      spy.mockRestore()
    }
    if (quiet) log.push(generate.mock.calls.map(([, given]) => given?.speculate ?? 'off'))
  }
  if (runDir !== undefined) log.push(readdirSync(join(runDir, 'checkpoints')).sort(), completions(runDir))
  const adapter = await Promise.all(
    (model.adapter?.parameters ?? []).map(async ({ name }) => [name, await model.getParameter(name)]),
  )
  return JSON.stringify([log, quiet ? most : 0, [...(await parametersOf(model))].map(plain), adapter.map(plain)])
}

const template = '{% if shout %}0{% endif %}{% if tools %}1{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}'
const dialogue = ['1+2=', '3', '4+5='].map((content, i) => ({ role: i === 1 ? 'assistant' : 'user', content }))

const known = new Map<string, Promise<string>>()

/** The outcome of options that several rows begin with; twice the same, else a difference would say nothing. */
function repeated(name: TrainerName, options: Options, quiet = false): Promise<string> {
  const twice = async () => {
    const first = await outcome(name, options, quiet)
    expect(first).not.toMatch(/Error/)
    expect(await outcome(name, options, quiet)).toBe(first)
    return first
  }
  const key = JSON.stringify([name, options, quiet], (_, value) => (typeof value === 'function' ? String(value) : value))
  const made = known.get(key) ?? twice()
  known.set(key, made)
  return made
}

const plain = (value: unknown): unknown => {
  if (ArrayBuffer.isView(value)) return Array.from(value as Float64Array)
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]))
}
const completions = (runDir: string) => {
  const path = join(runDir, 'completions.jsonl')
  return readdirSync(runDir).includes('completions.jsonl') ? readFileSync(path, 'utf8').split('\n').length : 0
}

interface Row {
  /** Options of both runs. */
  base?: Options
  change: Options
  /** Changes no number: the calls of the engine and of the rewards are compared as well. */
  quiet?: boolean
  /** With the change the run fails with this error. Without it a run that fails says nothing about the option. */
  fails?: RegExp
}
const ratio = { surrogate: 'ppo', updatesPerRollout: 3 }
const evaluated = (name: TrainerName) => ({
  ...{ inFolder: true, rows: true, evalEvery: 1, evalLoops: [1], steps: 3, keepCheckpoints: 1 },
  ...(policies.includes(name) ? { maxNewTokens: 2 } : {}),
})
// rewards and losses grow and fall from evaluation to evaluation, so that the first one is the worst
const best = (name: TrainerName) => ({
  ...evaluated(name),
  metricForBestModel: policies.includes(name) ? 'eval/loop_1/reward' : 'eval/loop_1/loss',
})
const worst = (name: TrainerName) => ({ ...best(name), greaterIsBetter: !policies.includes(name) })

/** Three turns, each with a reward. */
const talk: Environment = ({ prompt }) => ({
  prompt: prompt as string,
  step: ({ text, index }) => ({ reward: (text.charCodeAt(0) || 0) % 7, ...(index < 2 ? { reply: '+' } : { done: true }) }),
})
const talking = { environment: talk, maxNewTokens: 2 }

/** Every token is a call of a tool that takes its time; what is rewarded is whether two of them ran at once. */
const call = '<tool_call>{"name":"wait"}</tool_call>'
const callTokenizer = fragmentTokenizer('0123+=', [call, '<tool_response>\n', '\n</tool_response>\n'], ';')
const calling = () => {
  let [running, most] = [0, 0]
  const run = async () => {
    most = Math.max(most, ++running)
    await new Promise((resolve) => setTimeout(resolve, 5))
    running--
    return '1'
  }
  const tools = [defineTool({ name: 'wait', description: 'Waits.', parameters: { type: 'object' }, run })]
  const environment: Environment = () => ({ prompt: '1+', tools, step: () => ({ reward: Number(most > 1), done: true }) })
  const ask = { dataset: [{ prompt: '1' }], task: undefined, tokenizer: callTokenizer, reward: () => 0 }
  return { ...ask, environment, maxNewTokens: 1, logitBias: { 6: 100 } }
}
const rewriting = (): Options => {
  const template =
    "{% for m in messages %}{% if loop.last %}{{ m.content }}{% else %}{{ m.content | replace('1', '2') }}{% endif %}{% endfor %}"
  const environment: Environment = () => ({
    prompt: [{ role: 'user', content: '1' }],
    step: ({ index }) => (index === 0 ? { reply: '3' } : { done: true }),
  })
  return { rows: true, tokenizer: tinyTask.tokenizer.withChatTemplate(template), environment, maxNewTokens: 2 }
}

const options: Record<string, Row | ((name: TrainerName) => Row)> = {
  steps: { change: { steps: 2 } },
  epochs: { base: { rows: true }, change: { steps: undefined, epochs: 5 } },
  seed: { change: { seed: 1 } },
  evalEvery: { change: { evalEvery: 1 } },
  evalOnStart: { base: { evalEvery: 1 }, change: { evalOnStart: false } },
  evalProblems: { base: { evalEvery: 1, evalProblems: 2 }, change: { evalProblems: 3 } },
  evalLoops: { base: { evalEvery: 1 }, change: { evalLoops: [2] } },
  evalSamples: { base: { evalEvery: 1 }, change: { evalSamples: 2 } },
  evalTemperature: { base: { evalEvery: 1 }, change: { evalTemperature: 2 } },
  evalMaxNewTokens: { base: { evalEvery: 1 }, change: { evalMaxNewTokens: 1 } },
  saveEvery: { base: { inFolder: true }, change: { saveEvery: 1 } },
  keepCheckpoints: { base: { inFolder: true, saveEvery: 1 }, change: { keepCheckpoints: 1 } },
  metricForBestModel: (name) => ({ base: evaluated(name), change: best(name) }),
  greaterIsBetter: (name) => ({ base: best(name), change: worst(name) }),
  saveBest: (name) => ({ base: best(name), change: { saveBest: 2 } }),
  loadBestModelAtEnd: (name) => ({ base: worst(name), change: { loadBestModelAtEnd: true } }),
  earlyStoppingPatience: (name) => ({ base: worst(name), change: { earlyStoppingPatience: 1 } }),
  earlyStoppingThreshold: (name) => ({
    base: { ...best(name), earlyStoppingPatience: 1 },
    change: { earlyStoppingThreshold: 1e9 },
  }),
  chatTemplate: { base: { chats: true }, change: { chatTemplate: { shout: true } } },
  'chatTemplate.template': { base: { chats: true }, change: { chatTemplate: { template: `5${template}` } } },
  'chatTemplate.tools': { base: { chats: true }, change: { chatTemplate: { tools: [{ name: 'add' }] } } },
  'chatTemplate.system': { base: { chats: true }, change: { chatTemplate: { system: '7' } } },
  'chatTemplate.wrapPrompts': {
    base: { chats: 'text', chatTemplate: { system: '7' } },
    change: { chatTemplate: { wrapPrompts: true, system: '7' } },
  },
  assistantOnly: { base: { chats: true }, change: { assistantOnly: true } },
  schedule: { change: { schedule: 'linear' } },
  warmupSteps: { change: { warmupSteps: 2 } },
  warmupRatio: { change: { warmupRatio: 0.9 } },
  minLearningRate: { base: { schedule: 'cosine' }, change: { minLearningRate: 1e-3 } },
  learningRate: { change: { learningRate: 2e-2 } },
  weightDecay: { change: { weightDecay: 0.3 } },
  adamBetas: { change: { adamBetas: [0.5, 0.6] } },
  adamEps: { change: { adamEps: 1e-2 } },
  maxGradNorm: { change: { maxGradNorm: 1e-3 } },
  recompute: { change: { recompute: 'layer' }, quiet: true },
  tokensPerMicroBatch: { change: { tokensPerMicroBatch: 8 }, quiet: true },
  loops: { change: { loops: 2 } },
  readLoops: { change: { readLoops: [1, 2] } },
  backwardLoops: { change: { backwardLoops: 1 } },
  lora: { change: { lora: {} } },
  'lora.rank': { base: { lora: { rank: 2 } }, change: { lora: { rank: 3 } } },
  'lora.alpha': { base: { lora: { alpha: 2 } }, change: { lora: { alpha: 3 } } },
  'lora.perLoop': { base: { lora: {} }, change: { lora: { perLoop: true } } },
  'lora.shiftRank': { base: { lora: {} }, change: { lora: { shiftRank: 2 } } },
  'lora.targetModules': { base: { lora: {} }, change: { lora: { targetModules: ['q_proj'] } } },
  promptsPerStep: { change: { promptsPerStep: 3 } },
  groupSize: { change: { groupSize: 3 } },
  gradientAccumulation: { change: { gradientAccumulation: 2 } },
  updatesPerRollout: { change: { updatesPerRollout: 2 } },
  minibatches: { change: { minibatches: 2 } },
  maxNewTokens: { change: { maxNewTokens: 1 } },
  constantNormalizerLength: (name) => ({
    base: name === 'objective' ? { objective: 'dr-grpo' } : { normalizer: 'constant' },
    change: { constantNormalizerLength: 1 },
  }),
  temperature: { change: { temperature: 0.5 } },
  topK: { change: { topK: 2 } },
  topP: { change: { topP: 0.3 } },
  minP: { change: { minP: 0.9 } },
  repetitionPenalty: { change: { repetitionPenalty: 5 } },
  frequencyPenalty: { base: { maxNewTokens: 6 }, change: { frequencyPenalty: 9 } },
  presencePenalty: { base: { maxNewTokens: 6 }, change: { presencePenalty: 9 } },
  logitBias: { change: { logitBias: { 5: 9 } } },
  bannedTokens: { change: { bannedTokens: [0, 1, 2, 3, 4] } },
  stop: { change: { stop: ['7'] } },
  grammar: { change: { grammar: { regex: '[45]{2}' } } },
  'grammar.jsonSchema': { base: { grammar: { jsonSchema: { const: 4 } } }, change: { grammar: { jsonSchema: { const: 5 } } } },
  'grammar.regex': { base: { grammar: { regex: '4' } }, change: { grammar: { regex: '5' } } },
  'grammar.ebnf': { base: { grammar: { ebnf: 'root ::= "4"' } }, change: { grammar: { ebnf: 'root ::= "5"' } } },
  exit: { change: { exit: { rule: 'gate', threshold: 0.1 } } },
  'exit.rule': { base: { exit: { rule: 'fixed' } }, change: { exit: { rule: 'argmax-stable' } } },
  'exit.threshold': {
    base: { exit: { rule: 'gate', threshold: 0.9 } },
    change: { exit: { rule: 'gate', threshold: 0.1 } },
  },
  'exit.minLoops': {
    base: { exit: { rule: 'gate', threshold: 0.1 } },
    change: { exit: { rule: 'gate', threshold: 0.1, minLoops: 2 } },
  },
  'exit.patience': {
    base: { exit: { rule: 'argmax-stable' } },
    change: { exit: { rule: 'argmax-stable', patience: 3 } },
  },
  speculate: { change: { speculate: 'wavefront' }, quiet: true }, // the tokens are the same
  maxTurns: { base: talking, change: { maxTurns: 2 } },
  maxEpisodeTokens: { base: talking, change: { maxEpisodeTokens: 8 } },
  branch: { base: talking, change: { branch: { entropy: 0, width: 2 } } },
  'branch.entropy': {
    base: { ...talking, branch: { entropy: 0, width: 2 } },
    change: { branch: { entropy: 100, width: 2 } },
  },
  'branch.width': { base: { ...talking, branch: { entropy: 0, width: 2 } }, change: { branch: { entropy: 0, width: 4 } } },
  toolConcurrency: () => ({ base: calling(), change: { ...calling(), toolConcurrency: 1 } }),
  toolTimeout: () => ({ base: calling(), change: { ...calling(), toolTimeout: 1e-3 } }),
  environmentTimeout: {
    base: talking,
    change: { environment: () => new Promise(() => {}), environmentTimeout: 1e-3 },
    fails: /environmentTimeout/,
  },
  reencode: () => ({ base: { ...rewriting(), reencode: true }, change: { reencode: false }, fails: /set reencode: true/ }),
  advantage: { base: talking, change: { advantage: { source: 'turn' } } },
  'advantage.source': { base: talking, change: { advantage: { source: 'turn' } } },
  'advantage.discount': {
    base: { ...talking, advantage: { source: 'turn' } },
    change: { advantage: { source: 'turn', discount: 0 } },
  },
  skipFlatGroups: { base: { reward: () => 1 }, change: { skipFlatGroups: false } },
  rewardConcurrency: { change: { rewardConcurrency: 2 }, quiet: true },
  rewardTimeout: { change: { rewardTimeout: 1e-6 }, fails: /rewardTimeout/ },
  logCompletions: { base: { inFolder: true }, change: { logCompletions: 1 } },
  logprobCheckEvery: { change: { logprobCheckEvery: 1 } },
  scaleRewards: { change: { scaleRewards: 'none' } },
  beta: { change: { beta: 0.5 } },
  normalizer: { change: { normalizer: 'constant' } },
  epsilon: { base: ratio, change: { epsilon: 1e-4 } },
  epsilonHigh: { base: ratio, change: { epsilonHigh: 1e-4 } },
  dualClip: { base: ratio, change: { dualClip: 1.0001 } },
  cap: { base: { ...ratio, surrogate: 'cispo' }, change: { cap: 0.5 } },
  weights: { change: { weights: 'uniform' } },
  alpha: { base: { weights: 'progressive' }, change: { alpha: 2 } },
  detachWeights: { change: { detachWeights: false } },
  surrogate: (name) => ({ base: { updatesPerRollout: 2 }, change: { surrogate: name === 'grpo' ? 'reinforce' : 'ppo' } }),
  objective: { change: { objective: 'grpo' } },
  exitThreshold: { change: { exitThreshold: 0.3 } },
  marginalToken: { base: { objective: 'prerl' }, change: { marginalToken: 3 } },
  stage: { change: { stage: 2 } },
  entropyCoefficient: { change: { entropyCoefficient: 0.5 } },
  batchSize: { change: { batchSize: 2 } },
  contextLength: { base: { text: true, contextLength: 8 }, change: { contextLength: 9 } },
  heldOutShare: { base: { text: true, contextLength: 8, evalEvery: 1 }, change: { heldOutShare: 0.5 } },
  rho: { change: { rho: 0.9 } },
  tau: { change: { tau: 0.99 } },
  lambdaBase: { change: { lambdaBase: 1 } },
  lambdaScale: { change: { lambdaScale: 5 } },
  rollouts: { change: { rollouts: 6 } },
  sigma: { change: { sigma: 1 } },
  noiseSite: { change: { noiseSite: 'embedding' } },
  antithetic: { change: { antithetic: true } },
  rewardFrom: { change: { rewardFrom: 'clean' } },
  policyCoefficient: { change: { policyCoefficient: 0.1 } },
  representationCoefficient: { change: { representationCoefficient: 0.1 } },
  klCoefficient: { change: { klCoefficient: 1 } },
  klReduction: { base: { klCoefficient: 1 }, change: { klReduction: 'last' } },
  teacherDecay: { base: { klCoefficient: 1 }, change: { teacherDecay: 0.5 } },
}

const term = (fields: Options = {}, more: Options = {}) => ({
  terms: [{ surrogate: 'ppo', weights: 'uniform', ...fields }],
  ...more,
})
const advantage = (fields: Options, more: Options = {}) => term({ advantage: fields }, more)
const loops = (fields: Options) => advantage({ loops: { belief: 'token', ...fields } })
const pair = (base: unknown, change: unknown, more: Options = {}) => [base, change, more] as const
const turns = (fields: Options) => advantage({ source: 'turn', ...fields })
const cost = (fields: Options) => advantage({ cost: { by: 'length', ...fields } })
const weights = (value: unknown) => term({ weights: value })
const clipped = (kind: string, fields: Options = {}) => term({ surrogate: { kind, ...fields } })
const lazy = (fields: Options) => term({}, { lazy: { weight: 1, gate: 'token', ...fields } })
const kl = (fields: Options) => term({}, { kl: { beta: 1, ...fields } })
const shaped = (shaper: Options) => term({}, { rewards: [shaper] })
const teacher = { base: 'teacher', cost: 0.1 }
const exits = (fields: Options = {}) => ({ terms: [{ channel: 'exit', ...fields }] })
const overlong = { kind: 'overlong', maxLength: 2, cache: 2 }

/** By path: two objectives that differ in the field. */
const objectives: Record<string, readonly [unknown, unknown, Options]> = {
  rewards: pair(term(), shaped({ kind: 'majority' })),
  'rewards.weight': pair(shaped({ kind: 'length' }), shaped({ kind: 'length', weight: 3 })),
  'rewards.maxLength': pair(shaped(overlong), shaped({ ...overlong, maxLength: 9 })),
  'rewards.cache': pair(shaped(overlong), shaped({ ...overlong, cache: 1 })),
  filter: pair(term(), term({}, { filter: { keepPerGroup: 2 } })),
  'filter.minGroupStd': pair(term(), term({}, { filter: { minGroupStd: 1e6 } })),
  'filter.dropTruncated': pair(term(), term({}, { filter: { dropTruncated: true } })),
  'filter.keepPerGroup': pair(term(), term({}, { filter: { keepPerGroup: 3 } })),
  'filter.resample': pair(term(), term({}, { filter: { resample: 1 } })),
  terms: pair(term(), { terms: [...term().terms, ...exits().terms] }),
  'terms.channel': pair({ terms: [{}] }, exits()),
  'terms.space': pair(term(), term({ space: 'marginal' })),
  'terms.advantage': pair(term(), advantage({ scale: 'none' })),
  'terms.advantage.source': pair(term(), advantage({ source: 'one' })),
  'terms.advantage.discount': pair(turns({}), turns({ discount: 0.5 }), talking),
  'terms.advantage.gain': pair(turns({}), turns({ gain: {} }), talking),
  'terms.advantage.gain.weight': pair(turns({ gain: {} }), turns({ gain: { weight: 3 } }), talking),
  'terms.advantage.gain.value': pair(turns({ gain: {} }), turns({ gain: { value: 'log' } }), talking),
  'terms.advantage.gain.prefix': pair(turns({ gain: {} }), turns({ gain: { prefix: '=' } }), talking),
  'terms.advantage.baseline': pair(advantage({ scale: 'none' }), advantage({ baseline: 'none' })),
  'terms.advantage.scale': pair(term(), advantage({ scale: 'population' })),
  'terms.advantage.strata': pair(term(), advantage({ strata: { by: 'length' } })),
  'terms.advantage.strata.by': pair(advantage({ strata: { by: 'truncated' } }), advantage({ strata: { by: 'length' } })),
  'terms.advantage.strata.blend': pair(
    advantage({ strata: { by: 'length' } }),
    advantage({ strata: { by: 'length', blend: 1 } }),
  ),
  'terms.advantage.cost': pair(term(), cost({})),
  'terms.advantage.cost.by': pair(cost({}), cost({ by: 'exit-loop' })),
  'terms.advantage.cost.shape': pair(cost({}), cost({ shape: 2 })),
  'terms.advantage.cost.price': pair(cost({}), cost({ price: 2 })),
  'terms.advantage.cost.pivot': pair(cost({}), cost({ pivot: 0.9 })),
  'terms.advantage.cost.pivotShare': pair(cost({}), cost({ pivotShare: 0.9 })),
  'terms.advantage.cost.temperature': pair(cost({}), cost({ temperature: 2 })),
  'terms.advantage.cost.rightAbove': pair(cost({}), cost({ rightAbove: 1 })),
  'terms.advantage.batch': pair(term(), advantage({ batch: true })),
  'terms.advantage.sign': pair(term(), advantage({ sign: 'negative' })),
  'terms.advantage.positiveWeight': pair(term(), advantage({ positiveWeight: 3 })),
  'terms.advantage.loops': pair(term(), loops({})),
  'terms.advantage.loops.belief': pair(loops({}), loops({ belief: 'gold-answer' })),
  'terms.advantage.loops.value': pair(loops({}), loops({ value: 'probability' })),
  'terms.advantage.loops.attempts': pair(loops({ value: 'best-of' }), loops({ value: 'best-of', attempts: 9 })),
  'terms.advantage.loops.base': pair(loops({}), loops({ base: 'none' })),
  'terms.advantage.loops.clip': pair(loops({}), loops({ clip: 0.1 })),
  'terms.advantage.loops.delta': pair(loops({}), loops({ delta: true })),
  'terms.advantage.loops.discount': pair(loops({}), loops({ discount: 0.9 })),
  'terms.advantage.loops.cost': pair(loops({}), loops({ cost: 0.5 })),
  'terms.advantage.loops.costScale': pair(loops(teacher), loops({ ...teacher, costScale: 3 })),
  'terms.advantage.loops.threshold': pair(loops(teacher), loops({ ...teacher, threshold: 0.99 })),
  'terms.advantage.loops.normalize': pair(loops({}), loops({ normalize: 'loops' })),
  'terms.advantage.loops.scale': pair(loops({}), loops({ scale: 3 })),
  'terms.weights': pair(weights('last'), weights('exit-pdf')),
  'terms.weights.alpha': pair(weights({ kind: 'progressive', alpha: 1 }), weights({ kind: 'progressive', alpha: 3 })),
  'terms.weights.loop': pair(weights({ kind: 'one-hot', loop: 1 }), weights({ kind: 'one-hot', loop: 2 })),
  'terms.weights.weights': pair(weights({ kind: 'given', weights: [1, 1, 2] }), weights({ kind: 'given', weights: [3, 0, 1] })),
  'terms.weights.detach': pair({ terms: [{}] }, { terms: [{ weights: { kind: 'exit-pdf', detach: false } }] }),
  'terms.weights.temperature': pair(weights({ kind: 'exit-pdf' }), weights({ kind: 'exit-pdf', temperature: 0.3 })),
  'terms.surrogate': pair(term(), term({ surrogate: 'reinforce' })),
  'terms.surrogate.epsilonLow': pair(clipped('ppo'), clipped('ppo', { epsilonLow: 1e-4 })),
  'terms.surrogate.epsilonHigh': pair(clipped('gspo'), clipped('gspo', { epsilonHigh: 1e-4 })),
  'terms.surrogate.dualClip': pair(clipped('ppo'), clipped('ppo', { dualClip: 1.0001 })),
  'terms.surrogate.cap': pair(clipped('cispo'), clipped('cispo', { cap: 1 })),
  'terms.surrogate.tau': pair(clipped('k15'), clipped('k15', { tau: 3 })),
  'terms.combine': pair(term(), term({ combine: 'inner' })),
  'terms.normalizer': pair(term(), term({ normalizer: 'token-mean' })),
  'terms.draws': pair(exits(), exits({ draws: 3 })),
  'terms.weight': pair(
    { terms: [{}, { weights: 'last' }] },
    { terms: [{}, { weights: 'last', weight: { from: 0, to: 1, steps: 2 } }] },
  ),
  kl: pair(term(), kl({})),
  'kl.beta': pair(kl({}), kl({ beta: 2 })),
  'kl.loops': pair(kl({}), kl({ loops: 'uniform' })),
  'kl.reference': pair(kl({}), kl({ reference: 'ema' })),
  lazy: pair(term(), lazy({})),
  'lazy.weight': pair(lazy({}), lazy({ weight: 3 })),
  'lazy.gate': pair(lazy({}), lazy({ gate: 'response' })),
  'lazy.loops': pair(lazy({}), lazy({ loops: 'last' })),
  'lazy.normalizer': pair(lazy({}), lazy({ normalizer: 'preserving' })),
  'lazy.old': pair(lazy({}), lazy({ old: 'ema' })),
  entropy: pair(term(), term({}, { entropy: { token: 0.1, exit: 0.1 } })),
  'entropy.token': pair(term(), term({}, { entropy: { token: 0.5 } })),
  'entropy.exit': pair(term(), term({}, { entropy: { exit: 0.5 } })),
  emaDecay: pair(kl({ reference: 'ema' }), { ...kl({ reference: 'ema' }), emaDecay: 0.1 }),
}

interface JsonSchema {
  properties?: Record<string, JsonSchema>
  items?: JsonSchema
  anyOf?: JsonSchema[]
  oneOf?: JsonSchema[]
  const?: unknown
}

/** The paths of all fields below a schema; not those of annealed numbers, nor fields with one value. */
function paths(schema: JsonSchema, prefix = ''): string[] {
  const { properties, items, anyOf = [], oneOf = [] } = schema
  const below = [...(items === undefined ? [] : [items]), ...anyOf, ...oneOf].flatMap((inner) => paths(inner, prefix))
  if (properties === undefined || 'from' in properties) return below
  const own = Object.entries(properties).flatMap(([name, inner]) => {
    if (inner.const !== undefined) return []
    const path = prefix === '' ? name : `${prefix}.${name}`
    return [path, ...paths(inner, path)]
  })
  return [...below, ...own]
}

/** First states exist in other families alone: test/rl/families-training.test.ts. */
const ofOtherFamilies = ['initialState', 'stateSeed']

const fieldsOf = (schema: z.ZodType) => new Set(paths(z.toJSONSchema(schema, { io: 'input' }) as JsonSchema))

function rowOf(name: TrainerName, field: string): Row | undefined {
  const found = options[field]
  return typeof found === 'function' ? found(name) : found
}

/** Per trainer, the options that one before it in its row declares too. */
const inherited = new Map<TrainerName, Set<unknown>>()
for (const row of [policies, ['pretrain', 'looprpt'] as const]) {
  const declared: unknown[] = []
  for (const name of row) {
    inherited.set(name, new Set(declared))
    declared.push(...Object.values(trainers[name].schema.shape))
  }
}

/**
 * Claims that every option of every trainer has an effect. What trainers share is declared once and read by the class below them. Without
 * `all` one trainer that samples tries it, and one that reads sequences.
 */
export function optionsHaveEffect({ all }: { all: boolean }): void {
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'looplm-options-'))
    writeFileSync(join(folder, 'text.txt'), '1+2=3 4+5=9 '.replaceAll(' ', '').repeat(40))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  describe.each(trainerNames)('every option of %s', (name) => {
    const { schema } = trainers[name]
    const fields = [...fieldsOf(schema)].filter((path) => {
      if (path.startsWith('objective.') || ofOtherFamilies.includes(path)) return false
      // folders belong to what all trainers share
      if (rowOf(name, path)?.base?.inFolder === true && !['rltt', 'pretrain'].includes(name)) return false
      return all || !inherited.get(name)!.has(schema.shape[path.split('.')[0]!])
    })
    it.each(fields)('%s', async (field) => {
      expect(Object.keys(options)).toContain(field)
      const { base = {}, change, quiet, fails } = rowOf(name, field)!
      const before = await repeated(name, base, quiet)
      const after = await outcome(name, { ...base, ...change }, quiet)
      if (fails === undefined) expect(after).not.toMatch(/Error/)
      else expect(after).toMatch(fails)
      expect(after).not.toBe(before)
    })
  })

  it('every row of the table belongs to an existing option', () => {
    const known = new Set(trainerNames.flatMap((name) => [...fieldsOf(trainers[name].schema)]))
    expect(Object.keys(options).filter((field) => !known.has(field))).toEqual([])
  })
}

/** Claims that every field of an objective has an effect. */
export function objectiveFieldsHaveEffect(): void {
  it.each([...fieldsOf(objectiveSchema)])('%s', async (field) => {
    expect(Object.keys(objectives)).toContain(field)
    const [base, change, more] = objectives[field]!
    const several = { updatesPerRollout: 4, steps: 2, learningRate: 5e-2, ...more }
    const before = await repeated('objective', { ...several, objective: base })
    const after = await outcome('objective', { ...several, objective: change })
    expect(after).not.toMatch(/Error/)
    expect(after).not.toBe(before)
  })

  it('every row of the table belongs to an existing field', () => {
    expect(Object.keys(objectives).filter((field) => !fieldsOf(objectiveSchema).has(field))).toEqual([])
  })
}
