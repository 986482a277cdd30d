import type { ChatMessage } from '../data/chat-template.js'
import { isConversation, lessonProblem, promptProblem } from '../data/rows.js'
import { checkDraw, DatasetSampler } from '../data/sampler.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import { specialEndTokens } from '../model/special-tokens.js'
import type { Task } from '../tasks/task.js'
import type { TrainerConfig } from './options.js'

/** A prompt with the columns that reward functions see. */
export interface Problem {
  prompt: string
  answer?: string
  [column: string]: unknown
}

/** Where a trainer's prompts come from: a task or a dataset. What a step gets depends on the seed and the step alone. */
export interface ProblemSource {
  readonly tokenizer: Tokenizer
  /** Longest completion in tokens. */
  readonly maxNewTokens: number
  /** Tokens that end a completion; the first one ends what is learned. Empty where every completion has `maxNewTokens` tokens. */
  readonly stop: readonly number[]
  /** Most tokens of a prompt with its completion: `max_position_embeddings` of the model. */
  readonly maxLength: number
  /** The task whose reward is used when the caller gives none. */
  readonly task: Task | undefined
  /** `count` training problems from position `start` on. */
  take(start: number, count: number): Problem[]
  /** Up to `count` held-out problems, always the same ones. */
  heldOut(count: number): Problem[]
  /** How errors name a problem, for example `dataset[3]`. */
  nameOf(problem: Problem): string
}

const datasetMaxNewTokens = 256

/**
 * Opens the task or dataset of a trainer's options.
 *
 * @param operation how errors name the trainer
 * @throws LoopLMError INVALID_CONFIG when there is none, both, or no tokenizer, or when the tokenizer has more tokens than the model
 */
export function openProblems(
  operation: string,
  model: LoopLM,
  config: Pick<TrainerConfig, 'task' | 'dataset' | 'evalDataset' | 'tokenizer' | 'seed'>,
): ProblemSource {
  const { task, dataset, seed } = config
  if ((task === undefined) === (dataset === undefined)) {
    const message = 'a task or a dataset is needed, one of them; only update() and gradients() of a trainer need neither'
    throw new LoopLMError('INVALID_CONFIG', message, { operation })
  }
  const tokenizer = checkTokenizer(operation, model, task?.tokenizer ?? config.tokenizer ?? model.tokenizer, 'dataset')
  const maxLength = model.config.max_position_embeddings
  if (task !== undefined) return taskProblems(task, tokenizer, seed, maxLength)
  const rows = { dataset: checkRows(dataset, 'dataset', operation), evalDataset: config.evalDataset }
  let sampler = new DatasetSampler(rows.dataset, { seed })
  return {
    task,
    tokenizer,
    maxNewTokens: datasetMaxNewTokens,
    stop: stopTokens(model, tokenizer),
    maxLength,
    take(start, count) {
      if (sampler.state.index !== start) sampler = new DatasetSampler(rows.dataset, { seed, index: start })
      return sampler.take(count)
    },
    heldOut(count) {
      if (rows.evalDataset === undefined) {
        throw new LoopLMError('INVALID_CONFIG', 'evalDataset: evaluation with a dataset needs held-out rows', { operation })
      }
      return checkRows(rows.evalDataset, 'evalDataset', operation).slice(0, count)
    },
    nameOf(problem) {
      for (const [name, list] of Object.entries(rows)) {
        const index = list?.indexOf(problem) ?? -1
        if (index !== -1) return `${name}[${index}]`
      }
      return 'a row of the dataset'
    },
  }
}

/** @throws LoopLMError INVALID_CONFIG for what is no list of rows */
function checkRows(rows: unknown, name: string, operation: string): Problem[] {
  if (Array.isArray(rows) && rows.length > 0) return rows
  const message = Array.isArray(rows) ? 'has no rows' : 'must be an array of rows, such as loadDataset returns'
  throw new LoopLMError('INVALID_CONFIG', `${name}: ${message}`, { operation })
}

/** Where the rows of a dataset end: at the model's end tokens, at the tokenizer's where the model names none. */
export function stopTokens(model: LoopLM, tokenizer: Tokenizer): number[] {
  const ends = model.namesEndTokens ? model.endTokens : specialEndTokens(tokenizer)
  const own = tokenizer.eosTokenId
  return own !== undefined && ends.includes(own) ? [...new Set([own, ...ends])] : [...ends]
}

/** The tokenizer of text that a model reads. @throws LoopLMError INVALID_CONFIG when there is none, or it has more tokens than the model */
export function checkTokenizer(operation: string, model: LoopLM, tokenizer: Tokenizer | undefined, data: string): Tokenizer {
  if (tokenizer === undefined) {
    const message = `tokenizer: a ${data} needs one, and the model has none; pass tokenizer, for example Tokenizer.bytes()`
    throw new LoopLMError('INVALID_CONFIG', message, { operation })
  }
  if (tokenizer.vocabSize <= model.config.vocab_size) return tokenizer
  const message = `the tokenizer has ${tokenizer.vocabSize} tokens, the model's vocab_size is only ${model.config.vocab_size}`
  throw new LoopLMError('INVALID_CONFIG', message, { operation })
}

/**
 * The problems of a task, in the tokens of a tokenizer that may be another's: a model that was trained on text is asked in its own.
 */
export function taskProblems(task: Task, tokenizer: Tokenizer, seed = 0, maxLength = Infinity): ProblemSource {
  return {
    task,
    tokenizer,
    maxNewTokens: task.maxCompletionLength,
    stop: task.stop,
    maxLength,
    take: (start, count) => range(start, count).map((index) => task.sample('train', index, seed)),
    heldOut: (count) => range(0, count).map((index) => task.sample('test', index)),
    nameOf: () => `a problem of the task ${task.name}`,
  }
}

/**
 * The tokens of a prompt that is to be answered.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the row and the field, when it is no prompt, when the tokenizer refuses it, or when it
 *   leaves no room for an answer
 */
export function promptTokens(source: ProblemSource, problem: Problem): number[] {
  const refuse = refusal(source, problem)
  const wrong = promptProblem(problem)
  if (wrong !== undefined) throw refuse(wrong)
  const tokens = encodeField(source, problem, 'prompt', problem.prompt)
  if (tokens.length === 0) throw refuse('field "prompt" has no tokens; give at least one to go on from')
  if (tokens.length < source.maxLength) return tokens
  throw refuse(`field "prompt" has ${tokens.length} tokens, ${lengthLimit(source, 'a prompt with its answer')}`)
}

/** Tokens to learn. */
export interface TrainingSequence {
  tokens: number[] | Int32Array
  /** How many of them are given. */
  promptLength: number
}

/**
 * A problem with its answer as one token sequence: prompt, answer and the token that ends it. The answer is the column `completion` where
 * there is one, else `answer`. A row of chat `messages` is rendered by the tokenizer's template, with its `tools`, and its last message
 * is learned. A row of `text` is learned whole.
 *
 * @returns the tokens and how many of them are prompt. Of a row without an answer all tokens but the first are trained.
 * @throws LoopLMError INVALID_ARGUMENT naming the row and the field that cannot be learned
 */
export function trainingSequence(source: ProblemSource, problem: Problem): TrainingSequence {
  const wrong = lessonProblem(problem)
  if (wrong !== undefined) throw refusal(source, problem)(wrong)
  return checkLength(source, problem, isConversation(problem) ? chatSequence(source, problem) : textSequence(source, problem))
}

/**
 * A prompt with its answer as {@link trainingSequence} returns it, whatever further columns the row has.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the row and the field
 */
export function answeredSequence(source: ProblemSource, problem: Problem): TrainingSequence {
  const wrong = promptProblem(problem)
  if (wrong !== undefined) throw refusal(source, problem)(wrong)
  return checkLength(source, problem, textSequence(source, problem))
}

function checkLength(source: ProblemSource, problem: Problem, made: TrainingSequence): TrainingSequence {
  const refuse = refusal(source, problem)
  const { length } = made.tokens
  if (length < 2) throw refuse(`has ${length} tokens; at least 2 are needed, the first of which is given`)
  if (length <= source.maxLength) return made
  throw refuse(`has ${length} tokens, ${lengthLimit(source, 'a sequence')}`)
}

function textSequence(source: ProblemSource, problem: Problem): TrainingSequence {
  const { text, completion, answer } = problem
  const end = source.stop.slice(0, 1)
  const learned = completion !== undefined ? 'completion' : answer !== undefined ? 'answer' : undefined
  const isText = learned === undefined && typeof text === 'string' && (problem.prompt ?? '') === ''
  const field = isText ? 'text' : 'prompt'
  const prompt = encodeField(source, problem, field, isText ? text : (problem.prompt ?? ''))
  if (learned === undefined) return { tokens: [...prompt, ...end], promptLength: 1 }
  const given = (completion ?? answer) as string
  const tokens = [...prompt, ...encodeField(source, problem, learned, given, { addSpecialTokens: false }), ...end]
  return { tokens, promptLength: Math.max(1, prompt.length) } // the first token of all is never predicted
}

function chatSequence(source: ProblemSource, problem: Problem): TrainingSequence {
  const { tokenizer } = source
  const refuse = refusal(source, problem)
  const messages = problem.messages as readonly ChatMessage[]
  const { tools } = problem as { tools?: readonly object[] | null }
  const render = (list: readonly ChatMessage[], addGenerationPrompt: boolean) => {
    try {
      return tokenizer.applyChatTemplate(list, { addGenerationPrompt, tools: tools ?? undefined })
    } catch (cause) {
      throw toLoopLMError(cause).code === 'INVALID_ARGUMENT'
        ? refuse(`field "messages": ${(cause as Error).message}`, cause)
        : cause
    }
  }
  const whole = render(messages, false)
  const given = render(messages.slice(0, -1), true)
  if (!whole.startsWith(given)) {
    const problem =
      'the chat template writes the conversation differently once it is answered, so its last message cannot be told apart'
    throw refuse(`field "messages": ${problem}`)
  }
  const options = { addSpecialTokens: false } // the template writes them
  const prompt = encodeField(source, problem, 'messages', given, options)
  const answer = encodeField(source, problem, 'messages', whole.slice(given.length), options)
  const turnEnd = tokenizer.chatEndToken()
  const ended = answer.some((token) => token === turnEnd || source.stop.includes(token))
  return { tokens: [...prompt, ...answer, ...(ended ? [] : source.stop.slice(0, 1))], promptLength: prompt.length }
}

/** The one place where the text of problems becomes tokens. */
function encodeField(
  source: ProblemSource,
  problem: Problem,
  field: string,
  text: string,
  options: { addSpecialTokens?: boolean } = {},
): number[] {
  try {
    return source.tokenizer.encode(text, options)
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

function range(start: number, count: number): number[] {
  checkDraw(count, 'task')
  return Array.from({ length: count }, (_, i) => start + i)
}
