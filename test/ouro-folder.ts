// A checkpoint folder in the form of the published Ouro models, tiny and random: byte-level BPE with ChatML's special tokens first,
// end tokens 0 and 2 in generation_config.json alone, and a chat template.
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { LoopLM } from '../src/model/model.js'
import { withoutChecksums } from './checksums.js'

export const specialTokens = ['<|endoftext|>', '<|im_start|>', '<|im_end|>'] as const

export const chatTemplate = `{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- if tools %}
    {{- '<|im_start|>system\\nTools: ' + (tools | tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('no role ' + message.role) }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
`

/** The printable characters that stand for bytes in GPT-2's vocabulary, by byte. */
function byteCharacters(): string[] {
  let next = 0x100
  const plain = (byte: number) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad)
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(plain(byte) ? byte : next++))
}

const words = ['th', 'the', 'in', 'an', 'Ġt', 'Ġth', 'Ġthe', 'er', 'ð', 'ðŁ', 'ðŁĺ', 'ã', 'ãģ'].filter((word) => word.length > 1)

/** tokenizer.json: ids 0 to 2 special, then the bytes, then what a few merges make. */
export function tokenizerJson() {
  const tokens = [...specialTokens, ...byteCharacters(), ...words]
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specialTokens.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Digits', individual_digits: true },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
      ],
    },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: words.map((word) => [word.slice(0, -1), word.slice(-1)]),
    },
  }
}

const vocabSize = specialTokens.length + 256 + words.length

export const tinyOuro = {
  vocab_size: vocabSize,
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  total_ut_steps: 4,
  max_position_embeddings: 4096,
  bos_token_id: 0,
  eos_token_id: 0,
  initializer_range: 0.3,
}

/**
 * Writes the folder.
 *
 * @param options.template where the chat template stands; default in chat_template.jinja
 * @param options.config fields of config.json that differ
 * @param options.endTokens eos_token_id of generation_config.json; default 0 and 2
 */
export async function writeOuroFolder(
  folder: string,
  options: { template?: 'file' | 'field' | 'none'; config?: Partial<typeof tinyOuro>; seed?: number; endTokens?: number[] } = {},
): Promise<string> {
  const { template = 'file', config = {}, seed = 5, endTokens = [0, 2] } = options
  using model = await LoopLM.create({ ...tinyOuro, ...config }, { seed })
  await mkdir(folder, { recursive: true })
  await model.save(folder, { dtype: 'bfloat16' })
  const write = (name: string, value: unknown) => writeFile(join(folder, name), JSON.stringify(value, null, 2))
  await write('generation_config.json', { bos_token_id: 1, eos_token_id: endTokens, pad_token_id: 0 })
  await write('tokenizer.json', tokenizerJson())
  const token = (content: string) => ({
    content,
    lstrip: false,
    normalized: false,
    rstrip: false,
    single_word: false,
    special: true,
  })
  await write('tokenizer_config.json', {
    add_prefix_space: false,
    added_tokens_decoder: Object.fromEntries(specialTokens.map((content, id) => [id, token(content)])),
    additional_special_tokens: ['<|im_start|>', '<|im_end|>'],
    bos_token: '<|endoftext|>',
    eos_token: '<|endoftext|>',
    pad_token: '<|endoftext|>',
    clean_up_tokenization_spaces: false,
    model_max_length: 4096,
    tokenizer_class: 'GPT2Tokenizer',
    ...(template === 'field' ? { chat_template: chatTemplate } : {}),
  })
  if (template === 'file') await writeFile(join(folder, 'chat_template.jinja'), chatTemplate)
  await withoutChecksums(folder) // published checkpoints have none
  return folder
}
