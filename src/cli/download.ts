import type { Command } from 'commander'
import { download as fetchCheckpoint } from '../data/download.js'
import { interruptible, print } from './output.js'

interface DownloadFlags {
  revision?: string
  cacheDir?: string
}

/** Adds `looplm download`. */
export function addDownload(program: Command): void {
  program
    .command('download')
    .description('fetch a checkpoint from the Hugging Face Hub and print its folder; needs the package @huggingface/hub')
    .argument('<name>', 'repository, such as ByteDance/Ouro-1.4B')
    .option('--revision <name>', 'branch, tag or commit (default: main)')
    .option('--cache-dir <folder>', "cache; default that of Hugging Face's own tools")
    .action(download)
}

async function download(name: string, { revision, cacheDir }: DownloadFlags): Promise<void> {
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
  print(await interruptible((signal) => fetchCheckpoint(name, { revision, cacheDir, signal, onProgress })))
}
