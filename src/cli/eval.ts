import { type Command, Option } from 'commander'
import { type ReadyColumns, readyColumns } from '../data/columns.js'
import { Corpus } from '../data/corpus.js'
import { type DatasetOptions, loadDataset } from '../data/dataset.js'
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import { formatNumber } from '../monitor/progress.js'
import { evaluate } from '../rl/evaluate.js'
import { evaluateSequences } from '../rl/evaluate-sequences.js'
import { stopTokens } from '../rl/problems.js'
import { builtInRewards } from '../tasks/rewards.js'
import type { Task } from '../tasks/task.js'
import {
  collect,
  loopCounts,
  type ModelFlags,
  modelOptions,
  openModel,
  positiveInteger,
  problemCount,
  task,
} from './arguments.js'
import { interruptible, print, printJson } from './output.js'
import { openRewards } from './train.js'

interface EvalFlags extends ModelFlags {
  task?: Task
  dataset?: string
  split?: string
  config?: string
  columns?: ReadyColumns
  text?: string[]
  contextLength: number
  reward?: string[]
  problems: number
  loops?: number[]
  maxNewTokens?: number
  json?: boolean
}

/** Adds `looplm eval`. */
export function addEval(program: Command): void {
  const command = program
    .command('eval')
    .description('answer held-out problems greedily, or predict text, with several loop counts')
    .argument('<model>', 'Hugging Face checkpoint folder')
    .option('--task <task>', 'name of a task, or YAML such as "{ name: addition, digits: 3 }"', task)
    .option('--dataset <path>', 'file or folder of rows with prompt and answer, or hub:org/name, instead of a task')
    .option('--split <name>', 'split of the dataset (default: train)')
    .option('--config <name>', 'configuration of the dataset')
    .addOption(new Option('--columns <form>', 'the form of its rows').choices(Object.keys(readyColumns)))
    .option(
      '--text <path>',
      'files or folders of text, instead of a task: loss, perplexity and accuracy; may be repeated',
      collect,
    )
    .option('--context-length <count>', 'tokens of a block of text', positiveInteger, 512)
    .option(
      '--reward <reward>',
      `${Object.keys(builtInRewards).join(', ')} or a module; may be repeated (default: what the task says, exactMatch)`,
      collect,
    )
    .option('--problems <count>', 'problems to answer, or blocks of text, spread over all of it', problemCount, 256)
    .option('--loops <counts>', "loop counts such as 1,2,4; default 1 to the model's", loopCounts)
    .option('--max-new-tokens <count>', 'longest answer', positiveInteger)
    .option('--json', 'write one JSON object to standard output and nothing else')
  modelOptions(command).action(evaluateModel)
}

async function evaluateModel(folder: string, flags: EvalFlags): Promise<void> {
  if (flags.text !== undefined) return evaluateText(folder, flags.text, flags)
  const dataset = flags.dataset === undefined ? undefined : await loadDataset(flags.dataset, datasetFlags(flags))
  const reward = flags.reward && (await openRewards(flags.reward.map((reward) => ({ reward }))))
  using model = await openModel(folder, flags)
  const { task, problems, loops, maxNewTokens } = flags
  const results = await interruptible((signal) =>
    evaluate(model, { task, dataset, reward, problems, loops, maxNewTokens, signal }),
  )
  if (flags.json) {
    printJson({ model: folder, results })
    return
  }
  print(`${results[0]?.problems ?? 0} problems, greedy`)
  for (const { loops, reward, completionLength, clippedRatio = 0 } of results) {
    const cut = clippedRatio > 0 ? `  cut off ${formatNumber(100 * clippedRatio)} %` : ''
    print(`${loops} loops  reward ${formatNumber(reward)}  tokens ${formatNumber(completionLength)}${cut}`)
  }
}

function datasetFlags({ split, config, columns }: EvalFlags): DatasetOptions {
  return { split, config, columns }
}

async function evaluateText(folder: string, paths: readonly string[], flags: EvalFlags): Promise<void> {
  if (flags.task !== undefined || flags.dataset !== undefined || flags.reward !== undefined) {
    throw new LoopLMError(
      'INVALID_ARGUMENT',
      'looplm eval: --text is predicted, not answered; leave --task, --dataset and --reward away',
    )
  }
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
  for (const { loops, loss, perplexity, accuracy } of measured)
    print(`${loops} loops  loss ${formatNumber(loss)}  perplexity ${perplexity.toFixed(4)}  accuracy ${formatNumber(accuracy)}`)
}

async function predictText(model: LoopLM, paths: readonly string[], flags: EvalFlags, signal: AbortSignal) {
  const { contextLength, problems, loops } = flags
  const tokenizer = model.tokenizer!
  const [endToken = null] = stopTokens(model, tokenizer)
  const corpus = await Corpus.open(paths, tokenizer, { contextLength, heldOutShare: 1, endToken, signal })
  try {
    const blocks = await corpus.heldOut(problems)
    return await evaluateSequences(
      model,
      blocks.map((tokens) => ({ tokens, promptLength: 1 })),
      { loops, signal },
    )
  } finally {
    corpus.close()
  }
}
