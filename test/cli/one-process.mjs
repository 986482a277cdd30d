// node test/cli/one-process.mjs: runs command lines one after the other, each as a separate process runs it: a command has ended when nothing
// is left to do. Reads them as JSON, and prints what each wrote and its exit code. Starting Node and loading the package takes most of a
// short command.
import { text } from 'node:stream/consumers'

const commands = JSON.parse(await text(process.stdin))
process.stdout.setMaxListeners(0)
process.stderr.setMaxListeners(0)
const write = process.stdout.write.bind(process.stdout)
const outcomes = []
for (const stream of ['stdout', 'stderr'])
  process[stream].write = (piece) => {
    outcomes.at(-1)[stream] += piece
    return true
  }
function next() {
  if (outcomes.length > 0) outcomes.at(-1).code = process.exitCode ?? 0
  process.exitCode = 0
  const args = commands[outcomes.length]
  if (args === undefined) return write(JSON.stringify(outcomes))
  outcomes.push({ stdout: '', stderr: '' })
  process.argv.splice(2, Infinity, ...args)
  process.once('beforeExit', next)
  import(`../../dist/src/cli/main.js?${outcomes.length}`)
}
next()
