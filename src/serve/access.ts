// Who may send requests: API keys, names of this machine, and web pages of other origins.
import { createHash, timingSafeEqual } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { HttpError } from './http-error.js'
import { isLoopback } from './options.js'

/**
 * Checks that a request has the key or, if no key is set, is addressed to this machine.
 *
 * @param authority host and port that the request is addressed to
 * @throws HttpError 401 or 403
 */
export function authorize(
  request: IncomingMessage,
  authority: string | undefined,
  host: string,
  apiKey: string | undefined,
): void {
  if (apiKey !== undefined) {
    const token = /^Bearer +(.+)$/i.exec(request.headers.authorization ?? '')?.[1] ?? ''
    const digest = (text: string) => createHash('sha256').update(text).digest()
    if (timingSafeEqual(digest(token), digest(apiKey))) return
    throw new HttpError(401, 'the API key is missing or wrong; send "Authorization: Bearer KEY"', {
      code: 'invalid_api_key',
      headers: { 'www-authenticate': 'Bearer' },
    })
  }
  // If a web page's host name was pointed at this machine (DNS rebinding), the request carries that name.
  const named = authority?.replace(/:\d+$/, '') ?? host
  if (isLoopback(named)) return
  throw new HttpError(403, `host ${named.slice(0, 200)} is not this machine; set an API key to serve under other names`)
}

/** Adds CORS headers and answers preflight requests. Returns true if the request was a preflight. */
export function crossOrigin(request: IncomingMessage, response: ServerResponse, corsOrigins: readonly string[]): boolean {
  const { origin } = request.headers
  if (origin === undefined || !(corsOrigins.includes('*') || corsOrigins.includes(origin))) return false
  response.setHeader('access-control-allow-origin', corsOrigins.includes('*') ? '*' : origin)
  response.setHeader('access-control-expose-headers', 'retry-after, x-looplm-max-tokens, x-request-id')
  response.setHeader('vary', 'origin')
  if (request.method !== 'OPTIONS') return false
  response.writeHead(204, {
    'access-control-allow-methods': 'GET, POST',
    'access-control-allow-headers': request.headers['access-control-request-headers'] ?? 'authorization, content-type',
    'access-control-max-age': '600',
  })
  response.end()
  return true
}
