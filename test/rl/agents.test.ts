// The agents of examples/agents in small form; test/long/agents.test.ts holds what they learn.
import { describe, expect, it } from 'vitest'
import { calculator } from '../../examples/agents/calculator.js'
import { proposer } from '../../examples/agents/proposer.js'
import { search } from '../../examples/agents/search.js'

describe('agents', () => {
  it.each([
    ['calculator', calculator],
    ['search', search],
    ['proposer', proposer],
  ])('%s trains, plays episodes and is evaluated', async (_, agent) => {
    const said: string[] = []
    const { before, after } = await agent({ scale: 0.02, say: (text) => said.push(text) })
    expect(said.join('\n')).toMatch(/before reinforcement: .* held-out problems/)
    for (const { problems, interval, rewards } of [before, after]) {
      expect(rewards).toHaveLength(problems)
      expect(interval.low).toBeLessThanOrEqual(interval.high)
    }
  })
})
