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

/** Slots of all planes of a layer are numbered by 32-bit integers. */
export const maxCachedTokens = 2 ** 24

const schema = z.strictObject({
  name: z.string().min(1).default('looplm'),
  host: z.string().min(1).default('127.0.0.1'),
  port: z.int().min(0).max(65_535).default(8000),
  apiKey: z.string().min(1).optional(),
  corsOrigins: z.array(z.string().min(1)).default([]),
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
  /** The model's name in requests and answers. Default `looplm`. */
  name?: string
  /** Address to listen on; default 127.0.0.1. Any address that is not a loopback one needs an `apiKey`. */
  host?: string
  /** Default 8000; 0 is any free port. */
  port?: number
  /** When given, every path but /health needs `Authorization: Bearer KEY`. */
  apiKey?: string
  /** Origins of web pages that may call; `*` is any. Default none (CORS is off). */
  corsOrigins?: readonly string[]
  /** Sequences generated at once; default 32. */
  maxRunning?: number
  /** Sequences that may wait for a place; more are refused with 429. Default 128. */
  maxWaiting?: number
  /** Tokens in the cache at once, prompts and room for the answers; sequences wait for room. Default what half of the device's free memory holds. */
  maxCachedTokens?: number
  /** Cache planes per loop (exact, default) or one that all loops share (a T-th of the memory). */
  kv?: 'per-loop' | 'shared'
  /** What the cache keeps of keys and values, see {@link CacheType}. Default `model`. */
  cacheType?: CacheType
  /**
   * Prompts stay in the cache, and later ones that begin alike run the rest alone, see {@link PromptCache}. Default true with kv `per-loop`;
   * kv `shared` cannot.
   */
  promptCache?: PromptCache
  /** `wavefront`: several positions of a sequence at once, the same answers ({@link GenerateOptions.speculate}). Default `off`. */
  speculate?: 'wavefront' | 'off'
  /** Tokens of prompts that run between two tokens of the answers under way: fewer keep those flowing, more are faster. Default 256. */
  prefillTokens?: number
  /** Connections at once; default 1024. */
  maxConnections?: number
  /** Size of a request's body; default 1,000,000. */
  maxBodyBytes?: number
  /** Tokens of a prompt and its answer together; default and at most the model's `max_position_embeddings`. */
  maxContext?: number
  /** Tokens of an answer; default 4096. */
  maxNewTokens?: number
  /** For the headers of a request to arrive; default 10. */
  headerTimeout?: number
  /** For the body of a request to arrive; default 30. */
  bodyTimeout?: number
  /** For a request to be answered, waiting and reading included; default 600. */
  requestTimeout?: number
  /** For a client to read on when an answer waits for it, else it is cut; default 30. */
  writeTimeout?: number
  /** For running requests to end when the server stops; default 20. */
  stopTimeout?: number
  /** Receives a line for every internal error. */
  log?: (line: string) => void
}

/** Options that are absent where nobody gave them. */
type Open = 'apiKey' | 'maxCachedTokens'

/** Options with their defaults. */
export type ServeSettings = Required<Omit<ServeOptions, Open>> & { [Field in Open]?: ServeOptions[Field] | undefined }

/** What a server runs with: all options but the key, so that it is not printed with them. */
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

/** True for names and addresses that only this machine reaches. */
export function isLoopback(host: string): boolean {
  const name = host.replace(/^\[|\]$/g, '').toLowerCase()
  if (name === 'localhost' || name === '::1') return true
  return isIP(name) === 4 && name.startsWith('127.')
}

/** As many tokens as half of the device's free memory holds keys and values of, but no more than all places can use. */
export function roomForTokens(
  { architecture, config, device, dtype }: LoopLM,
  { kv, cacheType, maxRunning }: Pick<ServeSettings, 'kv' | 'cacheType' | 'maxRunning'>,
): number {
  const bytes = cachePerToken(architecture, kv === 'shared' ? 1 : architecture.loops, dtype, cacheType)
  const useful = maxRunning * config.max_position_embeddings
  return Math.max(1, Math.min(useful, Math.floor(deviceMemory(device).free / 2 / bytes), maxCachedTokens))
}
