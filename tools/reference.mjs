// Writes docs/configuration.md, docs/metrics.md and docs/command-line.md from the schemas, the list of metrics and the commands.
// --check only says whether they are current.
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { trainConfigSchema } from '../dist/src/cli/train-config.js'
import { metricGroups } from '../dist/src/monitor/metric-catalogue.js'
import { resources, rlttOptions } from '../dist/src/rl/config.js'
import { trainerOptions, trainers } from '../dist/src/rl/registry.js'
import { schemaOptions } from '../dist/src/validation/schema-docs.js'
import { commandLine } from './command-line.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const made = '<!-- Made by `npm run docs:reference`; do not edit. -->'
const described = (name, description) => {
  if (!description) throw new Error(`${name} has no description; give its schema a .describe()`)
  return description
}
const code = (text) => `\`${text}\``
const cell = (text) => text.replaceAll('|', '\\|')
const row = (...cells) => `| ${cells.map(cell).join(' | ')} |`
const table = (head, rows) => [row(...head), row(...head.map(() => '---')), ...rows.map((cells) => row(...cells))]
const optionRows = (options) =>
  options.map(({ name, type, default: value, description }) => [
    code(name),
    type,
    value === undefined ? '' : code(value),
    description,
  ])
const head = ['option', 'value', 'default', 'what it does']

const byTrainer = Object.fromEntries(Object.keys(trainers).map((name) => [name, trainerOptions(name)]))
const same = (a) => (b) => JSON.stringify(a) === JSON.stringify(b)
const shared = byTrainer.rltt.filter((option) => Object.values(byTrainer).every((options) => options.some(same(option))))
const own = (options) => options.filter((option) => !shared.some(same(option)))

const configuration = [
  '# Configuration',
  '',
  made,
  '',
  'A YAML file for `looplm train` says what is trained and on what; `--set key=value` changes a field or an option. In code the same options go to',
  'the constructor of the trainer. `looplm options TRAINER` prints those of one trainer.',
  '',
  '## The file',
  '',
  ...table(['field', 'value', 'default', 'what it is'], optionRows(schemaOptions(trainConfigSchema))),
  '',
  '## Options of every trainer',
  '',
  ...table(head, optionRows(shared)),
  ...Object.entries(byTrainer).flatMap(([name, options]) => [
    '',
    `## ${trainers[name].title} (\`${name}\`)`,
    '',
    ...table(head, optionRows(own(options))),
  ]),
  '',
  '## In code alone',
  '',
  ...table(
    ['option', 'what it is'],
    Object.keys({ ...resources, reward: 0 }).map((name) => [code(name), described(name, rlttOptions.shape[name]?.description)]),
  ),
]

const metrics = [
  '# Metrics',
  '',
  made,
  '',
  'Every step of a run is a line of `metrics.jsonl` with `"type": "step"`, every evaluation one with `"type": "eval"`. Step 0 is the evaluation before the',
  'first step. `time` is the time of day at which the line was written. The names follow TRL where TRL has the quantity. `<t>` is a loop, counted from 1;',
  '`<name>` is a reward or a task. `looplm report`, `looplm watch` and TensorBoard show the same numbers.',
  ...metricGroups.flatMap(({ title, charts }) => [
    '',
    `## ${title}`,
    '',
    ...table(
      ['metric', 'unit', 'what it is'],
      charts.flatMap(({ metrics }) => metrics.map(({ name, unit, description }) => [code(name), unit, description])),
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
