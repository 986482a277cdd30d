// Writes docs/configuration.md, docs/metrics.md and docs/command-line.md from the schemas, the list of metrics and the commands.
// --check only says whether they are current.
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { trainConfigSchema } from '../dist/src/cli/train-config.js'
import { metricGroups } from '../dist/src/monitor/metric-catalogue.js'
import { grpoOptions as grpo, objectiveTrainerOptions as objective, rlttOptions as rltt } from '../dist/src/rl/config-rollouts.js'
import { looprptOptions as looprpt, pretrainOptions as pretrain } from '../dist/src/rl/config-tokens.js'
import { trainerOptions, trainers } from '../dist/src/rl/registry.js'
import { schemaOptions } from '../dist/src/validation/schema-docs.js'
import { commandLine } from './command-line.mjs'
import { wrapText } from './wrap-text.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const made = '<!-- Made by `npm run docs:reference`; do not edit. -->'
const described = (name, description) => {
  if (!description) throw new Error(`${name} has no description; give its schema a .describe()`)
  return description
}
const code = (text) => `\`${text}\``
const item = (text) => wrapText(`* ${text}`, { indent: '  ' })
const optionItem = ({ name, type, default: value, description }) =>
  `${item(`${code(name)}: ${code(type)}${value === undefined ? '' : `; default ${code(value)}`}.`)}\n  ${wrapText(description, { width: 118, indent: '  ' })}`

const byTrainer = Object.fromEntries(Object.keys(trainers).map((name) => [name, trainerOptions(name)]))
const same = (a) => (b) => JSON.stringify(a) === JSON.stringify(b)
const shared = byTrainer.rltt.filter((option) => Object.values(byTrainer).every((options) => options.some(same(option))))
const own = (options) => options.filter((option) => !shared.some(same(option)))

/** The options that are not plain data, of any trainer. */
const inCode = {}
for (const [name, { shape }] of Object.entries({ rltt, grpo, objective, looprpt, pretrain }))
  for (const [field, { description }] of Object.entries(shape))
    if (!(field in trainers[name].schema.shape)) inCode[field] ??= described(field, description)
const codeItems = (wanted) =>
  Object.entries(inCode).flatMap(([name, description]) => (wanted(name) ? [item(`${code(name)}: ${description}`)] : []))

const configuration = [
  '# Configuration',
  '',
  made,
  '',
  '```text',
  'npx looplm train run.yaml --set learningRate=1e-5',
  'npx looplm options TRAINER',
  '```',
  '',
  'A YAML file for `looplm train` says what to train and on which data. `--set key=value` changes a field or an option.',
  '`looplm options TRAINER` prints the options of one trainer. In code, pass the same options to the trainer.',
  '',
  '## The file',
  '',
  ...schemaOptions(trainConfigSchema).map(optionItem),
  '',
  '## Options of every trainer',
  '',
  ...shared.map(optionItem),
  ...Object.entries(byTrainer).flatMap(([name, options]) => [
    '',
    `## ${trainers[name].title} (\`${name}\`)`,
    '',
    ...own(options).map(optionItem),
  ]),
  '',
  '## Fields of the file in code',
  '',
  'In code, these fields of the file are options beside the others. Tasks, tokenizers and functions are then objects.',
  '',
  ...codeItems((name) => name in trainConfigSchema.shape),
  '',
  '## Only in code',
  '',
  ...codeItems((name) => !(name in trainConfigSchema.shape)),
]

const metrics = [
  '# Metrics',
  '',
  made,
  '',
  '```text',
  'npx looplm report RUN',
  'npx looplm watch RUN',
  '```',
  '',
  '`looplm report`, `looplm watch` and TensorBoard show these numbers.',
  '',
  '* Every step of a run is a line of `metrics.jsonl` with `"type": "step"`. Every evaluation is one with `"type": "eval"`.',
  '* Step 0 is the evaluation before the first step. `time` is the time of day when the line was written.',
  '* Names follow TRL where TRL has the quantity. `<t>` is a loop, counted from 1. `<name>` is a reward or a task.',
  ...metricGroups.flatMap(({ title, charts }) => [
    '',
    `## ${title}`,
    '',
    ...charts.flatMap(({ metrics }) =>
      metrics.map(({ name, unit, description }) => item(`${code(name)}${unit === '' ? '' : ` (${unit})`}: ${description}`)),
    ),
  ]),
]

const files = {
  'docs/configuration.md': configuration,
  'docs/metrics.md': metrics,
  'docs/command-line.md': await commandLine(new URL('../dist/src/cli/', import.meta.url)),
}
const check = process.argv.includes('--check')
for (const [path, lines] of Object.entries(files)) {
  const text = `${lines.join('\n')}\n`
  if (!check) writeFileSync(join(root, path), text)
  else if (readFileSync(join(root, path), 'utf8') !== text) {
    console.error(`${path} is not what the schemas say: npm run docs:reference`)
    process.exitCode = 1
  }
}
