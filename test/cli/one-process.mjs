// node test/cli/one-process.mjs: runs command lines one after the other, each as the program does when a process of its own starts it. Reads
// them as JSON, and prints what each wrote and its exit code. To start Node and to load the package takes most of a short command.
import { text } from 'node:stream/consumers'
import { setImmediate } from 'node:timers/promises'

const commands = JSON.parse(await text(process.stdin))
process.stdout.setMaxListeners(0)
process.stderr.setMaxListeners(0)
const write = process.stdout.write.bind(process.stdout)
const outcomes = []
for (const [i, args] of commands.entries()) {
  const outcome = { code: null, stdout: '', stderr: '' }
  for (const stream of ['stdout', 'stderr'])
    process[stream].write = (piece) => {
      outcome[stream] += piece
      return true
    }
  process.argv.splice(2, Infinity, ...args)
  process.exitCode = undefined
  await import(`../../dist/src/cli/main.js?${i}`)
  while (process.exitCode === undefined) await setImmediate()
  outcomes.push({ ...outcome, code: process.exitCode })
}
process.exitCode = 0
write(JSON.stringify(outcomes))
