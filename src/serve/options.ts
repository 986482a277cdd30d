import { isIP } from 'node:net'
import { z } from 'zod'
import { LoopLMError } from '../errors.js'
import { cachePerToken, cacheTypes } from '../model/cache-type.js'
import type { LoopLM } from '../model/model.js'
import type { CacheType, PromptCache } from '../model/types.js'
import { deviceMemory } from '../tensor/devices.js'
import { parseOptions } from '../validation/schema.js'

const seconds = (fallback: number) => z.number().positive().max(86_400).default(fallback)
const count = (fallback: number) => z.int().min(1).max(1_000_000).default(fallback)

const origin = z.string().refine(isOrigin, {
  error: ({ input }) =>
    `must be * or an origin as browsers send it, such as https://example.com without a final slash, got ${JSON.stringify(input)}`,
})

/** Slots of all planes of a layer are numbered by 32-bit integers. */
export const maxCachedTokens = 2 ** 24

const schema = z.strictObject({
  name: z.string().min(1).default('looplm'),
  host: z.string().min(1).default('127.0.0.1'),
  port: z.int().min(0).max(65_535).default(8000),
  apiKey: z.string().min(1).optional(),
  corsOrigins: z.array(origin).default([]),
  maxRunning: count(32),
  maxWaiting: z.int().min(0).max(1_000_000).default(128),
  maxCachedTokens: z.int().min(1).max(maxCachedTokens).optional(),
  kv: z.enum(['per-loop', 'shared']).default('per-loop'),
  cacheType: z.enum(cacheTypes).default('model'),
  promptCache: z.union([z.boolean(), z.strictObject({ maxTokens: z.int().min(1).max(maxCachedTokens).optional() })]).optional(),
  speculate: z.enum(['wavefront', 'off']).default('off'),
  prefillTokens: count(256),
  maxConnections: count(1024),
  maxBodyBytes: count(1_000_000),
  maxContext: count(1_000_000),
  maxNewTokens: count(4096),
  headerTimeout: seconds(10),
  bodyTimeout: seconds(30),
  requestTimeout: seconds(600),
  writeTimeout: seconds(30),
  stopTimeout: seconds(20),
  log: z.custom<(line: string) => void>((value) => typeof value === 'function', 'must be a function').default(() => () => {}),
})

/** Options of {@link createServer}. Times are in seconds. */
export interface ServeOptions {
  /** The model's name in requests and responses. Defaults to `looplm`. */
  name?: string
  /** Address to listen on. Defaults to 127.0.0.1. An address that is not a loopback address requires an `apiKey`. */
  host?: string
  /** Port to listen on. 0 chooses any free port. Defaults to 8000. */
  port?: number
  /** If set, every path except /health needs `Authorization: Bearer KEY`. */
  apiKey?: string
  /**
   * Origins of web pages that may send requests, such as `https://example.com`; `*` allows any. Defaults to none (CORS is off).
   */
  corsOrigins?: readonly string[]
  /** How many sequences generate at the same time. Defaults to 32. */
  maxRunning?: number
  /** How many sequences may wait. Further ones are rejected with 429. Defaults to 128. */
  maxWaiting?: number
  /**
   * Capacity of the KV cache in tokens, for prompts and their responses. Sequences wait until there is room. Defaults to what
   * half of the device's free memory holds.
   */
  maxCachedTokens?: number
  /** One cache plane per loop (exact, the default) or one that all loops share (1/T of the memory). */
  kv?: 'per-loop' | 'shared'
  /** What the cache stores of keys and values, see {@link CacheType}. Defaults to `model`. */
  cacheType?: CacheType
  /**
   * Keep prompts in the cache, so that later prompts with the same beginning only run the rest, see {@link PromptCache}.
   * Defaults to true with kv `per-loop`; not available with kv `shared`.
   */
  promptCache?: PromptCache
  /**
   * `wavefront` decodes several positions of a sequence at once, with the same result ({@link GenerateOptions.speculate}).
   * Defaults to `off`.
   */
  speculate?: 'wavefront' | 'off'
  /**
   * How many prompt tokens run between two decoding steps. Fewer interrupt running responses less, more process prompts faster.
   * Defaults to 256.
   */
  prefillTokens?: number
  /** The most simultaneous connections. Defaults to 1024. */
  maxConnections?: number
  /** The largest body of a request, in bytes. Defaults to 1,000,000. */
  maxBodyBytes?: number
  /**
   * The most tokens of a prompt and its response together. Defaults to, and is at most, the model's `max_position_embeddings`.
   */
  maxContext?: number
  /** The most tokens of a response. Defaults to 4096. */
  maxNewTokens?: number
  /** Time limit for receiving the headers of a request. Defaults to 10. */
  headerTimeout?: number
  /** Time limit for receiving the body of a request. Defaults to 30. */
  bodyTimeout?: number
  /** Time limit for a whole request, including waiting and reading. Defaults to 600. */
  requestTimeout?: number
  /** How long a client may leave a response unread before it is cut. Defaults to 30. */
  writeTimeout?: number
  /** How long running requests may continue when the server stops. Defaults to 20. */
  stopTimeout?: number
  /** Called with a line for every internal error. */
  log?: (line: string) => void
}

/** Options without a default. */
type Open = 'apiKey' | 'maxCachedTokens'

/** Options with their defaults. */
export type ServeSettings = Required<Omit<ServeOptions, Open>> & { [Field in Open]?: ServeOptions[Field] | undefined }

/** The settings of a server: all options except the key, so that it is never printed with them. */
export type ServerSettings = Omit<Required<ServeOptions>, 'apiKey'>

/**
 * Checks options.
 *
 * @throws LoopLMError INVALID_CONFIG naming each field
 */
export function checkServeOptions(options: ServeOptions): ServeSettings {
  const settings = parseOptions('createServer', schema, options)
  if (!isLoopback(settings.host) && settings.apiKey === undefined) {
    const message = `apiKey: is needed because host ${settings.host} can be reached from other machines; looplm serve reads LOOPLM_API_KEY`
    throw new LoopLMError('INVALID_CONFIG', message, { operation: 'createServer' })
  }
  const promptCache = settings.promptCache ?? settings.kv === 'per-loop'
  if (promptCache !== false && settings.kv === 'shared') {
    const message =
      "promptCache: continuing a prompt needs the keys and values of every loop, and kv 'shared' has only the last. " +
      "Use kv 'per-loop', or omit promptCache"
    throw new LoopLMError('INVALID_CONFIG', message, { operation: 'createServer' })
  }
  return { ...settings, promptCache }
}

/** Whether browsers may send this in the header Origin, or it stands for every origin. */
function isOrigin(text: string): boolean {
  if (text === '*' || text === 'null') return true
  if (!URL.canParse(text)) return false
  const { origin, protocol, host } = new URL(text)
  return text === (origin === 'null' ? `${protocol}//${host}` : origin) // apps use other schemes, such as tauri://localhost
}

/** Whether only this machine can reach a name or address. */
export function isLoopback(host: string): boolean {
  const name = host.replace(/^\[|\]$/g, '').toLowerCase()
  if (name === 'localhost' || name === '::1') return true
  return isIP(name) === 4 && name.startsWith('127.')
}

/**
 * The number of tokens whose keys and values fit in half of the device's free memory, in bytes, but no more than all sequences
 * together can use.
 */
export function roomForTokens(
  { architecture, config, device, dtype }: LoopLM,
  { kv, cacheType, maxRunning }: Pick<ServeSettings, 'kv' | 'cacheType' | 'maxRunning'>,
  free = deviceMemory(device).free,
): number {
  const bytes = cachePerToken(architecture, kv === 'shared' ? 1 : architecture.loops, dtype, cacheType)
  const useful = maxRunning * config.max_position_embeddings
  return Math.max(1, Math.min(useful, Math.floor(free / 2 / bytes), maxCachedTokens))
}
