// One run in a separate process with one engine thread: node dist/study/two/run.js '<spec as JSON>' FOLDER-OF-BASES prints the result.
import { join } from 'node:path'
import {
  addition,
  chain,
  evaluate,
  type GenerateOptions,
  type GRPOOptions,
  GRPOTrainer,
  LoopLM,
  ObjectiveTrainer,
  PretrainTrainer,
  parity,
  RLTTTrainer,
  type Task,
  type TrainerEvent,
} from '../../src/index.js'
import { processor } from '../processor.js'
import { cpuSeconds, short, trainBase } from '../runs.js'
import { mean } from '../statistics.js'
import { type Arm, arms, type RunSpec, type StudyTask, settings, taskOf } from './plan.js'
import { released } from './released.js'
import type { BaseResult, LoopGradients, Measurement, Point, Result, TrainingResult } from './results.js'

const loopCounts = Array.from({ length: settings.loops }, (_, i) => i + 1)
const initialEntropy = 0.2 // weight of the exit entropy in Stage I, as in Study I

/** The problems of a task for reinforcement, and those that its bases learn. */
export const problems: Record<StudyTask['name'], () => { task: Task; lessons: Task }> = {
  addition: () => ({ task: addition({ digits: 4 }), lessons: addition({ digits: 4, minDigits: 1 }) }),
  chain: () => {
    const task = chain({ modulus: 5, operations: 4, minOperations: 2 })
    return { task, lessons: task }
  },
  parity: () => {
    const task = parity({ bits: 16, written: 0.25 })
    return { task, lessons: task }
  },
}

/** How many problems the measurements use. */
export type Sizes = Record<'pointProblems' | 'finalProblems' | 'gateProblems' | 'passProblems' | 'gateSteps' | 'points', number>

/**
 * Makes one run.
 * @param bases the folder with the checkpoints of the bases
 */
export async function carryOut(spec: RunSpec, bases: string): Promise<Result> {
  const study = taskOf(spec.task)
  const path = join(bases, spec.task, String(spec.base))
  if (spec.kind === 'base') return makeBase(spec, study, path)
  using model = await loadBase(path)
  return await train(spec, model, study, arms[spec.arm]!)
}

async function makeBase(spec: Extract<RunSpec, { kind: 'base' }>, study: StudyTask, path: string): Promise<BaseResult> {
  const { task, lessons } = problems[study.name]()
  const { loops, accuracy, checkEvery, firstCheck } = study.until
  const { base: seed } = spec
  const config = {
    vocab_size: task.tokenizer.vocabSize,
    hidden_size: study.hidden,
    intermediate_size: 2.75 * study.hidden,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    total_ut_steps: settings.loops,
    max_position_embeddings: 128,
    initializer_range: 1 / Math.sqrt(study.hidden),
  }
  using model = await LoopLM.create(config, { seed, threads: 1 })
  const training = { ...study.training, entropyCoefficient: initialEntropy, weightDecay: 0 }
  const check = { task, problems: settings.pointProblems, loops, accuracy, first: firstCheck, every: checkEvery }
  const trained = await trainBase(model, seed, { lessons, training, check })
  await model.save(path, { dtype: 'bfloat16' }) // half the bytes; every run starts from these values
  using saved = await loadBase(path)
  const { id, task: name } = spec
  const made = { id, kind: 'base', processor: processor(), task: name, base: seed, ...trained } as const
  return { ...made, final: await measure(saved, study, task) }
}

const loadBase = (path: string) => LoopLM.fromPretrained(path, { dtype: 'float32', threads: 1 })

function makeTrainer(model: LoopLM, base: LoopLM, arm: Arm, study: StudyTask, seed: number, learningRate: number) {
  const { task } = problems[study.name]()
  const steps = 2 ** 20 // a limit that is never reached, because the tokens end a run
  const shared = { ...settings.policy, ...arm.options, seed, learningRate, steps, task }
  if (arm.trainer === 'grpo') return new GRPOTrainer(model, shared as GRPOOptions)
  if (arm.trainer === 'rltt') return new RLTTTrainer(model, shared)
  const { groupSize } = settings.policy
  const objective =
    typeof arm.objective === 'function'
      ? arm.objective(study.halfSteps)
      : released(base, groupSize, seed, arm.objective === 'rltt-released' ? 'exit-pdf' : 'last')
  return new ObjectiveTrainer(model, { ...shared, objective })
}

/** Trains a base further, in place, until it has sampled the tokens of its task, and measures it. */
export async function train(
  spec: Extract<RunSpec, { kind: 'training' }>,
  model: LoopLM,
  study: StudyTask,
  arm: Arm,
  sizes: Sizes = settings,
): Promise<TrainingResult> {
  const { id, base: seed, learningRate } = spec
  const { task } = problems[study.name]()
  using base = await model.clone()
  using trainer = makeTrainer(model, base, arm, study, seed, learningRate)
  const compared: LoopGradients[] = []
  const compare = async () => {
    if (arm.gradients) compared.push(await loopGradients(model, task, seed))
  }
  const course: Point[] = [{ ...empty, ...(await answers(model, task, sizes.pointProblems)) }]
  await compare()
  const recent: TrainerEvent['metrics'][] = []
  let [tokens, seconds, start] = [0, 0, cpuSeconds()]
  for await (const { type, step, metrics } of trainer.run()) {
    if (type !== 'step') continue
    recent.push(metrics)
    tokens += metrics['completions/mean_length']! * settings.policy.promptsPerStep * settings.policy.groupSize
    if (tokens < (study.tokens * course.length) / sizes.points) continue
    seconds += cpuSeconds() - start
    const last = course.length >= sizes.points + 1 - settings.finalPoints
    const evaluated = await answers(model, task, last ? sizes.finalProblems : sizes.pointProblems)
    course.push({ step, tokens: Math.round(tokens), seconds: short(seconds), ...means(recent), ...evaluated })
    recent.length = 0
    if (course.length === Math.ceil(sizes.points / 2) + 1 || course.length > sizes.points) await compare()
    if (course.length > sizes.points) break
    start = cpuSeconds()
  }
  const final = await measure(model, study, task, sizes)
  const { lessons } = problems[study.name]()
  using gate = new PretrainTrainer(model, {
    ...{ stage: 2, task: lessons, seed, steps: sizes.gateSteps, batchSize: 64, learningRate: 1e-3, weightDecay: 0 },
  })
  for await (const _ of gate.run());
  const calibrated = await gateExits(model, task, sizes.gateProblems)
  const { task: name, arm: armName } = spec
  const run = { id, kind: 'training', processor: processor(), task: name, arm: armName, base: seed, learningRate } as const
  const result = { ...run, course, final, calibrated }
  return arm.gradients ? { ...result, gradients: compared } : result
}

const empty = { step: 0, tokens: 0, seconds: 0, reward: 0, length: 0, entropy: 0, gradNorm: 0, flat: 0, logprob: [] }

/** Means of the metrics of some steps. */
function means(recent: readonly TrainerEvent['metrics'][]) {
  const over = (name: string) => short(mean(recent.map((metrics) => metrics[name] ?? 0)))
  return {
    ...{ reward: over('reward'), length: over('completions/mean_length'), entropy: over('entropy') },
    ...{ gradNorm: over('grad_norm'), flat: over('frac_reward_zero_std') },
    logprob: loopCounts.map((loop) => over(`loop_${loop}/logprob`)),
  }
}

/** Greedy answers to held-out problems by loop count. */
async function answers(model: LoopLM, task: Task, count: number): Promise<Pick<Point, 'accuracy' | 'rightLength'>> {
  const perLoop = await Promise.all(loopCounts.map((loops) => answer(model, task, count, { loops, exit: { rule: 'fixed' } })))
  return { accuracy: perLoop.map(accuracyOf), rightLength: perLoop.map(rightLengthOf) }
}

/** An answer to a held-out problem: whether it is right, its number of tokens, and their loops. */
interface Answer {
  right: boolean
  tokens: number
  loops: readonly number[]
}

async function answer(model: LoopLM, task: Task, count: number, options: GenerateOptions): Promise<Answer[]> {
  const asked = Array.from({ length: count }, (_, i) => task.sample('test', i))
  const prompts = asked.map(({ prompt }) => task.tokenizer.encode(prompt))
  const shared = { maxNewTokens: task.maxCompletionLength, stop: task.stop, temperature: 0 }
  const results = await model.generate(prompts, { ...shared, ...options })
  return results.map(({ tokens, loops }, i) => {
    const ended = task.stop.includes(tokens.at(-1)!)
    const text = task.tokenizer.decode(ended ? tokens.slice(0, -1) : tokens)
    const finished = ended || task.stop.length === 0
    const right = finished && task.reward(asked[i]!.prompt, text, asked[i]!) === 1
    return { right, tokens: tokens.length, loops }
  })
}

const accuracyOf = (list: readonly Answer[]) => short(mean(list.map(({ right }) => Number(right))))

function rightLengthOf(list: readonly Answer[]): number | null {
  const lengths = list.filter(({ right }) => right).map(({ tokens }) => tokens)
  return lengths.length === 0 ? null : short(mean(lengths))
}

async function measure(model: LoopLM, study: StudyTask, task: Task, sizes: Sizes = settings): Promise<Measurement> {
  const perLoop = await Promise.all(
    loopCounts.map((loops) => answer(model, task, sizes.finalProblems, { loops, exit: { rule: 'fixed' } })),
  )
  const within = (list: readonly Answer[], budget: number) =>
    accuracyOf(list.map(({ right, ...rest }) => ({ ...rest, right: right && rest.tokens <= budget })))
  const [sampled] = await evaluate(model, {
    ...{ task, problems: sizes.passProblems, loops: loopCounts.slice(-1), samples: 8, temperature: 1 },
  })
  return {
    accuracy: perLoop.map(accuracyOf),
    rightLength: perLoop.map(rightLengthOf),
    budgets: study.budgets.map((tokens) => ({ tokens, accuracy: perLoop.map((list) => within(list, tokens)) })),
    gates: await gateExits(model, task, sizes.gateProblems),
    deeper: await deeperAnswers(model, task, sizes.finalProblems),
    passAt8: short(sampled!.passAt![8]!),
  }
}

/** Greedy answers with more loops than in training. */
async function deeperAnswers(model: LoopLM, task: Task, count: number): Promise<Measurement['deeper']> {
  const perLoop = settings.deeper.map((loops) => answer(model, task, count, { loops, exit: { rule: 'fixed' } }))
  return (await Promise.all(perLoop)).map((list, i) => ({ loops: settings.deeper[i]!, accuracy: accuracyOf(list) }))
}

/** Greedy answers whose tokens exit when the gate's cumulative exit probability reaches the threshold. */
async function gateExits(model: LoopLM, task: Task, count: number): Promise<Measurement['gates']> {
  const gates: Measurement['gates'] = []
  for (const threshold of settings.thresholds) {
    const list = await answer(model, task, count, { exit: { rule: 'gate', threshold } })
    const loops = short(mean(list.flatMap((each) => [...each.loops])))
    gates.push({ threshold, accuracy: accuracyOf(list), loops })
  }
  return gates
}

/** Compares the policy gradients that credit only one loop with that of the last loop, on the same samples. */
async function loopGradients(model: LoopLM, task: Task, seed: number): Promise<LoopGradients> {
  const { promptsPerStep, groupSize } = settings.policy
  const asked = Array.from({ length: promptsPerStep }, (_, i) => task.sample('train', 2 ** 30 + i, seed))
  const repeated = asked.flatMap((problem) => Array<typeof problem>(groupSize).fill(problem))
  const prompts = repeated.map(({ prompt }) => task.tokenizer.encode(prompt))
  const options = { maxNewTokens: task.maxCompletionLength, stop: task.stop, temperature: 1, seed }
  const results = await model.generate(prompts, options)
  const batch = {
    sequences: results.map(({ tokens }, i) => [...prompts[i]!, ...tokens]),
    promptLengths: prompts.map((prompt) => prompt.length),
    rewards: results.map(({ tokens }, i) => {
      const ended = task.stop.includes(tokens.at(-1)!)
      return task.reward(repeated[i]!.prompt, task.tokenizer.decode(ended ? tokens.slice(0, -1) : tokens), repeated[i]!)
    }),
  }
  const perLoop: Float64Array[] = []
  for (const loop of loopCounts) {
    using trainer = new RLTTTrainer(model, { ...settings.policy, weights: loopCounts.map((t) => Number(t === loop)) })
    const { gradients } = await trainer.gradients(batch)
    perLoop.push(Float64Array.from([...gradients.values()].flatMap((values) => Array.from(values))))
  }
  const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, value, i) => sum + value * b[i]!, 0)
  const last = perLoop.at(-1)!
  const norms = perLoop.map((gradient) => Math.sqrt(dot(gradient, gradient)))
  return {
    cosine: perLoop.map((gradient, t) => short(dot(gradient, last) / (norms[t]! * norms.at(-1)!))),
    norm: norms.map((norm) => short(norm / norms.at(-1)!)),
  }
}

if (process.argv[2]?.startsWith('{')) {
  const result = await carryOut(JSON.parse(process.argv[2]) as RunSpec, process.argv[3]!)
  process.stdout.write(`${JSON.stringify(result)}\n`)
}
