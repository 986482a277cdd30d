import { existsSync } from 'node:fs'
import { basename, resolve } from 'node:path'
import type { Command } from 'commander'
import { whenAborted } from '../abort.js'
import { LoopLMError } from '../errors.js'
import { checkServeOptions, type ServeOptions } from '../serve/options.js'
import { createServer } from '../serve/server.js'
import {
  cacheOptions,
  collect,
  type ModelFlags,
  modelOptions,
  natural,
  nonNegative,
  openModel,
  positiveInteger,
} from './arguments.js'
import { interruptible, print } from './output.js'

interface ServeFlags extends ModelFlags, Omit<ServeOptions, 'corsOrigins' | 'log'> {
  corsOrigin?: string[]
}

/** Adds `looplm serve`. */
export function addServe(program: Command): void {
  const command = program
    .command('serve')
    .description("serve a checkpoint over OpenAI's HTTP interface; Ctrl-C lets running answers end first")
    .argument('<model>', 'checkpoint folder, GGUF file, or name of a downloaded model, with a tokenizer')
    .option('--host <address>', 'address to listen on; one that other machines reach needs an API key (default: 127.0.0.1)')
    .option('--port <number>', 'port; 0 chooses a free one (default: 8000)', natural)
    .option('--name <name>', "the model's name in requests (default: that of the folder, or of the downloaded model)")
    .option('--api-key <key>', 'key that clients must send; safer in the environment variable LOOPLM_API_KEY')
    .option(
      '--cors-origin <origin>',
      'origin of web pages that may call the server, such as https://example.com; may be repeated',
      collect,
    )
    .option('--max-running <count>', 'most sequences generated at once (default: 32)', positiveInteger)
    .option('--max-waiting <count>', 'most sequences in the queue; further requests are refused (default: 128)', natural)
    .option(
      '--max-cached-tokens <count>',
      'tokens in the KV cache, of prompts and answers (default: half of the free memory of the device)',
      positiveInteger,
    )
    .option('--no-prompt-cache', 'compute every prompt from its first token instead of reusing cached beginnings')
    .option(
      '--prefill-tokens <count>',
      'prompt tokens computed between two tokens of running answers (default: 256)',
      positiveInteger,
    )
    .option('--max-context <count>', "most tokens of prompt and answer together (default: the model's)", positiveInteger)
    .option('--max-new-tokens <count>', 'most tokens of an answer (default: 4096)', positiveInteger)
    .option('--max-body-bytes <count>', 'largest request body (default: 1000000)', positiveInteger)
    .option('--max-connections <count>', 'most connections at once (default: 1024)', positiveInteger)
    .option('--header-timeout <seconds>', 'time limit for the headers of a request to arrive (default: 10)', nonNegative)
    .option('--body-timeout <seconds>', 'time limit for the body of a request to arrive (default: 30)', nonNegative)
    .option(
      '--request-timeout <seconds>',
      'time limit for an answer, from the request to its last token (default: 600)',
      nonNegative,
    )
    .option('--write-timeout <seconds>', 'time limit for a client that stops reading its answer (default: 30)', nonNegative)
    .option('--stop-timeout <seconds>', 'time that running answers get to end after Ctrl-C (default: 20)', nonNegative)
  modelOptions(cacheOptions(command)).action(serve)
}

async function serve(folder: string, flags: ServeFlags): Promise<void> {
  const { device, dtype, threads, adapter, quantize, groupSize, activations, corsOrigin, promptCache, ...rest } = flags
  const apiKey = flags.apiKey ?? process.env.LOOPLM_API_KEY
  if (flags.apiKey === undefined && apiKey === '') {
    const message =
      'looplm serve: the environment variable LOOPLM_API_KEY is empty; set it to a key, or unset it to serve without one'
    throw new LoopLMError('INVALID_ARGUMENT', message)
  }
  const options: ServeOptions = {
    name: existsSync(folder) ? basename(resolve(folder)) : folder,
    ...rest,
    ...(promptCache === false ? { promptCache } : {}), // without the flag it is true, even if kv does not allow it
    ...(apiKey === undefined ? {} : { apiKey }),
    ...(corsOrigin === undefined ? {} : { corsOrigins: corsOrigin }),
    log: (line) => process.stderr.write(`error: ${line}\n`),
  }
  checkServeOptions(options) // fails before a large model is loaded
  using model = await openModel(folder, { device, dtype, threads, adapter, quantize, groupSize, activations } as ModelFlags)
  const server = createServer(model, options)
  await interruptible(async (signal) => {
    const url = await server.listen()
    print(`${server.settings.name} at ${url}/v1`)
    await new Promise<void>((done) => whenAborted(signal, done))
    await server.close()
  })
}
