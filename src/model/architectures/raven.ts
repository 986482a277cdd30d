import { z } from 'zod'
import { type Architecture, blocks, norms, type ParameterForm, type RotaryEmbedding, range } from '../../native/architecture.js'
import type { ConfigSource, Family, LoopLMConfig } from './family.js'
import { completed, maxLoops, parseFields, refuse, rotaryBase, size, tokens, unused } from './fields.js'

/**
 * The block layout: Huginn's, or that of the source model that was turned into a looped model (Llama and TinyLlama, or OLMo 2).
 */
export type RavenLayout = 'huginn' | 'llama' | 'olmo2'

/**
 * The fields of config.json of Huginn and of retrofitted models that determine the computation, with every default filled in.
 */
export interface RavenConfig {
  vocab_size: number
  n_embd: number
  intermediate_size: number
  n_heads: number
  num_key_value_heads: number
  head_dim: number
  n_layers_in_prelude: number
  n_layers_in_recurrent_block: number
  n_layers_in_coda: number
  mean_recurrence: number
  mean_backprop_depth: number
  norm_eps: number
  rotary: RotaryEmbedding
  qk_bias: boolean
  tie_embeddings: boolean
  init_values: { std: number; embed_scale: number }
  layout: RavenLayout
}

/**
 * Huginn (arXiv 2502.05171) and models retrofitted with its code (arXiv 2511.07384). A prelude computes e from the embedded
 * tokens. The core block runs on W [x ; e], starting from a random x. A coda reads x.
 */
export function raven(config: RavenConfig): Architecture {
  const { n_embd: hidden, intermediate_size: intermediate, vocab_size: vocabulary, layout } = config
  const [prelude, core, coda] = [config.n_layers_in_prelude, config.n_layers_in_recurrent_block, config.n_layers_in_coda]
  const layers = prelude + core + coda
  const q = config.n_heads * config.head_dim
  const kv = config.num_key_value_heads * config.head_dim
  const deviation = Math.sqrt(2 / (5 * hidden))
  const matrix = { initial: 'truncatedNormal', deviation } as const
  const output = {
    initial: 'truncatedNormal',
    deviation: deviation / Math.sqrt(2 * (prelude + coda + core * config.mean_recurrence)),
  } as const
  const gateUp = { initial: 'truncatedNormal', deviations: [deviation, output.deviation] } as const
  const layer = (index: number): ParameterForm[] => {
    const part =
      index < prelude
        ? `prelude.${index}`
        : index < prelude + core
          ? `core_block.${index - prelude}`
          : `coda.${index - prelude - core}`
    const prefix = `transformer.${part}.`
    const norm = (n: number) => `${prefix}norm_${n}.weight`
    const ofLayout = {
      huginn: { attentionNorm: norm(1), attentionNorm2: norm(2), mlpNorm: norm(3), mlpNorm2: norm(4) },
      llama: { attentionNorm: norm(1), mlpNorm: norm(2) },
      olmo2: { attentionNorm2: norm(1), mlpNorm2: norm(2) },
    }[layout]
    const headNorms: ParameterForm[] = [
      { name: `${prefix}attn.q_norm.weight`, shape: [q], role: 'queryNorm', index, initial: 'ones' },
      { name: `${prefix}attn.k_norm.weight`, shape: [kv], role: 'keyNorm', index, initial: 'ones' },
    ]
    const bias = { name: `${prefix}attn.qk_bias`, shape: [2, 1, config.n_heads, config.head_dim], role: 'attentionBias' } as const
    return [
      { name: `${prefix}attn.Wqkv.weight`, shape: [q + 2 * kv, hidden], role: 'attention', index, ...matrix },
      ...(config.qk_bias ? [{ ...bias, index, initial: 'zeros' } as const] : []),
      { name: `${prefix}attn.proj.weight`, shape: [hidden, q], role: 'attentionOutput', index, ...output },
      { name: `${prefix}mlp.fc.weight`, shape: [2 * intermediate, hidden], role: 'gateUp', index, ...gateUp },
      { name: `${prefix}mlp.proj.weight`, shape: [hidden, intermediate], role: 'down', index, ...output },
      ...norms(hidden, index, ofLayout),
      ...(layout === 'olmo2' ? headNorms : []),
    ]
  }
  const head: ParameterForm = { name: 'lm_head.weight', shape: [vocabulary, hidden], role: 'head', ...matrix }
  const [x, e] = [0, 1]
  const norm = { kind: 'norm', to: x, index: 0 } as const
  return {
    family: layout === 'huginn' ? 'huginn_raven' : 'retrofit',
    vocabulary,
    hidden,
    intermediate,
    layers,
    heads: config.n_heads,
    kvHeads: config.num_key_value_heads,
    headDim: config.head_dim,
    loops: config.mean_recurrence,
    normEps: config.norm_eps,
    rotary: config.rotary,
    residual: ({ huginn: 'normed', llama: 'pre', olmo2: 'post' } as const)[layout],
    queryKeyNorm: layout === 'olmo2' ? 'all' : 'none',
    stateDeviation: config.init_values.std * config.init_values.embed_scale,
    tied: config.tie_embeddings,
    exitGate: false,
    registers: 2,
    publishedBackward: { loops: config.mean_backprop_depth },
    begin: [
      { kind: 'embed', to: e, scale: layout === 'huginn' ? Math.sqrt(hidden) : config.init_values.embed_scale },
      ...blocks(0, prelude, e),
      { kind: 'state', to: x },
    ],
    ignored: ['freqs_cis'], // table of rotary positions
    loop: [{ kind: 'inject', to: x, from: e, index: 0 }, ...blocks(prelude, core, x)],
    read: [...(layout === 'huginn' ? [norm] : []), ...blocks(prelude + core, coda, x), norm],
    parameters: [
      { name: 'transformer.wte.weight', shape: [vocabulary, hidden], role: 'embedding', ...matrix },
      ...range(layers).flatMap(layer),
      { name: 'transformer.adapter.weight', shape: [hidden, 2 * hidden], role: 'inject', ...matrix },
      { name: 'transformer.ln_f.weight', shape: [hidden], role: 'norm', initial: 'ones' },
      ...(config.tie_embeddings ? [] : [head]),
    ],
  }
}

const width = size(2 ** 16)
const schema = z.looseObject({
  ...tokens,
  n_embd: width.optional(),
  hidden_size: width.optional(),
  n_heads: size(1024).optional(),
  num_attention_heads: size(1024).optional(),
  num_key_value_heads: size(1024).nullish(),
  head_dim: size(1024).nullish(),
  intermediate_size: size(2 ** 18),
  vocab_size: size(2 ** 24).optional(),
  padded_vocab_size: size(2 ** 24).optional(),
  n_layers_in_prelude: size(1024).default(2),
  n_layers_in_recurrent_block: size(1024).default(4),
  n_layers_in_coda: size(1024).default(2),
  mean_recurrence: size(maxLoops).default(32),
  mean_backprop_depth: size(1024).default(8),
  norm_eps: z.number().positive().max(1).default(1e-6),
  rope_base: z.number().min(1).max(1e12).default(50000),
  rope_theta: z.number().min(1).max(1e12).nullish(),
  rope_scaling: z
    .looseObject({
      rope_type: z.enum(['llama3', 'default'], { error: 'must be "llama3" or "default"; others are not supported' }),
      factor: z.number().min(1).optional(),
      low_freq_factor: z.number().positive().optional(),
      high_freq_factor: z.number().positive().optional(),
      original_max_position_embeddings: size(2 ** 26).optional(),
    })
    .nullish(),
  block_size: size(2 ** 26).default(4096),
  max_position_embeddings: size(2 ** 26).nullish(),
  qk_bias: z.boolean().default(true),
  tie_embeddings: z.boolean().default(true),
  bias: unused('a bias in every projection'),
  injection_type: z.literal('linear', { error: 'must be "linear"; other injections are not supported' }).default('linear'),
  test_time_noise: unused('noise at test time'),
  init_values: z.looseObject({ std: z.number().min(0), embed_scale: z.number().min(0) }).optional(),
  looplm_layout: z.enum(['huginn', 'llama', 'olmo2']).optional(),
})

/** Detects the block layout from the tensors, because published configurations do not name it. */
function layoutOf(config: z.infer<typeof schema>, { tensors }: ConfigSource): RavenLayout {
  if (tensors.some((name) => name.endsWith('.norm_3.weight'))) return 'huginn'
  if (tensors.some((name) => name.endsWith('attn.q_norm.weight'))) return 'olmo2'
  if (tensors.length > 0) return 'llama'
  return config.looplm_layout ?? (config.rope_theta == null ? 'huginn' : 'llama')
}

function parse(value: unknown, source: ConfigSource): LoopLMConfig {
  const config = parseFields(schema, value, source)
  const layout = layoutOf(config, source)
  const hidden = config.n_embd ?? config.hidden_size
  const heads = config.n_heads ?? config.num_attention_heads
  const vocabulary = config.padded_vocab_size ?? config.vocab_size
  if (hidden === undefined) throw refuse('n_embd', 'is missing; give n_embd or hidden_size', source)
  if (heads === undefined) throw refuse('n_heads', 'is missing; give n_heads or num_attention_heads', source)
  if (vocabulary === undefined) throw refuse('padded_vocab_size', 'is missing; give padded_vocab_size or vocab_size', source)
  const theta = layout === 'huginn' ? config.rope_base : rotaryBase(config, source)
  if (theta === undefined) throw refuse('rope_theta', 'is missing; retrofitted models do not use rope_base', source)
  if (layout !== 'huginn' && config.init_values === undefined)
    throw refuse('init_values', 'is missing; it holds std and embed_scale of the source model', source)
  const words = { vocab_size: vocabulary, hidden_size: hidden, num_attention_heads: heads }
  const init_values = config.init_values ?? { std: Math.sqrt(2 / (5 * hidden)), embed_scale: Math.sqrt(hidden) }
  return {
    ...completed({ ...config, ...words }, source),
    n_embd: hidden,
    n_heads: heads,
    padded_vocab_size: vocabulary,
    model_type: 'huginn_raven',
    looplm_layout: layout,
    init_values,
    num_hidden_layers: config.n_layers_in_prelude + config.n_layers_in_recurrent_block + config.n_layers_in_coda,
    total_ut_steps: config.mean_recurrence,
    rms_norm_eps: config.norm_eps,
    rope_theta: theta,
    tie_word_embeddings: config.tie_embeddings,
    early_exit_threshold: 1,
    max_position_embeddings: config.max_position_embeddings ?? config.block_size,
    initializer_range: Math.sqrt(2 / (5 * hidden)),
  }
}

function describe(config: LoopLMConfig): Architecture {
  const { rope_theta: theta, looplm_layout: layout } = config as LoopLMConfig & { looplm_layout: RavenLayout }
  const scaling = config.rope_scaling as Record<string, number> | null | undefined
  const rotary: RotaryEmbedding = { theta, pairs: layout === 'huginn' ? 'neighbours' : 'halves' }
  if (scaling?.factor !== undefined && layout !== 'huginn')
    rotary.scaling = {
      factor: scaling.factor,
      low: scaling.low_freq_factor ?? 1,
      high: scaling.high_freq_factor ?? 4,
      original: scaling.original_max_position_embeddings ?? 8192,
    }
  return raven({ ...(config as LoopLMConfig & RavenConfig), layout, rotary })
}

export const ravenFamily: Family = {
  parse,
  describe,
  aliases: [
    ...['hidden_size', 'num_attention_heads', 'num_hidden_layers', 'total_ut_steps', 'rms_norm_eps', 'tie_word_embeddings'],
    ...['early_exit_threshold', 'initializer_range'],
  ],
}
