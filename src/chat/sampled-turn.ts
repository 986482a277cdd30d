import type { Tokenizer } from '../data/tokenizer.js'
import type { FinishReason } from '../model/types.js'

/** A turn of the model as it was sampled. */
export interface SampledTurn {
  /** The text without the token that ended it. */
  text: string
  /** The end token, if one was drawn. */
  end: number | undefined
}

/** @param stop tokens that end a turn, besides strings that do */
export function sampledTurn(
  tokenizer: Tokenizer,
  { tokens, finishReason }: { tokens: readonly number[]; finishReason: FinishReason },
  stop: readonly (number | string)[] = [],
): SampledTurn {
  const last = tokens.at(-1)
  const ended = finishReason === 'stop' && last !== undefined && stop.includes(last)
  const said = ended ? tokens.slice(0, -1) : tokens
  const text = tokenizer.decode(said, { skipSpecialTokens: true, skipUnknownTokens: true, cleanUpSpaces: false })
  return { text, end: ended ? last : undefined }
}

/**
 * The tokens that follow a text that was read and sampled. The tokens of the text itself stay as they are; the rest is encoded
 * separately.
 *
 * @param text all of it, without the end of its last turn
 * @param end the token that ended this turn
 * @param whole a rendered conversation
 * @returns undefined if the conversation does not begin with the text, because the template rewrote an earlier turn
 */
export function tokensBehind(tokenizer: Tokenizer, text: string, end: number | undefined, whole: string): number[] | undefined {
  if (!whole.startsWith(text)) return undefined
  const rest = whole.slice(text.length)
  const ending = end === undefined ? '' : tokenizer.decode([end], { skipSpecialTokens: false })
  return tokenizer.encode(rest.startsWith(ending) ? rest.slice(ending.length) : rest, { addSpecialTokens: false })
}
