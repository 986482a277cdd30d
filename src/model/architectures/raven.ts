import { type Architecture, blocks, norms, type ParameterForm, type RotaryEmbedding, range } from './architecture.js'

/** Huginn's blocks, or those of the source model that was given loops: Llama and TinyLlama, or OLMo 2. */
export type RavenLayout = 'huginn' | 'llama' | 'olmo2'

/** What the config.json of Huginn and of retrofitted models says of the computation, with every default filled in. */
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
  norm_eps: number
  rotary: RotaryEmbedding
  qk_bias: boolean
  tie_embeddings: boolean
  init_values: { std: number; embed_scale: number }
  layout: RavenLayout
}

/**
 * Huginn (arXiv 2502.05171) and models retrofitted with its program (arXiv 2511.07384): a prelude makes e of the embedded tokens, the
 * core block runs on W [x ; e] from a random x, and a coda reads x.
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
      { name: `${prefix}mlp.fc.weight`, shape: [2 * intermediate, hidden], role: 'gateUp', index, ...matrix },
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
    begin: [
      { kind: 'embed', to: e, scale: layout === 'huginn' ? Math.sqrt(hidden) : config.init_values.embed_scale },
      ...blocks(0, prelude, e),
      { kind: 'state', to: x },
    ],
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
