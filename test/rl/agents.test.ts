// The agents of examples/agents in small form; test/long/agents.test.ts holds what they learn.
import { describe, expect, it, vi } from 'vitest'
import { calculator } from '../../examples/agents/calculator.js'
import { proposer } from '../../examples/agents/proposer.js'
import { search } from '../../examples/agents/search.js'
import { Trainer } from '../../src/rl/trainer.js'

describe('agents', () => {
  it.each([
    ['calculator', calculator, [8, 1]],
    ['search', search, [8, 1]],
    ['proposer', proposer, [9, 8]],
  ])('%s trains, plays episodes and is evaluated', async (_, agent, steps) => {
    const said: string[] = []
    const run = vi.spyOn(Trainer.prototype, 'run')
    const { before, after } = await agent({ scale: 0.02, say: (text) => said.push(text) })
    const trainers = run.mock.contexts as { step: number; config: object }[]
    run.mockRestore()
    expect(trainers.map(({ step }) => step)).toEqual(steps) // of Stage I and of reinforcement
    const last = trainers.at(-1)!.config
    expect('environment' in last || 'rollout' in last).toBe(true)
    expect(said.join('\n')).toMatch(/before reinforcement: .* held-out problems/)
    for (const { problems, interval, rewards } of [before, after]) {
      expect(rewards).toHaveLength(problems)
      expect(interval.low).toBeLessThanOrEqual(interval.high)
    }
  })
})
