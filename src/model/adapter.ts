import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { LoopLMError } from '../errors.js'
import { checkNumber, checkWord, describe } from './checks.js'
import type { ParameterInfo } from './types.js'

/** The projections of a layer that an adapter can be given, by their names in a checkpoint. */
export const loraModules = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const
/** A projection that an adapter may add to. */
export type LoRAModule = (typeof loraModules)[number]

/** Options of {@link LoopLM.addAdapter}. */
export interface LoRAOptions {
  /** r, the inner dimension of the adapter; default 16. */
  rank?: number | undefined
  /** The adapter counts alpha / rank times; default 32. */
  alpha?: number | undefined
  /** Which projections of every layer; default all seven. */
  targetModules?: readonly LoRAModule[] | undefined
  /** Of A's random start; default 0. */
  seed?: number | undefined
}

/** A model's adapter: W x + (alpha / rank) · B A x in every target projection, the same in every loop (LoRA, arXiv 2106.09685). */
export interface Adapter {
  readonly rank: number
  readonly alpha: number
  readonly targetModules: readonly LoRAModule[]
  /** A, [rank, in], and B, [out, rank], of every target: `model.layers.0.self_attn.q_proj.lora_A.weight` and so on. */
  readonly parameters: readonly ParameterInfo[]
}

/** Checks the options of an adapter and fills in the defaults. */
export function checkAdapter(options: LoRAOptions, operation: string) {
  const { rank = 16, alpha = 32, targetModules = loraModules, seed = 0 } = options
  if (!Array.isArray(targetModules) || targetModules.length === 0) {
    throw new LoopLMError('INVALID_ARGUMENT', `targetModules must name projections, got ${describe(targetModules)}`, {
      operation,
    })
  }
  const given = targetModules.map((module, i) => checkWord(module, `targetModules[${i}]`, loraModules, operation))
  return {
    rank: checkNumber(rank, 'rank', { min: 1, integer: true }, operation),
    alpha: checkNumber(alpha, 'alpha', { above: 0 }, operation),
    modules: loraModules.filter((module) => given.includes(module)),
    seed: checkNumber(seed, 'seed', { min: 0, integer: true }, operation),
  }
}

/** adapter_config.json as PEFT reads it. */
export function adapterConfig({ rank, alpha, targetModules }: Adapter): Record<string, unknown> {
  return {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: null,
    r: rank,
    lora_alpha: alpha,
    lora_dropout: 0,
    target_modules: targetModules,
    bias: 'none',
    fan_in_fan_out: false,
    modules_to_save: null,
    init_lora_weights: true,
    use_rslora: false,
    use_dora: false,
    rank_pattern: {},
    alpha_pattern: {},
    inference_mode: true,
  }
}

/** What an adapter_config.json says of a plain LoRA; a kind that looplm does not run is refused by its field. */
export async function readAdapterConfig(folder: string, operation: string) {
  const path = join(folder, 'adapter_config.json')
  const fail = (problem: string, cause?: unknown) => new LoopLMError('INVALID_FILE', `${path}: ${problem}`, { operation, cause })
  const text = await readFile(path, 'utf8').catch((cause: { code?: string }) => {
    if (cause.code === 'ENOENT') throw new LoopLMError('NOT_FOUND', `no file ${path}`, { operation, cause })
    throw fail('cannot be read', cause)
  })
  let config: Record<string, unknown>
  try {
    config = JSON.parse(text)
  } catch (cause) {
    throw fail(`is not JSON: ${(cause as Error).message}`, cause)
  }
  if (typeof config !== 'object' || config === null || Array.isArray(config)) throw fail('must hold a JSON object')
  if (config.peft_type !== 'LORA') throw fail(`field "peft_type" must be "LORA", got ${describe(config.peft_type)}`)
  const empty = (value: unknown) =>
    value === undefined || value === null || value === false || (typeof value === 'object' && Object.keys(value).length === 0)
  const plain = ['use_rslora', 'use_dora', 'fan_in_fan_out', 'modules_to_save', 'rank_pattern', 'alpha_pattern'] as const
  const special = [...plain, 'layers_to_transform', 'layers_pattern', 'exclude_modules', 'trainable_token_indices'].find(
    (field) => !empty(config[field]),
  )
  if (special !== undefined) throw fail(`field "${special}" is ${describe(config[special])}: only plain LoRA is supported`)
  if ((config.bias ?? 'none') !== 'none') throw fail(`field "bias" must be "none", got ${describe(config.bias)}`)
  const named = config.target_modules === 'all-linear' ? loraModules : config.target_modules
  if (!Array.isArray(named)) throw fail(`field "target_modules" must list projections, got ${describe(named)}`)
  try {
    return checkAdapter({ rank: config.r as number, alpha: config.lora_alpha as number, targetModules: named }, operation)
  } catch (cause) {
    throw fail(`${(cause as Error).message} (fields "r", "lora_alpha", "target_modules")`, cause)
  }
}

/** Whether two adapters have the same shape. */
export function sameAdapter(a: Omit<Adapter, 'parameters'>, b: Omit<Adapter, 'parameters'>): boolean {
  return a.rank === b.rank && a.alpha === b.alpha && a.targetModules.join() === b.targetModules.join()
}
