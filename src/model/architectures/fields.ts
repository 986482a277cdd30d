// What the configurations of several families share.
import { z } from 'zod'
import { LoopLMError } from '../../errors.js'
import { checkJson } from '../../validation/json-value.js'
import { checkSchema } from '../../validation/schema.js'
import type { ConfigSource, LoopLMConfig } from './family.js'

export const size = (max: number) => z.int().min(1).max(max)
const tokenId = z.int().min(0)

/** The largest number of loops that any operation accepts. Published models use 4, Huginn 32. */
export const maxLoops = 64

/** Sizes under the names that Llama and its relatives use. */
export const sizes = {
  vocab_size: size(2 ** 24),
  hidden_size: size(2 ** 16),
  intermediate_size: size(2 ** 18),
  num_hidden_layers: size(1024),
  num_attention_heads: size(1024),
  num_key_value_heads: size(1024).nullish(),
  head_dim: size(1024).nullish(),
  rms_norm_eps: z.number().positive().max(1).default(1e-6),
  rope_theta: z.number().min(1).max(1e12).nullish(),
  tie_word_embeddings: z.boolean().default(false),
  max_position_embeddings: size(2 ** 26).default(32768),
  initializer_range: z.number().min(0).max(100).default(0.02),
}
export const tokens = {
  bos_token_id: tokenId.nullish(),
  eos_token_id: z.union([tokenId, z.array(tokenId).max(1024)]).nullish(),
  pad_token_id: z.int().nullish(),
}

/** A field that must be absent or have a value that means "not used". */
export const unused = (what: string) =>
  z
    .custom<unknown>(
      (value) => value == null || value === false || value === 0 || (Array.isArray(value) && value.length === 0),
      `is set, but ${what} is not supported; load a checkpoint without it`,
    )
    .optional()

export const silu = z.literal('silu', { error: 'must be "silu"; other activations are not supported' }).nullish()

/** What Nanbeige, HRM-Text and others share with Llama. */
export const llamaFields = { ...sizes, ...tokens, hidden_act: silu, attention_dropout: unused('dropout') }

/** The checked fields, unknown ones included. @throws LoopLMError INVALID_CONFIG with one line per field */
export function parseFields<T>(schema: z.ZodType<T>, value: unknown, { name }: ConfigSource): T {
  const fields = checkSchema(name, schema, value)
  checkJson(value, '', name)
  return fields
}

export function refuse(field: string, problem: string, { name }: ConfigSource): LoopLMError {
  return new LoopLMError('INVALID_CONFIG', `${field}: ${problem}`, { operation: name })
}

/** The base of the rotary embedding (RoPE theta). */
export function rotaryBase(
  config: { rope_theta?: number | null | undefined; rope_parameters?: unknown },
  source: ConfigSource,
): number | undefined {
  const nested = (config.rope_parameters as { rope_theta?: number } | null | undefined)?.rope_theta
  const theta = config.rope_theta ?? nested
  if (theta !== (nested ?? theta)) throw refuse('rope_theta', `is ${theta}, but rope_parameters.rope_theta is ${nested}`, source)
  return theta
}

/** Checks that head_dim and the number of key/value heads fit the other sizes, and fills them in. */
function headSizes(
  config: {
    hidden_size: number
    num_attention_heads: number
    num_key_value_heads?: number | null | undefined
    head_dim?: number | null | undefined
  },
  source: ConfigSource,
) {
  const heads = config.num_attention_heads
  const head_dim = config.head_dim ?? config.hidden_size / heads
  const num_key_value_heads = config.num_key_value_heads ?? heads
  if (!Number.isInteger(head_dim) || head_dim % 2 !== 0)
    throw refuse('head_dim', `must be an even number, got ${head_dim}`, source)
  if (heads % num_key_value_heads !== 0)
    throw refuse('num_key_value_heads', `${num_key_value_heads} does not divide num_attention_heads ${heads}`, source)
  return { head_dim, num_key_value_heads }
}

/** The end and begin tokens, checked to be within the vocabulary. null for those that the configuration omits. */
function specialTokens(
  config: {
    vocab_size: number
    bos_token_id?: number | null | undefined
    eos_token_id?: number | number[] | null | undefined
  },
  source: ConfigSource,
): Pick<LoopLMConfig, 'bos_token_id' | 'eos_token_id'> {
  const outside = [config.eos_token_id ?? [], config.bos_token_id ?? []].flat().find((id) => id >= config.vocab_size)
  if (outside !== undefined)
    throw refuse('eos_token_id, bos_token_id', `${outside} is outside the vocabulary of ${config.vocab_size}`, source)
  return { bos_token_id: config.bos_token_id ?? null, eos_token_id: config.eos_token_id ?? null }
}

/** The configuration with head sizes and special tokens filled in. */
export function completed<Config extends Parameters<typeof headSizes>[0] & Parameters<typeof specialTokens>[0]>(
  config: Config,
  source: ConfigSource,
) {
  return { ...config, ...headSizes(config, source), ...specialTokens(config, source) }
}
