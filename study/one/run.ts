// One run in a separate process with one engine thread: node dist/study/run.js '<spec as JSON>' FOLDER-OF-BASES prints the result.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import {
  addition,
  evaluate,
  GRPOTrainer,
  LoopLM,
  LoopRPTTrainer,
  memory,
  ObjectiveTrainer,
  PretrainTrainer,
  RLTTTrainer,
  resetPeakMemory,
  type TrainerEvent,
} from '../../src/index.js'
import { cpuSeconds, short, trainBase } from '../runs.js'
import { mean } from '../statistics.js'
import { type Method, methods, type RunSpec, settings } from './plan.js'
import type { BaseResult, Measurement, Result, Tercile, TimingResult, TrainingResult } from './results.js'

const { digits } = settings.task
const task = addition({ digits })
const mixed = addition({ digits, minDigits: 1 })
const loopCounts = Array.from({ length: settings.model.total_ut_steps }, (_, i) => i + 1)

/**
 * Makes one run.
 * @param bases the folder with the checkpoints of the bases
 */
export async function carryOut(spec: RunSpec, bases: string): Promise<Result> {
  const path = (base: number) => join(bases, String(base))
  if (spec.kind === 'base') return makeBase(spec.id, spec.base, path(spec.base))
  // its metrics are stored, but its weights no longer exist
  if (!existsSync(path(spec.base))) await makeBase('', spec.base, path(spec.base))
  using model = await LoopLM.fromPretrained(path(spec.base), { threads: 1 })
  if (spec.kind === 'timing') return await measureTime(spec, model)
  return await train(spec, model, methods[spec.method]!) // awaited before `using` disposes the model
}

async function makeBase(id: string, seed: number, path: string): Promise<BaseResult> {
  const { training, accuracy, firstCheck, checkEvery, problems } = settings.base
  using model = await LoopLM.create(settings.model, { seed, threads: 1 })
  const check = { task, problems, loops: loopCounts.length, accuracy, first: firstCheck, every: checkEvery }
  const made = await trainBase(model, seed, { lessons: mixed, training, check })
  await model.save(path)
  return { id, kind: 'base', ...made, final: await measure(model, model) }
}

function makeTrainer(model: LoopLM, method: Method, seed: number, learningRate: number, steps: number) {
  const { trainer, options } = method
  const shared = { ...options, seed, learningRate, steps }
  if (trainer === 'grpo') return new GRPOTrainer(model, { ...shared, task })
  if (trainer === 'rltt') return new RLTTTrainer(model, { ...shared, task })
  if (trainer === 'objective') return new ObjectiveTrainer(model, { ...shared, task, objective: method.recipe! })
  if (trainer === 'looprpt') return new LoopRPTTrainer(model, { ...shared, task: mixed })
  return new PretrainTrainer(model, { ...shared, task: mixed })
}

/** How many problems the measurements use. */
export type Sizes = Record<'checkpointProblems' | 'finalProblems' | 'gateProblems' | 'tokenProblems', number>

/** Trains a base further, in place, and measures it. */
export async function train(
  spec: Extract<RunSpec, { kind: 'training' }>,
  model: LoopLM,
  method: Method,
  sizes: Sizes = settings,
): Promise<TrainingResult> {
  using base = await model.clone()
  using trainer = makeTrainer(model, method, spec.base, spec.learningRate, method.steps)
  const curve: TrainingResult['curve'] = { step: [], seconds: [], reward: [], length: [], exitLoop: [] }
  const checkpoints: TrainingResult['checkpoints'] = [
    { step: 0, seconds: 0, accuracy: await accuracies(model, sizes.checkpointProblems) },
  ]
  const recent: TrainerEvent['metrics'][] = []
  let seconds = 0
  let start = cpuSeconds()
  for await (const { type, step, metrics } of trainer.run()) {
    if (type !== 'step') continue
    seconds += cpuSeconds() - start
    recent.push(metrics)
    if (atPoint(step, method.steps, settings.curvePoints)) {
      const over = (name: string) => short(mean(recent.map((entry) => entry[name] ?? Number.NaN)))
      curve.step.push(step)
      curve.seconds.push(short(seconds))
      curve.reward.push(over('reward'))
      curve.length.push(over('completions/mean_length'))
      curve.exitLoop.push(over('exit_loop/mean'))
      recent.length = 0
    }
    if (atPoint(step, method.steps, settings.checkpoints))
      checkpoints.push({ step, seconds: short(seconds), accuracy: await accuracies(model, sizes.checkpointProblems) })
    start = cpuSeconds()
  }
  const { id, base: seed, learningRate } = spec
  const final = await measure(model, base, sizes)
  return { id, kind: 'training', method: spec.method, base: seed, learningRate, curve, checkpoints, final }
}

/** Whether `step` of `steps` ends one of `points` equal parts. */
function atPoint(step: number, steps: number, points: number): boolean {
  return Math.floor((step * points) / steps) > Math.floor(((step - 1) * points) / steps)
}

async function accuracies(model: LoopLM, problems: number): Promise<number[]> {
  return (await evaluate(model, { task, problems })).map(({ reward }) => short(reward))
}

async function measure(model: LoopLM, base: LoopLM, sizes: Sizes = settings): Promise<Measurement> {
  const evaluations = await evaluate(model, { task, problems: sizes.finalProblems })
  return {
    accuracy: evaluations.map(({ reward }) => short(reward)),
    length: evaluations.map(({ completionLength }) => short(completionLength)),
    gates: await gateExits(model, sizes.gateProblems),
    tokens: await tokenAccuracy(model, base, sizes.tokenProblems),
  }
}

/** Greedy answers whose tokens exit when the gate's cumulative exit probability reaches the threshold. */
async function gateExits(model: LoopLM, count: number): Promise<Measurement['gates']> {
  const problems = range(count).map((i) => task.sample('test', i))
  const prompts = problems.map(({ prompt }) => task.tokenizer.encode(prompt))
  const gates: Measurement['gates'] = []
  for (const threshold of settings.thresholds) {
    const options = { maxNewTokens: task.maxCompletionLength, temperature: 0, exit: { rule: 'gate', threshold } } as const
    const results = await model.generate(prompts, options)
    const right = results.filter(({ tokens }, i) => task.tokenizer.decode(tokens) === problems[i]!.answer)
    const loops = mean(results.flatMap((result) => result.loops))
    gates.push({ threshold, accuracy: short(right.length / problems.length), loops: short(loops) })
  }
  return gates
}

/**
 * Next-token accuracy: whether the most probable token is the right one, for every token of held-out answers, given the right
 * tokens before it.
 */
async function tokenAccuracy(model: LoopLM, base: LoopLM, count: number): Promise<Measurement['tokens']> {
  const sequences: number[][] = []
  const promptLengths: number[] = []
  for (const i of range(count)) {
    const { prompt, answer } = task.sample('test', i)
    const tokens = task.tokenizer.encode(prompt)
    promptLengths.push(tokens.length)
    sequences.push([...tokens, ...task.tokenizer.encode(answer)])
  }
  const { entropy } = await base.score(sequences, { promptLengths, lastLoop: true })
  const places = sequences.flatMap((tokens, i) =>
    range(tokens.length - promptLengths[i]!).map((j) => {
      const position = promptLengths[i]! + j
      return { prefix: tokens.slice(0, position), token: tokens[position]!, entropy: entropy[i]![position - 1]! }
    }),
  )
  places.sort((a, b) => a.entropy - b.entropy)
  const prompts = places.map(({ prefix }) => prefix)
  const tokens: Record<Tercile, number[]> = { easy: [], medium: [], hard: [] }
  for (const loops of loopCounts) {
    const results = await model.generate(prompts, { maxNewTokens: 1, temperature: 0, loops, exit: { rule: 'fixed' } })
    const right = results.map((result, i) => Number(result.tokens[0] === places[i]!.token))
    for (const [k, tercile] of (['easy', 'medium', 'hard'] as const).entries()) {
      const part = right.slice(Math.round((k * right.length) / 3), Math.round(((k + 1) * right.length) / 3))
      tokens[tercile].push(short(mean(part)))
    }
  }
  return tokens
}

async function measureTime(spec: Extract<RunSpec, { kind: 'timing' }>, model: LoopLM): Promise<TimingResult> {
  const method = methods[spec.method]!
  const { warmup } = settings.timing
  const timed = method.trainer === 'looprpt' ? settings.timing.labelSteps : settings.timing.steps
  using trainer = makeTrainer(model, method, spec.base, spec.learningRate, warmup + timed)
  const cpu: number[] = []
  const wall: number[] = []
  const weights = memory().bytes
  let before = { cpu: cpuSeconds(), wall: performance.now() }
  for await (const { type, step } of trainer.run()) {
    if (type !== 'step') continue
    const now = { cpu: cpuSeconds(), wall: performance.now() }
    if (step > warmup) {
      cpu.push(now.cpu - before.cpu)
      wall.push((now.wall - before.wall) / 1000)
    } else if (step === warmup) {
      resetPeakMemory()
    }
    before = { cpu: cpuSeconds(), wall: performance.now() }
  }
  return {
    id: spec.id,
    kind: 'timing',
    method: spec.method,
    cpuSeconds: short(median(cpu)),
    wallSeconds: short(median(wall)),
    engineBytes: memory().peak - weights,
    residentBytes: process.resourceUsage().maxRSS * 1024,
  }
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i)
}

if (process.argv[2]?.startsWith('{')) {
  const result = await carryOut(JSON.parse(process.argv[2]) as RunSpec, process.argv[3]!)
  process.stdout.write(`${JSON.stringify(result)}\n`)
}
