// One run in a process: node dist/study/text/run.js '<spec as JSON>' FOLDER-OF-BASES prints the result.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Random } from '../../src/data/random.js'
import { LoopLM, LoopRPTTrainer, PretrainTrainer } from '../../src/index.js'
import type { GatePoint } from '../gates.js'
import { processor } from '../processor.js'
import { cpuSeconds, short } from '../runs.js'
import { mean } from '../statistics.js'
import { arms, type RunSpec, runId, settings } from './plan.js'
import type { Measurement, Result } from './results.js'
import { readText, type Text } from './text.js'

const T = settings.model.total_ut_steps
const loopCounts = Array.from({ length: T }, (_, i) => i + 1)

/** Carries out one run. @param bases the folder with the checkpoints of the bases */
export async function carryOut(spec: RunSpec, bases: string, text: Text): Promise<Result> {
  const path = join(bases, 'text', String(spec.base))
  if (spec.kind === 'base') return makeBase(spec, path, text)
  if (!existsSync(path)) await makeBase({ ...spec, id: runId('base', spec.base), kind: 'base' }, path, text) // its weights are gone
  using model = await LoopLM.fromPretrained(path, { threads: 1 })
  return await train(spec, model, text)
}

const constantRate = { schedule: 'constant', warmupSteps: settings.warmupSteps } as const

/** A batch of training blocks. */
function batch({ training }: Text, seed: number, step: number): number[][] {
  const random = new Random(seed, step, 0x7e)
  return Array.from({ length: settings.batchSize }, () => training[random.integer(training.length)]!)
}

async function makeBase(spec: RunSpec, path: string, text: Text): Promise<Result> {
  const { checkEvery, fewest, most, fall, learningRate, entropyCoefficient } = settings.base
  using model = await LoopLM.create(settings.model, { seed: spec.base, threads: 1 })
  using trainer = new PretrainTrainer(model, { ...constantRate, learningRate, entropyCoefficient, weightDecay: 0 })
  const losses: number[] = []
  let seconds = 0
  for (let step = 1; ; step++) {
    const start = cpuSeconds()
    await trainer.update({ sequences: batch(text, spec.base, step) })
    seconds += cpuSeconds() - start
    if (step % checkEvery !== 0) continue
    losses.push((await measure(model, text)).loss.at(-1)!)
    const fell = 1 - losses.at(-1)! / losses[Math.max(0, Math.floor(0.75 * losses.length) - 1)]!
    if ((step >= fewest && fell < fall) || step >= most) {
      await model.save(path)
      return { ...(await result(spec, model, text, step, seconds)), fell: short(fell) }
    }
  }
}

/** Trains a base further, in place, and measures it. */
export async function train(spec: RunSpec, model: LoopLM, text: Text, steps = arms[spec.arm]!.steps): Promise<Result> {
  const { trainer: kind, options } = arms[spec.arm]!
  const shared = { ...constantRate, learningRate: settings.learningRate, ...options, weightDecay: 0, seed: spec.base }
  using trainer = kind === 'looprpt' ? new LoopRPTTrainer(model, shared) : new PretrainTrainer(model, shared)
  let seconds = 0
  for (let step = 1; step <= steps; step++) {
    const start = cpuSeconds()
    await trainer.update({ sequences: batch(text, 1000 + spec.base, step) })
    seconds += cpuSeconds() - start
  }
  return result(spec, model, text, steps, seconds)
}

async function result(
  { id, kind, arm, base }: RunSpec,
  model: LoopLM,
  text: Text,
  steps: number,
  seconds: number,
): Promise<Result> {
  const about = { id, kind, processor: processor(), arm, base, text: text.fingerprint, steps, seconds: short(seconds) }
  return { ...about, final: await measure(model, text) }
}

/** What a byte looks like at every loop. */
interface Prediction {
  right: boolean[]
  exitPdf: number[]
  entropy: number[]
}

/** Where a byte leaves, counted from 0. */
const gateExit = (threshold: number) => (byte: Prediction) => {
  let cdf = 0
  const exit = byte.exitPdf.findIndex((p) => {
    cdf += p
    return cdf >= threshold
  })
  return exit < 0 ? T - 1 : exit
}
const entropyExit = (threshold: number) => (byte: Prediction) => {
  const exit = byte.entropy.findIndex((entropy) => entropy <= threshold)
  return exit < 0 ? T - 1 : exit
}

function curve(
  bytes: readonly Prediction[],
  thresholds: readonly number[],
  exit: (t: number) => (byte: Prediction) => number,
): GatePoint[] {
  return thresholds.map((threshold) => {
    const exits = bytes.map(exit(threshold))
    const accuracy = short(mean(bytes.map((byte, i) => Number(byte.right[exits[i]!]))))
    return { accuracy, loops: short(mean(exits.map((t) => t + 1))) }
  })
}

/** Predicts the bytes of held-out blocks, each after the right ones before it. */
export async function measure(model: LoopLM, text: Text): Promise<Measurement> {
  const blocks = text.heldOut.slice(0, settings.blocks)
  const { predicted, logprobs, exitPdf, entropy } = await model.score(blocks, { predictions: true })
  const bytes = blocks.flatMap((block, i) =>
    block.slice(1).map((target, j): Prediction => {
      const [width, length] = [block.length - 1, block.length]
      return {
        right: loopCounts.map((_, t) => predicted![i]![t * width + j] === target),
        exitPdf: loopCounts.map((_, t) => exitPdf[i]![t * length + j]!),
        entropy: loopCounts.map((_, t) => entropy[i]![t * width + j]!),
      }
    }),
  )
  const width = blocks[0]!.length - 1
  return {
    accuracy: loopCounts.map((_, t) => short(mean(bytes.map(({ right }) => Number(right[t]))))),
    loss: loopCounts.map((_, t) => short(-mean(logprobs.map((row) => mean(Array.from(row.slice(t * width, (t + 1) * width))))))),
    gate: curve(bytes, settings.thresholds.gate, gateExit),
    entropy: curve(bytes, settings.thresholds.entropy, entropyExit),
  }
}

if (process.argv[2]?.startsWith('{')) {
  const text = readText(fileURLToPath(new URL('../../../node_modules', import.meta.url)))
  const made = await carryOut(JSON.parse(process.argv[2]) as RunSpec, process.argv[3]!, text)
  process.stdout.write(`${JSON.stringify(made)}\n`)
}
