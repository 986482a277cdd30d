import { type Architecture, blocks, type ParameterForm, range, type Step } from './architecture.js'

/** What HRM-Text's config.json says of the computation, with every default filled in. */
export interface HrmTextConfig {
  vocab_size: number
  hidden_size: number
  intermediate_size: number
  /** Of each of the two stacks. */
  layers_per_stack: number
  num_attention_heads: number
  head_dim: number
  H_cycles: number
  L_cycles: number
  embedding_scale: number
  rms_norm_eps: number
  rope_theta: number
  prefix_lm: boolean
  tie_word_embeddings: boolean
}

/**
 * HRM-Text: a fast stack L and a slow stack H with a register each and norms without weights. A loop is L_cycles times z_L = L(z_L + z_H),
 * then z_H = H(z_H + z_L), which the head reads; z_L begins with a frozen vector.
 */
export function hrmText(config: HrmTextConfig): Architecture {
  const { hidden_size: hidden, intermediate_size: intermediate, vocab_size: vocabulary, layers_per_stack: depth } = config
  const width = config.num_attention_heads * config.head_dim
  const matrix = (out: number, columns: number) =>
    ({ shape: [out, columns], initial: 'truncatedNormal', deviation: 1 / Math.sqrt(columns) }) as const
  const layer = (index: number): ParameterForm[] => {
    const prefix = `model.${index < depth ? 'L' : 'H'}_module.layers.${index % depth}.`
    return [
      { name: `${prefix}attn.gqkv_proj.weight`, role: 'attention', index, ...matrix(4 * width, hidden) },
      { name: `${prefix}attn.o_proj.weight`, role: 'attentionOutput', index, ...matrix(hidden, width) },
      { name: `${prefix}mlp.gate_up_proj.weight`, role: 'gateUp', index, ...matrix(2 * intermediate, hidden) },
      { name: `${prefix}mlp.down_proj.weight`, role: 'down', index, ...matrix(hidden, intermediate) },
    ]
  }
  const head: ParameterForm = { name: 'lm_head.weight', role: 'head', ...matrix(vocabulary, hidden) }
  const [slow, fast] = [0, 1]
  const norm = (to: number) => ({ kind: 'norm', to, index: -1 }) as const
  const think: Step[] = [{ kind: 'add', to: fast, from: slow }, ...blocks(0, depth, fast), norm(fast)]
  return {
    family: 'hrm_text',
    vocabulary,
    hidden,
    intermediate,
    layers: 2 * depth,
    heads: config.num_attention_heads,
    kvHeads: config.num_attention_heads,
    headDim: config.head_dim,
    loops: config.H_cycles,
    normEps: config.rms_norm_eps,
    rotary: { theta: config.rope_theta },
    residual: 'pre',
    attentionGate: true,
    prefixSeesItself: config.prefix_lm,
    tied: config.tie_word_embeddings,
    exitGate: false,
    registers: 2,
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
