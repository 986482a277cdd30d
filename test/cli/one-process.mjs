// Runs command lines one after the other, each as a separate process runs it: a command has ended when nothing is left to do. Gets each as
// a message, and answers with what it wrote and its exit code. Starting Node and loading the package takes most of a short command.
import { Readable } from 'node:stream'

let outcome
let count = 0
for (const stream of ['stdout', 'stderr']) {
  process[stream].setMaxListeners(0)
  process[stream].write = (piece, ...more) => {
    outcome[stream] += piece
    const done = more.at(-1)
    if (typeof done === 'function') process.nextTick(done)
    return true
  }
}
process.on('warning', ({ name, message }) => process.stderr.write(`${name}: ${message}\n`))
process.on('message', ({ args, cwd, input }) => {
  process.chdir(cwd)
  process.channel.unref()
  outcome = { code: 0, signal: null, stdout: '', stderr: '' }
  process.exitCode = 0
  process.argv.splice(2, Infinity, ...args)
  const stdin = Readable.from(input === undefined ? [] : [Buffer.from(input)])
  Object.defineProperty(process, 'stdin', { value: stdin, configurable: true })
  import(`../../dist/src/cli/main.js?${count++}`)
})
process.on('beforeExit', () => {
  if (outcome === undefined || !process.connected) return
  process.channel.ref()
  process.send({ ...outcome, code: process.exitCode ?? 0 })
  outcome = undefined
})
