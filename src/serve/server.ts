import { randomUUID } from 'node:crypto'
import { setMaxListeners } from 'node:events'
import { createServer as createHttpServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { finished } from 'node:stream/promises'
import { errorMessage, LoopLMError } from '../errors.js'
import { LoopLM } from '../model/model.js'
import { checkInstance } from '../validation/arguments.js'
import { authorize, crossOrigin } from './access.js'
import { Admission } from './admission.js'
import { Answers } from './answers.js'
import { endpoints } from './endpoints.js'
import { limitWriting, readBody, refuseSocket, sendError, sendJson } from './http.js'
import { HttpError, toHttpError } from './http-error.js'
import { checkServeOptions, roomForTokens, type ServeOptions, type ServerSettings } from './options.js'
import { contextOf, type Served } from './plan.js'
import { Metrics } from './prometheus.js'

/** The client disconnected: nobody reads the response. */
const clientGone = new HttpError(499, 'the client left')
const stopped = () => new HttpError(503, 'the server is stopping; try another one', { code: 'stopping' })

const reads = ['GET', 'HEAD', 'OPTIONS']
const writes = ['POST', 'OPTIONS']
const paths: Readonly<Record<string, readonly string[]>> = {
  '/health': reads,
  '/metrics': reads,
  '/v1/models': reads,
  ...Object.fromEntries(Object.keys(endpoints).map((path) => [path, writes])),
}

/**
 * An HTTP server with OpenAI's API for one model. {@link createServer} creates it. The sequences of all requests run in one
 * batch of the model.
 */
export class LoopLMServer {
  /** The options with their defaults, without the key. */
  readonly settings: Readonly<ServerSettings>
  readonly #apiKey: string | undefined
  readonly #served: Served
  readonly #server: Server
  readonly #admission: Admission
  readonly #metrics: Metrics
  readonly #open = new Set<AbortController>()
  readonly #answers: Answers
  readonly #created = Math.floor(Date.now() / 1000)
  #listening: Promise<string> | undefined
  #stopping: Promise<void> | undefined

  /** @internal */
  constructor(model: LoopLM, options: ServeOptions) {
    checkInstance(model, 'model', LoopLM, 'LoopLM.create and LoopLM.fromPretrained resolve to', 'createServer')
    const { apiKey, ...checked } = checkServeOptions(options)
    const settings = { ...checked, maxCachedTokens: checked.maxCachedTokens ?? roomForTokens(model, checked) }
    const { tokenizer } = model
    if (tokenizer === undefined) {
      const message = 'the model has no tokenizer; load a folder with tokenizer.json or set model.tokenizer'
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'createServer' })
    }
    this.settings = settings
    this.#apiKey = apiKey
    this.#served = { model, tokenizer, settings }
    this.#admission = new Admission(settings.maxRunning, settings.maxWaiting)
    this.#metrics = new Metrics(model.config.total_ut_steps, {
      running: () => this.#admission.running,
      waiting: () => this.#admission.waiting,
      requests: () => this.#open.size,
      cachedTokens: () => this.#answers.count('cachedTokens'),
      retained: () => this.#answers.count('retained'),
      passes: () => this.#answers.count('passes'),
      passRows: () => this.#answers.count('passRows'),
      drafted: () => this.#answers.count('drafted'),
      accepted: () => this.#answers.count('accepted'),
      cachedTokensLimit: () => settings.maxCachedTokens,
    })
    this.#answers = new Answers(this.#served, settings, this.#admission, this.#metrics)
    const header = settings.headerTimeout * 1000
    this.#server = createHttpServer(
      {
        headersTimeout: header,
        requestTimeout: header + settings.bodyTimeout * 1000 + 1000, // the limit for the body fires first
        connectionsCheckingInterval: Math.min(1000, header),
        keepAliveTimeout: 30_000,
        requireHostHeader: false, // node's own error has no body
      },
      (request, response) => this.handler(request, response),
    )
    // time limit for a connection without traffic
    this.#server.timeout = this.#server.requestTimeout + settings.requestTimeout * 1000
    this.#server.maxConnections = settings.maxConnections
    this.#server.on('clientError', refuseSocket).on('checkExpectation', this.handler)
  }

  /**
   * Starts to listen, unless the server already listens.
   *
   * @returns the address, for example `http://127.0.0.1:8000`
   * @throws LoopLMError INVALID_ARGUMENT if the address cannot be used, DISPOSED after {@link LoopLMServer.close}
   */
  async listen(): Promise<string> {
    if (this.#stopping !== undefined) {
      const message = 'the server was closed and cannot listen again; create another one'
      throw new LoopLMError('DISPOSED', message, { operation: 'LoopLMServer.listen' })
    }
    this.#listening ??= this.#listen()
    return this.#listening
  }

  async #listen(): Promise<string> {
    const { host, port } = this.settings
    await new Promise<void>((resolve, reject) => {
      const fail = (cause: Error) => {
        this.#listening = undefined // another try may succeed
        const taken = (cause as NodeJS.ErrnoException).code === 'EADDRINUSE'
        const remedy = taken ? '; another program listens there: stop it, or choose another port (0 is any free one)' : ''
        reject(new LoopLMError('INVALID_ARGUMENT', `cannot listen on ${host}:${port}: ${cause.message}${remedy}`, { cause }))
      }
      this.#server.once('error', fail).listen(port, host, () => {
        this.#server.off('error', fail)
        resolve()
      })
    })
    const { address, port: actual } = this.#server.address() as AddressInfo
    return `http://${address.includes(':') ? `[${address}]` : address}:${actual}`
  }

  /**
   * Stops the server. New requests are rejected. Running ones may end within `stopTimeout` seconds; after that they are cut
   * with a message.
   *
   * @returns when every connection is closed
   */
  close(): Promise<void> {
    this.#stopping ??= this.#stop()
    return this.#stopping
  }

  async #stop(): Promise<void> {
    await this.#listening?.catch(() => {})
    const closed = new Promise<void>((resolve) => {
      if (this.#server.listening) this.#server.close(() => resolve())
      else resolve()
    })
    const cut = () => {
      for (const controller of this.#open) controller.abort(stopped())
    }
    const timers = [
      setTimeout(cut, this.settings.stopTimeout * 1000),
      setTimeout(() => this.#server.closeAllConnections(), this.settings.stopTimeout * 1000 + 2000),
      setInterval(() => this.#server.closeIdleConnections(), 100),
    ]
    this.#server.closeIdleConnections()
    await closed
    // requests to a handler that is mounted elsewhere
    while (this.#open.size > 0) await new Promise((resolve) => setTimeout(resolve, 10))
    for (const timer of timers) clearTimeout(timer)
    this.#answers.dispose()
  }

  /**
   * Answers one request. You can mount it in any server that has node:http's requests, for example `app.use(server.handler)`.
   */
  readonly handler = (request: IncomingMessage, response: ServerResponse): void => {
    const start = performance.now()
    // the target is a path, or a whole URL as sent to proxies
    const [, authority, target = ''] = /^(?:https?:\/\/([^/?]*))?([^?]*)/i.exec(request.url ?? '') ?? []
    const path = target.replace(/(?<=[^/])\/$/, '') // some clients add a slash to the path
    response.on('close', () => {
      const known = path in paths ? path : 'other'
      const status = response.headersSent ? response.statusCode : 499
      this.#metrics.requests.add(1, { path: known, status: String(status) })
      this.#metrics.duration.observe((performance.now() - start) / 1000)
    })
    response.on('error', () => {}) // the client disconnected during a write
    response.setHeader('x-request-id', randomUUID())
    if (this.#stopping !== undefined) response.setHeader('connection', 'close')
    this.#route(request, response, path, authority).catch((error: unknown) => this.#fail(request, response, error))
  }

  #fail(request: IncomingMessage, response: ServerResponse, error: unknown): void {
    const refusal = toHttpError(error)
    if (refusal.status === 500 || (refusal.status > 500 && refusal !== error)) {
      const id = response.getHeader('x-request-id')
      this.settings.log(
        `${request.method} ${request.url} (${id}): ${(error as Partial<Error> | undefined)?.stack ?? errorMessage(error)}`,
      )
    }
    if (!response.headersSent) {
      sendError(request, response, refusal)
      return
    }
    if (response.writableNeedDrain || response.writableEnded)
      response.destroy() // a client that does not read would not read an error either
    else response.end(`data: ${JSON.stringify(refusal.body)}\n\n`)
  }

  async #route(
    request: IncomingMessage,
    response: ServerResponse,
    path: string,
    authority = request.headers.host,
  ): Promise<void> {
    const { settings } = this
    if (request.headers.host === undefined && request.httpVersion === '1.1')
      throw new HttpError(400, 'the Host header is missing')
    const { expect } = request.headers
    if (expect !== undefined && !/^100-continue$/i.test(expect)) {
      throw new HttpError(417, `expect: ${expect.slice(0, 80)} cannot be met, only 100-continue`, { code: 'expectation_failed' })
    }
    if (crossOrigin(request, response, settings.corsOrigins)) return
    const model = /^\/v1\/models\/(.+)$/.exec(path)?.[1]
    const methods = model === undefined ? paths[path] : paths['/v1/models']
    if (path !== '/health') authorize(request, authority, settings.host, this.#apiKey)
    if (methods === undefined) {
      const message = `there is no ${path.slice(0, 200)}; there are ${Object.keys(paths).join(', ')}`
      throw new HttpError(404, message, { code: 'not_found' })
    }
    if (!methods.includes(request.method ?? '')) {
      throw new HttpError(405, `${path} accepts ${methods.join(', ')}`, { headers: { allow: methods.join(', ') } })
    }
    if (request.method === 'OPTIONS') {
      response.writeHead(204, { allow: methods.join(', ') }).end()
      return
    }
    if (model !== undefined) {
      if (model !== settings.name && model !== encodeURIComponent(settings.name)) {
        throw new HttpError(404, `there is no model ${model.slice(0, 200)}`, { param: 'model', code: 'model_not_found' })
      }
      sendJson(response, 200, this.#modelObject())
      return
    }
    switch (path) {
      case '/health':
        this.#health(response)
        return
      case '/metrics': {
        response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' })
        response.end(this.#metrics.text())
        return
      }
      case '/v1/models':
        sendJson(response, 200, { object: 'list', data: [this.#modelObject()] })
        return
      default:
        await this.#answer(request, response, path)
    }
  }

  #health(response: ServerResponse): void {
    const { running, waiting } = this.#admission
    const stopping = this.#stopping !== undefined
    const status = stopping ? 'stopping' : 'ok'
    sendJson(response, stopping ? 503 : 200, { status, model: this.settings.name, running, waiting })
  }

  #modelObject(): object {
    const { name } = this.settings
    const { total_ut_steps: loops } = this.#served.model.config
    return { id: name, object: 'model', created: this.#created, owned_by: 'looplm', loops, context: contextOf(this.#served) }
  }

  async #answer(request: IncomingMessage, response: ServerResponse, path: string): Promise<void> {
    if (this.#stopping !== undefined) throw stopped()
    const { settings } = this
    const controller = new AbortController()
    setMaxListeners(0, controller.signal) // every choice of the request adds a listener
    let answered = false
    response.once('finish', () => {
      // destroying drops what the client has not read, but node reports the response as finished
      answered = !request.socket.destroyed
    })
    const leave = () => {
      if (answered) return
      this.#metrics.disconnects.add()
      controller.abort(clientGone)
    }
    response.once('close', leave)
    limitWriting(response, settings.writeTimeout * 1000)
    this.#open.add(controller)
    const late = new HttpError(504, `no answer within ${settings.requestTimeout} s`, { code: 'timeout' })
    const timer = setTimeout(() => controller.abort(late), settings.requestTimeout * 1000)
    try {
      const { signal } = controller
      const body = await readBody(request, settings.maxBodyBytes, settings.bodyTimeout * 1000)
      const parts = { served: this.#served, answers: this.#answers, metrics: this.#metrics }
      await endpoints[path]!({ ...parts, body, response, controller })
      await finished(response, { signal }).catch(() => signal.throwIfAborted()) // until the client has received it
    } finally {
      clearTimeout(timer)
      this.#open.delete(controller)
    }
  }
}

/**
 * A server with OpenAI's HTTP interface: /v1/models, /v1/completions and /v1/chat/completions with streaming, /v1/embeddings,
 * /health and /metrics. Besides OpenAI's fields, requests take `loops` and `exit`, and responses report the loops of their
 * tokens.
 *
 * @param model must have a tokenizer, and a chat template to serve chats; the server does not dispose the model
 * @param options address, access and limits
 * @throws LoopLMError INVALID_CONFIG naming each rejected option, INVALID_ARGUMENT without a tokenizer
 *
 * @example
 * ```ts
 * const server = createServer(model, { name: 'ouro', port: 8000 })
 * console.log(await server.listen()) // http://127.0.0.1:8000
 * await server.close()
 * ```
 */
export function createServer(model: LoopLM, options: ServeOptions = {}): LoopLMServer {
  return new LoopLMServer(model, options)
}
