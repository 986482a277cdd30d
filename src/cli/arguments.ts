import { type Command, InvalidArgumentError, Option } from 'commander'
import { parseYaml, yamlValue } from '../data/yaml.js'
import { errorMessage, LoopLMError } from '../errors.js'
import { cacheTypes } from '../model/cache-type.js'
import { LoopLM } from '../model/model.js'
import type { GenerateOptions, LoadOptions } from '../model/types.js'
import { createTask, type TaskConfig } from '../tasks/index.js'
import type { Task } from '../tasks/task.js'

const maxProblems = 2 ** 24
const maxPort = 65535

/** Parses a natural number. */
export function natural(text: string): number {
  if (/^\d+$/.test(text) && Number.isSafeInteger(Number(text))) return Number(text)
  throw new InvalidArgumentError('must be a natural number.')
}

/** Parses an integer of at least 1. */
export function positiveInteger(text: string): number {
  const value = natural(text)
  if (value >= 1) return value
  throw new InvalidArgumentError('must be at least 1.')
}

/** Parses a number of problems. */
export function problemCount(text: string): number {
  const value = positiveInteger(text)
  if (value <= maxProblems) return value
  throw new InvalidArgumentError(`must be at most ${maxProblems}.`)
}

/** Parses a port. 0 chooses a free one. */
export function portNumber(text: string): number {
  const value = natural(text)
  if (value <= maxPort) return value
  throw new InvalidArgumentError(`must be at most ${maxPort}.`)
}

/** Parses a number of at least 0. */
export function nonNegative(text: string): number {
  const value = Number(text)
  if (text.trim() !== '' && Number.isFinite(value) && value >= 0) return value
  throw new InvalidArgumentError('must be a number of at least 0.')
}

/** Parses a finite number. */
export function finite(text: string): number {
  const value = Number(text)
  if (text.trim() !== '' && Number.isFinite(value)) return value
  throw new InvalidArgumentError('must be a number.')
}

/** Parses loop counts such as `1,2,4`. */
export function loopCounts(text: string): number[] {
  return text.split(',').map((part) => positiveInteger(part.trim()))
}

/** Collects the values of an option that may be repeated. */
export function collect(value: string, previous: readonly string[] = []): string[] {
  return [...previous, value]
}

/** Parses a task: its name, or YAML such as `{ name: addition, digits: 3 }`. */
export function task(text: string): Task {
  let config: unknown
  try {
    config = yamlValue(parseYaml(text, '--task'), '--task')
  } catch (cause) {
    const why = errorMessage(cause)
    throw new InvalidArgumentError(`must be a task name or YAML such as "{ name: addition, digits: 3 }" (${why}).`)
  }
  return createTask((typeof config === 'string' ? { name: config } : config) as TaskConfig)
}

/** The flags of {@link deviceOptions}. */
export type DeviceFlags = Pick<LoadOptions, 'device' | 'dtype' | 'threads'>

/** Adds --device, --dtype and --threads. */
export function deviceOptions(command: Command): Command {
  return command
    .option('--device <name>', 'cpu, cuda, cuda:1, auto or reference')
    .option('--dtype <name>', "float32 or bfloat16 (float64 on reference); default: the checkpoint's")
    .option('--threads <count>', 'threads of the device', positiveInteger)
}

/** The device flags that were given. */
export function deviceFlags(flags: DeviceFlags): LoadOptions {
  const given = Object.entries({ device: flags.device, dtype: flags.dtype, threads: flags.threads })
  return Object.fromEntries(given.filter(([, value]) => value !== undefined))
}

/** The flags of {@link modelOptions}. */
export interface ModelFlags extends DeviceFlags, Pick<LoadOptions, 'quantize' | 'groupSize' | 'activations'> {
  adapter?: string
}

/** Adds --adapter, --quantize, --group-size, --activations and the options of the device. */
export function modelOptions(command: Command): Command {
  return deviceOptions(
    command
      .option(
        '--adapter <folder>',
        'LoRA adapter to merge into the model (adapter_config.json, adapter_model.safetensors); not perLoop or shiftRank',
      )
      .addOption(new Option('--quantize <type>', 'keep the matrices in 8 or 4 bits').choices(['int8', 'int4', 'int4-asymmetric']))
      .option('--group-size <count>', 'weights that share a scale, a multiple of 32 (default: 64)', positiveInteger)
      .addOption(
        new Option('--activations <type>', 'activations in products of a quantized model: 8 bits, or as they are').choices([
          'float',
          'int8',
        ]),
      ),
  )
}

/** --cache-type. */
export const cacheTypeOption = () =>
  new Option(
    '--cache-type <type>',
    'how the cache keeps keys and values: model is the dtype of the model, the others take less memory (default: model)',
  ).choices(cacheTypes)

/** The flags of {@link cacheOptions}. */
export type CacheFlags = Pick<GenerateOptions, 'kv' | 'cacheType'> & { speculate?: 'wavefront' | 'off' }

/** Adds --kv, --cache-type and --speculate. */
export function cacheOptions(command: Command): Command {
  return command
    .addOption(
      new Option(
        '--kv <policy>',
        'cache the keys and values of every loop, or one plane that all loops share (default: per-loop)',
      ).choices(['per-loop', 'shared']),
    )
    .addOption(cacheTypeOption())
    .addOption(
      new Option(
        '--speculate <way>',
        'wavefront computes several tokens of a sequence at once; the text is the same (default: off)',
      ).choices(['wavefront', 'off']),
    )
}

/** Loads a checkpoint, and merges the requested adapter into it. */
export async function openModel(folder: string, flags: ModelFlags): Promise<LoopLM> {
  const { adapter, quantize, groupSize, activations } = flags
  if (adapter !== undefined && quantize !== undefined) {
    const message = '--adapter cannot be merged into quantized weights: save the merged model first, then quantize it'
    throw new LoopLMError('INVALID_ARGUMENT', message)
  }
  const model = await LoopLM.fromPretrained(folder, {
    ...deviceFlags(flags),
    quantize,
    groupSize,
    activations,
    dequantize: adapter !== undefined,
  })
  if (adapter === undefined) return model
  try {
    await model.loadAdapter(adapter)
    return await model.mergeAdapter()
  } finally {
    model.dispose()
  }
}
