#!/usr/bin/env node
import { Command, CommanderError } from 'commander'
import { packageVersion } from '../package-root.js'
import { addChat } from './chat.js'
import { addDownload } from './download.js'
import { addEstimate } from './estimate.js'
import { addEval } from './eval.js'
import { addExport } from './export.js'
import { addGenerate } from './generate.js'
import { addInfo } from './info.js'
import { addOptions } from './options.js'
import { exitCodes, reportError } from './output.js'
import { addPlan } from './plan.js'
import { addQuantize } from './quantize.js'
import { addReport } from './report.js'
import { addServe } from './serve.js'
import { addTrain } from './train.js'

const program = new Command('looplm')
  .description('Train and run looped language models.')
  .version(packageVersion())
  .showHelpAfterError('(see --help)')
  .exitOverride()

for (const add of [
  addTrain,
  addPlan,
  addEstimate,
  addGenerate,
  addChat,
  addServe,
  addDownload,
  addQuantize,
  addEval,
  addReport,
  addExport,
  addOptions,
  addInfo,
])
  add(program)

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
