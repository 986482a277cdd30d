import { extname } from 'node:path'
import { isDeeper, maxJsonDepth, prototypeKey } from '../../validation/json-value.js'
import { typeName } from '../rows.js'

/** Formats of datasets. The cells of `csv` are separated by commas, tabs or a `delimiter`. */
export const formats = ['jsonl', 'json', 'csv', 'parquet'] as const

/** See {@link formats}. */
export type Format = (typeof formats)[number]

const byExtension: Readonly<Record<string, Format>> = {
  '.jsonl': 'jsonl',
  '.ndjson': 'jsonl',
  '.json': 'json',
  '.csv': 'csv',
  '.tsv': 'csv',
  '.parquet': 'parquet',
}

/** The file name extensions of the formats. */
export const extensions = Object.keys(byExtension)

/** The format of a file, by its name's extension. undefined if it has none of them. */
export function formatOf(path: string): Format | undefined {
  return byExtension[extname(path).toLowerCase()]
}

/** The position where a row begins, so that reading can resume there. */
export interface Place {
  /** Number of rows before it. */
  row: number
  /** 1-based, for text formats. */
  line: number
  /** Offset in bytes, for text formats. */
  byte: number
}

/** A row with the values of the file. */
export interface FileRow extends Place {
  value: Readonly<Record<string, unknown>>
}

/** How a file is read. */
export interface ReadSettings {
  operation: string
  /** The largest row in bytes. */
  maxRowBytes: number
  /** Delimiter of `csv`. Defaults to that of the file's extension. */
  delimiter?: string | undefined
  signal?: AbortSignal | undefined
}

/** Reads the rows of a file from a position on, some at a time: as many as can be parsed without blocking the event loop. */
export type ReadRows = (path: string, settings: ReadSettings, from?: Place) => AsyncGenerator<FileRow[], void, undefined>

/** The name of a row's position in errors. */
export function nameOfPlace(format: Format, { row, line }: Place): string {
  if (format === 'jsonl') return `line ${line}`
  return format === 'csv' ? `row ${row + 1} (line ${line})` : `row ${row + 1}`
}

/** What is wrong with a parsed JSON value as a row, or undefined. */
export function objectProblem(value: unknown): string | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return `must be a JSON object, got ${typeName(value)}`
  if (isDeeper(value, maxJsonDepth)) return `is nested more than ${maxJsonDepth} deep`
  if (Object.hasOwn(value, prototypeKey)) return `has a field "${prototypeKey}", which cannot be a key`
  return undefined
}
