import { LoopLMError } from '../errors.js'

/** The field `error` of an error response in OpenAI's format. */
export interface ErrorBody {
  message: string
  type: string
  /** The request's field that is wrong. */
  param: string | null
  code: string | null
}

/** An error that is sent with an HTTP status. */
export class HttpError extends Error {
  readonly status: number
  readonly param: string | null
  readonly code: string | null
  readonly headers: Readonly<Record<string, string>>

  constructor(
    status: number,
    message: string,
    details: { param?: string | undefined; code?: string; headers?: Readonly<Record<string, string>> } = {},
  ) {
    super(message)
    this.status = status
    this.param = details.param ?? null
    this.code = details.code ?? null
    this.headers = details.headers ?? {}
  }

  /** The body in OpenAI's format. */
  get body(): { error: ErrorBody } {
    return { error: { message: this.message, type: errorType(this.status), param: this.param, code: this.code } }
  }
}

function errorType(status: number): string {
  if (status === 401) return 'authentication_error'
  if (status === 429) return 'rate_limit_error'
  return status < 500 ? 'invalid_request_error' : 'server_error'
}

/**
 * Converts any error to the one that the client gets. Only errors that the client can fix are sent in full; the others go to
 * the log.
 */
export function toHttpError(error: unknown): HttpError {
  if (error instanceof HttpError) return error
  if (!(error instanceof LoopLMError) || error.status >= 500) {
    if (!(error instanceof LoopLMError && error.code === 'OUT_OF_MEMORY'))
      return new HttpError(500, 'internal error; the log of the server says more')
    return new HttpError(503, 'out of memory; send less at once', { code: 'out_of_memory', headers: { 'retry-after': '5' } })
  }
  const message = error.message.slice(error.operation === undefined ? 0 : error.operation.length + 2)
  const name = /^([a-z][\w.[\]]*)( \(|:| must| is| has)/.exec(message)?.[1] ?? ''
  const param = snakeCase(name)
  return new HttpError(error.status, param + message.slice(name.length), { param: param || undefined, code: 'invalid_value' })
}

/** The name of a field in the spelling of requests. */
export function snakeCase(name: string): string {
  return name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}
