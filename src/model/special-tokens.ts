import type { Tokenizer } from '../data/tokenizer.js'
import type { LoopLMConfig } from './config.js'

/** The content of generation_config.json. */
export type GenerationConfig = Readonly<Record<string, unknown>>

/** The tokens that end a text: the tokenizer's end token, and the token that ends a turn of its chat template. */
export function specialEndTokens(tokenizer: Tokenizer): number[] {
  const ends = [tokenizer.eosTokenId, tokenizer.hasChatTemplate ? tokenizer.chatEndToken() : undefined]
  return [...new Set(ends.filter((id) => id !== undefined))]
}

/**
 * The tokens that end a response: the model's end tokens, or the tokenizer's if the model names none. In a chat also the token
 * that ends a turn of the chat template.
 */
export function stopTokens(
  model: { namesEndTokens: boolean; endTokens: readonly number[] },
  tokenizer: Tokenizer,
  chat = tokenizer.hasChatTemplate,
): number[] {
  const ends = model.namesEndTokens ? model.endTokens : specialEndTokens(tokenizer)
  const own = tokenizer.eosTokenId
  const turn = chat ? tokenizer.chatEndToken() : undefined
  const all = [...ends, ...(turn === undefined ? [] : [turn])]
  return [...new Set(own !== undefined && ends.includes(own) ? [own, ...all] : all)]
}

/** Whether a configuration names end tokens. An empty list counts: generation then ends nowhere. */
export function namesEndTokens(config: LoopLMConfig, generation: GenerationConfig): boolean {
  return config.eos_token_id != null || generation.eos_token_id != null
}

/**
 * Fills the ids of a tokenizer's begin, end and padding tokens into the fields that both configurations omit. Generation must
 * end where training on the same tokenizer ends a text. Ids that a configuration names stay.
 */
export function withSpecialTokens(
  config: LoopLMConfig,
  generation: GenerationConfig,
  tokenizer: Tokenizer,
): { config: LoopLMConfig; generation: GenerationConfig } {
  const complete = { ...config }
  const generating: Record<string, unknown> = { ...generation }
  const open = (field: string) => config[field] == null && generation[field] == null
  if (open('eos_token_id')) {
    const ends = specialEndTokens(tokenizer)
    if (ends.length > 0) {
      complete.eos_token_id = ends[0]!
      generating.eos_token_id = ends.length === 1 ? ends[0] : ends
    }
  }
  const others = { bos_token_id: tokenizer.bosTokenId, pad_token_id: tokenizer.padTokenId }
  for (const [field, id] of Object.entries(others)) {
    if (id === undefined || !open(field)) continue
    complete[field] = id
    generating[field] = id
  }
  return { config: complete, generation: generating }
}
