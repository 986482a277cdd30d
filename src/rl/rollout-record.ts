import type { PromptContent } from '../data/chat-format.js'
import type { ChatMessage } from '../data/chat-template.js'
import type { RealArray } from '../model/types.js'

/** A prompt with the columns that reward functions get. */
export interface Problem {
  /** A string, or the messages of a conversation. */
  prompt: PromptContent
  /** The expected answer, for rewards that compare. */
  answer?: string
  [column: string]: unknown
}

/** One completion and its data. */
export interface Rollout {
  /** Token ids of prompt and response. */
  tokens: Int32Array
  /** How many of `tokens` are the prompt. */
  promptLength: number
  /** Per token after the prompt: 1 if the model wrote it, 0 if the environment did. Absent: the model wrote all. */
  mask?: Uint8Array
  /** Log-probabilities that the sampler computed, one per token after the prompt. Values of masked tokens are ignored. */
  samplingLogprobs?: RealArray
  /** The loop that each of these tokens was read from, 1-based. Values of masked tokens are ignored. */
  loops?: number[]
  /** The model's turns with their rewards, as ranges of `tokens`; `end` is exclusive. */
  turns?: RolloutTurn[]
  /** Weighted sum of the rewards, including those of all turns. null if all were null. */
  reward: number | null
  /** Rewards by reward function, before weighting. */
  scores?: Record<string, number | null>
  /** Whether the response was cut off at a length limit. */
  truncated: boolean
  /** The text of the prompt. A conversation is rendered by its template. */
  prompt?: string
  /** The response without the token that ended it. For an episode, its last turn. */
  text: string
  /** The conversation of an episode whose prompt is messages. */
  messages?: ChatMessage[]
  /** The dataset row or the task's problem. */
  columns: Problem
}

/** A turn of the model. */
export interface RolloutTurn {
  /** Index of its first token. */
  begin: number
  /** Index after its last token. */
  end: number
  /** The reward of this turn alone. null if there is none. */
  reward: number | null
}
