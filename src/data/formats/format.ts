import { extname } from 'node:path'
import { isDeeper, maxJsonDepth, prototypeKey } from '../../validation/json-value.js'
import { typeName } from '../rows.js'

/** Formats of datasets; `csv` has commas, tabs or a `delimiter` between its cells. */
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

/** The ends of names that say what a file holds. */
export const extensions = Object.keys(byExtension)

/** The format that a file's name says, if it says one. */
export function formatOf(path: string): Format | undefined {
  return byExtension[extname(path).toLowerCase()]
}

/** Where a row begins, so that reading can go on there. */
export interface Place {
  /** Rows before it. */
  row: number
  /** 1-based; of text formats. */
  line: number
  /** Of text formats. */
  byte: number
}

/** A row as a file holds it. */
export interface FileRow extends Place {
  value: Readonly<Record<string, unknown>>
}

/** How a file is read. */
export interface ReadSettings {
  operation: string
  /** Longest row. */
  maxRowBytes: number
  /** Between the cells of `csv`; default what the file's name says. */
  delimiter?: string | undefined
  signal?: AbortSignal | undefined
}

/** Reads the rows of a file from a place on, some at a time: as many as are parsed without holding up the event loop. */
export type ReadRows = (path: string, settings: ReadSettings, from?: Place) => AsyncGenerator<FileRow[], void, undefined>

/** How errors name the place of a row. */
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
