import { z } from 'zod'
import {
  type Architecture,
  blocks,
  llamaSizes,
  type ParameterForm,
  type Role,
  range,
  type Step,
} from '../../native/architecture.js'
import type { ConfigSource, Family, LoopLMConfig } from './family.js'
import { completed, llamaFields, maxLoops, parseFields, refuse, rotaryBase, size, unused } from './fields.js'

/** The fields of HRM-Text's config.json that determine its computation, with every default filled in. */
export interface HrmTextConfig {
  vocab_size: number
  hidden_size: number
  intermediate_size: number
  /** Number of layers of each of the two stacks. */
  layers_per_stack: number
  num_attention_heads: number
  head_dim: number
  H_cycles: number
  L_cycles: number
  /**
   * Per cycle, how many of its last L steps carry gradient in training. A shorter list applies to the last cycles; the other
   * cycles use 1.
   */
  L_bp_cycles: readonly number[]
  embedding_scale: number
  rms_norm_eps: number
  rope_theta: number
  prefix_lm: boolean
  tie_word_embeddings: boolean
  /**
   * Whether the checkpoint stores gate, q, k, v, gate and up as separate tensors, as transformers does internally. Published
   * files fuse them.
   */
  split: boolean
}

/**
 * HRM-Text: a fast stack L and a slow stack H, each with its own register and norms without weights. A loop runs z_L = L(z_L +
 * z_H) L_cycles times, then z_H = H(z_H + z_L). The head reads z_H. z_L starts as a frozen vector.
 */
export function hrmText(config: HrmTextConfig): Architecture {
  const { hidden_size: hidden, intermediate_size: intermediate, vocab_size: vocabulary, layers_per_stack: depth } = config
  const width = config.num_attention_heads * config.head_dim
  const matrix = (out: number, columns: number) =>
    ({ shape: [out, columns], initial: 'truncatedNormal', deviation: 1 / Math.sqrt(columns) }) as const
  const layer = (index: number): ParameterForm[] => {
    const prefix = `model.${index < depth ? 'L' : 'H'}_module.layers.${index % depth}.`
    const attention = `${prefix}${config.split ? 'self_attn' : 'attn'}.`
    const parts = (module: string, names: string[], rows: number, role: Role): ParameterForm[] =>
      names.map((name, i) => ({ name: `${module}${name}.weight`, role, index, firstRow: i * rows, ...matrix(rows, hidden) }))
    return [
      ...(config.split
        ? parts(attention, ['gate_proj', 'q_proj', 'k_proj', 'v_proj'], width, 'attention')
        : parts(attention, ['gqkv_proj'], 4 * width, 'attention')),
      { name: `${attention}o_proj.weight`, role: 'attentionOutput', index, ...matrix(hidden, width) },
      ...(config.split
        ? parts(`${prefix}mlp.`, ['gate_proj', 'up_proj'], intermediate, 'gateUp')
        : parts(`${prefix}mlp.`, ['gate_up_proj'], 2 * intermediate, 'gateUp')),
      { name: `${prefix}mlp.down_proj.weight`, role: 'down', index, ...matrix(hidden, intermediate) },
    ]
  }
  const head: ParameterForm = { name: 'lm_head.weight', role: 'head', ...matrix(vocabulary, hidden) }
  const [slow, fast] = [0, 1]
  const norm = (to: number) => ({ kind: 'norm', to, index: -1 }) as const
  const think: Step[] = [{ kind: 'add', to: fast, from: slow }, ...blocks(0, depth, fast), norm(fast)]
  const missing = Math.max(0, config.H_cycles - config.L_bp_cycles.length)
  const trainedCycles = [...range(missing).map(() => 1), ...config.L_bp_cycles]
  return {
    ...llamaSizes({ ...config, num_key_value_heads: config.num_attention_heads }),
    family: 'hrm_text',
    layers: 2 * depth,
    loops: config.H_cycles,
    residual: 'pre',
    attentionGate: true,
    prefixSeesItself: config.prefix_lm,
    exitGate: false,
    fixedLoops: true,
    registers: 2,
    publishedBackward: { constantSteps: trainedCycles.map((n) => Math.max(0, config.L_cycles - n) * think.length) },
    begin: [
      { kind: 'embed', to: slow, scale: config.embedding_scale },
      { kind: 'start', to: fast, index: 0 },
    ],
    loop: [
      ...range(config.L_cycles).flatMap(() => think),
      { kind: 'add', to: slow, from: fast },
      ...blocks(depth, depth, slow),
      norm(slow),
    ],
    read: [],
    parameters: [
      {
        name: 'model.embed_tokens.weight',
        shape: [vocabulary, hidden],
        role: 'embedding',
        initial: 'truncatedNormal',
        deviation: 1 / config.embedding_scale,
      },
      { name: 'model.z_L_init', shape: [hidden], role: 'start', initial: 'truncatedNormal', deviation: 1 },
      ...range(2 * depth).flatMap(layer),
      ...(config.tie_word_embeddings ? [] : [head]),
    ],
  }
}

const schema = z.looseObject({
  ...llamaFields,
  num_hidden_layers: size(2 ** 16).default(16),
  num_layers_per_stack: size(1024).nullish(),
  head_dim: size(1024).default(128),
  H_cycles: size(maxLoops).default(2),
  L_cycles: size(64).default(3),
  L_bp_cycles: z.array(z.int().min(0)).default([2]),
  embedding_scale: z.number().positive().nullish(),
  max_position_embeddings: size(2 ** 26).default(2048),
  prefix_lm: z.boolean().default(true),
  attention_bias: unused('a bias of projections'),
  mlp_bias: unused('a bias of projections'),
})

function parse(value: unknown, source: ConfigSource): LoopLMConfig {
  const config = parseFields(schema, value, source)
  // If transformers saved the configuration again, num_hidden_layers counts every run of a layer.
  const layers_per_stack = config.num_layers_per_stack ?? config.num_hidden_layers
  if (layers_per_stack > 1024)
    throw refuse('num_hidden_layers', `must be at most 1024 per stack, got ${layers_per_stack}`, source)
  const scale = config.embedding_scale ?? 1 / config.initializer_range
  if (!Number.isFinite(scale)) throw refuse('initializer_range', 'must be above 0 where embedding_scale is null', source)
  return {
    ...completed({ ...config, num_key_value_heads: config.num_attention_heads }, source), // the value in the file is ignored
    model_type: 'hrm_text',
    rope_theta: rotaryBase(config, source) ?? 10000,
    embedding_scale: scale,
    looplm_split: source.tensors.some((name) => name.endsWith('self_attn.q_proj.weight')),
    looplm_layers_per_stack: layers_per_stack,
    total_ut_steps: config.H_cycles,
    early_exit_threshold: 1,
  }
}

export const hrmTextFamily: Family = {
  parse,
  describe: (config) =>
    hrmText({
      ...(config as LoopLMConfig & HrmTextConfig),
      layers_per_stack: config.looplm_layers_per_stack as number,
      split: config.looplm_split as boolean,
    }),
  aliases: ['total_ut_steps', 'early_exit_threshold', 'looplm_split', 'looplm_layers_per_stack'],
}
