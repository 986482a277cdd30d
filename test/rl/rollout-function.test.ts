// Rollouts of a caller's own function: they train as the trainer's own do, and what does not fit is named.
import { describe, expect, it, vi } from 'vitest'
import { type Problem, type RLTTOptions, RLTTTrainer, type Rollout, type RolloutFunction } from '../../src/index.js'
import { refusal } from '../refusal.js'
import { timeless } from '../timeless.js'
import { parametersOf, tinyModel, tinyTask, variedReward } from '../tiny.js'

const base = { task: tinyTask, promptsPerStep: 4, groupSize: 4, steps: 2, learningRate: 1e-2, logprobCheckEvery: 1 } as const

async function run(options: RLTTOptions) {
  using model = await tinyModel()
  using trainer = new RLTTTrainer(model, { ...base, ...options })
  const metrics = []
  for await (const event of trainer.run()) if (event.type === 'step') metrics.push(timeless(event.metrics))
  return { metrics, parameters: await parametersOf(model) }
}

/** What the trainer itself does. */
const plain: RolloutFunction = async (problems, { model, tokenizer, groupSize, generation }) => {
  const prompts = problems.flatMap(({ prompt }) => Array<number[]>(groupSize).fill(tokenizer.encode(prompt as string)))
  const results = await model.generate(prompts, generation)
  return results.map(({ tokens, logprobs, loops, finishReason }, i) => {
    const columns = problems[Math.floor(i / groupSize)]!
    const text = tokenizer.decode(finishReason === 'stop' ? tokens.slice(0, -1) : tokens)
    return {
      tokens: Int32Array.from([...prompts[i]!, ...tokens]),
      promptLength: prompts[i]!.length,
      ...{ samplingLogprobs: logprobs, loops, text, columns },
      reward: null,
      truncated: finishReason === 'length',
    }
  })
}

describe('a rollout function', () => {
  it('gives the same bits if it does what the trainer does', async () => {
    expect(await run({ rollout: plain, reward: variedReward })).toEqual(await run({ reward: variedReward }))
  })

  it('can return rewards, which reward functions add to, and a mask', async () => {
    const rollout: RolloutFunction = async (problems, context) =>
      (await plain(problems, context)).map((made, i) => ({
        ...made,
        reward: i % 3,
        mask: Uint8Array.from({ length: made.tokens.length - made.promptLength }, (_, j) => Number(j > 0)),
      }))
    const { metrics } = await run({ rollout, reward: () => 1 })
    expect(metrics[0]!.reward).toBeCloseTo(1 + 15 / 16, 12) // 0, 1, 2, 0, 1, … of 16
    const whole = await run({ rollout: plain, reward: variedReward })
    expect(metrics[0]!['completions/mean_length']).toBe(whole.metrics[0]!['completions/mean_length']! - 1)
  })

  it('receives the step, its seed and an abort signal', async () => {
    const seen: unknown[] = []
    const rollout: RolloutFunction = (problems: Problem[], context) => {
      seen.push([context.step, problems.length, context.signal instanceof AbortSignal, context.seed === context.generation.seed])
      return plain(problems, context)
    }
    await run({ rollout, reward: variedReward })
    expect(seen).toEqual([0, 1].map((step) => [step, 4, true, true]))
  })

  it('has its log-probabilities compared with those of training', async () => {
    const shifted: RolloutFunction = async (problems, context) =>
      (await plain(problems, context)).map((made, i) => ({
        ...made,
        samplingLogprobs: made.samplingLogprobs!.map((value, k) => value + (i === 5 && k === 0 ? -1 : 0.25)),
      }))
    const { metrics } = await run({ rollout: shifted, reward: variedReward })
    expect(metrics[0]!['sampling/logprob_difference/max']).toBeCloseTo(1, 9)
    const tokens = 16 * metrics[0]!['completions/mean_length']!
    expect(metrics[0]!['sampling/logprob_difference/mean']).toBeCloseTo(0.25 + 0.75 / tokens, 9)
  })

  it.each(['some', 'all'])('can return a prompt without an answer: %s of them', async (which) => {
    const rollout: RolloutFunction = async (problems, context) =>
      (await plain(problems, context)).map((made, i) => {
        if (which === 'some' && i % 4 > 0) return { ...made, reward: i % 2 }
        return {
          tokens: made.tokens.slice(0, made.promptLength),
          ...{ promptLength: made.promptLength, columns: made.columns },
          reward: i % 2,
          truncated: false,
          text: '',
        }
      })
    const answered = await run({ rollout, loops: 2 })
    const compared = 'sampling/logprob_difference/max'
    expect(answered.metrics[0]![compared]).toBeLessThan(1e-4)
    expect(answered.metrics[0]!.grad_norm! > 0).toBe(which === 'some')
    expect((await run({ rollout, loops: 2, logprobCheckEvery: 0 })).parameters).toEqual(answered.parameters)
  })

  it('that ignores its signal does not keep an aborted run, evaluation or other trainer waiting', async () => {
    using model = await tinyModel()
    let asked = 0
    const rollout: RolloutFunction = () => {
      asked++
      return new Promise(() => {})
    }
    using trainer = new RLTTTrainer(model, { ...base, rollout })
    const aborting = async (action: (signal: AbortSignal) => Promise<unknown>) => {
      const controller = new AbortController()
      const before = asked
      const running = action(controller.signal)
      await vi.waitFor(() => expect(asked).toBe(before + 1))
      controller.abort()
      return running
    }
    const events: unknown[] = []
    await aborting(async (signal) => {
      for await (const { type } of trainer.run({ signal })) events.push(type)
    })
    expect(events).toEqual(['done'])
    const error = await refusal(() => aborting((signal) => trainer.evaluate({ problems: 1, signal })))
    expect([error.code, error.message]).toEqual(['ABORTED', 'rollout: the run was aborted'])
    using other = new RLTTTrainer(model, { ...base, reward: variedReward })
    expect((await other.run().next()).value).toMatchObject({ type: 'step', step: 1 })
  })

  it('that fails in an evaluation is named', async () => {
    using model = await tinyModel()
    using trainer = new RLTTTrainer(model, { ...base, rollout: () => Promise.reject(new Error('no network')) })
    expect((await refusal(() => trainer.evaluate({ problems: 1 }))).message).toBe('rollout: evaluation of step 0: no network')
  })

  const changed =
    (change: (made: Rollout) => object): RolloutFunction =>
    async (problems, context) => {
      const made = await plain(problems, context)
      return made.map((one, i) => (i === 5 ? { ...one, ...change(one) } : one)) as Rollout[]
    }
  it.each<[RolloutFunction, RegExp]>([
    [async () => 'none' as never, /^rollout: the function must return an array of rollouts, got 'none'$/],
    [
      async (problems, context) => (await plain(problems, context)).slice(1),
      /groupSize rollouts for each problem, 16 in all, got 15/,
    ],
    [changed(() => ({ masks: [1] })), /\[5\]\.masks: unknown field; did you mean .*mask/],
    [changed(() => ({ tokens: [99, 1] })), /\[5\]\.tokens\[0\] must be a token id below 12, got 99/],
    [changed(() => ({ promptLength: 0 })), /\[5\]\.promptLength must be an integer from 1 to/],
    [changed(() => ({ mask: [2] })), /\[5\]\.mask must have one entry for each of the \d+ tokens behind the prompt/],
    [
      changed(({ loops }) => ({ mask: loops!.map(() => 2) })),
      /\[5\]\.mask\[0\] must be 1 where the model wrote the token, else 0, got 2/,
    ],
    [
      changed(({ loops }) => ({ samplingLogprobs: loops!.map(() => Number.NaN) })),
      /\[5\]\.samplingLogprobs\[0\] must be finite, got NaN/,
    ],
    [
      changed(() => ({ reward: Number.POSITIVE_INFINITY })),
      /\[5\]\.reward must be a finite number, or null for none, got Infinity/,
    ],
    [changed(() => ({ turns: [{ begin: 0, end: 4, reward: 1 }] })), /\[5\]\.turns\[0\] must lie behind the prompt/],
    [changed(() => ({ text: undefined })), /\[5\]\.text must be a string, got undefined/],
    [async () => Promise.reject(new Error('no network')), /rollout: step 1: no network/],
  ])('fails with an error that names the invalid result: %#', async (rollout, message) => {
    expect((await refusal(() => run({ rollout, reward: variedReward }))).message).toMatch(message)
  })
})
