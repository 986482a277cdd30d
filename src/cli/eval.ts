import type { Command } from 'commander'
import { loadDataset } from '../data/jsonl.js'
import { formatNumber } from '../monitor/progress.js'
import { evaluate } from '../rl/evaluate.js'
import type { Task } from '../tasks/task.js'
import { collect, loopCounts, type ModelFlags, modelOptions, openModel, positiveInteger, task } from './arguments.js'
import { interruptible, print, printJson } from './output.js'
import { openRewards } from './train.js'

interface EvalFlags extends ModelFlags {
  task?: Task
  dataset?: string
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
    .description('answer held-out problems greedily with several loop counts')
    .argument('<model>', 'Hugging Face checkpoint folder')
    .option('--task <task>', 'name of a task, or YAML such as "{ name: addition, digits: 3 }"', task)
    .option('--dataset <file>', 'JSON Lines file with prompt and answer, instead of a task')
    .option(
      '--reward <reward>',
      'exactMatch, boxedMatch or a module; may be repeated (default: what the task says, exactMatch)',
      collect,
    )
    .option('--problems <count>', 'problems to answer', positiveInteger, 256)
    .option('--loops <counts>', "loop counts such as 1,2,4; default 1 to the model's", loopCounts)
    .option('--max-new-tokens <count>', 'longest answer', positiveInteger)
    .option('--json', 'write one JSON object to standard output and nothing else')
  modelOptions(command).action(evaluateModel)
}

async function evaluateModel(folder: string, flags: EvalFlags): Promise<void> {
  const dataset = flags.dataset === undefined ? undefined : await loadDataset(flags.dataset)
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
  for (const result of results)
    print(`${result.loops} loops  reward ${formatNumber(result.reward)}  tokens ${formatNumber(result.completionLength)}`)
}
