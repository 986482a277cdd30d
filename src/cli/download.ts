import type { Command } from 'commander'
import { download as fetchCheckpoint } from '../data/download.js'
import { downloadDataset } from '../data/download-dataset.js'
import { LoopLMError } from '../errors.js'
import { interruptible, print } from './output.js'

interface DownloadFlags {
  revision?: string
  cacheDir?: string
  dataset?: boolean
  split?: string
  config?: string
}

/** Adds `looplm download`. */
export function addDownload(program: Command): void {
  program
    .command('download')
    .description(
      'fetch a checkpoint or a dataset from the Hugging Face Hub and print its folder; needs the package @huggingface/hub',
    )
    .argument('<name>', 'repository, such as ByteDance/Ouro-1.4B')
    .option('--revision <name>', 'branch, tag or commit (default: main)')
    .option('--cache-dir <folder>', "cache folder (default: that of Hugging Face's own tools)")
    .option('--dataset', 'the repository is a dataset')
    .option('--split <name>', 'split of the dataset (default: train where it has several)')
    .option('--config <name>', 'configuration of the dataset')
    .action(download)
}

async function download(name: string, { revision, cacheDir, dataset, split, config }: DownloadFlags): Promise<void> {
  if (dataset !== true && (split ?? config) !== undefined) {
    throw new LoopLMError(
      'INVALID_ARGUMENT',
      'looplm download: --split and --config belong to datasets; add --dataset, or omit them',
    )
  }
  const { stderr } = process
  const drawn = stderr.isTTY === true
  let last = 0
  const onProgress = (file: string, received: number, size: number) => {
    const done = received === size
    if (!done && (!drawn || Date.now() - last < 100)) return
    last = Date.now()
    const line = `${file}  ${(received / 1e6).toFixed(1)} of ${(size / 1e6).toFixed(1)} MB`
    stderr.write(drawn ? `\r\x1b[2K${line}${done ? '\n' : ''}` : `${line}\n`)
  }
  const fetchAll = (signal: AbortSignal) => {
    const options = { revision, cacheDir, signal, onProgress }
    return dataset === true ? downloadDataset(name, { ...options, split, config }) : fetchCheckpoint(name, options)
  }
  print(await interruptible(fetchAll))
}
