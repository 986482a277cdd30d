import { z } from 'zod'
import { type Architecture, blocks, llamaSizes, norms, type ParameterForm, type Role, range } from '../../native/architecture.js'
import type { ConfigSource, Family, LoopLMConfig } from './family.js'
import { completed, llamaFields, maxLoops, parseFields, refuse, rotaryBase, size, unused } from './fields.js'

/** The fields of Nanbeige's config.json that determine its computation, with every default filled in. */
export interface NanbeigeConfig {
  vocab_size: number
  hidden_size: number
  intermediate_size: number
  num_hidden_layers: number
  num_attention_heads: number
  num_key_value_heads: number
  head_dim: number
  rms_norm_eps: number
  rope_theta: number
  tie_word_embeddings: boolean
  attention_bias: boolean
  mlp_bias: boolean
  qk_layernorm: boolean
  num_loops: number
  loop_loss_weights: readonly number[]
  skip_loop_final_norm: boolean
  initializer_range: number
}

/**
 * Nanbeige4.2: a Llama stack that runs several times. model.norm is applied after every loop. The next loop starts from its
 * output or, with skip_loop_final_norm, from the state before it.
 */
export function nanbeige(config: NanbeigeConfig): Architecture {
  const { hidden_size: hidden, intermediate_size: intermediate, vocab_size: vocabulary, num_hidden_layers: layers } = config
  const q = config.num_attention_heads * config.head_dim
  const kv = config.num_key_value_heads * config.head_dim
  const matrix = { initial: 'normal', deviation: config.initializer_range } as const
  const layer = (index: number): ParameterForm[] => {
    const prefix = `model.layers.${index}.`
    /** Projections whose rows are concatenated in the matrix of a role. */
    const part = (role: Role, biasRole: Role, biased: boolean, columns: number, parts: [name: string, rows: number][]) => {
      const first = (i: number) => parts.slice(0, i).reduce((sum, [, rows]) => sum + rows, 0)
      const forms = (suffix: string, form: (rows: number, i: number) => Omit<ParameterForm, 'name'>) =>
        parts.map(([name, rows], i) => ({ name: `${prefix}${name}.${suffix}`, ...form(rows, i) }))
      return [
        ...forms('weight', (rows, i) => ({ shape: [rows, columns], role, index, firstRow: first(i), ...matrix })),
        ...(biased
          ? forms('bias', (rows, i) => ({ shape: [rows], role: biasRole, index, firstRow: first(i), initial: 'zeros' as const }))
          : []),
      ]
    }
    const attention: [string, number][] = [
      ['self_attn.q_proj', q],
      ['self_attn.k_proj', kv],
      ['self_attn.v_proj', kv],
    ]
    const gateUp: [string, number][] = [
      ['mlp.gate_proj', intermediate],
      ['mlp.up_proj', intermediate],
    ]
    const headNorm = (role: Role, name: string) =>
      ({ name: `${prefix}self_attn.${name}.weight`, shape: [config.head_dim], role, index, initial: 'ones' }) as const
    return [
      ...part('attention', 'attentionBias', config.attention_bias, hidden, attention),
      ...part('attentionOutput', 'attentionOutputBias', config.attention_bias, q, [['self_attn.o_proj', hidden]]),
      ...part('gateUp', 'gateUpBias', config.mlp_bias, hidden, gateUp),
      ...part('down', 'downBias', config.mlp_bias, intermediate, [['mlp.down_proj', hidden]]),
      ...norms(hidden, index, {
        attentionNorm: `${prefix}input_layernorm.weight`,
        mlpNorm: `${prefix}post_attention_layernorm.weight`,
      }),
      ...(config.qk_layernorm ? [headNorm('queryNorm', 'q_layernorm'), headNorm('keyNorm', 'k_layernorm')] : []),
    ]
  }
  const head: ParameterForm = { name: 'lm_head.weight', shape: [vocabulary, hidden], role: 'head', ...matrix }
  const norm = { kind: 'norm', to: 0, index: 0 } as const
  return {
    ...llamaSizes(config),
    family: 'nanbeige',
    layers,
    loops: config.loop_loss_weights.length > 0 ? config.loop_loss_weights.length + 1 : config.num_loops,
    residual: 'pre',
    queryKeyNorm: config.qk_layernorm ? 'head' : 'none',
    exitGate: false,
    fixedLoops: true,
    registers: 1,
    begin: [{ kind: 'embed', to: 0 }],
    loop: config.skip_loop_final_norm ? blocks(0, layers) : [...blocks(0, layers), norm],
    read: config.skip_loop_final_norm ? [norm] : [],
    ignored: ['rotary_emb.inv_freq'], // old exports store it
    parameters: [
      { name: 'model.embed_tokens.weight', shape: [vocabulary, hidden], role: 'embedding', ...matrix },
      ...range(layers).flatMap(layer),
      { name: 'model.norm.weight', shape: [hidden], role: 'norm', initial: 'ones' },
      ...(config.tie_word_embeddings ? [] : [head]),
    ],
  }
}

const flag = z.boolean().default(false)
const schema = z.looseObject({
  ...llamaFields,
  attention_bias: flag,
  mlp_bias: flag,
  qk_layernorm: flag,
  num_loops: size(maxLoops).default(1),
  loop_loss_weights: z
    .array(z.number().min(0).max(1))
    .max(maxLoops - 1)
    .default([]),
  skip_loop_final_norm: flag,
  rope_scaling: z
    .custom<unknown>((value) => value == null || (value as { type?: string; rope_type?: string }).rope_type === 'default', {
      error: 'must be null; scaled rotary embeddings are not supported',
    })
    .optional(),
  enable_double_loop_split: unused('a double loop split'),
  loop_share_kv: unused('sharing keys and values between loops'),
  enable_hyper_connection: unused('hyper-connections'),
  enable_mhc: unused('hyper-connections'),
  enable_h_res_identity: unused('hyper-connections'),
  enable_depth_attention: unused('depth attention'),
  emb_neighbor_num: unused('n-gram embeddings'),
  insert_ngram_layer_idx: unused('n-gram embeddings'),
  ngram_insert_all_layers: unused('n-gram embeddings'),
})

function parse(value: unknown, source: ConfigSource): LoopLMConfig {
  const config = parseFields(schema, value, source)
  const total = config.loop_loss_weights.reduce((sum, weight) => sum + weight, 0)
  if (total > 1) throw refuse('loop_loss_weights', `must sum to at most 1, got ${total}`, source)
  const theta = rotaryBase(config, source)
  if (theta === undefined && source.fromFile)
    throw refuse('rope_theta', 'is missing; give it (70000000 for Nanbeige4.2-3B, 10000000 for its base)', source)
  const complete = { ...completed(config, source), rope_theta: theta ?? 1e7 }
  const loops = config.loop_loss_weights.length > 0 ? config.loop_loss_weights.length + 1 : config.num_loops
  return { ...complete, model_type: 'nanbeige', total_ut_steps: loops, early_exit_threshold: 1 }
}

export const nanbeigeFamily: Family = {
  parse,
  describe: (config) => nanbeige(config as LoopLMConfig & NanbeigeConfig),
  aliases: ['total_ut_steps', 'early_exit_threshold'],
}
