/** Options of {@link download} and {@link downloadDataset}. */
export interface DownloadOptions {
  /** Branch, tag or commit; default `main`. */
  revision?: string | undefined
  /** Default: the cache of Hugging Face's own tools (HF_HUB_CACHE, HF_HOME, else ~/.cache/huggingface/hub), which share it. */
  cacheDir?: string | undefined
  /** Access token for gated and private repositories; default HF_TOKEN. */
  token?: string | undefined
  /** Default HF_ENDPOINT, else https://huggingface.co. */
  hubUrl?: string | undefined
  /** Rejects with code ABORTED; what has arrived is kept and continued by the next call. */
  signal?: AbortSignal | undefined
  /** Called as bytes arrive, here or in another download that this one waits for: of which file, how many so far, of how many. */
  onProgress?: ((file: string, received: number, size: number) => void) | undefined
}
