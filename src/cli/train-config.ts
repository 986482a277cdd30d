import { readFile, stat } from 'node:fs/promises'
import { type Document, isCollection, isMap, isScalar } from 'yaml'
import { z } from 'zod'
import { type ReadyColumns, readyColumns } from '../data/columns.js'
import { formats } from '../data/formats/format.js'
import { parseYaml, yamlValue } from '../data/yaml.js'
import { fileError, LoopLMError } from '../errors.js'
import { textOf } from '../files/read.js'
import { loggerNames } from '../monitor/loggers/built-in.js'
import { sourceReaders, unreadOptions } from '../rl/config-common.js'
import { trainerNames, trainers } from '../rl/registry.js'
import { builtInRewards } from '../tasks/rewards.js'
import { prototypeKey } from '../validation/json-value.js'
import { parseOptions, problemsOf } from '../validation/schema.js'

const maxConfigBytes = 2 ** 20
const maxProblems = 20 // the most problems that one error lists
const rewardName = z.string().min(1)
const builtIn = Object.keys(builtInRewards)
const paths = z.union(
  [z.string().min(1), z.array(z.string().min(1)).min(1)],
  'must be the path of a file or folder, or a list of them',
)
const task = z.union(
  [z.string(), z.looseObject({ name: z.string() })],
  'must be the name of a task, or { name, … } with its options',
)

const name = z.string().min(1)
const columns = z.union(
  [
    z.enum(Object.keys(readyColumns) as ReadyColumns[]),
    z.record(z.string(), z.union([name, z.null(), z.strictObject({ template: name })])),
  ],
  `must be ${Object.keys(readyColumns).join(', ')}, or a map of columns such as { prompt: question }`,
)
const dataset = z.union(
  [
    name,
    z.strictObject({
      path: name,
      split: name.optional(),
      config: name.optional(),
      columns: columns.optional(),
      format: z.enum(formats).optional(),
      delimiter: z.string().length(1).optional(),
      download: z.boolean().optional(),
      revision: name.optional(),
      cacheDir: name.optional(),
      shuffleBuffer: z.int().min(1).optional(),
    }),
  ],
  'must be the path of a file or folder, or { path, … } with its options',
)

/** A training configuration file: the trainer, the model, the data, and the trainer's options. */
export const trainConfigSchema = z.strictObject({
  trainer: z.enum(trainerNames).describe('Which trainer runs.'),
  model: z
    .union(
      [z.string().min(1), z.record(z.string(), z.unknown())],
      'must be a checkpoint folder, a GGUF file, the name of a downloaded model, or the fields of a config.json for a new model',
    )
    .describe(
      'The path of a checkpoint folder or GGUF file, or the name of a downloaded model. For a new model, the fields of a config.json (`vocab_size` defaults to that of the tokenizer).',
    ),
  device: z
    .union(
      [z.enum(['cpu', 'cuda', 'auto', 'reference']), z.templateLiteral(['cuda:', z.int()])],
      'must be cpu, cuda, cuda:1, auto or reference',
    )
    .optional()
    .describe('Device of the model. Default: `cpu`.'),
  dtype: z
    .enum(['float32', 'bfloat16', 'float64'])
    .optional()
    .describe(
      'Dtype of parameters and activations. Default: that of the checkpoint, or `float32` for a new model (`float64` on device `reference`).',
    ),
  threads: z.int().min(1).optional().describe('Threads of the device. Default: one per core.'),
  parallel: z
    .union(
      [z.enum(['auto', 'off']), z.strictObject({ timeout: z.number().positive().max(1e6) })],
      'must be auto, off or { timeout: seconds }',
    )
    .optional()
    .describe(
      'Whether the processes of a launcher (mpirun, mpiexec, srun) train together (`auto`, the default) or each alone (`off`). `{ timeout: seconds }` is `auto` with a time limit for waiting for the others (default 600).',
    ),
  task: task
    .optional()
    .describe('A task with exact answers: its name, or `{ name, … }` with its options. Set a task or a dataset, not both.'),
  evalTasks: z.record(z.string(), task).optional().describe('More tasks to evaluate. The keys name their metrics.'),
  dataset: dataset
    .optional()
    .describe(
      'Rows with a `prompt` (a string or messages) and, if the reward needs one, an `answer`: a file or folder of JSON Lines, JSON, CSV or Parquet, `hub:org/name`, or `{ path, split, config, columns, format, delimiter, download, revision, cacheDir, shuffleBuffer }`.',
    ),
  evalDataset: dataset.optional().describe('Held-out rows for the evaluations of a dataset.'),
  corpus: paths.optional().describe('Text to learn: a file, a folder or a list of them, instead of a task or a dataset.'),
  evalCorpus: paths.optional().describe('Held-out text for the evaluations of a corpus.'),
  tokenizer: z
    .string()
    .min(1)
    .optional()
    .describe(
      'Folder with a tokenizer.json, or `bytes`, for a dataset or a corpus. Default: that of the model. A task has its own.',
    ),
  reward: z
    .union(
      [rewardName, z.array(z.strictObject({ reward: rewardName, weight: z.number().optional() })).min(1)],
      `must be ${builtIn.join(', ')} or the path of a module, or a list of { reward, weight }`,
    )
    .optional()
    .describe(
      `${builtIn.map((name) => `\`${name}\``).join(', ')} or the path of a module that exports functions; several as a list of \`{ reward, weight }\`.`,
    ),
  loggers: z
    .array(z.string().min(1))
    .optional()
    .describe(
      `What records the run: ${loggerNames.map((name) => `\`${name}\``).join(', ')}, or the path of a module that exports a logger. Default: all built-in ones if there is a \`runDir\`.`,
    ),
  runDir: z.string().min(1).optional().describe('Folder for metrics, completions and checkpoints. Nothing is saved without it.'),
  resume: z
    .union([z.boolean(), z.string()])
    .optional()
    .describe(
      '`true`: continue from the newest checkpoint of `runDir`, or start a new run if there is none. A path names one checkpoint.',
    ),
  options: z.record(z.string(), z.unknown()).default({}).describe('Options of the trainer, below.'),
})

/** A checked training configuration. */
export type TrainConfig = z.output<typeof trainConfigSchema>

/**
 * Reads a training configuration and applies changes to it.
 *
 * @param path a YAML file
 * @param changes `key=value` with a YAML value; a key is a field of the file (`runDir`, `task.digits`) or an option of the
 *   trainer
 * @throws LoopLMError NOT_FOUND, INVALID_FILE naming the line, INVALID_CONFIG naming each field
 */
export async function readTrainConfig(path: string, changes: readonly string[]): Promise<TrainConfig> {
  const operation = path
  const text = await readText(path)
  const document = parseYaml(text, operation)
  if (!isMap(document.contents)) throw new LoopLMError('INVALID_FILE', 'must hold fields such as "trainer: rltt"', { operation })
  if (isEmpty(document, ['options'])) document.delete('options')
  for (const change of changes) {
    const [, key, value] = /^([\w.]+)=(.*)$/s.exec(change) ?? []
    if (key === undefined || value === undefined) {
      throw new LoopLMError('INVALID_ARGUMENT', `must be key=value, got ${JSON.stringify(change)}`, { operation: '--set' })
    }
    const names = key.split('.')
    if (names.includes(prototypeKey)) {
      throw new LoopLMError('INVALID_ARGUMENT', `${key}: ${prototypeKey} cannot be a key`, { operation: '--set' })
    }
    const where = Object.hasOwn(trainConfigSchema.shape, names[0]!) ? names : ['options', ...names]
    setIn(document, where, yamlValue(parseYaml(value, `--set ${key}`), `--set ${key}`))
  }
  const given = yamlValue(document, operation) as Record<string, unknown>
  const problems = configProblems(given)
  if (problems.length > 0) throw new LoopLMError('INVALID_CONFIG', listed(problems), { operation })
  return parseOptions(path, trainConfigSchema, given)
}

function listed(problems: readonly string[]): string {
  if (problems.length === 1) return problems[0]!
  const [shown, more] = [problems.slice(0, maxProblems), problems.length > maxProblems]
  const count = more ? `more than ${maxProblems}` : String(problems.length)
  return [`${count} things are wrong`, ...shown, ...(more ? ['… and more'] : [])].join('\n  ')
}

/** All problems of a configuration, including the options of its trainer. Checked before a large model is loaded. */
function configProblems(given: Record<string, unknown>): string[] {
  const isMisplaced = (key: PropertyKey | undefined) =>
    typeof key === 'string' && !Object.hasOwn(trainConfigSchema.shape, key) && isTrainerOption(key)
  const misplaced = Object.keys(given).filter(isMisplaced)
  const lines = misplaced.map((key) => `${key}: an option of the trainer; write it below "options:"`)
  const check = (schema: z.ZodType, value: unknown, prefix: string) => {
    const { error } = schema.safeParse(value, { reportInput: true })
    if (error === undefined) return
    for (const { path, message } of problemsOf(error, schema, 'option'))
      if (prefix !== '' || !isMisplaced(path[0]))
        lines.push(`${[...(prefix === '' ? [] : [prefix]), ...path].join('.')}: ${message}`)
  }
  check(trainConfigSchema, given, '')
  const trainer = trainerNames.find((name) => name === given.trainer)
  const { options = {} } = given
  if (trainer !== undefined && typeof options === 'object') check(trainers[trainer].schema, options, 'options')
  const fields = trainer === undefined ? {} : trainers[trainer].schema.shape
  for (const { name, message } of unreadOptions(fields, { ...(options as object), ...given }, sourceReaders(given)))
    lines.push(`${name in given ? name : `options.${name}`}: ${message}`)
  const sources = [given.task, given.dataset, given.corpus].filter((source) => source !== undefined)
  if (sources.length !== 1) lines.push('needs exactly one of task, dataset and corpus (a corpus only for pretrain and looprpt)')
  return lines
}

async function readText(path: string): Promise<string> {
  let bytes: Buffer
  try {
    const { size } = await stat(path)
    if (size > maxConfigBytes) {
      throw new LoopLMError('INVALID_FILE', `a configuration has at most ${maxConfigBytes} bytes, this file ${size}`, {
        operation: path,
      })
    }
    bytes = await readFile(path)
  } catch (cause) {
    throw fileError(cause, 'read the configuration', path, path)
  }
  return textOf(bytes, 'the configuration', path)
}

/**
 * Sets a field, and creates missing parents.
 * @throws LoopLMError INVALID_ARGUMENT
 */
function setIn(document: Document, names: readonly string[], value: unknown): void {
  for (let count = 1; count < names.length; count++) {
    const above = names.slice(0, count)
    if (isEmpty(document, above)) document.deleteIn(above)
    const node = document.getIn(above, true)
    if (node === undefined || isCollection(node)) continue
    const [path, field] = [above.join('.'), names.slice(count).join('.')]
    const plain = isScalar(node) ? `is ${JSON.stringify(node.value)}` : 'is no map of fields'
    const remedy = path === 'task' ? '; write the task as { name: … }' : ''
    throw new LoopLMError('INVALID_ARGUMENT', `${path}: ${plain}, which has no field ${field}${remedy}`, { operation: '--set' })
  }
  try {
    document.setIn(names, value)
  } catch (cause) {
    throw new LoopLMError('INVALID_ARGUMENT', `${names.join('.')}: ${(cause as Error).message}`, { operation: '--set', cause })
  }
}

/** Whether a field exists but has no value: `options:` with nothing after it. */
function isEmpty(document: Document, names: readonly string[]): boolean {
  const node = document.getIn(names, true)
  return isScalar(node) && node.value === null
}

function isTrainerOption(key: string): boolean {
  return Object.values(trainers).some(({ schema }) => Object.hasOwn(schema.shape, key))
}
