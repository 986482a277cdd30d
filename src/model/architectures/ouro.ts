import { type Architecture, blocks, exitGateNames, llamaSizes, type ParameterForm, range } from '../../native/architecture.js'
import type { LoopLMConfig } from './family.js'

/** The fields of Ouro's config.json that determine its computation. */
export type OuroSizes = Pick<
  LoopLMConfig,
  | 'vocab_size'
  | 'hidden_size'
  | 'intermediate_size'
  | 'num_hidden_layers'
  | 'num_attention_heads'
  | 'num_key_value_heads'
  | 'head_dim'
  | 'total_ut_steps'
  | 'rms_norm_eps'
  | 'rope_theta'
  | 'tie_word_embeddings'
  | 'initializer_range'
> & { looplm_exit_gate?: boolean | undefined }

/**
 * Ouro (arXiv 2510.25741): sandwich norms, and a norm after every loop. The next loop, the head and the exit gate read its
 * output.
 */
export function ouro(config: OuroSizes): Architecture {
  const { hidden_size: hidden, intermediate_size: intermediate, vocab_size: vocabulary, num_hidden_layers: layers } = config
  const q = config.num_attention_heads * config.head_dim
  const kv = config.num_key_value_heads * config.head_dim
  const matrix = { initial: 'normal', deviation: config.initializer_range } as const
  const norm = { shape: [hidden], initial: 'ones' } as const
  const layer = (index: number): ParameterForm[] => {
    const attention = `model.layers.${index}.self_attn`
    const mlp = `model.layers.${index}.mlp`
    const name = (norm: string) => `model.layers.${index}.${norm}.weight`
    return [
      { name: `${attention}.q_proj.weight`, shape: [q, hidden], role: 'attention', index, ...matrix },
      { name: `${attention}.k_proj.weight`, shape: [kv, hidden], role: 'attention', index, firstRow: q, ...matrix },
      { name: `${attention}.v_proj.weight`, shape: [kv, hidden], role: 'attention', index, firstRow: q + kv, ...matrix },
      { name: `${attention}.o_proj.weight`, shape: [hidden, q], role: 'attentionOutput', index, ...matrix },
      { name: `${mlp}.gate_proj.weight`, shape: [intermediate, hidden], role: 'gateUp', index, ...matrix },
      { name: `${mlp}.up_proj.weight`, shape: [intermediate, hidden], role: 'gateUp', index, firstRow: intermediate, ...matrix },
      { name: `${mlp}.down_proj.weight`, shape: [hidden, intermediate], role: 'down', index, ...matrix },
      { name: name('input_layernorm'), role: 'attentionNorm', index, ...norm },
      { name: name('input_layernorm_2'), role: 'attentionNorm2', index, ...norm },
      { name: name('post_attention_layernorm'), role: 'mlpNorm', index, ...norm },
      { name: name('post_attention_layernorm_2'), role: 'mlpNorm2', index, ...norm },
    ]
  }
  const hasGate = config.looplm_exit_gate === undefined // otherwise there is no gate, or one was added (withExitGate)
  const gate: ParameterForm[] = [
    { name: exitGateNames[0], shape: [1, hidden], role: 'exitGate', ...matrix },
    { name: exitGateNames[1], shape: [1], role: 'exitGateBias', initial: 'zeros' },
  ]
  const head: ParameterForm = { name: 'lm_head.weight', shape: [vocabulary, hidden], role: 'head', ...matrix }
  return {
    ...llamaSizes(config),
    family: 'ouro',
    layers,
    loops: config.total_ut_steps,
    residual: 'sandwich',
    exitGate: hasGate,
    sharedPlanes: true,
    registers: 1,
    begin: [{ kind: 'embed', to: 0 }],
    loop: [...blocks(0, layers), { kind: 'norm', to: 0, index: 0 }],
    read: [],
    parameters: [
      { name: 'model.embed_tokens.weight', shape: [vocabulary, hidden], role: 'embedding', ...matrix },
      ...range(layers).flatMap(layer),
      { name: 'model.norm.weight', role: 'norm', ...norm },
      ...(hasGate ? gate : []),
      ...(config.tie_word_embeddings ? [] : [head]),
    ],
  }
}
