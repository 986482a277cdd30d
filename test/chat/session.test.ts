// A session: what it says is what a fresh run of its history says, and no prompt token runs twice.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { z } from 'zod'
import {
  type ChatAnswer,
  type ChatMessage,
  ChatSession,
  type ChatSessionOptions,
  defineTool,
  LoopLM,
  type Scheduler,
  Tokenizer,
} from '../../src/index.js'
import { type Lesson, learn } from '../lessons.js'
import { refusal } from '../refusal.js'

const alphabet = ' \n!"/<>?|0123456789.abcdefghijklmnopqrstuvwxyzABCDE'
const template =
  "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ '<end>' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
const tokenizer = Tokenizer.characters(alphabet, { special: { eos: '<end>' } }).withChatTemplate(template)
const sizes = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 2, total_ut_steps: 3 }
const create = async (config = {}) => {
  const model = await LoopLM.create(
    { vocab_size: tokenizer.vocabSize, ...sizes, initializer_range: 0.3, max_position_embeddings: 512, ...config },
    { device: 'cpu', dtype: 'float32', seed: 4 },
  )
  model.tokenizer = tokenizer
  return model
}
const base = { maxNewTokens: 12, temperature: 0.8, seed: 3, bannedTokens: [...'<>|'].map((c) => tokenizer.tokenId(c)!) }

/** Log-probabilities of tokens behind an answer that was decoded differ by rounding, as sums are added in another order. */
function expectSame(answer: ChatAnswer, other: ChatAnswer, exact: boolean): void {
  const { text, reasoning, tokens, loops, logprobs } = answer
  expect(other).toMatchObject({ text, reasoning, tokens, loops })
  if (exact) expect(other.logprobs).toEqual(logprobs)
  else for (const [i, logprob] of logprobs.entries()) expect(Math.abs(logprob - other.logprobs[i]!)).toBeLessThan(1e-4)
}
const encode = (messages: readonly ChatMessage[], more = '') =>
  tokenizer.encode(tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true }) + more, { addSpecialTokens: false })

/** Tokens of prompts that ran, and that the cache had, while an action ran. */
async function counted<T>(scheduler: Scheduler, action: () => Promise<T>) {
  const before = scheduler.stats()
  const made = await action()
  const { prefilled, reused } = scheduler.stats()
  return { made, prefilled: prefilled - before.prefilled, reused: reused - before.reused }
}

describe('a session', () => {
  it.each([false, true])(
    'computes no prompt token twice, answering like a fresh run of its history (exact: %s)',
    async (exact) => {
      using model = await create()
      using scheduler = model.scheduler()
      using chat = new ChatSession(model, { ...base, system: 'be', scheduler, exact })
      let cached = 0
      for (const [turn, text] of ['one?', 'two?', '', 'and three?'].entries()) {
        const history = chat.messages
        const { made, prefilled, reused } = await counted(scheduler, () => chat.send(text))
        const prompt = encode([...history, { role: 'user', content: text }])
        expect(prefilled + reused).toBe(prompt.length)
        expect(reused).toBe(turn === 0 ? 0 : cached)
        // no loop has seen the last token of an answer
        cached = exact ? prompt.length : prompt.length + made.tokens.length - 1
        using fresh = new ChatSession(model, { ...base, messages: history })
        expectSame(await fresh.send(text), made, exact)
        const [generated] = await model.generate([prompt], { ...base, stop: [tokenizer.eosTokenId!] })
        expect(made.tokens).toEqual(generated!.tokens)
        expect(chat.messages.at(-1)).toEqual({ role: 'assistant', content: made.text })
      }
      expect(JSON.parse(JSON.stringify(chat.messages))).toEqual(chat.messages)
      expect(scheduler.stats().kept).toBe(1)
      chat.dispose()
      await expect.poll(() => scheduler.stats().cachedTokens).toBe(0)
    },
  )

  it('gives the bits of a fresh run with exact: true, also with early exits', async () => {
    using model = await create()
    const exit = { rule: 'kl', threshold: 0.5 } as const
    using chat = new ChatSession(model, { ...base, exit, exact: true })
    const { loops } = await chat.send('one?')
    expect(new Set(loops).size).toBeGreaterThan(1)
    const history = chat.messages
    using fresh = new ChatSession(model, { ...base, exit, messages: history })
    expectSame(await fresh.send('two?'), await chat.send('two?'), true)
  })

  it('reuses the cache up to the first token that the template rewrites', async () => {
    using model = await create()
    using scheduler = model.scheduler()
    const thinking: ChatSessionOptions = { ...base, mode: 'think' }
    using chat = new ChatSession(model, { ...thinking, scheduler })
    const first = await chat.send('why?')
    expect(first.reasoning.trim()).not.toBe('') // a random model never ends its thoughts
    expect(first).toMatchObject({ text: '', finishReason: 'length', mode: 'think' })
    const history = chat.messages // the template does not write thoughts
    const { made, prefilled, reused } = await counted(scheduler, () => chat.send('why not?'))
    const same = encode([{ role: 'user', content: 'why?' }]).length
    const whole = encode([...history, { role: 'user', content: 'why not?' }], '<think>\n').length
    expect({ prefilled, reused }).toEqual({ prefilled: whole - same, reused: same })
    using fresh = new ChatSession(model, { ...thinking, messages: history })
    expectSame(await fresh.send('why not?'), made, true)
  })

  it('reads on with the end token of the template if the answer ended with another one', async () => {
    using model = await create({ vocab_size: tokenizer.vocabSize + 1 })
    const ends = { special: { eos: '<end>', pad: '<stop>' } }
    model.tokenizer = Tokenizer.characters(alphabet, ends).withChatTemplate(template)
    const other = model.tokenizer.tokenId('<stop>')!
    const prompts: string[] = []
    using chat = new ChatSession(model, {
      ...{ temperature: 0, exact: true, stop: [other] },
      logitsProcessor: (logits, { prompt, tokens }) => {
        logits[tokens.length === 0 ? model.tokenizer!.tokenId('a')! : other] = 1e9
        if (tokens.length === 0) prompts.push(model.tokenizer!.decode(prompt, { skipSpecialTokens: false }))
      },
    })
    expect((await chat.send('one')).tokens.at(-1)).toBe(other)
    await chat.send('two')
    expect(prompts[1]).toBe('<|user|>one<end><|assistant|>a<end><|user|>two<end><|assistant|>')
  })

  it('turns thinking on or off by a template variable or by a think block', async () => {
    using model = await create()
    const seen = async (options: ChatSessionOptions) => {
      const prompts: string[] = []
      const logitsProcessor: NonNullable<ChatSessionOptions['logitsProcessor']> = (_, { prompt, tokens }) => {
        if (tokens.length === 0) prompts.push(tokenizer.decode(prompt, { skipSpecialTokens: false }))
      }
      using chat = new ChatSession(model, { ...base, maxNewTokens: 1, logitsProcessor, ...options })
      await chat.send('hi')
      return prompts[0]!.split('<|assistant|>')[1]
    }
    expect(await seen({})).toBe('')
    expect(await seen({ mode: 'think' })).toBe('<think>\n')
    expect(await seen({ mode: 'no-think' })).toBe('<think>\n\n</think>\n\n')
    const opening = `${template}{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}`
    expect(await seen({ mode: 'think', chatTemplate: { template: opening } })).toBe('<think>\n')
    expect(await seen({ mode: 'no-think', chatTemplate: { template: opening } })).toBe('<think>\n\n</think>\n\n')
    const reading = `${template}{% if add_generation_prompt %}{{ 'yes' if enable_thinking else 'no' }}{% endif %}`
    expect(await seen({ mode: 'think', chatTemplate: { template: reading } })).toBe('yes')
    expect(await seen({ mode: 'no-think', chatTemplate: { template: reading } })).toBe('no')
  })

  it('mode auto decides by the signals of score(), running at most one extra prompt token', async () => {
    using model = await create({ total_ut_steps: 4 })
    using scheduler = model.scheduler()
    const messages = [{ role: 'user', content: 'seven?' }]
    const prompt = encode(messages, '<think>\n\n</think>\n\n')
    const { entropy, exitPdf } = await model.score([[...prompt, 0]])
    const at = (loop: number) => entropy[0]![(loop - 1) * prompt.length + prompt.length - 1]!
    const length = prompt.length + 1
    const expected = [1, 2, 3, 4].reduce((sum, loop) => sum + loop * exitPdf[0]![(loop - 1) * length + prompt.length - 1]!, 0)
    const auto = { entropy: at(4) + 1e-3, entropyChange: 99, expectedLoops: 99 }
    using chat = new ChatSession(model, { ...base, mode: 'auto', auto, scheduler })
    const { made, prefilled } = await counted(scheduler, () => chat.send('seven?'))
    expect(made.mode).toBe('no-think')
    expect(made.signals!.entropy).toBeCloseTo(at(4), 4)
    expect(made.signals!.entropyChange).toBeCloseTo(Math.abs(at(4) - at(3)), 4)
    expect(Math.abs(made.signals!.expectedLoops! - expected)).toBeLessThanOrEqual(3 / 16 + 1e-6)
    expect(prefilled).toBe(prompt.length) // the prompt of the answer is that of the probe
    using direct = new ChatSession(model, { ...base, mode: 'no-think' })
    expectSame(await direct.send('seven?'), made, true)

    chat.reset()
    const thought = await counted(scheduler, () => chat.send('seven?', { auto: { entropy: at(4) - 1e-3 } }))
    expect(thought.made.mode).toBe('think')
    expect(Object.keys(thought.made.signals!)).toEqual(['entropy'])
    const same = encode(messages, '<think>\n').length
    expect(thought.prefilled).toBe(prompt.length + 1) // the last token of the block's mark, for the first thought
    expect(thought.reused).toBe(same - 1)
    using thinking = new ChatSession(model, { ...base, mode: 'think' })
    expectSame(await thinking.send('seven?'), thought.made, true)
  })

  it('keeps the partial answer and the cache when a turn is stopped', async () => {
    using model = await create()
    using scheduler = model.scheduler()
    using chat = new ChatSession(model, { ...base, maxNewTokens: 400, scheduler })
    const turn = chat.stream('go on')
    const pieces: string[] = []
    for await (const piece of turn) {
      pieces.push(piece.text)
      if (pieces.length === 5) turn.stop()
    }
    const stopped = await turn.result()
    expect(stopped.finishReason).toBe('cancelled')
    expect(stopped.tokens.length).toBeLessThan(400)
    expect(chat.messages.at(-1)).toEqual({ role: 'assistant', content: stopped.text })
    for await (const piece of chat.stream('more')) if (piece.text !== '') break // stops as well
    expect(chat.messages.at(-1)!.role).toBe('assistant')
    const history = chat.messages
    const { prefilled, reused } = await counted(scheduler, () => chat.send('end', { maxNewTokens: 2 }))
    const whole = encode([...history, { role: 'user', content: 'end' }]).length
    expect(prefilled + reused).toBe(whole)
    // the last token of the answer, unless the engine was a token ahead
    expect(prefilled - tokenizer.encode('<end><|user|>end<end><|assistant|>').length).toBeOneOf([0, 1])
  })

  it('restores the history and keeps the cache after an aborted turn', async () => {
    using model = await create()
    using scheduler = model.scheduler()
    using chat = new ChatSession(model, { ...base, maxNewTokens: 400, scheduler })
    await chat.send('one', { maxNewTokens: 4 })
    const history = chat.messages
    const controller = new AbortController()
    const reason = new Error('enough')
    let tokens = 0
    const onToken = () => {
      if (++tokens === 3) controller.abort(reason)
    }
    const refused = await refusal(() => chat.send('two', { signal: controller.signal, onToken }))
    expect(refused).toMatchObject({ code: 'ABORTED', cause: reason })
    expect(chat.messages).toEqual(history)
    const { prefilled } = await counted(scheduler, () => chat.send('two', { maxNewTokens: 2 }))
    expect(prefilled).toBe(0)
    const early = chat.stream('three')
    early.stop() // before its first token
    expect(await early.result()).toMatchObject({ tokens: [], finishReason: 'cancelled' })
    chat.reset()
    expect(chat.messages).toEqual([])
  })

  it('applies a grammar to one turn only', async () => {
    using model = await create()
    using chat = new ChatSession(model, { ...base, maxNewTokens: 40 })
    const { text } = await chat.send('a number?', { grammar: { regex: '[0-9]{3}' } })
    expect(text).toMatch(/^\d{3}$/)
    const free = await chat.send('and now?')
    expect(free.text).not.toMatch(/^\d{3}$/)
    const opening = `${template}{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}`
    using thinker = new ChatSession(model, { ...base, maxNewTokens: 40, chatTemplate: { template: opening } })
    const number = await thinker.send('a number?', { grammar: { regex: '[0-9]{3}' } })
    expect(number).toMatchObject({ text: expect.stringMatching(/^\d{3}$/), mode: 'no-think' })
  })

  it('finds no thought inside the text of a grammar', async () => {
    using model = await create()
    using chat = new ChatSession(model, { temperature: 0, maxNewTokens: 40 })
    const answer = await chat.send('quote', { grammar: { jsonSchema: { const: 'a <think> b' } } })
    expect(answer).toMatchObject({ text: '"a <think> b"', reasoning: '' })
    expect(chat.messages.at(-1)).toEqual({ role: 'assistant', content: answer.text })
    const thought = await chat.send('think', { grammar: { regex: '<think>a</think>b <think>' } })
    expect(thought).toMatchObject({ text: 'b <think>', reasoning: 'a' })
  })

  it.each([
    ['[0-9]{3}', /^\d{3}$/],
    ['a{0}', /^$/],
  ])('ends with the grammar %s if the model has no end token', async (regex, text) => {
    using model = await create()
    model.tokenizer = Tokenizer.characters(alphabet).withChatTemplate(template.replaceAll('<end>', '|'))
    using chat = new ChatSession(model, { temperature: 0 })
    const answer = await chat.send('a number?', { grammar: { regex } })
    expect(answer).toMatchObject({ text: expect.stringMatching(text), finishReason: 'stop' })
    expect(chat.messages.at(-1)).toEqual({ role: 'assistant', content: answer.text })
  })

  it('takes undefined as an omitted option, in the session and in a turn', async () => {
    using model = await create()
    const set = { ...base, mode: 'no-think', bannedTokens: [...base.bannedTokens, tokenizer.eosTokenId!] } as const
    using chat = new ChatSession(model, { ...set, temperature: undefined, maxNewTokens: undefined } as object)
    const { temperature: _, maxNewTokens: __, ...others } = set
    using same = new ChatSession(model, others)
    const turn = { seed: undefined, bannedTokens: undefined, mode: undefined, maxNewTokens: undefined }
    const answer = await chat.send('go on', turn as object)
    expect(answer).toEqual(await same.send('go on'))
    expect(answer.tokens.length).toBeGreaterThan(16)
  })

  it('fails with the error of an asynchronous onToken, which stops the model', async () => {
    using model = await create()
    using chat = new ChatSession(model, { ...base, maxNewTokens: 400 })
    let tokens = 0
    const onToken = async () => {
      if (++tokens === 2) throw new Error('full disk')
    }
    await expect(chat.send('go on', { onToken })).rejects.toThrow('full disk')
    expect(tokens).toBeLessThan(400)
    expect(chat.messages).toEqual([])
  })

  it('keeps no cache of a turn whose options are refused', async () => {
    using model = await create()
    using scheduler = model.scheduler()
    using chat = new ChatSession(model, { ...base, exact: true, scheduler })
    const refused = { grammar: { regex: 'a' }, speculate: { loops: 1 } } // by the engine
    expect((await refusal(() => chat.send('x', refused))).message).toMatch(/speculate/)
    expect(scheduler.stats().kept).toBe(0)
    await chat.send('x')
    expect(scheduler.stats().kept).toBe(1)
    expect((await refusal(() => chat.send('y', refused))).message).toMatch(/speculate/)
    await expect.poll(() => scheduler.stats().kept).toBe(1) // the next pass frees a copy
    chat.dispose()
    await expect.poll(() => scheduler.stats()).toMatchObject({ kept: 0, cachedTokens: 0 })
  })

  it('rejects invalid calls with a remedy', async () => {
    using model = await create()
    using chat = new ChatSession(model, { ...base })
    const message = async (action: () => unknown) => (await refusal(action)).message
    expect(await message(() => chat.send('x', { temperature: -1 }))).toBe(
      'ChatSession.send: temperature must be a finite number of at least 0, got -1',
    )
    expect(await message(() => chat.stream('x', { stop: ['a', ''] }))).toMatch(
      /^ChatSession\.stream: stop\[1\] is an empty string/,
    )
    expect(await message(() => chat.send('x', { stop: 'END' as never }))).toMatch(/stop must be an array/)
    expect(await message(() => new ChatSession(model, { toolTimeout: 3e6 }))).toMatch(
      'toolTimeout must be a finite number of at least 0 and at most 2147483, got 3000000',
    )
    expect(await message(() => new ChatSession(model, { topP: 2 }))).toMatch(/^ChatSession: topP must be/)
    expect(await message(() => new ChatSession(model, { promptCache: true } as object))).toMatch(/promptCache: unknown option/)
    using other = await create()
    using scheduler = other.scheduler()
    expect(await message(() => new ChatSession(model, { scheduler }))).toMatch(/scheduler: must be one .* that of another model/)
    expect(await message(() => new ChatSession(model, { scheduler: {} as never }))).toMatch(/scheduler: must be one/)
    const running = chat.send('one')
    expect(await message(() => chat.send('two'))).toMatch(/another message is being answered\. Wait/)
    expect(await message(() => chat.reset())).toMatch(/another message is being answered\. Wait/)
    await running
    expect(await message(() => chat.send('x', { tempratur: 1 } as object))).toMatch(/did you mean temperature/)
    expect(await message(() => chat.send('x', { mode: 'deep' as 'think' }))).toMatch(/mode.*think.*no-think.*auto/)
    expect(await message(() => chat.send('x', { mode: 'think', grammar: { regex: 'a' } }))).toMatch(/Pass mode: 'no-think'/)
    using thinker = new ChatSession(model, { ...base, mode: 'auto' })
    expect(await message(() => thinker.send('x', { grammar: { regex: 'a' } }))).toMatch(/'auto'\. Pass mode: 'no-think'/)
    using strict = new ChatSession(model, { ...base, grammar: { regex: 'a' } })
    expect(await message(() => strict.send('x', { mode: 'think' }))).toMatch(/'think'\. Pass mode: 'no-think'/)
    expect(await message(() => chat.send('x'.repeat(600)))).toMatch(/has 6\d\d tokens.*context of 512\. Call reset\(\)/)
    expect(await message(() => chat.send([{ content: 'x' }] as never))).toMatch(/input: must be a string, or messages/)
    expect(chat.messages).toHaveLength(2)
    expect(await message(() => new ChatSession(model, { auto: { doubt: 1 } as object }))).toMatch(/auto\.doubt/)
    expect(await message(() => new ChatSession(model, { tools: [{ name: 'x' }] as never }))).toMatch(/tools that defineTool made/)
    model.tokenizer = Tokenizer.characters(alphabet, { special: { eos: '<end>' } })
    expect(await message(() => new ChatSession(model))).toMatch(/no chat template\. Pass chatTemplate/)
    chat.dispose()
    expect(await message(() => chat.send('x'))).toMatch(/was disposed\. Make another one/)
  })
})

describe('a session with tools', () => {
  const root = mkdtempSync(join(tmpdir(), 'looplm-chat-'))
  afterAll(() => {
    model.dispose()
    rmSync(root, { recursive: true })
  })
  const add = defineTool({
    name: 'add',
    description: 'Adds.',
    parameters: z.object({ a: z.number(), b: z.number() }),
    run: ({ a, b }) => {
      if (a > 8) throw new Error('too large')
      return a + b
    },
  })
  const shown =
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}" +
    '{% for c in m.tool_calls or [] %}{{ \'<tool_call>\\n{"name": "\' + c.function.name + \'", "arguments": \' + (c.function.arguments | tojson) + \'}\\n</tool_call>\' }}{% endfor %}' +
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
  const user = (content: string) => ({ role: 'user', content })
  const call = (a: number | string, b: number) =>
    `<tool_call>\n{"name": "add", "arguments": {"a": ${a}, "b": ${b}}}\n</tool_call>`
  const called = (a: number, b: number) => ({
    ...{ role: 'assistant', content: '' },
    tool_calls: [{ function: { name: 'add', arguments: { a, b } } }],
  })
  const offered = [{ type: 'function', function: { name: 'add', description: 'Adds.', parameters: {} } }]
  const lessons: Lesson[] = [
    [[user('1+2?')], offered, call(1, 2)],
    [[user('1+2?'), called(1, 2), { role: 'tool', content: '3' }], offered, 'It is 3.'],
    [[user('2+3?')], offered, `<think>\nTwo.\n</think>\n\nI add.\n${call(2, 3)}`],
    [
      [user('2+3?'), { ...called(2, 3), content: 'I add.' }, { role: 'tool', content: '5' }],
      offered,
      '<think>Aha.</think>It is 5.',
    ],
    [[user('9+9?')], offered, call(9, 9)],
    [[user('9+9?'), called(9, 9), { role: 'tool', content: 'Error: too large' }], offered, 'I cannot.'],
    [[user('long?')], offered, call('9007199254740993', 1)],
  ]
  let model: LoopLM
  beforeAll(async () => {
    model = await learn(join(root, 'model'), lessons, shown)
  })

  it('runs tool calls, passes back results and errors, and computes no token twice', async () => {
    using scheduler = model.scheduler()
    using chat = new ChatSession(model, { tools: [add], temperature: 0, maxNewTokens: 80, scheduler })
    const told: string[] = []
    const onTool = ({ content }: { content: string }) => told.push(content)
    const { made, prefilled, reused } = await counted(scheduler, () => chat.send('1+2?', { onTool }))
    expect(made.text).toBe('It is 3.')
    expect(made.calls).toEqual([{ name: 'add', arguments: { a: 1, b: 2 }, content: '3', failed: false }])
    expect(made.finishReason).toBe('stop')
    const tokenizer = model.tokenizer!
    const render = (messages: readonly ChatMessage[]) =>
      tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true, tools: offered })
    const lengthOf = (text: string) => tokenizer.encode(text, { addSpecialTokens: false }).length
    const [question, answered] = [chat.messages.slice(0, 1), chat.messages.slice(0, 3)].map(render) as [string, string]
    const behind = answered.slice(answered.indexOf('<|im_end|>\n', question.length) + '<|im_end|>'.length)
    expect(prefilled).toBe(lengthOf(question) + 1 + lengthOf(behind))
    expect(reused).toBe(lengthOf(question) + lengthOf(`${call(1, 2)}<|im_end|>`) - 1)
    expect(chat.messages.map(({ role }) => role)).toEqual(['user', 'assistant', 'tool', 'assistant'])
    expect(chat.messages[1]!.tool_calls).toEqual([
      { id: 'call_1', type: 'function', function: { name: 'add', arguments: { a: 1, b: 2 } } },
    ])

    chat.reset()
    const failed = await chat.send('9+9?', { onTool })
    expect(failed.text).toBe('I cannot.')
    expect(failed.calls[0]).toMatchObject({ content: 'Error: too large', failed: true })
    expect(told).toEqual(['3', 'Error: too large'])

    chat.reset()
    const onFullDisk = async () => Promise.reject(new Error('full disk'))
    await expect(chat.send('1+2?', { onTool: onFullDisk })).rejects.toThrow('full disk')
    expect(chat.messages).toEqual([])
  })

  it('separates the texts and thoughts of the rounds of a turn', async () => {
    using chat = new ChatSession(model, { tools: [add], temperature: 0, maxNewTokens: 120 })
    const turn = chat.stream('2+3?')
    const pieces = { text: '', reasoning: '' }
    for await (const { text, reasoning } of turn) {
      pieces.text += text
      pieces.reasoning += reasoning
    }
    expect(pieces).toEqual({ text: 'I add.\n\nIt is 5.', reasoning: 'Two.\n\nAha.' })
    expect(await turn.result()).toMatchObject(pieces)
    expect(chat.messages.at(-1)).toEqual({ role: 'assistant', content: 'It is 5.', reasoning_content: 'Aha.' })
  })

  it('returns tool calls to the caller once maxToolRounds is reached', async () => {
    using chat = new ChatSession(model, { tools: [add], maxToolRounds: 0, temperature: 0, maxNewTokens: 80 })
    expect(await chat.send('1+2?')).toMatchObject({ text: '', calls: [], finishReason: 'tool-calls' })
    expect((await chat.send([{ role: 'tool', content: '3' }])).text).toBe('It is 3.')
  })

  it('refuses integers that JavaScript would change, and keeps them in the conversation', async () => {
    using chat = new ChatSession(model, { tools: [add], maxToolRounds: 1, temperature: 0, maxNewTokens: 120 })
    const render = vi.spyOn(model.tokenizer!, 'applyChatTemplate')
    const { calls } = await chat.send('long?')
    const [, next] = render.mock.results.map(({ value }) => value)
    render.mockRestore()
    expect(calls[0]).toMatchObject({
      content: 'Error: wrong arguments: the integer 9007199254740993 would become 9007199254740992; write it as a string',
      failed: true,
    })
    const made = { name: 'add', arguments: '{"a":9007199254740993,"b":1}' }
    expect(chat.messages[1]!.tool_calls).toMatchObject([{ function: made }])
    expect(next).toContain(call('9007199254740993', 1))
  })

  it('can be stopped while a tool runs', async () => {
    const hang = defineTool({
      ...{ name: 'add', description: 'Hangs.', parameters: { type: 'object' } },
      run: () => new Promise(() => turn.stop()),
    })
    using chat = new ChatSession(model, { tools: [hang], temperature: 0, maxNewTokens: 80 })
    const turn = chat.stream('1+2?')
    expect((await turn.result()).finishReason).toBe('cancelled')
    expect(chat.messages.at(-1)).toMatchObject({ role: 'tool', content: expect.stringContaining('stopped') })
  })
})
