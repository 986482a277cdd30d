// Training with your own rewards: any function of prompt, completion and the row's columns, or several with weights.
import { type Dataset, LoopLM, RLTTTrainer, Tokenizer } from 'looplm'

const rows: Dataset = Array.from({ length: 64 }, (_, i) => ({ prompt: `${i % 8}:`, answer: String(i % 8).repeat(3) }))
const tokenizer = Tokenizer.characters('01234567:', { special: { eos: '<eos>' } })

const config = {
  vocab_size: tokenizer.vocabSize,
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 1,
  num_attention_heads: 2,
}
using model = await LoopLM.create({ ...config, eos_token_id: tokenizer.eosTokenId! }, { seed: 1 })

const trainer = new RLTTTrainer(model, {
  dataset: rows,
  tokenizer,
  reward: [
    // the share of characters that are right; a reward may also be async, or return null for no opinion
    { name: 'overlap', reward: (_prompt, completion, { answer }) => share(completion, String(answer)) },
    { name: 'short', reward: (_prompt, completion) => (completion.length <= 3 ? 1 : 0), weight: 0.2 },
  ],
  promptsPerStep: 8,
  maxNewTokens: 4,
  learningRate: 3e-3,
  steps: 60,
})

for await (const { type, step, metrics } of trainer.run()) {
  if (type === 'step' && step % 10 === 0) {
    console.log(step, 'overlap', metrics['rewards/overlap/mean']?.toFixed(2), 'short', metrics['rewards/short/mean']?.toFixed(2))
  }
}

function share(completion: string, answer: string): number {
  const right = [...answer].filter((character, i) => completion[i] === character)
  return right.length / answer.length
}
