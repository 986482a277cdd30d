// The agents of examples/agents learn: success on held-out problems is higher after reinforcement than before, and the intervals do not
// overlap.
import { expect, it } from 'vitest'
import { calculator } from '../../examples/agents/calculator.js'
import { proposer } from '../../examples/agents/proposer.js'
import { search } from '../../examples/agents/search.js'

it.each([
  ['calculator', calculator, 0.9],
  ['search', search, 0.5],
  ['proposer', proposer, 0],
])(
  '%s',
  async (_, agent, least) => {
    const { before, after } = await agent()
    expect(after.interval.low).toBeGreaterThan(before.interval.high)
    expect(after.reward).toBeGreaterThan(least)
  },
  900_000,
)
