import { join } from 'node:path'
import { LoopLMError } from '../errors.js'
import { fileBytes } from '../files/read.js'
import type { Architecture, Role } from '../native/architecture.js'
import { checkFlag, checkNumber, checkOptions, checkWord, describe, type Keys } from '../validation/arguments.js'
import { readObject } from './checkpoint.js'
import { architectureOf, type LoopLMConfig } from './config.js'
import type { ParameterInfo } from './types.js'

/**
 * A projection of a layer that an adapter may add to, named by the last part of its name in the checkpoint. Ouro and Nanbeige
 * have the seven that are listed; other families have fused ones, such as `Wqkv` and `fc` (Huginn) or `gqkv_proj` (HRM-Text).
 */
export type LoRAModule =
  | 'q_proj'
  | 'k_proj'
  | 'v_proj'
  | 'o_proj'
  | 'gate_proj'
  | 'up_proj'
  | 'down_proj'
  | (string & Record<never, never>)

/** Options of {@link LoopLM.addAdapter}. */
export interface LoRAOptions {
  /** r, the inner dimension of A and B. Defaults to 16. */
  rank?: number | undefined
  /** The adapter is scaled by alpha / rank. Defaults to 32. */
  alpha?: number | undefined
  /** The projections that get an adapter, in every layer. Defaults to all. */
  targetModules?: readonly LoRAModule[] | undefined
  /**
   * Each loop gets its own adapter in the looped layers. The number of adapter parameters grows by the number of loops. Such an
   * adapter cannot run more loops than that and cannot be merged. Defaults to false: all loops share one adapter.
   */
  perLoop?: boolean | undefined
  /**
   * The MLP of every layer also sees the previous token (Shift-FFN, arXiv 2505.17153; docs/math.md). This adds three matrices
   * of this inner dimension per layer, which all loops share. Such an adapter cannot be merged. Defaults to 0: none.
   */
  shiftRank?: number | undefined
  /** Dropout is not supported. Only 0 is accepted, as in a trainer's `lora`. */
  dropout?: 0 | undefined
  /** Seed of the random initial values of A. Defaults to 0. */
  seed?: number | undefined
}

const loraOptions = {
  rank: true,
  alpha: true,
  targetModules: true,
  perLoop: true,
  shiftRank: true,
  dropout: true,
  seed: true,
} satisfies Keys<LoRAOptions>

/** A model's adapter: W x + (alpha / rank) · B A x in every target projection (LoRA, arXiv 2106.09685). */
export interface Adapter {
  /** Inner dimension of A and B. */
  readonly rank: number
  /** The adapter is scaled by alpha / rank. */
  readonly alpha: number
  /** The projections of every layer that have an adapter, by the last part of their names. */
  readonly targetModules: readonly LoRAModule[]
  /** Whether each loop has its own matrices. */
  readonly perLoop: boolean
  /** The inner dimension of Shift-FFN. 0 means none. */
  readonly shiftRank: number
  /**
   * A, [rank, in], and B, [out, rank], of every target. They are named `model.layers.0.self_attn.q_proj.lora_A.weight` and so
   * on, or with `perLoop` `model.layers.0.self_attn.q_proj.lora_A.loop_1.weight`.
   */
  readonly parameters: readonly ParameterInfo[]
}

/** The projections in an architecture's layers that can have an adapter, by the last part of their names. */
export function adaptableModules({ parameters }: Architecture): readonly LoRAModule[] {
  const roles: readonly Role[] = ['attention', 'attentionOutput', 'gateUp', 'down']
  const names = parameters.filter(({ role }) => roles.includes(role)).map(({ name }) => name.split('.').at(-2)!)
  return [...new Set(names)] as LoRAModule[]
}

/** Checks the options of an adapter and fills in defaults. `known` lists the model's projections. */
export function checkAdapter(options: LoRAOptions, operation: string, known: readonly LoRAModule[]) {
  checkOptions(options, loraOptions, operation)
  const { rank = 16, alpha = 32, targetModules = known, perLoop = false, shiftRank = 0, dropout = 0, seed = 0 } = options
  if (dropout !== 0) {
    throw new LoopLMError('INVALID_ARGUMENT', `dropout must be 0, because dropout is not supported; got ${describe(dropout)}`, {
      operation,
    })
  }
  if (!Array.isArray(targetModules) || targetModules.length === 0) {
    throw new LoopLMError('INVALID_ARGUMENT', `targetModules must name projections, got ${describe(targetModules)}`, {
      operation,
    })
  }
  const given = targetModules.map((module, i) => checkWord(module, `targetModules[${i}]`, known, operation))
  return {
    rank: checkNumber(rank, 'rank', { min: 1, integer: true }, operation),
    alpha: checkNumber(alpha, 'alpha', { above: 0 }, operation),
    modules: known.filter((module) => given.includes(module)),
    perLoop: checkFlag(perLoop, 'perLoop', operation),
    shiftRank: checkNumber(shiftRank, 'shiftRank', { min: 0, integer: true }, operation),
    seed: checkNumber(seed, 'seed', { min: 0, integer: true }, operation),
  }
}

/** The peft_type of adapters that PEFT cannot compute (one per loop, or Shift-FFN), so that PEFT rejects the folder. */
const ownType = 'LOOPLM_LORA'

/** The content of adapter_config.json, as PEFT reads it. */
export function adapterConfig({ rank, alpha, targetModules, perLoop, shiftRank }: Adapter): Record<string, unknown> {
  return {
    ...(perLoop || shiftRank > 0
      ? { peft_type: ownType, looplm_per_loop: perLoop, looplm_shift_rank: shiftRank }
      : { peft_type: 'LORA' }),
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

/** Fields of adapter_config.json that do not change the output of a loaded plain LoRA. Any value is accepted. */
const harmless = [
  // readAdapter checks these one by one
  ...['peft_type', 'task_type', 'r', 'lora_alpha', 'target_modules', 'init_lora_weights', 'bias'],
  ...['looplm_per_loop', 'looplm_shift_rank'],
  ...['base_model_name_or_path', 'revision', 'inference_mode', 'auto_mapping', 'peft_version', 'runtime_config'],
  'lora_dropout', // only used in training
  // only used by certain init_lora_weights, which are checked
  ...['loftq_config', 'eva_config', 'corda_config', 'lora_ga_config'],
  ...['megatron_core', 'qalora_group_size'], // only used with megatron_config or use_qalora, which are refused
  'ensure_weight_tying', // only affects embeddings and heads, which are never targets
]

/**
 * Values of init_lora_weights that do not change the base model. Others, such as "pissa", subtract the adapter's initial value
 * from the base weights.
 */
const harmlessStarts: readonly unknown[] = [undefined, null, true, false, 'gaussian', 'orthogonal', 'eva', 'mica']

/** Whether a field has a value that means "not used". */
function isNeutral(field: string, value: unknown): boolean {
  if (value === undefined || value === null || value === false) return true
  if (field === 'alora_invocation_tokens') return false // an empty list turns it on
  return typeof value === 'object' && Object.keys(value).length === 0
}

/** Reads the adapter_config.json of a plain LoRA. Rejects any field that would make it something else, and names the field. */
export async function readAdapter(folder: string, model: LoopLMConfig, operation: string) {
  const path = join(folder, 'adapter_config.json')
  const fail = (problem: string, cause?: unknown) => new LoopLMError('INVALID_FILE', `${path}: ${problem}`, { operation, cause })
  const config = await readObject(path, operation)
  const own = config.peft_type === ownType
  if (config.peft_type !== 'LORA' && !own)
    throw fail(`field "peft_type" must be "LORA" or "${ownType}", got ${describe(config.peft_type)}`)
  const [perLoop, shiftRank] = own ? [config.looplm_per_loop, config.looplm_shift_rank] : [false, 0]
  if (config.task_type != null && config.task_type !== 'CAUSAL_LM')
    throw fail(`field "task_type" must be "CAUSAL_LM" or null, got ${describe(config.task_type)}`)
  if ((config.bias ?? 'none') !== 'none') throw fail(`field "bias" must be "none", got ${describe(config.bias)}`)
  const special = Object.keys(config).find((field) => !harmless.includes(field) && !isNeutral(field, config[field]))
  if (special !== undefined) {
    const remedy = 'Merge the adapter into its base model with PEFT (merge_and_unload), and load that model'
    throw fail(`field "${special}" is ${describe(config[special])}, but only plain LoRA is supported. ${remedy}`)
  }
  const start = config.init_lora_weights
  if (!harmlessStarts.includes(typeof start === 'string' ? start.toLowerCase() : start)) {
    const allowed = harmlessStarts.filter((value) => value != null).map((value) => JSON.stringify(value))
    throw fail(
      `field "init_lora_weights" is ${describe(start)}, which changes the base model before training; allowed are ${allowed.join(', ')}. ` +
        'Convert the adapter with PEFT (save_pretrained with path_initial_model_for_weight_conversion). ' +
        'If you load the changed base model, set the field to true',
    )
  }
  const known = adaptableModules(architectureOf(model))
  const named = config.target_modules === 'all-linear' ? known : config.target_modules
  if (!Array.isArray(named)) throw fail(`field "target_modules" must list projections, got ${describe(named)}`)
  const weights = join(folder, 'adapter_model.safetensors')
  try {
    const adapter = checkAdapter(
      {
        rank: config.r as number,
        alpha: config.lora_alpha as number,
        targetModules: named,
        perLoop: perLoop as boolean,
        shiftRank: shiftRank as number,
      },
      operation,
      known,
    )
    await checkSize(weights, adapter, model, operation)
    return { ...adapter, weights }
  } catch (cause) {
    if ((cause as { code?: string }).code !== 'INVALID_ARGUMENT') throw cause
    throw fail(`${(cause as Error).message} (fields "r", "lora_alpha", "target_modules")`, cause)
  }
}

/**
 * Bounds the allocation by the file's size, so that a small file cannot make us allocate a large adapter: a parameter takes at
 * least two bytes in the file.
 */
async function checkSize(
  path: string,
  form: ReturnType<typeof checkAdapter>,
  model: LoopLMConfig,
  operation: string,
): Promise<void> {
  const needed = 2 * adapterParameterCount(architectureOf(model), form)
  const bytes = await fileBytes(path, operation)
  if (bytes >= needed) return
  const message = `${path}: ${bytes} bytes cannot hold the ${needed / 2} parameters that adapter_config.json describes for this model`
  throw new LoopLMError('INVALID_FILE', message, { operation })
}

/** The number of parameters of an adapter. */
export function adapterParameterCount(
  { parameters, layers, hidden, loop, loops }: Architecture,
  { rank, modules, perLoop, shiftRank }: { rank: number; modules: readonly LoRAModule[]; perLoop: boolean; shiftRank: number },
): number {
  const looped = (index = 0) => loop.some((step) => step.kind === 'block' && step.index === index)
  const widths = parameters
    .filter(({ name }) => modules.some((module) => name.endsWith(`.${module}.weight`)))
    .map(({ shape, index }) => (perLoop && looped(index) ? loops : 1) * shape.reduce((sum, width) => sum + width, 0))
  return rank * widths.reduce((sum, width) => sum + width, 0) + 4 * layers * hidden * shiftRank
}

/** Whether two adapters have the same shape. */
export function sameAdapter(a: Omit<Adapter, 'parameters'>, b: Omit<Adapter, 'parameters'>): boolean {
  const same = a.rank === b.rank && a.alpha === b.alpha && a.perLoop === b.perLoop && a.shiftRank === b.shiftRank
  return same && a.targetModules.join() === b.targetModules.join()
}

/** Rejects the adapter in `folder` if the model already has one of another shape. */
export function requireSameAdapter(own: Adapter, wanted: Omit<Adapter, 'parameters'>, folder: string, operation: string): void {
  if (sameAdapter(own, wanted)) return
  const message = `the model already has an adapter whose rank, alpha, perLoop, shiftRank or modules differ from those of ${folder}: remove it first`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}
