#!/usr/bin/env node
import { Command, CommanderError } from 'commander'
import { packageVersion } from '../package-root.js'
import { exitCodes, reportError } from './output.js'

const program = new Command('looplm')
  .description('Train and run looped language models.')
  .version(packageVersion())
  .showHelpAfterError('(see --help)')
  .exitOverride()

type Add = (program: Command) => void
const exporting = async (): Promise<Add> => (await import('./export.js')).addExport
const reporting = async (): Promise<Add> => (await import('./report.js')).addReport

/** Loads the module that adds a command: one command takes half the time to load that all of them take. */
const commands: Record<string, () => Promise<Add>> = {
  train: async () => (await import('./train.js')).addTrain,
  plan: async () => (await import('./plan.js')).addPlan,
  estimate: async () => (await import('./estimate.js')).addEstimate,
  generate: async () => (await import('./generate.js')).addGenerate,
  chat: async () => (await import('./chat.js')).addChat,
  serve: async () => (await import('./serve.js')).addServe,
  download: async () => (await import('./download.js')).addDownload,
  quantize: async () => (await import('./quantize.js')).addQuantize,
  eval: async () => (await import('./eval.js')).addEval,
  report: reporting,
  watch: reporting,
  export: exporting,
  push: exporting,
  options: async () => (await import('./options.js')).addOptions,
  info: async () => (await import('./info.js')).addInfo,
}

/** What a command line needs: its command, nothing for the version, and all of them for help and for an unknown name. */
function neededBy(word: string | undefined): Iterable<() => Promise<Add>> {
  if (word === '--version' || word === '-V') return []
  return word !== undefined && Object.hasOwn(commands, word) ? [commands[word]!] : new Set(Object.values(commands))
}
for (const load of neededBy(process.argv[2])) (await load())(program)

// a reader such as head may close the pipe early; a terminal may have hung up
process.stdout.on('error', (error: { code?: string }) => {
  if (error.code === 'EPIPE') process.exit(exitCodes.ok)
  if (error.code !== 'EIO') throw error
})
process.stderr.on('error', () => {})

program.parseAsync().catch((error: unknown) => {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? exitCodes.ok : exitCodes.usage
  else process.exitCode = reportError(error)
})
