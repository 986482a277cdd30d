// Generation of every family: the oracle's greedy tokens, scores of the whole, exit rules against plain TypeScript, batches, drafts.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { type DeviceName, type ExitRule, type GenerateOptions, LoopLM } from '../../src/index.js'
import { buildEmulated, triedOn } from '../emulated.js'
import { readGolden } from '../golden-files.js'
import { FamilyDecoder, type Seen } from '../looped-family.js'
import { refusal } from '../refusal.js'

const root = process.env.LOOPLM_FAMILY_FIXTURES ?? join(import.meta.dirname, '../fixtures', 'families')
const cases = readdirSync(root)
const folderOf = (name: string) => join(root, name)
const notesOf = (name: string): { loops: number; greedy_prompt: number; prefix_mask: boolean } =>
  JSON.parse(readFileSync(join(folderOf(name), 'golden.json'), 'utf8'))
const begins = (name: string) => readdirSync(folderOf(name)).includes('initial_state.safetensors')
const targets = [
  { device: 'reference', dtype: 'float64' },
  { device: 'cpu', dtype: 'float32' },
  { device: 'cuda-emulated' as DeviceName, dtype: 'float32' }, // the CUDA kernels without a GPU
] as const
beforeAll(buildEmulated, 900_000)

/** [positions × D] of the sequence that the oracle continues. */
function greedyStates(name: string): Float32Array {
  const bytes = readFileSync(join(folderOf(name), 'initial_state.safetensors'))
  const header = Number(bytes.readBigUInt64LE(0))
  const [begin, end] = JSON.parse(bytes.subarray(8, 8 + header).toString()).greedy_initial_state.data_offsets
  return new Float32Array(new Uint8Array(bytes.subarray(8 + header + begin, 8 + header + end)).buffer)
}

describe.each(targets)('on $device in $dtype', ({ device, dtype }) => {
  it.each(triedOn(device, cases))('%s generates the tokens of the oracle at every loop count', async (name) => {
    using model = await LoopLM.fromPretrained(folderOf(name), { device, dtype })
    const { loops: T, greedy_prompt: length } = notesOf(name)
    const { shape, data } = readGolden(folderOf(name)).get('greedy')!
    const width = shape[1]!
    const prompt = Array.from(data.subarray(0, length))
    const states = begins(name) ? { initialStates: [greedyStates(name)] } : {}
    const want = (loops: number) => Array.from(data.subarray((loops - 1) * width + length, loops * width))
    for (let loops = 1; loops <= T; loops++) {
      const request: GenerateOptions = { maxNewTokens: width - length, temperature: 0, stop: [], loops, ...states }
      const [whole] = await model.generate([prompt], request)
      expect(whole!.tokens, `${loops} loops`).toEqual(want(loops))
      expect(whole!.loops).toEqual(whole!.tokens.map(() => loops))
      using scheduler = model.scheduler({ prefillTokens: 3, loops })
      const pieces = await scheduler.add(prompt, request).result()
      expect(pieces, 'the prompt in pieces').toEqual(whole)
    }
  })
})

const prompts = [[1, 2, 3], [4], [1, 2, 3], [5, 6, 7, 8, 9], [10, 11], [3, 3, 3, 3]]
const open: GenerateOptions = { maxNewTokens: 8, stop: [], seed: 3 }
const exits: ExitRule[] = [
  { rule: 'fixed' },
  { rule: 'hidden-delta', threshold: 0.5 },
  { rule: 'cosine', threshold: 0.2 },
  { rule: 'kl', threshold: 0.3 },
  { rule: 'kl-previous', threshold: 0.3 },
  { rule: 'entropy', threshold: 2.2 },
  { rule: 'entropy-change', threshold: 0.3 },
  { rule: 'argmax-stable' },
  { rule: 'argmax-stable', patience: 2 },
]
/** One loop more than the configuration's where the family is free: exits have more room. */
const loopsOf = (name: string) => (begins(name) ? 5 : notesOf(name).loops)

describe.each(cases)('%s', (name) => {
  /** The largest difference between scores of the new tokens. */
  const apart = (a: readonly ArrayLike<number>[], b: readonly ArrayLike<number>[]) =>
    Math.max(...a.flatMap((row, i) => Array.from(row, (x, j) => Math.abs(x - b[i]![j]!))))

  it.each([
    { device: 'reference', dtype: 'float64', bound: 1e-9 },
    { device: 'cpu', dtype: 'float32', bound: 1e-5 },
  ] as const)('samples with the log-probabilities that score computes, on $device', async ({ device, dtype, bound }) => {
    using model = await LoopLM.fromPretrained(folderOf(name), { device, dtype })
    using reference = await LoopLM.fromPretrained(folderOf(name), { device: 'reference' })
    for (const state of [{}, { stateSeed: 7 }, { initialState: 'zeros' }] as const)
      for (const loops of [1, loopsOf(name)]) {
        const results = await model.generate(prompts, { ...open, ...state, loops, temperature: 0.8 })
        const whole = prompts.map((prompt, i) => [...prompt, ...results[i]!.tokens])
        const promptLengths = prompts.map(({ length }) => length)
        const scored = async (of: LoopLM) => {
          const options = { ...state, promptLengths, loops, lastLoop: true, temperature: 0.8 }
          return (await of.score(whole, options)).logprobs.map((row, i) => Array.from(row).slice(promptLengths[i]! - 1))
        }
        const scores = await scored(model)
        // Loops multiply roundings: each of the two is as far from float64 as this.
        const rounding = device === 'reference' ? 0 : apart(scores, await scored(reference))
        const generated = results.map(({ logprobs }) => logprobs)
        expect(apart(generated, scores), `${loops} loops`).toBeLessThan(Math.max(bound, 2 * rounding))
      }
  })

  it('exits by every rule at the same loops as plain TypeScript', async () => {
    using model = await LoopLM.fromPretrained(folderOf(name), { device: 'reference' })
    const decoder = await FamilyDecoder.of(model)
    const loops = loopsOf(name)
    let varied = 0
    const states = (length: number) =>
      Float64Array.from({ length: length * model.architecture.hidden }, (_, i) => 0.4 * Math.sin(7 * i + length))
    for (const exit of exits) {
      const seen = new Set<number>()
      for (const prompt of prompts) {
        const given = states(prompt.length + 8)
        const D = model.architecture.hidden
        const want = decoder.greedy(
          prompt,
          8,
          loops,
          (position) => Array.from(given.subarray(position * D, (position + 1) * D)),
          leaves(exit),
        )
        const initial = begins(name) ? { initialStates: [given] } : {}
        const [got] = await model.generate([prompt], { ...open, ...initial, temperature: 0, loops, exit })
        expect({ tokens: got!.tokens, loops: got!.loops }, `${exit.rule}, ${prompt}`).toEqual({
          tokens: want.tokens,
          loops: want.loops,
        })
        for (const [j, logprob] of got!.logprobs.entries()) expect(logprob).toBeCloseTo(want.logprobs[j]!, 9)
        for (const loop of want.loops) seen.add(loop)
      }
      if (seen.size > 1) varied++
    }
    if (loops > 3) expect(varied, 'rules that told tokens apart').toBeGreaterThan(6)
  })

  it('exits by an added gate at the loop that score predicts', async () => {
    using model = await LoopLM.fromPretrained(folderOf(name), { device: 'reference', exitGate: true })
    const weight = Float64Array.from({ length: model.architecture.hidden }, (_, i) => Math.sin(5 * i + 1))
    await model.setParameter('model.early_exit_gate.weight', weight)
    const loops = loopsOf(name)
    const seen = new Set<number>()
    for (let token = 0; token < 30; token++) {
      const [pdf] = (await model.score([[token, 0]], { loops, promptLengths: [1] })).exitPdf
      let [sum, want] = [pdf![0]!, 1]
      while (want < loops && sum < 0.6) sum += pdf![2 * want++]!
      const exit = { rule: 'gate', threshold: 0.6 } as const
      const [got] = await model.generate([[token]], { ...open, maxNewTokens: 1, loops, exit })
      expect(got!.loops, `${token}`).toEqual([want])
      seen.add(want)
    }
    expect(seen.size).toBeGreaterThan(1)
  })

  it('gives a request the same bits alone and in a batch', async () => {
    using model = await LoopLM.fromPretrained(folderOf(name), { device: 'cpu', dtype: 'float32' })
    const loops = loopsOf(name)
    const kinds: GenerateOptions[] = [
      { exit: exits[1]! },
      { exit: exits[4]!, temperature: 0.7, topK: 5 },
      { topP: 0.8, seed: 9, stateSeed: 2 },
      { maxNewTokens: 3, exit: exits[6]!, logprobs: 3 },
      { temperature: 0, loops: 1 },
      loops > 1 ? { exit: { rule: 'fixed' }, speculate: { loops: 1, tokens: 3 } } : {},
    ]
    const options = (i: number) => ({ ...open, loops, ...kinds[i] })
    using scheduler = model.scheduler({ maxRows: 4, prefillTokens: 2, loops })
    const together = await Promise.all(prompts.map((prompt, i) => scheduler.add(prompt, options(i)).result()))
    for (const [i, prompt] of prompts.entries())
      expect(together[i], `${i}`).toEqual((await model.generate([prompt], options(i)))[0])
    expect(scheduler.stats()).toMatchObject({ rows: 0, waiting: 0, cachedTokens: 0 })
  })

  it('gives the tokens of plain decoding with speculation', async () => {
    using model = await LoopLM.fromPretrained(folderOf(name), { device: 'cpu', dtype: 'float32' })
    const loops = loopsOf(name)
    for (const temperature of [0, 0.8]) {
      const settings = { ...open, maxNewTokens: 13, temperature, loops, exit: { rule: 'fixed' as const } }
      const plain = await model.generate(prompts, settings)
      for (const speculate of [
        { loops: 1, tokens: 2 },
        { loops: loops - 1, tokens: 5 },
      ])
        expect(await model.generate(prompts, { ...settings, speculate })).toEqual(plain)
    }
  })
})

/** The rule by its formula. */
function leaves(exit: ExitRule): (seen: Seen) => boolean {
  const norm = (x: number[]) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0))
  const entropy = (p: number[]) => -p.reduce((sum, v) => sum + v * Math.log(v), 0)
  const divergence = (p: number[], q: number[]) => p.reduce((sum, v, i) => sum + v * Math.log(v / q[i]!), 0)
  const argmax = (p: number[]) => p.indexOf(Math.max(...p))
  const { rule, threshold = 0, patience = 1 } = exit as { rule: ExitRule['rule']; threshold?: number; patience?: number }
  let agreements = 0
  return ({ loop, h, previousH, p, previousP }) => {
    switch (rule) {
      case 'hidden-delta':
        return loop > 1 && norm(h.map((v, i) => v - previousH[i]!)) <= threshold * norm(h)
      case 'cosine':
        return loop > 1 && 1 - h.reduce((sum, v, i) => sum + v * previousH[i]!, 0) / (norm(h) * norm(previousH)) <= threshold
      case 'kl':
        return loop > 1 && divergence(p, previousP) <= threshold
      case 'kl-previous':
        return divergence(previousP, p) <= threshold
      case 'entropy':
        return entropy(p) <= threshold
      case 'entropy-change':
        return loop > 1 && Math.abs(entropy(p) - entropy(previousP)) <= threshold
      case 'argmax-stable':
        agreements = loop > 1 && argmax(p) === argmax(previousP) ? agreements + 1 : 0
        return agreements >= patience
      default:
        return false
    }
  }
}

describe('options that a family does not support', () => {
  const load = (name: string) => LoopLM.fromPretrained(folderOf(name), { device: 'cpu', dtype: 'float32' })
  it.each(['nanbeige', 'hrm_text'])('are rejected by name: more loops than %s has', async (name) => {
    using model = await load(name)
    const loops = notesOf(name).loops + 1
    const sequences = [[1, 2, 3]]
    for (const run of [
      () => model.score(sequences, { loops }),
      () => model.embed(sequences, { loops }),
      () => model.responseMeans(sequences, { loops }),
    ])
      expect((await refusal(run)).message).toMatch(/loops: models of family \w+ have 2, got 3: .*at most 2/)
    const error = await refusal(() => model.generate([[1, 2]], { loops }))
    expect(error.message).toMatch(/loops: models of family \w+ have 2, got 3: .*at most 2/)
  })
  it.each(['nanbeige', 'huginn', 'hrm_text'])('are rejected by name: a shared cache of %s without force', async (name) => {
    using model = await load(name)
    const error = await refusal(() => model.generate([[1, 2]], { kv: 'shared' }))
    expect(error.code).toBe('UNSUPPORTED')
    expect(error.message).toMatch(/kv 'shared'.*family \w+.*kv 'per-loop'.*force/)
    const forced = await model.generate([[1, 2, 3, 4]], { ...open, kv: { planes: 'shared', force: true } })
    expect(forced[0]!.tokens).toHaveLength(8)
    using scheduler = model.scheduler({ kv: { planes: 'shared', force: true }, prefillTokens: 2 })
    expect(await scheduler.add([1, 2, 3, 4], open).result(), 'the prompt in pieces').toEqual(forced[0])
  })
  it('are rejected by name: initial states of a wrong shape or for a family without them', async () => {
    using huginn = await load('huginn')
    const error = await refusal(() => huginn.generate([[1, 2]], { maxNewTokens: 3, initialStates: [new Float32Array(7)] }))
    expect(error.message).toMatch(/initialStates\[0\].*\(prompt \+ maxNewTokens\) × 16 = 80/)
    using nanbeige = await load('nanbeige')
    expect((await refusal(() => nanbeige.generate([[1]], { initialStates: [[1]] }))).message).toMatch(/start from the tokens/)
  })
})

describe('quantized and adapted models', () => {
  /** Sizes that groups of 32 divide. */
  const wide = (name: string) => {
    const config = JSON.parse(readFileSync(join(folderOf(name), 'config.json'), 'utf8'))
    const sizes = { hidden_size: 32, head_dim: 16, intermediate_size: 64, initializer_range: 0.3 }
    const raven = { n_embd: 32, init_values: { std: 0.3, embed_scale: 2 } }
    const layout = { huginn: 'huginn', retrofit_llama: 'llama', retrofit_olmo2: 'olmo2' }[name]
    return { ...config, ...sizes, ...(layout === undefined ? {} : { ...raven, looplm_layout: layout }) }
  }
  it.each(cases)('generate with the log-probabilities of score: %s', async (name) => {
    const place = { device: 'cpu', dtype: 'float32' } as const
    const int8 = { quantize: 'int8', groupSize: 32, seed: 3 } as const
    using quantized = await LoopLM.create(wide(name), { ...place, ...int8, activations: 'float' })
    // Activations in 8 bits round: where float32 differs in its last bit, a code may differ by one. Float64 shows the arithmetic.
    using rounded = await LoopLM.create(wide(name), { ...int8, device: 'reference', activations: 'int8' })
    using adapted = await LoopLM.fromPretrained(folderOf(name), place)
    await adapted.addAdapter({ rank: 2, seed: 1 })
    for (const { name: parameter, shape } of adapted.adapter!.parameters)
      await adapted.setParameter(
        parameter,
        Float32Array.from({ length: shape[0]! * shape[1]! }, (_, i) => 0.2 * Math.sin(3 * i)),
      )
    for (const [model, bound] of [
      [quantized, 1e-4],
      [rounded, 1e-9],
      [adapted, 1e-4],
    ] as const) {
      const results = await model.generate(prompts, open)
      const whole = prompts.map((prompt, i) => [...prompt, ...results[i]!.tokens])
      const promptLengths = prompts.map(({ length }) => length)
      const { logprobs } = await model.score(whole, { promptLengths, lastLoop: true })
      for (const [i, result] of results.entries())
        for (const [j, logprob] of result.logprobs.entries())
          expect(Math.abs(logprob - logprobs[i]![prompts[i]!.length - 1 + j]!), `${i}, ${j}`).toBeLessThan(bound)
    }
  })
})
