// A server that speaks the part of the Hugging Face Hub's protocol that a download uses: a revision's commit, the tree in pages, and files
// behind a redirect, by ranges.
import { createHash } from 'node:crypto'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

export const commit = 'c0ffee'.padEnd(40, '0')

export interface Hub {
  url: string
  files: Map<string, Buffer>
  /** Method, path and range of every request. */
  requests: string[]
  /** The header `authorization` of every request, if it had one. */
  tokens: Set<string | undefined>
  /** Called for every file that is sent: how many bytes to send before the connection breaks, or undefined for all. */
  breaks: (path: string, from: number) => number | undefined
  /** Whether so many bytes of a file have arrived, before its connection breaks: what is on its way then is lost. */
  received: (bytes: number) => boolean
  /** Awaited before a file is sent from a byte on. */
  held: (path: string, from: number) => Promise<void> | undefined
  /** Sent instead of a file. */
  damaged: Map<string, Buffer>
  close(): Promise<void>
}

const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')
const gitId = (bytes: Buffer) => createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex')

/** Starts a hub with one model, `org/tiny`, whose files are those of a dataset of that name too; large files are those of safetensors and Parquet. */
export async function startHub(): Promise<Hub> {
  const files = new Map<string, Buffer>()
  const server = createServer(async (request, response) => {
    const url = new URL(request.url!, 'http://hub')
    hub.requests.push(`${request.method} ${url.pathname}${request.headers.range ? ` ${request.headers.range}` : ''}`)
    hub.tokens.add(request.headers.authorization)
    const json = (value: unknown, headers = {}) => {
      response.writeHead(200, { 'content-type': 'application/json', ...headers })
      response.end(JSON.stringify(value))
    }
    const missing = (status = 404) => {
      response.writeHead(status, { 'content-type': 'application/json' })
      response.end('{"error":"not here"}')
    }
    const file = /^\/(?:(?:datasets\/)?org\/tiny\/resolve\/[\da-f]{40}|cdn)\/(.+)$/.exec(url.pathname)?.[1]
    if (/^\/api\/(models|datasets)\/org\/tiny\/revision\/(main|v1|c0ffee0+)$/.test(url.pathname)) {
      json({
        _id: '1',
        id: 'org/tiny',
        sha: commit,
        private: false,
        gated: false,
        downloads: 0,
        likes: 0,
        lastModified: '2026-01-01',
      })
    } else if (url.pathname.startsWith('/api/models/org/secret/')) missing(401)
    else if (/^\/api\/(models|datasets)\/org\/tiny\/tree\/c0ffee0+$/.test(url.pathname)) {
      const all = [...files].map(([path, bytes]) => ({
        type: 'file',
        path,
        oid: gitId(bytes),
        size: bytes.length,
        ...(/\.(safetensors|parquet)$/.test(path) ? { lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 130 } } : {}),
      }))
      const from = Number(url.searchParams.get('cursor') ?? 0)
      const next = `<${hub.url}${url.pathname}?cursor=${from + 2}>; rel="next"`
      json(all.slice(from, from + 2), from + 2 < all.length ? { link: next } : {})
    } else if (file === undefined || !files.has(file)) missing()
    else if (!url.pathname.startsWith('/cdn')) {
      response.writeHead(302, { location: `/cdn/${file}` })
      response.end()
    } else {
      const bytes = hub.damaged.get(file) ?? files.get(file)!
      const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
      await hub.held(file, from)
      if (from > 0 && from >= bytes.length) return missing(416)
      const range = { 'content-range': `bytes ${from}-${bytes.length - 1}/${bytes.length}` }
      response.writeHead(from > 0 ? 206 : 200, { 'content-length': bytes.length - from, ...(from > 0 ? range : {}) })
      const cut = hub.breaks(file, from)
      if (cut === undefined) response.end(bytes.subarray(from))
      else {
        response.write(bytes.subarray(from, from + cut))
        while (!response.destroyed && !hub.received(from + cut)) await new Promise((resolve) => setTimeout(resolve, 10))
        response.destroy()
      }
    }
  })
  server.keepAliveTimeout = 0 // a client that is slow to ask again finds its connection open
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const hub: Hub = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    files,
    requests: [],
    tokens: new Set(),
    breaks: () => undefined,
    received: () => true,
    held: () => undefined,
    damaged: new Map(),
    close: () => new Promise((resolve) => server.close(() => resolve()).closeAllConnections()),
  }
  return hub
}
