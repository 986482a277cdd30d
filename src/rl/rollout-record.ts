import type { PromptContent } from '../data/chat-format.js'
import type { ChatMessage } from '../data/chat-template.js'
import type { RealArray } from '../model/types.js'

/** A prompt with the columns that reward functions see. */
export interface Problem {
  /** A text, or the messages of a conversation. */
  prompt: PromptContent
  /** What rewards compare with. */
  answer?: string
  [column: string]: unknown
}

/** One completion with what is known of it. */
export interface Rollout {
  /** Prompt and response. */
  tokens: Int32Array
  /** How many of `tokens` are prompt. */
  promptLength: number
  /** Per token behind the prompt: 1 where the model wrote it, 0 where the environment did. Absent: all are the model's. */
  mask?: Uint8Array
  /** One log-probability per token behind the prompt as the sampler computed it; those of masked tokens are not read. */
  samplingLogprobs?: RealArray
  /** The loop each of these tokens was read from, 1-based; those of masked tokens are not read. */
  loops?: number[]
  /** The model's turns as ranges of `tokens`, `end` not included, with their rewards. */
  turns?: RolloutTurn[]
  /** Weighted sum of the rewards, of all turns too; null when all were null. */
  reward: number | null
  /** Scores by reward, before weighting. */
  scores?: Record<string, number | null>
  /** Whether the response was cut at a length limit. */
  truncated: boolean
  /** The prompt's text; a conversation as its template writes it. */
  prompt?: string
  /** The response without the token that ended it; of an episode the last turn. */
  text: string
  /** The conversation of an episode whose prompt is one. */
  messages?: ChatMessage[]
  /** The row of the dataset or the problem of the task. */
  columns: Problem
}

/** A turn of the model. */
export interface RolloutTurn {
  /** Index of its first token. */
  begin: number
  /** Index behind its last token. */
  end: number
  /** The reward of this turn alone; null: none. */
  reward: number | null
}
