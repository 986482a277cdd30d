// A model in a worker thread: the thread that asks keeps its event loop, and results arrive without a copy, because a typed array's memory
// can change hands.
import { once } from 'node:events'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'
import { openModel } from './model.js'

interface Answer {
  text: string
  tokens: Int32Array
  logprobs: Float32Array
}

if (isMainThread) {
  const worker = new Worker(new URL(import.meta.url), { argv: process.argv.slice(2) })
  for (const prompt of ['one ', 'two ', 'three ']) {
    worker.postMessage(prompt)
    const [{ text, tokens, logprobs }] = (await once(worker, 'message')) as [Answer]
    const mean = logprobs.reduce((sum, logprob) => sum + logprob, 0) / logprobs.length
    console.log(`${prompt}→ ${tokens.length} tokens, mean log-probability ${mean.toFixed(3)}: ${JSON.stringify(text)}`)
  }
  worker.postMessage(null)
  await once(worker, 'exit')
} else {
  using model = await openModel()
  for (;;) {
    const [prompt] = (await once(parentPort!, 'message')) as [string | null]
    if (prompt === null) break
    const [result] = await model.generate([prompt], { maxNewTokens: 16, seed: 1 })
    const tokens = Int32Array.from(result!.tokens)
    const logprobs = result!.logprobs as Float32Array
    parentPort!.postMessage({ text: result!.text, tokens, logprobs }, [tokens.buffer, logprobs.buffer] as ArrayBuffer[])
  }
  parentPort!.close()
}
