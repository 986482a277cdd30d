// A tokenizer for small agents: one token per character, and one per fragment that the model writes again and again.
import { Tokenizer } from 'looplm'

/** What error messages of tools may be made of. */
export const printable = Array.from({ length: 95 }, (_, k) => String.fromCharCode(32 + k)).join('')

/**
 * @param alphabet distinct characters
 * @param fragments longer texts that are one token each, for example the beginning of a call of a tool
 * @param end the text of the token that ends a turn
 * @param chatTemplate a template of Jinja, for conversations
 */
export function fragmentTokenizer(alphabet: string, fragments: readonly string[], end: string, chatTemplate?: string): Tokenizer {
  const tokens = [...Array.from(alphabet), ...fragments, end]
  const longest = [...fragments, end].sort((a, b) => b.length - a.length)
  const escaped = longest.map((text) => text.replaceAll(/[\\^$.*+?()[\]{}|]/g, String.raw`\$&`))
  const id = tokens.length - 1
  const json = {
    version: '1.0',
    added_tokens: [{ id, content: end, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }],
    normalizer: null,
    pre_tokenizer: { type: 'Split', pattern: { Regex: `${escaped.join('|')}|[\\s\\S]` }, behavior: 'Isolated', invert: false },
    post_processor: null,
    decoder: { type: 'Fuse' },
    model: { type: 'WordLevel', vocab: Object.fromEntries(tokens.map((token, k) => [token, k])), unk_token: '<unk>' },
  }
  return new Tokenizer(json, { eos_token: end, ...(chatTemplate === undefined ? {} : { chat_template: chatTemplate }) })
}
