import { ChatFormat } from '../data/chat-format.js'
import { checkDraw } from '../data/sampler.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import { stopTokens } from '../model/special-tokens.js'
import type { Task } from '../tasks/task.js'
import { type DatasetRows, openRows, type RowCheck, type RowsDescription } from './dataset-rows.js'
import type { RolloutConfig, TrainerConfig } from './options.js'
import type { Problem } from './rollout-record.js'

/** The source of a trainer's prompts: a task or a dataset. The prompts of a step only depend on the seed and the step. */
export interface ProblemSource {
  readonly tokenizer: Tokenizer
  /** Renders conversations. */
  readonly chat: ChatFormat
  /** The longest completion in tokens. */
  readonly maxNewTokens: number
  /**
   * Tokens that end a completion. The first one is appended to sequences that are learned. Empty if every completion has
   * `maxNewTokens` tokens.
   */
  readonly stop: readonly number[]
  /** Strings that also end a completion. */
  readonly stopTexts?: readonly string[]
  /** The most tokens of a prompt and its completion together: the model's `max_position_embeddings`. */
  readonly maxLength: number
  /** The task, whose reward is used if the caller sets none. */
  readonly task: Task | undefined
  /** `count` training problems from position `start` on. */
  take(start: number, count: number): Promise<Problem[]>
  /** Up to `count` held-out problems, always the same ones. */
  heldOut(count: number): Promise<Problem[]>
  /**
   * Reads all rows of a dataset once. Returns undefined for a task.
   * @throws LoopLMError naming the first row that is rejected, ABORTED
   */
  describe(check: RowCheck, signal: AbortSignal | undefined): Promise<RowsDescription | undefined>
  /** The name of a problem in errors, for example `dataset[3]`. */
  nameOf(problem: Problem): string
}

const datasetMaxNewTokens = 256

/**
 * Opens the task or dataset of a trainer's options.
 *
 * @param operation the trainer's name in errors
 * @throws LoopLMError INVALID_CONFIG if there is none, if there are both, if there is no tokenizer, or if the tokenizer has
 *   more tokens than the model
 */
export function openProblems(
  operation: string,
  model: LoopLM,
  config: Pick<TrainerConfig, 'task' | 'dataset' | 'evalDataset' | 'tokenizer' | 'seed'> &
    Partial<Pick<TrainerConfig, 'chatTemplate'>> &
    Pick<RolloutConfig, 'stop'>,
): ProblemSource {
  const source = openData(operation, model, config)
  if (config.stop === undefined) return source
  const stop = config.stop.filter((entry) => typeof entry === 'number')
  return { ...source, stop, stopTexts: config.stop.filter((entry) => typeof entry === 'string') }
}

function openData(operation: string, model: LoopLM, config: Parameters<typeof openProblems>[2]): ProblemSource {
  const { task, dataset, seed } = config
  if ((task === undefined) === (dataset === undefined)) {
    const message = 'pass either a task or a dataset; only update() and gradients() of a trainer need neither'
    throw new LoopLMError('INVALID_CONFIG', message, { operation })
  }
  const tokenizer = checkTokenizer(operation, model, task?.tokenizer ?? config.tokenizer ?? model.tokenizer, 'dataset')
  const maxLength = model.config.max_position_embeddings
  if (task !== undefined) return taskProblems(task, tokenizer, seed, maxLength)
  const chat = new ChatFormat(tokenizer, config.chatTemplate)
  const rows = openRows(dataset!, 'dataset', seed, operation)
  let held: DatasetRows | undefined
  return {
    task: undefined,
    tokenizer: chat.tokenizer,
    chat,
    maxNewTokens: datasetMaxNewTokens,
    stop: stopTokens(model, chat.tokenizer),
    maxLength,
    take: (start, count) => rows.take(start, count),
    async heldOut(count) {
      if (config.evalDataset === undefined) {
        throw new LoopLMError('INVALID_CONFIG', 'evalDataset: evaluation with a dataset needs held-out rows', { operation })
      }
      held ??= openRows(config.evalDataset, 'evalDataset', seed, operation)
      return held.head(count)
    },
    describe: (check, signal) => rows.describe(check, signal),
    nameOf: (problem) => rows.nameOf(problem) ?? held?.nameOf(problem) ?? 'a row of the dataset',
  }
}

/**
 * Checks the tokenizer for a model's text.
 * @throws LoopLMError INVALID_CONFIG if there is none, or if it has more tokens than the model
 */
export function checkTokenizer(operation: string, model: LoopLM, tokenizer: Tokenizer | undefined, data: string): Tokenizer {
  if (tokenizer === undefined) {
    const message = `tokenizer: a ${data} needs one, and the model has none; pass tokenizer, for example Tokenizer.bytes()`
    throw new LoopLMError('INVALID_CONFIG', message, { operation })
  }
  if (tokenizer.vocabSize <= model.config.vocab_size) return tokenizer
  const message = `the tokenizer has ${tokenizer.vocabSize} tokens, the model's vocab_size is only ${model.config.vocab_size}`
  throw new LoopLMError('INVALID_CONFIG', message, { operation })
}

/** The problems of a task with any tokenizer: a model that was trained on text reads them with its own. */
export function taskProblems(task: Task, tokenizer: Tokenizer, seed = 0, maxLength = Infinity): ProblemSource {
  return {
    task,
    tokenizer,
    chat: new ChatFormat(tokenizer),
    maxNewTokens: task.maxCompletionLength,
    stop: task.stop,
    maxLength,
    take: async (start, count) => range(start, count).map((index) => task.sample('train', index, seed)),
    heldOut: async (count) => range(0, count).map((index) => task.sample('test', index)),
    describe: async () => undefined,
    nameOf: () => `a problem of the task ${task.name}`,
  }
}

function range(start: number, count: number): number[] {
  checkDraw(count, 'task')
  return Array.from({ length: count }, (_, i) => start + i)
}
