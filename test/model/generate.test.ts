import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type GenerateOptions, LoopLM, memory, Tokenizer } from '../../src/index.js'
import { TextStream } from '../../src/model/text-stream.js'
import { collectGarbage } from '../garbage.js'
import { refusal } from '../refusal.js'
import { expectRounded, yardstick } from '../rounding.js'

const config = {
  vocab_size: 20,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  total_ut_steps: 3,
  initializer_range: 0.4,
}
const alphabet = '0123456789+=abcdefg'
const prompts = [[1, 2, 3], [4], [1, 2, 3], [5, 6, 7, 8, 9]]
const open: GenerateOptions = { maxNewTokens: 8, stop: [], seed: 3 }

describe.each([
  { device: 'cpu', dtype: 'float32' },
  { device: 'cpu', dtype: 'bfloat16' },
  { device: 'reference', dtype: 'float64' },
] as const)('generation on $device in $dtype', ({ device, dtype }) => {
  let model: LoopLM
  beforeAll(async () => {
    model = await LoopLM.create(config, { device, dtype, seed: 11 })
  })
  afterAll(() => model.dispose())

  it('is a function of the seed', async () => {
    const [a, b] = [await model.generate(prompts, open), await model.generate(prompts, open)]
    expect(a).toEqual(b)
    const c = await model.generate(prompts, { ...open, seed: 4 })
    expect(c.map(({ tokens }) => tokens)).not.toEqual(a.map(({ tokens }) => tokens))
    expect(a[0]!.tokens).not.toEqual(a[2]!.tokens) // equal prompts are different samples
  })

  it('gives a prompt the same tokens alone and in a batch', async () => {
    const batch = await model.generate(prompts, open)
    const [first] = await model.generate([prompts[0]!], open)
    expect(first).toEqual(batch[0])
    const greedy = await model.generate(prompts, { ...open, temperature: 0 })
    for (const [i, prompt] of prompts.entries()) {
      const [alone] = await model.generate([prompt], { ...open, temperature: 0 })
      expect(alone).toEqual(greedy[i])
    }
  })

  it.each([1, 0.7])('returns the log-probabilities that score computes at temperature %s', async (temperature) => {
    const results = await model.generate(prompts, { ...open, temperature, topK: 5, topP: 0.9 })
    const whole = prompts.map((prompt, i) => [...prompt, ...results[i]!.tokens])
    const { logprobs } = await model.score(whole, { temperature, lastLoop: true })
    const of = await yardstick(model, config, whole, { temperature })
    const generated = (rows: readonly ArrayLike<number>[]) => rows.flatMap((row) => Array.from(row).slice(-8)) // of the last loop
    for (const got of [results.map((result) => result.logprobs), logprobs])
      expectRounded(generated(got), of, (scored) => generated(scored.logprobs))
  })

  it('reads a token at the loop where the gate exits, with its log-probability', async () => {
    const early = await model.generate(prompts, { ...open, exit: { rule: 'gate', threshold: 1e-6 } })
    for (const { loops } of early) expect(loops).toEqual(Array(8).fill(1))
    const whole = prompts.map((prompt, i) => [...prompt, early[i]!.tokens[0]!])
    const { logprobs } = await model.score(whole)
    const of = await yardstick(model, config, whole)
    const first = (rows: readonly ArrayLike<number>[]) => rows.map((row, i) => row[prompts[i]!.length - 1]!)
    for (const got of [early.map((result) => result.logprobs[0]!), first(logprobs)])
      expectRounded(got, of, (scored) => first(scored.logprobs))
    const [fixed] = await model.generate([prompts[0]!], { ...open, exit: { rule: 'fixed' } })
    expect(fixed!.loops).toEqual(Array(8).fill(3))
  })

  it('fails with NON_FINITE, position and loop if the log-probability of a token is not finite', async () => {
    using broken = await model.clone()
    const large = dtype === 'float64' ? 1.7e308 : 3e38
    await broken.setParameter('lm_head.weight', new Float64Array(20 * 16).fill(large))
    const { logprobs } = await broken.score([prompts[0]!])
    expect(logprobs[0]!.some((l) => !Number.isFinite(l))).toBe(true) // score says so as it is
    const message = /log-probability of new token 0 \(position 3\), read after loop 3, is (NaN|-Infinity).*earlier checkpoint/
    for (const temperature of [0, 1]) {
      const options = { ...open, temperature }
      const batch = await refusal(() => broken.generate([prompts[0]!, prompts[0]!], options))
      expect(batch.code).toBe('NON_FINITE')
      expect(batch.message).toMatch(message)
      expect(batch.message).toMatch(/^LoopLM\.generate/)
      const streamed = await refusal(async () => {
        for await (const { token } of broken.stream(prompts[0]!, options)) throw new Error(`token ${token} was handed out`)
      })
      expect(streamed.message).toMatch(message)
      using scheduler = broken.scheduler()
      expect((await refusal(() => scheduler.add(prompts[0]!, options).result())).message).toMatch(message)
    }
  })

  it('streams the tokens that generate returns', async () => {
    const [whole] = await model.generate([prompts[3]!], open)
    const chunks = []
    for await (const chunk of model.stream(prompts[3]!, open)) chunks.push(chunk)
    expect(chunks.map(({ token }) => token)).toEqual(whole!.tokens)
    expect(chunks.map(({ logprob }) => logprob)).toEqual(Array.from(whole!.logprobs))
    expect(chunks.map(({ loop }) => loop)).toEqual(whole!.loops)
    expect(chunks.map(({ finishReason }) => finishReason)).toEqual([...Array(7).fill(undefined), 'length'])
  })
})

describe('stopping', () => {
  let model: LoopLM
  beforeAll(async () => {
    model = await LoopLM.create({ ...config, eos_token_id: 19 }, { seed: 11 })
    model.tokenizer = Tokenizer.characters(alphabet, { special: { eos: '<eos>' } })
  })
  afterAll(() => model.dispose())
  const long: GenerateOptions = { maxNewTokens: 40, seed: 1 }

  it('at a token id keeps the token and reports the reason stop', async () => {
    const [all] = await model.generate([[1]], { ...long, stop: [] })
    const stop = all!.tokens[5]!
    const at = all!.tokens.indexOf(stop)
    const [cut] = await model.generate([[1]], { ...long, stop: [stop] })
    expect(cut!.tokens).toEqual(all!.tokens.slice(0, at + 1))
    expect(cut!.finishReason).toBe('stop')
    expect(all!.finishReason).toBe('length')
  })

  it("happens at the model's end tokens unless stop is given", async () => {
    const results = await model.generate(Array(16).fill([1]), long)
    const ended = results.filter(({ finishReason }) => finishReason === 'stop')
    expect(ended.length).toBeGreaterThan(0)
    for (const { tokens, text } of ended) {
      expect(tokens.indexOf(19)).toBe(tokens.length - 1)
      expect(text).toBe(
        tokens
          .slice(0, -1)
          .map((id) => alphabet[id])
          .join(''),
      ) // special tokens are not text
    }
    const unstopped = await model.generate(Array(16).fill([1]), { ...long, stop: [] })
    expect(unstopped.every(({ tokens }) => tokens.length === 40)).toBe(true)
  })

  it('at a stop string cuts the text and keeps all tokens, also in streams', async () => {
    const [all] = await model.generate(['1+1='], { ...long, stop: [] })
    const text = all!.text!
    const stop = text.slice(6, 9)
    const at = text.indexOf(stop)
    const [cut, other] = await model.generate(['1+1=', 'a'], { ...long, stop: [stop, 'not in it'] })
    expect(cut).toMatchObject({ text: text.slice(0, at), finishReason: 'stop', tokens: all!.tokens.slice(0, at + 3) })
    expect(cut!.logprobs.length).toBe(at + 3)
    expect(other!.text!.includes(stop)).toBe(false)
    let streamed = ''
    const tokens = []
    for await (const chunk of model.stream('1+1=', { ...long, stop: [stop] })) {
      streamed += chunk.text
      tokens.push(chunk.token)
    }
    expect(streamed).toBe(cut!.text)
    expect(tokens).toEqual(cut!.tokens)
  })

  it('at a special token can be requested by its string', async () => {
    const byId = await model.generate(Array(16).fill([1]), { ...long, stop: [19] })
    const byText = await model.generate(Array(16).fill([1]), { ...long, stop: ['<eos>'] })
    expect(byText).toEqual(byId)
  })

  it('by leaving a stream early frees its memory', async () => {
    const leave = async () => {
      for await (const _ of model.stream([1, 2], { ...long, stop: [] })) break
      await model.score([[1, 2]])
      return memory()
    }
    await collectGarbage()
    const { bytes, buffers } = await leave() // workspaces stay with the model
    expect(await leave()).toMatchObject({ bytes, buffers })
  })

  it('by a signal rejects with ABORTED', async () => {
    const options = { ...long, maxNewTokens: 100_000, stop: [], signal: AbortSignal.timeout(30) }
    expect((await refusal(() => model.generate([[1], [2]], options))).code).toBe('ABORTED')
    const controller = new AbortController()
    const stream = async () => {
      for await (const _ of model.stream([1], { ...long, stop: [], signal: controller.signal })) controller.abort()
    }
    expect((await refusal(stream)).code).toBe('ABORTED')
  })
})

describe('filters', () => {
  it('make sampling greedy if they leave one token', async () => {
    using model = await LoopLM.create(config, { seed: 11 })
    const greedy = await model.generate(prompts, { ...open, temperature: 0 })
    for (const filter of [{ topK: 1 }, { topP: 1e-9 }, { minP: 0.999 }]) {
      const sampled = await model.generate(prompts, { ...open, ...filter })
      expect(
        sampled.map(({ tokens }) => tokens),
        JSON.stringify(filter),
      ).toEqual(greedy.map(({ tokens }) => tokens))
    }
  })
})

describe('arguments', () => {
  it('are rejected with their value and the allowed values if they are wrong', async () => {
    using model = await LoopLM.create(config)
    const generate = async (options: object, batch: unknown = prompts) =>
      (await refusal(() => model.generate(batch as number[][], options))).message
    expect(await generate({}, [])).toMatch(/LoopLM\.generate: prompts is empty/)
    expect(await generate({}, [[1], []])).toMatch(/prompts\[1\] has 0 tokens; at least 1/)
    expect(await generate({}, [[20]])).toMatch(/prompts\[0\]\[0\] is 20.*0 to 19/)
    expect(await generate({}, ['1'])).toMatch(/prompts\[0\] is a string, and the model has no tokenizer/)
    const only = async (prompt: unknown) => (await refusal(() => model.stream(prompt as number[]).next())).message
    expect(await only(null)).toMatch(/LoopLM\.stream: prompt must be number\[\] or Int32Array, got null/)
    expect(await only([1, 20])).toMatch(/ prompt\[1\] is 20; /)
    expect(await only([])).toMatch(/ prompt has 0 tokens/)
    expect(await only('1')).toMatch(/ prompt is a string, and the model has no tokenizer/)
    expect(await generate({ stop: ['1'] })).toMatch(/stop\[0\].*no tokenizer/)
    expect(await generate({ stop: [20] })).toMatch(/stop\[0\].*at most 19, got 20/)
    expect(await generate({ maxNewTokens: 0 })).toMatch(/maxNewTokens.*at least 1/)
    expect(await generate({ maxNewTokens: 2 ** 24 + 1 })).toMatch(/maxNewTokens.*at most 16777216/)
    expect(await generate({ temperature: -1 })).toMatch(/temperature.*at least 0.*got -1/)
    expect(await generate({ temperature: Number.POSITIVE_INFINITY })).toMatch(/Infinity/)
    for (const temperature of [1e-7, 1e-40, Number.MIN_VALUE, 1.01e30, 1e46])
      expect(await generate({ temperature })).toMatch(
        /temperature must be 0 \(greedy\) or at least 0\.000001 and at most 1e\+30, got/,
      )
    expect(await generate({ topP: 0 })).toMatch(/topP.*greater than 0/)
    expect(await generate({ topK: 1.5 })).toMatch(/topK must be an integer/)
    expect(await generate({ minP: 2 })).toMatch(/minP/)
    expect(await generate({ seed: -1 })).toMatch(/seed/)
    expect(await generate({ exit: { rule: 'never' } })).toMatch(/exit\.rule must be one of .gate., .fixed./)
    expect(await generate({ kv: 'none' })).toMatch(/kv must be one of/)
    expect(await generate({ loops: 65 })).toMatch(/loops/)
    expect(await generate(null as never)).toMatch(/LoopLM\.generate: options must be an object.*maxNewTokens, got null/)
    expect(await generate({ signal: {} })).toMatch(/signal must be an AbortSignal, got an object/)
    expect(await generate({ seed: null })).toMatch(/seed must not be null/)
    expect(await generate({ speculate: 2 })).toMatch(/speculate must be an object with fields such as loops, got 2/)
  })

  it('are rejected by name with a suggestion if they are unknown', async () => {
    using model = await LoopLM.create(config)
    const generate = async (options: object) => {
      const error = await refusal(() => model.generate(prompts, options))
      expect(error.code).toBe('INVALID_ARGUMENT')
      return error.message
    }
    expect(await generate({ maxTokens: 3, temprature: 0 })).toBe(
      'LoopLM.generate: maxTokens: unknown option; did you mean maxNewTokens?',
    )
    expect(await generate({ exit: { rule: 'gate', treshold: 0.5 } })).toMatch(
      /exit\.treshold: unknown option; did you mean exit\.threshold/,
    )
    expect(await generate({ exit: { rule: 'fixed', threshold: 1 } })).toMatch(
      /exit\.threshold: unknown option; the options are rule/,
    )
    expect(await generate({ speculate: { loops: 1, token: 2 } })).toMatch(/speculate\.token: .*did you mean speculate\.tokens/)
    const stream = async () => {
      for await (const _ of model.stream([1], { maxTokens: 3 } as object)) break
    }
    expect((await refusal(stream)).message).toMatch(/LoopLM\.stream: maxTokens: .*maxNewTokens/)
  })
})

describe('streamed text', () => {
  it('waits for whole characters and for what may become a stop string', () => {
    const bytes = Tokenizer.bytes()
    const pieces = (text: string, stops: string[]) => {
      const stream = new TextStream(bytes, stops)
      const out = bytes.encode(text).map((token) => stream.push(token))
      return { out: [...out, stream.flush()], stopped: stream.stopped }
    }
    expect(pieces('é!', [])).toEqual({ out: ['', 'é', '!', ''], stopped: false })
    expect(pieces('a\n\nb', ['\n\n'])).toEqual({ out: ['a', '', '', '', ''], stopped: true })
    expect(pieces('a\nb', ['\n\n'])).toEqual({ out: ['a', '', '\nb', ''], stopped: false })
    expect(pieces('a\n', ['\n\n'])).toEqual({ out: ['a', '', '\n'], stopped: false })
  })
})
