// The models that the bench runs.

export const d512 = {
  vocab_size: 8192,
  hidden_size: 512,
  intermediate_size: 1408,
  num_hidden_layers: 6,
  num_attention_heads: 8,
  total_ut_steps: 4,
}
export const d128 = {
  vocab_size: 128,
  hidden_size: 128,
  intermediate_size: 352,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  total_ut_steps: 4,
}
export const d768 = {
  vocab_size: 8192,
  hidden_size: 768,
  intermediate_size: 2048,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  total_ut_steps: 4,
}
export const d1536 = {
  vocab_size: 16384,
  hidden_size: 1536,
  intermediate_size: 4096,
  num_hidden_layers: 16,
  num_attention_heads: 12,
  total_ut_steps: 4,
}
export const d96 = {
  vocab_size: 12,
  hidden_size: 96,
  intermediate_size: 256,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  total_ut_steps: 4,
}
/** ByteDance's Ouro-1.4B. */
export const ouro = {
  vocab_size: 49152,
  hidden_size: 2048,
  intermediate_size: 5632,
  num_hidden_layers: 24,
  num_attention_heads: 16,
  total_ut_steps: 4,
}
export type Config = typeof d512
