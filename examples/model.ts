// The model of the embedding examples: the checkpoint folder on the command line, else a tiny one with random parameters.
import { LoopLM, Tokenizer } from 'looplm'

export async function openModel(folder = process.argv[2]): Promise<LoopLM> {
  if (folder !== undefined) return LoopLM.fromPretrained(folder, { dtype: 'bfloat16' })
  const sizes = { hidden_size: 64, intermediate_size: 176, num_hidden_layers: 2, num_attention_heads: 4 }
  const tokenizer = Tokenizer.bytes({ special: { eos: '<eos>' } })
  const model = await LoopLM.create({ vocab_size: 257, eos_token_id: 256, ...sizes }, { seed: 1 })
  model.tokenizer = tokenizer
  return model
}
