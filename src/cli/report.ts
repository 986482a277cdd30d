import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Command } from 'commander'
import { whenAborted } from '../abort.js'
import { LoopLMError } from '../errors.js'
import { writeReport } from '../monitor/report.js'
import { RunFolder } from '../monitor/run-folder.js'
import { watch } from '../monitor/watch.js'
import { portNumber } from './arguments.js'
import { interruptible, print } from './output.js'

/** Adds `looplm report` and `looplm watch`. */
export function addReport(program: Command): void {
  program
    .command('report')
    .description('write an HTML report of a run, or one that compares several; the file works offline')
    .argument('<runs...>', 'run folders')
    .option('--out <file>', 'output file (default for a single run: report.html in its folder)')
    .action(async (runs: string[], { out }: { out?: string }) => {
      if (out === undefined && runs.length > 1) {
        throw new LoopLMError('INVALID_ARGUMENT', 'a comparison needs an output file, for example --out comparison.html', {
          operation: 'report',
        })
      }
      for (const run of runs) await requireRun(run)
      const path = out ?? join(runs[0]!, 'report.html')
      await writeReport(runs, path)
      print(path)
    })
  program
    .command('watch')
    .description('serve the report of runs on this machine and update it while they train; Ctrl-C ends it')
    .argument('<runs...>', 'run folders')
    .option('--port <number>', 'port; 0 chooses a free one', portNumber, 0)
    .action(async (runs: string[], { port }: { port: number }) => {
      const watcher = await watch(runs, port)
      print(watcher.url)
      await interruptible((signal) => new Promise<void>((done) => whenAborted(signal, done)))
      await watcher.close()
    })
}

/** Rejects a folder that does not contain a run, whose report would be empty. */
async function requireRun(path: string): Promise<void> {
  const found = await stat(path).catch(() => undefined)
  if (!found?.isDirectory() || (await RunFolder.holdsRun(path))) return // reading a missing folder reports it
  const message = `${path} holds no run: it has neither metrics.jsonl nor config.yaml nor checkpoints`
  throw new LoopLMError('NOT_FOUND', message, { operation: 'report' })
}
