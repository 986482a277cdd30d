// docs/coming-from-trl.md: every name of TRL has a row, and what a row names is an option, which errors propose.
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { z } from 'zod'
import { callbackNames } from '../../src/rl/callbacks.js'
import { grpoOptions, objectiveTrainerOptions, rlttOptions } from '../../src/rl/config-rollouts.js'
import { looprptOptions, pretrainOptions } from '../../src/rl/config-tokens.js'
import { parseOptions } from '../../src/validation/schema.js'
import { namesOfTrl } from '../../src/validation/trl-names.js'
import { refusal } from '../refusal.js'

const lists = JSON.parse(readFileSync('test/fixtures/trl-names.json', 'utf8')) as Record<string, string | string[]>
const text = readFileSync('docs/coming-from-trl.md', 'utf8')
const trainers = {
  rltt: rlttOptions,
  grpo: grpoOptions,
  objective: objectiveTrainerOptions,
  pretrain: pretrainOptions,
  looprpt: looprptOptions,
}
const options = new Set(Object.values(trainers).flatMap(({ shape }) => Object.keys(shape)))

interface Row {
  names: string[]
  /** What is here; none for a dash. */
  here: string[]
  cell: string
  note: string
}

/** The rows of a section's table. */
function rowsOf(section: string): Row[] {
  const part = text.split(/^## /m).find((one) => one.startsWith(`${section}\n`))
  if (part === undefined) throw new Error(`docs/coming-from-trl.md has no section ${section}`)
  const quoted = (cell: string) => [...cell.matchAll(/`([^`]+)`/g)].map(([, name]) => name!)
  return [...part.matchAll(/^\| (`[^|]+) \| ([^|]+) \| ([^|]*)\|$/gm)].map(([, names, here, note]) => ({
    names: quoted(names!),
    here: here === '–' ? [] : quoted(here!),
    cell: here!,
    note: note!,
  }))
}

const sections = {
  Trainers: 'trainers',
  GRPOConfig: 'GRPOConfig',
  SFTConfig: 'SFTConfig',
  TrainingArguments: 'TrainingArguments',
  Callbacks: 'callbacks',
}
const configurations = ['Trainers', 'GRPOConfig', 'SFTConfig', 'TrainingArguments'].flatMap(rowsOf)
const spelling = (name: string) => name.replaceAll('_', '').toLowerCase()

describe('coming from TRL', () => {
  it.each(Object.entries(sections))('%s: every name has exactly one row, and no other name has one', (section, list) => {
    const names = rowsOf(section).flatMap((row) => row.names)
    expect(names.length).toBeGreaterThan(10)
    expect([...names].sort()).toEqual([...(lists[list] as string[])].sort())
  })

  it.each(Object.keys(sections))('%s: every row names options or callbacks of looplm, or has a dash', (section) => {
    const known: string[] = [...options, ...(section === 'Callbacks' ? callbackNames : ['columns'])] // columns of the dataset
    for (const { names, here, cell } of rowsOf(section)) {
      expect([names, here.length > 0 || cell === '–']).toEqual([names, true])
      expect([names, here.filter((name) => !known.includes(name))]).toEqual([names, []])
    }
  })

  it('the defaults that it compares with those of TRL are those of the schemas', () => {
    const defaults: Record<string, unknown> = { ...parseOptions('grpo', grpoOptions, {}) }
    const rows = rowsOf('Defaults that differ')
    expect(rows.length).toBeGreaterThan(5)
    for (const { here, note } of rows) {
      const stated = /^`([^`]+)`/.exec(note)?.[1]
      expect([here, String(defaults[here[0]!])]).toEqual([here, stated ?? 'undefined'])
    }
    const { learningRate, weightDecay, adamBetas } = parseOptions('pretrain', pretrainOptions, {})
    expect([learningRate, weightDecay, adamBetas]).toEqual([3e-4, 0.1, [0.9, 0.95]])
    expect(text.replaceAll('\n', ' ')).toContain('`pretrain` has 3e-4, 0.1 and `[0.9, 0.95]`')
  })

  it('errors suggest the option that the table names for a name of TRL', () => {
    const proposed = new Map(namesOfTrl)
    for (const { names, here } of configurations) {
      if (here.length === 0 || !here.every((name) => options.has(name))) continue
      for (const name of names) {
        if (here.some((option) => spelling(option) === spelling(name))) continue
        expect([name, proposed.get(name)]).toEqual([name, here])
      }
    }
  })

  it.each(namesOfTrl)('%s as an option suggests %j', async (name, expected) => {
    const rows = configurations.filter(({ names }) => names.includes(name))
    expect(rows.some(({ here }) => expected.every((option) => here.includes(option)))).toBe(true)
    for (const option of expected) {
      const schemas = Object.entries(trainers).filter(([, { shape }]) => Object.hasOwn(shape, option))
      expect(schemas).not.toEqual([])
      for (const [trainer, schema] of schemas) {
        const first = expected.find((one) => Object.hasOwn(schema.shape, one))
        const error = await refusal(() => parseOptions(trainer, schema as z.ZodType, { [name]: 1 }))
        expect(error.message).toContain(`${name}: unknown option; did you mean ${first}?`)
      }
    }
  })
})
