import { z } from 'zod'
import { LoopLMError } from '../errors.js'
import { type Architecture, exitGateNames, parameterCount, withExitGate } from '../native/architecture.js'
import type { Quantization } from '../native.js'
import { checkFlag, describe } from '../validation/arguments.js'
import { checkJson } from '../validation/json-value.js'
import { didYouMean } from '../validation/names.js'
import { checkSchema } from '../validation/schema.js'
import { familyOf } from './architectures/families.js'
import type { LoopLMConfig, LoopLMConfigInput } from './architectures/family.js'
import { maxLoops, silu, size, sizes, tokens } from './architectures/fields.js'
import { ouro } from './architectures/ouro.js'

export type { LoopLMConfig, LoopLMConfigInput }
export { exitGateNames, maxLoops }

/**
 * Tensors are addressed by 64-bit offsets. A configuration with more parameters than this (256 GiB in float32) is a typing
 * error or an attack.
 */
const maxParameters = 2 ** 36

const fields = {
  ...sizes,
  total_ut_steps: size(maxLoops).default(4),
  early_exit_threshold: z.number().positive().default(1),
  bos_token_id: tokens.bos_token_id,
  eos_token_id: tokens.eos_token_id,
}

const unscaled = z.literal('default', { error: 'must be "default"; scaled rotary embeddings are not supported' }).nullish()
const wholeHead = z.literal(1, { error: 'must be 1; embeddings that rotate a part of a head are not supported' }).nullish()

/** Fields of config.json for things that looplm does not compute. Only the value that changes nothing is accepted. */
const accepted = {
  model_type: z.literal('ouro', { error: 'must be "ouro", "nanbeige", "huginn_raven" or "hrm_text"' }).optional(),
  architectures: z
    .array(z.string().regex(/ouro/i, { error: 'must name an Ouro model; other models are not supported' }))
    .nullish(),
  hidden_act: silu,
  rope_scaling: z.strictObject({ rope_type: unscaled, type: unscaled }).nullish(),
  rope_interleaved: z.literal(false, { error: 'must be false; pairs are the two halves of a head' }).nullish(),
  partial_rotary_factor: wholeHead,
  attn_logit_softcapping: z.null({ error: 'must be null; capped logits are not supported' }).optional(),
  final_logit_softcapping: z.null({ error: 'must be null; capped logits are not supported' }).optional(),
  use_sliding_window: z.literal(false, { error: 'must be false; sliding-window attention is not supported' }).nullish(),
  attention_dropout: z.literal(0, { error: 'must be 0; dropout is not supported' }).nullish(),
  attention_bias: z.literal(false, { error: 'must be false; projections have no bias' }).nullish(),
  mlp_bias: z.literal(false, { error: 'must be false; projections have no bias' }).nullish(),
  layer_types: z
    .array(z.literal('full_attention', { error: 'must be "full_attention"; no other attention is supported' }))
    .max(1024)
    .nullish(),
  rope_parameters: z
    .strictObject({
      rope_theta: z.number().min(1).max(1e12).optional(),
      rope_type: unscaled,
      type: unscaled,
      partial_rotary_factor: wholeHead,
    })
    .nullish(),
}

const schema = z.looseObject({ ...fields, ...accepted })

const quantizationSchema = z.object({
  quantization_config: z
    .strictObject({
      quant_method: z.literal('looplm', { error: 'must be "looplm"; what other tools quantized is not supported' }),
      bits: z.union([z.literal(4), z.literal(8)], { error: 'must be 4 or 8' }),
      group_size: z
        .int()
        .min(32)
        .max(2 ** 16),
      asymmetric: z.boolean().optional(),
      modules_to_not_convert: z
        .tuple([z.literal('lm_head')], { error: 'must be ["lm_head"]; looplm quantizes all other matrices' })
        .optional(),
    })
    .refine(({ bits, asymmetric }) => !asymmetric || bits === 4, { path: ['asymmetric'], error: 'must be false with 8 bits' }),
})

/**
 * Reads the quantization of a config.json whose folder was saved quantized.
 *
 * @returns undefined if the weights are not quantized
 * @throws LoopLMError INVALID_CONFIG naming the source and the field
 */
export function parseQuantization(
  value: Record<string, unknown>,
  config: LoopLMConfig,
  source: string,
): Quantization | undefined {
  if (value.quantization_config == null) return undefined
  const read = checkSchema(source, quantizationSchema, value).quantization_config
  const { bits, group_size: groupSize, asymmetric, modules_to_not_convert: plain } = read
  const widths = [config.hidden_size, config.num_attention_heads * config.head_dim, config.intermediate_size]
  if (groupSize % 32 !== 0 || widths.some((width) => width % groupSize !== 0)) {
    const message = `quantization_config.group_size: must be a multiple of 32 that divides the widths ${widths.join(', ')}, got ${groupSize}`
    throw new LoopLMError('INVALID_CONFIG', message, { operation: source })
  }
  return { bits, groupSize, ...(asymmetric ? { asymmetric } : {}), ...(plain === undefined ? {} : { head: false }) }
}

/**
 * Checks a configuration and fills in defaults.
 *
 * @param value the parsed config.json, or the argument of `LoopLM.create`
 * @param source the name in error messages: the path of the file or the calling function
 * @param fromFile a file must state its rope_theta (the Hugging Face class default is wrong for the checkpoints); for `create`
 *   it defaults to 1e6
 * @param tensors the names of the checkpoint's tensors, if it comes from a file
 * @throws LoopLMError INVALID_CONFIG with one line per field
 */
export function parseConfig(value: unknown, source: string, fromFile: boolean, tensors: readonly string[] = []): LoopLMConfig {
  const config = familyOf(value)?.parse(value, { name: source, fromFile, tensors }) ?? parseOuro(value, source, fromFile)
  const gate = config[exitGateField]
  const ouroWithout = gate === false && familyOf(value) === undefined
  if (gate !== undefined && gate !== true && !ouroWithout) {
    const message = `${exitGateField}: must be true or absent, of Ouro also false, got ${describe(gate)}`
    throw new LoopLMError('INVALID_CONFIG', message, { operation: source })
  }
  const count = parameterCount(architectureOf(config))
  if (count > maxParameters) {
    const message = `vocab_size … num_hidden_layers: ${count} parameters are more than looplm handles (${maxParameters})`
    throw new LoopLMError('INVALID_CONFIG', message, { operation: source })
  }
  return config
}

function parseOuro(value: unknown, source: string, fromFile: boolean): LoopLMConfig {
  const { rope_parameters, quantization_config, ...config } = checkSchema(source, schema, value)
  checkJson(value, '', source) // unknown fields are kept and saved again
  const refuse = (field: string, problem: string) =>
    new LoopLMError('INVALID_CONFIG', `${field}: ${problem}`, { operation: source })
  if (quantization_config != null && !fromFile)
    throw refuse('quantization_config', 'describes saved files; pass the option quantize instead')

  const heads = config.num_attention_heads
  if (config.head_dim == null && config.hidden_size % heads !== 0) {
    throw refuse('head_dim', `is absent and hidden_size ${config.hidden_size} is not a multiple of num_attention_heads ${heads}`)
  }
  const headDim = config.head_dim ?? config.hidden_size / heads
  if (headDim % 2 !== 0) throw refuse('head_dim', `must be even for rotary embeddings, got ${headDim}`)
  const kvHeads = config.num_key_value_heads ?? heads
  if (heads % kvHeads !== 0) {
    throw refuse('num_key_value_heads', `${kvHeads} does not divide num_attention_heads ${heads}`)
  }
  const theta = config.rope_theta ?? rope_parameters?.rope_theta
  if (theta !== (rope_parameters?.rope_theta ?? theta)) {
    throw refuse('rope_theta', `is ${theta}, but rope_parameters.rope_theta is ${rope_parameters?.rope_theta}; give one of them`)
  }
  if (theta === undefined && fromFile) {
    throw refuse(
      'rope_theta',
      'is missing; give rope_theta or rope_parameters.rope_theta (1000000 for the published Ouro models)',
    )
  }
  const endTokens = [config.eos_token_id ?? []].flat()
  const outside = [...endTokens, config.bos_token_id ?? 0].find((id) => id >= config.vocab_size)
  if (outside !== undefined)
    throw refuse('eos_token_id, bos_token_id', `${outside} is outside the vocabulary of ${config.vocab_size}`)

  return {
    ...config,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    rope_theta: theta ?? 1e6,
    bos_token_id: config.bos_token_id ?? null,
    eos_token_id: config.eos_token_id ?? null,
  }
}

/**
 * Rejects a field of `LoopLM.create` that looks like a misspelt known field, which would otherwise silently get its default.
 * Other unknown fields are kept, because a config.json has many. Two different letters count as a misspelling only in long
 * names, because `cls_token_id` and `eos_token_id` differ by two.
 *
 * @throws LoopLMError INVALID_CONFIG naming the field and the known one
 */
export function checkFieldNames(config: unknown, operation: string): void {
  if (typeof config !== 'object' || config === null || Array.isArray(config)) {
    const message = `config must be an object with vocab_size, hidden_size and the other sizes, got ${describe(config)}`
    throw new LoopLMError('INVALID_CONFIG', message, { operation })
  }
  if (familyOf(config) !== undefined) return // other families have many fields that we do not list
  const known = Object.keys(schema.shape)
  for (const field of Object.keys(config)) {
    if (known.includes(field)) continue
    const remedy = didYouMean(field, known, '', { farthest: field.length < 13 ? 1 : 2 })
    if (remedy !== '') throw new LoopLMError('INVALID_CONFIG', `${field}: unknown field; ${remedy}`, { operation })
  }
}

/** The end tokens that a configuration names. */
export function endTokens(config: LoopLMConfig): number[] {
  return [config.eos_token_id ?? []].flat()
}

/** The fields that decide what a model computes from its parameters. */
export const computing = [
  ...(['vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads'] as const),
  ...(['num_key_value_heads', 'head_dim', 'total_ut_steps', 'rms_norm_eps', 'rope_theta', 'tie_word_embeddings'] as const),
]

/** The first difference between what two models compute, as words for an error. undefined if they compute the same. */
export function configDifference(own: LoopLMConfig, other: LoopLMConfig): string | undefined {
  const field = ['model_type', ...computing].find((name) => (own[name] ?? 'ouro') !== (other[name] ?? 'ouro'))
  if (field !== undefined) return `${field} is ${other[field]}, but the model's is ${own[field]}`
  const computed = ({ parameters, publishedBackward, ...rest }: Architecture) =>
    JSON.stringify([rest, parameters.map(({ initial, deviation, deviations, ...parameter }) => parameter)])
  const same = computed(architectureOf(own)) === computed(architectureOf(other))
  return same ? undefined : `the configuration describes another computation of family ${architectureOf(other).family}`
}

/** What the engine computes for a configuration. */
export function architectureOf(config: LoopLMConfig): Architecture {
  const architecture = familyOf(config)?.describe(config) ?? ouro(config)
  return config[exitGateField] === true ? withExitGate(architecture) : architecture
}

/**
 * The field of config.json that is true if an exit gate was added to a family without one, and false for an Ouro model without
 * a gate.
 */
const exitGateField = 'looplm_exit_gate'

/**
 * The configuration with an exit gate added, if `wished` and if the family has none.
 *
 * @returns the configuration, and the names of the gate's tensors that the model's files do not have yet
 */
export function withExitGateIf(
  wished: boolean | undefined,
  config: LoopLMConfig,
  operation: string,
): { config: LoopLMConfig; added: readonly string[] } {
  if (!checkFlag(wished ?? false, 'exitGate', operation) || architectureOf(config).exitGate) return { config, added: [] }
  return { config: { ...config, [exitGateField]: true }, added: exitGateNames }
}
