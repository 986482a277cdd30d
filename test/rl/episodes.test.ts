// Episodes: turns, tools and environments, what they cost, what fails, and that a repeated step is the same.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { afterAll, describe, expect, it, vi } from 'vitest'
import { z } from 'zod'
import { z as z3 } from 'zod/v3'
import { fragmentTokenizer } from '../../examples/agents/tokenizer.js'
import { ToolRunner } from '../../src/chat/tools.js'
import {
  defineTool,
  type Environment,
  type Episode,
  evaluate,
  LoopLM,
  type RLTTOptions,
  RLTTTrainer,
  type Rollout,
  type TrainerCallbacks,
} from '../../src/index.js'
import type { DeviceName } from '../../src/tensor/types.js'
import { refusal } from '../refusal.js'
import { timeless } from '../timeless.js'
import { parametersOf } from '../tiny.js'

const call = (name: string, args: object) => `<tool_call>${JSON.stringify({ name, arguments: args })}</tool_call>`
const calls = [
  call('add', { a: 1, b: 2 }),
  call('add', { a: 'one' }),
  call('divide', { a: 1 }),
  call('fail', {}),
  call('hang', {}),
]
const fragments = [...calls, '<|user|>', '<|model|>', '<|tool|>', '<tools>']
const alphabet = ' \nabcdefghijklmnopqrstuvwxyzEATI0123456789.,:;<>"/_|{}()=^$[]+*-'
const template =
  "{% if tools %}<tools>{% endif %}{% for message in messages %}<|{{ 'model' if message.role == 'assistant' else message.role }}|>" +
  "{{ message.content }}{% if message.role == 'assistant' %};;{% endif %}{% endfor %}{% if add_generation_prompt %}<|model|>{% endif %}"
const tokenizer = fragmentTokenizer(alphabet, fragments, ';;', template)
const dataset = [
  { prompt: 'ab', answer: 'c' },
  { prompt: 'b', answer: 'a' },
  { prompt: 'cab', answer: 'b' },
]
const sizes = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 }
const create = (device: DeviceName = 'cpu') =>
  LoopLM.create(
    { vocab_size: tokenizer.vocabSize, ...sizes, initializer_range: 0.2, max_position_embeddings: 256 },
    { device, seed: 4 },
  )
const add = defineTool({
  name: 'add',
  description: 'Adds.',
  parameters: z.object({ a: z.number(), b: z.number() }),
  run: ({ a, b }) => a + b,
})
const fail = defineTool({
  name: 'fail',
  description: 'Fails.',
  parameters: { type: 'object' },
  run: () => Promise.reject(new Error('no luck')),
})
const stopped: string[] = []
const hang = defineTool({
  name: 'hang',
  description: 'Hangs.',
  parameters: { type: 'object' },
  run: (_, { signal }) => new Promise(() => signal.addEventListener('abort', () => stopped.push(String(signal.reason.message)))),
})
const tools = [add, fail, hang]
const base = {
  ...{ dataset, tokenizer, groupSize: 4, promptsPerStep: 3, steps: 2, learningRate: 1e-2, maxNewTokens: 4, maxTurns: 3 },
  logprobCheckEvery: 1,
} as const

/** Asks twice more, whatever the model says; rewards letters. */
const asking: Environment = ({ prompt }) => ({
  prompt: [{ role: 'user', content: prompt as string }],
  step: ({ text, index }) =>
    ({ reward: (text.match(/[a-e]/g) ?? []).length, reply: index < 2 ? 'more' : undefined, done: index === 2 }) as object,
})

async function run(options: RLTTOptions, model: LoopLM) {
  using trainer = new RLTTTrainer(model, { ...base, ...options })
  const metrics = []
  for await (const event of trainer.run()) if (event.type === 'step') metrics.push(event.metrics)
  return metrics
}

describe('an episode', () => {
  it('computes no token twice in three turns', async () => {
    using model = await create()
    const seen: number[] = []
    const turns: number[] = []
    const environment: Environment = (problem, context) => {
      const episode = asking(problem, context) as Awaited<ReturnType<Environment>>
      return {
        ...episode,
        step: (turn) => {
          turns.push(turn.tokens.length)
          return episode.step!(turn)
        },
      }
    }
    const [metrics] = await run(
      { environment, steps: 1, groupSize: 2, promptsPerStep: 1, callbacks: { onStep: () => seen.push(1) } },
      model,
    )
    const whole = tokenizer.encode(tokenizer.applyChatTemplate([{ role: 'user', content: 'ab' }], { addGenerationPrompt: true }))
    expect(turns).toHaveLength(6)
    // the prompt once for both; behind each of four turns its last token, and the reply, whose first token may be the sampled end
    const least = whole.length + 4 * (1 + tokenizer.encode('<|user|>more<|model|>').length)
    expect(metrics!['sampling/prefilled_tokens']).toBeGreaterThanOrEqual(least)
    expect(metrics!['sampling/prefilled_tokens']).toBeLessThanOrEqual(least + 4)
    expect(metrics!['sampling/evicted_sequences']).toBe(0)
    expect(metrics!['episodes/turns']).toBe(3)
  })

  it('encodes the prompt once for the whole group', async () => {
    using model = await create()
    const encoded: string[] = []
    const counting = new Proxy(tokenizer, {
      get(target, name) {
        const value = Reflect.get(target, name, target)
        if (typeof value !== 'function') return value
        return (...args: unknown[]) => {
          if (name === 'encode') encoded.push(String(args[0]))
          return value.apply(target, args)
        }
      },
    })
    await run({ environment: asking, tokenizer: counting, steps: 1, groupSize: 4, promptsPerStep: 3 }, model)
    const prompts = encoded.filter((text) => text.startsWith('<|user|>') && !text.includes(';;') && text.endsWith('<|model|>'))
    expect(prompts.filter((text) => !text.includes('more')).sort()).toEqual(
      dataset.map(({ prompt }) => `<|user|>${prompt}<|model|>`).sort(),
    )
  })

  it('samples with the log-probabilities of training in all turns, with tools', async () => {
    using model = await create()
    for (const metrics of await run({ environment: asking, tools, toolTimeout: 0.02, steps: 3 }, model)) {
      expect(metrics['tools/call_frequency']).toBeGreaterThan(0)
      expect(metrics['sampling/logprob_difference/max']).toBeLessThan(1e-5)
    }
  })

  it('does not depend on how long its environment and its tools think', async () => {
    const of = async (wait: (k: number) => number) => {
      using model = await create()
      let k = 0
      const later = (value: unknown) => new Promise((resolve) => setTimeout(() => resolve(value), wait(k++)))
      const slow = defineTool({ name: 'add', description: 'Adds.', parameters: { type: 'object' }, run: () => later('3') })
      const environment: Environment = async (problem, context) => {
        const episode = await asking(problem, context)
        return { ...episode, step: async (turn) => (await later(episode.step!(turn))) as object }
      }
      const metrics = (await run({ environment, tools: [slow, fail], toolConcurrency: 2 }, model)).map(timeless)
      return { metrics, parameters: await parametersOf(model) }
    }
    expect(await of((k) => (k % 5) * 2)).toEqual(await of(() => 0))
  })
})

describe('a tool', () => {
  it('returns an error message if it fails, hangs, is unknown or gets wrong arguments', async () => {
    using model = await create()
    const environment: Environment = ({ prompt }) => {
      const messages = [{ role: 'user', content: prompt as string }]
      return { prompt: messages, step: ({ index }) => ({ done: index === 2 }) }
    }
    using trainer = new RLTTTrainer(model, {
      ...base,
      environment,
      tools,
      toolTimeout: 0.02,
      groupSize: 32,
      steps: 1,
      reward: () => 1,
    })
    const metrics = []
    for await (const event of trainer.run()) if (event.type === 'step') metrics.push(event.metrics)
    const runner = new ToolRunner({ concurrency: 2, timeout: 0.02, signal: new AbortController().signal })
    const results = await Promise.all(
      calls.map((text) => {
        const { name, arguments: args } = JSON.parse(text.slice(11, -12))
        return runner.run(tools, { id: '1', type: 'function', function: { name, arguments: JSON.stringify(args) } })
      }),
    )
    expect(results.map(({ failed }) => failed)).toEqual([false, true, true, true, true])
    expect(results.map(({ content }) => content)).toEqual([
      '3',
      expect.stringMatching(/^Error: add: wrong arguments: a: .*number.*; b: /),
      'Error: there is no tool "divide"; there are: add, fail, hang',
      'Error: no luck',
      'Error: hang gave no answer within 0.02 s',
    ])
    expect(stopped.at(-1)).toMatch(/no answer/)
    expect(metrics[0]!['tools/failure_frequency']).toBeGreaterThan(0)
    expect(metrics[0]!['tools/failure_frequency']).toBeLessThan(1)
  })

  it('is checked when it is defined', async () => {
    const define = (more: object) =>
      refusal(() => defineTool({ name: 'x', description: 'd', parameters: { type: 'object' }, run: () => 1, ...more } as never))
    expect((await define({ name: 'a b' })).message).toMatch(/name must be 1 to 64 letters/)
    expect((await define({ parameters: z.string() })).message).toMatch(/parameters must describe an object/)
    const valibot = { type: 'object', entries: {}, '~standard': { version: 1, vendor: 'valibot' } }
    for (const parameters of [z3.object({ a: z3.string() }), valibot])
      expect((await define({ parameters })).message).toMatch(/parameters is a schema of Zod 3 or of another.*'zod\/v4'/)
    expect((await define({ parameters: 3 })).message).toMatch(/parameters must be a schema of Zod or a JSON Schema/)
    expect((await define({ run: 3 })).message).toMatch(/run must be a function/)
    expect((await define({ params: 3 })).message).toMatch(/tool\.params: unknown option; the options are name/)
  })
})

describe('an environment', () => {
  const folder = mkdtempSync(join(tmpdir(), 'looplm-episodes-'))
  afterAll(() => rmSync(folder, { recursive: true }))

  it.each([
    [
      'throws',
      () => Promise.reject(new Error('the server is down')),
      /dataset\[\d\], turn 2: step\(\) failed: the server is down/,
    ],
    ['hangs', () => new Promise(() => {}), /dataset\[\d\], turn 2: step\(\) failed: no answer within environmentTimeout = 0.1 s/],
    ['answers late', () => new Promise((resolve) => setTimeout(resolve, 300, {})), /no answer within environmentTimeout/],
    ['answers nonsense', async () => ({ reward: 'much' }), /turn 2: reward must be a finite number, got/],
  ] as const)(
    'fails only its step if it %s: episodes are closed, and a resumed run is bit-identical',
    async (name, act, message) => {
      const runDir = join(folder, name)
      const closed = new Set<number>()
      let broken = true
      const seeds: number[] = []
      const environment: Environment = async (problem, context) => {
        const episode = await asking(problem, context)
        seeds.push(context.seed)
        const id = seeds.length
        return {
          ...episode,
          step: (turn) =>
            broken && turn.index === 1 && seeds.length > 12 && id % 5 === 0 ? (act() as never) : episode.step!(turn),
          close: () => void closed.add(id),
        }
      }
      const options = { environment, runDir, saveEvery: 1, environmentTimeout: 0.1 }
      using model = await create()
      const error = await refusal(() => run(options, model))
      expect(error.message).toMatch(message)
      expect(closed.size).toBe(seeds.length)
      broken = false
      using resumed = await create()
      const [second] = await run({ ...options, resume: true }, resumed)
      using undisturbed = await create()
      const [, same] = await run({ environment: asking }, undisturbed)
      expect(timeless(second!)).toEqual(timeless(same!))
      expect(await parametersOf(resumed)).toEqual(await parametersOf(undisturbed))
      expect(seeds.slice(24)).toEqual(seeds.slice(12, 24)) // the repeated step has the same seeds
    },
  )

  it.each([
    ['fails', {}, async (_: Episode, k: number) => k === 1 && Promise.reject(new Error('no server')), /no server/],
    ['answers too late', { environmentTimeout: 0.05 }, async () => {}, /no answer within environmentTimeout/],
    ['answers nonsense', {}, async (episode: Episode) => void Object.assign(episode, { prompt: 5 }), /episode with a prompt/],
  ])('that %s before the first turn leaves no episode open', async (_, options, act, message) => {
    using model = await create()
    let [asked, opened, closed] = [0, 0, 0]
    const environment: Environment = async (problem, context) => {
      const episode = { ...(await asking(problem, context)), close: () => void closed++ }
      await act(episode, ++asked)
      await wait(100)
      opened++
      return episode
    }
    expect((await refusal(() => run({ environment, ...options }, model))).message).toMatch(message)
    await vi.waitFor(() => expect(opened).toBeGreaterThanOrEqual(asked - 1))
    await vi.waitFor(() => expect(closed).toBe(opened))
  })

  it.each(['fails', 'is aborted'])('whose run %s has closed its episodes when the run ends', async (how) => {
    using model = await create()
    let [opened, closed] = [0, 0]
    const controller = new AbortController()
    const environment: Environment = (problem, context) => {
      opened++
      return {
        ...(asking(problem, context) as Episode),
        step: async () => {
          if (how === 'fails') throw new Error('no luck')
          controller.abort()
          return {}
        },
        close: async () => {
          await wait(50)
          closed++
        },
      }
    }
    using trainer = new RLTTTrainer(model, { ...base, environment })
    const play = async () => {
      for await (const _ of trainer.run({ signal: controller.signal }));
    }
    if (how === 'fails') expect((await refusal(play)).message).toMatch(/no luck/)
    else await play()
    expect([opened, closed]).toEqual([12, 12])
  })

  it('continues a string prompt with string replies', async () => {
    using model = await create()
    const environment: Environment = ({ prompt }) => ({
      prompt: prompt as string,
      step: ({ index }) => (index === 0 ? { reply: 'ab' } : { reward: 1, done: true }),
    })
    const seen: Rollout[] = []
    const callbacks: TrainerCallbacks = { onRollouts: ({ rollouts }) => void seen.push(...rollouts) }
    const [metrics] = await run({ environment, steps: 1, callbacks }, model)
    expect(metrics!.reward).toBe(1)
    expect(seen).toHaveLength(12)
    for (const { tokens, promptLength, mask, turns, columns } of seen) {
      const decode = (begin: number, end: number) => tokenizer.decode(tokens.slice(begin, end), { skipSpecialTokens: false })
      expect(decode(0, promptLength)).toBe(columns.prompt)
      const [first, second] = turns!
      expect([first!.begin, second!.end]).toEqual([promptLength, tokens.length])
      expect(decode(first!.end, second!.begin)).toBe('ab')
      expect(Array.from(mask!.slice(first!.end - promptLength, second!.begin - promptLength))).toEqual([0, 0])
    }
  })

  it('is rejected without a prompt or with contradictory options', async () => {
    using model = await create()
    expect((await refusal(() => run({ environment: () => ({}) as never }, model))).message).toMatch(
      /must return an episode with a prompt/,
    )
    for (const tools of [[{}], {}, [null]])
      expect((await refusal(() => run({ environment: () => ({ prompt: 'ab', tools }) as never }, model))).message).toMatch(
        /tools of an episode must be a list of tools, as defineTool makes them/,
      )
    expect((await refusal(() => run({ environment: asking, rollout: async () => [] }, model))).message).toMatch(/not both/)
    expect((await refusal(() => run({ tools }, model))).message).toMatch(/tools: needs an environment/)
    expect((await refusal(() => run({ environment: asking, maxEpisodeTokens: 4 }, model))).message).toMatch(/maxEpisodeTokens/)
  })
})

describe('a template that rewrites earlier turns', () => {
  const strips = template.replace('{{ message.content }}', "{{ message.content | replace('a', 'b') }}")
  const rewriting = fragmentTokenizer(alphabet, fragments, ';;', strips)
  const environment: Environment = (problem, context) =>
    ({ ...(asking(problem, context) as object), prompt: [{ role: 'user', content: 'b' }] }) as never
  const options = { environment, tokenizer: rewriting, groupSize: 16 }

  it('fails with an error that suggests reencode', async () => {
    using model = await create()
    const { message } = await refusal(() => run(options, model))
    expect(message).toMatch(
      /turn \d: reply: the chat template rewrites earlier turns once they are answered: .* set reencode: true/,
    )
  })

  it('works with reencode: true, with the log-probabilities of training', async () => {
    using model = await create()
    for (const metrics of await run({ ...options, reencode: true }, model))
      expect(metrics['sampling/logprob_difference/max']).toBeLessThan(1e-5)
  })
})

describe('evaluations', () => {
  it('play episodes in trainer.evaluate and evaluate, greedily and with several samples', async () => {
    using model = await create()
    using trainer = new RLTTTrainer(model, { ...base, environment: asking, evalDataset: dataset })
    const [, full] = await trainer.evaluate({ problems: 3 })
    const options = { dataset, tokenizer, environment: asking, maxNewTokens: 4, maxTurns: 3 }
    const [, same] = await evaluate(model, options)
    expect(same).toEqual(full)
    expect(same!.completionLength).toBeGreaterThan(4) // of several turns
    const judged = await evaluate(model, { ...options, loops: [2], samples: 4, reward: (_, text) => Number(text.includes('a')) })
    expect(Object.keys(judged[0]!.passAt!)).toEqual(['1', '2', '4'])
    expect((await refusal(() => evaluate(model, { dataset, tokenizer, tools }))).message).toMatch(/tools: needs an environment/)
  })

  it('call the rollout function of the trainer, and add the reward functions to its rewards as training does', async () => {
    using model = await create()
    const asked: number[] = []
    const options: RLTTOptions = {
      ...{ ...base, maxTurns: undefined, evalDataset: dataset },
      rollout: async (problems, { groupSize, generation }) => {
        asked.push(generation.temperature!)
        return problems.map((columns) => ({
          ...{ tokens: Int32Array.of(1, 2), promptLength: 1, reward: groupSize, truncated: false, text: 'x', columns },
        }))
      },
    }
    using trainer = new RLTTTrainer(model, options)
    const [first] = await trainer.evaluate({ problems: 2, loops: [1] })
    expect(first!.rewards).toEqual([1, 1])
    expect(asked).toEqual([0])
    const reward = (_prompt: string, text: string, { prompt }: Record<string, unknown>) =>
      text === 'x' && prompt !== '' ? 5 : null
    using rated = new RLTTTrainer(model, { ...options, reward })
    expect((await rated.evaluate({ problems: 2, loops: [1] }))[0]!.rewards).toEqual([6, 6])
  })
})

describe('branches', () => {
  const played = async (entropy: number, options: RLTTOptions = {}) => {
    using model = await create()
    const turns: { seed: number; texts: string[] }[] = []
    const environment: Environment = async (problem, context) => {
      const episode = await asking(problem, context)
      const texts: string[] = []
      turns.push({ seed: context.seed, texts })
      return {
        ...episode,
        step: (turn) => {
          texts.push(turn.text)
          return episode.step!(turn)
        },
      }
    }
    const metrics = await run({ environment, branch: { entropy, width: 2 }, steps: 1, ...options }, model)
    return { turns, metrics: metrics.map(timeless), parameters: await parametersOf(model) }
  }

  it('share earlier turns and have the log-probabilities of training', async () => {
    const { turns, metrics } = await played(0)
    expect(turns).toHaveLength(12) // a group of four has two episodes at its prompt, and each branches once
    const beginnings = new Set(turns.map(({ seed, texts }) => `${seed} ${texts[0]}`))
    expect(beginnings.size).toBeLessThanOrEqual(6)
    expect(new Set(turns.map(({ seed, texts }) => `${seed} ${texts.join(' ')}`)).size).toBeGreaterThan(beginnings.size)
    expect(metrics[0]!['sampling/logprob_difference/max']).toBeLessThan(1e-5)
    const plain = await played(100)
    expect(metrics[0]!['sampling/prefilled_tokens']).toBeLessThan(plain.metrics[0]!['sampling/prefilled_tokens']!)
  })

  it('are replaced by whole episodes where the model is certain', async () => {
    const { turns } = await played(100)
    expect(turns).toHaveLength(12)
    expect(turns.every(({ texts }) => texts.length === 3)).toBe(true)
  })

  it('give the same bits when repeated, and fill the group at width 3', async () => {
    expect(await played(0.5)).toEqual(await played(0.5))
    const three = await played(0, { branch: { entropy: 0, width: 3 } }) // of a group of four: three and one
    expect(three.turns).toHaveLength(12)
  })
})
