import type { Tool } from '../chat/tools.js'
import type { ChatMessage } from '../data/chat-template.js'
import type { ToolCall } from '../data/tool-calls.js'
import type { Problem } from './rollout-record.js'

/**
 * Creates the episode of a problem. It is called once per completion. Its behaviour must only depend on the problem and the
 * seed: a repeated step gets the same seeds, and all completions of a problem share one seed.
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

/** What an environment gets besides the problem. */
export interface EnvironmentContext {
  /** Seed of the episode. A repeated run gets the same seed. */
  seed: number
  /** Fires when the episode is over, has taken too long, or the run was aborted. */
  signal: AbortSignal
}

/** A conversation of the model with an environment. */
export interface Episode {
  /** The first prompt. A string is used as it is; messages go through the chat template. */
  prompt: string | readonly ChatMessage[]
  /**
   * Tools that the chat template offers, in addition to those of the trainer. Calls are executed, and their results go back as
   * tool messages.
   */
  tools?: readonly Tool[]
  /**
   * Responds to a turn of the model, after the tools that it called have run. Without `step`, an episode ends with the first
   * turn that calls no tool.
   */
  step?(turn: EpisodeTurn): StepResult | Promise<StepResult>
  /** Called when the episode is over, also after an error. */
  close?(): void | Promise<void>
}

/** What the model wrote in a turn. */
export interface EpisodeTurn {
  /** The text of the turn, without the token that ended it. */
  text: string
  /** The ids of its tokens. */
  tokens: readonly number[]
  /** Tool calls in the format of Qwen and Hermes: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. */
  toolCalls: readonly ToolCall[]
  /** The number of the turn, counted from 0. */
  index: number
}

/** The environment's response to a turn. */
export interface StepResult {
  /**
   * What the model reads next: text if the prompt is a string, otherwise a user message or messages. If it is omitted and no
   * tool was called, the episode ends.
   */
  reply?: string | readonly ChatMessage[]
  /**
   * The reward of this turn. The reward of an episode is the sum over its turns and the reward functions. Evaluations with a
   * reward function count that function alone.
   */
  reward?: number
  /** true ends the episode with this turn. */
  done?: boolean
}

/** Whether a value is a list of tools, as `defineTool` makes them. */
export function areTools(value: unknown): value is readonly Tool[] {
  return Array.isArray(value) && value.every((tool) => typeof tool?.call === 'function' && 'parameters' in tool)
}
