import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { errorMessage, fileError, LoopLMError } from '../errors.js'
import { checkRevision, hubAddress, hubToken, isRepository, loadHub } from './hub.js'

/** Options of {@link uploadModel}. */
export interface UploadOptions {
  /** The branch. Defaults to `main`. */
  revision?: string | undefined
  /** Whether a new repository is private. Defaults to the Hub's setting. */
  private?: boolean | undefined
  /** Title of the commit. */
  message?: string | undefined
  /** Access token. Defaults to HF_TOKEN of the environment. */
  token?: string | undefined
  /** Defaults to HF_ENDPOINT of the environment, else https://huggingface.co. */
  hubUrl?: string | undefined
  signal?: AbortSignal | undefined
}

const operation = 'looplm push'

/**
 * Uploads the files of a folder to a model repository of the Hugging Face Hub as one commit. Creates the repository if it does
 * not exist. Nothing is uploaded unless you call this.
 *
 * @param folder contains the files; subfolders and files whose names begin with a dot are not uploaded
 * @param name such as `org/name`
 * @returns the address of the repository
 * @throws LoopLMError INVALID_ARGUMENT for an invalid name, or if the token is missing or rejected; UNSUPPORTED without the
 *   package @huggingface/hub; NOT_FOUND or INVALID_FILE for the folder
 */
export async function uploadModel(folder: string, name: string, options: UploadOptions = {}): Promise<string> {
  const { revision = 'main', private: hidden, message = 'Upload a looped model', signal } = options
  const refuse = (text: string, cause?: unknown) => new LoopLMError('INVALID_ARGUMENT', text, { operation, cause })
  if (!isRepository(name)) throw refuse(`${JSON.stringify(name)} is no name of a repository; write it as org/name`)
  checkRevision(revision, operation)
  const accessToken = hubToken(options.token, operation)
  if (!accessToken?.startsWith('hf_'))
    throw refuse('needs a token that may write: set HF_TOKEN to one of huggingface.co/settings/tokens, which begins with hf_')
  const hubUrl = hubAddress(options.hubUrl, operation)
  const files = await filesOf(folder)
  const hub = await loadHub()
  const repo = { type: 'model', name } as const
  try {
    if (!(await hub.repoExists({ repo, hubUrl, accessToken })))
      await hub.createRepo({
        repo,
        hubUrl,
        accessToken,
        ...(hidden !== undefined && { visibility: hidden ? 'private' : 'public' }),
      })
    signal?.throwIfAborted()
    await hub.uploadFiles({
      ...{ repo, hubUrl, accessToken, branch: revision, commitTitle: message, useXet: false },
      ...(signal !== undefined && { abortSignal: signal }),
      files: files.map((path) => ({ path, content: pathToFileURL(join(folder, path)) })), // of a URL alone, it would encode the name
    })
  } catch (cause) {
    if (signal?.aborted) throw new LoopLMError('ABORTED', 'the upload was interrupted', { operation, cause: signal.reason })
    const { statusCode } = cause as { statusCode?: number }
    const refused = statusCode === 401 || statusCode === 403
    throw refuse(
      refused ? `${hubUrl} refuses the token for ${name}: ${errorMessage(cause)}` : `${hubUrl}: ${errorMessage(cause)}`,
      cause,
    )
  }
  return `${hubUrl}/${name}`
}

/** @throws LoopLMError NOT_FOUND or INVALID_FILE if the folder is not a model that can be uploaded */
async function filesOf(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((cause) => {
    throw fileError(cause, 'read', folder, operation)
  })
  const names: string[] = []
  for (const { name } of entries) if (!name.startsWith('.') && (await stat(join(folder, name))).isFile()) names.push(name)
  const invalid = (message: string) => new LoopLMError('INVALID_FILE', `${folder} ${message}`, { operation })
  if (names.includes('trainer_state.json'))
    throw invalid('is a checkpoint of a run; write it without its optimizer first: looplm export')
  if (!names.includes('config.json') && !names.includes('adapter_config.json'))
    throw invalid('is no model: it has no config.json')
  return names
}
