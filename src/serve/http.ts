// What the server needs of HTTP beyond node:http: bounded bodies, errors that reach the client, limits for clients that do not
// read, and server-sent events.
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { types } from 'node:util'
import { maxJsonDepth, nestsTooDeep, tooDeep } from '../validation/json-depth.js'
import { isDeeper } from '../validation/json-value.js'
import { HttpError } from './http-error.js'

/** How long a rejected client may continue to send before its connection is cut, so that it can read the error. */
const lingerMilliseconds = 1000

/**
 * Reads a JSON body in UTF-8. If a parser such as `express.json()` has already run, takes `request.body`: a value, or its text.
 *
 * @throws HttpError 400, 408, 413 or 415; 500 if middleware has read the body without keeping it
 */
export async function readBody(request: IncomingMessage, maxBytes: number, milliseconds: number): Promise<unknown> {
  const type = request.headers['content-type'] ?? ''
  if (!/^application\/json(;\s*charset="?utf-8"?)?\s*$/i.test(type)) {
    // a web page can only send this type to a server that allows it (CORS)
    throw new HttpError(415, `content-type must be application/json, got ${JSON.stringify(type.slice(0, 80))}`)
  }
  let { body } = request as { body?: unknown }
  if (body === undefined) {
    if (request.headers['content-encoding'] !== undefined) throw new HttpError(415, 'content-encoding is not supported')
    body = await receive(request, maxBytes, milliseconds)
  }
  const refuseDepth = () => new HttpError(400, `the body: ${tooDeep}`, { code: 'invalid_json' })
  if (typeof body !== 'string' && !types.isUint8Array(body)) {
    if (isDeeper(body, maxJsonDepth)) throw refuseDepth()
    return body
  }
  try {
    const text = typeof body === 'string' ? body : new TextDecoder('utf-8', { fatal: true }).decode(body)
    if (nestsTooDeep(text)) throw refuseDepth()
    return JSON.parse(text)
  } catch (cause) {
    if (cause instanceof HttpError) throw cause
    throw new HttpError(400, `the body is not JSON in UTF-8: ${(cause as Error).message}`, { code: 'invalid_json' })
  }
}

function receive(request: IncomingMessage, maxBytes: number, milliseconds: number): Promise<Buffer> {
  if (request.readableEnded) {
    const remedy = 'set request.body to it, or mount the handler in front of what reads bodies'
    throw new HttpError(500, `the body was read before the handler was called; ${remedy}`, { code: 'body_consumed' })
  }
  return new Promise((resolve, reject) => {
    const tooLarge = () => new HttpError(413, `the body must have at most ${maxBytes} bytes`, { code: 'body_too_large' })
    const parts: Buffer[] = []
    let size = 0
    const settle = (error?: Error) => {
      clearTimeout(timer)
      request.off('data', onData).off('end', onEnd).off('close', onClose)
      if (error === undefined) resolve(Buffer.concat(parts, size))
      else reject(error)
    }
    const timer = setTimeout(
      () => settle(new HttpError(408, `the body did not arrive within ${milliseconds / 1000} s`, { code: 'body_timeout' })),
      milliseconds,
    )
    const onData = (part: Buffer) => {
      size += part.length
      parts.push(part)
      if (size > maxBytes) settle(tooLarge())
    }
    const onEnd = () => settle()
    const onClose = () => settle(new HttpError(400, 'the body ended early'))
    request.on('data', onData).on('end', onEnd).on('close', onClose)
    if (Number(request.headers['content-length']) > maxBytes) settle(tooLarge())
  })
}

/** Sends JSON. */
export function sendJson(response: ServerResponse, status: number, value: unknown): void {
  const text = JSON.stringify(value)
  response.writeHead(status, { 'content-type': 'application/json; charset=utf-8', 'content-length': Buffer.byteLength(text) })
  response.end(text)
}

/** Sends an error. A client that is still sending gets time to read it. */
export function sendError(request: IncomingMessage, response: ServerResponse, error: HttpError): void {
  if (response.destroyed) return
  for (const [name, value] of Object.entries(error.headers)) response.setHeader(name, value)
  if (request.complete) {
    sendJson(response, error.status, error.body)
    return
  }
  const text = JSON.stringify(error.body)
  const headers = { 'content-type': 'application/json; charset=utf-8', 'content-length': Buffer.byteLength(text) }
  response.writeHead(error.status, { ...headers, connection: 'close' })
  response.write(text)
  const end = () => {
    clearTimeout(timer)
    request.off('end', end).off('close', end)
    response.end()
  }
  const timer = setTimeout(end, lingerMilliseconds)
  request.on('end', end).on('close', end).resume()
}

/** Cuts the connection of a client that leaves a response unread for this long. */
export function limitWriting(response: ServerResponse, milliseconds: number): void {
  // any traffic on a socket restarts its timer, even part of a long write
  response.setTimeout(milliseconds, () => {
    if ((response.socket?.writableLength ?? 0) > 0) response.destroy()
  })
}

/** Answers data that is not HTTP, or a request whose head is too slow or too large. */
export function refuseSocket(error: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy()
    return
  }
  const [status, reason, message] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? [431, 'Request Header Fields Too Large', 'the headers are too large']
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? [408, 'Request Timeout', 'the request did not arrive in time']
        : [400, 'Bad Request', 'this is not an HTTP request']
  const text = JSON.stringify(new HttpError(status as number, message as string).body)
  const head = `HTTP/1.1 ${status} ${reason}\r\ncontent-type: application/json; charset=utf-8\r\n`
  socket.end(`${head}content-length: ${Buffer.byteLength(text)}\r\nconnection: close\r\n\r\n${text}`)
}

/** Sends a server-sent event. The head is written with the first event, so that earlier errors are ordinary error responses. */
export function sendEvent(response: ServerResponse, data: string): void {
  if (!response.headersSent) {
    response.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no', // tells proxies not to buffer events
    })
  }
  response.write(`data: ${data}\n\n`)
}
