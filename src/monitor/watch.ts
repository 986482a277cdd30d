import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { LoopLMError, toLoopLMError } from '../errors.js'
import { checkPaths } from '../validation/arguments.js'
import { contentSecurityPolicy, reportData, reportPage } from './report.js'
import { RunReader } from './run-reader.js'

const host = '127.0.0.1'
const localNames = new Set(['127.0.0.1', 'localhost', '[::1]'])

/** A running server of live reports. */
export interface Watcher {
  /** The address of the page. */
  url: string
  /** Stops the server. */
  close(): Promise<void>
}

/**
 * Serves the report of runs that may still be training, on the loopback interface only. The page polls every second. The run's
 * files are read again if they have changed.
 *
 * @param runs run folders
 * @param port 0 chooses any free port
 * @throws LoopLMError NOT_FOUND for a folder that does not exist, INVALID_ARGUMENT if the port is in use or `runs` is no array
 *   of names
 *
 * @example
 * ```ts
 * const watcher = await watch(['runs/addition'])
 * console.log(watcher.url)
 * await watcher.close()
 * ```
 */
export async function watch(runs: readonly string[], port = 0): Promise<Watcher> {
  checkPaths(runs, 'runs', 'run folder', 'watch')
  const feed = new Feed(runs)
  await feed.current()
  const server = createServer((request, response) => {
    answer(feed, request, response).catch((error: unknown) => {
      if (!response.headersSent) response.writeHead(500, { 'Content-Type': 'text/plain; charset=utf-8' })
      response.end(toLoopLMError(error, 'watch').message)
    })
  })
  await listen(server, port)
  return {
    url: `http://${host}:${(server.address() as AddressInfo).port}/`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
}

/** The data of the reports. It is only rebuilt if a file of a run has changed. */
class Feed {
  readonly #readers: readonly RunReader[]
  #version: string | undefined
  #made: Promise<{ page: string; json: string; etag: string }> | undefined

  constructor(runs: readonly string[]) {
    this.#readers = runs.map((run) => new RunReader(run))
  }

  async current(): Promise<{ page: string; json: string; etag: string }> {
    const version = (await Promise.all(this.#readers.map((reader) => reader.version()))).join('\n')
    if (version !== this.#version || this.#made === undefined) {
      this.#version = version
      const made = (this.#made ?? Promise.resolve()).catch(() => {}).then(() => this.#make()) // only one read at a time
      this.#made = made
      // try again later: a folder that was missing for a moment may return with the same files
      made.catch(() => {
        if (this.#made === made) this.#version = undefined
      })
    }
    return this.#made
  }

  async #make() {
    const data = await reportData(this.#readers, true)
    const json = JSON.stringify(data)
    return { page: reportPage(data), json, etag: `"${createHash('sha256').update(json).digest('base64url')}"` }
  }
}

async function answer(feed: Feed, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const refuse = (status: number, text: string) => {
    response.writeHead(status, { 'Content-Type': 'text/plain; charset=utf-8' })
    response.end(`${text}\n`)
  }
  // rejects other host names: otherwise a web page could read a run through a host name that it points at this machine (DNS
  // rebinding)
  if (!localNames.has((request.headers.host ?? '').replace(/:\d+$/, ''))) return refuse(403, 'Ask for localhost.')
  if (request.method !== 'GET' && request.method !== 'HEAD') return refuse(405, 'There is nothing to change here.')
  const path = (request.url ?? '').replace(/\?.*$/, '')
  if (path !== '/' && path !== '/data.json') return refuse(404, 'Not found.')
  const { page, json, etag } = await feed.current()
  const headers = { ETag: etag, 'Cache-Control': 'no-store', 'X-Content-Type-Options': 'nosniff' }
  if (path === '/') {
    const type = { 'Content-Type': 'text/html; charset=utf-8', 'Content-Security-Policy': contentSecurityPolicy(true) }
    response.writeHead(200, { ...headers, ...type })
    response.end(page)
  } else if (request.headers['if-none-match'] === etag) {
    response.writeHead(304, headers)
    response.end()
  } else {
    response.writeHead(200, { ...headers, 'Content-Type': 'application/json; charset=utf-8' })
    response.end(json)
  }
}

function listen(server: Server, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const taken = cause.code === 'EADDRINUSE' ? `port ${port} is taken; choose another with --port` : cause.message
      reject(new LoopLMError('INVALID_ARGUMENT', taken, { operation: 'watch', cause }))
    })
    server.listen(port, host, resolve)
  })
}
