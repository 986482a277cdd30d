import type { ChatMessage } from '../data/chat-template.js'
import { checkDraw, DatasetSampler } from '../data/sampler.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { Task } from '../tasks/task.js'
import type { TrainerConfig } from './config.js'

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
  /** Tokens that end a completion; undefined: the model's end tokens. */
  readonly stop: readonly number[] | undefined
  /** The task whose reward is used when the caller gives none. */
  readonly task: Task | undefined
  /** `count` training problems from position `start` on. */
  take(start: number, count: number): Problem[]
  /** Up to `count` held-out problems, always the same ones. */
  heldOut(count: number): Problem[]
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
  if (task !== undefined) return taskProblems(task, tokenizer, seed)
  let sampler = new DatasetSampler(dataset!, { seed })
  return {
    task,
    tokenizer,
    maxNewTokens: datasetMaxNewTokens,
    stop: undefined,
    take(start, count) {
      if (sampler.state.index !== start) sampler = new DatasetSampler(dataset!, { seed, index: start })
      return sampler.take(count)
    },
    heldOut(count) {
      if (config.evalDataset === undefined) {
        throw new LoopLMError('INVALID_CONFIG', 'evalDataset: evaluation with a dataset needs held-out rows', { operation })
      }
      return config.evalDataset.slice(0, count)
    },
  }
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
export function taskProblems(task: Task, tokenizer: Tokenizer, seed = 0): ProblemSource {
  return {
    task,
    tokenizer,
    maxNewTokens: task.maxCompletionLength,
    stop: task.stop,
    take: (start, count) => range(start, count).map((index) => task.sample('train', index, seed)),
    heldOut: (count) => range(0, count).map((index) => task.sample('test', index)),
  }
}

/** Tokens to learn. */
export interface TrainingSequence {
  tokens: number[] | Int32Array
  /** How many of them are given. */
  promptLength: number
}

/**
 * A problem with its answer as one token sequence: prompt, answer and the token that ends it. The answer is the column `completion` where
 * there is one, else `answer`. A row of chat `messages` is rendered by the tokenizer's template, and its last message is learnt.
 *
 * @returns the tokens and how many of them are prompt. A row without an answer is a text of its own: all its tokens but the
 *   first are trained.
 * @throws LoopLMError INVALID_ARGUMENT for messages that the template refuses
 */
export function trainingSequence(source: ProblemSource, problem: Problem): TrainingSequence {
  const { tokenizer } = source
  if (Array.isArray(problem.messages)) return chatSequence(tokenizer, problem.messages)
  const prompt = tokenizer.encode(problem.prompt)
  const text = typeof problem.completion === 'string' ? problem.completion : problem.answer
  const answer = text === undefined ? [] : tokenizer.encode(text, { addSpecialTokens: false })
  const end = source.stop === undefined ? tokenizer.eosTokenId : source.stop[0]
  const tokens = end === undefined ? [...prompt, ...answer] : [...prompt, ...answer, end]
  return { tokens, promptLength: text === undefined ? 1 : prompt.length }
}

function chatSequence(tokenizer: Tokenizer, messages: readonly ChatMessage[]): TrainingSequence {
  const options = { addSpecialTokens: false } // the template writes them
  const whole = tokenizer.applyChatTemplate(messages)
  const given = tokenizer.applyChatTemplate(messages.slice(0, -1), { addGenerationPrompt: true })
  if (!whole.startsWith(given)) {
    const message =
      'messages: the chat template writes the conversation differently once it is answered, so its last message cannot be told apart'
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'dataset' })
  }
  const prompt = tokenizer.encode(given, options)
  return { tokens: [...prompt, ...tokenizer.encode(whole.slice(given.length), options)], promptLength: prompt.length }
}

function range(start: number, count: number): number[] {
  checkDraw(count, 'task')
  return Array.from({ length: count }, (_, i) => start + i)
}
