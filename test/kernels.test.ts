import { describe, expect, it } from 'vitest'
import { kernels, LoopLM, type Tensor, tensor, zeros } from '../src/index.js'
import { refusal } from './refusal.js'
import { expectScores, yardstick } from './rounding.js'

const config = {
  vocab_size: 13,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  total_ut_steps: 3,
  initializer_range: 0.3,
}
const sequences = [
  [1, 2, 3, 4, 5],
  [6, 7, 8],
]
const tokens = sequences.flat()
const [N, D, V, T] = [tokens.length, config.hidden_size, config.vocab_size, config.total_ut_steps]

type Place = { device: 'cpu'; dtype: 'float32' | 'bfloat16' } | { device: 'reference'; dtype: 'float64' }
const places: Place[] = [
  { device: 'cpu', dtype: 'float32' },
  { device: 'cpu', dtype: 'bfloat16' },
  { device: 'reference', dtype: 'float64' },
]

function expectClose(got: ArrayLike<number>, want: ArrayLike<number>, bound: number) {
  expect(got.length).toBe(want.length)
  for (let i = 0; i < want.length; i++)
    expect(Math.abs(got[i]! - want[i]!), `element ${i}`).toBeLessThanOrEqual(bound * Math.max(1, Math.abs(want[i]!)))
}

/** A model's weights as the kernel's tensors, and the embedded tokens. */
async function weightsOf(model: LoopLM, place: Place) {
  const make = async (name: string, shape: number[]) => tensor(await model.getParameter(name), shape, place) as Tensor<'float32'>
  const layers = []
  for (let l = 0; l < config.num_hidden_layers; l++) {
    const p = `model.layers.${l}.`
    layers.push({
      qProj: await make(`${p}self_attn.q_proj.weight`, [16, D]),
      kProj: await make(`${p}self_attn.k_proj.weight`, [8, D]),
      vProj: await make(`${p}self_attn.v_proj.weight`, [8, D]),
      oProj: await make(`${p}self_attn.o_proj.weight`, [D, 16]),
      gateProj: await make(`${p}mlp.gate_proj.weight`, [24, D]),
      upProj: await make(`${p}mlp.up_proj.weight`, [24, D]),
      downProj: await make(`${p}mlp.down_proj.weight`, [D, 24]),
      inputLayernorm: await make(`${p}input_layernorm.weight`, [D]),
      inputLayernorm2: await make(`${p}input_layernorm_2.weight`, [D]),
      postAttentionLayernorm: await make(`${p}post_attention_layernorm.weight`, [D]),
      postAttentionLayernorm2: await make(`${p}post_attention_layernorm_2.weight`, [D]),
    })
  }
  const embedding = await make('model.embed_tokens.weight', [V, D])
  const ids = tensor(Int32Array.from(tokens), [N], { dtype: 'int32', device: place.device })
  return {
    hidden: await embedding.gather(ids),
    head: await make('lm_head.weight', [V, D]),
    block: {
      layers,
      numAttentionHeads: 4,
      norm: await make('model.norm.weight', [D]),
      gateWeight: await make('model.early_exit_gate.weight', [1, D]),
      gateBias: await make('model.early_exit_gate.bias', [1]),
    },
  }
}

describe.each(places)('on $device in $dtype', (place) => {
  it('looped block and per-loop log-softmax match model.score', async () => {
    using model = await LoopLM.create(config, { ...place, seed: 2 })
    const scores = await model.score(sequences)
    const { hidden, head, block } = await weightsOf(model, place)
    const out = await kernels.loopedBlockForward(hidden, block, { loops: T, offsets: [0, 5, 8] })
    expect(out.hidden.shape).toEqual([T, N, D])
    expect(out.gateLogits.shape).toEqual([T, N])
    const targets = tensor(Int32Array.from([...tokens.slice(1), 0]), [N], { dtype: 'int32', device: place.device })
    const { logprobs, entropy } = await kernels.perLoopLogSoftmax(out.hidden, head, targets)
    expect(logprobs.shape).toEqual([T, N])
    /** Rows of all tokens, [T, N], as score has them: by sequence. */
    const bySequence = (rows: ArrayLike<number>, without: number) =>
      sequences.map(({ length }, i) => {
        const begin = sequences.slice(0, i).flat().length
        return Array.from({ length: T }, (_, t) => Array.from(rows).slice(t * N + begin, t * N + begin + length - without)).flat()
      })
    const of = await yardstick(model, config, sequences)
    expectScores(scores, of)
    const got = {
      logprobs: bySequence(await logprobs.toArray(), 1),
      entropy: bySequence(await entropy.toArray(), 1),
      gateLogits: bySequence(await out.gateLogits.toArray(), 0),
    }
    expectScores(got, of)
  })
})

// Errors of float32: of a dozen operations on numbers near 1, and of the logarithm of a sum of 40,000, √40,000 · 2^-24 = 1.2e-5 (its
// roundings have random signs) where the result is 11. Those of float64 are 2^29 times smaller.
describe.each([
  { device: 'cpu', dtype: 'float32', bound: 1e-5 },
  { device: 'reference', dtype: 'float64', bound: 1e-12 },
] as const)('on $device in $dtype', ({ bound, ...place }) => {
  const make = (values: number[], shape: number[]) => tensor(values, shape, place) as Tensor<'float32'>
  const numbers = (count: number, salt: number) => Array.from({ length: count }, (_, i) => Math.sin(7 * i + salt))

  it('log-softmax matches its formula over more rows than one chunk of logits', async () => {
    const [t, n, d, v] = [2, 90, 3, 40_000]
    const hidden = numbers(t * n * d, 1)
    const head = numbers(v * d, 2)
    const ids = Array.from({ length: n }, (_, i) => (i * 997) % v)
    const targets = tensor(Int32Array.from(ids), [n], { dtype: 'int32', device: place.device })
    const out = await kernels.perLoopLogSoftmax(make(hidden, [t, n, d]), make(head, [v, d]), targets, { temperature: 0.5 })
    const [logprobs, entropy] = [await out.logprobs.toArray(), await out.entropy.toArray()]
    for (const row of [0, 77, 100, 179]) {
      const logits = Array.from(
        { length: v },
        (_, k) => [0, 1, 2].reduce((s, j) => s + hidden[row * d + j]! * head[k * d + j]!, 0) / 0.5,
      )
      const z = Math.log(logits.reduce((s, x) => s + Math.exp(x), 0))
      expectClose([logprobs[row]!], [logits[ids[row % n]!]! - z], bound)
      expectClose([entropy[row]!], [-logits.reduce((s, x) => s + Math.exp(x - z) * (x - z), 0)], bound)
    }
  })

  it.each(['reinforce', 'ppo', 'cispo'] as const)(
    'loss, coefficients and statistics of %s follow their formulas',
    async (surrogate) => {
      const [t, n] = [3, 7]
      const logprobs = numbers(t * n, 1).map((x) => x - 2)
      const inputs = {
        weights: make(numbers(t * n, 2).map(Math.abs), [t, n]),
        advantages: make(numbers(n, 3), [n]),
        oldLogprobs: make(
          numbers(t * n, 4).map((x) => x / 2 - 2),
          [t, n],
        ),
        mask: make([0.1, 0.1, 0, 0.2, 0.2, 0, 0.3], [n]),
        objective: { surrogate, epsilonLow: 0.2, epsilonHigh: 0.3, dualClip: 2, cap: 1.2 },
      }
      const { loss, coefficients, statistics } = await kernels.policyGradientReduction(make(logprobs, [t, n]), inputs)
      const [w, a, old, m] = [
        await inputs.weights.toArray(),
        await inputs.advantages.toArray(),
        await inputs.oldLogprobs.toArray(),
        await inputs.mask.toArray(),
      ]
      let wantLoss = 0
      const want = logprobs.map((l, i) => {
        const [scale, advantage, r] = [w[i]! * m[i % n]!, a[i % n]!, Math.exp(l - old[i]!)]
        if (surrogate === 'reinforce') {
          wantLoss -= scale * advantage * l
          return -scale * advantage
        }
        if (surrogate === 'cispo') {
          wantLoss -= scale * advantage * Math.min(r, 1.2) * l
          return -scale * advantage * Math.min(r, 1.2)
        }
        wantLoss -= scale * advantage * (advantage >= 0 ? Math.min(r, 1.3) : Math.min(Math.max(r, 0.8), 2))
        return (advantage >= 0 ? r < 1.3 : r > 0.8 && r < 2) ? -scale * advantage * r : 0
      })
      expectClose([loss], [wantLoss], bound)
      expectClose(await coefficients.toArray(), want, bound)
      const rows = logprobs.map((l, i) => ({ r: Math.exp(l - old[i]!), gain: a[i % n]! >= 0 })).filter((_, i) => m[i % n] !== 0)
      const share = (counts: (row: (typeof rows)[number]) => boolean) => rows.filter(counts).length / (t * 5)
      const [low, high] = {
        reinforce: [0, 0],
        ppo: [share(({ r, gain }) => !gain && r <= 0.8), share(({ r, gain }) => r >= (gain ? 1.3 : 2))],
        cispo: [0, share(({ r }) => r > 1.2)],
      }[surrogate] as [number, number]
      if (surrogate === 'ppo') expect(low * high).toBeGreaterThan(0)
      expect(statistics).toEqual({ rows: t * 5, ratio: expect.any(Number), clipLow: low, clipHigh: high })
      const ratio = surrogate === 'reinforce' ? 1 : rows.reduce((sum, { r }) => sum + r, 0) / rows.length
      expectClose([statistics.ratio], [ratio], bound)
    },
  )
})

describe('errors', () => {
  it('name the kernel, the input and the shapes', async () => {
    using model = await LoopLM.create(config)
    const { hidden, head, block } = await weightsOf(model, { device: 'cpu', dtype: 'float32' })
    const swapped = { ...block, layers: [{ ...block.layers[0]!, downProj: block.layers[0]!.upProj }] }
    const error = await refusal(() => kernels.loopedBlockForward(hidden, swapped, { loops: 1 }))
    expect(error.code).toBe('INVALID_SHAPE')
    expect(error.message).toMatch(/kernels\.loopedBlockForward: downProj must have shape \[16, 24\], got \[24, 16\]/)
    expect((await refusal(() => kernels.loopedBlockForward(hidden, block, { loops: 1, offsets: [0, 5] }))).message).toMatch(
      /offsets.*0 to the 8 rows/,
    )
    expect(
      (await refusal(() => kernels.loopedBlockForward(hidden, { ...block, numAttentionHeads: 3 }, { loops: 1 }))).message,
    ).toMatch(/qProj/)

    const states = zeros([1, 2, D])
    const targets = tensor(new Int32Array([0, V]))
    expect((await refusal(() => kernels.perLoopLogSoftmax(states, head, targets))).message).toMatch(
      /index 13 \(entry 1\) is outside \[0, 13\)/,
    )
    expect((await refusal(() => kernels.perLoopLogSoftmax(states, zeros([V, 8]), targets))).message).toMatch(
      /headWeight.*\[13, 8\]/,
    )

    const whole = { dtype: 'int32' } as const
    const error32 = await refusal(() =>
      kernels.perLoopLogSoftmax(zeros([1, 2, D], whole) as never, zeros([V, D], whole) as never, targets),
    )
    expect(error32.message).toMatch(/hidden must be a floating-point tensor, got int32/)

    const logprobs = zeros([2, 3])
    const row = zeros([3])
    const inputs = { weights: logprobs, advantages: row, mask: row }
    expect((await refusal(() => kernels.policyGradientReduction(logprobs, { ...inputs, mask: zeros([2]) }))).message).toMatch(
      /mask.*\[3\], got \[2\]/,
    )
    const ppo = { ...inputs, objective: { surrogate: 'ppo' as const } }
    expect((await refusal(() => kernels.policyGradientReduction(logprobs, ppo))).message).toMatch(/needs oldLogprobs/)
  })

  it('name arguments that are unknown, missing or of another type', async () => {
    using model = await LoopLM.create(config)
    const { hidden, head, block } = await weightsOf(model, { device: 'cpu', dtype: 'float32' })
    const { loopedBlockForward, perLoopLogSoftmax, policyGradientReduction } = kernels
    const [states, targets, row] = [zeros([1, 3, D]), tensor(new Int32Array(3)), zeros([3])]
    const logprobs = zeros([2, 3])
    const inputs = { weights: logprobs, advantages: row, mask: row }
    const given = (value: unknown) => value as never
    const layers = (fields: object) => given({ ...block, layers: [{ ...block.layers[0], ...fields }] })
    const once = { loops: 1 }
    for (const [run, message] of [
      [() => loopedBlockForward(given([1]), block, once), /hidden must be a Tensor.*got Array of length 1/],
      [() => loopedBlockForward(hidden, given({}), once), /blockWeights\.layers must be an array of at least one.*got undefined/],
      [() => loopedBlockForward(hidden, given(null), once), /blockWeights must be an object.*got null/],
      [
        () => loopedBlockForward(hidden, given({ ...block, norms: 1 }), once),
        /blockWeights\.norms: .*did you mean blockWeights\.norm/,
      ],
      [() => loopedBlockForward(hidden, given({ ...block, norm: undefined }), once), /blockWeights\.norm must be a Tensor/],
      [() => loopedBlockForward(hidden, layers({ qProj: 1 }), once), /blockWeights\.layers\[0\]\.qProj must be a Tensor.*got 1/],
      [() => loopedBlockForward(hidden, layers({ qproj: 1 }), once), /layers\[0\]\.qproj: .*did you mean .*layers\[0\]\.qProj/],
      [() => loopedBlockForward(hidden, block, given(undefined)), /options must be an object with fields such as loops/],
      [() => loopedBlockForward(hidden, block, given({ loops: 1, eps: 1 })), /eps: unknown option/],
      [
        () => loopedBlockForward(hidden, block, { loops: 1, offsets: given(8) }),
        /offsets must be number\[\] or Int32Array, got 8/,
      ],
      [() => perLoopLogSoftmax(states, head, targets, given(null)), /perLoopLogSoftmax: options must be an object.*got null/],
      [() => perLoopLogSoftmax(states, head, targets, given({ temp: 1 })), /temp: unknown option/],
      [() => perLoopLogSoftmax(states, head, given([0, 1, 2])), /targets must be a Tensor.*got Array of length 3/],
      [() => policyGradientReduction(logprobs, given(undefined)), /inputs must be an object.*got undefined/],
      [() => policyGradientReduction(logprobs, given({ ...inputs, mask: [1] })), /mask must be a Tensor.*got Array of length 1/],
      [() => policyGradientReduction(logprobs, given({ ...inputs, oldLogprob: row })), /did you mean inputs\.oldLogprobs/],
      [
        () => policyGradientReduction(logprobs, given({ ...inputs, objective: { epsilon: 0.2 } })),
        /objective\.epsilon: unknown option; the options are surrogate, epsilonLow/,
      ],
    ] as const) {
      const error = await refusal(run)
      expect(error.code, String(run)).toBe('INVALID_ARGUMENT')
      expect(error.message).toMatch(message)
    }
  })
})
