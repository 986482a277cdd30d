import type { Tool } from '../chat/tools.js'
import type { ChatMessage } from '../data/chat-template.js'
import type { ToolCall } from '../data/tool-calls.js'
import type { Problem } from './rollout-record.js'

/**
 * Makes the episode of a problem, once per completion. What it does must follow from the problem and the seed: a step that is repeated
 * gets the same seeds, and completions of one problem share theirs.
 *
 * @example
 * ```ts
 * import type { Environment } from 'looplm'
 *
 * const guess: Environment = ({ prompt, answer }) => ({
 *   prompt,
 *   step: ({ text }) => (text === answer ? { reward: 1, done: true } : { reply: 'No. Again: ', reward: 0 }),
 * })
 * ```
 */
export type Environment = (problem: Problem, context: EnvironmentContext) => Episode | Promise<Episode>

/** What an environment gets beside the problem. */
export interface EnvironmentContext {
  /** Seed of the episode: the same in a run that is repeated. */
  seed: number
  /** Fires when the episode is over, has taken too long, or the run is aborted. */
  signal: AbortSignal
}

/** A conversation of the model with an environment. */
export interface Episode {
  /** A string is read as it is; messages go through the chat template. */
  prompt: string | readonly ChatMessage[]
  /** Offered through the chat template beside the tools of the trainer. Calls are run, and their results go back as tool messages. */
  tools?: readonly Tool[]
  /**
   * Answers a turn of the model; tools that it called have run. Without `step` an episode ends with a turn that calls no tool.
   */
  step?(turn: EpisodeTurn): StepResult | Promise<StepResult>
  /** Called when the episode is over, also after an error. */
  close?(): void | Promise<void>
}

/** What the model wrote in a turn. */
export interface EpisodeTurn {
  /** Without the token that ended it. */
  text: string
  /** The ids of its tokens. */
  tokens: readonly number[]
  /** Calls in the form of Qwen and Hermes: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. */
  toolCalls: readonly ToolCall[]
  /** Counted from 0. */
  index: number
}

/** What an environment says to a turn. */
export interface StepResult {
  /** What the model reads next: text behind a string prompt, else a user message or messages. Without it and without tool calls the episode ends. */
  reply?: string | readonly ChatMessage[]
  /** Of this turn. The reward of an episode is the sum over its turns and the reward functions. */
  reward?: number
  /** The episode ends with this turn. */
  done?: boolean
}
