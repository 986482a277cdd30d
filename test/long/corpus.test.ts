// A corpus in bounded memory: the text's token ids alone would not fit into the heap that the process gets.
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { finished } from 'node:stream/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'looplm-large-'))
})
afterAll(() => rm(root, { recursive: true }))

/** Peak resident MiB of a process with a heap of 48 MB that reads a corpus and takes batches from it. */
function peak(path: string): number {
  const index = new URL('../../dist/src/index.js', import.meta.url).href
  const script = `
    import { Corpus, Tokenizer } from ${JSON.stringify(index)}
    const corpus = await Corpus.open(${JSON.stringify(path)}, Tokenizer.bytes(), { contextLength: 512, heldOutShare: 0.05 })
    for (let step = 0; step < 20; step++) await corpus.take(32 * step, 32)
    console.log(process.resourceUsage().maxRSS / 1024)`
  return Number(
    execFileSync(process.execPath, ['--max-old-space-size=48', '--input-type=module', '--eval', script], { encoding: 'utf8' }),
  )
}

async function write(name: string, bytes: number): Promise<string> {
  const path = join(root, name)
  const file = createWriteStream(path)
  const line = `${'The cat sat on the mat and saw a bird. '.repeat(4)}\n`
  for (let written = 0; written < bytes; written += 1000 * line.length) {
    if (!file.write(line.repeat(1000))) await once(file, 'drain')
  }
  file.end()
  await finished(file)
  return path
}

it('reads 16 MB of text in a heap of 48 MB', async () => {
  const [small, large] = [peak(await write('small.txt', 2e6)), peak(await write('large.txt', 16e6))]
  console.log(`peak resident: ${small.toFixed(0)} MiB for 2 MB of text, ${large.toFixed(0)} MiB for 16 MB`)
  expect(large - small).toBeLessThan(64) // 16 million ids are 64 MB even as int32
})
