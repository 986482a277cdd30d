// Fields of other servers that this one does not support. They are accepted with the values that change nothing.
import { isDeepStrictEqual } from 'node:util'
import { z } from 'zod'

/** A field that only accepts these values or null, because any other value would be silently ignored. */
export function neutral(values: readonly unknown[], reason: string) {
  const allowed = values.length === 0 ? 'null' : values.map((value) => JSON.stringify(value)).join(' or ')
  return z
    .unknown()
    .refine((value) => value == null || values.some((other) => value === other || isDeepStrictEqual(value, other)), {
      error: `must be ${allowed}: ${reason}`,
    })
    .optional()
}

/** Accepted with any value, because it cannot change the response. */
export const ignored = z.unknown().optional()

const penalties = 'there are frequency_penalty, presence_penalty and repetition_penalty'
const beams = 'beam search is not supported'
const samplers = 'this way of sampling is not supported; there are temperature, top_k, top_p and min_p'
const schemas = 'use response_format with a json_schema'
const constraints = 'only response_format constrains answers'
const ids = 'token ids are not part of an answer'

/** Generation fields of OpenAI, vLLM, SGLang, llama.cpp and TGI. */
export const neutralFields = {
  repeat_penalty: neutral([1], penalties),
  dry_multiplier: neutral([0], penalties),
  no_repeat_ngram_size: neutral([0], penalties),
  bad_words: neutral([[]], 'words are not banned; logit_bias takes token ids'),
  allowed_token_ids: neutral([], 'logit_bias makes token ids more or less likely'),
  logits_processors: neutral([[]], 'code is not run; logit_bias changes logits'),
  best_of: neutral([1], 'the best of several answers is not chosen; ask for n and choose'),
  use_beam_search: neutral([false], beams),
  length_penalty: neutral([1], beams),
  early_stopping: neutral([false], beams),
  min_tokens: neutral([0], 'a minimum length is not supported'),
  typical_p: neutral([1], samplers),
  tfs_z: neutral([1], samplers),
  top_a: neutral([0], samplers),
  mirostat: neutral([0], samplers),
  dynatemp_range: neutral([0], samplers),
  xtc_probability: neutral([0], samplers),
  do_sample: neutral([true], 'temperature 0 chooses the most probable token'),
  guided_json: neutral([], schemas),
  guided_regex: neutral([], constraints),
  guided_choice: neutral([], constraints),
  guided_grammar: neutral([], constraints),
  structured_outputs: neutral([], schemas),
  json_schema: neutral([], schemas),
  grammar: neutral([''], constraints),
  regex: neutral([], constraints),
  skip_special_tokens: neutral([true], 'special tokens are never part of a text'),
  spaces_between_special_tokens: ignored,
  include_stop_str_in_output: neutral([false], 'a text ends before its stop string'),
  detokenize: neutral([true], 'answers are strings'),
  truncate_prompt_tokens: neutral([], 'prompts are not cut'),
  prompt_logprobs: neutral([], 'use echo and logprobs of /v1/completions'),
  return_token_ids: neutral([false], ids),
  return_tokens_as_token_ids: neutral([false], ids),
  n_probs: neutral([0], 'use logprobs'),
  priority: neutral([0], 'requests run in the order in which they come'),
  user: ignored,
  metadata: ignored,
  store: ignored,
  service_tier: ignored,
  safety_identifier: ignored,
  request_id: ignored,
  cache_prompt: ignored,
  cache_salt: ignored,
  prompt_cache_key: ignored,
  prompt_cache_options: ignored,
  prompt_cache_retention: ignored,
}

/** The same for chats. */
export const neutralChatFields = {
  functions: neutral([], 'use tools'),
  function_call: neutral([], 'use tool_choice'),
  verbosity: neutral(['medium'], 'the model has no such setting'),
  prediction: neutral([], 'predicted outputs are not supported'),
  audio: neutral([], 'answers are text only'),
  modalities: neutral([['text']], 'answers are text only'),
  web_search_options: neutral([], 'there is no search'),
  moderation: neutral([], 'answers are not moderated'),
  documents: neutral([[]], 'documents are not shown to the template'),
  chat_template: neutral([], "the checkpoint's own template is used"),
  add_generation_prompt: neutral([true], 'an answer begins a turn'),
  add_special_tokens: neutral([false], 'the template writes the special tokens'),
  continue_final_message: neutral([false], 'an answer begins a turn'),
  echo: neutral([false], 'the prompt is not repeated in a chat'),
  include_reasoning: neutral([true], 'thoughts are always reasoning_content'),
  separate_reasoning: neutral([true], 'thoughts are always reasoning_content'),
  mm_processor_kwargs: neutral([], 'the model reads text alone'),
}
