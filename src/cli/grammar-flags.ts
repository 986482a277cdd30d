import { readFileSync } from 'node:fs'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { errorMessage } from '../errors.js'
import { textOf } from '../files/read.js'
import type { GenerateOptions } from '../model/types.js'

/** The flags of {@link grammarOptions}. */
export interface GrammarFlags {
  jsonSchema?: object | boolean
  regex?: string
  grammarFile?: string
}

/** Adds --json-schema, --regex and --grammar-file. */
export function grammarOptions(command: Command): Command {
  return command
    .addOption(
      new Option(
        '--json-schema <schema>',
        'schema that answers must fit, as JSON or the path of a .json file; true allows any JSON',
      )
        .argParser(schema)
        .conflicts(['regex', 'grammarFile']),
    )
    .addOption(new Option('--regex <pattern>', 'regular expression that answers must match').conflicts('grammarFile'))
    .option('--grammar-file <file>', "file with rules in xgrammar's EBNF that answers must follow", contents)
}

/** The grammar that was asked for, if any. */
export function grammarOf({ jsonSchema, regex, grammarFile: ebnf }: GrammarFlags): GenerateOptions['grammar'] {
  if (jsonSchema !== undefined) return { jsonSchema }
  if (regex !== undefined) return { regex }
  return ebnf === undefined ? undefined : { ebnf }
}

/** Parses a JSON Schema, or reads it from a file. */
function schema(text: string): object | boolean {
  const json = text.endsWith('.json') ? contents(text) : text
  let value: unknown
  try {
    value = JSON.parse(json)
  } catch (cause) {
    throw new InvalidArgumentError(
      `must be JSON such as '{ "type": "object" }', or a file that ends in .json (${errorMessage(cause)}).`,
    )
  }
  if (typeof value === 'boolean' || (typeof value === 'object' && value !== null && !Array.isArray(value))) return value
  throw new InvalidArgumentError('must be a JSON object or true.')
}

function contents(path: string): string {
  try {
    return textOf(readFileSync(path), path)
  } catch (cause) {
    throw new InvalidArgumentError(`cannot be read (${errorMessage(cause)}).`)
  }
}
