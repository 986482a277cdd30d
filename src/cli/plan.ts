import type { Command } from 'commander'
import { adaptableModules, adapterParameterCount } from '../model/adapter.js'
import { checkDType } from '../model/checks.js'
import { architectureOf, type LoopLMConfig, parseConfig } from '../model/config.js'
import { estimateMemory, microBatchTokens } from '../model/estimate.js'
import { formatDuration } from '../monitor/progress.js'
import { type PlannedStep, plannedStep } from '../rl/planned-step.js'
import { trainers } from '../rl/registry.js'
import { deviceMemory } from '../tensor/devices.js'
import type { DeviceName } from '../tensor/types.js'
import { parseOptions } from '../validation/schema.js'
import { collect, type DeviceFlags, deviceFlags, positiveInteger } from './arguments.js'
import { fits, printRow, readConfig, trainingBytes } from './estimate.js'
import { measureRates, type Rates, stepSeconds } from './measure.js'
import { readModelFiles, storedDType } from './model-files.js'
import { print, printJson } from './output.js'
import { newModel, openTask, openTokenizer } from './train.js'
import { readTrainConfig, type TrainConfig } from './train-config.js'

const operation = 'looplm plan'

interface PlanFlags {
  set?: string[]
  promptTokens: number
  answerTokens: number
  time?: boolean
  json?: boolean
}

/** The options that determine the memory of a run. Each trainer has some of them. */
interface PlannedOptions {
  recompute: 'none' | 'loop' | 'layer'
  tokensPerMicroBatch: number
  steps: number
  epochs?: number | undefined
  stage?: 1 | 2
  lora?: { rank: number; targetModules?: string[] | undefined; perLoop: boolean; shiftRank: number } | undefined
  rollouts?: number
  loops?: number | undefined
  readLoops?: number[] | undefined
}

/** Adds `looplm plan`. */
export function addPlan(program: Command): void {
  program
    .command('plan')
    .description('estimate the memory and time of a training run, and whether it fits, without training')
    .argument('<config>', 'YAML file, as for looplm train')
    .option('--set <key=value>', 'change a field or an option of the file; may be repeated', collect)
    .option('--prompt-tokens <count>', 'tokens per prompt', positiveInteger, 256)
    .option('--answer-tokens <count>', 'tokens per answer, unless the run sets maxNewTokens', positiveInteger, 256)
    .option('--no-time', "do not measure matrix products of the model's sizes on this machine")
    .option('--json', 'write one JSON object to standard output and nothing else')
    .action(showPlan)
}

async function showPlan(path: string, { set = [], promptTokens, answerTokens, time, json }: PlanFlags): Promise<void> {
  const given = await readTrainConfig(path, set)
  const { config: model, dtype } = await modelOf(given)
  const config = { ...given, dtype: checkDType(given.dtype, given.device as DeviceName, dtype, operation) }
  const { step, ...plan } = makePlan(config, model, { promptTokens, newTokens: answerTokens })
  const measured = time === false || plan.train > plan.free ? undefined : await measureStep(config, model, step)
  if (json) {
    printJson({ ...plan, ...(measured && { time: measured }) })
    return
  }
  print(`${plan.parameters} parameters, ${plan.trained} trained, ${plan.dtype}`)
  printRow('weights', plan.weights, copyNote(config, plan))
  printRow('gradients', plan.gradients)
  printRow('optimizer', plan.optimizer)
  printRow(
    'activations',
    plan.activations,
    `at most, for ${plan.tokensPerMicroBatch} tokens at a time, recompute ${plan.recompute}`,
  )
  if (plan.rollouts !== undefined) {
    const waves = plan.waves === undefined ? 'not even one fits' : plan.waves === 1 ? 'all at once' : `in ${plan.waves} waves`
    printRow('rollouts', plan.cache, `${plan.rollouts} × ${plan.rolloutTokens} tokens of keys and values, ${waves}`)
  }
  printRow('to train', plan.train, fits(plan.train, plan.free))
  if (plan.waves !== undefined) printRow('peak', plan.peak, 'with the rollouts of a wave')
  printRow('free here', plan.free)
  if (measured !== undefined) {
    const { sampling, update, steps } = measured
    const parts = `${formatDuration(sampling)} sampling, ${formatDuration(update)} update`
    const time = formatDuration((steps ?? 1) * (sampling + update)).padStart(10)
    const of = steps === undefined ? 'one step (epochs set their number):' : `${steps} steps of`
    print(`time          ${time}  ${of} ${parts} (rough: half or twice that is possible)`)
  }
  if (plan.remedy !== undefined) print(plan.remedy)
}

function copyNote({ trainer }: TrainConfig, { copies, average }: { copies: number; average: number }): string {
  const other = trainer === 'looprpt' ? 'with the teacher' : 'with the reference model of the objective'
  const kept = average > 0 ? ['its moving average in float32'] : []
  return copies > 1 ? [`of ${copies} models: ${other}`, ...kept].join(', ') : kept.join()
}

/** Seconds of sampling and of the rest of a step. */
async function measureStep(config: TrainConfig, model: LoopLMConfig, step: PlannedStep) {
  const options = planned(config)
  const architecture = architectureOf(model)
  const place = deviceFlags(config as DeviceFlags)
  const rows = step.rollouts?.completions ?? Math.ceil(step.passes[0]!.tokens / step.rowTokens)
  const rates: Rates = await measureRates(architecture, place, { rows, tokens: step.rowTokens })
  const how = { adapter: options.lora !== undefined, recompute: options.recompute !== 'none' }
  const steps = options.epochs === undefined ? options.steps : undefined // the rows are not counted
  return { ...stepSeconds(architecture, rates, step, how), steps, rates }
}

function planned(config: TrainConfig): PlannedOptions {
  return parseOptions('options', trainers[config.trainer].schema, config.options) as unknown as PlannedOptions
}

/**
 * The memory of a run in bytes, and what its step computes. Rollouts that do not fit in memory wait for others: `waves` is the
 * number of rounds.
 */
export function makePlan(
  config: TrainConfig,
  model: LoopLMConfig,
  lengths: { promptTokens: number; newTokens: number },
  free: number = deviceMemory(config.device as 'cpu' | undefined).free,
) {
  const options = planned(config)
  const { recompute, tokensPerMicroBatch: given, lora, loops, readLoops } = options
  const { dtype = 'float32' } = config
  const architecture = architectureOf(model)
  const trained =
    lora && adapterParameterCount(architecture, { ...lora, modules: lora.targetModules ?? adaptableModules(architecture) })
  const run = { dtype, recompute, trained, loops: readLoops?.at(-1) ?? loops } as const
  const usual = given === 0 ? microBatchTokens(model, run, config.device as 'cpu' | undefined) : given
  const corpus = config.corpus === undefined ? {} : { corpus: config.corpus }
  const step = plannedStep(config.trainer, { ...options, ...corpus, tokensPerMicroBatch: usual }, architecture, lengths)
  const estimate = estimateMemory(model, { ...run, replayExits: step.replayExits })
  const largest = Math.max(...step.passes.filter(({ backward }) => backward > 0).map(({ tokens }) => tokens), step.rowTokens)
  const tokensPerMicroBatch = Math.min(usual, Math.ceil(largest)) // a small step is one micro-batch
  const activations = tokensPerMicroBatch * (estimate.activationsPerToken + estimate.headPerToken)
  const copies = 1 + step.copies
  const average = step.averaged && dtype === 'bfloat16' ? 4 * (trained ?? estimate.parameters) : 0
  const weights = copies * estimate.weights + average
  const train = trainingBytes({ ...estimate, weights }, activations)
  return {
    step,
    trainer: config.trainer,
    parameters: estimate.parameters,
    trained: options.stage === 2 ? architecture.hidden + 1 : (trained ?? estimate.parameters), // stage 2: the gate's weight and bias
    dtype,
    copies,
    average,
    weights,
    gradients: estimate.gradients,
    optimizer: estimate.optimizer,
    activations,
    tokensPerMicroBatch,
    recompute,
    train,
    ...planRollouts(step, estimate.cachePerToken, { free, train }),
    free,
    remedy: train <= free ? undefined : remedyFor(options, dtype),
  }
}

const usable = 0.9 // fraction of the free memory; the engine leaves the rest to the passes

function planRollouts({ rollouts }: PlannedStep, cachePerToken: number, { free, train }: { free: number; train: number }) {
  if (rollouts === undefined) return { cache: 0, peak: train }
  const { prompts, completions, promptTokens, newTokens } = rollouts
  const each = (promptTokens * prompts) / completions + newTokens // a group shares its prompt
  const room = Math.floor((usable * (free - train)) / (each * cachePerToken))
  const cache = completions * each * cachePerToken
  const waves = room < 1 ? undefined : Math.ceil(completions / room)
  return {
    rollouts: completions,
    rolloutTokens: promptTokens + newTokens,
    sampledTokens: newTokens,
    cache,
    waves,
    peak: train + cache / (waves ?? completions),
  }
}

function remedyFor({ recompute, lora }: PlannedOptions, dtype: string): string {
  const ideas = [
    dtype === 'float32' && 'dtype: bfloat16',
    lora === undefined && 'lora',
    recompute !== 'layer' && "recompute: 'layer'",
    'a lower tokensPerMicroBatch',
  ]
  return `What helps: ${ideas.filter((idea) => idea !== false).join(', ')}`
}

/** The configuration of the model that `looplm train` would open, and the dtype in which it is loaded by default. */
async function modelOf(run: TrainConfig): Promise<{ config: LoopLMConfig; dtype: 'float32' | 'bfloat16' }> {
  const { model } = run
  if (typeof model === 'string') {
    if (model.endsWith('.json')) return { config: await readConfig(model, operation), dtype: 'float32' }
    const read = await readModelFiles(model, operation)
    return { config: read.config, dtype: await storedDType(read, operation) }
  }
  const form = newModel(model, (await openTokenizer(run)) ?? (run.task === undefined ? undefined : openTask(run.task).tokenizer))
  return { config: parseConfig(form, 'model', false), dtype: 'float32' }
}
