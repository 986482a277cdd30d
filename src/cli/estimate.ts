import { type Command, Option } from 'commander'
import { maxFileBytes, readJson } from '../files/read.js'
import { architectureOf, type LoopLMConfig, parseConfig } from '../model/config.js'
import { type EstimateOptions, estimateMemory, type MemoryEstimate, microBatchTokens } from '../model/estimate.js'
import { deviceMemory } from '../tensor/devices.js'
import { cacheTypeOption, positiveInteger } from './arguments.js'
import { measureRates, tokensPerSecond } from './measure.js'
import { readModelFiles } from './model-files.js'
import { print, printJson } from './output.js'

interface EstimateFlags extends Pick<EstimateOptions, 'dtype' | 'loops' | 'recompute' | 'cacheType'> {
  context: number
  sequences: number
  tokensPerMicroBatch?: number
  time?: boolean
  json?: boolean
}

/** Adds `looplm estimate`. */
export function addEstimate(program: Command): void {
  program
    .command('estimate')
    .description(
      'estimate how much memory a model needs to generate and to train (weights as if unquantized); does not read its weights',
    )
    .argument('<model>', 'checkpoint folder, GGUF file, name of a downloaded model, or a config.json')
    .addOption(
      new Option('--dtype <name>', 'dtype of weights, activations and cache')
        .choices(['float32', 'bfloat16'])
        .default('bfloat16'),
    )
    .option('--loops <count>', "loops per token (default: the model's)", positiveInteger)
    .option('--context <tokens>', 'tokens per sequence in the KV cache', positiveInteger, 4096)
    .option('--sequences <count>', 'sequences in the KV cache', positiveInteger, 1)
    .addOption(cacheTypeOption())
    .option(
      '--tokens-per-micro-batch <count>',
      'tokens per forward and backward pass in training (default: what trainers choose on cpu)',
      positiveInteger,
    )
    .addOption(
      new Option('--recompute <what>', 'activations that training computes again instead of keeping them')
        .choices(['none', 'loop', 'layer'])
        .default('none'),
    )
    .option('--time', "measure matrix products of the model's sizes on this machine, and estimate tokens per second")
    .option('--json', 'write one JSON object to standard output and nothing else')
    .action(showEstimate)
}

async function showEstimate(model: string, flags: EstimateFlags): Promise<void> {
  const { dtype, loops, recompute, cacheType, context, sequences, time, json } = flags
  const config = await readConfig(model)
  const tokensPerMicroBatch = flags.tokensPerMicroBatch ?? microBatchTokens(config, { dtype, loops, recompute })
  const estimate = estimateMemory(config, { dtype, loops, recompute, cacheType })
  const cache = context * sequences * estimate.cachePerToken
  const activations = tokensPerMicroBatch * (estimate.activationsPerToken + estimate.headPerToken)
  const generate = estimate.weights + cache
  const train = trainingBytes(estimate, activations)
  const { free } = deviceMemory()
  const speed = time ? await measureSpeed(config, flags) : undefined
  if (json) {
    printJson({ model, ...estimate, cache, activations, generate, train, free, ...(speed && { tokensPerSecond: speed }) })
    return
  }
  print(`${estimate.parameters} parameters, ${dtype}`)
  printRow('weights', estimate.weights)
  printRow('cache', cache, `${sequences} × ${context} tokens, ${bytesText(estimate.cachePerToken)} each`)
  printRow('to generate', generate, fits(generate, free))
  printRow('gradients', estimate.gradients)
  printRow('optimizer', estimate.optimizer)
  printRow('activations', activations, `at most, for ${tokensPerMicroBatch} tokens at a time, recompute ${recompute}`)
  printRow('to train', train, fits(train, free))
  printRow('free here', free)
  if (speed === undefined) return
  const whole = (rate: number) => Number(rate.toPrecision(2)).toLocaleString('en')
  print(
    `tokens/s      ${whole(speed.generate).padStart(10)}  to generate ${sequences} at a time, ${whole(speed.train)} to train (rough: half or twice that is possible)`,
  )
}

async function measureSpeed(config: LoopLMConfig, flags: EstimateFlags) {
  const { dtype = 'bfloat16', context, sequences, loops, recompute = 'none' } = flags
  const rates = await measureRates(architectureOf(config), { dtype }, { rows: sequences, tokens: context })
  return tokensPerSecond(config, rates, { context, loops, recompute: recompute !== 'none' })
}

/** Bytes that a trainer holds while it computes gradients. */
export function trainingBytes({ weights, gradients, optimizer }: MemoryEstimate, activations: number): number {
  return weights + gradients + optimizer + activations
}

/** The configuration of a model, or of a config.json. Weights are not read. */
export async function readConfig(model: string, operation = 'looplm estimate'): Promise<LoopLMConfig> {
  if (!model.endsWith('.json')) return (await readModelFiles(model, operation)).config
  return parseConfig(await readJson(model, maxFileBytes.config, operation), model, true)
}

/** Prints a row of the table. */
export function printRow(name: string, bytes: number, note = ''): void {
  print(`${name.padEnd(14)}${bytesText(bytes).padStart(10)}${note === '' ? '' : `  ${note}`}`)
}

/** Whether this much memory is free, in words. */
export function fits(bytes: number, free: number): string {
  return bytes <= free ? 'fits in the free memory' : 'does not fit in the free memory'
}

/** A number of bytes for people. */
export function bytesText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  const unit = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(Math.max(bytes, 1)) / 10)))
  return `${(bytes / 2 ** (10 * unit)).toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`
}
