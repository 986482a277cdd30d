/** Why an operation failed; stable across versions, meant for `switch`. */
export type ErrorCode =
  /** A value passed by the caller is out of range or of the wrong type. */
  | 'INVALID_ARGUMENT'
  /** A tensor's or array's shape does not fit the operation. */
  | 'INVALID_SHAPE'
  /** A configuration or its combination of options is rejected. */
  | 'INVALID_CONFIG'
  /** A file was read and its content is malformed. */
  | 'INVALID_FILE'
  /** A file, folder or name does not exist. */
  | 'NOT_FOUND'
  /** Valid, but not available on this device, dtype or build. */
  | 'UNSUPPORTED'
  /** Host or device memory could not be allocated. */
  | 'OUT_OF_MEMORY'
  /** An AbortSignal fired. */
  | 'ABORTED'
  /** An object was used after dispose(). */
  | 'DISPOSED'
  /** A NaN or an infinity where a finite number is required. */
  | 'NON_FINITE'
  /** The native addon, a device library or an MPI could not be loaded. */
  | 'NATIVE_LOAD'
  /** Another process of a parallel run failed, did not arrive in time, or runs something else. */
  | 'PARALLEL'
  /** A bug in looplm. */
  | 'INTERNAL'

/** Every code, with the HTTP status that reports it: 4xx is the caller's fault, 5xx is not. */
const statuses: Readonly<Record<ErrorCode, number>> = {
  INVALID_ARGUMENT: 400,
  INVALID_SHAPE: 400,
  INVALID_CONFIG: 400,
  INVALID_FILE: 500,
  NOT_FOUND: 404,
  UNSUPPORTED: 400,
  OUT_OF_MEMORY: 503,
  ABORTED: 499,
  DISPOSED: 503,
  NON_FINITE: 500,
  NATIVE_LOAD: 500,
  PARALLEL: 500,
  INTERNAL: 500,
}

/** What is known about a failure besides its message. */
export interface ErrorDetails {
  /** The function that failed, by its public name, for example `Tokenizer.fromFile`. */
  operation?: string | undefined
  /** Shapes of the operands by name, for INVALID_SHAPE. */
  shapes?: Readonly<Record<string, readonly number[]>> | undefined
  /** The underlying error. */
  cause?: unknown
}

/**
 * The one error class that looplm throws. The message names the operation, the cause and, if there is one, the remedy.
 *
 * @example
 * ```ts
 * try {
 *   await Tokenizer.fromFile('missing.json')
 * } catch (error) {
 *   if (error instanceof LoopLMError && error.code === 'NOT_FOUND') console.error(error.message)
 * }
 * ```
 */
export class LoopLMError extends Error {
  /** For tools that distinguish errors by name. */
  override readonly name = 'LoopLMError'
  /** Why the operation failed. */
  readonly code: ErrorCode
  /** The function that failed, for example `Tokenizer.fromFile`. */
  readonly operation: string | undefined
  /** Shapes of the operands by name, for INVALID_SHAPE. */
  readonly shapes: Readonly<Record<string, readonly number[]>> | undefined

  /**
   * @param code the kind of failure
   * @param message cause and remedy; the operation is prepended
   * @param details operation, shapes and underlying error
   */
  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    const text = details.operation === undefined ? message : `${details.operation}: ${message}`
    super(text, details.cause === undefined ? undefined : { cause: details.cause })
    this.code = code
    this.operation = details.operation
    this.shapes = details.shapes
  }

  /**
   * The HTTP status that reports this error: 4xx if the caller can fix it, else 5xx. Fastify, Express and Koa read this field
   * of an error that a handler throws.
   */
  get status(): number {
    return statuses[this.code]
  }
}

/**
 * Converts any thrown value, for example from the native addon, to a {@link LoopLMError}.
 *
 * @param error the thrown value; a `code` of looplm is kept, any other becomes INTERNAL
 * @param operation the function that the caller called
 * @returns the same object if it already is a LoopLMError
 */
export function toLoopLMError(error: unknown, operation?: string): LoopLMError {
  if (error instanceof LoopLMError) return error
  const message = errorMessage(error)
  const code = (error as { code?: unknown } | null)?.code
  const known = typeof code === 'string' && Object.hasOwn(statuses, code)
  return new LoopLMError(known ? (code as ErrorCode) : 'INTERNAL', message, { operation, cause: error })
}

/** The message of any thrown value, even of an Error of another realm. */
export function errorMessage(thrown: unknown): string {
  const message = (thrown as { message?: unknown } | null | undefined)?.message
  return typeof message === 'string' ? message : String(thrown)
}

const systemCauses: Readonly<Record<string, string>> = {
  ENOSPC: 'the disk is full; free some space',
  EDQUOT: 'the disk quota is used up; free some space',
  EFBIG: 'the file would be larger than the limit of this process or file system (ulimit -f)',
  EROFS: 'the file system is read-only; choose another folder',
  EACCES: 'permission denied; choose another folder or change its permissions',
  EPERM: 'permission denied; choose another folder or change its permissions',
  ENOTDIR: 'a part of the path is a file, not a folder; choose another path',
  EEXIST: 'a file with the name of the folder exists; choose another path or remove the file',
  EISDIR: 'it is a folder, not a file; choose another path',
  ENOTEMPTY: 'it is a folder with files in it; choose another path',
  ENAMETOOLONG: 'a name in the path is too long; choose a shorter one',
  ELOOP: 'the symbolic links in the path form a cycle; remove one of them',
  EMFILE: 'this process has too many open files; close some or raise the limit (ulimit -n)',
  ENFILE: 'the system has too many open files; close some',
  EBUSY: 'another program uses it; try again when that has ended',
  ENOENT: 'it does not exist',
  EIO: 'the disk reported an error; check it, or choose another folder',
}

/**
 * Describes a file error as a sentence with its remedy.
 *
 * @param cause the error of the file system; a LoopLMError is returned unchanged
 * @param action what was attempted, for example `write`; reading a missing file gives NOT_FOUND
 * @param path of the file or folder
 */
export function fileError(cause: unknown, action: string, path: string, operation?: string): LoopLMError {
  if (cause instanceof LoopLMError) return cause
  const { code = '', message = String(cause) } = (cause ?? {}) as { code?: string; message?: string }
  const text = `cannot ${action} ${path}: ${Object.hasOwn(systemCauses, code) ? `${systemCauses[code]} (${code})` : message}`
  return new LoopLMError(code === 'ENOENT' && action.startsWith('read') ? 'NOT_FOUND' : 'INVALID_FILE', text, {
    operation,
    cause,
  })
}
