import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { ChatMessage } from '../data/chat-template.js'
import { Corpus } from '../data/corpus.js'
import { isConversation, lessonProblem } from '../data/rows.js'
import { LoopLMError } from '../errors.js'
import { stopTokens } from '../model/special-tokens.js'
import type { LossBatch, TokenSequence } from '../model/types.js'
import { exactMatch, type WeightedReward } from '../tasks/rewards.js'
import { checkSequences, copyBatch } from './batch.js'
import type { DataDescription } from './data.js'
import { evaluationMetrics } from './evaluate.js'
import { evaluateSequences, sequenceMetrics } from './evaluate-sequences.js'
import type { Metrics } from './events.js'
import { encodePrompts, type LessonOptions, type TrainingSequence, trainingSequence, trainingSequences } from './lessons.js'
import type { SequenceConfig } from './options.js'
import { checkTokenizer, type ProblemSource } from './problems.js'
import { namedRewards } from './rewards.js'
import type { Problem } from './rollout-record.js'
import type { StateChoice } from './sampling.js'
import { type Prepared, Trainer } from './trainer.js'
import type { LogicalBatch, StepWork } from './updates.js'

/** The fields that all batches of such trainers have. */
interface SequenceBatch {
  /** Token ids, at least two each. */
  sequences: readonly TokenSequence[]
  /** Per sequence, how many tokens are the prompt and carry no loss. Defaults to 1 each. */
  promptLengths?: ArrayLike<number>
}

/**
 * A trainer that learns from given tokens: problems of a task with their answers, rows of a dataset, or a corpus of packed
 * text. The data of a step only depends on the seed and the step.
 */
export abstract class SequenceTrainer<
  Config extends SequenceConfig,
  Batch extends SequenceBatch,
  Loss extends LogicalBatch = LossBatch,
> extends Trainer<Config, Batch, Loss> {
  protected readonly maxNewTokens = undefined
  #corpus: Corpus | undefined
  #evalCorpus: Corpus | undefined

  protected get rowsPerStep(): number {
    return this.config.batchSize
  }

  override dispose(): void {
    for (const corpus of [this.#corpus, this.#evalCorpus]) corpus?.close()
    super.dispose()
  }

  protected override async openData(signal: AbortSignal | undefined): Promise<DataDescription> {
    const { corpus, evalCorpus, contextLength, heldOutShare, seed, task, dataset } = this.config
    if (corpus === undefined) {
      const description = await super.openData(signal)
      if (dataset !== undefined) this.advice.ends(this.model, this.problems, description.conversations === true)
      return description
    }
    const operation = this.constructor.name
    if (task !== undefined || dataset !== undefined) {
      throw new LoopLMError('INVALID_CONFIG', 'give a task, a dataset or a corpus, only one of them', { operation })
    }
    const { max_position_embeddings } = this.model.config
    if (contextLength > max_position_embeddings) {
      const message = `contextLength: ${contextLength} is more than the model's max_position_embeddings, ${max_position_embeddings}`
      throw new LoopLMError('INVALID_CONFIG', message, { operation })
    }
    const tokenizer = checkTokenizer(operation, this.model, this.config.tokenizer ?? this.model.tokenizer, 'corpus')
    const [endToken = null] = stopTokens(this.model, tokenizer)
    const open = (paths: string | readonly string[], name: string, share: number) =>
      Corpus.open(paths, tokenizer, { contextLength, heldOutShare: share, seed, cache: this.#cache(name), signal, endToken })
    // the first process writes the tokens into the run's folder; the others read them there if they can access it
    await this.ranks.leaderFirst('corpus', async () => {
      this.#corpus ??= await open(corpus, 'corpus', evalCorpus === undefined ? heldOutShare : 0)
      if (evalCorpus !== undefined) this.#evalCorpus ??= await open(evalCorpus, 'evalCorpus', 1)
    })
    return { tokenizer, ...describeCorpus(this.#corpus!) }
  }

  protected override problemOf(row: Problem): string | undefined {
    return lessonProblem(row)
  }

  protected override async readRow(row: Problem): Promise<void> {
    await trainingSequence(this.problems, row, this.lessons)
  }

  protected override async checkEvaluations(): Promise<void> {
    const held = this.#evalCorpus ?? this.#corpus
    if (held === undefined) await super.checkEvaluations()
    const { reward, evalDataset, evalProblems } = this.config
    if (held === undefined && reward !== undefined && evalDataset !== undefined) {
      await encodePrompts(this.questions, await this.questions.heldOut(evalProblems))
    }
    if (held === undefined || held.heldOutBlocks > 0) return
    const { blocks } = held
    const message = `heldOutShare: of ${blocks} packed sequences none is held out; raise it, lower contextLength, or give evalCorpus`
    throw new LoopLMError('INVALID_CONFIG', message, { operation: this.constructor.name })
  }

  /** Evaluates text and datasets by predicting their tokens, and tasks by answering them. */
  protected override async evaluateData(signal: AbortSignal | undefined): Promise<Metrics> {
    const { evalProblems, evalLoops, task, evalDataset, reward, initialState, stateSeed }: SequenceConfig & StateChoice =
      this.config
    if (task !== undefined || (this.#corpus === undefined && evalDataset === undefined)) return super.evaluateData(signal)
    const held = this.#evalCorpus ?? this.#corpus
    const sequences =
      held === undefined
        ? await trainingSequences(this.problems, await this.problems.heldOut(evalProblems), this.lessons)
        : (await held.heldOut(evalProblems)).map((tokens) => ({ tokens, promptLength: 1 }))
    const options = { loops: evalLoops, initialState, stateSeed, signal }
    const metrics = sequenceMetrics(await evaluateSequences(this.model, sequences, options))
    if (reward === undefined || held !== undefined) return metrics
    return { ...metrics, ...evaluationMetrics(await this.evaluate({ signal })) }
  }

  protected async work(): Promise<StepWork<Loss>> {
    const { batchSize } = this.config
    const drawn = await this.#draw(this.step * batchSize, batchSize)
    const batch = {
      sequences: drawn.map(({ tokens }) => tokens),
      promptLengths: drawn.map(({ promptLength }) => promptLength),
      ...(drawn.some(({ mask }) => mask !== undefined) ? { mask: drawn.map(maskOf) } : {}),
    }
    const operation = `${this.constructor.name}.run`
    const { portion, metrics } = await this.prepare(this.take(batch as unknown as Batch, operation), operation)
    const tokens = drawn.reduce((sum, { tokens }) => sum + tokens.length, 0)
    return { portions: [portion], metrics, tokens, completions: [], logged: 0 }
  }

  protected take(batch: Batch, operation: string): Batch {
    const taken = copyBatch(operation, batch, this.fields)
    const { sequences } = taken
    const promptLengths = taken.promptLengths ?? (Array.isArray(sequences) ? sequences.map(() => 1) : [])
    checkSequences(operation, sequences, promptLengths, this.model.config.vocab_size)
    return { ...taken, promptLengths }
  }

  /** Held-out problems to answer. Of a conversation, the last message is removed. */
  protected override get questions(): ProblemSource {
    const source = this.problems
    const lessons = new Map<Problem, Problem>()
    const ask = (lesson: Problem) => {
      const question = withoutAnswer(lesson)
      lessons.set(question, lesson)
      return question
    }
    return {
      ...source,
      heldOut: async (count) => (await source.heldOut(count)).map(ask),
      nameOf: (question) => source.nameOf(lessons.get(question) ?? question),
    }
  }

  /** What is learned from a row. */
  protected get lessons(): LessonOptions {
    return {}
  }

  /** The fields of a batch that the trainer uses. */
  protected abstract readonly fields: readonly (keyof Batch & string)[]
  protected abstract override prepare(batch: Batch, operation: string): Promise<Prepared<Loss>>

  protected rewardFunctions({ task }: ProblemSource): readonly WeightedReward[] {
    if (this.config.reward !== undefined) return namedRewards(this.config.reward)
    return task === undefined ? [{ name: 'exactMatch', reward: exactMatch }] : [{ name: task.name, reward: task.reward }]
  }

  async #draw(start: number, count: number): Promise<TrainingSequence[]> {
    if (this.#corpus !== undefined) {
      return (await this.#corpus.take(start, count)).map((tokens) => ({ tokens, promptLength: 1 }))
    }
    const drawn = await this.problems.take(start, count)
    return this.ranks.rows('sequences', this.ranks.strided(count), async (own) => {
      const made = await trainingSequences(
        this.problems,
        own.map((i) => drawn[i]!),
        this.lessons,
      )
      return made.map((sequence) => ({ ...sequence, tokens: Int32Array.from(sequence.tokens) }))
    })
  }

  #cache(name: string): string | undefined {
    const { runDir } = this.config
    const cache = runDir === undefined ? undefined : join(runDir, name)
    return cache !== undefined && (this.ranks.leads || existsSync(cache)) ? cache : undefined
  }
}

function withoutAnswer(lesson: Problem): Problem {
  const { messages, prompt, ...columns } = lesson
  if (!isConversation(lesson) || !Array.isArray(messages)) return lesson
  const last = messages.at(-1) as ChatMessage
  const answer = columns.answer ?? (typeof last.content === 'string' ? last.content : undefined)
  return { ...columns, ...(answer === undefined ? {} : { answer }), prompt: messages.slice(0, -1) }
}

function maskOf({ tokens, mask }: TrainingSequence): Uint8Array {
  return mask ?? new Uint8Array(tokens.length - 1).fill(1)
}

function describeCorpus({ fingerprint, files, tokens, blocks: rows }: Corpus): Omit<DataDescription, 'tokenizer'> {
  return {
    fingerprint,
    rows,
    description: `a corpus of ${files.length} ${files.length === 1 ? 'file' : 'files'} and ${tokens} tokens`,
  }
}
