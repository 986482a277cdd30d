import { basename, dirname, join, relative, resolve } from 'node:path'
import type { Command } from 'commander'
import { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import type { LoopLMConfigInput } from '../model/config.js'
import { LoopLM } from '../model/model.js'
import type { Logger, RunFacts } from '../monitor/logger.js'
import { type LoggerName, loggerNames } from '../monitor/loggers/built-in.js'
import { loadLogger } from '../monitor/loggers/load.js'
import { Progress } from '../monitor/progress.js'
import { endInOrder } from '../parallel.js'
import { type DatasetSource, openRows } from '../rl/dataset-rows.js'
import type { TrainerEvent } from '../rl/events.js'
import { trainers } from '../rl/registry.js'
import { createTask, type TaskConfig } from '../tasks/index.js'
import { builtInRewards, loadRewards, type WeightedReward } from '../tasks/rewards.js'
import type { Task } from '../tasks/task.js'
import { didYouMean } from '../validation/names.js'
import { collect, type DeviceFlags, deviceFlags, deviceOptions } from './arguments.js'
import { exitCodes, interruptedCode, interruptible, print, printJson } from './output.js'
import { joinProcesses, leads, type ParallelFlags, parallelOption } from './processes.js'
import { banner, evaluationText, RunSummary } from './run-summary.js'
import { readTrainConfig, type TrainConfig } from './train-config.js'

interface TrainFlags extends DeviceFlags, ParallelFlags {
  runDir?: string
  resume?: boolean | string
  set?: string[]
  json?: boolean
}

/** Adds `looplm train`. */
export function addTrain(program: Command): void {
  const command = program
    .command('train')
    .description('train a model as described in a YAML file; Ctrl-C saves a checkpoint if there is a run folder')
    .argument('[config]', 'YAML file with trainer, model, options, and a task, dataset or corpus; optional with --resume <run>')
    .option('--run-dir <folder>', 'folder of checkpoints and metrics (runDir of the file)')
    .option(
      '--resume [run]',
      'continue the run in --run-dir, or start it if it has no checkpoint. With a checkpoint folder, continue from it. With a run folder and no configuration file, continue that run',
    )
    .option('--set <key=value>', 'change a field or an option of the file; may be repeated', collect)
    .addOption(parallelOption())
    .option('--json', 'write one JSON object per event to standard output and nothing else')
  deviceOptions(command).action(async (path: string | undefined, flags: TrainFlags) => {
    process.exitCode = await (path === undefined ? trainOn(flags) : train(path, flags))
  })
}

/** Resumes a run with its own config.yaml. */
async function trainOn(flags: TrainFlags): Promise<number> {
  const { resume: place } = flags
  if (typeof place !== 'string') {
    const message = 'looplm train: pass a configuration file, or continue a run with --resume RUN'
    throw new LoopLMError('INVALID_ARGUMENT', message)
  }
  const above = dirname(resolve(place))
  const isCheckpoint = basename(above) === 'checkpoints'
  const runDir = isCheckpoint ? relative(process.cwd(), dirname(above)) || '.' : place
  const resume = isCheckpoint ? place : true
  return train(join(runDir, 'config.yaml'), { runDir, ...flags, resume })
}

/** Trains, and returns the exit code. */
async function train(path: string, flags: TrainFlags): Promise<number> {
  const config = await readConfig(path, flags)
  await joinProcesses(parallelOf(config.parallel, flags))
  const resources = await openResources(config)
  using model = await openModel(config, resources.tokenizer ?? resources.task?.tokenizer)
  const progress = new Progress(leads() ? process.stderr : { write: () => true })
  const { runDir } = config
  const options = {
    ...config.options,
    ...resources,
    ...(runDir === undefined ? {} : { runDir }),
    ...(config.resume === undefined ? {} : { resume: config.resume }),
    onWarning: (message: string) => progress.log(`warning: ${message}`),
  }
  using trainer = trainers[config.trainer].create(model, {
    ...options,
    callbacks: flags.json ? {} : { onRunBegin: ({ facts }: { facts: RunFacts }) => progress.log(banner(trainer, facts)) },
  })
  const { resume: _, ...written } = config // for `looplm train --resume RUN`
  const summary = new RunSummary(trainer)
  let reason: unknown
  await interruptible(async (signal) => {
    signal.addEventListener('abort', () => {
      reason = signal.reason
    })
    for await (const event of trainer.run({ signal, config: written })) {
      summary.add(event)
      if (flags.json) printJson(event)
      else show(event, trainer.config.steps, progress)
    }
  })
  progress.end()
  const { last } = summary
  if (last?.type !== 'done' || !last.aborted) {
    if (!flags.json) print(summary.text())
    return exitCodes.ok
  }
  endInOrder()
  if (!leads()) return interruptedCode(reason)
  const saved = summary.checkpoint === undefined ? 'nothing was left to save' : `saved ${summary.checkpoint}`
  const how =
    runDir === undefined
      ? 'nothing was saved (no run folder)'
      : `${saved}; continue with: looplm train --resume ${shellWord(runDir)}`
  process.stderr.write(`stopped after step ${last.step}; ${how}\n`)
  return interruptedCode(reason)
}

/**
 * The configuration of a run, with the flags applied.
 * @throws LoopLMError as {@link readTrainConfig}
 */
async function readConfig(path: string, { runDir, resume, set = [], ...flags }: TrainFlags): Promise<TrainConfig> {
  const config: TrainConfig = { ...(await readTrainConfig(path, set)), ...deviceFlags(flags) }
  if (runDir !== undefined) config.runDir = runDir
  if (resume !== undefined) config.resume = resume
  if (config.resume !== true || config.runDir !== undefined) return config
  const message = '--resume needs a run folder: give --run-dir, runDir in the file, or the path of a checkpoint'
  throw new LoopLMError('INVALID_CONFIG', message)
}

/** The options of the processes that train together. The flag overrides the file. */
function parallelOf(given: TrainConfig['parallel'], { parallel }: ParallelFlags) {
  const { timeout, backend } =
    typeof given === 'object' ? { timeout: given.timeout, backend: 'auto' as const } : { backend: given }
  return { backend: parallel ?? backend, timeout }
}

async function openModel(config: TrainConfig, tokenizer: Tokenizer | undefined): Promise<LoopLM> {
  const place = deviceFlags(config as DeviceFlags)
  if (typeof config.model === 'string') return LoopLM.fromPretrained(config.model, { ...place, dequantize: true })
  const seed = typeof config.options.seed === 'number' ? config.options.seed : 0
  return LoopLM.create(newModel(config.model, tokenizer), { ...place, seed })
}

/** The fields of a new model. Its vocabulary defaults to that of the tokenizer. */
export function newModel(fields: object, tokenizer: Tokenizer | undefined): LoopLMConfigInput {
  return { ...(tokenizer === undefined ? {} : { vocab_size: tokenizer.vocabSize }), ...fields } as LoopLMConfigInput
}

/** The tokenizer that the configuration names. */
export async function openTokenizer({ tokenizer }: TrainConfig): Promise<Tokenizer | undefined> {
  if (tokenizer === undefined) return undefined
  return tokenizer === 'bytes' ? Tokenizer.bytes() : Tokenizer.fromPretrained(tokenizer)
}

async function openResources(config: TrainConfig) {
  const resources: {
    task?: Task
    dataset?: DatasetSource
    evalDataset?: DatasetSource
    evalTasks?: Record<string, Task>
    corpus?: string | string[]
    evalCorpus?: string | string[]
    tokenizer?: Tokenizer
    reward?: WeightedReward[]
    loggers?: (LoggerName | Logger)[]
  } = {}
  if (config.task !== undefined) resources.task = openTask(config.task)
  if (config.evalTasks !== undefined) {
    resources.evalTasks = Object.fromEntries(Object.entries(config.evalTasks).map(([name, task]) => [name, openTask(task)]))
  }
  if (config.corpus !== undefined) resources.corpus = config.corpus
  if (config.evalCorpus !== undefined) resources.evalCorpus = config.evalCorpus
  for (const name of ['dataset', 'evalDataset'] as const) {
    const source = config[name]
    if (source === undefined) continue
    await openRows(source, name, 0, 'looplm train').head(1) // fails before a large model is loaded
    resources[name] = source
  }
  const tokenizer = await openTokenizer(config)
  if (tokenizer !== undefined) resources.tokenizer = tokenizer
  if (config.reward !== undefined) resources.reward = await openRewards(config.reward)
  if (config.loggers !== undefined) resources.loggers = await Promise.all(config.loggers.map(openLogger))
  return resources
}

/** A task of the configuration. */
export function openTask(task: NonNullable<TrainConfig['task']>): Task {
  return createTask((typeof task === 'string' ? { name: task } : task) as TaskConfig)
}

/** Opens rewards: built-in ones by name, others from modules. */
export async function openRewards(rewards: NonNullable<TrainConfig['reward']>): Promise<WeightedReward[]> {
  const list = typeof rewards === 'string' ? [{ reward: rewards }] : rewards
  const opened = list.map(async ({ reward, weight = 1 }): Promise<WeightedReward[]> => {
    const known = Object.hasOwn(builtInRewards, reward) ? { [reward]: builtInRewards[reward]! } : undefined
    const functions = known ?? (await loadRewards(reward).catch(unknownName(reward, 'reward', Object.keys(builtInRewards))))
    return Object.entries(functions).map(([name, reward]) => ({ name, reward, weight }))
  })
  return (await Promise.all(opened)).flat()
}

/** Opens a logger: a built-in one by name, another from its module. */
async function openLogger(logger: string): Promise<LoggerName | Logger> {
  const known = loggerNames.find((name) => name === logger)
  return known ?? (await loadLogger(logger).catch(unknownName(logger, 'logger', loggerNames)))
}

/** Reports a name that is neither built in nor a file. */
function unknownName(name: string, what: 'reward' | 'logger', known: readonly string[]) {
  return (error: LoopLMError): never => {
    if (error.code !== 'NOT_FOUND') throw error
    const remedy = didYouMean(name, known, `the built-in ${what}s are ${known.join(', ')}`)
    throw new LoopLMError('NOT_FOUND', `no file ${name}; ${remedy}`, { operation: what, cause: error })
  }
}

function show(event: TrainerEvent, steps: number, progress: Progress): void {
  switch (event.type) {
    case 'step':
      progress.update({ step: event.step, steps, metrics: event.metrics })
      break
    case 'eval':
      progress.log(`step ${event.step}  ${evaluationText(event.metrics)}`)
      break
    case 'checkpoint':
      progress.log(`saved ${event.path}`)
      break
  }
}

/** Quotes a word for the shell. */
function shellWord(word: string): string {
  return /^[\w./:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`
}
