// A run whose rollouts are episodes: node test/episode-run.mjs FOLDER [resume]. Its environment keeps its own state, asks a tool, and
// says on standard output where it is; LOOPLM_HANG=N lets the N-th call of step() and every later one hang.
import { defineTool, LoopLM, RLTTTrainer, Tokenizer } from '../dist/src/index.js'

const [folder, resume] = process.argv.slice(2)
const hangs = Number(process.env.LOOPLM_HANG ?? Number.POSITIVE_INFINITY)
const tokenizer = Tokenizer.characters('abcd ')
const model = await LoopLM.create(
  {
    ...{ vocab_size: tokenizer.vocabSize, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1 },
    ...{ num_attention_heads: 2, total_ut_steps: 2, initializer_range: 0.2, max_position_embeddings: 64 },
  },
  { seed: 4, threads: 1 },
)
const idle = defineTool({ name: 'idle', description: 'Never asked.', parameters: { type: 'object' }, run: () => '' })
let calls = 0

/** The reply depends on the seed and on all turns so far. */
const environment = ({ prompt }, { seed }) => {
  let state = seed % 97
  return {
    prompt,
    step: async ({ tokens, index }) => {
      const call = ++calls
      if (call >= hangs) {
        if (call === hangs) console.log('hangs')
        await new Promise(() => setInterval(() => {}, 1000))
      }
      for (const token of tokens) state = (state * 31 + token) % 97
      return { reward: state / 97, ...(index < 2 ? { reply: ' abcd'[state % 5] } : { done: true }) }
    },
  }
}

const trainer = new RLTTTrainer(model, {
  ...{ dataset: ['ab', 'b', 'cab'].map((prompt) => ({ prompt })), tokenizer, environment, tools: [idle], runDir: folder },
  ...{ groupSize: 4, promptsPerStep: 3, steps: 4, saveEvery: 1, learningRate: 1e-2, maxNewTokens: 4, maxTurns: 3 },
  ...{ beta: 0.05, evalEvery: 0, logprobCheckEvery: 1, resume: resume === 'resume' },
})
for await (const event of trainer.run()) if (event.type === 'step') console.log(`step ${event.step}`)
