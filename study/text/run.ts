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
import type { HardBytes, Measurement, Result } from './results.js'
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
  const { trainer: kind, options, hard } = arms[spec.arm]!
  const shared = { ...constantRate, learningRate: settings.learningRate, ...options, weightDecay: 0, seed: spec.base }
  const before = (await predict(model, text)).bytes
  const noise = kind === 'looprpt' ? short(await noiseShare(model, text, options.sigma ?? 0.1)) : undefined
  const batches = Array.from({ length: steps }, (_, step) => ({ sequences: batch(text, 1000 + spec.base, step + 1) }))
  let seconds = 0
  let start = cpuSeconds()
  const learned: Parameters<PretrainTrainer['update']>[0][] = []
  for (const each of batches) learned.push(hard ? await hardOnly(model, each) : each)
  seconds += cpuSeconds() - start
  using trainer = kind === 'looprpt' ? new LoopRPTTrainer(model, shared) : new PretrainTrainer(model, shared)
  for (const each of learned) {
    start = cpuSeconds()
    await trainer.update(each)
    seconds += cpuSeconds() - start
  }
  const after = (await predict(model, text)).bytes
  return {
    ...(await result(spec, model, text, steps, seconds)),
    hard: settings.hardAbove.map((above) => hardBytes(above, before, after)),
    ...(noise === undefined ? {} : { noise }),
  }
}

/** Masks a batch: of each sequence it keeps the share of bytes with the highest entropy at full depth. */
export async function hardOnly(model: LoopLM, { sequences }: { sequences: number[][] }) {
  const { entropy } = await model.score(sequences)
  const mask = sequences.map((sequence, i) => {
    const width = sequence.length - 1
    const last = Array.from(entropy[i]!.slice((T - 1) * width))
    const order = last.map((_, j) => j).sort((a, b) => last[b]! - last[a]! || a - b)
    const kept = new Set(order.slice(0, Math.ceil(settings.hardShare * width)))
    return last.map((_, j) => Number(kept.has(j)))
  })
  return { sequences, mask }
}

/** σ √D by the mean norm of the last loop's normed states. The last states of blocks stand for all. */
async function noiseShare(model: LoopLM, { heldOut }: Text, sigma: number): Promise<number> {
  const blocks = heldOut.slice(0, settings.blocks)
  const states = await model.embed(blocks, { promptLengths: blocks.map((block) => block.length - 1) })
  const norms = states.map((state) => Math.hypot(...state))
  return (sigma * Math.sqrt(settings.model.hidden_size)) / mean(norms)
}

function hardBytes(above: number, before: readonly Prediction[], after: readonly Prediction[]): HardBytes {
  const places = before.flatMap(({ entropy }, i) => (entropy.at(-1)! > above ? [i] : []))
  const accuracy = (bytes: readonly Prediction[]) =>
    loopCounts.map((_, t) => short(mean(places.map((i) => Number(bytes[i]!.right[t])))))
  return { above, share: short(places.length / before.length), base: accuracy(before), trained: accuracy(after) }
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

/** Predicts the bytes of held-out blocks, each after the right ones before it. `loss` is in nats, by loop count. */
async function predict(model: LoopLM, text: Text): Promise<{ bytes: Prediction[]; loss: number[] }> {
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
  const loss = loopCounts.map((_, t) => -mean(logprobs.map((row) => mean(Array.from(row.slice(t * width, (t + 1) * width))))))
  return { bytes, loss: loss.map(short) }
}

/** Measures a model on held-out blocks. */
export async function measure(model: LoopLM, text: Text): Promise<Measurement> {
  const { bytes, loss } = await predict(model, text)
  return {
    accuracy: loopCounts.map((_, t) => short(mean(bytes.map(({ right }) => Number(right[t]))))),
    loss,
    gate: curve(bytes, settings.thresholds.gate, gateExit),
    entropy: curve(bytes, settings.thresholds.entropy, entropyExit),
  }
}

if (process.argv[2]?.startsWith('{')) {
  const text = readText(fileURLToPath(new URL('../../../node_modules', import.meta.url)))
  const made = await carryOut(JSON.parse(process.argv[2]) as RunSpec, process.argv[3]!, text)
  process.stdout.write(`${JSON.stringify(made)}\n`)
}
