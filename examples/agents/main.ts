// npm run agent -- calculator | search | proposer: an agent before and after reinforcement, on held-out problems.
import { parseArgs } from 'node:util'
import { share } from './agent.js'
import { calculator } from './calculator.js'
import { proposer } from './proposer.js'
import { search } from './search.js'

const agents = { calculator, search, proposer }
const { values: flags, positionals } = parseArgs({
  options: { seed: { type: 'string', default: '0' }, scale: { type: 'string', default: '1' } },
  allowPositionals: true,
})
const [name = ''] = positionals
if (!Object.hasOwn(agents, name)) {
  console.error(`Give one of ${Object.keys(agents).join(', ')}, for example: npm run agent -- calculator`)
  process.exit(1)
}
const start = performance.now()
const elapsed = () => `${((performance.now() - start) / 1000).toFixed(0).padStart(4)} s`
const say = (text: string) => console.log(`${elapsed()}  ${text}`)
const { before, after } = await agents[name as keyof typeof agents]({ seed: Number(flags.seed), scale: Number(flags.scale), say })
const { user, system } = process.cpuUsage()
say(`before: ${share(before)}`)
say(`after:  ${share(after)}`)
say(`processor time: ${((user + system) / 1e6).toFixed(0)} s`)
