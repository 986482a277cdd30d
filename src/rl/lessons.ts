// Turns problems into tokens: prompts to answer, and sequences to learn. This is the only place that does.
import type { ChatMessage } from '../data/chat-template.js'
import { isConversation, lessonProblem, promptProblem } from '../data/rows.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import type { TokenSequence } from '../model/types.js'
import { inTurns } from '../turns.js'
import type { ProblemSource } from './problems.js'
import type { Problem } from './rollout-record.js'

/** A prompt as the model gets it. */
export interface EncodedPrompt {
  tokens: number[]
  /** The text of the prompt. A conversation is rendered by its template. */
  text: string
}

/** A token sequence to learn from. */
export interface TrainingSequence {
  /** Token ids, at least two. */
  tokens: TokenSequence
  /** How many of its tokens are the prompt. */
  promptLength: number
  /** len-1: 0 for predictions after the prompt that are not learned. Absent if all are learned. */
  mask?: Uint8Array
}

/**
 * The tokens of a prompt: a string, or messages that the chat template renders.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the row and the field, if it is not a prompt, if the tokenizer or the template
 *   rejects it, or if it leaves no room for a response
 */
export async function encodePrompt(source: ProblemSource, problem: Problem): Promise<EncodedPrompt> {
  const refuse = refusal(source, problem)
  const wrong = promptProblem(problem)
  if (wrong !== undefined) throw refuse(wrong)
  const { text, rendered } = chatting(source, problem, 'prompt', () => source.chat.prompt(problem.prompt, problem))
  const tokens = await encodeField(source, problem, 'prompt', text, { addSpecialTokens: !rendered })
  if (tokens.length === 0) throw refuse('field "prompt" has no tokens; give at least one to go on from')
  if (tokens.length < source.maxLength) return { tokens, text }
  throw refuse(`field "prompt" has ${tokens.length} tokens, ${lengthLimit(source, 'a prompt with its answer')}`)
}

/** {@link encodePrompt} for many problems. Yields to the event loop in between. */
export function encodePrompts(source: ProblemSource, problems: readonly Problem[]): Promise<EncodedPrompt[]> {
  return inTurns(problems, (problem) => encodePrompt(source, problem))
}

/** What is learned from a row. */
export interface LessonOptions {
  /** Learn every message of the assistant instead of only the last message. */
  assistantOnly?: boolean
}

/**
 * A problem and its answer as one token sequence: prompt, answer and end token. The answer is the column `completion` if it
 * exists, else `answer`. For a row of chat `messages`, the tokenizer's template renders them with the row's `tools`; the last
 * message is learned, or every message of the assistant. A row of `text` is learned as a whole.
 *
 * @returns the tokens and how many of them are prompt. For a row without an answer all tokens but the first are trained.
 * @throws LoopLMError INVALID_ARGUMENT naming the row and the field that cannot be learned
 */
export async function trainingSequence(
  source: ProblemSource,
  problem: Problem,
  options: LessonOptions = {},
): Promise<TrainingSequence> {
  const wrong = lessonProblem(problem)
  if (wrong !== undefined) throw refusal(source, problem)(wrong)
  const conversation = conversationOf(source, problem)
  const made =
    conversation === undefined
      ? await textSequence(source, problem)
      : await chatSequence(source, problem, conversation, options.assistantOnly === true)
  return checkLength(source, problem, made)
}

/** {@link trainingSequence} for many problems. Yields to the event loop in between. */
export function trainingSequences(
  source: ProblemSource,
  problems: readonly Problem[],
  options: LessonOptions = {},
): Promise<TrainingSequence[]> {
  return inTurns(problems, (problem) => trainingSequence(source, problem, options))
}

/**
 * A prompt, directly followed by its answer and the end token. Other columns of the row are ignored.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the row and the field
 */
export async function answeredSequence(source: ProblemSource, problem: Problem): Promise<TrainingSequence> {
  const { tokens: prompt } = await encodePrompt(source, problem)
  const field = problem.completion === undefined ? 'answer' : 'completion'
  const answer = await encodeField(source, problem, field, problem[field] as string, { addSpecialTokens: false })
  const chats = Array.isArray(problem.prompt) || source.chat.wrapsPrompts
  const end = (chats ? source.tokenizer.chatEndToken() : undefined) ?? source.stop[0]
  const tokens = [...prompt, ...answer, ...(end === undefined ? [] : [end])]
  return checkLength(source, problem, { tokens, promptLength: prompt.length })
}

function checkLength(source: ProblemSource, problem: Problem, made: TrainingSequence): TrainingSequence {
  const refuse = refusal(source, problem)
  const { length } = made.tokens
  if (length < 2) throw refuse(`has ${length} tokens; at least 2 are needed, the first of which is given`)
  if (length <= source.maxLength) return made
  throw refuse(`has ${length} tokens, ${lengthLimit(source, 'a sequence')}`)
}

async function textSequence(source: ProblemSource, problem: Problem): Promise<TrainingSequence> {
  const { text, completion, answer } = problem
  const end = source.stop.slice(0, 1)
  const learned = completion !== undefined ? 'completion' : answer !== undefined ? 'answer' : undefined
  const isText = learned === undefined && typeof text === 'string' && (problem.prompt ?? '') === ''
  const field = isText ? 'text' : 'prompt'
  const prompt = await encodeField(source, problem, field, isText ? text : ((problem.prompt ?? '') as string))
  if (learned === undefined) return { tokens: [...prompt, ...end], promptLength: 1 }
  const given = (completion ?? answer) as string
  const tokens = [...prompt, ...(await encodeField(source, problem, learned, given, { addSpecialTokens: false })), ...end]
  return { tokens, promptLength: Math.max(1, prompt.length) } // the first token of a sequence is never predicted
}

/** Messages, the first of which are the prompt. */
interface Conversation {
  messages: readonly ChatMessage[]
  given: number
}

/** A row as a conversation. undefined if its fields are strings. */
function conversationOf(source: ProblemSource, problem: Problem): Conversation | undefined {
  const { prompt, messages, completion, answer } = problem
  if (isConversation(problem) && !Array.isArray(prompt)) {
    const all = messages as readonly ChatMessage[]
    return { messages: all, given: all.length - 1 }
  }
  const said = completion ?? answer
  if (said === undefined || !(Array.isArray(prompt) || (source.chat.wrapsPrompts && prompt !== ''))) return undefined
  const asked = source.chat.messages(prompt)
  const answered = Array.isArray(said) ? (said as ChatMessage[]) : [{ role: 'assistant', content: said }]
  return { messages: [...asked, ...answered], given: asked.length }
}

async function chatSequence(
  source: ProblemSource,
  problem: Problem,
  { messages, given }: Conversation,
  assistantOnly: boolean,
): Promise<TrainingSequence> {
  const field = Array.isArray(problem.messages) ? 'messages' : 'prompt'
  const parts = chatting(source, problem, field, () =>
    assistantOnly ? source.chat.assistantLesson(messages, problem) : source.chat.lesson(messages, given, problem),
  )
  const tokens: number[] = []
  const learned: boolean[] = []
  for (const part of parts) {
    const encoded = await encodeField(source, problem, field, part.text, { addSpecialTokens: false })
    for (const token of part.learned && part === parts.at(-1) ? withEnd(source, encoded) : encoded) {
      tokens.push(token)
      learned.push(part.learned)
    }
  }
  const first = learned.indexOf(true)
  if (first === -1) throw refusal(source, problem)(`field "${field}": the chat template writes nothing that is to be learned`)
  const promptLength = Math.max(1, first) // the first token of a sequence is never predicted
  if (learned.indexOf(false, promptLength) === -1) return { tokens, promptLength }
  return { tokens, promptLength, mask: Uint8Array.from(learned.slice(1), Number) }
}

/** Adds an end token to a conversation, unless the template already wrote one. */
function withEnd(source: ProblemSource, tokens: number[]): number[] {
  const turnEnd = source.tokenizer.chatEndToken()
  const ended = tokens.some((token) => token === turnEnd || source.stop.includes(token))
  return ended ? tokens : [...tokens, ...source.stop.slice(0, 1)]
}

/** Calls the chat template for a row. Its errors name the row and the field. */
function chatting<Result>(source: ProblemSource, problem: Problem, field: string, render: () => Result): Result {
  try {
    return render()
  } catch (cause) {
    const { code, message } = toLoopLMError(cause)
    throw code === 'INVALID_ARGUMENT' || code === 'INVALID_CONFIG'
      ? refusal(source, problem)(`field "${field}": ${message}`, cause)
      : cause
  }
}

async function encodeField(
  source: ProblemSource,
  problem: Problem,
  field: string,
  text: string,
  options: { addSpecialTokens?: boolean } = {},
): Promise<number[]> {
  const { tokenizer } = source
  try {
    const tokens = await tokenizer.encodeAsync(text, options)
    const { bosTokenId: bos } = tokenizer
    // the text already began with it
    return bos !== undefined && tokens[0] === bos && tokens[1] === bos ? tokens.slice(1) : tokens
  } catch (cause) {
    const { code, message } = toLoopLMError(cause)
    throw new LoopLMError(code, `${source.nameOf(problem)} field "${field}": ${message}`, { operation: 'dataset', cause })
  }
}

function refusal(source: ProblemSource, problem: Problem): (wrong: string, cause?: unknown) => LoopLMError {
  return (wrong, cause) =>
    new LoopLMError('INVALID_ARGUMENT', `${source.nameOf(problem)} ${wrong}`, { operation: 'dataset', cause })
}

function lengthLimit({ maxLength }: ProblemSource, what: string): string {
  return `and ${what} has at most ${maxLength} (max_position_embeddings): beyond it the model's positions were not trained; shorten the row`
}
