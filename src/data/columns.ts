import { lastBoxed } from './boxed.js'
import { typeName } from './rows.js'

/**
 * The source of a column: a column of the file by its name (a path such as `reward_model.ground_truth` reaches into objects), a
 * template with such names in braces, a function of the row, or null to drop the column.
 */
export type ColumnSource =
  | string
  | null
  | {
      /** A string with columns in braces, for example `Solve: {question}`. */
      template: string
    }
  | ((row: Readonly<Record<string, unknown>>) => unknown)

/** Predefined columns for well-known row formats, see docs/data.md. */
export type ReadyColumns = 'gsm8k' | 'math' | 'countdown'

/** Columns that are added to those of the file. */
export type Columns = ReadyColumns | Readonly<Record<string, ColumnSource>>

/** What is wrong with a row, as a clause without a subject. */
export class RowProblem extends Error {}

type Row = Readonly<Record<string, unknown>>

/** The row formats of published datasets. */
export const readyColumns = {
  /** `question`, and `answer` with a worked solution that ends in `#### 42`. */
  gsm8k: {
    prompt: 'question',
    completion: (row) => textOf(row, 'answer').replaceAll(/<<[^<>\n]*>>/g, ''),
    answer: (row) => {
      const solution = textOf(row, 'answer')
      const mark = solution.lastIndexOf('####')
      if (mark === -1) throw new RowProblem('field "answer" has no "####" in front of its result; map the columns yourself')
      return solution
        .slice(mark + 4)
        .trim()
        .replaceAll(',', '')
    },
  },
  /** `problem`, and `solution` with its result in `\boxed{}` or in a column `answer`. */
  math: {
    prompt: 'problem',
    completion: (row) => (typeof row.solution === 'string' ? row.solution : undefined),
    answer: (row) => {
      const found = typeof row.answer === 'string' ? row.answer : lastBoxed(textOf(row, 'solution'))
      if (found === undefined)
        throw new RowProblem('field "solution" has no \\boxed{} around its result; map the columns yourself')
      return found
    },
  },
  /** `nums` (or `numbers`) and `target`: reach the target with the numbers. The reward is `countdownMatch`. */
  countdown: {
    prompt: (row) => {
      const name = row.nums === undefined && row.numbers !== undefined ? 'numbers' : 'nums'
      const numbers = row[name]
      if (!Array.isArray(numbers) || numbers.length === 0 || !numbers.every(Number.isFinite)) {
        throw new RowProblem(`field "${name}" must be an array of numbers, got ${typeName(numbers)}`)
      }
      if (!Number.isFinite(row.target)) throw new RowProblem(`field "target" must be a number, got ${typeName(row.target)}`)
      const how = 'Use each number exactly once, with +, -, *, / and parentheses.'
      return `Make ${row.target} from the numbers ${numbers.join(', ')}. ${how} Give the expression in \\boxed{}.`
    },
    nums: (row) => row.nums ?? row.numbers,
  },
} satisfies Record<string, Record<string, ColumnSource>>

const texts = new Set(['prompt', 'answer', 'completion', 'text'])

/** A function that computes the columns of a row. It throws a {@link RowProblem} if the row lacks what they need. */
export function columnMapper(columns: Columns | undefined): (row: Row) => Record<string, unknown> {
  if (columns === undefined) return (row) => row
  const given = typeof columns === 'string' ? readyColumns[columns] : columns
  const sources = Object.entries(given as Record<string, ColumnSource>)
  return (row) => {
    const mapped: Record<string, unknown> = { ...row }
    for (const [name, source] of sources) {
      const value = columnValue(row, name, source)
      if (value === undefined) delete mapped[name]
      else mapped[name] = texts.has(name) && typeof value === 'number' ? String(value) : value
    }
    return mapped
  }
}

function columnValue(row: Row, name: string, source: ColumnSource): unknown {
  if (source === null) return undefined
  if (typeof source === 'string') return find(row, source, name)
  if (typeof source === 'object') return fill(row, source.template, name)
  let value: unknown
  try {
    value = source(row)
  } catch (cause) {
    if (cause instanceof RowProblem) throw cause
    throw new RowProblem(`is refused by columns.${name}: ${(cause as Error)?.message ?? cause}`, { cause })
  }
  if (typeof (value as PromiseLike<unknown> | undefined)?.then !== 'function') return value
  throw new RowProblem(`got a promise from columns.${name}; return the value itself`)
}

function find(row: Row, path: string, name: string): unknown {
  if (Object.hasOwn(row, path)) return row[path]
  let value: unknown = row
  for (const part of path.split('.')) {
    const inner = typeof value === 'object' && value !== null && Object.hasOwn(value, part)
    value = inner ? (value as Record<string, unknown>)[part] : undefined
  }
  if (value !== undefined) return value
  const fields = Object.keys(row).slice(0, 8).join(', ')
  throw new RowProblem(`has no field "${path}", which columns.${name} names; it has the fields ${fields}`)
}

function fill(row: Row, template: string, name: string): string {
  return template.replaceAll(/\{([^{}]+)\}/g, (_, path: string) => {
    const value = find(row, path, name)
    if (typeof value === 'string' || typeof value === 'number') return String(value)
    throw new RowProblem(`field "${path}" must be a string or a number for columns.${name}, got ${typeName(value)}`)
  })
}

function textOf(row: Row, field: string): string {
  const value = row[field]
  if (typeof value === 'string') return value
  throw new RowProblem(`field "${field}" must be a string, got ${typeName(value)}`)
}
