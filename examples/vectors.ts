// Vectors to and from other libraries. What looplm returns is a Float32Array of its own memory, row-major, and a library such as
// onnxruntime-web wraps it as it is: new ort.Tensor('float32', data, dims) copies nothing. On the way in, tensor() copies once, into the
// engine's memory.
import { kernels, tensor } from 'looplm'
import { openModel } from './model.js'

/** The part of onnxruntime-web's Tensor that matters here. */
interface OrtTensor {
  type: 'float32'
  data: Float32Array
  dims: readonly number[]
}
const ortTensor = (data: Float32Array, dims: readonly number[]): OrtTensor => ({ type: 'float32', data, dims })

using model = await openModel()
const { config } = model
const parameter = async (name: string, shape: readonly number[]) =>
  tensor((await model.getParameter(name)) as Float32Array, shape)

// the looped stack on its own, with the model's weights
const shapes = new Map(model.parameters().map(({ name, shape }) => [name, shape]))
const weight = (name: string) => parameter(name, shapes.get(name)!)
const layers = await Promise.all(
  Array.from({ length: config.num_hidden_layers }, async (_, l) => {
    const at = (name: string) => weight(`model.layers.${l}.${name}.weight`)
    return {
      qProj: await at('self_attn.q_proj'),
      kProj: await at('self_attn.k_proj'),
      vProj: await at('self_attn.v_proj'),
      oProj: await at('self_attn.o_proj'),
      gateProj: await at('mlp.gate_proj'),
      upProj: await at('mlp.up_proj'),
      downProj: await at('mlp.down_proj'),
      inputLayernorm: await at('input_layernorm'),
      inputLayernorm2: await at('input_layernorm_2'),
      postAttentionLayernorm: await at('post_attention_layernorm'),
      postAttentionLayernorm2: await at('post_attention_layernorm_2'),
    }
  }),
)
const stack = {
  layers,
  numAttentionHeads: config.num_attention_heads,
  norm: await weight('model.norm.weight'),
  gateWeight: await weight('model.early_exit_gate.weight'),
  gateBias: await weight('model.early_exit_gate.bias'),
}

// vectors in: another library's, here the model's own embedding of a text
const tokens = model.tokenizer!.encode('vectors')
using table = await weight('model.embed_tokens.weight')
using embedded = await table.gather(tensor(Int32Array.from(tokens)))
const given: OrtTensor = ortTensor(await embedded.toArray(), [tokens.length, config.hidden_size])
using input = tensor(given.data, given.dims)

// vectors out: the state after every loop, [T, N, D]
const { hidden } = await kernels.loopedBlockForward(input, stack, { loops: config.total_ut_steps, ropeTheta: config.rope_theta })
const states = ortTensor(await hidden.toArray(), hidden.shape)
const size = tokens.length * config.hidden_size
const loop = (t: number) => ortTensor(states.data.subarray(t * size, (t + 1) * size), [tokens.length, config.hidden_size])
const last = loop(config.total_ut_steps - 1)
console.log(`states ${states.dims.join(' × ')}; one loop is a view of the same memory:`, last.data.buffer === states.data.buffer)

// and they are those that the model reads: the head's log-probability of the last token is that of score()
using head = await weight(shapes.has('lm_head.weight') ? 'lm_head.weight' : 'model.embed_tokens.weight')
const targets = tensor(Int32Array.from(tokens.map((_, i) => tokens[i + 1] ?? 0)))
const { logprobs } = await kernels.perLoopLogSoftmax(hidden, head, targets, { temperature: 1 })
const own = (await logprobs.toArray())[logprobs.size - 2]!
const scored = (await model.score([tokens], { lastLoop: true })).logprobs[0]!.at(-1)!
console.log('agrees with score():', Math.abs(own - scored) < 1e-3)
