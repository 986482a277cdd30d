import type { Keys } from '../validation/arguments.js'

/** Options of {@link download} and {@link downloadDataset}. */
export interface DownloadOptions {
  /** Branch, tag or commit. Defaults to `main`. */
  revision?: string | undefined
  /**
   * The folder for downloads. Defaults to the cache of Hugging Face's own tools (HF_HUB_CACHE, HF_HOME, else
   * ~/.cache/huggingface/hub), which is shared with them.
   */
  cacheDir?: string | undefined
  /** Access token for gated and private repositories. Defaults to HF_TOKEN. */
  token?: string | undefined
  /** Defaults to HF_ENDPOINT, else https://huggingface.co. */
  hubUrl?: string | undefined
  /** Aborts with code ABORTED. Received bytes are kept, and the next call resumes. */
  signal?: AbortSignal | undefined
  /**
   * Called when bytes arrive, here or in another download that this one waits for, with the file, the bytes so far and its
   * size.
   */
  onProgress?: ((file: string, received: number, size: number) => void) | undefined
}

export const downloadOptions = {
  revision: true,
  cacheDir: true,
  token: true,
  hubUrl: true,
  signal: true,
  onProgress: true,
} satisfies Keys<DownloadOptions>
