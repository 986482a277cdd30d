import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { AdamW, LoopLM, type LoopLMConfigInput, memory, Tokenizer } from '../../src/index.js'
import { heldBytes } from '../garbage.js'
import { refusal } from '../refusal.js'
import { asBF16, asF16, asF32, readTensors, type Stored, writeTensors } from '../stored-tensors.js'

const small: LoopLMConfigInput = {
  vocab_size: 29,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  total_ut_steps: 3,
  initializer_range: 0.3,
}
const sequences = [
  [1, 2, 3, 4, 5, 6, 7],
  [8, 9, 10],
  [11, 12, 13, 14, 28, 0],
]
const places = [
  { device: 'cpu', dtype: 'float32' },
  { device: 'cpu', dtype: 'bfloat16' },
  { device: 'reference', dtype: 'float64' },
] as const

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'looplm-model-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

describe.each(places)('a model on $device in $dtype', (place) => {
  it('scores T × (len-1) log-probabilities and T × len exit probabilities per sequence', async () => {
    using model = await LoopLM.create(small, place)
    const s = await model.score(sequences)
    expect(s.loops).toBe(3)
    const array = place.device === 'reference' ? Float64Array : Float32Array
    for (const [i, { length }] of sequences.entries()) {
      expect(s.logprobs[i]).toBeInstanceOf(array)
      expect(s.logprobs[i]!.length).toBe(3 * (length - 1))
      expect(s.entropy[i]!.length).toBe(3 * (length - 1))
      expect(s.gateLogits[i]!.length).toBe(3 * length)
      for (let j = 0; j < length; j++) {
        const total = [0, 1, 2].reduce((sum, t) => sum + s.exitPdf[i]![t * length + j]!, 0)
        expect(total).toBeCloseTo(1, 5) // 84 roundings of float32, for three probabilities and their sum
      }
      for (const l of s.logprobs[i]!) expect(l).toBeLessThan(0)
    }
  })

  it('gives a sequence the same bits alone and in a batch', async () => {
    using model = await LoopLM.create(small, place)
    const batch = await model.score(sequences)
    for (const [i, sequence] of sequences.entries()) {
      const alone = await model.score([sequence])
      expect(alone.logprobs[0]).toEqual(batch.logprobs[i])
      expect(alone.exitPdf[0]).toEqual(batch.exitPdf[i])
    }
  })

  it('survives save and load bit for bit', async () => {
    using model = await LoopLM.create({ ...small, eos_token_id: [0, 3] }, { ...place, seed: 5 })
    const path = join(folder, `roundtrip-${place.dtype}`)
    await model.save(path)
    using loaded = await LoopLM.fromPretrained(path, place)
    expect(await loaded.score(sequences)).toEqual(await model.score(sequences))
    expect(loaded.config).toMatchObject(model.config)
    expect(loaded.endTokens).toEqual([0, 3])
  })

  it('lowers its loss by an optimizer step, which zeroes the gradients', async () => {
    using model = await LoopLM.create(small, place)
    using optimizer = new AdamW(model, { learningRate: 1e-2 })
    const loss = async () => {
      const { logprobs } = await model.score(sequences)
      return -logprobs.reduce((sum, row) => sum + Array.from(row).reduce((a, b) => a + b), 0)
    }
    const before = await loss()
    const { logprobs } = await model.score(sequences)
    await model.backward(logprobs.map((row) => row.map(() => -1)))
    const { gradNorm } = await optimizer.step()
    expect(gradNorm).toBeGreaterThan(0)
    expect(optimizer.steps).toBe(1)
    expect(await loss()).toBeLessThan(before)
    for (const gradient of (await model.gradients()).values()) expect(gradient.every((g) => g === 0)).toBe(true)
  })
})

describe('gradients', () => {
  it('agree with central differences of the scores in float64', async () => {
    using model = await LoopLM.create(small, { device: 'reference' })
    const weight = (i: number, k: number) => Math.sin(3 * i + k + 1)
    const loss = async () => {
      const s = await model.score(sequences, { temperature: 0.8 })
      const of = (rows: ArrayLike<number>[], phase: number) =>
        rows.reduce((sum, row, i) => sum + Array.from(row).reduce((a, x, k) => a + weight(i + phase, k) * x, 0), 0)
      return of(s.logprobs, 0) + of(s.gateLogits, 7)
    }
    const s = await model.score(sequences, { temperature: 0.8 })
    const coefficients = s.logprobs.map((row, i) => row.map((_, k) => weight(i, k)))
    const gateCoefficients = s.gateLogits.map((row, i) => row.map((_, k) => weight(i + 7, k)))
    await model.backward(sequences, coefficients, { gateCoefficients, temperature: 0.8 })
    for (const { name } of model.parameters()) {
      const gradient = await model.gradient(name)
      const at = Math.floor(gradient.length / 2)
      const values = await model.getParameter(name)
      const shifted = async (step: number) => {
        await model.setParameter(
          name,
          values.map((v, i) => (i === at ? v + step : v)),
        )
        return loss()
      }
      const difference = ((await shifted(1e-5)) - (await shifted(-1e-5))) / 2e-5
      await model.setParameter(name, values)
      expect(Math.abs(gradient[at]! - difference), name).toBeLessThan(1e-6 * Math.max(1, Math.abs(difference)))
    }
  })

  it('belong to their scores, even if other sequences were scored since', async () => {
    using model = await LoopLM.create(small, { device: 'reference' })
    const ones = (rows: readonly ArrayLike<number>[]) => rows.map((row) => Array.from(row, () => -1))
    const [first, second] = await Promise.all([
      model.score(sequences, { temperature: 0.8, loops: 2 }),
      model.score([[1, 2, 3]], { temperature: 2 }),
    ])
    const error = await refusal(() => model.backward(ones(second.logprobs)))
    expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(error.message).toMatch(/several calls of score .* scored\.backward\(coefficients\)/)
    await first.backward(ones(first.logprobs))
    const gradients = await model.gradients()
    await model.zeroGradients()
    await model.backward(sequences, ones(first.logprobs), { temperature: 0.8, loops: 2 })
    expect(await model.gradients()).toEqual(gradients)
    await model.zeroGradients()
    await second.backward(ones(second.logprobs))
    expect(await model.gradients()).not.toEqual(gradients)
    await model.score(sequences) // alone: the short form is clear again
    await model.backward(sequences.map((row) => Array(3 * (row.length - 1)).fill(-1)))
    const wrong = await refusal(() => first.backward(ones(second.logprobs)))
    expect(wrong).toMatchObject({ code: 'INVALID_SHAPE', operation: 'Scores.backward' })
    model.dispose()
    expect(await refusal(() => first.backward(ones(first.logprobs)))).toMatchObject({ code: 'DISPOSED' })
  })

  it('accumulate until they are zeroed, and have every parameter by name', async () => {
    using model = await LoopLM.create(small)
    const { logprobs } = await model.score(sequences)
    const coefficients = logprobs.map((row) => row.map(() => 0.5))
    await model.backward(coefficients)
    const once = await model.gradients()
    await model.backward(coefficients)
    const twice = await model.gradients()
    expect([...once.keys()]).toEqual(model.parameters().map(({ name }) => name))
    const name = 'model.layers.1.mlp.down_proj.weight'
    for (const [i, g] of once.get(name)!.entries()) expect(twice.get(name)![i]).toBeCloseTo(2 * g, 5)
    await model.zeroGradients()
    expect((await model.gradient(name)).every((g) => g === 0)).toBe(true)
  })

  it.each(['loop', 'layer'] as const)('do not depend on recompute: %s', async (recompute) => {
    using model = await LoopLM.create(small)
    const { logprobs } = await model.score(sequences)
    const coefficients = logprobs.map((row) => row.map(() => -1))
    await model.backward(sequences, coefficients)
    const kept = await model.gradients()
    await model.zeroGradients()
    await model.backward(sequences, coefficients, { recompute })
    expect(await model.gradients()).toEqual(kept)
  })
})

describe('the loss core', () => {
  const advantages = [1, -0.5, 2]
  const lengthNormalizers = [0.1, 0.2, 0.3]
  const batch = { sequences, promptLengths: [2, 1, 3], terms: [{ advantages, lengthNormalizers }], lengthNormalizers }
  const last = { kind: 'one-hot' } as const

  it('computes REINFORCE on the last loop by its definition', async () => {
    using model = await LoopLM.create(small, { device: 'reference' })
    const { logprobs } = await model.score(sequences)
    const metrics = await model.accumulateLoss(batch, { terms: [{ weights: last }] })
    let want = 0
    for (const [i, { length }] of sequences.entries())
      for (let j = batch.promptLengths[i]! - 1; j < length - 1; j++)
        want -= lengthNormalizers[i]! * advantages[i]! * logprobs[i]![2 * (length - 1) + j]!
    expect(metrics.loss).toBeCloseTo(want, 10)
    expect(metrics.responseTokens).toBe(5 + 2 + 3)
    expect(metrics.loopExit.reduce((a, b) => a + b)).toBeCloseTo(1, 10)
    expect(metrics.loopWeight).toHaveLength(3)
  })

  it('gives the same gradients as score and backward with the same coefficients', async () => {
    using model = await LoopLM.create(small, { device: 'reference' })
    await model.accumulateLoss(batch, { terms: [{ weights: { kind: 'uniform' } }] })
    const wanted = await model.gradients()
    await model.zeroGradients()
    const { logprobs } = await model.score(sequences)
    const coefficients = logprobs.map((row, i) => {
      const width = sequences[i]!.length - 1
      return row.map((_, k) => (k % width < batch.promptLengths[i]! - 1 ? 0 : (-lengthNormalizers[i]! * advantages[i]!) / 3))
    })
    await model.backward(coefficients)
    for (const [name, gradient] of await model.gradients())
      for (const [k, g] of gradient.entries()) expect(g).toBeCloseTo(wanted.get(name)![k]!, 10)
  })

  it('accepts reference and old log-probabilities of the last loop or of all loops', async () => {
    using model = await LoopLM.create(small, { device: 'reference' })
    const { logprobs } = await model.score(sequences)
    const ofLast = logprobs.map((row, i) => row.slice(2 * (sequences[i]!.length - 1)))
    const ppo = { terms: [{ weights: last, surrogate: 'ppo' }], beta: 0.1 } as const
    const one = await model.accumulateLoss({ ...batch, oldLogprobs: ofLast, referenceLogprobs: ofLast }, ppo)
    const all = await model.accumulateLoss({ ...batch, oldLogprobs: logprobs, referenceLogprobs: logprobs }, ppo)
    expect(one.ratio).toBeCloseTo(1, 10)
    expect(one.kl).toBeCloseTo(0, 10)
    expect(all.loss).toBeCloseTo(one.loss, 12)
    const error = await refusal(() => model.accumulateLoss({ ...batch, oldLogprobs: logprobs.slice(1) }, ppo))
    expect(error.code).toBe('INVALID_SHAPE')
    expect(
      (
        await refusal(() =>
          model.accumulateLoss({ ...batch, terms: [{ advantages: [Number.NaN, 1, 1], lengthNormalizers }] }, ppo),
        )
      ).code,
    ).toBe('NON_FINITE')
  })
})

describe('scores', () => {
  it('for fewer loops equal the first loops of a deeper run', async () => {
    using model = await LoopLM.create(small)
    const all = await model.score(sequences)
    const two = await model.score(sequences, { loops: 2 })
    const six = await model.score(sequences, { loops: 6 })
    for (const [i, row] of two.logprobs.entries()) {
      expect(row).toEqual(all.logprobs[i]!.slice(0, row.length))
      expect(six.logprobs[i]!.slice(0, all.logprobs[i]!.length)).toEqual(all.logprobs[i])
    }
    expect(six.loops).toBe(6)
  })

  it('with lastLoop are the last row, and 0 inside the prompt', async () => {
    using model = await LoopLM.create(small)
    const all = await model.score(sequences)
    const last = await model.score(sequences, { lastLoop: true, promptLengths: [3, 2, 4] })
    for (const [i, { length }] of sequences.entries()) {
      const want = all.logprobs[i]!.slice(2 * (length - 1)).map((l, j) => (j < [3, 2, 4][i]! - 1 ? 0 : l))
      expect(last.logprobs[i]).toEqual(want)
    }
  })

  it.each(places)('name the most probable tokens of every prediction on $device in $dtype', async (place) => {
    using model = await LoopLM.create(small, place)
    const temperature = 0.7
    const { logprobs, topLogprobs } = await model.score(sequences, { topLogprobs: 5, temperature })
    const plain = await model.score(sequences, { predictions: true, temperature })
    expect(logprobs).toEqual(plain.logprobs)
    // A logit is a product of a row of the head with a normed state, whose length is sqrt(hidden_size); 1.01 is for its rounding.
    const head = await model.getParameter('lm_head.weight')
    const rows = Array.from({ length: 29 }, (_, v) => Math.hypot(...head.subarray(v * 16, (v + 1) * 16)))
    const logit = (1.01 * 4 * Math.max(...rows)) / temperature
    const eps = place.dtype === 'float64' ? 2 ** -52 : 2 ** -23 // of the dtype of logits
    for (const [i, sequence] of sequences.entries()) {
      const width = sequence.length - 1
      expect(topLogprobs![i]).toHaveLength(width)
      for (const [j, list] of topLogprobs![i]!.entries()) {
        expect(list).toHaveLength(5)
        const others = list.map(({ token }) => [...sequence.slice(0, j + 1), token])
        const direct = (await model.score(others, { temperature })).logprobs.map((row) => row.at(-1)!)
        const own = logprobs[i]![2 * width + j]!
        for (const [k, { token, logprob }] of list.entries()) {
          // Both are logit - log-sum; each division, difference and sum rounds once, by half an eps of what it makes.
          expect(Math.abs(logprob - direct[k]!)).toBeLessThanOrEqual(eps * (2 * logit + Math.abs(own) + Math.abs(direct[k]!)))
          if (token === sequence[j + 1]) expect(logprob).toBe(own)
        }
        expect(list.map(({ logprob }) => logprob)).toEqual(list.map(({ logprob }) => logprob).sort((a, b) => b - a))
        expect(list[0]!.token).toBe(plain.predicted![i]![2 * width + j])
      }
    }
  })

  it('with all topLogprobs form a distribution, and are empty inside the prompt', async () => {
    using model = await LoopLM.create(small, { device: 'reference' })
    const options = { lastLoop: true, promptLengths: [3, 2, 4] }
    const { topLogprobs } = await model.score(sequences, { ...options, topLogprobs: 29 })
    const few = await model.score(sequences, { ...options, topLogprobs: 5 })
    for (const [i, lists] of topLogprobs!.entries()) {
      expect(lists).toHaveLength(sequences[i]!.length - 1)
      for (const [j, list] of lists.entries()) {
        if (j < [3, 2, 4][i]! - 1) expect(list).toEqual([])
        else expect(list.reduce((sum, { logprob }) => sum + Math.exp(logprob), 0)).toBeCloseTo(1, 12)
        expect(few.topLogprobs![i]![j], 'the first of all').toEqual(list.slice(0, 5))
      }
    }
    expect((await model.score(sequences)).topLogprobs).toBeUndefined()
  })

  it('do not depend on the number of threads', async () => {
    using one = await LoopLM.create(small, { threads: 1 })
    using two = await LoopLM.create(small, { threads: 2 })
    expect(await one.score(sequences)).toEqual(await two.score(sequences))
  })

  it('run in the order of the calls, before a later optimizer step', async () => {
    using model = await LoopLM.create(small)
    using optimizer = new AdamW(model, { learningRate: 0.1 })
    const want = await model.score(sequences)
    await model.backward(want.logprobs.map((row) => row.map(() => 1)))
    const [scores, , after] = await Promise.all([model.score(sequences), optimizer.step(), model.score(sequences)])
    expect(scores).toEqual(want)
    expect(after).not.toEqual(want)
  })
})

describe('parameters', () => {
  it('depend only on the seed, and clones have separate copies', async () => {
    using a = await LoopLM.create(small, { seed: 1 })
    using b = await LoopLM.create(small, { seed: 1 })
    using c = await LoopLM.create(small, { seed: 2 })
    const name = 'model.layers.0.self_attn.k_proj.weight'
    expect(await a.getParameter(name)).toEqual(await b.getParameter(name))
    expect(await a.getParameter(name)).not.toEqual(await c.getParameter(name))
    using copy = await a.clone()
    await a.setParameter(name, new Float32Array(8 * 16).fill(0.25))
    expect(await copy.getParameter(name)).toEqual(await b.getParameter(name))
    await copy.copyParametersFrom(a)
    expect((await copy.getParameter(name))[0]).toBe(0.25)
  })

  it('have the names and shapes of checkpoints, and sum to parameterCount', async () => {
    using model = await LoopLM.create(small)
    const parameters = new Map(model.parameters().map(({ name, shape }) => [name, shape]))
    expect(parameters.get('model.embed_tokens.weight')).toEqual([29, 16])
    expect(parameters.get('model.layers.1.self_attn.v_proj.weight')).toEqual([8, 16])
    expect(parameters.get('model.early_exit_gate.weight')).toEqual([1, 16])
    const total = [...parameters.values()].reduce((sum, shape) => sum + shape.reduce((a, b) => a * b), 0)
    expect(model.parameterCount).toBe(total)
    using tied = await LoopLM.create({ ...small, tie_word_embeddings: true })
    expect(tied.parameterCount).toBe(total - 29 * 16)
  })

  it('are rejected with an unknown name, a wrong size or a non-finite value', async () => {
    using model = await LoopLM.create(small)
    expect((await refusal(() => model.getParameter('lm_head'))).code).toBe('NOT_FOUND')
    expect((await refusal(() => model.setParameter('model.norm.weight', [1]))).message).toMatch(/\[16\] = 16/)
    expect((await refusal(() => model.setParameter('model.early_exit_gate.bias', [Number.NaN]))).code).toBe('NON_FINITE')
  })
})

describe('the optimizer', () => {
  it('resumed from its file takes the same steps bit for bit', async () => {
    const step = async (model: LoopLM, optimizer: AdamW) => {
      await model.score(sequences)
      await model.backward(sequences.map(({ length }) => new Float32Array(3 * (length - 1)).fill(-0.1)))
      return optimizer.step()
    }
    using model = await LoopLM.create(small)
    using optimizer = new AdamW(model, { weightDecay: 0.1, maxGradNorm: 1 })
    await step(model, optimizer)
    const path = join(folder, 'resume')
    await model.save(path)
    await optimizer.save(join(path, 'optimizer.safetensors'))
    const { gradNorm } = await step(model, optimizer)

    using resumed = await LoopLM.fromPretrained(path)
    using again = new AdamW(resumed, { weightDecay: 0.1, maxGradNorm: 1 })
    await again.load(join(path, 'optimizer.safetensors'))
    expect(again.steps).toBe(1)
    expect(await step(resumed, again)).toEqual({ gradNorm })
    expect(await resumed.score(sequences)).toEqual(await model.score(sequences))
  })

  it('rejects options that are not numbers in range, by name', async () => {
    using model = await LoopLM.create(small)
    expect((await refusal(() => new AdamW(model, { learningRate: Number.NaN }))).message).toMatch(/learningRate.*NaN/)
    expect((await refusal(() => new AdamW(model, { betas: [0.9, 1] }))).message).toMatch(/betas\[1\]/)
    using optimizer = new AdamW(model)
    expect((await refusal(() => optimizer.step({ weightDecay: -1 }))).message).toMatch(/weightDecay.*-1/)
    optimizer.dispose()
    expect((await refusal(() => optimizer.step())).code).toBe('DISPOSED')
  })
})

describe('arguments', () => {
  it('are rejected with their value and the allowed values if they are wrong', async () => {
    using model = await LoopLM.create(small)
    const score = (value: unknown, options = {}) => refusal(() => model.score(value as number[][], options))
    expect((await score([])).message).toMatch(/LoopLM\.score: sequences is empty/)
    expect((await score([[1]])).message).toMatch(/sequences\[0\] has 1 tokens; at least 2/)
    expect(
      (
        await score([
          [1, 2],
          [3, 29],
        ])
      ).message,
    ).toMatch(/sequences\[1\]\[1\] is 29.*0 to 28/)
    expect((await score([[1, -1]])).message).toMatch(/-1/)
    expect((await score([[1, 2.5]])).message).toMatch(/2\.5/)
    expect((await score('text')).code).toBe('INVALID_ARGUMENT')
    expect((await score(sequences, { temperature: 0 })).message).toMatch(
      /temperature must be a finite number of at least 0.000001, got 0/,
    )
    expect((await score(sequences, { temperature: Number.NaN })).message).toMatch(/NaN/)
    expect((await score(sequences, { loops: 0 })).message).toMatch(/loops must be an integer of at least 1 and at most 64/)
    expect((await score(sequences, { promptLengths: [1, 3, 1] })).message).toMatch(/promptLengths\[1\].*at most 2, got 3/)
    const rows = sequences.map(({ length }) => new Float32Array(length))
    expect((await refusal(() => model.backward(sequences, rows))).message).toMatch(
      /coefficients\[0\].*loops × \(length - 1\) = 18/,
    )
    using fresh = await LoopLM.create(small)
    expect((await refusal(() => fresh.backward(rows))).message).toMatch(/call score first/)
  })

  it('are rejected with the expected and the given type if the type is wrong', async () => {
    using model = await LoopLM.create(small)
    const rows = sequences.map(({ length }) => new Float32Array(3 * (length - 1)))
    const name = 'model.early_exit_gate.bias'
    const [nothing, object] = [null as never, {} as never]
    for (const [run, message] of [
      [
        () => model.score(sequences, nothing),
        'LoopLM.score: options must be an object with fields such as temperature, got null',
      ],
      [() => model.score(sequences, 5 as never), /options must be an object.*got 5/],
      [() => model.score(sequences, { signal: object }), 'LoopLM.score: signal must be an AbortSignal, got an object'],
      [() => model.score(sequences, { topLogprobs: 30 }), /topLogprobs must be an integer of at least 0 and at most 29, got 30/],
      [() => model.score(sequences, { promptLengths: 2 as never }), /promptLengths must have one entry.*got 2/],
      [() => model.score(sequences, { temperature: nothing }), /temperature must not be null; omit it/],
      [() => model.score(sequences, { lastLoop: 1 as never }), /lastLoop must be true or false, got 1/],
      [() => model.backward(sequences, rows, nothing), /LoopLM\.backward: options must be.*got null/],
      [() => model.backward(sequences, [new BigInt64Array(18), ...rows.slice(1)] as never), /coefficients must hold numbers/],
      [() => model.embed(sequences, nothing), /LoopLM\.embed: options/],
      [() => model.responseMeans(sequences, nothing), /LoopLM\.responseMeans: options/],
      [() => model.setParameter(name, [null] as never), new RegExp(`${name} must hold numbers alone, got null`)],
      [() => model.copyParametersFrom(undefined as never), /other must be a LoopLM.*got undefined/],
      [() => model.copyParametersFrom(model.clone() as never), /other must be a LoopLM.*class Promise: await it/],
      [() => LoopLM.create(small, nothing), 'LoopLM.create: options must be an object with fields such as device, got null'],
      [() => LoopLM.create(small, 'reference' as never), /LoopLM\.create: options must be.*got 'reference'/],
      [() => LoopLM.create(small, { device: 3n as never }), /device must be one of.*got 3n/],
      [() => LoopLM.fromPretrained(3 as never), /LoopLM\.fromPretrained: folder must be the path.*got 3/],
      [() => LoopLM.fromPretrained(folder, { download: 'yes' as never }), /download must be true or false, got 'yes'/],
      [() => model.save(undefined as never), 'LoopLM.save: folder must be the path of a folder, got undefined'],
      [() => model.save(3 as never), /folder must be the path of a folder, got 3/],
      [() => model.save(''), /folder must be the path of a folder, got an empty string/],
      [() => model.saveAdapter(''), /LoopLM\.saveAdapter: folder.*empty/],
      [() => model.loadAdapter(undefined as never), /LoopLM\.loadAdapter: folder.*undefined/],
      [
        () => new AdamW(object),
        'AdamW: model must be a LoopLM, as LoopLM.create and LoopLM.fromPretrained resolve to, got an object',
      ],
      [() => new AdamW(model, nothing), /AdamW: options must be.*got null/],
      [() => new AdamW(model).save(''), /AdamW\.save: path must be the path of a file, got an empty string/],
      [() => new AdamW(model, { only: 'lm_head.weight' as never }), /only must be an array of names of parameters/],
    ] as const) {
      const error = await refusal(run)
      expect(error.code, String(run)).toBe('INVALID_ARGUMENT')
      expect(error.message).toMatch(message)
    }
    const assign = () => {
      model.tokenizer = object
    }
    expect((await refusal(assign)).message).toMatch(/LoopLM\.tokenizer: tokenizer must be a Tokenizer.*got an object/)
    expect(model.tokenizer).toBeUndefined()
    expect((await refusal(() => LoopLM.create(nothing))).message).toMatch(/config must be an object with vocab_size.*got null/)
  })

  it('are rejected by name with a suggestion if they are unknown', async () => {
    using model = await LoopLM.create(small)
    using optimizer = new AdamW(model)
    const rows = sequences.map(({ length }) => new Float32Array(3 * (length - 1)))
    const options = (fields: object) => fields as never
    for (const [run, message] of [
      [() => LoopLM.create(small, options({ devise: 'cpu' })), 'LoopLM.create: devise: unknown option; did you mean device?'],
      [() => LoopLM.fromPretrained(folder, options({ dType: 'float32' })), /fromPretrained: dType: .*did you mean dtype/],
      [() => model.score(sequences, options({ temprature: 0.7 })), /LoopLM\.score: temprature: .*temperature\?/],
      [
        () => model.backward(sequences, rows, options({ gate: rows })),
        /gate: unknown option; the options are gateCoefficients, /,
      ],
      [() => model.embed(sequences, options({ lastLoop: true })), /lastLoop: unknown option/],
      [() => model.responseMeans(sequences, options({ loop: 1 })), /did you mean loops/],
      [() => model.save(join(folder, 'never'), options({ dequantise: true })), /did you mean dequantize/],
      [() => new AdamW(model, options({ lr: 1 })), /AdamW: lr: unknown option; the options are learningRate, betas/],
      [() => optimizer.step(options({ learningrate: 1 })), /AdamW\.step: learningrate: .*did you mean learningRate/],
      [
        () => new AdamW(model, { only: ['lm_head.wieght'] }),
        /only\[0\]: .*no parameter 'lm_head\.wieght'; did you mean 'lm_head\.weight'/,
      ],
      [() => optimizer.step({ only: [] }), /only is an empty list.*omit only to train all/],
      [
        () => optimizer.step({ only: ['model.norm.weight', 'gate'] }),
        /only\[1\]: .*no parameter 'gate'; model\.parameters\(\) lists/,
      ],
    ] as const) {
      const error = await refusal(run)
      expect(error.code, String(run)).toBe('INVALID_ARGUMENT')
      expect(error.message).toMatch(message)
    }
    expect(existsSync(join(folder, 'never'))).toBe(false)
    expect(await optimizer.step({ learningRate: undefined, only: ['model.norm.weight'] })).toEqual({ gradNorm: 0 })
  })

  it('in a configuration are rejected if nearly a known field; other unknown fields are kept', async () => {
    for (const [field, known] of [
      ['total_ut_step', 'total_ut_steps'],
      ['totalUtSteps', 'total_ut_steps'],
      ['num_hiden_layer', 'num_hidden_layers'],
      ['rope_thetta', 'rope_theta'],
      ['layer_type', 'layer_types'],
    ] as const) {
      const error = await refusal(() => LoopLM.create({ ...small, [field]: 2 }))
      expect(error).toMatchObject({
        code: 'INVALID_CONFIG',
        message: `LoopLM.create: ${field}: unknown field; did you mean ${known}?`,
      })
    }
    const others = {
      pad_token_id: 0,
      cls_token_id: 1,
      sep_token_id: 2,
      use_cache: true,
      max_window_layers: 2,
      sliding_window: null,
    }
    using model = await LoopLM.create({ ...small, ...others })
    expect(model.config).toMatchObject(others)
    const path = join(folder, 'misspelt')
    await model.save(path)
    const file = join(path, 'config.json')
    writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), total_ut_step: 2 }))
    using loaded = await LoopLM.fromPretrained(path) // a file's author had reasons
    expect(loaded.config).toMatchObject({ total_ut_steps: 3, total_ut_step: 2 })
  })

  it('in a configuration are rejected field by field', async () => {
    const create = (fields: object) => refusal(() => LoopLM.create({ ...small, ...fields }))
    for (const [fields, name] of [
      [{ hidden_size: undefined }, /hidden_size/],
      [{ vocab_size: 1e12 }, /vocab_size/],
      [{ num_key_value_heads: 3 }, /num_key_value_heads.*does not divide/],
      [{ head_dim: 3 }, /head_dim.*even/],
      [{ hidden_act: 'gelu' }, /hidden_act.*silu/],
      [{ rope_scaling: { type: 'linear' } }, /rope_scaling\.type.*default/],
      [{ rope_scaling: { rope_type: 'default', factor: 4 } }, /rope_scaling.*factor/],
      [{ rope_parameters: { rope_theta: 1e6, type: 'yarn' } }, /rope_parameters\.type.*default/],
      [{ rope_parameters: { rope_theta: 1e6, factor: 4 } }, /rope_parameters.*factor/],
      [{ rope_parameters: { partial_rotary_factor: 0.5 } }, /rope_parameters\.partial_rotary_factor.*1/],
      [{ rope_theta: 1e4, rope_parameters: { rope_theta: 1e6 } }, /rope_theta.*10000.*1000000/],
      [{ partial_rotary_factor: 0.5 }, /partial_rotary_factor/],
      [{ rope_interleaved: true }, /rope_interleaved/],
      [{ attn_logit_softcapping: 50 }, /attn_logit_softcapping/],
      [{ final_logit_softcapping: 30 }, /final_logit_softcapping/],
      [{ architectures: ['LlamaForCausalLM'] }, /architectures.*Ouro/],
      [{ use_sliding_window: true }, /use_sliding_window/],
      [{ attention_dropout: 0.1 }, /attention_dropout/],
      [{ total_ut_steps: 0 }, /total_ut_steps/],
      [{ eos_token_id: 29 }, /29 is outside/],
      [{ hidden_size: 65536, intermediate_size: 262144, num_hidden_layers: 1024 }, /parameters/],
    ] as const) {
      const error = await create(fields)
      expect(error.code).toBe('INVALID_CONFIG')
      expect(error.message).toMatch(name)
    }
    expect((await refusal(() => LoopLM.create(small, { device: 'reference', dtype: 'float32' }))).code).toBe('UNSUPPORTED')
    expect((await refusal(() => LoopLM.create(small, { dtype: 'float64' }))).code).toBe('UNSUPPORTED')
  })

  it('in a configuration need only the sizes; all others have defaults', async () => {
    using model = await LoopLM.create({
      vocab_size: 8,
      hidden_size: 8,
      intermediate_size: 8,
      num_hidden_layers: 1,
      num_attention_heads: 2,
    })
    expect(model.config).toMatchObject({
      total_ut_steps: 4,
      head_dim: 4,
      num_key_value_heads: 2,
      rope_theta: 1e6,
      rms_norm_eps: 1e-6,
    })
    expect(model.endTokens).toEqual([])
  })
})

describe('checkpoints', () => {
  it('are Hugging Face folders with the tokenizer, and keep fields that looplm does not know', async () => {
    const path = join(folder, 'nested', 'full')
    using model = await LoopLM.create({ ...small, custom_field: { a: 1 }, eos_token_id: 3 })
    model.tokenizer = Tokenizer.characters('0123456789+=', { special: { eos: '<eos>' } })
    await model.save(path)
    expect(readdirSync(path).sort()).toEqual([
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ])
    const config = JSON.parse(readFileSync(join(path, 'config.json'), 'utf8'))
    expect(config).toMatchObject({
      architectures: ['OuroForCausalLM'],
      model_type: 'ouro',
      torch_dtype: 'float32',
      rope_theta: 1e6,
      custom_field: { a: 1 },
    })
    using loaded = await LoopLM.fromPretrained(path)
    expect(loaded.tokenizer!.encode('1+1=')).toEqual([1, 10, 1, 11])
    expect(loaded.config.custom_field).toEqual({ a: 1 })
    await model.save(path) // over itself
    writeFileSync(join(path, 'notes.txt'), 'mine')
    await model.save(path)
    expect(existsSync(join(path, 'notes.txt'))).toBe(true)
    expect(readdirSync(join(folder, 'nested'))).toEqual(['full']) // no temporary folder is left
  })

  it('saved as bfloat16 from float32 load as the rounded values', async () => {
    const path = join(folder, 'narrow')
    using model = await LoopLM.create(small)
    await model.save(path, { dtype: 'bfloat16' })
    using wide = await LoopLM.fromPretrained(path)
    using narrow = await LoopLM.fromPretrained(path, { dtype: 'bfloat16' })
    const name = 'lm_head.weight'
    const values = await narrow.getParameter(name)
    expect(await wide.getParameter(name)).toEqual(values)
    for (const [i, v] of (await model.getParameter(name)).entries())
      expect(Math.abs(values[i]! - v)).toBeLessThanOrEqual(2 ** -8 * Math.abs(v))
    expect((await refusal(() => model.save(path, { dtype: 'float64' }))).code).toBe('INVALID_ARGUMENT')
  })

  it('load as bfloat16 if the files hold nothing else, and as float32 otherwise', async () => {
    const path = join(folder, 'own-dtype')
    using model = await LoopLM.create(small)
    const dtype = async (device?: 'reference') => {
      using loaded = await LoopLM.fromPretrained(path, device === undefined ? {} : { device })
      expect(await loaded.getParameter('model.norm.weight')).toBeInstanceOf(device ? Float64Array : Float32Array)
      return loaded.dtype
    }
    await model.save(path)
    expect(await dtype()).toBe('float32')
    await model.save(path, { dtype: 'bfloat16' })
    expect(await dtype()).toBe('bfloat16')
    expect(await dtype('reference')).toBe('float64')
    const tensors = readTensors(join(path, 'model.safetensors'))
    writeTensors(
      join(path, 'model.safetensors'),
      tensors.map((tensor, i) => (i === 3 ? asF32(tensor) : tensor)),
    )
    expect(await dtype()).toBe('float32')
  })

  it('can mix F32, F16 and BF16 in several shards, with each tensor once', async () => {
    const path = join(folder, 'mixed')
    using model = await LoopLM.create(small)
    for (const { name, shape } of model.parameters())
      await model.setParameter(
        name,
        Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => ((i * 37) % 128) / 64 - 1), // exact in each
      )
    await model.save(path)
    const whole = join(path, 'model.safetensors')
    const tensors = readTensors(whole).map((tensor, i) => [tensor, asF16(tensor), asBF16(tensor)][i % 3]!)
    const shards = (first: Stored[], second: Stored[]) => {
      writeTensors(join(path, 'a.safetensors'), first)
      writeTensors(join(path, 'b.safetensors'), second)
      const weight_map = Object.fromEntries([
        ...first.map(({ name }) => [name, 'a.safetensors']),
        ...second.map(({ name }) => [name, 'b.safetensors']),
      ])
      writeFileSync(join(path, 'model.safetensors.index.json'), JSON.stringify({ weight_map }))
    }
    rmSync(whole)
    shards(tensors.slice(0, 5), tensors.slice(5))
    using loaded = await LoopLM.fromPretrained(path)
    expect(await loaded.score(sequences)).toEqual(await model.score(sequences))
    shards(tensors.slice(0, 6), tensors.slice(5))
    const { message, code } = await refusal(() => LoopLM.fromPretrained(path))
    expect(code).toBe('INVALID_FILE')
    expect(message).toContain(`b.safetensors: tensor "${tensors[5]!.name}": is also in ${join(path, 'a.safetensors')}`)
  })

  it('may repeat a tied head, but not with other values', async () => {
    const path = join(folder, 'tied')
    using model = await LoopLM.create({ ...small, tie_word_embeddings: true })
    await model.save(path)
    const tensors = readTensors(join(path, 'model.safetensors'))
    const embedding = tensors.find(({ name }) => name === 'model.embed_tokens.weight')!
    const head = { ...embedding, name: 'lm_head.weight' }
    writeTensors(join(path, 'model.safetensors'), [...tensors, head])
    using loaded = await LoopLM.fromPretrained(path)
    expect(await loaded.score(sequences)).toEqual(await model.score(sequences))
    const other = Buffer.from(head.data)
    other[5]! ^= 1
    writeTensors(join(path, 'model.safetensors'), [...tensors, { ...head, data: other }])
    expect((await refusal(() => LoopLM.fromPretrained(path))).message).toMatch(
      /lm_head.*differs from model\.embed_tokens\.weight/,
    )
  })

  it('are read through the shard index, which cannot name files elsewhere', async () => {
    const path = join(folder, 'sharded')
    using model = await LoopLM.create(small)
    await model.save(path)
    const shard = readFileSync(join(path, 'model.safetensors'))
    rmSync(join(path, 'model.safetensors'))
    writeFileSync(join(path, 'model-00001-of-00001.safetensors'), shard)
    const index = (file: unknown) => {
      const weight_map = Object.fromEntries(model.parameters().map(({ name }) => [name, file]))
      writeFileSync(join(path, 'model.safetensors.index.json'), JSON.stringify({ weight_map }))
    }
    expect((await refusal(() => LoopLM.fromPretrained(path))).message).toMatch(
      /sharded has neither model\.safetensors nor model\.safetensors\.index\.json\. Add its weights, or download it again\./,
    )
    index('model-00001-of-00001.safetensors')
    using loaded = await LoopLM.fromPretrained(path)
    expect(await loaded.score(sequences)).toEqual(await model.score(sequences))
    for (const file of ['../narrow/model.safetensors', '/etc/passwd', 7]) {
      index(file)
      const error = await refusal(() => LoopLM.fromPretrained(path))
      expect(error.code).toBe('INVALID_FILE')
      expect(error.message).toMatch(/weight_map/)
    }
    index('model-00002-of-00002.safetensors')
    expect((await refusal(() => LoopLM.fromPretrained(path))).code).toBe('NOT_FOUND')
  })

  it('are rejected with file and field if damaged, and hold no memory', async () => {
    const path = join(folder, 'damaged')
    using model = await LoopLM.create(small)
    await model.save(path)
    const config = JSON.parse(readFileSync(join(path, 'config.json'), 'utf8'))
    const load = async (fields: object) => {
      writeFileSync(join(path, 'config.json'), JSON.stringify({ ...config, ...fields }))
      const before = await heldBytes()
      const error = await refusal(() => LoopLM.fromPretrained(path))
      expect(memory().bytes).toBe(before)
      return error
    }
    expect((await load({ rope_theta: undefined })).message).toMatch(/config\.json.*rope_theta/s)
    expect((await load({ hidden_size: 16384 })).message).toMatch(/bytes cannot hold/)
    expect((await load({ num_hidden_layers: 1 })).code).toBe('INVALID_FILE')
    writeFileSync(join(path, 'config.json'), '{')
    expect((await refusal(() => LoopLM.fromPretrained(path))).message).toMatch(/config\.json is not JSON/)
    writeFileSync(
      join(path, 'config.json'),
      JSON.stringify({ ...config, rope_theta: undefined, rope_parameters: { rope_theta: 1e6 } }),
    )
    using loaded = await LoopLM.fromPretrained(path)
    expect(loaded.config.rope_theta).toBe(1e6)
    expect((await refusal(() => LoopLM.fromPretrained(join(folder, 'nowhere')))).code).toBe('NOT_FOUND')
    mkdirSync(join(folder, 'empty'))
    writeFileSync(join(folder, 'empty', 'config.json'), JSON.stringify(config))
    expect((await refusal(() => LoopLM.fromPretrained(join(folder, 'empty')))).message).toMatch(/model\.safetensors\.index\.json/)
  })
})

describe('a disposed model', () => {
  it('frees its memory, rejects new calls and lets running calls finish', async () => {
    const before = await heldBytes()
    const model = await LoopLM.create(small)
    const pending = model.score(sequences)
    model.dispose()
    expect((await pending).loops).toBe(3)
    expect((await refusal(() => model.score(sequences))).code).toBe('DISPOSED')
    expect((await refusal(() => model.parameters())).code).toBe('DISPOSED')
    expect(memory().bytes).toBe(before)
  })
})
