import { type Command, Option } from 'commander'
import { type ReadyColumns, readyColumns } from '../data/columns.js'
import { Corpus } from '../data/corpus.js'
import { LoopLMError } from '../errors.js'
import { type OutputFile, openOutput } from '../files/write.js'
import { cacheTypes } from '../model/cache-type.js'
import type { LoopLM } from '../model/model.js'
import { stopTokens } from '../model/special-tokens.js'
import type { CacheType } from '../model/types.js'
import { formatNumber } from '../monitor/progress.js'
import { openRows } from '../rl/dataset-rows.js'
import { type EvaluateOptions, type Evaluation, evaluate } from '../rl/evaluate.js'
import { evaluateSequences } from '../rl/evaluate-sequences.js'
import type { Interval } from '../rl/statistics.js'
import { builtInRewards } from '../tasks/rewards.js'
import type { Task } from '../tasks/task.js'
import {
  collect,
  loopCounts,
  type ModelFlags,
  modelOptions,
  natural,
  nonNegative,
  openModel,
  positiveInteger,
  problemCount,
  task,
} from './arguments.js'
import { type ChatFlags, chatOptions, chatSettings } from './chat-flags.js'
import { interruptible, print, printJson } from './output.js'
import { joinProcesses, leads, type ParallelFlags, parallelOption } from './processes.js'
import { openRewards } from './train.js'

interface EvalFlags extends ModelFlags, ChatFlags, ParallelFlags {
  task?: Task
  dataset?: string
  split?: string
  config?: string
  columns?: ReadyColumns
  text?: string[]
  contextLength?: number
  cacheType?: CacheType
  reward?: string[]
  problems: number
  loops?: number[]
  maxNewTokens?: number
  samples?: number
  temperature?: number
  seed?: number
  save?: string
  json?: boolean
}

/** Adds `looplm eval`. */
export function addEval(program: Command): void {
  const command = program
    .command('eval')
    .description('evaluate a checkpoint on held-out problems or on text, with several loop counts')
    .argument('<model>', 'checkpoint folder, GGUF file, or name of a downloaded model')
    .option(
      '--task <task>',
      'addition, mano, sorting, pointerChasing, parity or chain, or YAML such as "{ name: addition, digits: 3 }"',
      task,
    )
    .option('--dataset <path>', 'file or folder of rows with prompt and answer, or hub:org/name, instead of a task')
    .option('--split <name>', 'split of the dataset (default: train)')
    .option('--config <name>', 'configuration of the dataset')
    .addOption(new Option('--columns <form>', 'use ready-made columns for its rows').choices(Object.keys(readyColumns)))
    .option(
      '--text <path>',
      'files or folders of text, instead of a task: loss, perplexity and accuracy; may be repeated',
      collect,
    )
    .addOption(
      new Option(
        '--cache-type <type>',
        'decode --text token by token through such a cache, as generation does (default: no cache, whole blocks)',
      ).choices(cacheTypes),
    )
    .option('--context-length <count>', 'tokens per block of text (default: 512)', positiveInteger)
    .option(
      '--reward <reward>',
      `${Object.keys(builtInRewards).join(', ')} or a module; may be repeated (default: that of the task, else exactMatch)`,
      collect,
    )
    .option(
      '--problems <count>',
      "problems to answer (a dataset's first rows), or blocks of --text to read (spread over the text)",
      problemCount,
      256,
    )
    .option('--loops <counts>', "loop counts such as 1,2,4 (default: 1 to the model's)", loopCounts)
    .option('--max-new-tokens <count>', 'longest answer', positiveInteger)
    .option('--samples <count>', 'answers per problem, for pass@k (default: 1)', positiveInteger)
    .option('--temperature <value>', 'sampling temperature; 0 is greedy (default: 0 for one sample, else 1)', nonNegative)
    .option('--seed <number>', 'seed of the samples (default: 0)', natural)
    .option('--save <file>', 'write every answer with its reward to a JSON Lines file')
    .addOption(parallelOption())
    .option('--json', 'write one JSON object to standard output and nothing else')
  chatOptions(command)
  modelOptions(command).action(evaluateModel)
}

/** Flags that only some of the sources read. */
const read = [
  { sources: ['text'], names: ['cacheType', 'contextLength'] },
  { sources: ['dataset'], names: ['split', 'config', 'columns', 'chat', 'system', 'chatTemplate'] },
  { sources: ['task', 'dataset'], names: ['reward', 'maxNewTokens', 'samples', 'temperature', 'seed', 'save'] },
] as const

/** @throws LoopLMError INVALID_ARGUMENT without a source or with several, or naming a flag that nothing would read */
function checkFlags(flags: EvalFlags): void {
  const refuse = (problem: string) => new LoopLMError('INVALID_ARGUMENT', `looplm eval: ${problem}`)
  const given = (['task', 'dataset', 'text'] as const).filter((source) => flags[source] !== undefined)
  if (given.length !== 1) throw refuse('pass one of --task, --dataset and --text')
  for (const { sources, names } of read) {
    const unread = names.find((name) => flags[name] !== undefined && !sources.some((source) => source === given[0]))
    if (unread === undefined) continue
    const flag = unread.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
    throw refuse(`--${flag} goes with ${sources.map((source) => `--${source}`).join(' or ')}; omit it`)
  }
}

async function evaluateModel(folder: string, flags: EvalFlags): Promise<void> {
  const ranks = await joinProcesses({ backend: flags.parallel })
  checkFlags(flags)
  if (flags.text !== undefined) return evaluateText(folder, flags.text, flags)
  const { dataset: path, split, config, columns } = flags
  const dataset = path === undefined ? undefined : { path, split, config, columns }
  // fails before a large model is loaded
  if (dataset !== undefined) await openRows(dataset, 'dataset', 0, 'looplm eval').head(1)
  const { save } = flags
  const output = await ranks.each('save', () => (save !== undefined && ranks.leads ? openOutput(save, 'looplm eval') : undefined))
  try {
    await answerProblems(folder, flags, dataset, output)
  } finally {
    await output?.close()
  }
}

async function answerProblems(
  folder: string,
  flags: EvalFlags,
  dataset: EvaluateOptions['dataset'],
  output: OutputFile | undefined,
): Promise<void> {
  const chatTemplate = chatSettings(flags)
  const reward = flags.reward && (await openRewards(flags.reward.map((reward) => ({ reward }))))
  using model = await openModel(folder, flags)
  const { task, problems, loops, maxNewTokens, samples, temperature, seed } = flags
  const sampling = { samples, temperature, seed }
  const results = await interruptible((signal) =>
    evaluate(model, {
      task,
      dataset,
      chatTemplate,
      reward,
      problems,
      loops,
      maxNewTokens,
      ...sampling,
      onProgress: showProgress,
      signal,
    }),
  )
  if (flags.json)
    printJson({ model: folder, results: results.map(({ answers: _answers, columns: _columns, ...result }) => result) })
  else printResults(results, temperature)
  await output?.write(answerLines(results))
}

function printResults(results: readonly Evaluation[], temperature: number | undefined): void {
  const one = (results[0]?.samples ?? 1) === 1
  const how =
    one && (temperature ?? 0) === 0 ? 'greedy' : `${results[0]?.samples} samples, temperature ${temperature ?? (one ? 0 : 1)}`
  print(`${results[0]?.problems ?? 0} problems, ${how}; intervals of 95 %`)
  for (const result of results) print(resultText(result))
}

function resultText({ loops, reward, interval, passAt = {}, completionLength, clippedRatio = 0 }: Evaluation): string {
  const cut = clippedRatio > 0 ? `  cut off ${formatNumber(100 * clippedRatio)} %` : ''
  const pass = Object.entries(passAt).map(([k, share]) => `  pass@${k} ${formatNumber(share)}`)
  return `${loops} loops  reward ${formatNumber(reward)} ${intervalText(interval)}${pass.join('')}  tokens ${formatNumber(completionLength)}${cut}`
}

function intervalText({ low, high }: Interval): string {
  return `(${low.toFixed(3)} to ${high.toFixed(3)})`
}

/** Redraws a line on a terminal. Writes nothing to a log. */
function showProgress({ loops, answered, of }: { loops: number; answered: number; of: number }): void {
  const { stderr } = process
  if (stderr.isTTY === true && leads())
    stderr.write(`\r\x1b[2K${loops} loops: ${answered} of ${of} answers${answered === of ? '\r\x1b[2K' : ''}`)
}

/** A line per response: loops, the problem's number and prompt, the sample's number, the completion and its reward. */
function answerLines(results: readonly Evaluation[]): string {
  const lines = results.flatMap(({ loops, answers, columns }) =>
    answers.flatMap((own, problem) => {
      const { prompt, answer } = columns[problem]!
      return own.map((given, sample) => JSON.stringify({ loops, problem, sample, prompt, answer, ...given }))
    }),
  )
  return lines.map((line) => `${line}\n`).join('')
}

async function evaluateText(folder: string, paths: readonly string[], flags: EvalFlags): Promise<void> {
  using model = await openModel(folder, flags)
  if (model.tokenizer === undefined) {
    throw new LoopLMError('UNSUPPORTED', `looplm eval: ${folder} has no tokenizer.json, which --text needs`)
  }
  const results = await interruptible((signal) => predictText(model, paths, flags, signal))
  const measured = results.map((result) => ({ ...result, perplexity: Math.exp(result.loss) }))
  if (flags.json) {
    printJson({ model: folder, results: measured })
    return
  }
  print(`${measured[0]?.tokens ?? 0} tokens`)
  for (const { loops, loss, perplexity, accuracy, interval } of measured) {
    const figures = `loss ${formatNumber(loss)}  perplexity ${perplexity.toFixed(4)}  accuracy ${formatNumber(accuracy)}`
    print(`${loops} loops  ${figures} ${intervalText(interval)}`)
  }
}

async function predictText(model: LoopLM, paths: readonly string[], flags: EvalFlags, signal: AbortSignal) {
  const { contextLength = 512, problems, loops, cacheType } = flags
  const tokenizer = model.tokenizer!
  const [endToken = null] = stopTokens(model, tokenizer)
  const corpus = await Corpus.open(paths, tokenizer, { contextLength, heldOutShare: 1, endToken, signal })
  try {
    const blocks = await corpus.heldOut(problems)
    return await evaluateSequences(
      model,
      blocks.map((tokens) => ({ tokens, promptLength: 1 })),
      { loops, cacheType, signal },
    )
  } finally {
    corpus.close()
  }
}
