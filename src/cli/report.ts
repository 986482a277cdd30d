import { join } from 'node:path'
import type { Command } from 'commander'
import { LoopLMError } from '../errors.js'
import { writeReport } from '../monitor/report.js'
import { watch } from '../monitor/watch.js'
import { natural } from './arguments.js'
import { interruptible, print } from './output.js'

/** Adds `looplm report` and `looplm watch`. */
export function addReport(program: Command): void {
  program
    .command('report')
    .description('write an HTML report of a run, or one that compares several; it needs no network to be read')
    .argument('<runs...>', 'run folders')
    .option('--out <file>', 'the file; default report.html in the folder of a single run')
    .action(async (runs: string[], { out }: { out?: string }) => {
      if (out === undefined && runs.length > 1) {
        throw new LoopLMError('INVALID_ARGUMENT', 'say where the comparison goes, for example --out comparison.html', {
          operation: 'report',
        })
      }
      const path = out ?? join(runs[0]!, 'report.html')
      await writeReport(runs, path)
      print(path)
    })
  program
    .command('watch')
    .description('serve the report of runs on this machine and update it while they train; Ctrl-C ends it')
    .argument('<runs...>', 'run folders')
    .option('--port <number>', 'port; 0 is any free one', natural, 0)
    .action(async (runs: string[], { port }: { port: number }) => {
      const watcher = await watch(runs, port)
      print(watcher.url)
      await interruptible(
        (signal) => new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true })),
      )
      await watcher.close()
    })
}
