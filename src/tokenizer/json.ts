/** A tokenizer.json in the format of Python's `tokenizers`. Parts that looplm does not read have type unknown. */
export interface TokenizerJson {
  version: string
  truncation: unknown
  padding: unknown
  added_tokens: AddedToken[]
  normalizer: unknown
  pre_tokenizer: unknown
  post_processor: unknown
  decoder: unknown
  model: {
    type?: string
    vocab: Record<string, number> | [string, number][]
    unk_token?: string | null
    [field: string]: unknown
  }
}

/** A token that is found in the text before the model sees it. */
export interface AddedToken {
  id: number
  content: string
  single_word: boolean
  lstrip: boolean
  rstrip: boolean
  normalized: boolean
  special: boolean
}
