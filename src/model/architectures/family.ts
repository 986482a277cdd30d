import type { Architecture } from '../../native/architecture.js'

/** A family of looped models other than Ouro. One file reads its config.json and describes what it computes. */
export interface Family {
  /** Returns the published fields with every default filled in, and the `aliases`. */
  parse(value: unknown, source: ConfigSource): LoopLMConfig
  describe(config: LoopLMConfig): Architecture
  /**
   * Fields with Ouro's names that `parse` adds, so that sizes and loops have the same name in every family. They are not saved.
   */
  aliases: readonly string[]
}

/** Where a configuration comes from. */
export interface ConfigSource {
  /** The name for error messages. */
  name: string
  /** true if the configuration comes from a file. A file must state the fields whose class defaults would be wrong. */
  fromFile: boolean
  /**
   * The names of the checkpoint's tensors, if it comes from a file. They tell apart layouts that the configuration does not
   * name.
   */
  tensors: readonly string[]
}

/**
 * A looped model's configuration, in the words of Hugging Face's config.json (Ouro, arXiv 2510.25741). Unknown fields are kept
 * and saved again.
 */
export interface LoopLMConfig {
  /** Vocabulary size. Token ids are 0 .. vocab_size-1. */
  vocab_size: number
  /** D, the width of the hidden state. */
  hidden_size: number
  /** F, the width of the feed-forward layer. */
  intermediate_size: number
  /** L, the number of blocks per loop. */
  num_hidden_layers: number
  /** Number of query heads per block. */
  num_attention_heads: number
  /** Number of key/value heads. Fewer than num_attention_heads means grouped-query attention. */
  num_key_value_heads: number
  /** Dimensions of a head; an even number. */
  head_dim: number
  /** T, the number of loops: how often the same blocks run. */
  total_ut_steps: number
  /** Epsilon that RMS norms add to the mean square. */
  rms_norm_eps: number
  /** Base of the rotary embedding. */
  rope_theta: number
  /** true if the LM head is the embedding. */
  tie_word_embeddings: boolean
  /** The cumulative exit probability at which a generated token exits. 1 means full depth. */
  early_exit_threshold: number
  /**
   * true: an exit gate was added. false (Ouro only): the model has no gate, as in llama.cpp's files. Absent: as the family is
   * published.
   */
  looplm_exit_gate?: boolean | undefined
  /** The token that begins a text. null if there is none. */
  bos_token_id: number | null
  /** The tokens that end a text. null if there are none. */
  eos_token_id: number | number[] | null
  /** The longest sequence in tokens, prompt and response together. */
  max_position_embeddings: number
  /** Standard deviation of the randomly initialized matrices. */
  initializer_range: number
  [field: string]: unknown
}

/** The fields that {@link LoopLM.create} requires. All other fields default to Hugging Face's values. */
export type LoopLMConfigInput = Pick<
  LoopLMConfig,
  'vocab_size' | 'hidden_size' | 'intermediate_size' | 'num_hidden_layers' | 'num_attention_heads'
> &
  Partial<LoopLMConfig>
