import type { Command } from 'commander'
import { adaptableModules, adapterParameterCount } from '../model/adapter.js'
import { architectureOf, type LoopLMConfig, parseConfig } from '../model/config.js'
import { estimateMemory } from '../model/estimate.js'
import { formatDuration } from '../monitor/progress.js'
import { trainers } from '../rl/registry.js'
import { deviceMemory } from '../tensor/devices.js'
import { parseOptions } from '../validation/schema.js'
import { collect, type DeviceFlags, deviceFlags, positiveInteger } from './arguments.js'
import { fits, printRow, readConfig, trainingBytes, usualMicroBatch } from './estimate.js'
import { measureRates, stepSeconds } from './measure.js'
import { print, printJson } from './output.js'
import { readTrainConfig, type TrainConfig } from './train-config.js'

interface PlanFlags {
  set?: string[]
  promptTokens: number
  time?: boolean
  json?: boolean
}

/** The options that decide how much memory a run takes; each trainer has some of them. */
interface PlannedOptions {
  recompute: 'none' | 'loop' | 'layer'
  tokensPerMicroBatch: number
  lora?: { rank: number; targetModules?: string[] | undefined; perLoop: boolean; shiftRank: number } | undefined
  beta?: number
  promptsPerStep?: number
  groupSize?: number
  maxNewTokens?: number | undefined
}

/** Adds `looplm plan`. */
export function addPlan(program: Command): void {
  program
    .command('plan')
    .description('how much memory and time a training run will take, and whether it fits; trains nothing')
    .argument('<config>', 'YAML file as for looplm train')
    .option('--set <key=value>', 'change a field or an option of the file; may be repeated', collect)
    .option('--prompt-tokens <count>', 'tokens of a prompt in the rollouts', positiveInteger, 256)
    .option('--no-time', 'do not measure how fast this machine computes a slice of the model')
    .option('--json', 'write one JSON object to standard output and nothing else')
    .action(showPlan)
}

async function showPlan(path: string, { set = [], promptTokens, time, json }: PlanFlags): Promise<void> {
  const config = await readTrainConfig(path, set)
  const plan = await makePlan(config, promptTokens)
  const measured = time === false ? undefined : await measureStep(config, plan)
  if (json) {
    printJson({ ...plan, ...(measured && { time: measured }) })
    return
  }
  print(`${plan.parameters} parameters, ${plan.trained} trained, ${plan.dtype}`)
  printRow('weights', plan.weights, plan.copies > 1 ? 'with the frozen starting model of beta' : '')
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
  printRow('free here', plan.free)
  if (measured !== undefined) {
    const { sampling, update, steps } = measured
    const parts = `${formatDuration(sampling)} sampling, ${formatDuration(update)} update`
    print(
      `time          ${formatDuration(steps * (sampling + update)).padStart(10)}  ${steps} steps of ${parts}, from the rate of a slice`,
    )
  }
  if (plan.remedy !== undefined) print(plan.remedy)
}

/** Seconds of sampling and of the update of a step, as far as rollouts say how large it is. */
async function measureStep(config: TrainConfig, plan: Awaited<ReturnType<typeof makePlan>>) {
  const { rollouts, rolloutTokens, sampledTokens, free } = plan
  const dtype = plan.dtype as 'float32' | 'bfloat16'
  if (rollouts === undefined || plan.train > free) return undefined
  const model = await modelConfig(config.model)
  const size = { rollouts, tokens: rolloutTokens, sampled: sampledTokens }
  const rates = await measureRates(model, { ...deviceFlags(config as DeviceFlags), dtype }, size)
  const steps = Number(config.options.steps ?? 100)
  return rates && { ...stepSeconds(model, rates, size), steps, rates }
}

/** The memory of a run, in bytes. Rollouts that do not fit beside the rest wait for others: `waves` says how many rounds that takes. */
async function makePlan(config: TrainConfig, promptTokens: number) {
  const options = parseOptions('options', trainers[config.trainer].schema, config.options) as unknown as PlannedOptions
  const { recompute, tokensPerMicroBatch: given, lora, beta = 0, promptsPerStep, groupSize } = options
  const model = await modelConfig(config.model)
  const dtype = config.dtype === 'bfloat16' ? 'bfloat16' : 'float32'
  const architecture = architectureOf(model)
  const trained =
    lora && adapterParameterCount(architecture, { ...lora, modules: lora.targetModules ?? adaptableModules(architecture) })
  const estimate = estimateMemory(model, { dtype, recompute, trained })
  const tokensPerMicroBatch = given === 0 ? usualMicroBatch : given
  const activations = tokensPerMicroBatch * (estimate.activationsPerToken + estimate.headPerToken)
  const copies = beta > 0 && lora === undefined ? 2 : 1
  const weights = copies * estimate.weights
  const train = trainingBytes({ ...estimate, weights }, activations)
  const { free } = deviceMemory(config.device as 'cpu' | undefined)
  const rollouts = promptsPerStep === undefined || groupSize === undefined ? undefined : promptsPerStep * groupSize
  const sampledTokens = options.maxNewTokens ?? 256
  const rolloutTokens = promptTokens + sampledTokens
  const each = rolloutTokens * estimate.cachePerToken
  const room = Math.floor((free - train) / each)
  return {
    trainer: config.trainer,
    parameters: estimate.parameters,
    trained: trained ?? estimate.parameters,
    dtype,
    copies,
    weights,
    gradients: estimate.gradients,
    optimizer: estimate.optimizer,
    activations,
    tokensPerMicroBatch,
    recompute,
    train,
    rollouts,
    rolloutTokens,
    sampledTokens,
    cache: (rollouts ?? 0) * each,
    waves: rollouts === undefined || room < 1 ? undefined : Math.ceil(rollouts / room),
    free,
    remedy: train <= free ? undefined : remedyFor(options, dtype),
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

async function modelConfig(model: TrainConfig['model']): Promise<LoopLMConfig> {
  if (typeof model === 'string') return readConfig(model)
  return parseConfig({ vocab_size: 256, ...model }, 'model', false) // a tokenizer of the run may have more tokens
}
