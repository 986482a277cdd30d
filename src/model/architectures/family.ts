import type { Architecture } from '../../native/architecture.js'

/** A family of looped models beside Ouro: one file that reads its config.json and describes what it computes. */
export interface Family {
  /** The published fields with every default filled in, and `aliases`. */
  parse(value: unknown, source: ConfigSource): LoopLMConfig
  describe(config: LoopLMConfig): Architecture
  /** Fields in Ouro's words that `parse` adds, so that sizes and loops have one name in every family; they are not saved. */
  aliases: readonly string[]
}

/** Where a configuration comes from. */
export interface ConfigSource {
  /** How errors name it. */
  name: string
  /** A file must say what a class default would get wrong. */
  fromFile: boolean
  /** Names of the checkpoint's tensors, which tell layouts apart that the configuration does not name; of a file. */
  tensors: readonly string[]
}

/**
 * A looped model's configuration, in the words of Hugging Face's config.json (Ouro, arXiv 2510.25741). Fields that looplm does not know
 * are kept and saved again.
 */
export interface LoopLMConfig {
  /** Token ids are 0 .. vocab_size-1. */
  vocab_size: number
  /** D, the width of the hidden state. */
  hidden_size: number
  /** F, the width of the feed-forward layer. */
  intermediate_size: number
  /** L, blocks per loop. */
  num_hidden_layers: number
  /** Query heads of a block. */
  num_attention_heads: number
  /** Fewer than num_attention_heads: grouped-query attention. */
  num_key_value_heads: number
  /** Even. */
  head_dim: number
  /** T, how often the same blocks run. */
  total_ut_steps: number
  /** Added to the mean square in RMS norms. */
  rms_norm_eps: number
  /** Base of the rotary embedding. */
  rope_theta: number
  /** true: the LM head is the embedding. */
  tie_word_embeddings: boolean
  /** Cumulative exit probability at which generation leaves the loops; 1 is full depth. */
  early_exit_threshold: number
  /** true: an exit gate was added. false, of Ouro: there is none, as in llama.cpp's files. Absent: as the family is published. */
  looplm_exit_gate?: boolean | undefined
  /** The token that begins a text; null: none. */
  bos_token_id: number | null
  /** The tokens that end a text; null: none. */
  eos_token_id: number | number[] | null
  /** Longest sequence in tokens, prompt and answer together. */
  max_position_embeddings: number
  /** Standard deviation of the initial matrices. */
  initializer_range: number
  [field: string]: unknown
}

/** What {@link LoopLM.create} needs; every other field has Hugging Face's default. */
export type LoopLMConfigInput = Pick<
  LoopLMConfig,
  'vocab_size' | 'hidden_size' | 'intermediate_size' | 'num_hidden_layers' | 'num_attention_heads'
> &
  Partial<LoopLMConfig>
